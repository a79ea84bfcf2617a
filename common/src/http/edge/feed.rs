//! The way from the edge to the workers of a hall. Workers without a call rest in tiny_http's
//! `recv`, and the feed unblocks one of them for each call that finds one resting. So tiny_http
//! never reads a byte that a stranger wrote; the call itself, checked and whole, passes through
//! memory. A worker that is done with a call takes the next one that waits, without a rest.

use std::collections::{HashMap, VecDeque};
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
    /// Calls that a worker has handed on, by their number.
    handed_on: HashMap<u64, AtWork>,
    last_number: u64,
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

/// A call that somebody is at work on: enough to end it in their place.
pub(super) struct AtWork {
    pub(super) client: Arc<Client>,
    pub(super) asked: Arc<Asked>,
    pub(super) terms: Terms,
    /// The answer has begun.
    pub(super) begun: bool,
    /// When they were last heard of.
    since: Instant,
}

/// What has waited for too long.
pub(super) enum Overdue {
    /// For a worker.
    Waiting(Box<Call>),
    /// For a word of whoever is at work on it.
    Silent(AtWork),
}

impl Feed {
    /// For so many workers, who wait in that tiny_http.
    pub(crate) fn new(tiny: Arc<tiny_http::Server>, workers: usize, limits: &EdgeLimits) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                places: (0..workers).map(|_| Place::default()).collect(),
                handed_on: HashMap::new(),
                last_number: 0,
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
                seat: Seat::Worker(worker),
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
        let silent = |at_work: &AtWork| at_work.since.elapsed() >= self.answer_time;
        let State {
            places, handed_on, ..
        } = &mut *state;
        for place in places {
            let at_work = place.at_work.take_if(|at_work| silent(at_work));
            overdue.extend(at_work.map(Overdue::Silent));
        }
        let handed_on = handed_on.extract_if(|_, at_work| silent(at_work));
        overdue.extend(handed_on.map(|(_, at_work)| Overdue::Silent(at_work)));
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

/// Where somebody is at work on a call, as the outlet knows it that they write to.
pub(super) struct Desk {
    feed: Arc<Feed>,
    seat: Seat,
}

#[derive(Clone, Copy)]
enum Seat {
    Worker(usize),
    /// Wherever a worker has handed the call to.
    Elsewhere(u64),
}

impl State {
    fn at_work(&mut self, seat: Seat) -> Option<&mut AtWork> {
        match seat {
            Seat::Worker(worker) => self.places[worker].at_work.as_mut(),
            Seat::Elsewhere(number) => self.handed_on.get_mut(&number),
        }
    }

    fn end_work(&mut self, seat: Seat) -> Option<AtWork> {
        match seat {
            Seat::Worker(worker) => self.places[worker].at_work.take(),
            Seat::Elsewhere(number) => self.handed_on.remove(&number),
        }
    }
}

impl Desk {
    /// Says that the work goes on; false where nothing was heard of it for so long that the call
    /// was ended by another.
    pub(super) fn may_write(&self) -> bool {
        let mut state = self.feed.state();
        let Some(at_work) = state.at_work(self.seat) else {
            return false;
        };
        at_work.begun = true;
        at_work.since = Instant::now();
        true
    }

    /// Says that the work is done; false as above.
    pub(super) fn leave_call(self) -> bool {
        self.feed.state().end_work(self.seat).is_some()
    }

    /// The worker hands the call on, and whoever has it now is no worker; None as above.
    pub(super) fn hand_on(self) -> Option<Self> {
        let mut state = self.feed.state();
        let at_work = state.end_work(self.seat)?;
        state.last_number += 1;
        let number = state.last_number;
        state.handed_on.insert(number, at_work);
        drop(state);
        Some(Self {
            seat: Seat::Elsewhere(number),
            ..self
        })
    }

    /// Whether fewer than half of the workers are free. Who is no worker has others waiting.
    pub(super) fn is_scarce(&self) -> bool {
        let state = self.feed.state();
        matches!(self.seat, Seat::Elsewhere(_))
            || 2 * (state.waiting.len() + state.busy) > state.places.len()
    }

    /// Whether a request waits for this worker: all are at work, and of those that wait for a
    /// slow client no other was told yet on behalf of that request.
    pub(super) fn must_yield(&self) -> bool {
        let Seat::Worker(worker) = self.seat else {
            return true;
        };
        let mut state = self.feed.state();
        if let Some(at_work) = &mut state.places[worker].at_work {
            // It waits for its client, and is not silent.
            at_work.since = Instant::now();
        }
        let free = state.places.len() - state.busy;
        let yielding = state.places.iter().filter(|place| place.yields).count();
        let wanted = state.waiting.len() > free + yielding;
        state.places[worker].yields |= wanted;
        wanted
    }
}
