//! What waits for the slots of a bulkhead, and which slots are free; a value without a lock. Clients
//! take turns: the first requests of all come before anybody's second one, so whoever asks for much
//! waits for it alone.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::http::message::head::network;
use crate::http::message::request::Request;

/// The bodies of a batch of more than one request: they are held several times over while they
/// are answered.
const BATCH_BYTES_MAX: usize = 256 * 1024;

pub(super) struct Queues<S> {
    /// The first is for what is answered one by one; each route has one behind it, for batches.
    all: Vec<Queue>,
    /// The state of each free slot; None where it is not made yet, or was lost in a panic.
    pub(super) free: Vec<Option<S>>,
}

struct Queue {
    /// In the order of their turns.
    waiting: VecDeque<QueuedRequest>,
    /// How many slots more may work on its requests.
    slots: usize,
    /// How many requests there are at once, at most.
    requests_max: usize,
}

struct QueuedRequest {
    /// One more than that of its client's request before it.
    turn: u64,
    since: Instant,
    client: IpAddr,
    request: Request,
}

impl<S> Queues<S> {
    /// `batches` has the slots of each route's queue, and the most requests of a batch.
    pub(super) fn new(slots: usize, batches: impl Iterator<Item = (usize, usize)>) -> Self {
        let queue = |(slots, requests_max)| Queue {
            waiting: VecDeque::new(),
            slots,
            requests_max,
        };
        Self {
            all: [(slots, 1)].into_iter().chain(batches).map(queue).collect(),
            free: (0..slots).map(|_| None).collect(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.all.iter().map(|queue| queue.waiting.len()).sum()
    }

    /// The first request of a client has the turn that has come.
    pub(super) fn push(&mut self, queue: usize, request: Request, since: Instant) {
        let client = network(request.client);
        let all = || self.all.iter().flat_map(|queue| &queue.waiting);
        let of_client = all().filter(|waiting| waiting.client == client);
        let next = of_client.map(|waiting| waiting.turn + 1).max();
        let turn = next.or_else(|| all().map(|waiting| waiting.turn).min());
        let turn = turn.unwrap_or(0);
        let waiting = &mut self.all[queue].waiting;
        let place = waiting.partition_point(|other| other.turn <= turn);
        let new = QueuedRequest {
            turn,
            since,
            client,
            request,
        };
        waiting.insert(place, new);
    }

    /// Takes out what has the last turn: a request of whoever has the most waiting.
    pub(super) fn take_last(&mut self) -> Option<Request> {
        let last = |queue: &&mut Queue| queue.waiting.back().map(QueuedRequest::order);
        let queue = self.all.iter_mut().max_by_key(last)?;
        Some(queue.waiting.pop_back()?.request)
    }

    /// Takes a slot and what has the first turn, if there is both.
    pub(super) fn take(&mut self) -> Option<(usize, Option<S>, Vec<Request>)> {
        let number = self.first_in_turn()?;
        let state = self.free.pop()?;
        self.all[number].slots -= 1;
        Some((number, state, self.all[number].take()))
    }

    pub(super) fn give_back(&mut self, queue: usize, state: Option<S>) {
        self.free.push(state);
        self.all[queue].slots += 1;
    }

    /// Takes out what has waited for so long.
    pub(super) fn expire(&mut self, now: Instant, limit: Duration) -> Vec<Request> {
        let mut expired = Vec::new();
        for queue in &mut self.all {
            let all = std::mem::take(&mut queue.waiting).into_iter();
            let over: VecDeque<_>;
            (over, queue.waiting) = all.partition(|waiting| now >= waiting.since + limit);
            expired.extend(over.into_iter().map(|waiting| waiting.request));
        }
        expired
    }

    /// Whether something waits that would have a slot, were one given back that has been answering
    /// one by one, as whoever sends a stream does.
    pub(super) fn are_slots_wanted(&self) -> bool {
        let first = &self.all[0].waiting;
        self.free.is_empty() && (!first.is_empty() || self.first_in_turn().is_some())
    }

    /// The queue whose first request has the first turn, of those that may have a slot.
    pub(super) fn first_in_turn(&self) -> Option<usize> {
        let numbered = self.all.iter().enumerate();
        let may = numbered.filter(|(_, queue)| queue.slots > 0);
        let first =
            may.filter_map(|(number, queue)| Some((queue.waiting.front()?.order(), number)));
        first.min().map(|(_, number)| number)
    }
}

impl QueuedRequest {
    fn order(&self) -> (u64, Instant) {
        (self.turn, self.since)
    }
}

impl Queue {
    /// Takes the first requests, at least one.
    fn take(&mut self) -> Vec<Request> {
        let mut bytes = 0;
        let fits = |waiting: &&QueuedRequest| {
            bytes += waiting.request.body.len();
            bytes <= BATCH_BYTES_MAX
        };
        let first = self.waiting.iter().take(self.requests_max);
        let many = first.take_while(fits).count().max(1);
        let taken = self.waiting.drain(..many);
        taken.map(|waiting| waiting.request).collect()
    }
}
