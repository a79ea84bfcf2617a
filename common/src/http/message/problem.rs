//! An error as an answer: `application/problem+json`, RFC 9457. It has two texts: the detail for the client, and
//! the cause for the log alone.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// After how many seconds a client may repeat a request that was answered 503.
const RETRY_AFTER_SECONDS: &str = "1";

/// Why a request failed.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status, 400 to 599.
    pub status: u16,
    /// What the client should change; it names the field.
    pub detail: Cow<'static, str>,
    /// The cause for the operator, which is never sent.
    pub cause: Option<String>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) dependencies: Option<Box<Value>>,
}

impl Problem {
    /// A problem with that status, whose detail is for the client.
    pub fn new(status: u16, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            detail: detail.into(),
            cause: None,
            headers: Vec::new(),
            dependencies: None,
        }
    }

    /// Adds a header to the answer.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Adds the cause for the operator.
    pub fn with_cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// Adds the states of the dependencies.
    pub(crate) fn with_dependencies(mut self, states: Value) -> Self {
        self.dependencies = Some(Box::new(states));
        self
    }

    /// 400: the request is malformed, or breaks a rule.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, detail)
    }

    /// 401 with `WWW-Authenticate`: the caller is not known.
    pub fn unauthorized(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(401, detail).with_header("www-authenticate", "Bearer realm=\"crud-master\"")
    }

    /// 429 with `Retry-After`, in seconds rounded up.
    pub fn too_many_requests(wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::new(429, format!("too many requests; try again in {seconds} s"))
            .with_header("retry-after", seconds.to_string())
    }

    /// 404.
    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(404, detail)
    }

    /// 405; `allow` lists the methods that the resource has.
    pub fn method_not_allowed(allow: String) -> Self {
        Self::new(405, format!("this resource allows {allow}")).with_header("allow", allow)
    }

    /// 411: the body is missing.
    pub fn length_required() -> Self {
        Self::new(411, "send a body with its Content-Length")
    }

    /// 503: the request got no slot, in time or at all.
    pub fn overloaded(cause: &'static str) -> Self {
        Self::unavailable("this service is overloaded; try again", cause)
    }

    /// 413; `limit` is in bytes.
    pub fn content_too_large(limit: usize) -> Self {
        Self::new(413, format!("a body may have at most {limit} bytes"))
    }

    /// 500: a fault of the service; the client learns nothing internal.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(
            500,
            "something went wrong here; the log has the details under this request_id",
        )
        .with_cause(cause)
    }

    /// 503 with `Retry-After`: a dependency is down, blocked or overloaded.
    pub fn unavailable(detail: impl Into<Cow<'static, str>>, cause: impl fmt::Display) -> Self {
        Self::new(503, detail)
            .with_header("retry-after", RETRY_AFTER_SECONDS)
            .with_cause(cause)
    }
}
