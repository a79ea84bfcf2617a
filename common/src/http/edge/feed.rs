//! The way from the edge to the workers of a hall. Workers without a call rest in tiny_http's
//! `recv`, and the feed unblocks one of them for each call that finds one resting. So tiny_http
//! never reads a byte that a stranger wrote; the call itself, checked and whole, passes through
//! memory. A worker that is done with a call takes the next one that waits, without a rest.
//! Calls wait in lines: those of one line are taken one by one, those of the others together.

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
    /// The number of the line that a request belongs to.
    pub(crate) line_of: Box<dyn Fn(&Request) -> usize + Send + Sync>,
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
    lines: Vec<Line>,
    /// One place for each worker.
    places: Vec<Place>,
    /// Calls that no worker has to itself, by their number: taken together, or handed on.
    shared: HashMap<u64, AtWork>,
    last_number: u64,
    /// How many workers have calls.
    busy: usize,
    /// How many rest, or are about to.
    resting: usize,
    /// How many of those were unblocked and have not come yet.
    unblocked: usize,
    closed: bool,
}

/// Calls that wait for a worker.
struct Line {
    waiting: VecDeque<Waiting>,
    terms: LineTerms,
    /// How many workers have calls of this line.
    workers: usize,
}

/// How calls of a line are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineTerms {
    /// How many workers may have calls of the line at the same time.
    pub(crate) workers_max: usize,
    /// How many calls a worker takes at once.
    pub(crate) calls_max: usize,
}

impl LineTerms {
    /// Each call for itself, by any worker.
    pub(crate) const ONE_BY_ONE: Self = Self {
        workers_max: usize::MAX,
        calls_max: 1,
    };
}

impl Line {
    /// How many workers the calls that wait have need of, and may have.
    fn wanted(&self) -> usize {
        let needed = self.waiting.len().div_ceil(self.terms.calls_max);
        needed.min(self.terms.workers_max.saturating_sub(self.workers))
    }

