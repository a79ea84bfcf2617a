//! A request, whole in memory, and the right to answer it once.

use std::ops::Deref;
use std::sync::Arc;

use serde::Deserialize;

use super::head::Head;
use super::problem::Problem;
use super::response::{HandlerResult, Response};

/// How an engine answers a request.
pub(crate) trait Respond: Send {
    /// Notes that the request has left its queue. False if its client has been answered already.
    fn begin(&self) -> bool;
    /// Is called once, from any thread. A stream waits for its client, as `slot` allows; an answer from outside
    /// of a bulkhead has no slot, and does not wait.
    fn respond(self: Box<Self>, result: HandlerResult<'_>, slot: Option<&dyn StreamSlot>);
}

/// The slot that a stream holds.
pub(crate) trait StreamSlot {
    /// Whether the slot may wait for a slow client; if so, the wait lasts until [`StreamSlot::end_wait`].
    fn begin_wait(&self) -> bool;
    fn end_wait(&self);
    /// Whether a request waits for a slot.
    fn is_wanted(&self) -> bool;
}

/// A request and the right to answer it. A request that is dropped unanswered is answered 500.
pub struct Request {
    head: Arc<Head>,
    /// The content; empty if there was none.
    pub body: Vec<u8>,
    responder: Option<Box<dyn Respond>>,
}

impl Deref for Request {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.head
    }
}

impl Request {
    pub(crate) fn new(head: Arc<Head>, body: Vec<u8>, responder: Box<dyn Respond>) -> Self {
        Self {
            head,
            body,
            responder: Some(responder),
        }
    }

    /// Notes that the request has left its queue. False if its client has been answered already.
    pub(crate) fn begin(&self) -> bool {
        self.responder.as_ref().is_some_and(|it| it.begin())
    }

    /// Answers the client, from any thread, without waiting for the client.
    pub fn respond(self, result: HandlerResult<'_>) {
        self.respond_from(result, None);
    }

    /// Answers the client from a slot of a bulkhead.
    pub(crate) fn respond_from(mut self, result: HandlerResult<'_>, slot: Option<&dyn StreamSlot>) {
        // A problem with the first piece still becomes the answer.
        let result = result.and_then(Response::begun);
        if let Some(responder) = self.responder.take() {
            responder.respond(result, slot);
        }
    }

    /// The body, a JSON object, as a value of that type, which may borrow from it.
    pub fn json_object<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Problem> {
        self.require_json()?;
        if self.body.starts_with(b"\xef\xbb\xbf") {
            let detail = "the body begins with a byte order mark; send it without";
            return Err(Problem::bad_request(detail));
        }
        // Members that the type ignores have to be UTF-8 too.
        let text = std::str::from_utf8(&self.body)
            .map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
        let not_an_object = "the body is not a JSON object";
        // A struct would also be read from an array of its fields' values.
        if !text.trim_ascii_start().starts_with('{') {
            return Err(Problem::bad_request(not_an_object));
        }
        let malformed = |error| Problem::bad_request(format!("{not_an_object}: {error}"));
        serde_json::from_str(text).map_err(malformed)
    }

