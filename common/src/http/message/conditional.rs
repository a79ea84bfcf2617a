//! Conditional requests (RFC 9110 §13): an answer that the client has already is not sent again, and an editor
//! does not overwrite changes that the editor has not seen.

use http::Method;
use ring::digest::{SHA256, digest};
use serde::Serialize;

use super::head::Head;
use super::problem::Problem;
use super::request::Request;
use super::response::{Body, Response};

/// The detail for a client that has not seen the current state of the resource.
const CHANGED: &str = "this has changed since you read it; read it again, and then change it";

/// The detail for a client whose tag matches nothing.
const WEAK: &str = "If-Match has a weak tag (W/…), which never matches; a proxy that compresses \
                    weakens tags: read with Accept-Encoding: identity, and send that tag";

/// A strong entity tag: the same bytes have the same tag, and no others.
pub(super) fn entity_tag(body: &[u8]) -> String {
    // Half of the hash suffices to tell any two bodies apart.
    let hash = digest(&SHA256, body);
    let half = hash
        .as_ref()
        .first_chunk()
        .map_or(0, |half| u128::from_be_bytes(*half));
    format!("\"{half:032x}\"")
}

/// The entity tag that a value has as the JSON of an answer.
///
/// # Panics
/// When the value has a map with keys that are not strings; ours have none.
#[must_use]
pub fn entity_tag_of(value: &impl Serialize) -> String {
    entity_tag(&serde_json::to_vec(value).expect("our answers have string keys only"))
}

/// A value as JSON with its entity tag, or 304 if the client has it already.
pub fn json_if_changed(request: &Request, value: &impl Serialize) -> Response<'static> {
    if_changed(request, Response::json(200, value))
}

/// An answer with its entity tag, or 304 if the client has it already. A stream gets no tag.
pub fn if_changed<'a>(request: &Request, response: Response<'a>) -> Response<'a> {
    let Body::Bytes(body) = &response.body else {
        return response;
    };
    let tag = entity_tag(body);
    if let Err(problem) = require_match(request, &tag) {
        return Response::of_problem(problem, &request.request_id);
    }
    let safe = [Method::GET, Method::HEAD].contains(&request.method);
    if safe && is_none_match_broken(request, &tag) {
        return Response::empty(304).with_header("etag", tag);
    }
    response.with_header("etag", tag)
}

/// Whether a request asks for the state of the resource before it is changed.
#[must_use]
pub fn is_conditional(request: &Head) -> bool {
    request.header("if-match").is_some() || request.header("if-none-match").is_some()
}

/// Checks that this request may change a resource with that tag; the problem is 412.
pub fn require_unchanged(request: &Head, tag: &str) -> Result<(), Problem> {
    require_match(request, tag)?;
    if is_none_match_broken(request, tag) {
        return Err(Problem::new(412, CHANGED));
    }
    Ok(())
}

/// Checks that this request may change a whole collection, which has no tag to compare: `If-Match: *` holds,
/// and `If-None-Match: *` does not.
pub fn require_no_tag(request: &Head) -> Result<(), Problem> {
    // No element of a list has a comma.
    require_unchanged(request, ",")
}

/// Checks `If-Match`, which compares strongly: a weak tag matches nothing (RFC 9110 §8.8.3.2).
fn require_match(request: &Head, tag: &str) -> Result<(), Problem> {
    let values = || request.headers.values("if-match");
    if values().next().is_none() || values().any(|value| lists(value, |listed| listed == tag)) {
        return Ok(());
    }
    let is_weak = values().any(|value| tags(value).any(|listed| listed.starts_with("W/")));
    Err(Problem::new(412, if is_weak { WEAK } else { CHANGED }))
}

/// Whether `If-None-Match` lists the tag, as a strong or a weak one.
fn is_none_match_broken(request: &Head, tag: &str) -> bool {
    let is_tag = |listed: &str| listed.strip_prefix("W/").unwrap_or(listed) == tag;
    let mut values = request.headers.values("if-none-match");
    values.any(|value| lists(value, is_tag))
}

/// Whether a list has such a tag, or is `*`.
fn lists(value: &str, is_such: impl Fn(&str) -> bool) -> bool {
    value.trim() == "*" || tags(value).any(is_such)
}

/// The tags of a list. A tag with a comma is divided, which does no harm, since no tag made here has one.
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
