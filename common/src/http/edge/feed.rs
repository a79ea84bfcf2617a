//! The way from a connection to the places of a hall, where its requests are answered. A
//! connection's own thread takes a place that is free and does the work itself; where none is, the
//! call waits for a worker. Workers without a call rest in tiny_http's `recv`, and the feed
//! unblocks one of them for each that is needed. So tiny_http never reads a byte that a stranger
//! wrote. Calls wait in lines: those of one line are taken one by one, those of the others together.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::{Client, Outlet};
use super::{EdgeLimits, THREAD_STACK_BYTES};
use crate::http::exchange::{Asked, Exchange};
use crate::http::request::Request;
use crate::http::response::Terms;

/// The bodies of calls that are taken together, of more than one: they are held several times over
/// while they are answered.
const BYTES_TOGETHER_MAX: usize = 256 * 1024;

/// A request on its way to where it is answered, and the way back.
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) exchange: Exchange,
}

/// Calls that somebody has taken, and the place that they have for them.
pub(crate) struct Taken {
    pub(crate) place: usize,
    /// The calls' line.
    pub(crate) line: usize,
    pub(crate) calls: Vec<Call>,
}

/// Answers calls with what belongs to the place that they were taken at. Those that come back had
/// better be answered for themselves.
pub(crate) type Serve = Box<dyn Fn(Taken) -> Vec<Call> + Send + Sync>;

/// Where requests of one kind go.
pub(crate) struct Hall {
    /// Paths that are this one or below it belong here; empty takes the rest.
    pub(crate) prefix: &'static str,
    pub(crate) feed: Arc<Feed>,
    /// The number of the line that a request belongs to.
    pub(crate) line_of: Box<dyn Fn(&Request) -> usize + Send + Sync>,
}

/// What a hall's connections and its workers share.
pub(crate) struct Feed {
    state: Mutex<State>,
    /// Of the hall, for the names of its workers.
    prefix: &'static str,
    serve: Serve,
    tiny: Arc<tiny_http::Server>,
    queue_max: usize,
    queue_time: Duration,
    answer_time: Duration,
}

struct State {
    lines: Vec<Line>,
    places: Vec<Place>,
    /// How many places are taken.
    busy: usize,
    /// Calls that nobody has to themselves, by their number: taken together, or handed on.
    shared: HashMap<u64, AtWork>,
    last_number: u64,
    workers: Vec<JoinHandle<()>>,
    /// How many workers rest, or are about to, and are not called.
    resting: usize,
    /// How many were called, or started, and have not come yet.
    coming: usize,
    closed: bool,
}

/// Calls that wait for a worker.
struct Line {
    waiting: VecDeque<Waiting>,
    terms: LineTerms,
    /// At how many places its calls are answered now.
    places: usize,
}

/// How calls of a line are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineTerms {
    /// At how many places calls of the line may be answered at the same time.
    pub(crate) places_max: usize,
    /// How many calls are taken at once.
    pub(crate) calls_max: usize,
}

impl LineTerms {
    /// Each call for itself, at any place.
    pub(crate) const ONE_BY_ONE: Self = Self {
        places_max: usize::MAX,
        calls_max: 1,
    };
}

impl Line {
    /// How many places the calls that wait have need of, and may have.
    fn wanted(&self) -> usize {
        let needed = self.waiting.len().div_ceil(self.terms.calls_max);
        needed.min(self.terms.places_max.saturating_sub(self.places))
    }

