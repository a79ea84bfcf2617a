//! A limit for whatever waits for the broker. Every call of amiquip that does so waits without limit,
//! dropping a channel or a connection included. So a thread keeps a second handle on the socket, and
//! shuts the socket down when a limit runs out. The waiting call then fails.

use std::io;
use std::net::{Shutdown as Half, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::inbound_limit::Inflow;

/// How long one exchange with the broker may take: the handshake, a declaration, a close.
pub(super) const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);

/// Shuts a socket down when a deadline passes. Ends when the last handle on it is dropped.
pub(super) struct Watchdog {
    deadlines: Sender<Option<Instant>>,
}

impl Watchdog {
    pub(super) fn start(socket: TcpStream, inflow: &Arc<Inflow>) -> io::Result<Self> {
        let (deadlines, heard) = crossbeam_channel::unbounded();
        let inflow = Arc::clone(inflow);
        thread::Builder::new()
            .name("amqp-watchdog".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || watch(&socket, &inflow, &heard))?;
        Ok(Self { deadlines })
    }

    pub(super) fn limit(&self) -> Limit {
        let _ = self.deadlines.send(Some(Instant::now() + EXCHANGE_LIMIT));
        Limit {
            deadlines: self.deadlines.clone(),
        }
    }

    pub(super) fn limit_from_drop(&self, inflow: &Arc<Inflow>) -> LimitFromDrop {
        LimitFromDrop {
            deadlines: self.deadlines.clone(),
            inflow: Arc::clone(inflow),
        }
    }
}

fn watch(socket: &TcpStream, inflow: &Inflow, deadlines: &Receiver<Option<Instant>>) {
    let mut deadline = None;
    loop {
        let next = match deadline {
            None => deadlines.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => deadlines.recv_deadline(at),
        };
        match next {
            Ok(next) => deadline = next,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let _ = socket.shutdown(Half::Both);
                // Who does not read does not see the end either.
                inflow.end();
                deadline = None;
            }
        }
    }
}

/// While it lives, the link is cut when the limit runs out.
pub struct Limit {
    deadlines: Sender<Option<Instant>>,
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = self.deadlines.send(None);
    }
}

/// When it is dropped, the limit begins.
pub struct LimitFromDrop {
    deadlines: Sender<Option<Instant>>,
    inflow: Arc<Inflow>,
}

impl Drop for LimitFromDrop {
    fn drop(&mut self) {
        self.inflow.end();
        let _ = self.deadlines.send(Some(Instant::now() + EXCHANGE_LIMIT));
    }
}