    /// Since when calls wait that may be taken.
    fn waits_since(&self) -> Option<Instant> {
        let first = self.waiting.front().filter(|_| self.wanted() > 0);
        first.map(|first| first.since)
    }
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
    /// It has calls of that line.
    Calls(usize),
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
    /// For so many workers, who wait in that tiny_http, and calls that wait in such lines.
    pub(crate) fn new(
        tiny: Arc<tiny_http::Server>,
        workers: usize,
        lines: impl Iterator<Item = LineTerms>,
        limits: &EdgeLimits,
    ) -> Self {
        let lines = lines.map(|terms| Line {
            waiting: VecDeque::new(),
            terms,
            workers: 0,
        });
        Self {
            state: Mutex::new(State {
                lines: lines.collect(),
                places: (0..workers).map(|_| Place::default()).collect(),
                shared: HashMap::new(),
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

    /// The next calls for the worker of that number, who is done with the last ones, each with
    /// the desk to answer it at, and their line. None sends the worker to rest, and it asks
    /// again when it is unblocked.
    pub(crate) fn next(self: &Arc<Self>, worker: usize) -> Option<(usize, Vec<Call>)> {
        let mut state = self.state();
        state.leave(worker);
        let Some(line) = state.longest_waiting() else {
            state.resting += 1;
            state.places[worker].doing = Doing::Rest;
            return None;
        };
        state.busy += 1;
        state.places[worker].doing = Doing::Calls(line);
        state.lines[line].workers += 1;
        let LineTerms { calls_max, .. } = state.lines[line].terms;
        let waiting = &mut state.lines[line].waiting;
        let taken = waiting.drain(..calls_max.min(waiting.len()));
        let mut calls: Vec<_> = taken.map(|waiting| *waiting.call).collect();
        for call in &mut calls {
            let (asked, terms) = (Arc::clone(call.exchange.asked()), call.exchange.terms());
            let Some(outlet) = call.exchange.outlet() else {
                continue;
            };
            let at_work = AtWork {
                client: Arc::clone(outlet.client()),
                asked,
                terms,
                begun: false,
                since: Instant::now(),
            };
            let seat = if calls_max == 1 {
                state.places[worker].at_work = Some(at_work);
                Seat::Worker(worker)
            } else {
                state.share(at_work)
            };
            outlet.bind(Desk {
                feed: Arc::clone(self),
                seat,
            });
        }
        // What this worker did not take may be another's to take, now that its own line is left.
        let rouse = state.must_rouse();
        drop(state);
        if rouse {
            self.tiny.unblock();
        }
        Some((line, calls))
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
        for line in &mut state.lines {
            while let Some(first) = line.waiting.front()
                && first.since.elapsed() >= self.queue_time
            {
                overdue.extend(line.waiting.pop_front().map(|w| Overdue::Waiting(w.call)));
            }
        }
        let silent = |at_work: &AtWork| at_work.since.elapsed() >= self.answer_time;
        let State { places, shared, .. } = &mut *state;
        for place in places {
            let at_work = place.at_work.take_if(|at_work| silent(at_work));
            overdue.extend(at_work.map(Overdue::Silent));
        }
        let shared = shared.extract_if(|_, at_work| silent(at_work));
        overdue.extend(shared.map(|(_, at_work)| Overdue::Silent(at_work)));
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
            Doing::Calls(line) => {
                self.busy -= 1;
                self.lines[line].workers -= 1;
            }
            Doing::Rest => {
                self.resting -= 1;
                // When the hall is closed, workers are unblocked beyond the count.
                self.unblocked = self.unblocked.saturating_sub(1);
            }
        }
    }

    /// The line whose first call waits for the longest time, of those that may be taken.
    fn longest_waiting(&self) -> Option<usize> {
        let lines = self.lines.iter().enumerate();
        let waits = lines.filter_map(|(number, line)| Some((line.waits_since()?, number)));
        waits.min().map(|(_, number)| number)
    }

    /// How many workers the calls that wait have need of.
    fn wanted(&self) -> usize {
        self.lines.iter().map(Line::wanted).sum()
    }

    /// How many calls wait.
    fn waiting(&self) -> usize {
        self.lines.iter().map(|line| line.waiting.len()).sum()
    }

    /// Whether one that rests is needed; they then count as unblocked.
    fn must_rouse(&mut self) -> bool {
        let rouse = self.unblocked < self.resting.min(self.wanted());
        self.unblocked += usize::from(rouse);
        rouse
    }

    fn share(&mut self, at_work: AtWork) -> Seat {
        self.last_number += 1;
        self.shared.insert(self.last_number, at_work);
        Seat::Shared(self.last_number)
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
        let line = (self.line_of)(&call.request);
        let mut state = self.feed.state();
        let workers = state.places.len();
        let under_way = state.waiting() + state.busy;
        if under_way >= workers + self.feed.queue_max || state.closed {
            return Err(call);
        }
        state.lines[line].waiting.push_back(Waiting {
            call,
            since: Instant::now(),
        });
        let rouse = state.must_rouse();
        if !rouse && state.wanted() > state.unblocked {
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
        if state.places.iter().filter(|place| running(place)).count() >= state.wanted() + state.busy
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
    /// A worker's, who has the one call.
    Worker(usize),
    /// Of a call among others, or of one that a worker has handed on.
    Shared(u64),
}

impl State {
    fn at_work(&mut self, seat: Seat) -> Option<&mut AtWork> {
        match seat {
            Seat::Worker(worker) => self.places[worker].at_work.as_mut(),
            Seat::Shared(number) => self.shared.get_mut(&number),
        }
    }

    fn end_work(&mut self, seat: Seat) -> Option<AtWork> {
        match seat {
            Seat::Worker(worker) => self.places[worker].at_work.take(),
            Seat::Shared(number) => self.shared.remove(&number),
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
        let seat = state.share(at_work);
        drop(state);
        Some(Self { seat, ..self })
    }

    /// The worker of that number takes a call, out of those that it has, for itself; None as above.
    pub(super) fn take_alone(self, worker: usize) -> Option<Self> {
        let mut state = self.feed.state();
        let at_work = state.end_work(self.seat)?;
        state.places[worker].at_work = Some(at_work);
        drop(state);
        let seat = Seat::Worker(worker);
        Some(Self { seat, ..self })
    }

    /// Whether fewer than half of the workers are free. Behind a shared seat others wait.
    pub(super) fn is_scarce(&self) -> bool {
        let state = self.feed.state();
        matches!(self.seat, Seat::Shared(_))
            || 2 * (state.wanted() + state.busy) > state.places.len()
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
        let wanted = state.wanted() > free + yielding;
        state.places[worker].yields |= wanted;
        wanted
    }
}
