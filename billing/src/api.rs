//! Recorded orders over HTTP, to be read.

use common::http::Handler::One;
use common::http::{
    HandlerResult, Page, Problem, Request, Route, Verb, health, json_if_changed, whole_list,
};

use crate::store::OrderStore;

pub(crate) const ROUTES: &[Route<OrderStore>] = &[
    (Verb::Get, "/api/orders", One(list_orders)),
    (Verb::Get, "/api/orders/:id", One(get_order)),
];

/// Without a connection to the database, which this must not wait for.
pub(crate) const HEALTH: &[Route<()>] = &[(Verb::Get, "/api/health", One(get_health))];

fn list_orders<'a>(orders: &'a mut OrderStore, request: &Request) -> HandlerResult<'a> {
    let page = Page::from_query_in_either_order(request)?;
    let user_id = request.query("user_id")?;
    if user_id
        .as_deref()
        .is_some_and(|user_id| user_id.contains('\0'))
    {
        return Err(Problem::bad_request("user_id must not contain NUL"));
    }
    if page.limit.is_none() {
        return whole_list(request, orders.list_all(user_id.as_deref(), page)?);
    }
    let listed = orders.list(user_id.as_deref(), page)?;
    page.respond(
        listed,
        |order| order.id,
        request,
        |orders| Ok(json_if_changed(request, &orders)),
    )
}

fn get_order<'a>(orders: &'a mut OrderStore, request: &Request) -> HandlerResult<'a> {
    let no_such_order =
        || Problem::not_found(format!("there is no order with id {}", request.param("id")));
    let id = request.id_param("id").ok_or_else(no_such_order)?;
    Ok(json_if_changed(
        request,
        &orders.find(id)?.ok_or_else(no_such_order)?,
    ))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn get_health<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    Ok(health())
}
