//! What is not taken: requests that are none, and those that are too slow.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Connection, Phase};
use crate::http::message::framing::{HEADERS_MAX, values};
use crate::http::message::head::Head;
use crate::http::message::problem::Problem;
use crate::http::message::request_id::request_id;

impl Connection {
    pub(super) fn be_the_last(&mut self) {
        self.terms.keep_alive = false;
        self.lingers = true;
    }

    /// Nobody knows where the next request would begin. What is returned is the answer.
    pub(crate) fn refuse(&mut self, problem: Problem, now: Instant) -> Problem {
        self.be_the_last();
        let phase = std::mem::replace(&mut self.phase, Phase::Answering);
        let head = match phase {
            Phase::Decide(head, _) | Phase::Length(head, _) | Phase::Chunked(head, ..) => *head,
            _ => {
                self.terms.http_10 = false;
                refused_head(&self.input, self.client, self.limits.secure, now)
            }
        };
        self.input = Vec::new();
        self.head = Some(Arc::new(head));
        problem
    }

    /// The deadline has passed. What is returned is to be answered.
    pub(crate) fn on_deadline(&mut self, now: Instant) -> Option<Problem> {
        let late = |detail| Problem::new(408, detail);
        match &self.phase {
            Phase::Streaming { .. } => self.truncate(),
            _ if self.has_output() => self.truncate(),
            Phase::Head(_) => {
                return Some(self.refuse(late("the request line and headers take too long"), now));
            }
            Phase::Length(..) | Phase::Chunked(..) => {
                return Some(self.refuse(late("the body takes too long"), now));
            }
            Phase::Answering => {
                self.be_the_last();
                let detail = "this takes too long; whether it is done is not known";
                return Some(Problem::unavailable(detail, "nothing was heard of it"));
            }
            _ => self.phase = Phase::Closed,
        }
        None
    }
}

/// What can be read of a head that is refused: enough for the answer and the log.
#[cold]
fn refused_head(input: &[u8], client: IpAddr, secure: bool, now: Instant) -> Head {
    let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut storage);
    let complete = request
        .parse(input)
        .is_ok_and(|status| status.is_complete());
    let given = values(request.headers, "x-request-id")
        .next()
        .filter(|_| complete);
    let (method, target) = (request.method.unwrap_or("-"), request.path.unwrap_or(""));
    let mut head = Head::new(method, target, client, secure, now);
    head.request_id = request_id(given);
    head
}
