//! Another program that publishes to the queue of orders: messages that can never be recorded, some of them
//! twice, and orders among them.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, Confirm, Publish};
use common::amqp::{AmqpConnection, ConfirmChannel, DeadlineOnDrop, QueueConfig};

use crate::platform_processes::DrillState;

/// How long the publisher waits after a message.
const REST: Duration = Duration::from_millis(40);

/// How long the publisher waits for a confirm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// The messages that it publishes in turn.
const BODIES: [&[u8]; 7] = [
    b"garbage",
    b"{\"user_id\": \"\xff\"}",
    br#"{"user_id": "20", "number_of_items": 3}"#,
    ORDER,
    br#"{"user_id": "20", "number_of_items": 0, "total_amount": "250.00"}"#,
    br#"{"user_id": "2\u00000", "number_of_items": 1, "total_amount": "250.00"}"#,
    &[b' '; 50_000],
];

/// The only message of them that can be recorded.
const ORDER: &[u8] = br#"{"user_id": "20", "number_of_items": 3, "total_amount": "250.00"}"#;

pub(crate) struct RawPublisher<'s> {
    shared: &'s DrillState,
    config: QueueConfig,
    connection: Option<PublisherConnection>,
}

/// The fields are dropped in this order: the deadline begins before the channel and the connection are closed.
struct PublisherConnection {
    _deadline: DeadlineOnDrop,
    confirm_channel: ConfirmChannel,
    _connection: AmqpConnection,
}

impl<'s> RawPublisher<'s> {
    pub(crate) fn new(config: QueueConfig, shared: &'s DrillState) -> Self {
        Self {
            shared,
            config,
            connection: None,
        }
    }

    /// Publishes every third message twice, even if the first was not confirmed.
    pub(crate) fn publish_until(mut self, stopped: &AtomicBool) {
        for (number, body) in (0..).zip(BODIES.iter().cycle()) {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("raw-{number}");
            let index = self.shared.note(&id, *body != ORDER);
            for _ in 0..=usize::from(number % 3 == 0) {
                let traffic = self.shared.traffic.read();
                let _traffic = traffic.unwrap_or_else(PoisonError::into_inner);
                let confirmed = self.publish(&id, body).is_some();
                self.shared.note_outcome(index, confirmed);
                if !confirmed {
                    self.connection = None;
                }
            }
            thread::sleep(REST);
        }
    }

    /// None if the broker did not confirm the message.
    fn publish(&mut self, id: &str, body: &[u8]) -> Option<()> {
        if self.connection.is_none() {
            self.connection = Some(PublisherConnection::open(&self.config)?);
        }
        let confirm_channel = &self.connection.as_ref()?.confirm_channel;
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
        confirm_channel.channel.basic_publish("", message).ok()?;
        let deadline = Instant::now() + CONFIRM_LIMIT;
        let confirm = confirm_channel.confirms.recv_deadline(deadline).ok()?;
        let taken = matches!(confirm, Confirm::Ack(_)) && confirm_channel.returns.is_empty();
        taken.then_some(())
    }
}

impl PublisherConnection {
    fn open(config: &QueueConfig) -> Option<Self> {
        let mut connection = AmqpConnection::open(config, "raw publisher").ok()?;
        Some(Self {
            _deadline: connection.deadline_on_drop(),
            confirm_channel: connection.open_confirm_channel(&config.queue).ok()?,
            _connection: connection,
        })
    }
}
