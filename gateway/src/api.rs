//! The routes of the gateway: orders are published, other requests are forwarded.

use common::http::{Handler, Head, Lease, Method, Problem, Request, Route, Verb, require_no_tag};
use common::order::{NewOrder, ORDER_BYTES_MAX};
use uuid::Uuid;

use crate::access::Access;
use crate::forward::{Forwarder, forward};
use crate::publisher::{OrderMessage, OrderSender};

/// The longest `Idempotency-Key`, in characters.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 64;

pub(crate) const MOVIES: &[Route<Forwarder>] =
    &[(Verb::Any, "/api/movies/*", Handler::Owned(forward))];

pub(crate) const BILLING: &[Route<OrderSender>] =
    &[(Verb::Post, "/api/billing", Handler::Owned(place_order))];

pub(crate) const DEAD_LETTERS: &[Route<Forwarder>] = &[
    (Verb::Get, "/api/dead-letters", Handler::Owned(forward)),
    (Verb::Get, "/api/dead-letters/:id", Handler::Owned(forward)),
];

pub(crate) const RECORDED_ORDERS: &[Route<Forwarder>] = &[
    (Verb::Get, "/api/orders", Handler::Owned(forward)),
    (Verb::Get, "/api/orders/:id", Handler::Owned(forward)),
];

/// Checks the head of a request for an order: the caller, and whether the body can be an order.
pub(crate) fn may_place_order(access: &Access, head: &Head) -> Result<(), Problem> {
    access.check(head)?;
    head.require_query_of(&[])?;
    if head.method == Method::POST {
        require_no_tag(head)?;
        head.announces_json()?;
        if let Some(key) = head.single_header("Idempotency-Key")? {
            idempotency_key(key)?;
        }
    }
    Ok(())
}

/// Answers 200 when the broker has confirmed the message, and not before.
fn place_order(mut lease: Lease<OrderSender>, request: Request) {
    match order_message(&request) {
        Ok(message) => {
            let _ = request.message_id.set(message.message_id.clone());
            lease.state().place(message, request);
        }
        Err(problem) => request.respond(Err(problem)),
    }
}

/// The message that a request for an order becomes.
fn order_message(request: &Request) -> Result<OrderMessage, Problem> {
    request.require_json()?;
    let key = request
        .single_header("Idempotency-Key")?
        .map(idempotency_key)
        .transpose()?;
    if request.body.len() > ORDER_BYTES_MAX {
        return Err(Problem::content_too_large(ORDER_BYTES_MAX));
    }
    let (order, body) = NewOrder::with_message(&request.body)
        .map_err(|error| Problem::bad_request(error.to_string()))?;
    let (message_id, keyed) = match key {
        Some(key) => (message_id(request.caller.get(), key), Some(order)),
        None => (Uuid::now_v7().to_string(), None),
    };
    Ok(OrderMessage {
        body,
        message_id,
        request_id: request.request_id.clone(),
        keyed,
    })
}

/// Makes a message id of an `Idempotency-Key` and, where API keys are in force, of the caller's name. Neither an
/// `Idempotency-Key` nor a UUID has a space, so two callers never have one message id.
fn message_id(caller: Option<&String>, key: String) -> String {
    match caller {
        Some(caller) => format!("{caller} {key}"),
        None => key,
    }
}

/// The `Idempotency-Key`, without its quotes if it has any.
fn idempotency_key(given: &str) -> Result<String, Problem> {
    let key = match given.strip_prefix('"') {
        Some(quoted) => unquoted(quoted).ok_or_else(|| {
            Problem::bad_request(
                "Idempotency-Key begins with a quote but is not a string of RFC 8941",
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

/// The value of a string of RFC 8941 §3.3.3; `quoted` begins after the first quote.
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
