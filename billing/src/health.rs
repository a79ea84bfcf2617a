//! Whether orders are being recorded: what the consumer's thread did last, for `/ready` and the
//! metrics. They read it at any time, also while that thread waits for PostgreSQL.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::http::Dependency;
use common::metrics::Metrics;
use common::shutdown::Shutdown;

use crate::message::Message;
use crate::settle::Settled;
use crate::store::Fate;

/// How long orders may wait to be recorded before the consumer is not ready. Whoever asks every few
/// seconds hears of it within 15.
const RECORDING_LIMIT: Duration = Duration::from_secs(10);

/// How often it is looked whether the log is to hear of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether the last try to record something succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Recording {
    /// Nothing was tried yet.
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
    /// When the try that is under way began.
    pub(crate) trying_since: Option<Instant>,
    /// When the first order came that is held, where none was recorded after it.
    pub(crate) unrecorded_since: Option<Instant>,
    /// Messages that were delivered and are not acknowledged.
    pub(crate) unacknowledged: usize,
    /// When the oldest of them came.
    pub(crate) oldest: Option<Instant>,
    /// Those of them that wait for somebody else while others are recorded.
    pub(crate) held: usize,
    /// When something was recorded or put aside last.
    pub(crate) committed_at: Option<SystemTime>,
}

impl HealthState {
    /// A session ended, so no message is unacknowledged.
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

    /// Takes up what became of messages of which the first was taken then.
    pub(crate) fn note(&mut self, settled: &Settled, since: Instant) {
        if settled
            .iter()
            .any(|(_, fate)| matches!(fate, Fate::Recorded(_)))
        {
            self.unrecorded_since = None;
            return;
        }
        let new_and_held = |(message, fate): &(Message, Fate)| {
            message.content.is_ok() && message.held.is_none() && matches!(fate, Fate::Held(_))
        };
        if settled.iter().any(new_and_held) {
            self.unrecorded_since.get_or_insert(since);
        }
    }

    fn records(&self) -> bool {
        self.recording == Recording::Works
            && !is_long_ago(self.trying_since)
            && !is_long_ago(self.unrecorded_since)
    }
}

/// The state, shared.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<Mutex<HealthState>>);

impl Health {
    /// With its gauges.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let health = Self::default();
        let gauge = |name, help, value: fn(&HealthState) -> i64| {
            let health = health.clone();
            metrics.computed_gauge(name, help, move || value(&health.state()));
        };
        gauge(
            "postgresql_connected",
            "1 while orders can be recorded, as last seen.",
            |state| i64::from(state.records()),
        );
        gauge(
            "rabbitmq_connected",
            "1 while there is a connection to the broker.",
            |state| i64::from(state.rabbitmq),
        );
        gauge(
            "orders_unacknowledged",
            "Messages that were delivered and are not acknowledged.",
            |state| i64::try_from(state.unacknowledged).unwrap_or(i64::MAX),
        );
        gauge(
            "order_unacknowledged_oldest_seconds",
            "How long ago the oldest unacknowledged message was delivered; 0 if there is none.",
            |state| seconds(state.oldest.map(|at| at.elapsed())),
        );
        gauge(
            "orders_held",
            "Messages that wait for a lock or for a mend of the database while others are recorded.",
            |state| i64::try_from(state.held).unwrap_or(i64::MAX),
        );
        gauge(
            "last_commit_timestamp_seconds",
            "When something was recorded or put aside last, in seconds since 1970; 0 before the first.",
            |state| {
                seconds(
                    state
                        .committed_at
                        .and_then(|at| at.duration_since(UNIX_EPOCH).ok()),
                )
            },
        );
        health
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, HealthState> {
        // Whoever panicked while holding it left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the log of tries that last, until the shutdown: the thread that waits for PostgreSQL cannot.
    pub(crate) fn tell_of_slow_tries(&self, shutdown: &Shutdown) -> io::Result<()> {
        let (health, shutdown) = (self.clone(), shutdown.clone());
        thread::Builder::new()
            .name("slow-tries".to_owned())
            .spawn(move || {
                let mut told = false;
                while !shutdown.wait_at_most(LOOK_EVERY) {
                    let state = health.state();
                    let (slow, records) = (is_long_ago(state.trying_since), state.records());
                    drop(state);
                    if slow && !told {
                        log::warn!("PostgreSQL takes long; orders wait in the queue");
                        told = true;
                    } else if records && told {
                        log::info!("PostgreSQL has answered");
                        told = false;
                    }
                }
            })?;
        Ok(())
    }

    /// For `/ready`.
    pub(crate) fn dependencies(&self) -> Vec<Dependency> {
        let state = self.state();
        vec![
            Dependency {
                name: "postgresql",
                state: state.records().into(),
            },
            Dependency {
                name: "rabbitmq",
                state: state.rabbitmq.into(),
            },
        ]
    }
}

fn is_long_ago(since: Option<Instant>) -> bool {
    since.is_some_and(|since| since.elapsed() >= RECORDING_LIMIT)
}

fn seconds(duration: Option<Duration>) -> i64 {
    duration.map_or(0, |duration| {
        i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
    })
}
