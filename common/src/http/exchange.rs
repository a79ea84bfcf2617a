//! A request and its answer, from the outside: what every answer carries, and what the log and
//! the metrics say of it. The same for what handlers answer and for what the edge answers.

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::edge::{Outlet, Share};
use super::problem::Problem;
use super::refusals;
use super::request::Request;
use super::response::{Response, Sent, Terms};
use crate::log::logged_millis;
use crate::metrics::Metrics;

/// How much of a target stands in a line of the log.
const LOGGED_TARGET_BYTES_MAX: usize = 256;

/// The most that a request id taken from a client may have.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// A request, as the log and the metrics tell of it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request_id: String,
    pub(crate) client: IpAddr,
    pub(crate) method: String,
    pub(crate) target: String,
    /// When it was here, whole.
    pub(crate) arrived: Instant,
}

impl Asked {
    pub(crate) fn of(request: &Request, arrived: Instant) -> Self {
        Self {
            request_id: request.request_id.clone(),
            client: request.client,
            method: request.method.as_str().to_owned(),
            target: request.target.clone(),
            arrived,
        }
    }
}

/// A request that waits for its answer. Whoever holds it owes the client one; dropped without
/// it, the client is told that there is none.
pub struct Exchange {
    record: Record,
    terms: Terms,
    /// Here until the end.
    outlet: Option<Outlet>,
    after: Option<After>,
    /// The memory of the request.
    _share: Share,
}

/// What the log and the metrics tell of it.
struct Record {
    asked: Arc<Asked>,
    route: &'static str,
    status: u16,
    /// Of the order that it placed.
    message_id: Option<String>,
    /// By whose key it came.
    caller: Option<String>,
    cause: Option<String>,
    broken_off: bool,
}

/// What is to be done with the connection that the answer went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// It is ready for the next one.
    Next,
    /// It is cut: the client holds a part of an answer, and must be able to tell.
    Cut,
}

impl Exchange {
    /// Until a route is found, it counts as one of the edge's own.
    pub(super) fn new(asked: Arc<Asked>, outlet: Outlet, terms: Terms, share: Share) -> Self {
        Self {
            record: Record {
                asked,
                route: "edge",
                status: 500,
                message_id: None,
                caller: None,
                cause: None,
                broken_off: false,
            },
            terms,
            outlet: Some(outlet),
            after: None,
            _share: share,
        }
    }

    /// Answers the client. What is not a stream waits for nobody who reads slowly.
    pub fn answer(mut self, result: Result<Response<'_>, Problem>) {
        self.write(result);
    }

    /// Has the log tell which message this request became, so that both ends of the queue can be
    /// found by it.
    pub fn set_message_id(&mut self, message_id: &str) {
        self.record.message_id = Some(message_id.to_owned());
    }

    pub(super) fn set_caller(&mut self, name: Option<String>) {
        self.record.caller = name;
    }

    /// Answers the client, and leaves the end of the exchange to whoever holds it.
    pub(super) fn write(&mut self, result: Result<Response<'_>, Problem>) {
        if let Some(outlet) = &mut self.outlet {
            // It may have been requested since the request came.
            self.terms.close |= outlet.client().is_last();
            self.after = Some(self.record.write(result, outlet, self.terms));
        }
    }

    /// After a panic in the handler, or in the answer that it gave.
    pub(super) fn fail(mut self, route: &'static str) {
        self.set_route(route);
        if self.outlet.as_ref().is_some_and(Outlet::has_begun) {
            self.after = Some(After::Cut);
        } else {
            self.write(Err(Problem::internal("the handler panicked")));
        }
    }

    /// Leaves the place to others; the answer comes from elsewhere.
    pub(super) fn leave_place(&mut self) {
        if let Some(outlet) = &mut self.outlet {
            outlet.leave_place();
        }
    }

    pub(super) fn outlet(&mut self) -> Option<&mut Outlet> {
        self.outlet.as_mut()
    }

