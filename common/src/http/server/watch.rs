//! Waits for a socket of the program without a thread: what follows is a value, and a worker runs it.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::core::{Core, SocketWatch};
use super::poller::{Interest, Socket, wait_for};
use super::table::Parked;
use crate::http::sync::{now, thread_local};

thread_local! {
    /// The server that this thread works for.
    static CORE: RefCell<Weak<Core>> = const { RefCell::new(Weak::new()) };
}

/// Makes the calling thread work for this server.
pub(crate) fn enter(core: &Arc<Core>) {
    CORE.with(|own| *own.borrow_mut() = Arc::downgrade(core));
}

/// Calls `then` on a worker when the socket is ready, or when the deadline has passed and the socket is shut
/// down. Handlers call it, and functions that it has called; on a thread of another engine it waits.
pub fn watch(
    socket: Socket,
    interest: Interest,
    deadline: Instant,
    then: impl FnOnce(Socket) + Send + 'static,
) -> io::Result<()> {
    let Some(core) = CORE.with(|core| core.borrow().upgrade()) else {
        let _ = wait_for(&socket, interest, deadline.saturating_duration_since(now()));
        then(socket);
        return Ok(());
    };
    let watch = core.watches.insert(SocketWatch {
        socket,
        deadline,
        then: Box::new(then),
    });
    let watch = watch.ok_or(ErrorKind::OutOfMemory)?;
    let token = watch.token();
    watch.park(Parked::Armed, |watch| {
        core.poller.arm(&watch.socket, token, interest);
    });
    Ok(())
}
