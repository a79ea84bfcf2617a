//! Refuses malformed requests, and requests that are too slow.

use std::sync::Arc;
use std::time::Instant;

use super::{Connection, Phase};
use crate::http::message::framing::{HEADERS_MAX, values};
use crate::http::message::head::Head;
use crate::http::message::problem::Problem;
use crate::http::message::request_id::request_id;

impl Connection {
    pub(super) fn be_the_last(&mut self) {
        self.keep_alive = false;
        self.lingers = true;
    }

    /// Ends the connection with this problem as its last answer, since nobody knows where the next request
    /// would begin. The caller passes what is returned to [`Connection::respond`].
    pub(crate) fn refuse(&mut self, problem: Problem, now: Instant) -> Problem {
        self.be_the_last();
        self.phase = Phase::Answering;
        if self.head.is_none() {
            self.http_10 = false;
            self.head = Some(Arc::new(self.refused_head(now)));
        }
        self.input = Vec::new();
        problem
    }

    /// Handles a deadline that has passed. Returns the answer, if there is one.
    pub(crate) fn on_deadline(&mut self, now: Instant) -> Option<Problem> {
        let detail = match &self.phase {
            _ if self.is_streaming() || !self.output.is_empty() => {
                self.truncate();
                return None;
            }
            Phase::Answering => {
                self.be_the_last();
                let detail = "this takes too long; whether it is done is not known";
                return Some(Problem::unavailable(detail, "nothing was heard of it"));
            }
            Phase::Head(_) => "the request line and headers take too long",
            Phase::Body(..) => "the body takes too long",
            _ => {
                self.phase = Phase::Closed;
                return None;
            }
        };
        Some(self.refuse(Problem::new(408, detail), now))
    }

    /// What can be read of a head that is refused, for the answer and the log.
    #[cold]
    fn refused_head(&self, now: Instant) -> Head {
        let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut storage);
        let is_whole = request
            .parse(&self.input)
            .is_ok_and(|status| status.is_complete());
        let given = values(request.headers, "x-request-id").next();
        let (method, target) = (request.method.unwrap_or("-"), request.path.unwrap_or(""));
        let mut head = Head::new(method, target, self.client, self.secure, now);
        head.request_id = request_id(given.filter(|_| is_whole));
        head
    }
}
