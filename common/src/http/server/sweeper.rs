//! One thread that enforces every deadline, several times a second, and drains the server at its end.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::accept::accept;
use super::core::{Core, SocketWatch};
use super::peer::Peer;
use super::poller::{Interest, ignore_newcomers};
use super::table::{Owned, Parked};
use super::worker::refuse;
use crate::http::sync::atomic::Ordering;
use crate::http::sync::lock;

/// How many connections that the kernel has established are accepted and served at the end: as many as the
/// kernel keeps.
const NEWCOMERS: usize = 4096;

/// The time between two rounds.
pub(crate) const ROUND: Duration = Duration::from_millis(50);

/// How long, after another process has taken over, TCP handshakes may take that have begun, and requests that
/// clients have sent over kept connections.
pub(super) const ON_THEIR_WAY: Duration = Duration::from_secs(1);

/// The time of a drain after which requests that still wait for an answer get 503, because what they wait for
/// may have stopped, and the program ends soon.
const LAST_ANSWERS_AFTER: Duration = Duration::from_millis(6500);

/// How long connections may take to end after the shutdown was requested.
const DRAIN_LIMIT: Duration = Duration::from_millis(7500);

/// Leaves new connections to another process that listens on the port. Handshakes that have begun here are
/// completed here. Each answer is its connection's last, so that clients connect to the other process.
pub(crate) fn hand_over(core: &Core) {
    let ignored = lock(&core.listener).as_ref().map(ignore_newcomers);
    if let Some(Err(error)) = ignored {
        log::warn!(cause = error.to_string().as_str(); "a connection may be lost");
    }
    core.draining.store(true, Ordering::SeqCst);
}

/// Closes the listener, and makes each answer its connection's last.
pub(crate) fn drain(core: &Core) {
    core.draining.store(true, Ordering::SeqCst);
    // Connections that the kernel has established are served too; their number is bounded, so that a flood of
    // them does not delay the drain.
    if let Some(last) = accept(core, NEWCOMERS) {
        core.arm(last, Interest::Read);
    }
    *lock(&core.listener) = None;
}

/// One round. `drained` is how long the drain has lasted. Returns false when the drain is complete.
pub(crate) fn sweep(core: &Core, now: Instant, drained: Option<Duration>) -> bool {
    let at_last = drained.is_some_and(|drained| drained >= LAST_ANSWERS_AFTER);
    let cut = drained.is_some_and(|drained| drained >= DRAIN_LIMIT);
    core.cut.store(cut, Ordering::SeqCst);
    core.router.sweep(now);
    core.evictable.forget();
    let is_over = |_, parked, peer: &Peer| {
        let unanswered = parked == Parked::Waiting && peer.outcome.is_none();
        cut || at_last && unanswered || peer.connection.deadline() <= now
    };
    for peer in core.table.sweep(is_over) {
        end(core, peer, now, cut);
    }
    let look = |_, _, watch: &SocketWatch| {
        if cut || watch.deadline <= now {
            // This causes an event, and the worker that takes it sees that the deadline has passed.
            let _ = watch.socket.shutdown(Shutdown::Both);
        }
        false
    };
    core.watches.sweep(look).for_each(drop);
    crate::log::flush();
    if drained.is_none() {
        // Connections may wait in the kernel since descriptors or memory ran out.
        core.arm_listener();
        return true;
    }
    // A socket is writable at once, so a worker takes each idle connection, reads what has just arrived, and
    // otherwise closes the connection.
    let may_go =
        |_, parked, peer: &Peer| parked == Parked::Armed && peer.connection.may_be_closed(now);
    for mut peer in core.table.sweep(may_go) {
        peer.connection.drain();
        core.arm(peer, Interest::Write);
    }
    core.table.used() + core.watches.used() > 0
}

/// Ends what a connection waits for, after its deadline.
fn end(core: &Core, mut peer: Owned<'_, Peer>, now: Instant, cut: bool) {
    if peer.outcome.is_some() {
        peer.truncate("an answer stopped midway and is truncated");
        return core.end(peer);
    }
    if cut {
        // Closed by a reset, so that an answer that is sent in part does not look complete.
        peer.connection.truncate();
        return core.go_on(peer);
    }
    let is_request = peer.connection.head().is_some();
    match peer.connection.on_deadline(now) {
        Some(problem) if is_request => core.answer(peer, Err(problem), None),
        Some(problem) => refuse(core, peer, problem),
        None => core.go_on(peer),
    }
}
