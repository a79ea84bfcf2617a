//! Somebody else who publishes to the queue of orders: what can never be recorded, some of it
//! twice, and orders among it.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, Confirm, Publish};
use common::amqp::{AmqpConnection, ConfirmChannel, DeadlineOnDrop, QueueConfig};

use crate::stage::Shared;

/// How long it rests after a message.
const REST: Duration = Duration::from_millis(40);

/// How long it waits for a confirm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// What it publishes in turn.
const BODIES: [&[u8]; 7] = [
    b"garbage",
    b"{\"user_id\": \"\xff\"}",
    br#"{"user_id": "20", "number_of_items": 3}"#,
    ORDER,
    br#"{"user_id": "20", "number_of_items": 0, "total_amount": "250.00"}"#,
    br#"{"user_id": "2\u00000", "number_of_items": 1, "total_amount": "250.00"}"#,
    &[b' '; 50_000],
];

/// The one of them that can be recorded.
const ORDER: &[u8] = br#"{"user_id": "20", "number_of_items": 3, "total_amount": "250.00"}"#;

pub(crate) struct Stranger<'s> {
    shared: &'s Shared,
    config: QueueConfig,
    connected: Option<Connected>,
}

/// Dropped in this order: the limit begins before the others wait for the broker's farewell.
struct Connected {
    _deadline: DeadlineOnDrop,
    confirming: ConfirmChannel,
    _connection: AmqpConnection,
}

impl<'s> Stranger<'s> {
    pub(crate) fn new(config: QueueConfig, shared: &'s Shared) -> Self {
        Self {
            shared,
            config,
            connected: None,
        }
    }

    /// Every third message is published twice, also where the first time was not confirmed.
    pub(crate) fn publish_until(mut self, stopped: &AtomicBool) {
        for (number, body) in (0..).zip(BODIES.iter().cycle()) {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("stranger-{number}");
            let place = self.shared.note(&id, *body != ORDER);
            for _ in 0..=usize::from(number % 3 == 0) {
                let traffic = self.shared.traffic.read();
                let _traffic = traffic.unwrap_or_else(PoisonError::into_inner);
                let confirmed = self.publish(&id, body).is_some();
                self.shared.note_outcome(place, confirmed);
                if !confirmed {
                    self.connected = None;
                }
            }
            thread::sleep(REST);
        }
    }

    /// None where the broker did not take it, or nobody knows.
    fn publish(&mut self, id: &str, body: &[u8]) -> Option<()> {
        if self.connected.is_none() {
            self.connected = Some(Connected::open(&self.config)?);
        }
        let confirming = &self.connected.as_ref()?.confirming;
        let properties = AmqpProperties::default()
            .with_message_id(id.to_owned())
            .with_delivery_mode(2);
        let message = Publish {
            body,
            routing_key: self.config.queue.clone(),
            mandatory: true,
            immediate: false,
            properties,
        };
        confirming.channel.basic_publish("", message).ok()?;
        let deadline = Instant::now() + CONFIRM_LIMIT;
        let confirm = confirming.confirms.recv_deadline(deadline).ok()?;
        let taken = matches!(confirm, Confirm::Ack(_)) && confirming.returns.is_empty();
        taken.then_some(())
    }
}

impl Connected {
    fn open(config: &QueueConfig) -> Option<Self> {
        let mut connection = AmqpConnection::open(config, "a stranger").ok()?;
        Some(Self {
            _deadline: connection.deadline_on_drop(),
            confirming: connection.open_confirm_channel(&config.queue).ok()?,
            _connection: connection,
        })
    }
}
