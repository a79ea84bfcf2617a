//! A client's connection: its transport, its protocol, and its reservation of memory.

use std::io::{self, ErrorKind};

use super::budget::{BufferKind, Exhausted, Reservation};
use super::transport::Transport;
use crate::http::connection::Connection;
use crate::http::message::problem::Problem;
use crate::http::message::response::HandlerResult;
use crate::http::service::access_log::Outcome;
use crate::http::sync::now;

pub(crate) struct Peer {
    /// Dropped before the socket, so that it is given back before the client can see the end.
    pub(crate) reservation: Reservation,
    pub(crate) connection: Connection,
    /// The answer to a request whose body is discarded.
    pub(crate) decided: Option<HandlerResult<'static>>,
    /// The outcome of the request whose answer is being sent.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) transport: Transport,
}

impl Peer {
    /// Reads what has arrived, which may be nothing.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<(), Problem> {
        match self.transport.recv(buffer) {
            Ok(0) => self.connection.on_end(),
            Ok(bytes) => self.connection.on_bytes(&buffer[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                return Err(Problem::bad_request("this port speaks HTTPS"));
            }
            Err(_) => self.connection.on_error(),
        }
        let detail = "too many large requests at the same time; try again";
        self.reserve()
            .map_err(|_| Problem::unavailable(detail, "the byte budget is used up"))
    }

    /// Sends what the client takes; returns whether that was all of it.
    pub(crate) fn send(&mut self) -> io::Result<bool> {
        let mut send_all = || {
            while !self.connection.to_send().is_empty() {
                let sent = self.transport.send(self.connection.to_send())?;
                self.connection.on_sent(sent, now());
            }
            self.transport.flush()
        };
        match send_all() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Ends the answer early, so that the client can tell, and notes the cause for the log.
    pub(crate) fn truncate(&mut self, cause: impl Into<String>) {
        self.connection.truncate();
        if let Some(outcome) = &mut self.outcome {
            outcome.truncate(cause);
        }
    }

    /// Reserves memory for what the connection holds, and gives back the rest of the reservation.
    pub(crate) fn reserve(&mut self) -> Result<(), Exhausted> {
        let unsent = self.connection.to_send().len();
        let kind = if unsent == 0 {
            BufferKind::Request
        } else {
            BufferKind::Answer
        };
        let held = unsent.max(self.connection.held_input());
        self.reservation.resize(held, kind)
    }
}
