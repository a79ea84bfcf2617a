//! What waits for the slots of a bulkhead, and which slots are free; a value without a lock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

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
    waiting: VecDeque<(Request, Instant)>,
    /// How many slots more may work on its requests.
    slots: usize,
    /// How many requests there are at once, at most.
    requests_max: usize,
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

    pub(super) fn push(&mut self, queue: usize, request: Request, now: Instant) {
        self.all[queue].waiting.push_back((request, now));
    }

    /// Takes a slot and what waits for the longest time, if there is both.
    pub(super) fn take(&mut self) -> Option<(usize, Option<S>, Vec<Request>)> {
        let number = self.longest_waiting()?;
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
        let is_over = |(_, since): &mut (_, Instant)| now >= *since + limit;
        for queue in &mut self.all {
            while let Some((request, _)) = queue.waiting.pop_front_if(is_over) {
                expired.push(request);
            }
        }
        expired
    }

    /// Whether something waits that would have a slot, were one given back that has been answering
    /// one by one, as whoever sends a stream does.
    pub(super) fn are_slots_wanted(&self) -> bool {
        let first = &self.all[0].waiting;
        self.free.is_empty() && (!first.is_empty() || self.longest_waiting().is_some())
    }

    /// The queue whose first request waits for the longest time, of those that may have a slot.
    pub(super) fn longest_waiting(&self) -> Option<usize> {
        let may = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, queue)| queue.slots > 0);
        let first = |queue: &Queue| queue.waiting.front().map(|(_, since)| *since);
        let waiting = may.filter_map(|(number, queue)| Some((first(queue)?, number)));
        waiting.min().map(|(_, number)| number)
    }
}

impl Queue {
    /// Takes the first requests, at least one.
    fn take(&mut self) -> Vec<Request> {
        let mut bytes = 0;
        let fits = |(request, _): &&(Request, Instant)| {
            bytes += request.body.len();
            bytes <= BATCH_BYTES_MAX
        };
        let first = self.waiting.iter().take(self.requests_max);
        let many = first.take_while(fits).count().max(1);
        self.waiting
            .drain(..many)
            .map(|(request, _)| request)
            .collect()
    }
}
