//! What is not taken: requests that are none, and those that are too slow.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Connection, Phase};
use crate::http::message::framing::{HEADERS_MAX, Refusal, values};
use crate::http::message::head::{Head, Method};
use crate::http::message::problem::Problem;
use crate::http::message::request_id::request_id;

impl Connection {
    pub(super) fn be_the_last(&mut self) {
        self.keep_alive = false;
        self.lingers = true;
    }

    /// Nobody knows where the next request would begin. What is returned is the answer.
    pub(crate) fn refuse(&mut self, refusal: Refusal, now: Instant) -> Problem {
        self.be_the_last();
        self.phase = Phase::Answering;
        if self.head.is_none() {
            self.http_10 = false;
            let head = refused_head(&self.input, self.client, self.secure, now);
            self.head = Some(Arc::new(head));
        }
        self.input = Vec::new();
        Problem::refused(refusal)
    }

    /// The deadline has passed. What is returned is to be answered.
    pub(crate) fn on_deadline(&mut self, now: Instant) -> Option<Problem> {
        let late = |detail| Refusal::new(408, detail);
        match &self.phase {
            Phase::Streaming { .. } => self.truncate(),
            _ if !self.output.is_empty() => self.truncate(),
            Phase::Head(_) => {
                return Some(self.refuse(late("the request line and headers take too long"), now));
            }
            Phase::Body(..) => {
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
    let id = request_id(given);
    let method = Method::new(request.method.unwrap_or_default());
    let target = request.path.unwrap_or_default().to_owned();
    Head::bare(method, target, id, client, secure, now)
}
