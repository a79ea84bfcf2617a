//! A shutdown is a channel that closes. Every thread with a [`Shutdown`] notices it at once: in a `select!`, in a
//! wait with a limit, or when it checks.

use std::convert::Infallible;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};

/// Makes a trigger and its receiving end; dropping the trigger requests the shutdown.
#[must_use]
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (sender, closed) = crossbeam_channel::bounded(0);
    (ShutdownTrigger { _sender: sender }, Shutdown { closed })
}

/// Keeps the program running for as long as it lives.
pub struct ShutdownTrigger {
    /// Nothing is sent on this channel; its end is the request.
    _sender: Sender<Infallible>,
}

impl ShutdownTrigger {
    /// Requests the shutdown by dropping the trigger.
    pub fn request(self) {
        drop(self);
    }
}

/// The receiving end, one for each thread; a clone is cheap.
#[derive(Clone, Debug)]
pub struct Shutdown {
    closed: Receiver<Infallible>,
}

impl Shutdown {
    /// Whether the shutdown was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.closed.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits until the shutdown is requested.
    pub fn wait(&self) {
        // `recv` returns only at the end of the channel, since no value of its type exists.
        let _ = self.closed.recv();
    }

    /// Waits for at most `limit`; true if the shutdown was requested by then.
    #[must_use]
    pub fn wait_at_most(&self, limit: Duration) -> bool {
        self.closed.recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }

    /// For `select!`: becomes ready, with an error, when the shutdown is requested.
    #[must_use]
    pub fn requested(&self) -> &Receiver<Infallible> {
        &self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_hears_of_the_shutdown() {
        let (trigger, shutdown) = channel();
        let listeners: Vec<_> = (0..3)
            .map(|_| {
                let shutdown = shutdown.clone();
                std::thread::spawn(move || shutdown.wait())
            })
            .collect();
        assert!(!shutdown.is_requested());

        trigger.request();

        for listener in listeners {
            listener.join().expect("a listener does not panic");
        }
        assert!(shutdown.is_requested());
        assert!(shutdown.wait_at_most(Duration::ZERO));
    }

    #[test]
    fn a_wait_ends_at_its_limit_when_nothing_was_requested() {
        let (_trigger, shutdown) = channel();

        assert!(!shutdown.wait_at_most(Duration::from_millis(1)));
    }
}
