//! What the gateway answers itself, and what it passes on.

use std::sync::Arc;

use common::http::Handler::One;
use common::http::{HandlerResult, Problem, Request, Response, Route, Verb};
use common::order::NewOrder;
use uuid::Uuid;

use crate::access::Access;
use crate::proxy::Proxy;
use crate::publisher::{Orders, Outgoing};

/// The longest `Idempotency-Key`, in characters.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 64;

/// What a worker has for movies.
pub(crate) struct Movies {
    pub(crate) access: Arc<Access>,
    pub(crate) inventory: Proxy,
}

/// What a worker has for recorded orders.
pub(crate) struct RecordedOrders {
    pub(crate) access: Arc<Access>,
    pub(crate) billing: Proxy,
}

/// What a worker has for orders.
#[derive(Clone)]
pub(crate) struct Billing {
    pub(crate) access: Arc<Access>,
    pub(crate) orders: Orders,
}

pub(crate) const MOVIES: &[Route<Movies>] =
    &[(Verb::Any, "/api/movies/*", One(forward_to_inventory))];

pub(crate) const BILLING: &[Route<Billing>] = &[(Verb::Post, "/api/billing", One(place_order))];

pub(crate) const RECORDED_ORDERS: &[Route<RecordedOrders>] = &[
    (Verb::Get, "/api/orders", One(forward_to_billing)),
    (Verb::Get, "/api/orders/:id", One(forward_to_billing)),
];

fn forward_to_inventory<'a>(movies: &'a mut Movies, request: &Request) -> HandlerResult<'a> {
    movies.access.check(request)?;
    movies.inventory.forward(request)
}

/// Who has placed what is for administrators, where there are any.
fn forward_to_billing<'a>(orders: &'a mut RecordedOrders, request: &Request) -> HandlerResult<'a> {
    orders.access.check_administrator(request)?;
    orders.billing.forward(request)
}

/// Answers 200 when the broker has confirmed the message, and not before.
fn place_order<'a>(billing: &'a mut Billing, request: &Request) -> HandlerResult<'a> {
    billing.access.check(request)?;
    request.require_json()?;
    let message_id = match request.single_header("Idempotency-Key")? {
        Some(key) => idempotency_key(key)?,
        None => Uuid::now_v7().to_string(),
    };
    NewOrder::from_json(&request.body).map_err(|error| Problem::bad_request(error.to_string()))?;
    let order = Outgoing {
        body: request.body.clone(),
        message_id,
        request_id: request.request_id.clone(),
    };
    let orders = billing.orders.clone();
    Ok(Response::later(move |mut exchange| {
        exchange.set_message_id(&order.message_id);
        orders.place(order, exchange);
    }))
}

fn idempotency_key(key: &str) -> Result<String, Problem> {
    let well_formed = !key.is_empty()
        && key.len() <= IDEMPOTENCY_KEY_CHARS_MAX
        && key.bytes().all(|b| b.is_ascii_graphic());
    if well_formed {
        return Ok(key.to_owned());
    }
    Err(Problem::bad_request(
        "Idempotency-Key must have 1 to 64 visible ASCII characters",
    ))
}
