//! Messages that can never be recorded, on their way to the dead queue. They travel over a link
//! of their own: an alarm of the broker stops a link that publishes, and with it everything else
//! on it, but orders have to leave the queue above all then. Nobody waits for the broker's
//! confirms but the originals, which are acknowledged when they have come.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use amiquip::{
    AmqpProperties, AmqpValue, Confirm, ConnectionBlockedNotification, Delivery, FieldTable,
    Publish,
};
use common::queue::{Confirming, LimitFromDrop, Link, LinkError, QueueConfig, Unconfirmed};
use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError};
use uuid::Uuid;

/// What all headers of ours begin with.
pub(crate) const PREFIX: &str = "x-dead-";
/// Why the message is dead, in words.
pub(crate) const REASON: &str = "x-dead-reason";
/// When it was found to be.
pub(crate) const TIME: &str = "x-dead-time";
/// The message id of the original, where it had one.
pub(crate) const MESSAGE_ID: &str = "x-dead-message-id";
/// What this dead letter, and no other, is known by.
pub(crate) const DEAD_ID: &str = "x-dead-id";

/// How long the broker may take to confirm a dead letter while it has raised no alarm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(30);

/// How long a batch of orders waits for the dead letters that came with it, to be acknowledged
/// together with them.
const SOON: Duration = Duration::from_millis(10);

/// How long the last confirms are waited for at the end of a session.
const LAST_CONFIRMS_LIMIT: Duration = Duration::from_secs(3);

/// Dead letters that are published and not confirmed.
const WINDOW_MAX: usize = 256;

/// The same in bytes; one that is longer goes alone. Below what amiquip holds for a broker that
/// does not read: beyond that it would make the orders wait.
const WINDOW_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a reason may be in a header of a dead letter.
const REASON_BYTES_MAX: usize = 500;

/// How long the original's headers may be in a dead letter. RabbitMQ takes 128 KiB for all
/// properties of a message together, and ends the connection over more.
const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// What can be wrong with a message: the body as a whole, a field, its id, or what the database
/// says.
pub(crate) const REASON_KINDS: [&str; 6] = [
    "body",
    "user_id",
    "number_of_items",
    "total_amount",
    "message_id",
    "database",
];

/// Why a message can never be recorded.
#[derive(Debug, Clone)]
pub(crate) struct Reason {
    /// One of [`REASON_KINDS`], for the metrics.
    pub(crate) kind: &'static str,
    pub(crate) text: String,
}

/// A message that can never be recorded.
pub(crate) struct Dead {
    pub(crate) delivery: Delivery,
    pub(crate) reason: Reason,
}

/// The way to the dead queue.
pub(crate) struct DeadLetters {
    queue: String,
    /// Those that the window has no room for.
    waiting: VecDeque<Dead>,
    unconfirmed: Unconfirmed<Sent>,
    unconfirmed_bytes: usize,
    /// The broker has raised an alarm, and reads nothing that is published.
    blocked: bool,
    /// First of the three, so that the farewells of the others get a limit: a broker that has
    /// raised an alarm answers none.
    _limit: LimitFromDrop,
    /// Before its link, so that it is dropped first.
    confirming: Confirming,
    link: Link,
}

/// A dead letter that is published, without its content, which the link has.
struct Sent {
    dead: Dead,
    bytes: usize,
    at: Instant,
}

impl DeadLetters {
    pub(crate) fn open(config: &QueueConfig) -> Result<Self, LinkError> {
        let queue = config.dead_queue();
        let mut link = Link::open(config, "billing-consumer, dead letters")?;
        let confirming = link.open_confirming(&queue)?;
        Ok(Self {
            queue,
            waiting: VecDeque::new(),
            unconfirmed: Unconfirmed::default(),
            unconfirmed_bytes: 0,
            blocked: false,
            _limit: link.limit_from_drop(),
            confirming,
            link,
        })
    }

    /// Takes messages over; none of them is to be acknowledged before [`Self::settle`] returns it.
    pub(crate) fn bury(&mut self, dead: Vec<Dead>) -> Result<(), LinkError> {
        self.waiting.extend(dead);
        self.publish_waiting()
    }

    /// The broker's confirms, to be passed to [`Self::settle`].
    pub(crate) fn confirms(&self) -> Receiver<Confirm> {
        self.confirming.confirms.clone()
    }

    /// The broker's alarms, to be passed to [`Self::note_alarm`].
    pub(crate) fn alarms(&self) -> Receiver<ConnectionBlockedNotification> {
        self.link.blocked.clone()
    }

    /// The oldest message that is taken over and not returned, by its delivery tag: whatever was
    /// delivered after it cannot be acknowledged together with what was delivered before.
    pub(crate) fn oldest_tag(&self) -> Option<u64> {
        let waiting = self.waiting.iter();
        let sent = self.unconfirmed.iter().map(|sent| &sent.dead);
        waiting
            .chain(sent)
            .map(|dead| dead.delivery.delivery_tag())
            .min()
    }

