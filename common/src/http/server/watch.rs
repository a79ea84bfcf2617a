//! Waiting for a socket of the program's own without a thread: what comes after it is a value, and
//! a worker goes on with it.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::core::{Core, Watched};
use super::poller::Interest;
use crate::http::sync::{now, thread_local};

thread_local! {
    /// The server that this thread works for.
    static CORE: RefCell<Weak<Core>> = const { RefCell::new(Weak::new()) };
}

/// The calling thread works for this server.
pub(crate) fn enter(core: &Arc<Core>) {
    CORE.with(|own| *own.borrow_mut() = Arc::downgrade(core));
}

/// Calls `then` on a worker when the socket is ready, or when the deadline has passed: the socket
/// is shut down by then. To be called by handlers, and by what was watched before; on a thread of
/// another engine it waits.
pub fn watch(
    watched: Watched,
    interest: Interest,
    deadline: Instant,
    then: impl FnOnce(Watched) + Send + 'static,
) -> io::Result<()> {
    let core = CORE.with(|core| core.borrow().upgrade());
    if let Some(core) = core {
        return core.watch(watched, interest, deadline, Box::new(then));
    }
    let _ = watched
        .socket
        .wait(interest, deadline.saturating_duration_since(now()));
    then(watched);
    Ok(())
}
