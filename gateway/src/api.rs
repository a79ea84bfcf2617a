//! What the gateway answers itself, and what it passes on.

use std::sync::Arc;

use common::http::Handler::One;
use common::http::{HandlerResult, Problem, Request, Response, Route, Verb};
use common::order::{NewOrder, ORDER_BYTES_MAX};
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

/// What a worker has for recorded orders and for dead letters.
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

pub(crate) const DEAD_LETTERS: &[Route<RecordedOrders>] = &[
    (Verb::Get, "/api/dead-letters", One(forward_to_billing)),
    (Verb::Get, "/api/dead-letters/:id", One(forward_to_billing)),
];

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
    let caller = billing.access.check(request)?;
    request.require_json()?;
    let key = match request.single_header("Idempotency-Key")? {
        Some(key) => Some(idempotency_key(key)?),
        None => None,
    };
    if request.body.len() > ORDER_BYTES_MAX {
        return Err(Problem::content_too_large(ORDER_BYTES_MAX));
    }
    let (order, message) = NewOrder::with_message(&request.body)
        .map_err(|error| Problem::bad_request(error.to_string()))?;
    let (message_id, keyed) = match key {
        Some(key) => (message_id(caller, key), Some(order)),
        None => (Uuid::now_v7().to_string(), None),
    };
    let order = Outgoing {
        body: message,
        message_id,
        request_id: request.request_id.clone(),
        keyed,
    };
    let orders = billing.orders.clone();
    Ok(Response::later(move |mut exchange| {
        exchange.set_message_id(&order.message_id);
        orders.place(order, exchange);
    }))
}

/// A key is its caller's, where callers are known. Neither a key nor a message id of ours has a
/// space, so no two callers, and nobody without a name, come to the same id.
fn message_id(caller: Option<String>, key: String) -> String {
    match caller {
        Some(caller) => format!("{caller} {key}"),
        None => key,
    }
}

/// The key, taken out of its quotes where it has some.
fn idempotency_key(given: &str) -> Result<String, Problem> {
    let key = match given.strip_prefix('"') {
        Some(quoted) => unquoted(quoted).ok_or_else(|| {
            Problem::bad_request(
                "Idempotency-Key begins with a quote and is no string as RFC 8941 has it",
            )
        })?,
        None => given.to_owned(),
    };
    let well_formed = !key.is_empty()
        && key.len() <= IDEMPOTENCY_KEY_CHARS_MAX
        && key.bytes().all(|b| b.is_ascii_graphic());
    if well_formed {
        return Ok(key);
    }
    Err(Problem::bad_request(
        "Idempotency-Key must have 1 to 64 visible ASCII characters",
    ))
}

/// The value of a string of RFC 8941 §3.3.3, behind its first quote.
fn unquoted(quoted: &str) -> Option<String> {
    let mut value = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(value),
            '\\' => value.push(characters.next().filter(|c| matches!(c, '"' | '\\'))?),
            character => value.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_quotes_is_the_key_without_them() {
        let key = |given: &str| idempotency_key(given).ok();

        for (given, expected) in [
            ("key-1", "key-1"),
            (r#""key-1""#, "key-1"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#"a"b"#, r#"a"b"#),
            (r"a\b", r"a\b"),
        ] {
            assert_eq!(key(given).as_deref(), Some(expected), "{given}");
        }
        let longest = "k".repeat(64);
        assert_eq!(key(&format!("\"{longest}\"")), Some(longest));
        for given in [
            "\"",
            "\"\"",
            "\"a",
            "\"a\"b",
            "\"a\"b\"",
            "\"a\\\"",
            "\"a\\b\"",
            "\"a b\"",
            "\"a\";b=1",
        ] {
            assert_eq!(key(given), None, "{given}");
        }
        assert_eq!(key(&format!("\"{}\"", "k".repeat(65))), None);
    }
}
