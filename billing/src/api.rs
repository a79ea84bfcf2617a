//! Recorded orders over HTTP, to be read.

use common::http::Handler::{Direct, One};
use common::http::{
    HandlerResult, Head, Page, Problem, Request, Response, Route, Verb, health, json_if_changed,
    whole_list,
};

use crate::store::{DeadLetterStore, Filter, OrderFilter, OrderStore};

pub(crate) const ROUTES: &[Route<OrderStore>] = &[
    (Verb::Get, "/api/orders", One(list_orders)),
    (Verb::Get, "/api/orders/:id", One(get_order)),
];

/// Without a connection to the database, which this must not wait for.
pub(crate) const HEALTH: &[Route<()>] = &[(Verb::Get, "/api/health", Direct(health))];

pub(crate) const DEAD_LETTERS: &[Route<DeadLetterStore>] = &[
    (Verb::Get, "/api/dead-letters", One(list_dead_letters)),
    (
        Verb::Get,
        "/api/dead-letters/count",
        One(count_dead_letters),
    ),
    (Verb::Get, "/api/dead-letters/:id", One(get_dead_letter)),
];

/// What the query of each path may have.
pub(crate) fn knows_query(head: &Head) -> Result<(), Problem> {
    head.require_query_of(match head.route() {
        "/api/orders" => &["limit", "after", "order", "user_id", "message_id"],
        "/api/dead-letters" => &["limit", "after", "order", "reason", "message_id"],
        _ => &[],
    })
}

/// Orders and dead letters are nothing to be kept by whoever passes them on.
fn not_kept(response: Response<'_>) -> Response<'_> {
    response.with_header("cache-control", "no-store")
}

/// A filter of a list. PostgreSQL has no text with NUL in it.
fn filter(request: &Request, name: &str) -> Result<Option<String>, Problem> {
    let value = request.query(name)?;
    if value.as_deref().is_some_and(|value| value.contains('\0')) {
        return Err(Problem::bad_request(format!("{name} must not contain NUL")));
    }
    Ok(value)
}

fn list_orders<'a>(orders: &'a mut OrderStore, request: &Request) -> HandlerResult<'a> {
    let page = Page::from_query(request)?;
    let filter = OrderFilter {
        user_id: filter(request, "user_id")?,
        message_id: filter(request, "message_id")?,
    };
    if page.limit.is_none() {
        return whole_list(request, orders.list_all(&filter, page)?).map(not_kept);
    }
    let listed = orders.list(&filter, page)?;
    page.respond(
        listed,
        |order| order.id,
        request,
        |orders| Ok(not_kept(json_if_changed(request, &orders))),
    )
}

/// A page, the longest where no limit is given.
fn list_dead_letters<'a>(letters: &'a mut DeadLetterStore, request: &Request) -> HandlerResult<'a> {
    let page = Page::from_query(request)?.with_limit();
    let filter = Filter {
        reason: filter(request, "reason")?,
        message_id: filter(request, "message_id")?,
        ..Filter::default()
    };
    let listed = letters.list(&filter, page)?;
    page.respond(
        listed,
        |letter| letter.id,
        request,
        |letters| Ok(not_kept(json_if_changed(request, &letters))),
    )
}

fn count_dead_letters<'a>(
    letters: &'a mut DeadLetterStore,
    request: &Request,
) -> HandlerResult<'a> {
    let counts = letters.counts(&Filter::default())?;
    Ok(not_kept(json_if_changed(request, &counts)))
}

fn get_dead_letter<'a>(letters: &'a mut DeadLetterStore, request: &Request) -> HandlerResult<'a> {
    let no_such_letter = || {
        Problem::not_found(format!(
            "there is no dead letter with id {}",
            request.param("id")
        ))
    };
    let id = request.id_param("id").ok_or_else(no_such_letter)?;
    let letter = letters.find(id)?.ok_or_else(no_such_letter)?;
    Ok(not_kept(json_if_changed(request, &letter)))
}

fn get_order<'a>(orders: &'a mut OrderStore, request: &Request) -> HandlerResult<'a> {
    let no_such_order =
        || Problem::not_found(format!("there is no order with id {}", request.param("id")));
    let id = request.id_param("id").ok_or_else(no_such_order)?;
    let order = orders.find(id)?.ok_or_else(no_such_order)?;
    Ok(not_kept(json_if_changed(request, &order)))
}
