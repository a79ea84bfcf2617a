//! The way from the edge to the workers of a hall. Workers without a call rest in tiny_http's
//! `recv`, and the feed unblocks one of them for each call that finds one resting. So tiny_http
//! never reads a byte that a stranger wrote; the call itself, checked and whole, passes through
//! memory. A worker that is done with a call takes the next one that waits, without a rest.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::EdgeLimits;
use super::client::Client;
use crate::http::exchange::{Asked, Exchange};
use crate::http::request::Request;
use crate::http::response::Terms;

/// A request on its way to a worker, and the way back.
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) exchange: Exchange,
}

/// Starts the worker of that number.
pub(crate) type StartWorker = Box<dyn Fn(usize) -> io::Result<JoinHandle<()>> + Send + Sync>;

/// Where requests of one kind go.
pub(crate) struct Hall {
    /// Paths that are this one or below it belong here; empty takes the rest.
    pub(crate) prefix: &'static str,
    pub(crate) feed: Arc<Feed>,
    pub(crate) start_worker: StartWorker,
}

/// What a hall's edge and its workers share.
pub(crate) struct Feed {
    state: Mutex<State>,
    tiny: Arc<tiny_http::Server>,
    queue_max: usize,
    queue_time: Duration,
    answer_time: Duration,
}

struct State {
    waiting: VecDeque<Waiting>,
    /// One place for each worker.
    places: Vec<Place>,
    /// How many workers have a call.
    busy: usize,
    /// How many rest, or are about to.
    resting: usize,
    /// How many of those were unblocked and have not come yet.
    unblocked: usize,
    closed: bool,
}

struct Waiting {
    call: Box<Call>,
    since: Instant,
}

/// What is known of a worker.
#[derive(Default)]
struct Place {
    thread: Option<JoinHandle<()>>,
    doing: Doing,
    at_work: Option<AtWork>,
    /// It was told that somebody else wants it, and has not left its call yet.
    yields: bool,
}

/// What a worker does.
#[derive(Default)]
enum Doing {
    /// It has not asked for a call yet.
    #[default]
    Start,
    Call,
    Rest,
}

/// A call that a worker is at work on: enough to end it in the worker's place.
pub(super) struct AtWork {
    pub(super) client: Arc<Client>,
    pub(super) asked: Arc<Asked>,
    pub(super) terms: Terms,
    /// The answer has begun.
    pub(super) begun: bool,
    /// When the worker was last heard of.
    since: Instant,
}

/// What has waited for too long.
pub(super) enum Overdue {
    /// For a worker.
    Waiting(Box<Call>),
    /// For a word of a worker's.
    Silent(AtWork),
}

