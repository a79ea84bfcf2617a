//! The metrics and the log lines about settled messages.

use std::time::{Duration, Instant};

use common::log as logging;
use common::metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Metrics};

use crate::message::{Message, REASONS};
use crate::settle::Settled;
use crate::store::Fate;

/// How many lines a second are written about messages other than recorded orders, so that nobody can fill the
/// disk with unreadable messages.
const ODD_MAX: usize = 100;

/// Counts the messages, and logs a line for each order, with the `message_id` that the gateway's line about it has,
/// and lines for some of the other messages.
pub(crate) struct MessageReport {
    consumed: IntCounter,
    recorded: IntCounter,
    duplicate: IntCounter,
    dead: IntCounterVec,
    batch_orders: Histogram,
    lag: IntGauge,
    /// How many other messages were settled in this second, with or without a line.
    odd: usize,
    second: Instant,
}

impl MessageReport {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let dead = metrics.counters(
            "orders_dead_total",
            "Messages that became dead letters, by reason.",
            "reason",
        );
        for word in REASONS {
            dead.with_label_values(&[word]);
        }
        Self {
            dead,
            consumed: metrics.counter(
                "messages_consumed_total",
                "Messages delivered, redelivered ones included.",
            ),
            recorded: metrics.counter(
                "orders_recorded_total",
                "Orders recorded for the first time.",
            ),
            duplicate: metrics.counter(
                "orders_duplicate_total",
                "Orders that were recorded before.",
            ),
            batch_orders: metrics.sizes("order_batch_size", "Orders settled together."),
            lag: metrics.gauge(
                "order_lag_seconds",
                "From the timestamp of the oldest order of the latest commit to that commit.",
            ),
            odd: 0,
            second: Instant::now(),
        }
    }

    /// Counts delivered messages.
    pub(crate) fn took(&self, messages: usize) {
        self.consumed.inc_by(messages as u64);
    }

    /// Notes messages that were settled or held; `since` is when the first of them was taken.
    pub(crate) fn note(&mut self, settled: &Settled, since: Instant) {
        let _buffer = logging::buffer();
        let ms = logging::logged_millis(since.elapsed());
        let (mut orders, mut lag): (u32, _) = (0, 0);
        for (message, fate) in settled {
            let (order_id, text) = match fate {
                Fate::Recorded(order_id) => {
                    self.recorded.inc();
                    (Some(*order_id), "order recorded")
                }
                Fate::Duplicate => {
                    self.duplicate.inc();
                    (None, "order already recorded")
                }
                Fate::Dead { reason, new } => {
                    self.dead
                        .with_label_values(&[reason.word])
                        .inc_by((*new).into());
                    let text = "message put aside as a dead letter";
                    self.note_odd(message, Some(reason.word), &reason.text, text);
                    continue;
                }
                Fate::Held(_) if message.held.is_some() => continue,
                Fate::Held(cause) => {
                    self.note_odd(message, None, cause, "message held; it is tried again");
                    continue;
                }
            };
            orders += 1;
            lag = lag.max(message.age().unwrap_or(0));
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
        if orders > 0 {
            self.batch_orders.observe(f64::from(orders));
            self.lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }

    fn note_odd(&mut self, message: &Message, reason: Option<&str>, cause: &str, text: &str) {
        self.odd += 1;
        if self.odd > ODD_MAX {
            return;
        }
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

    /// Must be called once a second or more often.
    pub(crate) fn tick(&mut self) {
        if self.second.elapsed() < Duration::from_secs(1) {
            return;
        }
        if self.odd > ODD_MAX {
            let unlogged = self.odd - ODD_MAX;
            log::warn!(target: "order", count = unlogged; "more messages put aside or held");
        }
        (self.odd, self.second) = (0, Instant::now());
    }
}
