//! Clients that place orders.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::Client;

use crate::platform_processes::{DrillState, lock};

/// How long a client waits after an order that was not confirmed.
pub(crate) const REST: Duration = Duration::from_millis(20);

/// How long the platform may take to recover from a fault.
pub(crate) const RECOVERY_LIMIT: Duration = Duration::from_mins(2);

/// One client.
pub(crate) struct OrderClient<'s> {
    name: String,
    shared: &'s DrillState,
    client: Client,
    placed: usize,
}

impl<'s> OrderClient<'s> {
    /// Each client needs a name of its own.
    pub(crate) fn new(name: String, shared: &'s DrillState) -> Self {
        Self {
            name,
            client: Client::new(*lock(&shared.gateway_address)),
            shared,
            placed: 0,
        }
    }

    /// Places one order after the other. Every other order that was not confirmed is sent again with its id; the
    /// others may be recorded or not. Some confirmed orders are repeated.
    pub(crate) fn place_until(mut self, stopped: &AtomicBool) {
        while !stopped.load(Ordering::Relaxed) {
            let id = self.next_id();
            let index = self.shared.note(&id, false);
            let mut answered = self.place(&id, index);
            while !answered && self.placed.is_multiple_of(2) && !stopped.load(Ordering::Relaxed) {
                thread::sleep(REST);
                answered = self.place(&id, index);
            }
            if !answered {
                thread::sleep(REST);
            } else if fastrand::u8(..8) == 0 {
                self.place(&id, index);
            }
        }
    }

    /// Places a new order until it is confirmed; returns its id.
    pub(crate) fn place_surely(&mut self) -> String {
        let id = self.next_id();
        let index = self.shared.note(&id, false);
        let begun = Instant::now();
        while !self.place(&id, index) {
            assert!(begun.elapsed() < RECOVERY_LIMIT, "no order is confirmed");
            thread::sleep(REST);
        }
        id
    }

    /// Sends a new movie until it is created.
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

    /// Places an order; returns whether it was answered 200.
    fn place(&mut self, id: &str, index: usize) -> bool {
        let traffic = self.shared.traffic.read();
        let _traffic = traffic.unwrap_or_else(PoisonError::into_inner);
        let order = json!({ "user_id": self.name, "number_of_items": 1, "total_amount": "9.90" });
        let key = [("idempotency-key", id)];
        let answered = self.post("/api/billing", &key, &order.to_string()) == Some(200);
        self.shared.note_outcome(index, answered);
        answered
    }

    /// The status of the answer; None if there is none.
    fn post(&mut self, path: &str, headers: &[(&str, &str)], json: &str) -> Option<u16> {
        let address = *lock(&self.shared.gateway_address);
        if self.client.address() != address {
            self.client = Client::new(address);
        }
        let headers = [&[("content-type", "application/json")], headers].concat();
        let reply = self.client.try_send("POST", path, &headers, Some(json));
        Some(reply.ok()?.status)
    }
}