impl Feed {
    /// For so many workers, who wait in that tiny_http.
    pub(crate) fn new(tiny: Arc<tiny_http::Server>, workers: usize, limits: &EdgeLimits) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                places: (0..workers).map(|_| Place::default()).collect(),
                busy: 0,
                resting: 0,
                unblocked: 0,
                closed: false,
            }),
            tiny,
            queue_max: limits.queue,
            queue_time: limits.queue_time,
            answer_time: limits.answer_time,
        }
    }

    /// The next call for the worker of that number, who is done with the last one, with the desk
    /// to answer it at. None sends the worker to rest, and it asks again when it is unblocked.
    pub(crate) fn next(self: &Arc<Self>, worker: usize) -> Option<Box<Call>> {
        let mut state = self.state();
        state.leave(worker);
        let Some(Waiting { mut call, .. }) = state.waiting.pop_front() else {
            state.resting += 1;
            state.places[worker].doing = Doing::Rest;
            return None;
        };
        state.busy += 1;
        state.places[worker].doing = Doing::Call;
        let (asked, terms) = (Arc::clone(call.exchange.asked()), call.exchange.terms());
        if let Some(outlet) = call.exchange.outlet() {
            outlet.bind(Desk {
                feed: Arc::clone(self),
                worker,
            });
            state.places[worker].at_work = Some(AtWork {
                client: Arc::clone(outlet.client()),
                asked,
                terms,
                begun: false,
                since: Instant::now(),
            });
        }
        Some(call)
    }

    /// Takes no more calls, and returns the workers, which are to end now.
    pub(crate) fn close(&self) -> Vec<JoinHandle<()>> {
        let mut state = self.state();
        state.closed = true;
        let threads = state.places.iter_mut().map(|place| place.thread.take());
        threads.flatten().collect()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Takes out what has waited too long.
    pub(super) fn overdue(&self) -> Vec<Overdue> {
        let mut state = self.state();
        let mut overdue = Vec::new();
        while let Some(first) = state.waiting.front()
            && first.since.elapsed() >= self.queue_time
        {
            overdue.extend(state.waiting.pop_front().map(|w| Overdue::Waiting(w.call)));
        }
        for place in &mut state.places {
            let silent = |at_work: &mut AtWork| at_work.since.elapsed() >= self.answer_time;
            overdue.extend(place.at_work.take_if(silent).map(Overdue::Silent));
        }
        overdue
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that happens under the lock can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The worker has left whatever it did.
    fn leave(&mut self, worker: usize) {
        let place = &mut self.places[worker];
        place.at_work = None;
        place.yields = false;
        match std::mem::take(&mut place.doing) {
            Doing::Start => {}
            Doing::Call => self.busy -= 1,
            Doing::Rest => {
                self.resting -= 1;
                // When the hall is closed, workers are unblocked beyond the count.
                self.unblocked = self.unblocked.saturating_sub(1);
            }
        }
    }
}

impl Hall {
    /// Whether requests for that path belong here.
    pub(super) fn takes(&self, path: &str) -> bool {
        path.strip_prefix(self.prefix)
            .is_some_and(|rest| self.prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }

    /// Puts a call before the workers, where as many may wait as the limits say; gives it back
    /// where it finds no room.
    pub(super) fn submit(&self, call: Box<Call>) -> Result<(), Box<Call>> {
        let mut state = self.feed.state();
        let workers = state.places.len();
        let under_way = state.waiting.len() + state.busy;
        if under_way >= workers + self.feed.queue_max || state.closed {
            return Err(call);
        }
        state.waiting.push_back(Waiting {
            call,
            since: Instant::now(),
        });
        let rouse = state.unblocked < state.resting;
        if rouse {
            state.unblocked += 1;
        } else {
            // Workers are started as they are needed: a service that is asked little stays small.
            self.start_worker(&mut state);
        }
        drop(state);
        if rouse {
            self.feed.tiny.unblock();
        }
        Ok(())
    }

    /// Starts a worker if those that run have enough to do.
    fn start_worker(&self, state: &mut State) {
        let running = |place: &Place| place.thread.as_ref().is_some_and(|t| !t.is_finished());
        if state.places.iter().filter(|place| running(place)).count()
            >= state.waiting.len() + state.busy
        {
            return;
        }
        let Some(number) = state.places.iter().position(|place| !running(place)) else {
            return;
        };
        match (self.start_worker)(number) {
            Ok(thread) => state.places[number].thread = Some(thread),
            Err(error) => {
                log::error!(hall = self.prefix, cause = error.to_string().as_str(); "cannot start a worker");
            }
        }
    }
}

/// A worker's place, as the outlet knows it that the worker writes to.
pub(super) struct Desk {
    feed: Arc<Feed>,
    worker: usize,
}

impl Desk {
    /// Says that the worker goes on; false where it was silent for so long that the call was
    /// ended in its place.
    pub(super) fn may_write(&self) -> bool {
        let mut state = self.feed.state();
        let Some(at_work) = &mut state.places[self.worker].at_work else {
            return false;
        };
        at_work.begun = true;
        at_work.since = Instant::now();
        true
    }

    /// Says that the worker has done its part; false as above.
    pub(super) fn leave_call(&self) -> bool {
        let mut state = self.feed.state();
        state.places[self.worker].at_work.take().is_some()
    }

    /// Whether fewer than half of the workers are free.
    pub(super) fn is_scarce(&self) -> bool {
        let state = self.feed.state();
        2 * (state.waiting.len() + state.busy) > state.places.len()
    }

    /// Whether a request waits for this worker: all are at work, and of those that wait for a
    /// slow client no other was told yet on behalf of that request.
    pub(super) fn must_yield(&self) -> bool {
        let mut state = self.feed.state();
        if let Some(at_work) = &mut state.places[self.worker].at_work {
            // It waits for its client, and is not silent.
            at_work.since = Instant::now();
        }
        let free = state.places.len() - state.busy;
        let yielding = state.places.iter().filter(|place| place.yields).count();
        let wanted = state.waiting.len() > free + yielding;
        state.places[self.worker].yields |= wanted;
        wanted
    }
}