    pub(super) fn asked(&self) -> &Arc<Asked> {
        &self.record.asked
    }

    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    /// The pattern of the route: a label of the metrics, so never what a client made up.
    pub(super) fn set_route(&mut self, route: &'static str) {
        self.record.route = route;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.after.is_none() {
            self.write(Err(Problem::internal("nobody answered")));
        }
        if let Some(outlet) = self.outlet.take() {
            if outlet.is_taken_over() {
                return;
            }
            let client = Arc::clone(outlet.client());
            outlet.end(self.after.unwrap_or(After::Cut));
            self.record.publish(client.metrics());
        }
    }
}

impl Record {
    fn write(
        &mut self,
        result: Result<Response<'_>, Problem>,
        out: &mut dyn Write,
        terms: Terms,
    ) -> After {
        let response = result.unwrap_or_else(|problem| self.refuse(problem));
        self.status = response.status;
        let head_only = self.asked.method == "HEAD";
        match self.finish(response, terms).write_to(out, head_only, terms) {
            Sent::Whole => After::Next,
            Sent::Refused(problem) => {
                let response = self.refuse(problem);
                self.status = response.status;
                match self.finish(response, terms).write_to(out, head_only, terms) {
                    Sent::Whole => After::Next,
                    _ => After::Cut,
                }
            }
            Sent::BrokenOff(problem) => {
                self.broken_off = true;
                self.cause = problem.cause;
                After::Cut
            }
            Sent::ClientGone(error) => {
                self.broken_off = true;
                self.cause = Some(format!("the client went away: {error}"));
                After::Cut
            }
        }
    }

    fn refuse(&mut self, problem: Problem) -> Response<'static> {
        self.cause.clone_from(&problem.cause);
        problem.into_response(&self.asked.request_id)
    }

    /// Adds what every answer carries.
    fn finish<'a>(&self, mut response: Response<'a>, terms: Terms) -> Response<'a> {
        if !response.has_header("x-request-id") {
            response.push_header("x-request-id".to_owned(), self.asked.request_id.clone());
        }
        if terms.close {
            response.push_header("connection".to_owned(), "close".to_owned());
        }
        response
    }

    /// One line in the log, one count in the metrics.
    fn publish(&self, metrics: &Metrics) {
        let asked = &self.asked;
        let elapsed = asked.arrived.elapsed();
        let method = match asked.method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS") => known,
            // What a client makes up must not make up new time series.
            _ => "other",
        };
        let status = self.status.to_string();
        metrics
            .http_requests
            .with_label_values(&[self.route, method, &status])
            .inc();
        metrics
            .http_seconds
            .with_label_values(&[self.route])
            .observe(elapsed.as_secs_f64());
        refusals::tell_when_due();
        if (400..500).contains(&self.status) && !refusals::gets_line(asked.client) {
            return;
        }
        let level = match self.status {
            500 => log::Level::Error,
            502..=504 => log::Level::Warn,
            _ if self.broken_off => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(
            target: "access", level,
            request_id = asked.request_id.as_str(),
            client = asked.client.to_string().as_str(),
            method = asked.method.as_str(),
            path = start_of(&asked.target),
            route = self.route,
            status = self.status,
            ms = logged_millis(elapsed),
            message_id = self.message_id.as_deref(),
            caller = self.caller.as_deref(),
            broken_off = self.broken_off,
            cause = self.cause.as_deref();
            "request"
        );
    }
}

/// As much of a target as a line of the log has.
fn start_of(target: &str) -> &str {
    &target[..target.floor_char_boundary(LOGGED_TARGET_BYTES_MAX)]
}

/// The client's request id where it is well-formed, else one made here.
pub(crate) fn request_id(given: Option<&str>) -> String {
    match given {
        Some(id) if is_request_id(id) => id.to_owned(),
        // It keeps no secret, so the system need not be asked for its randomness.
        _ => uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes())
            .into_uuid()
            .to_string(),
    }
}

/// Whether an id from elsewhere is taken: only characters that stand unquoted in a log line are.
#[must_use]
pub fn is_request_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/+@".contains(&b);
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_id_that_can_stand_in_a_log_line_is_taken() {
        assert_eq!(request_id(Some("order-7/a.b:c")), "order-7/a.b:c");
        let long = "a".repeat(129);
        for given in [
            None,
            Some(""),
            Some("two words"),
            Some("a\"b"),
            Some("ü"),
            Some(&*long),
        ] {
            assert_eq!(request_id(given).len(), 36, "{given:?}");
        }
    }
}
