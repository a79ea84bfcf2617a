//! A bulkhead is a number of slots for one kind of request, and the requests that wait for them:
//! when all slots of one wait for something slow, the others go on. A slot owns the state that
//! handlers use, so a service has as many connections to its database as it has slots, and no pool.
//! Whoever brings a request takes a slot if one is free, and works until nothing waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limits::Limits;
use super::queues::{BatchLimits, Queues, Taken};
use super::router::{self, Submit, Verb};
use super::workers::{call_another, waiting};
use crate::http::connection::Decided;
use crate::http::message::head::Head;
use crate::http::message::problem::Problem;
use crate::http::message::request::{Request, Slot};
use crate::http::message::response::HandlerResult;
use crate::http::sync::atomic::{AtomicUsize, Ordering};
use crate::http::sync::{Mutex, lock, now};

/// Who answers: plain functions over the state that their slot owns.
pub enum Handler<S: Send + 'static> {
    /// Each request for itself.
    One(One<S>),
    /// Requests that wait at the same time are answered together.
    Batch(&'static Batch<S>),
    /// Whoever takes the request answers it, in its time and from anywhere.
    Owned(fn(&mut S, Request)),
    /// As `Owned`, and the slot is held until its lease is dropped; returned, it is free at once.
    Leased(fn(Lease<S>, Request) -> Option<Lease<S>>),
}

/// Answers one request.
pub type One<S> = for<'a> fn(&'a mut S, &Request) -> HandlerResult<'a>;

/// How requests that wait at the same time are answered together, in fewer ways to and from
/// the database than there are requests. One that comes alone does not wait for others.
pub struct Batch<S> {
    /// How many at once.
    pub limits: BatchLimits,
    /// Which of the requests; the others are answered one by one.
    pub filter: fn(&Head) -> bool,
    /// Makes the answers to the requests, in their order.
    pub answer: fn(&mut S, &[Request]) -> Answers,
    /// Answers one that is not for a batch.
    pub one: One<S>,
}

/// Answers to requests, in their order. None is for one that had better be answered for itself.
pub type Answers = Vec<Option<HandlerResult<'static>>>;

/// One line of a service's table: `(Verb::Get, "/api/movies/:id", One(get_movie))`. A segment
/// that begins with `:` stands for any one segment; a last segment `*` for any rest, or none.
pub type Route<S> = (Verb, &'static str, Handler<S>);

/// Whether a request may be taken, by its head alone.
type Guard = Box<dyn Fn(&Head) -> Result<(), Problem> + Send + Sync>;

/// The slots for one kind of request.
pub struct Bulkhead<S: Send + 'static> {
    prefix: &'static str,
    routes: &'static [Route<S>],
    new_state: Box<dyn Fn() -> S + Send + Sync>,
    guard: Guard,
    slots: usize,
    waiting_max: usize,
    waiting_time: Duration,
    queues: Mutex<Queues<S>>,
    /// How many slots wait for slow clients.
    waits: AtomicUsize,
}

/// A slot that is taken; dropping the lease gives it back.
pub struct Lease<S: Send + 'static> {
    bulkhead: Arc<Bulkhead<S>>,
    queue: usize,
    state: Option<S>,
}

impl<S: Send> Lease<S> {
    /// What the slot owns.
    pub fn state(&mut self) -> &mut S {
        self.state
            .get_or_insert_with(|| (self.bulkhead.new_state)())
    }

    /// Answers a request from the slot: a stream waits for its client here.
    pub fn respond(&self, request: Request, result: HandlerResult<'_>) {
        request.respond_from(result, Some(&*self.bulkhead));
    }

    /// Gives the slot to what waits, or back. For a thread of the server alone: it may work on
    /// other requests before it returns.
    pub fn release(self) {
        let bulkhead = Arc::clone(&self.bulkhead);
        drop(self);
        bulkhead.work();
    }
}

impl<S: Send> Drop for Lease<S> {
    fn drop(&mut self) {
        // What a handler that panicked has left behind may be half done.
        let state = self.state.take().filter(|_| !std::thread::panicking());
        lock(&self.bulkhead.queues).give_back(self.queue, state);
    }
}