    /// Checks that there is a body, and that its type is JSON. An empty body without a length counts as none: a
    /// proxy may have made an empty chunked body of it.
    pub fn require_json(&self) -> Result<(), Problem> {
        if self.body.is_empty() && self.header("content-length").is_none() {
            return Err(Problem::length_required());
        }
        self.require_json_type()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(responder) = self.responder.take() {
            let cause = if std::thread::panicking() {
                "the handler panicked"
            } else {
                "nobody answered"
            };
            responder.respond(Err(Problem::internal(cause)), None);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::IpAddr;
    use std::time::Instant;

    use super::*;
    use crate::http::message::headers::Headers;
    use crate::http::message::request_id::request_id;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct EmptyObject {}

    struct DiscardingResponder;

    impl Respond for DiscardingResponder {
        fn begin(&self) -> bool {
            true
        }

        fn respond(self: Box<Self>, _: HandlerResult<'_>, _: Option<&dyn StreamSlot>) {}
    }

    pub(in crate::http) fn request(
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Request {
        let client = IpAddr::from([127, 0, 0, 1]);
        let now = Instant::now();
        let mut head = Head::new(method, target, client, false, now);
        for (name, value) in headers {
            head.headers.push(name, value.as_bytes());
        }
        Request::new(Arc::new(head), body.to_vec(), Box::new(DiscardingResponder))
    }

    fn get(target: &str) -> Request {
        request("GET", target, &[], b"")
    }

    fn with_body(media_type: &str, body: &[u8]) -> Request {
        let headers = [("Content-Type", media_type), ("Content-Length", "2")];
        request("POST", "/", &headers, body)
    }

    fn with_content_type(media_type: &str) -> Request {
        with_body(media_type, b"{}")
    }

    #[test]
    fn query_parameters_are_decoded() {
        let request = get("/api/movies?title=caf%C3%A9+noir&limit=2");

        assert_eq!(
            request.query("title").unwrap().as_deref(),
            Some("café noir")
        );
        assert_eq!(request.query("after"), Ok(None));
        assert_eq!(request.path(), "/api/movies");
    }

    #[test]
    fn a_query_parameter_that_is_given_twice_or_is_not_utf_8_is_refused() {
        let detail = |target: &str| get(target).query("title").unwrap_err().detail;

        assert_eq!(detail("/?title=a&title=b"), "title is given twice");
        assert_eq!(detail("/?title=%FF"), "title is not UTF-8");
    }

    #[test]
    fn a_number_in_the_query_is_held_to_its_range() {
        let limit = |target: &str| get(target).query_number("limit", 1..=1000);

        assert_eq!(limit("/"), Ok(None));
        assert_eq!(limit("/?limit=1000"), Ok(Some(1000)));
        for target in [
            "/?limit=0",
            "/?limit=1001",
            "/?limit=+1",
            "/?limit=",
            "/?limit=1e2",
        ] {
            let problem = limit(target).unwrap_err();
            assert_eq!(
                problem.detail, "limit must be a whole number from 1 to 1000",
                "{target}"
            );
        }
    }

    #[test]
    fn header_fields_are_kept_in_their_order_one_character_for_each_octet() {
        let mut headers = Headers::default();
        headers.push("X-Tag", b"\xfc");
        headers.push("x-tag", b"");

        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [("X-Tag", "ü"), ("x-tag", "")]);
        assert_eq!(headers.values("X-TAG").collect::<Vec<_>>(), ["ü", ""]);
    }

    #[test]
    fn a_header_that_is_given_twice_is_refused_where_one_is_meant() {
        let twice = [
            ("Content-Type", "application/json"),
            ("content-type", "text/plain"),
        ];
        let request = request("POST", "/", &twice, b"{}");

        let problem = request.json_object::<EmptyObject>().unwrap_err();

        let expected = (400, "the header Content-Type is given twice");
        assert_eq!((problem.status, &*problem.detail), expected);
    }

    #[test]
    fn only_json_is_taken_for_json() {
        for media_type in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(
                with_content_type(media_type).json_object(),
                Ok(EmptyObject {})
            );
        }
        for media_type in [
            "",
            "text/json",
            "application/jsonp",
            "application/x-www-form-urlencoded",
        ] {
            let problem = with_content_type(media_type)
                .json_object::<EmptyObject>()
                .unwrap_err();
            assert_eq!(problem.status, 415, "{media_type}");
        }
    }

    #[test]
    fn a_body_that_is_no_json_object_is_refused() {
        for body in ["", "[]", "null", "{", "{}x", "\"\""] {
            let request = with_body("application/json", body.as_bytes());
            let problem = request.json_object::<EmptyObject>().unwrap_err();
            assert_eq!(problem.status, 400, "{body}");
            assert!(
                problem.detail.starts_with("the body is not a JSON object"),
                "{body}"
            );
        }
    }

    #[test]
    fn a_body_is_utf_8_also_in_what_nobody_reads() {
        let request = with_body("application/json", b"{\"note\":\"\xff\"}");

        let problem = request.json_object::<EmptyObject>().unwrap_err();

        let expected = (400, "the body is not UTF-8");
        assert_eq!((problem.status, &*problem.detail), expected);
    }

    #[test]
    fn a_missing_body_is_asked_for() {
        assert_eq!(
            get("/").json_object::<EmptyObject>().unwrap_err().status,
            411
        );
    }

    #[test]
    fn only_a_request_id_that_can_stand_in_a_log_line_is_taken() {
        assert_eq!(request_id(Some(b"order-7/a.b:c")), "order-7/a.b:c");
        let long = "a".repeat(129);
        for given in ["", "two words", "a\"b", "ü", &long] {
            assert_eq!(request_id(Some(given.as_bytes())).len(), 36, "{given:?}");
        }
        assert_eq!(request_id(None).len(), 36);
    }
}
