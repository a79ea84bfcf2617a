//! Deadlines for calls that wait for the broker. Each such call of amiquip waits without a limit, and so does the
//! drop of a channel or a connection. Therefore a thread has a second handle of the socket and shuts the socket
//! down when a deadline passes. The call then fails.

use std::io;
use std::net::{Shutdown as Half, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::inbound_limit::InboundLimit;

/// How long one exchange with the broker may take: the handshake, a declaration, a close.
pub(super) const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);

/// Shuts a socket down when a deadline passes. The thread ends when this value and all deadlines are dropped.
pub(super) struct Watchdog {
    deadlines: Sender<Option<Instant>>,
}

impl Watchdog {
    pub(super) fn start(socket: TcpStream, inbound_limit: &Arc<InboundLimit>) -> io::Result<Self> {
        let (deadlines, heard) = crossbeam_channel::unbounded();
        let inbound_limit = Arc::clone(inbound_limit);
        thread::Builder::new()
            .name("amqp-watchdog".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || watch(&socket, &inbound_limit, &heard))?;
        Ok(Self { deadlines })
    }

    pub(super) fn deadline(&self) -> Deadline {
        let _ = self.deadlines.send(Some(Instant::now() + EXCHANGE_LIMIT));
        Deadline {
            deadlines: self.deadlines.clone(),
        }
    }

    pub(super) fn deadline_on_drop(&self, inbound_limit: &Arc<InboundLimit>) -> DeadlineOnDrop {
        DeadlineOnDrop {
            deadlines: self.deadlines.clone(),
            inbound_limit: Arc::clone(inbound_limit),
        }
    }
}

fn watch(socket: &TcpStream, inbound_limit: &InboundLimit, deadlines: &Receiver<Option<Instant>>) {
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
                // amiquip notices the end of the stream only when it reads further.
                inbound_limit.end();
                deadline = None;
            }
        }
    }
}

/// A deadline of `EXCHANGE_LIMIT`, after which the socket is shut down; dropping this value cancels it.
pub struct Deadline {
    deadlines: Sender<Option<Instant>>,
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let _ = self.deadlines.send(None);
    }
}

/// A deadline of `EXCHANGE_LIMIT` that begins when this value is dropped.
pub struct DeadlineOnDrop {
    deadlines: Sender<Option<Instant>>,
    inbound_limit: Arc<InboundLimit>,
}

impl Drop for DeadlineOnDrop {
    fn drop(&mut self) {
        self.inbound_limit.end();
        let _ = self.deadlines.send(Some(Instant::now() + EXCHANGE_LIMIT));
    }
}