impl<S: Send + 'static> Bulkhead<S> {
    /// For `prefix` and all paths below it; the empty prefix takes what no other bulkhead does.
    /// `state` makes what a slot owns, when it is first taken.
    pub fn new(
        prefix: &'static str,
        slots: usize,
        routes: &'static [Route<S>],
        limits: &Limits,
        state: impl Fn() -> S + Send + Sync + 'static,
    ) -> Self {
        let batches = routes.iter().filter_map(batch).map(|batch| batch.limits);
        Self {
            prefix,
            routes,
            new_state: Box::new(state),
            guard: Box::new(|_| Ok(())),
            slots,
            waiting_max: limits.queue,
            waiting_time: limits.queue_time,
            queues: Mutex::new(Queues::new(slots, batches)),
            waits: AtomicUsize::new(0),
        }
    }

    /// Asks `guard` about each request as soon as its head is here.
    #[must_use]
    pub fn with_guard(
        mut self,
        guard: impl Fn(&Head) -> Result<(), Problem> + Send + Sync + 'static,
    ) -> Self {
        self.guard = Box::new(guard);
        self
    }

    /// The queue of a request.
    fn queue_of(&self, request: &Request) -> usize {
        let route = &self.routes[request.matched.route];
        if !batch(route).is_some_and(|batch| (batch.filter)(request)) {
            return 0;
        }
        self.routes[..request.matched.route]
            .iter()
            .filter_map(batch)
            .count()
            + 1
    }

    /// Works until nothing waits that may be taken.
    fn work(self: &Arc<Self>) {
        loop {
            let Some(taken) = lock(&self.queues).take() else {
                return;
            };
            if taken.is_more {
                call_another();
            }
            let Taken {
                queue,
                state,
                batch,
                ..
            } = taken;
            let lease = Lease {
                bulkhead: Arc::clone(self),
                queue,
                state,
            };
            // A request that a panic left unanswered is answered when it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| self.serve(lease, batch)));
        }
    }

    fn serve(&self, mut lease: Lease<S>, mut batch: Vec<Request>) {
        // Overload must not make work for clients that have had their answer.
        batch.retain(Request::begin);
        let Some(first) = batch.first() else { return };
        let handler = &self.routes[first.matched.route].2;
        if let (Handler::Batch(handler), true) = (handler, lease.queue > 0) {
            return self.serve_batch(handler, &mut lease, batch);
        }
        for request in batch {
            match handler {
                Handler::One(answer) | Handler::Batch(Batch { one: answer, .. }) => {
                    self.serve_one(*answer, &mut lease, request);
                }
                Handler::Owned(take) => take(lease.state(), request),
                Handler::Leased(take) => return drop(take(lease, request)),
            }
        }
    }

    fn serve_one(&self, answer: One<S>, lease: &mut Lease<S>, request: Request) {
        waiting(|| {
            let result = answer(lease.state(), &request);
            request.respond_from(result, Some(self));
        });
    }

    fn serve_batch(&self, handler: &Batch<S>, lease: &mut Lease<S>, batch: Vec<Request>) {
        let answers = waiting(|| (handler.answer)(lease.state(), &batch));
        for (request, answer) in batch.into_iter().zip(answers) {
            match answer {
                Some(result) => request.respond_from(result, Some(self)),
                None => lock(&self.queues).push(0, request, now()),
            }
        }
    }
}

fn batch<S: Send>(route: &Route<S>) -> Option<&'static Batch<S>> {
    if let Handler::Batch(batch) = &route.2 {
        Some(batch)
    } else {
        None
    }
}

impl<S: Send + 'static> Submit for Bulkhead<S> {
    fn prefix(&self) -> &'static str {
        self.prefix
    }

    fn admit(&self, head: &mut Head) -> Option<Decided> {
        let routes = self
            .routes
            .iter()
            .map(|(verb, pattern, _)| (*verb, *pattern));
        router::find(routes, head).or_else(|| (self.guard)(head).err().map(Err))
    }

    fn submit(self: Arc<Self>, request: Request) {
        let number = self.queue_of(&request);
        let mut queues = lock(&self.queues);
        if queues.under_way() >= self.slots + self.waiting_max {
            drop(queues);
            let problem = Problem::overloaded("as many requests wait as may wait");
            return request.respond(Err(problem));
        }
        queues.push(number, request, now());
        drop(queues);
        self.work();
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn sweep(&self, now: Instant) {
        let expired = lock(&self.queues).expire(now, self.waiting_time);
        for request in expired {
            request.respond(Err(Problem::overloaded("no slot came free in time")));
        }
    }

    fn drain(self: Arc<Self>) {
        self.work();
    }

    #[cfg(feature = "shuttle")]
    fn is_at_rest(&self) -> bool {
        lock(&self.queues).under_way() + self.waits.load(Ordering::SeqCst) == 0
    }
}

impl<S: Send> Slot for Bulkhead<S> {
    fn begin_wait(&self) -> bool {
        let more = |waits| (waits < self.slots / 2).then_some(waits + 1);
        self.waits
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_ok()
    }

    fn end_wait(&self) {
        self.waits.fetch_sub(1, Ordering::SeqCst);
    }

    fn is_wanted(&self) -> bool {
        lock(&self.queues).is_wanting()
    }
}
