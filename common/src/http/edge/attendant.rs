//! The thread that sees to what nobody else has time for: clients who did not take their whole
//! answer, and requests that wait for too long.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, poll};

use super::client::Outlet;
use super::feed::Overdue;
use super::wire::milliseconds;
use super::{Edge, THREAD_STACK_BYTES};
use crate::http::exchange::Exchange;
use crate::http::problem::Problem;
use crate::http::response::Terms;

/// How often it looks around.
const ROUND: Duration = Duration::from_millis(50);

/// After so much of a drain, whoever waits for an answer is told that there is none: what is behind
/// it is perhaps stopped, and the program ends soon.
const LAST_ANSWERS_AFTER: Duration = Duration::from_millis(6500);

/// Starts the thread; it ends soon after [`Edge::closed`] is set.
pub(super) fn start(edge: &Arc<Edge>) -> io::Result<JoinHandle<()>> {
    let edge = Arc::clone(edge);
    thread::Builder::new()
        .name("attendant".to_owned())
        .stack_size(THREAD_STACK_BYTES)
        .spawn(move || attend(&edge))
}

fn attend(edge: &Edge) {
    let mut outlets: Vec<Outlet> = Vec::new();
    let mut last_round = Instant::now();
    let mut drain_began = None;
    while !edge.closed.load(Ordering::Relaxed) {
        outlets.extend(edge.left.1.try_iter());
        let mut ready = wait_for_any(&outlets).into_iter();
        outlets.retain_mut(|outlet| !is_over(outlet, ready.next().unwrap_or(true)));
        if last_round.elapsed() >= ROUND {
            last_round = Instant::now();
            if edge.shutdown.is_requested() {
                drain_began.get_or_insert(last_round);
            }
            let at_last = drain_began.is_some_and(|began| began.elapsed() >= LAST_ANSWERS_AFTER);
            for hall in &edge.halls {
                hall.feed.overdue(at_last).into_iter().for_each(end_overdue);
            }
        }
    }
}

/// Until one of the clients takes more, at most a round; says of each whether it does.
fn wait_for_any(outlets: &[Outlet]) -> Vec<bool> {
    let mut sockets: Vec<_> = outlets
        .iter()
        .map(|outlet| outlet.client().wire.until_writable())
        .collect();
    // A signal ends it early, which does no harm.
    let _ = poll(&mut sockets, milliseconds(ROUND));
    let ready = |socket: &PollFd<'_>| !socket.revents().is_empty();
    sockets.iter().map(ready).collect()
}

/// Sends on what the client takes; true where that was the last of it, or is to be.
fn is_over(outlet: &mut Outlet, ready: bool) -> bool {
    let sent = if ready { outlet.send_kept() } else { Ok(false) };
    let over = !matches!(sent, Ok(false)) || outlet.is_late();
    if over {
        outlet.end_now(!matches!(sent, Ok(true)));
    }
    over
}

fn end_overdue(overdue: Overdue) {
    match overdue {
        Overdue::Waiting(call) => {
            let problem = Problem::overloaded("no worker came free in time");
            call.exchange.answer(Err(problem));
        }
        Overdue::Silent(at_work) if at_work.begun => {
            let request_id = at_work.asked.request_id.as_str();
            log::warn!(request_id = request_id; "an answer stopped midway, and was broken off");
            at_work.client.cut();
        }
        Overdue::Silent(at_work) => {
            let detail = "this takes too long; whether it is done is not known";
            let problem = Problem::unavailable(detail, "nothing was heard of it");
            let share = at_work.client.edge.memory.share();
            let outlet = at_work.client.outlet_of_this_turn();
            let terms = Terms {
                close: true,
                ..at_work.terms
            };
            Exchange::new(at_work.asked, outlet, terms, share).answer(Err(problem));
            // Whoever is silent is perhaps the thread that would read the next request.
            at_work.client.end();
        }
    }
}
