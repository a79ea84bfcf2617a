//! A bulkhead is a number of slots for one kind of request, and the requests that wait for them:
//! when all slots of one bulkhead wait for something slow, the other bulkheads go on. A slot owns the state that
//! handlers use, so a service has as many connections to its database as it has slots, and no pool.
//! The worker that brings a request takes a slot if one is free, and serves requests until none waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::queue::{Queue, SINGLE};
use super::router::{Admission, AnyBulkhead, Verb, find};
use super::workers::{waiting, wake_another};
use crate::http::limits::Limits;
use crate::http::message::head::Head;
use crate::http::message::problem::Problem;
use crate::http::message::request::{Request, StreamSlot};
use crate::http::message::response::{HandlerResult, Response};
use crate::http::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use crate::http::sync::{Mutex, lock, now};

/// How the requests of a route are answered: by plain functions over the state that a slot owns.
pub enum Handler<S: Send + 'static> {
    /// The head alone suffices; the request needs no slot, and so is answered under any load.
    Direct(fn() -> Response<'static>),
    /// Requests are answered one by one.
    One(One<S>),
    /// Requests that wait at the same time are answered together.
    Batch(&'static Batch<S>),
    /// The function owns the request and may answer it later, from any thread. The slot is taken until the
    /// lease is dropped.
    Owned(fn(Lease<S>, Request)),
}

/// Answers one request.
pub type One<S> = for<'a> fn(&'a mut S, &Request) -> HandlerResult<'a>;

/// How requests that wait at the same time are answered together, with fewer round trips to the database than
/// there are requests. A request that comes alone does not wait for others.
pub struct Batch<S> {
    /// How many slots answer batches at the same time: with fewer slots the batches are larger.
    pub slots: usize,
    /// The most requests of a batch.
    pub requests_max: usize,
    /// Whether a request may be in a batch; the others are answered one by one.
    pub filter: fn(&Head) -> bool,
    /// Answers a batch, in the order of its requests.
    pub answer: fn(&mut S, &[Request]) -> Answers,
    /// Answers a request that is in no batch.
    pub one: One<S>,
}

/// The answers to a batch, in the order of its requests. A request whose answer is None is answered singly.
pub type Answers = Vec<Option<HandlerResult<'static>>>;

/// One line of a service's table: `(Verb::Get, "/api/movies/:id", One(get_movie))`. A segment
/// that begins with `:` stands for any one segment; a last segment `*` for any rest, or none.
pub type Route<S> = (Verb, &'static str, Handler<S>);

/// Decides by the head alone whether a request is accepted.
type Guard = Box<dyn Fn(&Head) -> Result<(), Problem> + Send + Sync>;

/// The slots for one kind of request.
pub struct Bulkhead<S: Send + 'static> {
    prefix: &'static str,
    routes: &'static [Route<S>],
    new_state: Box<dyn Fn() -> S + Send + Sync>,
    guard: Guard,
    slots: usize,
    limits: Limits,
    queue: Mutex<Queue<S>>,
    /// How many slots wait for slow clients.
    waits: AtomicUsize,
}

/// A slot that is taken; dropping the lease gives the slot back.
pub struct Lease<S: Send + 'static> {
    bulkhead: Arc<Bulkhead<S>>,
    /// The kind of the requests for which the slot was taken.
    kind: usize,
    state: Option<S>,
}

impl<S: Send> Lease<S> {
    /// The state that the slot owns.
    pub fn state(&mut self) -> &mut S {
        self.state
            .get_or_insert_with(|| (self.bulkhead.new_state)())
    }

    /// Answers a request from the slot; a stream waits here for its client.
    pub fn respond(&self, request: Request, result: HandlerResult<'_>) {
        request.respond_from(result, Some(&*self.bulkhead));
    }
}

impl<S: Send> Drop for Lease<S> {
    fn drop(&mut self) {
        // A handler that panicked may have left the state inconsistent.
        let state = self.state.take().filter(|_| !std::thread::panicking());
        lock(&self.bulkhead.queue).give_back(self.kind, state);
    }
}

