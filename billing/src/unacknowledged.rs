//! The messages of one channel that were delivered and are not acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use amiquip::{Channel, ConsumerMessage, Delivery};
use common::amqp::{AmqpConnection, AmqpError};
use crossbeam_channel::{Receiver, RecvError};

use crate::health::Health;
use crate::ledger::Ledger;
use crate::message::{Message, MessageSource};
use crate::settle::Fates;
use crate::store::Fate;

/// How many messages one commit may have.
const BATCH_MAX: usize = 1000;

/// How long a batch that is not full waits for more messages: as long as a commit takes.
const BATCH_LINGER: Duration = Duration::from_millis(3);

/// How many messages may be unacknowledged: those that are held, the batch that is committed, and the next one.
/// The [`AmqpConnection`] limits their bytes.
pub(crate) const PREFETCH: u16 = 20_000;

/// With so many held messages the session ends, and the broker requeues all of them.
const HELD_MAX: usize = PREFETCH as usize - 2 * BATCH_MAX;

/// The unacknowledged messages of a channel.
pub(crate) struct Unacknowledged<'a> {
    pub(crate) connection: &'a AmqpConnection,
    pub(crate) channel: &'a Channel,
    pub(crate) deliveries: &'a Receiver<ConsumerMessage>,
    pub(crate) ledger: Ledger,
    /// The messages that are held; each tick sorts them by the time at which they are due.
    pub(crate) held: VecDeque<Message>,
}

impl Unacknowledged<'_> {
    /// Takes the first message, and those that have arrived already or arrive within [`BATCH_LINGER`].
    pub(crate) fn take_batch(
        &mut self,
        first: Result<ConsumerMessage, RecvError>,
    ) -> Result<Vec<Message>, AmqpError> {
        let ended = AmqpError::Broken("the broker ended the deliveries");
        let mut batch = vec![self.take(first.map_err(|_| ended)?)?];
        let deadline = Instant::now() + BATCH_LINGER;
        while batch.len() < BATCH_MAX {
            match self.deliveries.recv_deadline(deadline) {
                Ok(message) => batch.push(self.take(message)?),
                Err(_) => break,
            }
        }
        Ok(batch)
    }

    fn take(&mut self, message: ConsumerMessage) -> Result<Message, AmqpError> {
        let delivery = delivery(message)?;
        let tag = delivery.delivery_tag();
        self.ledger.open(tag, Instant::now());
        let message = Message::from_queue(delivery);
        self.connection
            .reduce(tag, message.body_bytes - message.body.len());
        Ok(message)
    }

    /// Keeps the messages whose fate is to be held, and acknowledges the others.
    pub(crate) fn acknowledge(&mut self, fates: Fates) -> Result<(), amiquip::Error> {
        let mut done = Vec::with_capacity(fates.len());
        for (mut message, fate) in fates {
            if let Fate::Held(_) = fate {
                message.held = Some(Instant::now());
                self.held.push_back(message);
            } else if let MessageSource::Queue(delivery) = message.source {
                done.push((delivery.delivery_tag(), delivery));
            }
        }
        self.connection.release(done.iter().map(|(tag, _)| *tag));
        let acknowledgements = self.ledger.settle(done);
        if let Some(last) = acknowledgements.up_to {
            last.ack_multiple(self.channel)?;
        }
        let mut alone = acknowledgements.alone.into_iter();
        alone.try_for_each(|delivery| delivery.ack(self.channel))
    }

    /// Whether the held messages leave no room for others.
    pub(crate) fn holds_too_much(&self) -> bool {
        let all = !self.held.is_empty() && self.ledger.len() == self.held.len();
        self.held.len() >= HELD_MAX || (all && self.connection.is_full())
    }

    /// Updates the state of the consumer; `tried_again` is the number of held messages that are being tried again.
    pub(crate) fn show(&self, health: &Health, tried_again: usize, trying_since: Option<Instant>) {
        let mut state = health.state();
        state.unacknowledged = self.ledger.len() + self.deliveries.len();
        state.oldest = self.ledger.oldest();
        state.held = self.held.len() + tried_again;
        if state.held == 0 {
            state.unrecorded_since = None;
        }
        state.trying_since = trying_since;
    }
}

/// The delivery in a [`ConsumerMessage`]; any other message ends the session.
fn delivery(message: ConsumerMessage) -> Result<Delivery, AmqpError> {
    match message {
        ConsumerMessage::Delivery(delivery) => Ok(delivery),
        ConsumerMessage::ServerClosedChannel(error)
        | ConsumerMessage::ServerClosedConnection(error) => Err(error.into()),
        ConsumerMessage::ServerCancelled => Err(AmqpError::Broken("the queue was deleted")),
        _ => Err(AmqpError::Broken("the connection was closed")),
    }
}
