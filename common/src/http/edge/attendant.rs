//! The thread that sees to what nobody else has time for: clients who did not take their whole
//! answer, and requests that wait for too long.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::poll;

use super::client::Outlet;
use super::feed::{Overdue, Unanswered};
use super::wire::milliseconds;
use super::{Edge, THREAD_STACK_BYTES};
use crate::http::exchange::Exchange;
use crate::http::problem::Problem;

/// How often it looks around.
const ROUND: Duration = Duration::from_millis(50);

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
    while !edge.closed.load(Ordering::Relaxed) {
        outlets.extend(edge.left.1.try_iter());
        wait_for_any(&outlets);
        outlets.retain_mut(is_still_left);
        if last_round.elapsed() >= ROUND {
            last_round = Instant::now();
            for hall in &edge.halls {
                hall.feed.overdue().into_iter().for_each(answer_overdue);
            }
        }
    }
}

/// Until one of the clients takes more, at most a round.
fn wait_for_any(outlets: &[Outlet]) {
    let mut sockets: Vec<_> = outlets
        .iter()
        .map(|outlet| outlet.client().wire.until_writable())
        .collect();
    // A signal ends it early, which does no harm.
    let _ = poll(&mut sockets, milliseconds(ROUND));
}

fn is_still_left(outlet: &mut Outlet) -> bool {
    match outlet.send_kept() {
        Ok(false) if !outlet.is_late() => return true,
        sent => outlet.end_now(!matches!(sent, Ok(true))),
    }
    false
}

fn answer_overdue(overdue: Overdue) {
    match overdue {
        Overdue::Waiting(call) => {
            let problem = overloaded("no worker came free in time");
            call.exchange.answer(Err(problem));
        }
        Overdue::Unanswered(Unanswered {
            client,
            asked,
            terms,
            ..
        }) => {
            let detail = "this takes too long; whether it is done is not known";
            let problem = Problem::unavailable(detail, "the worker does not answer");
            let share = client.edge.memory.share();
            let outlet = client.outlet_of_this_turn();
            Exchange::new(asked, outlet, terms, share).answer(Err(problem));
        }
    }
}

/// For a request that finds no worker.
pub(super) fn overloaded(cause: &'static str) -> Problem {
    Problem::unavailable("this service is overloaded; try again", cause)
}
