//! Conditional requests (RFC 9110 §13): an answer that the client has already is not sent again,
//! and of two editors the second does not overwrite what they have not seen.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::head::{Head, Method};
use super::problem::Problem;
use super::request::Request;
use super::response::{Body, Response};

/// How many bytes of the hash make an entity tag: enough that no two bodies ever share one.
const TAG_BYTES: usize = 16;

/// A strong entity tag: the same bytes have the same tag, and no others.
pub(super) fn entity_tag(body: &[u8]) -> String {
    let hash = Sha256::digest(body);
    let mut tag = String::with_capacity(2 * TAG_BYTES + 2);
    tag.push('"');
    for byte in &hash[..TAG_BYTES] {
        tag.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        tag.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    tag.push('"');
    tag
}

/// The entity tag that a value has as the JSON of an answer.
///
/// # Panics
/// When the value has a map with keys that are not strings; ours have none.
#[must_use]
pub fn entity_tag_of(value: &impl Serialize) -> String {
    entity_tag(&serde_json::to_vec(value).expect("our answers have string keys only"))
}

/// A value as JSON with its entity tag, or 304 where the client has it already.
#[must_use]
pub fn json_if_changed(request: &Request, value: &impl Serialize) -> Response<'static> {
    if_changed(request, Response::json(200, value))
}

/// An answer with its entity tag, or 304 where the client has it already; a stream has none.
#[must_use]
pub fn if_changed<'a>(request: &Request, response: Response<'a>) -> Response<'a> {
    let Body::Bytes(body) = &response.body else {
        return response;
    };
    let tag = entity_tag(body);
    if let Err(problem) = require_match(request, &tag) {
        return Response::of_problem(problem, &request.request_id);
    }
    let safe = matches!(request.method, Method::Get | Method::Head);
    if safe && lists(request, "if-none-match", &tag, Comparison::Weak) == Some(true) {
        return Response::empty(304).with_header("etag", tag);
    }
    response.with_header("etag", tag)
}

/// Whether a request asks for the state of the resource before it is changed.
#[must_use]
pub fn is_conditional(request: &Head) -> bool {
    request.header("if-match").is_some() || request.header("if-none-match").is_some()
}

/// Whether a resource with that tag may be changed by this request; a problem, 412, if not.
pub fn require_unchanged(request: &Head, tag: &str) -> Result<(), Problem> {
    require_match(request, tag)?;
    if lists(request, "if-none-match", tag, Comparison::Weak) == Some(true) {
        return Err(Problem::precondition_failed());
    }
    Ok(())
}

fn require_match(request: &Head, tag: &str) -> Result<(), Problem> {
    if lists(request, "if-match", tag, Comparison::Strong) != Some(false) {
        return Ok(());
    }
    let mut values = request.headers.values("if-match");
    let is_weak = values.any(|value| tags(value).any(|tag| tag.starts_with("W/")));
    Err(if is_weak {
        Problem::weak_tag()
    } else {
        Problem::precondition_failed()
    })
}

/// For a change to a whole collection, which has no tag to compare: `If-Match: *` holds, and
/// `If-None-Match: *` does not.
pub fn require_no_tag(request: &Head) -> Result<(), Problem> {
    require_match(request, "")?;
    let mut none = request.headers.values("if-none-match");
    if none.any(|value| value.trim() == "*") {
        return Err(Problem::precondition_failed());
    }
    Ok(())
}

/// Weak tags are equal to others only where the comparison is weak (RFC 9110 §8.8.3.2).
#[derive(Clone, Copy, PartialEq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether the header lists the tag, or any by `*`; None where there is no such header.
fn lists(request: &Head, name: &str, tag: &str, comparison: Comparison) -> Option<bool> {
    let mut values = request.headers.values(name).map(str::trim).peekable();
    values.peek()?;
    Some(
        values
            .any(|value| value == "*" || tags(value).any(|listed| equal(listed, tag, comparison))),
    )
}

fn equal(listed: &str, tag: &str, comparison: Comparison) -> bool {
    match listed.strip_prefix("W/") {
        Some(weak) => comparison == Comparison::Weak && weak == tag,
        None => listed == tag,
    }
}

/// The tags of a list; our own have no comma, and a stranger's that has one is not ours.
fn tags(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::super::request::tests;
    use super::*;

    const TAG: &str = "\"1234\"";

    fn request(method: &str, headers: &[(&str, &str)]) -> Request {
        tests::request(method, "/api/movies/1", headers, b"")
    }

    fn may_change(headers: &[(&str, &str)]) -> bool {
        require_unchanged(&request("PUT", headers), TAG).is_ok()
    }

    #[test]
    fn equal_bodies_and_no_others_have_equal_tags() {
        assert_eq!(entity_tag(b"[]"), entity_tag(b"[]"));
        assert_ne!(entity_tag(b"[]"), entity_tag(b"{}"));
        assert_eq!(entity_tag(b"[]").len(), 34);
        assert_eq!(entity_tag(b"[]"), entity_tag_of(&[0; 0]));
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let tag = entity_tag(b"[1]");
        let weak = format!("W/{tag}");
        let among = format!("\"other\", {tag}");
        let status = |method, value: &str| {
            json_if_changed(&request(method, &[("If-None-Match", value)]), &[1]).status
        };

        for value in [tag.as_str(), weak.as_str(), among.as_str(), "*"] {
            assert_eq!(status("GET", value), 304, "{value}");
            assert_eq!(status("HEAD", value), 304, "{value}");
        }
        assert_eq!(status("GET", "\"other\""), 200);
        assert_eq!(status("PUT", &tag), 200);
    }

    #[test]
    fn a_change_is_made_only_to_what_its_editor_has_seen() {
        for headers in [
            &[][..],
            &[("If-Match", TAG)],
            &[("if-match", "*")],
            &[("If-Match", "\"0\", \"1234\"")],
        ] {
            assert!(may_change(headers), "{headers:?}");
        }
        for headers in [
            &[("If-Match", "\"0\"")][..],
            &[("If-Match", "W/\"1234\"")],
            &[("If-Match", "")],
            &[("If-None-Match", "*")],
            &[("If-None-Match", "W/\"1234\"")],
        ] {
            assert!(!may_change(headers), "{headers:?}");
        }
    }
}
