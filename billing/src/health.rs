//! Whether orders are recorded: what the consumer's thread did last, for `/ready` and the metrics. Other threads
//! read this at any time, also while the consumer's thread waits for PostgreSQL.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::http::Dependency;
use common::metrics::Metrics;
use common::process::{self, StartError};
use common::shutdown::Shutdown;

use crate::message::{Message, unix_seconds};
use crate::settle::Fates;
use crate::store::Fate;

/// How long orders may wait to be recorded before the consumer is not ready: a monitor that asks every few
/// seconds learns it within 15.
const RECORDING_LIMIT: Duration = Duration::from_secs(10);

/// How often a thread looks for tries that take long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether the last try to record something succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Recording {
    /// The consumer has tried nothing yet.
    #[default]
    Unknown,
    Works,
    Fails,
}

/// What the consumer's thread did last.
#[derive(Default)]
pub(crate) struct HealthState {
    /// There is a connection to the broker.
    pub(crate) rabbitmq: bool,
    pub(crate) recording: Recording,
    /// When the current try began.
    pub(crate) trying_since: Option<Instant>,
    /// When the first of the held orders arrived; None if an order was recorded after that.
    pub(crate) unrecorded_since: Option<Instant>,
    /// How many messages were delivered and are not acknowledged.
    pub(crate) unacknowledged: usize,
    /// When the oldest unacknowledged message was delivered.
    pub(crate) oldest: Option<Instant>,
    /// How many unacknowledged messages wait to be tried again.
    pub(crate) held: usize,
    /// When an order or a dead letter was committed last, in seconds since 1970; 0 before the first.
    pub(crate) committed_at: u64,
}

impl HealthState {
    /// Notes that a session ended: no message is unacknowledged any more.
    pub(crate) fn interrupted(&mut self, by_database: bool) {
        *self = Self {
            rabbitmq: self.rabbitmq && by_database,
            recording: if by_database {
                Recording::Fails
            } else {
                self.recording
            },
            committed_at: self.committed_at,
            ..Self::default()
        };
    }

    /// Notes the fates of messages, the first of which was taken at `since`; returns whether any of them was
    /// committed.
    pub(crate) fn note(&mut self, fates: &Fates, since: Instant) -> bool {
        let any = |check: fn(&(Message, Fate)) -> bool| fates.iter().any(check);
        let is_new_and_held = |(message, fate): &(Message, Fate)| {
            message.content.is_ok() && message.held.is_none() && matches!(fate, Fate::Held(_))
        };
        if any(|(_, fate)| matches!(fate, Fate::Recorded(_))) {
            self.unrecorded_since = None;
        } else if any(is_new_and_held) {
            self.unrecorded_since.get_or_insert(since);
        }
        let committed = any(|(_, fate)| !matches!(fate, Fate::Held(_)));
        if committed {
            self.committed_at = unix_seconds();
        }
        committed
    }

    fn records(&self) -> bool {
        self.recording == Recording::Works
            && !is_long_ago(self.trying_since)
            && !is_long_ago(self.unrecorded_since)
    }
}

/// The state, shared between threads.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<Mutex<HealthState>>);

impl Health {
    /// Adds the gauges of the state.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let health = Self::default();
        let gauge = |name, help, value: fn(&HealthState) -> u64| {
            let health = health.clone();
            metrics.computed_gauge(name, help, move || value(&health.state()));
        };
        gauge(
            "postgresql_connected",
            "1 while orders can be recorded, as last seen.",
            |state| state.records().into(),
        );
        gauge(
            "rabbitmq_connected",
            "1 while there is a connection to the broker.",
            |state| state.rabbitmq.into(),
        );
        gauge(
            "orders_unacknowledged",
            "Messages that were delivered and are not acknowledged.",
            |state| state.unacknowledged as u64,
        );
        gauge(
            "order_unacknowledged_oldest_seconds",
            "How long ago the oldest unacknowledged message was delivered; 0 if there is none.",
            |state| state.oldest.map_or(0, |at| at.elapsed().as_secs()),
        );
        gauge(
            "orders_held",
            "Messages that wait to be tried again, because PostgreSQL refused them or failed.",
            |state| state.held as u64,
        );
        gauge(
            "last_commit_timestamp_seconds",
            "When something was recorded or put aside last, in seconds since 1970; 0 before the first.",
            |state| state.committed_at,
        );
        health
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, HealthState> {
        // A thread that panicked while it held the lock left no field half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs tries that take long, until the shutdown: the thread that waits for PostgreSQL cannot.
    pub(crate) fn log_slow_tries(&self, shutdown: &Shutdown) -> Result<(), StartError> {
        let (health, shutdown) = (self.clone(), shutdown.clone());
        process::spawn("slow-tries", move || {
            let mut logged = false;
            while !shutdown.wait_at_most(LOOK_EVERY) {
                let state = health.state();
                let (slow, records) = (is_long_ago(state.trying_since), state.records());
                drop(state);
                if slow && !logged {
                    log::warn!("PostgreSQL takes long; orders wait in the queue");
                    logged = true;
                } else if records && logged {
                    log::info!("PostgreSQL has answered");
                    logged = false;
                }
            }
        })
        .map(drop)
    }

    /// The dependencies of the consumer, for `/ready`.
    pub(crate) fn dependencies(&self) -> Vec<Dependency> {
        let state = self.state();
        vec![
            Dependency::new("postgresql", state.records()),
            Dependency::new("rabbitmq", state.rabbitmq),
        ]
    }
}

fn is_long_ago(since: Option<Instant>) -> bool {
    since.is_some_and(|since| since.elapsed() >= RECORDING_LIMIT)
}
