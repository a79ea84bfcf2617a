//! What waits for the slots of a bulkhead, and which slots are free; a value without a lock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::http::message::request::Request;

/// The bodies of a batch of more than one request: they are held several times over while they
/// are answered.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// How large batches are.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// In how many slots at the same time: the fewer, the more is together.
    pub slots: usize,
    /// How many requests there are at once, at most.
    pub requests_max: usize,
}

pub(super) struct Queues<S> {
    /// The first is for what is answered one by one; each batch has one of its own.
    all: Vec<Queue>,
    slots: usize,
    free: Vec<S>,
    busy: usize,
}

struct Queue {
    waiting: VecDeque<(Request, Instant)>,
    limits: BatchLimits,
    /// How many slots work on its requests.
    busy: usize,
}

/// A slot, and what is to be done there.
pub(super) struct Taken<S> {
    pub(super) queue: usize,
    /// None where the state is not made yet, or was lost in a panic.
    pub(super) state: Option<S>,
    pub(super) batch: Vec<Request>,
    /// There is another slot, and more to be done.
    pub(super) is_more: bool,
}

impl<S> Queues<S> {
    pub(super) fn new(slots: usize, batches: impl Iterator<Item = BatchLimits>) -> Self {
        let one_by_one = BatchLimits {
            slots: usize::MAX,
            requests_max: 1,
        };
        let queue = |limits| Queue {
            waiting: VecDeque::new(),
            limits,
            busy: 0,
        };
        let all = [one_by_one].into_iter().chain(batches).map(queue);
        Self {
            all: all.collect(),
            slots,
            free: Vec::new(),
            busy: 0,
        }
    }

    /// How many requests wait or are worked on, where each slot has one.
    pub(super) fn under_way(&self) -> usize {
        self.busy
            + self
                .all
                .iter()
                .map(|queue| queue.waiting.len())
                .sum::<usize>()
    }

    pub(super) fn push(&mut self, queue: usize, request: Request, now: Instant) {
        self.all[queue].waiting.push_back((request, now));
    }

    /// Takes a slot and what waits for the longest time, if there is both.
    pub(super) fn take(&mut self) -> Option<Taken<S>> {
        let number = self.longest_waiting().filter(|_| self.busy < self.slots)?;
        let queue = &mut self.all[number];
        queue.busy += 1;
        self.busy += 1;
        let batch = queue.take();
        let state = self.free.pop();
        let is_more = self.busy < self.slots && self.longest_waiting().is_some();
        Some(Taken {
            queue: number,
            state,
            batch,
            is_more,
        })
    }

    pub(super) fn give_back(&mut self, queue: usize, state: Option<S>) {
        self.busy -= 1;
        self.all[queue].busy -= 1;
        self.free.extend(state);
    }

    /// Takes out what has waited for so long.
    pub(super) fn expire(&mut self, now: Instant, limit: Duration) -> Vec<Request> {
        let mut expired = Vec::new();
        for queue in &mut self.all {
            while let Some(first) = queue
                .waiting
                .pop_front_if(|(_, since)| now >= *since + limit)
            {
                expired.push(first.0);
            }
        }
        expired
    }

    /// Whether a request waits because all slots are taken.
    pub(super) fn is_wanting(&self) -> bool {
        self.busy == self.slots && self.longest_waiting().is_some()
    }

    /// The queue whose first request waits for the longest time, of those that may have a slot.
    fn longest_waiting(&self) -> Option<usize> {
        let may = |queue: &Queue| queue.busy < queue.limits.slots;
        let first = |queue: &Queue| queue.waiting.front().map(|(_, since)| *since);
        let all = self.all.iter().enumerate().filter(|(_, queue)| may(queue));
        let waiting = all.filter_map(|(number, queue)| Some((first(queue)?, number)));
        waiting.min().map(|(_, number)| number)
    }
}

impl Queue {
    /// Takes the first requests, at least one.
    fn take(&mut self) -> Vec<Request> {
        let mut bytes = 0;
        let fit = self.waiting.iter().take_while(|(request, _)| {
            bytes += request.body.len();
            bytes <= BATCH_BYTES_MAX
        });
        let count = fit
            .count()
            .max(1)
            .min(self.limits.requests_max)
            .min(self.waiting.len());
        self.waiting
            .drain(..count)
            .map(|(request, _)| request)
            .collect()
    }
}
