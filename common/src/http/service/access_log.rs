//! Records each answered request: one line in the log, one count in the metrics.

use std::time::Instant;

use super::refusals::refusals;
use crate::http::message::head::{Head, network};
use crate::http::message::response::{HandlerResult, Response};
use crate::log::logged_millis;
use crate::metrics::Metrics;

/// How much of a target stands in a line of the log.
const LOGGED_TARGET_BYTES_MAX: usize = 256;

/// The outcome of a request.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) status: u16,
    /// The client got only a part of the answer.
    pub(crate) truncated: bool,
    /// The cause, for the log.
    pub(crate) cause: Option<String>,
}

impl Outcome {
    /// What a handler has made of a request, as its client and the log are told.
    pub(crate) fn of<'a>(result: HandlerResult<'a>, head: &Head) -> (Response<'a>, Self) {
        let cause = result.as_ref().err().and_then(|error| error.cause.clone());
        let response = result.unwrap_or_else(|p| Response::of_problem(p, &head.request_id));
        let outcome = Self {
            status: response.status,
            truncated: false,
            cause,
        };
        (response, outcome)
    }

    pub(crate) fn truncate(&mut self, cause: impl Into<String>) {
        self.truncated = true;
        self.cause = Some(cause.into());
    }
}

/// Logs and counts a request that was answered.
pub(crate) fn record(metrics: &Metrics, head: &Head, outcome: &Outcome, now: Instant) {
    let elapsed = now.saturating_duration_since(head.arrived);
    let method = match head.method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS") => known,
        // What a client makes up must not make up new time series.
        _ => "other",
    };
    let (route, status) = (head.matched.pattern, outcome.status.to_string());
    metrics
        .http_requests
        .with_label_values(&[route, method, &status])
        .inc();
    metrics
        .http_seconds
        .with_label_values(&[route])
        .observe(elapsed.as_secs_f64());
    if (400..500).contains(&outcome.status) && !refusals().gets_line(network(head.client)) {
        return;
    }
    let level = match outcome.status {
        500 => log::Level::Error,
        502..=504 => log::Level::Warn,
        _ if outcome.truncated => log::Level::Warn,
        _ => log::Level::Info,
    };
    log::log!(
        target: "access", level,
        request_id = head.request_id.as_str(),
        client = head.client.to_string().as_str(),
        method = head.method.as_str(),
        path = &head.target[..head.target.floor_char_boundary(LOGGED_TARGET_BYTES_MAX)],
        route = route,
        status = outcome.status,
        ms = logged_millis(elapsed),
        message_id = head.message_id.get().map(String::as_str),
        caller = head.caller.get().map(String::as_str),
        truncated = outcome.truncated,
        cause = outcome.cause.as_deref();
        "request"
    );
}
