//! The queue and the free slots of a bulkhead: a value without a lock. Clients take turns: the first
//! requests of all clients come before anybody's second one, so whoever asks for much waits for it alone.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::http::message::head::network;
use crate::http::message::request::Request;

/// The most bytes that the bodies of a batch of more than one request may have: they are in memory several
/// times while the batch is answered.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// The number of the requests that are answered one by one, each in any free slot.
pub(super) const SINGLE: usize = 0;

pub(super) struct Queue<S> {
    /// The requests that wait, in the order of their turns.
    waiting: VecDeque<QueuedRequest>,
    /// The kinds of requests: [`SINGLE`], and behind it one for the batches of each route.
    kinds: Vec<Kind>,
    /// The state of each free slot; None if it does not exist yet, or was lost in a panic.
    pub(super) free: Vec<Option<S>>,
}

/// Requests that may be answered together.
struct Kind {
    /// How many more slots may work on them.
    slots: usize,
    /// The most requests that a slot takes at once.
    requests_max: usize,
}

struct QueuedRequest {
    /// One more than the turn of its client's last request before it.
    turn: u64,
    since: Instant,
    client: IpAddr,
    kind: usize,
    request: Request,
}

impl<S> Queue<S> {
    /// `batches` has, for each route, the slots for its batches and the most requests of a batch.
    pub(super) fn new(slots: usize, batches: impl Iterator<Item = (usize, usize)>) -> Self {
        let kinds = [(usize::MAX, 1)].into_iter().chain(batches);
        let kind = |(slots, requests_max)| Kind {
            slots,
            requests_max,
        };
        Self {
            waiting: VecDeque::new(),
            kinds: kinds.map(kind).collect(),
            free: (0..slots).map(|_| None).collect(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Queues a request; a client that has none waiting has its turn at once.
    pub(super) fn push(&mut self, kind: usize, request: Request, since: Instant) {
        let client = network(request.client);
        let mut latest_first = self.waiting.iter().rev();
        let turn = match latest_first.find(|waiting| waiting.client == client) {
            Some(before) => before.turn + 1,
            None => self.waiting.front().map_or(0, |first| first.turn),
        };
        let place = self.waiting.partition_point(|other| other.turn <= turn);
        let new = QueuedRequest {
            turn,
            since,
            client,
            kind,
            request,
        };
        self.waiting.insert(place, new);
    }

    /// Takes out the request with the last turn, whose client has the most requests waiting.
    pub(super) fn take_last(&mut self) -> Option<Request> {
        self.waiting.pop_back().map(|waiting| waiting.request)
    }

    /// Takes a free slot, and for it the first request that may have one, together with others of its kind.
    pub(super) fn take(&mut self) -> Option<(usize, Option<S>, Vec<Request>)> {
        if self.free.is_empty() {
            return None;
        }
        let mut at = self.first()?;
        let state = self.free.pop()?;
        let number = self.waiting[at].kind;
        let kind = &mut self.kinds[number];
        kind.slots -= 1;
        let mut requests = Vec::with_capacity(kind.requests_max.min(self.waiting.len()));
        let mut bytes = 0;
        while requests.len() < kind.requests_max
            && let Some(next) = self.waiting.get(at)
        {
            if next.kind != number {
                at += 1;
                continue;
            }
            bytes += next.request.body.len();
            if bytes > BATCH_BYTES_MAX && !requests.is_empty() {
                break;
            }
            requests.extend(self.waiting.remove(at).map(|next| next.request));
        }
        Some((number, state, requests))
    }

    pub(super) fn give_back(&mut self, kind: usize, state: Option<S>) {
        self.free.push(state);
        self.kinds[kind].slots += 1;
    }

    /// Takes out the requests that have waited for `limit`.
    pub(super) fn expire(&mut self, now: Instant, limit: Duration) -> Vec<Request> {
        let all = std::mem::take(&mut self.waiting).into_iter();
        let over: VecDeque<_>;
        (over, self.waiting) = all.partition(|waiting| now >= waiting.since + limit);
        over.into_iter().map(|waiting| waiting.request).collect()
    }

    /// Whether a slot is free for a request that waits.
    pub(super) fn has_work(&self) -> bool {
        !self.free.is_empty() && self.first().is_some()
    }

    /// Whether a request waits only because all slots are taken.
    pub(super) fn lacks_slots(&self) -> bool {
        self.free.is_empty() && self.first().is_some()
    }

    /// The place of the first request whose kind may have another slot.
    fn first(&self) -> Option<usize> {
        let may = |waiting: &QueuedRequest| self.kinds[waiting.kind].slots > 0;
        self.waiting.iter().position(may)
    }
}