    /// Takes note of a confirm; returns the messages that are on the dead queue now.
    pub(crate) fn settle(
        &mut self,
        confirm: Result<Confirm, RecvError>,
    ) -> Result<Vec<Dead>, LinkError> {
        let confirm = confirm.map_err(|_| LinkError::Broken("the broker ended the link"))?;
        let (taken, settled) = self.unconfirmed.settle(confirm);
        if !taken || !self.confirming.returns.is_empty() {
            return Err(LinkError::Broken("the dead queue takes no messages"));
        }
        self.unconfirmed_bytes -= settled.values().map(|sent| sent.bytes).sum::<usize>();
        self.publish_waiting()?;
        Ok(settled.into_values().map(|sent| sent.dead).collect())
    }

    pub(crate) fn note_alarm(
        &mut self,
        notification: Result<ConnectionBlockedNotification, RecvError>,
    ) -> Result<(), LinkError> {
        match notification {
            Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                self.blocked = true;
                log::warn!(reason = reason.as_str(); "the broker raised an alarm; dead letters wait");
                Ok(())
            }
            Ok(ConnectionBlockedNotification::Unblocked) => {
                self.blocked = false;
                let now = Instant::now();
                self.unconfirmed.iter_mut().for_each(|sent| sent.at = now);
                log::info!("the broker's alarm is over");
                Ok(())
            }
            Err(_) => Err(LinkError::Broken("the broker ended the link")),
        }
    }

    /// An error where the broker has forgotten to confirm.
    pub(crate) fn check(&self) -> Result<(), LinkError> {
        let overdue = |sent: &Sent| sent.at.elapsed() > CONFIRM_LIMIT;
        if !self.blocked && self.unconfirmed.iter().next().is_some_and(overdue) {
            return Err(LinkError::Broken(
                "the broker does not confirm what goes to the dead queue",
            ));
        }
        Ok(())
    }

    /// Waits for confirms that come at once, as they do where nothing is wrong, and adds the
    /// messages that are on the dead queue by then.
    pub(crate) fn settle_soon(&mut self, buried: &mut Vec<Dead>) -> Result<(), LinkError> {
        self.settle_within(SOON, buried)
    }

    /// Waits a little for the confirms that are due, and adds as above. The other messages are
    /// delivered again one day.
    pub(crate) fn finish(&mut self, buried: &mut Vec<Dead>) -> Result<(), LinkError> {
        self.settle_within(LAST_CONFIRMS_LIMIT, buried)
    }

    fn settle_within(&mut self, limit: Duration, buried: &mut Vec<Dead>) -> Result<(), LinkError> {
        let deadline = Instant::now() + limit;
        while !self.unconfirmed.is_empty() && !self.blocked {
            let confirm = match self.confirming.confirms.recv_deadline(deadline) {
                Ok(confirm) => Ok(confirm),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => Err(RecvError),
            };
            buried.extend(self.settle(confirm)?);
        }
        Ok(())
    }

    /// For as long as the window has room.
    fn publish_waiting(&mut self) -> Result<(), LinkError> {
        while let Some(next) = self.waiting.front() {
            let bytes = next.delivery.body.len();
            let room = self.unconfirmed.len() < WINDOW_MAX
                && self.unconfirmed_bytes + bytes <= WINDOW_BYTES_MAX;
            if !room && !self.unconfirmed.is_empty() {
                break;
            }
            let Some(mut dead) = self.waiting.pop_front() else {
                break;
            };
            self.publish(&dead)?;
            dead.delivery.body = Vec::new();
            self.unconfirmed_bytes += bytes;
            self.unconfirmed.push(Sent {
                dead,
                bytes,
                at: Instant::now(),
            });
        }
        Ok(())
    }

    fn publish(&self, dead: &Dead) -> Result<(), LinkError> {
        let Dead { delivery, reason } = dead;
        let publish = Publish {
            body: &delivery.body,
            routing_key: self.queue.clone(),
            mandatory: true,
            immediate: false,
            properties: properties(&delivery.properties, &reason.text),
        };
        Ok(self.confirming.channel.basic_publish("", publish)?)
    }
}

/// The original's properties as far as they describe it, and why it is here. What would act on
/// the broker is left out: an expiration, copies to other queues, a user who is not ours; and so
/// are headers that would leave no room for the reason.
fn properties(original: &AmqpProperties, reason: &str) -> AmqpProperties {
    let mut headers: FieldTable = original.headers().clone().unwrap_or_default();
    // As JSON every value is longer than on the wire.
    if serde_json::to_vec(&headers).map_or(usize::MAX, |json| json.len()) > HEADERS_BYTES_MAX {
        headers.clear();
    }
    headers.retain(|name, _| name != "CC" && name != "BCC" && !name.starts_with(PREFIX));
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    let mut text = |name: &str, value: &str| {
        headers.insert(name.to_owned(), AmqpValue::LongString(value.to_owned()));
    };
    text(REASON, reason);
    text(DEAD_ID, &Uuid::now_v7().to_string());
    let mut properties = AmqpProperties::default().with_delivery_mode(2);
    if let Some(message_id) = original.message_id() {
        text(MESSAGE_ID, message_id);
        properties = properties.with_message_id(message_id.clone());
    }
    headers.insert(TIME.to_owned(), AmqpValue::Timestamp(now.as_secs()));
    if let Some(content_type) = original.content_type() {
        properties = properties.with_content_type(content_type.clone());
    }
    if let Some(timestamp) = original.timestamp() {
        properties = properties.with_timestamp(*timestamp);
    }
    properties.with_headers(headers)
}