    /// Takes the first calls, at least one.
    fn take(&mut self) -> Vec<Call> {
        let mut bytes = 0;
        let fit = self.waiting.iter().take_while(|waiting| {
            bytes += waiting.call.request.body.len();
            bytes <= BYTES_TOGETHER_MAX
        });
        let count = fit.count().max(1).min(self.terms.calls_max);
        let taken = self.waiting.drain(..count.min(self.waiting.len()));
        taken.map(|waiting| *waiting.call).collect()
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

/// Where one call, or one lot of them, is answered at a time.
#[derive(Default)]
struct Place {
    /// The line whose calls are answered here; None where it is free.
    line: Option<usize>,
    at_work: Option<AtWork>,
    /// Whoever is here was told that somebody else wants the place, and has not left it yet.
    yields: bool,
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
    /// With so many places, where `serve` answers, and calls that wait in such lines.
    pub(crate) fn new(
        prefix: &'static str,
        tiny: Arc<tiny_http::Server>,
        places: usize,
        lines: impl Iterator<Item = LineTerms>,
        serve: Serve,
        limits: &EdgeLimits,
    ) -> Self {
        let lines = lines.map(|terms| Line {
            waiting: VecDeque::new(),
            terms,
            places: 0,
        });
        Self {
            state: Mutex::new(State {
                lines: lines.collect(),
                places: (0..places).map(|_| Place::default()).collect(),
                busy: 0,
                shared: HashMap::new(),
                last_number: 0,
                workers: Vec::new(),
                resting: 0,
                coming: 0,
                closed: false,
            }),
            prefix,
            serve,
            tiny,
            queue_max: limits.queue,
            queue_time: limits.queue_time,
            answer_time: limits.answer_time,
        }
    }

    /// Puts a call where others of its line wait, as many as the limits say; gives it back where
    /// it finds no room. If `here`, it is answered on this thread where nobody is before it and a
    /// place is free.
    fn submit(self: &Arc<Self>, line: usize, call: Box<Call>, here: bool) -> Result<(), Box<Call>> {
        let mut state = self.state();
        let under_way = state.waiting() + state.busy;
        if under_way >= state.places.len() + self.queue_max || state.closed {
            return Err(call);
        }
        let here = here && state.waiting() == 0;
        state.lines[line].waiting.push_back(Waiting {
            call,
            since: Instant::now(),
        });
        let taken = if here { self.take(&mut state) } else { None };
        let Some(taken) = taken else {
            self.call_workers(state);
            return Ok(());
        };
        drop(state);
        let state = self.serve(taken);
        self.call_workers(state);
        Ok(())
    }

    /// Has calls answered at their place, and leaves it.
    fn serve(&self, taken: Taken) -> MutexGuard<'_, State> {
        let place = taken.place;
        // A handler's panic does not come so far, and no other may cost the hall the place.
        let served = catch_unwind(AssertUnwindSafe(|| (self.serve)(taken)));
        let mut alone = served.unwrap_or_default();
        alone.retain_mut(|call| call.exchange.outlet().is_some_and(Outlet::unbind));
        let mut state = self.state();
        state.leave(place);
        for call in alone.into_iter().rev() {
            state.lines[0].waiting.push_front(Waiting {
                call: Box::new(call),
                since: Instant::now(),
            });
        }
        state
    }

    /// Takes what waits for the longest time, if there is a place for it, with the desks to
    /// answer it at.
    fn take(self: &Arc<Self>, state: &mut State) -> Option<Taken> {
        let place = state.places.iter().position(|place| place.line.is_none())?;
        let line = state.longest_waiting()?;
        state.busy += 1;
        state.places[place].line = Some(line);
        state.lines[line].places += 1;
        let LineTerms { calls_max, .. } = state.lines[line].terms;
        let mut calls = state.lines[line].take();
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
                state.places[place].at_work = Some(at_work);
                Seat::Place(place)
            } else {
                state.share(at_work)
            };
            outlet.bind(Desk {
                feed: Arc::clone(self),
                seat,
            });
        }
        Some(Taken { place, line, calls })
    }

    /// Calls a worker, or starts one, if fewer are coming than are needed. They are started as
    /// they are needed: a service that is asked little stays small.
    fn call_workers(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.coming >= state.wanted() {
            return;
        }
        if state.resting > 0 {
            state.resting -= 1;
            state.coming += 1;
            drop(state);
            self.tiny.unblock();
            return;
        }
        state.workers.retain(|worker| !worker.is_finished());
        let number = state.workers.len();
        if number == state.places.len() {
            return;
        }
        let feed = Arc::clone(self);
        let worker = thread::Builder::new()
            .name(format!("{}-{number}", self.prefix))
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || feed.work());
        match worker {
            Ok(worker) => {
                state.workers.push(worker);
                state.coming += 1;
            }
            Err(error) => {
                log::error!(hall = self.prefix, cause = error.to_string().as_str(); "cannot start a worker");
            }
        }
    }

    /// What a worker does: takes what waits until nothing does, rests, and begins anew.
    fn work(self: &Arc<Self>) {
        let mut state = self.come();
        while !state.closed {
            let taken = self.take(&mut state);
            state.resting += usize::from(taken.is_none());
            // What waits in the line that was just left is perhaps for another.
            self.call_workers(state);
            state = if let Some(taken) = taken {
                self.serve(taken)
            } else {
                // There is never a request of its own: it returns when the feed unblocks it.
                drop(self.tiny.recv());
                self.come()
            };
        }
    }

    /// A worker has come, from its start or its rest.
    fn come(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if state.coming > 0 {
            state.coming -= 1;
        } else {
            // Nobody has called it: it has rested until now.
            state.resting = state.resting.saturating_sub(1);
        }
        state
    }

    /// Takes no more calls; the workers end. Those that do not until the deadline are left.
    pub(crate) fn close(&self, deadline: Instant) {
        let workers = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.workers)
        };
        for worker in workers {
            // Each call wakes one worker, and one that wakes ends.
            while !worker.is_finished() && Instant::now() < deadline {
                self.tiny.unblock();
                thread::sleep(Duration::from_millis(1));
            }
            if !worker.is_finished() {
                log::warn!(hall = self.prefix; "a worker is still busy; it ends with the program");
            }
        }
    }

    /// Takes out what has waited too long; at the last, all that nobody has begun to answer.
    pub(super) fn overdue(&self, at_last: bool) -> Vec<Overdue> {
        let mut state = self.state();
        let mut overdue = Vec::new();
        for line in &mut state.lines {
            while let Some(first) = line.waiting.front()
                && first.since.elapsed() >= self.queue_time
            {
                overdue.extend(line.waiting.pop_front().map(|w| Overdue::Waiting(w.call)));
            }
        }
        let silent = |at_work: &AtWork| {
            at_work.since.elapsed() >= self.answer_time || at_last && !at_work.begun
        };
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
    /// Whoever was at that place has done their work there.
    fn leave(&mut self, place: usize) {
        let place = &mut self.places[place];
        place.at_work = None;
        place.yields = false;
        if let Some(line) = place.line.take() {
            self.busy -= 1;
            self.lines[line].places -= 1;
        }
    }

    /// The line whose first call waits for the longest time, of those that may be taken.
    fn longest_waiting(&self) -> Option<usize> {
        let lines = self.lines.iter().enumerate();
        let waits = lines.filter_map(|(number, line)| Some((line.waits_since()?, number)));
        waits.min().map(|(_, number)| number)
    }

    /// How many places the calls that wait have need of.
    fn needed(&self) -> usize {
        self.lines.iter().map(Line::wanted).sum()
    }

    /// How many workers could take of them now.
    fn wanted(&self) -> usize {
        self.needed().min(self.places.len() - self.busy)
    }

    /// How many calls wait.
    fn waiting(&self) -> usize {
        self.lines.iter().map(|line| line.waiting.len()).sum()
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

    /// Has a call answered by a worker or, if `here` and it need not wait, on this thread; gives
    /// it back where too many wait.
    pub(super) fn submit(&self, call: Box<Call>, here: bool) -> Result<(), Box<Call>> {
        self.feed.submit((self.line_of)(&call.request), call, here)
    }
}

/// Where somebody is at work on a call, as the outlet knows it that they write to.
pub(super) struct Desk {
    feed: Arc<Feed>,
    seat: Seat,
}

#[derive(Clone, Copy)]
enum Seat {
    /// At a place that has only this call.
    Place(usize),
    /// Of a call among others, or of one that was handed on.
    Shared(u64),
}

impl State {
    fn at_work(&mut self, seat: Seat) -> Option<&mut AtWork> {
        match seat {
            Seat::Place(place) => self.places[place].at_work.as_mut(),
            Seat::Shared(number) => self.shared.get_mut(&number),
        }
    }

    fn end_work(&mut self, seat: Seat) -> Option<AtWork> {
        match seat {
            Seat::Place(place) => self.places[place].at_work.take(),
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

    /// The call is handed on, and whoever has it now needs no place; None as above.
    pub(super) fn hand_on(self) -> Option<Self> {
        let mut state = self.feed.state();
        let at_work = state.end_work(self.seat)?;
        let seat = state.share(at_work);
        drop(state);
        Some(Self { seat, ..self })
    }

    /// Whether fewer than half of the places are free. Behind a shared seat others wait.
    pub(super) fn is_scarce(&self) -> bool {
        let state = self.feed.state();
        matches!(self.seat, Seat::Shared(_))
            || 2 * (state.needed() + state.busy) > state.places.len()
    }

    /// Whether a request waits for this place: all are taken, and of those who wait for a slow
    /// client no other was told yet on behalf of that request.
    pub(super) fn must_yield(&self) -> bool {
        let Seat::Place(place) = self.seat else {
            return true;
        };
        let mut state = self.feed.state();
        if let Some(at_work) = &mut state.places[place].at_work {
            // It waits for its client, and is not silent.
            at_work.since = Instant::now();
        }
        let free = state.places.len() - state.busy;
        let yielding = state.places.iter().filter(|place| place.yields).count();
        let wanted = state.needed() > free + yielding;
        state.places[place].yields |= wanted;
        wanted
    }
}