impl<S: Send + 'static> Bulkhead<S> {
    /// A bulkhead for `prefix` and all paths below it; the empty prefix takes the paths of no other bulkhead.
    /// `state` makes the state of a slot when the slot is first taken.
    pub fn new(
        prefix: &'static str,
        slots: usize,
        routes: &'static [Route<S>],
        limits: &Limits,
        state: impl Fn() -> S + Send + Sync + 'static,
    ) -> Self {
        let limits_of = |(_, _, handler): &Route<S>| match handler {
            Handler::Batch(batch) => (batch.slots, batch.requests_max),
            _ => (0, 0),
        };
        Self {
            prefix,
            routes,
            new_state: Box::new(state),
            guard: Box::new(|_| Ok(())),
            slots,
            limits: limits.clone(),
            queue: Mutex::new(Queue::new(slots, routes.iter().map(limits_of))),
            waits: AtomicUsize::new(0),
        }
    }

    /// Asks `guard` about each request as soon as its head has arrived.
    #[must_use]
    pub fn with_guard(
        mut self,
        guard: impl Fn(&Head) -> Result<(), Problem> + Send + Sync + 'static,
    ) -> Self {
        self.guard = Box::new(guard);
        self
    }

    /// Whether no slot is taken and nothing waits.
    #[cfg(all(test, feature = "shuttle"))]
    pub(crate) fn is_at_rest(&self) -> bool {
        let queue = lock(&self.queue);
        let at_work = self.slots - queue.free.len() + self.waits.load(SeqCst);
        at_work + queue.waiting() == 0
    }

    /// Answers a batch or a single request.
    fn serve(&self, mut lease: Lease<S>, mut requests: Vec<Request>) {
        // Requests that the sweeper has answered are dropped, so that overload makes no useless work.
        requests.retain(Request::begin);
        let Some(first) = requests.first() else {
            return;
        };
        let handler = &self.routes[first.matched.route].2;
        if let (Handler::Batch(batch), true) = (handler, lease.kind != SINGLE) {
            let answers = waiting(|| (batch.answer)(lease.state(), &requests));
            for (request, answer) in requests.into_iter().zip(answers) {
                match answer {
                    Some(result) => request.respond_from(result, Some(self)),
                    None => lock(&self.queue).push(SINGLE, request, now()),
                }
            }
        } else if let Some(request) = requests.pop() {
            match handler {
                Handler::Direct(_) => unreachable!("its answer was decided with the head"),
                Handler::One(answer) | Handler::Batch(Batch { one: answer, .. }) => waiting(|| {
                    let result = answer(lease.state(), &request);
                    request.respond_from(result, Some(self));
                }),
                Handler::Owned(take) => take(lease, request),
            }
        }
    }
}

impl<S: Send + 'static> AnyBulkhead for Bulkhead<S> {
    fn prefix(&self) -> &'static str {
        self.prefix
    }

    fn admit(&self, head: &mut Head) -> Admission {
        if let Some(response) = find(self.routes, head)? {
            return Ok(Some(response));
        }
        (self.guard)(head)?;
        Ok(match self.routes[head.matched.route].2 {
            Handler::Direct(answer) => Some(answer()),
            _ => None,
        })
    }

    fn submit(self: Arc<Self>, request: Request) {
        let route = request.matched.route;
        let kind = match &self.routes[route].2 {
            Handler::Batch(batch) if (batch.filter)(&request) => route + 1,
            _ => SINGLE,
        };
        let mut queue = lock(&self.queue);
        queue.push(kind, request, now());
        let is_full = queue.waiting() > queue.free.len() + self.limits.queue;
        let last = is_full.then(|| queue.take_last()).flatten();
        drop(queue);
        if let Some(last) = last {
            last.respond(Err(Problem::overloaded(
                "as many requests wait as may wait",
            )));
        }
        self.work();
    }

    fn work(self: Arc<Self>) {
        loop {
            let mut queue = lock(&self.queue);
            let Some((kind, state, requests)) = queue.take() else {
                return;
            };
            let is_more = queue.has_work();
            drop(queue);
            if is_more {
                wake_another();
            }
            let lease = Lease {
                bulkhead: Arc::clone(&self),
                kind,
                state,
            };
            // A request that is dropped by a panic is answered 500.
            let _ = catch_unwind(AssertUnwindSafe(|| self.serve(lease, requests)));
        }
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn sweep(&self, now: Instant) {
        let expired = lock(&self.queue).expire(now, self.limits.queue_time);
        for request in expired {
            request.respond(Err(Problem::overloaded("no slot came free in time")));
        }
    }
}

impl<S: Send> StreamSlot for Bulkhead<S> {
    fn begin_wait(&self) -> bool {
        let more = |waits| (waits < self.slots / 2).then_some(waits + 1);
        self.waits.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    fn end_wait(&self) {
        self.waits.fetch_sub(1, SeqCst);
    }

    fn is_wanted(&self) -> bool {
        lock(&self.queue).lacks_slots()
    }
}
