//! One thread that sees to every deadline, a few times a second, and to the end.

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

/// So many who are connected already, but not yet accepted, are served at the end: as many as the
/// kernel keeps.
const NEWCOMERS: usize = 4096;

/// How often it looks around.
pub(crate) const ROUND: Duration = Duration::from_millis(50);

/// How long handshakes that have begun may take, and requests that are on their way over a kept
/// connection.
pub(super) const ON_THEIR_WAY: Duration = Duration::from_secs(1);

/// After so much of a drain, whoever waits for an answer is told that there is none: what is
/// behind it is perhaps stopped, and the program ends soon.
const LAST_ANSWERS_AFTER: Duration = Duration::from_millis(6500);

/// How long connections may take to end after the shutdown was requested.
const DRAIN_LIMIT: Duration = Duration::from_millis(7500);

/// Another process listens on the port: whoever connects is for it from now on, and whoever is about to
/// be connected here still comes in. Clients that go on asking here are told to ask there.
pub(crate) fn hand_over(core: &Core) {
    let ignored = lock(&core.listener).as_ref().map(ignore_newcomers);
    if let Some(Err(error)) = ignored {
        log::warn!(cause = error.to_string().as_str(); "a connection may be lost");
    }
    core.draining.store(true, Ordering::SeqCst);
}

/// Accepts no more; every answer from now on is its connection's last.
pub(crate) fn drain(core: &Core) {
    core.draining.store(true, Ordering::SeqCst);
    // Whoever is connected already, but not yet accepted, is served too.
    // A flood of them does not keep the drain from its deadlines.
    if let Some(last) = accept(core, NEWCOMERS) {
        core.arm(last, Interest::Read);
    }
    *lock(&core.listener) = None;
}

/// One look around. `drained` is for how long the drain has lasted. False when all is done.
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
            // Its event comes at once, and a worker sees that it is too late.
            let _ = watch.socket.shutdown(Shutdown::Both);
        }
        false
    };
    core.watches.sweep(look).for_each(drop);
    crate::log::flush();
    if drained.is_none() {
        core.arm_listener();
        return true;
    }
    // A worker looks once more at each idle one before it closes it.
    let may_go =
        |_, parked, peer: &Peer| parked == Parked::Armed && peer.connection.may_be_closed(now);
    for mut peer in core.table.sweep(may_go) {
        peer.connection.drain();
        core.arm(peer, Interest::Write);
    }
    core.table.used() + core.watches.used() > 0
}

/// The deadline of a connection has passed.
fn end(core: &Core, mut peer: Owned<'_, Peer>, now: Instant, cut: bool) {
    if peer.outcome.is_some() {
        peer.truncate("an answer stopped midway and is truncated");
        return core.end(peer);
    }
    if cut {
        peer.connection.truncate();
    }
    let is_request = peer.connection.head().is_some();
    match peer.connection.on_deadline(now) {
        Some(problem) if is_request => core.answer(peer, Err(problem), None),
        Some(problem) => refuse(core, peer, problem),
        None => core.settle(peer),
    }
}
