//! What the metrics and the log tell of the messages that were settled.

use std::time::{Duration, Instant};

use common::log as logging;
use common::metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Metrics};

use crate::message::{Message, REASONS};
use crate::settle::Settled;
use crate::store::Fate;

/// Counts and lines of the log.
pub(crate) struct Report {
    counts: Counts,
    lines: Lines,
}

impl Report {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            counts: Counts::new(metrics),
            lines: Lines::default(),
        }
    }

    /// So many messages came off the queue.
    pub(crate) fn took(&self, messages: usize) {
        self.counts.consumed.inc_by(messages as u64);
    }

    /// These were settled or held; `since` is when the first of them was taken.
    pub(crate) fn note(&mut self, settled: &Settled, since: Instant) {
        self.counts.note(settled);
        self.lines.note(settled, since);
    }

    /// To be called once a second or more often.
    pub(crate) fn tick(&mut self) {
        self.lines.begin_second_when_due();
    }
}

struct Counts {
    consumed: IntCounter,
    recorded: IntCounter,
    duplicate: IntCounter,
    dead: IntCounterVec,
    batch_orders: Histogram,
    lag: IntGauge,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help);
        let dead = metrics.counters(
            "orders_dead_total",
            "Messages that became dead letters, by what was wrong.",
            "reason",
        );
        for word in REASONS {
            dead.with_label_values(&[word]);
        }
        Self {
            dead,
            consumed: counter(
                "messages_consumed_total",
                "Messages taken off the queue, those that came again included.",
            ),
            recorded: counter(
                "orders_recorded_total",
                "Orders recorded for the first time.",
            ),
            duplicate: counter(
                "orders_duplicate_total",
                "Orders that were recorded before.",
            ),
            batch_orders: metrics.sizes("order_batch_size", "Orders settled together."),
            lag: metrics.gauge(
                "order_lag_seconds",
                "From the timestamp of the oldest order of the latest commit to that commit.",
            ),
        }
    }

    fn note(&self, settled: &Settled) {
        let mut orders: u32 = 0;
        let mut lag = 0;
        for (message, fate) in settled {
            match fate {
                Fate::Recorded(_) => self.recorded.inc(),
                Fate::Duplicate => self.duplicate.inc(),
                Fate::Dead { reason, new: true } => {
                    self.dead.with_label_values(&[reason.word]).inc();
                }
                Fate::Dead { .. } | Fate::Held(_) => {}
            }
            if let Fate::Recorded(_) | Fate::Duplicate = fate {
                orders += 1;
                lag = lag.max(message.age().unwrap_or(0));
            }
        }
        if orders > 0 {
            self.batch_orders.observe(f64::from(orders));
            self.lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }
}

/// Lines of the log about single messages: one for each order, the end of what the gateway's line
/// with the same `message_id` began, and of all others no more than [`Lines::ODD_MAX`] a second, so
/// that nobody fills a disk by publishing nonsense.
struct Lines {
    odd: usize,
    untold: usize,
    second: Instant,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            odd: 0,
            untold: 0,
            second: Instant::now(),
        }
    }
}

impl Lines {
    const ODD_MAX: usize = 100;

    fn note(&mut self, settled: &Settled, since: Instant) {
        let _gathering = logging::gather();
        let ms = logging::logged_millis(since.elapsed());
        for (message, fate) in settled {
            let (order_id, text) = match fate {
                Fate::Recorded(order_id) => (Some(*order_id), "order recorded"),
                Fate::Duplicate => (None, "order already recorded"),
                Fate::Dead { reason, .. } => {
                    let text = "message put aside as a dead letter";
                    self.note_odd(message, Some(reason.word), &reason.text, text);
                    continue;
                }
                Fate::Held(_) if message.held => continue,
                Fate::Held(cause) => {
                    let text = "message held; it is tried again every second";
                    self.note_odd(message, None, cause, text);
                    continue;
                }
            };
            log::info!(
                target: "order",
                message_id = message.id.as_deref(),
                request_id = message.request_id.as_deref(),
                order_id = order_id,
                age_seconds = message.age(),
                ms = ms;
                "{text}"
            );
        }
    }

    fn note_odd(&mut self, message: &Message, reason: Option<&str>, cause: &str, text: &str) {
        if self.odd == Self::ODD_MAX {
            self.untold += 1;
            return;
        }
        self.odd += 1;
        log::warn!(
            target: "order",
            message_id = message.id.as_deref(),
            request_id = message.request_id.as_deref(),
            age_seconds = message.age(),
            reason = reason,
            cause = cause;
            "{text}"
        );
    }

    fn begin_second_when_due(&mut self) {
        if self.second.elapsed() < Duration::from_secs(1) {
            return;
        }
        if self.untold > 0 {
            log::warn!(target: "order", count = self.untold; "more messages put aside or held");
        }
        *self = Self::default();
    }
}
