//! Workers take events and process them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::accept::accept;
use super::answer::Responder;
use super::core::Core;
use super::peer::Peer;
use super::poller::{END_ALL, Interest, LISTENER, WAKE};
use super::table::{Owned, Parked, Token};
use super::watch;
use crate::http::connection::Next;
use crate::http::message::problem::Problem;
use crate::http::message::request::Request;
use crate::http::sync::now;

const READ_BYTES: usize = 32 * 1024;

/// How many connections are accepted at one event of the listener.
const ACCEPTS: usize = 8;

/// Processes events until the server ends.
pub(crate) fn work(core: &Arc<Core>) {
    watch::enter(core);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let event = match core.poller.wait() {
            Ok(END_ALL) => return,
            Ok(event) => event,
            Err(error) => {
                log::error!(cause = error.to_string().as_str(); "cannot wait for events");
                return;
            }
        };
        if catch_unwind(AssertUnwindSafe(|| take(core, event, &mut buffer))).is_err() {
            // The panic may have given back a slot without serving the requests that wait for it.
            core.router.work();
        }
    }
}

fn take(core: &Arc<Core>, event: Token, buffer: &mut [u8]) {
    match event {
        WAKE => core.router.work(),
        LISTENER => {
            // The request of the last connection has mostly arrived already.
            if let Some(last) = accept(core, ACCEPTS) {
                drive(core, last, buffer);
            }
        }
        // An event may be stale: the connection is gone then, or not armed.
        token => {
            if let Some(peer) = core.table.take(token, Parked::Armed) {
                drive(core, peer, buffer);
            } else if let Some(watch) = core.watches.take(token, Parked::Armed)
                && let Some(watch) = watch.remove()
            {
                (watch.then)(watch.socket);
                // If that ended an exchange, its slot is free.
                core.router.work();
            }
        }
    }
}

/// Goes on with a connection until it is parked or closed.
fn drive(core: &Arc<Core>, mut peer: Owned<'_, Peer>, buffer: &mut [u8]) {
    // One read for each event, so that a client that sends without a pause leaves the worker to others.
    let mut may_read = true;
    loop {
        let Some((same, next)) = core.advance(peer) else {
            return;
        };
        peer = same;
        match next {
            Next::Read if may_read => {
                if let Err(problem) = peer.read(buffer) {
                    let problem = peer.connection.refuse(problem, now());
                    return refuse(core, peer, problem);
                }
                may_read = false;
            }
            Next::Read => return core.arm(peer, Interest::Read),
            Next::Head => {
                let head = peer.connection.head_mut();
                peer.decided = head.and_then(|head| core.router.admit(head).transpose());
                let is_decided = peer.decided.is_some();
                peer.connection.decide(is_decided);
            }
            Next::Request(head, body) => {
                if let Some(decided) = peer.decided.take() {
                    return core.answer(peer, decided, None);
                }
                let responder = Responder {
                    core: Arc::clone(core),
                    token: peer.token(),
                };
                peer.park(Parked::Waiting, |_| {});
                let request = Request::new(head, body, Box::new(responder));
                return core.router.submit(request);
            }
            Next::Refused(problem) => return refuse(core, peer, problem),
            // `Core::advance` handles all others.
            _ => return,
        }
    }
}

/// Answers and counts a request that is refused.
pub(crate) fn refuse(core: &Core, peer: Owned<'_, Peer>, problem: Problem) {
    core.metrics
        .refused_requests
        .with_label_values(&[&problem.status.to_string()])
        .inc();
    core.answer(peer, Err(problem), None);
}
