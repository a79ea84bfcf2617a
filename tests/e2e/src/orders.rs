//! Clients that place orders.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::Client;

use crate::stage::{Shared, lock};

/// How long a client rests after an order that was not confirmed.
pub(crate) const REST: Duration = Duration::from_millis(20);

/// How long the platform may take to be itself again after a fault.
pub(crate) const RECOVERY_LIMIT: Duration = Duration::from_mins(2);

/// One client.
pub(crate) struct Orders<'s> {
    name: String,
    shared: &'s Shared,
    client: Client,
    placed: usize,
}

impl<'s> Orders<'s> {
    /// No two have one name.
    pub(crate) fn new(name: String, shared: &'s Shared) -> Self {
        Self {
            name,
            client: Client::new(*lock(&shared.door)),
            shared,
            placed: 0,
        }
    }

    /// One after the other. Of those that were not confirmed every other one is tried again,
    /// with its id, and the rest is left: nobody knows whether they will be recorded. Of those
    /// that were confirmed some are repeated.
    pub(crate) fn place_until(mut self, stopped: &AtomicBool) {
        while !stopped.load(Ordering::Relaxed) {
            let id = self.next_id();
            let place = self.shared.note(&id, false);
            let mut answered = self.place(&id, place);
            while !answered && self.placed.is_multiple_of(2) && !stopped.load(Ordering::Relaxed) {
                thread::sleep(REST);
                answered = self.place(&id, place);
            }
            if !answered {
                thread::sleep(REST);
            } else if fastrand::u8(..8) == 0 {
                self.place(&id, place);
            }
        }
    }

    /// A new one, until it is confirmed; its id.
    pub(crate) fn place_surely(&mut self) -> String {
        let id = self.next_id();
        let place = self.shared.note(&id, false);
        let begun = Instant::now();
        while !self.place(&id, place) {
            assert!(begun.elapsed() < RECOVERY_LIMIT, "no order is confirmed");
            thread::sleep(REST);
        }
        id
    }

    /// A new movie, until it is created.
    pub(crate) fn create_movie_surely(&mut self) {
        let begun = Instant::now();
        let movie = json!({ "title": "probe", "description": "probe" }).to_string();
        while self.post("/api/movies", &[], &movie) != Some(201) {
            assert!(begun.elapsed() < RECOVERY_LIMIT, "no movie is created");
            thread::sleep(REST);
        }
    }

    fn next_id(&mut self) -> String {
        self.placed += 1;
        format!("{}-{}", self.name, self.placed)
    }

    /// Whether it was answered 200.
    fn place(&mut self, id: &str, place: usize) -> bool {
        let traffic = self.shared.traffic.read();
        let _traffic = traffic.unwrap_or_else(PoisonError::into_inner);
        let order = json!({ "user_id": self.name, "number_of_items": 1, "total_amount": "9.90" });
        let key = [("idempotency-key", id)];
        let answered = self.post("/api/billing", &key, &order.to_string()) == Some(200);
        self.shared.note_outcome(place, answered);
        answered
    }

    /// The status of the answer; None where there is none.
    fn post(&mut self, path: &str, headers: &[(&str, &str)], json: &str) -> Option<u16> {
        let address = *lock(&self.shared.door);
        if self.client.address() != address {
            self.client = Client::new(address);
        }
        let headers = [&[("content-type", "application/json")], headers].concat();
        let reply = self.client.try_send("POST", path, &headers, Some(json));
        Some(reply.ok()?.status)
    }
}
