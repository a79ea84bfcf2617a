//! The metrics and the log lines about settled messages.

use std::time::Instant;

use common::log as logging;
use common::metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Metrics};

use crate::message::{Message, REASONS};
use crate::settle::Fates;
use crate::store::Fate;

/// How many lines a second are written about messages that were put aside or held, so that a flood of unreadable
/// messages does not fill the disk.
const UNRECORDED_LINES_MAX: usize = 100;

/// Counts messages and logs them: a line for each order, with the `message_id` that the gateway's line about it has,
/// and a limited number of lines for the others.
pub(crate) struct MessageReport {
    consumed: IntCounter,
    recorded: IntCounter,
    duplicate: IntCounter,
    dead: IntCounterVec,
    batch_orders: Histogram,
    lag: IntGauge,
    /// How many messages were put aside or held in the current second, with or without a line.
    unrecorded: usize,
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
            unrecorded: 0,
        }
    }

    /// Counts delivered messages.
    pub(crate) fn note_delivered(&self, messages: usize) {
        self.consumed.inc_by(messages as u64);
    }

    /// Counts and logs messages that were settled or held; `since` is when the first of them was taken.
    pub(crate) fn note(&mut self, fates: &Fates, since: Instant) {
        let _buffer = logging::buffer();
        let ms = logging::logged_millis(since.elapsed());
        let (mut orders, mut lag): (u32, _) = (0, 0);
        for (message, fate) in fates {
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
                    self.log_unrecorded(message, Some(reason.word), &reason.text, text);
                    continue;
                }
                Fate::Held(_) if message.held.is_some() => continue,
                Fate::Held(cause) => {
                    self.log_unrecorded(message, None, cause, "message held; it is tried again");
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

    /// Logs a message that was put aside or held, unless the current second has enough lines.
    fn log_unrecorded(&mut self, message: &Message, reason: Option<&str>, cause: &str, text: &str) {
        self.unrecorded += 1;
        if self.unrecorded > UNRECORDED_LINES_MAX {
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

    /// Begins another second; has to be called once a second.
    pub(crate) fn begin_second(&mut self) {
        if self.unrecorded > UNRECORDED_LINES_MAX {
            let unlogged = self.unrecorded - UNRECORDED_LINES_MAX;
            log::warn!(target: "order", count = unlogged; "more messages put aside or held");
        }
        self.unrecorded = 0;
    }
}
