//! Recorded orders and dead letters over HTTP, read-only.

use common::db::DbError;
use common::http::Handler::{Direct, One};
use common::http::{
    HandlerResult, Head, Page, Problem, Request, Response, Route, Verb, health, json_if_changed,
    whole_list,
};
use serde::Serialize;

use crate::store::{DeadLetterStore, Filter, OrderFilter, OrderStore};

pub(crate) const ROUTES: &[Route<OrderStore>] = &[
    (Verb::Get, "/api/orders", One(list_orders)),
    (Verb::Get, "/api/orders/:id", One(get_order)),
];

/// These routes have no connection to the database, so that no answer waits for it.
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

/// Checks that the query has only parameters of its path.
pub(crate) fn check_query(head: &Head) -> Result<(), Problem> {
    head.require_query_of(match head.route() {
        "/api/orders" => &["limit", "after", "order", "user_id", "message_id"],
        "/api/dead-letters" => &["limit", "after", "order", "reason", "message_id"],
        _ => &[],
    })
}

/// Forbids caches to store an answer: orders and dead letters are confidential.
fn not_stored(response: Response<'_>) -> Response<'_> {
    response.with_header("cache-control", "no-store")
}

/// The answer with one value.
fn json<'a>(request: &Request, value: &impl Serialize) -> Response<'a> {
    not_stored(json_if_changed(request, value))
}

/// The answer with the row whose id is in the path; `kind` is what a row is called.
fn row<'a, T: Serialize>(
    request: &Request,
    kind: &str,
    find: impl FnOnce(i64) -> Result<Option<T>, DbError>,
) -> HandlerResult<'a> {
    let id = request.param("id");
    let no_such_row = || Problem::not_found(format!("there is no {kind} with id {id}"));
    let id = request.id_param("id").ok_or_else(no_such_row)?;
    Ok(json(request, &find(id)?.ok_or_else(no_such_row)?))
}

/// A filter of a list. A text of PostgreSQL cannot contain NUL.
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
        return whole_list(request, orders.list_all(&filter, page)?).map(not_stored);
    }
    let listed = orders.list(&filter, page)?;
    page.respond(
        listed,
        |order| order.id,
        request,
        |orders| Ok(json(request, &orders)),
    )
}

fn get_order<'a>(orders: &'a mut OrderStore, request: &Request) -> HandlerResult<'a> {
    row(request, "order", |id| orders.find(id))
}

/// A list without a limit is the longest page.
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
        |letters| Ok(json(request, &letters)),
    )
}

fn count_dead_letters<'a>(
    letters: &'a mut DeadLetterStore,
    request: &Request,
) -> HandlerResult<'a> {
    Ok(json(request, &letters.counts(&Filter::default())?))
}

fn get_dead_letter<'a>(letters: &'a mut DeadLetterStore, request: &Request) -> HandlerResult<'a> {
    row(request, "dead letter", |id| letters.find(id))
}
