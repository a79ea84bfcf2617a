//! Takes orders off the queue and records them. An order is acknowledged after the commit that
//! holds it, so a crash in between delivers it again, and recording it again changes nothing.
//! What can never be recorded goes to the dead queue, confirmed before it is acknowledged.
//! Every failure takes one way back: drop the link (the broker keeps what was not
//! acknowledged), wait, start over.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use amiquip::{
    AmqpProperties, AmqpValue, Channel, ConsumerMessage, ConsumerOptions, Delivery, FieldTable,
    Publish,
};
use common::backoff::Backoff;
use common::db::{Database, DbError};
use common::http::Dependency;
use common::metrics::{IntCounter, Metrics};
use common::order::NewOrder;
use common::process::StartError;
use common::queue::{self, Confirming, Link, LinkError, QueueConfig, Unconfirmed};
use common::shutdown::Shutdown;
use crossbeam_channel::{Receiver, select};

use crate::config::ConsumerConfig;
use crate::store::{self, OrderStore, Recordable};

/// At most so many orders in one commit.
const BATCH_MAX: usize = 500;

/// At most so many messages here that are not acknowledged: the next batch arrives while this
/// one is committed.
const PREFETCH: u16 = 1000;

/// The longest message id that a table should be filled with; AMQP's own limit.
const MESSAGE_ID_BYTES_MAX: usize = 255;

/// How long the broker may take to confirm dead letters.
const CONFIRM_LIMIT: Duration = Duration::from_secs(30);

/// How long a reason may be in a header of a dead letter.
const REASON_BYTES_MAX: usize = 500;

/// How long the original's headers may be in a dead letter. RabbitMQ takes 128 KiB for all
/// properties of a message together, and ends the connection over more.
const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// Whether the two servers are there, as last seen by the consumer.
#[derive(Clone, Default)]
pub(crate) struct Links {
    postgresql: Arc<AtomicBool>,
    rabbitmq: Arc<AtomicBool>,
}

impl Links {
    /// The state of both. While no order arrives, only a question of its own shows that the
    /// database is away; `orders` asks it.
    pub(crate) fn dependencies(&self, orders: &mut OrderStore) -> Vec<Dependency> {
        let postgresql = self.postgresql.load(Ordering::Relaxed) && orders.is_up();
        let rabbitmq = self.rabbitmq.load(Ordering::Relaxed);
        vec![
            Dependency {
                name: "postgresql",
                up: postgresql,
            },
            Dependency {
                name: "rabbitmq",
                up: rabbitmq,
            },
        ]
    }

    fn set(&self, postgresql: bool, rabbitmq: bool) {
        self.postgresql.store(postgresql, Ordering::Relaxed);
        self.rabbitmq.store(rabbitmq, Ordering::Relaxed);
    }
}

/// Starts the thread that owns the link to the broker and the connection to the database.
pub(crate) fn start(
    config: &ConsumerConfig,
    metrics: &Metrics,
    links: Links,
    shutdown: &Shutdown,
) -> Result<JoinHandle<()>, StartError> {
    let mut consumer = Consumer {
        outage: Outage::default(),
        queue: config.queue.clone(),
        orders: OrderStore::new(&Database::new(&config.database, store::MIGRATIONS)),
        links,
        counts: Counts::new(metrics),
        shutdown: shutdown.clone(),
    };
    thread::Builder::new()
        .name("consumer".to_owned())
        .spawn(move || consumer.run())
        .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))
}

struct Counts {
    recorded: IntCounter,
    duplicate: IntCounter,
    dead: IntCounter,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help);
        Self {
            recorded: counter(
                "orders_recorded_total",
                "Orders recorded for the first time.",
            ),
            duplicate: counter(
                "orders_duplicate_total",
                "Orders that were recorded before.",
            ),
            dead: counter("orders_dead_total", "Messages put on the dead queue."),
        }
    }
}

/// Why a session with both servers ended.
#[derive(Debug)]
enum Interruption {
    Database(DbError),
    Broker(LinkError),
    Panic,
}

impl From<DbError> for Interruption {
    fn from(error: DbError) -> Self {
        Self::Database(error)
    }
}

impl From<LinkError> for Interruption {
    fn from(error: LinkError) -> Self {
        Self::Broker(error)
    }
}

impl From<amiquip::Error> for Interruption {
    fn from(error: amiquip::Error) -> Self {
        Self::Broker(error.into())
    }
}

impl fmt::Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(error) => error.fmt(f),
            Self::Broker(error) => error.fmt(f),
            Self::Panic => f.write_str("the consumer panicked"),
        }
    }
}

/// What the log was told: one line when an outage begins and one when it is over, however often
/// it is tried meanwhile.
#[derive(Default)]
struct Outage {
    cause: String,
    /// The session at hand has got as far as consuming.
    consuming: bool,
    /// The database refuses to record, though it can be reached: consuming is not the end of it.
    while_recording: bool,
}

impl Outage {
    fn begin(&mut self, interruption: &Interruption) {
        let cause = interruption.to_string();
        if cause != self.cause {
            log::warn!(cause = cause.as_str(); "interrupted; orders wait in the queue");
            self.cause = cause;
        }
        self.while_recording = self.consuming && matches!(interruption, Interruption::Database(_));
    }

    fn note_consuming(&mut self, queue: &str) {
        self.consuming = true;
        if !self.while_recording {
            self.cause.clear();
            log::info!(queue = queue; "consuming");
        }
    }

    fn note_recorded(&mut self) {
        if self.while_recording {
            self.while_recording = false;
            self.cause.clear();
            log::info!("orders are recorded again");
        }
    }
}

struct Consumer {
    outage: Outage,
    queue: QueueConfig,
    orders: OrderStore,
    links: Links,
    counts: Counts,
    shutdown: Shutdown,
}

impl Consumer {
    /// One session after another until the shutdown.
    fn run(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(3));
        loop {
            self.outage.consuming = false;
            let outcome = catch_unwind(AssertUnwindSafe(|| self.session(&mut backoff)))
                .unwrap_or(Err(Interruption::Panic));
            let Err(interruption) = outcome else { return };
            match interruption {
                Interruption::Database(_) => self.links.postgresql.store(false, Ordering::Relaxed),
                // It was reached after the database was.
                Interruption::Broker(_) => self.links.set(true, false),
                Interruption::Panic => self.links.rabbitmq.store(false, Ordering::Relaxed),
            }
            self.outage.begin(&interruption);
            if backoff.wait(&self.shutdown) {
                return;
            }
        }
    }

    /// Consumes until the shutdown, or until something breaks.
    fn session(&mut self, backoff: &mut Backoff) -> Result<(), Interruption> {
        let mut link = self.connect()?;
        let channel = link.open_channel()?;
        let mut dead_letters = DeadLetters::open(&mut link, &self.queue)?;
        let limit = link.limit();
        queue::declare(&channel, &self.queue.queue)?;
        channel.qos(0, PREFETCH, false)?;
        // A second receiver, dropped after the consumer: amiquip's thread ends the connection
        // when it has a delivery for one that is gone.
        let deliveries;
        let consumer =
            channel.basic_consume(self.queue.queue.as_str(), ConsumerOptions::default())?;
        drop(limit);
        deliveries = consumer.receiver().clone();
        // Last, so that it is dropped first: the farewells above get a limit.
        let _limit = link.limit_from_drop();

        self.links.set(true, true);
        self.outage.note_consuming(&self.queue.queue);
        while let Some(batch) = self.next_batch(&deliveries)? {
            self.settle(&channel, &mut dead_letters, batch)?;
            self.outage.note_recorded();
            backoff.reset();
        }
        Ok(())
    }

    /// Connects to both servers. Where one is away the other is asked all the same, so that
    /// `/ready` tells the truth of each; what broke the session before counts as down until
    /// this one consumes.
    fn connect(&mut self) -> Result<Link, Interruption> {
        let probed = self.orders.probe();
        let link = Link::open(&self.queue, "billing-consumer");
        if probed.is_err() || link.is_err() {
            self.links.set(probed.is_ok(), link.is_ok());
        }
        probed?;
        Ok(link?)
    }

    /// Waits for a message, and takes those with it that are here already; None at the shutdown.
    fn next_batch(
        &self,
        deliveries: &Receiver<ConsumerMessage>,
    ) -> Result<Option<Vec<Delivery>>, LinkError> {
        // A select takes any that is ready: orders that keep coming would put the end off.
        if self.shutdown.is_requested() {
            return Ok(None);
        }
        let first = select! {
            recv(self.shutdown.requested()) -> _ => return Ok(None),
            recv(deliveries) -> message => message,
        };
        let ended = LinkError::Broken("the broker ended the deliveries");
        let mut batch = vec![delivery(first.map_err(|_| ended)?)?];
        while batch.len() < BATCH_MAX {
            match deliveries.try_recv() {
                Ok(message) => batch.push(delivery(message)?),
                Err(_) => break,
            }
        }
        Ok(Some(batch))
    }

    /// Records what can be recorded, and buries the rest. Each is acknowledged as soon as it is
    /// done with, so that a dead queue which takes nothing does not bring the others again: one
    /// without a message id would be recorded twice.
    fn settle(
        &mut self,
        channel: &Channel,
        dead_letters: &mut DeadLetters,
        batch: Vec<Delivery>,
    ) -> Result<(), Interruption> {
        let mut recordable = Vec::with_capacity(batch.len());
        let mut dead = Vec::new();
        for delivery in batch {
            match read(&delivery) {
                Ok(new) => recordable.push((delivery, new)),
                Err(reason) => dead.push((delivery, reason)),
            }
        }
        self.record(channel, recordable, &mut dead)?;
        dead_letters.bury(&dead)?;
        self.counts.dead.inc_by(dead.len() as u64);
        for (delivery, _) in dead {
            delivery.ack(channel)?;
        }
        Ok(())
    }

    /// Records a batch; one that the database takes for wrong costs only itself.
    fn record(
        &mut self,
        channel: &Channel,
        mut batch: Vec<(Delivery, Recordable)>,
        dead: &mut Vec<(Delivery, String)>,
    ) -> Result<(), Interruption> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.orders.record(batch.iter().map(|(_, new)| new)) {
            Ok(new) => {
                self.counts.recorded.inc_by(new);
                self.counts.duplicate.inc_by(batch.len() as u64 - new);
                acknowledge(channel, batch, dead.is_empty())?;
                Ok(())
            }
            Err(DbError::BadData(reason)) if batch.len() == 1 => {
                let reason = format!("the database refused it: {reason}");
                dead.extend(
                    batch
                        .into_iter()
                        .map(|(delivery, _)| (delivery, reason.clone())),
                );
                Ok(())
            }
            Err(DbError::BadData(_)) => {
                let second = batch.split_off(batch.len() / 2);
                self.record(channel, batch, dead)?;
                self.record(channel, second, dead)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Acknowledges what was recorded: all at once where nothing before it waits to be buried.
fn acknowledge(
    channel: &Channel,
    mut recorded: Vec<(Delivery, Recordable)>,
    none_dead: bool,
) -> Result<(), amiquip::Error> {
    if none_dead && let Some((last, _)) = recorded.pop() {
        return last.ack_multiple(channel);
    }
    recorded
        .into_iter()
        .try_for_each(|(delivery, _)| delivery.ack(channel))
}

fn delivery(message: ConsumerMessage) -> Result<Delivery, LinkError> {
    match message {
        ConsumerMessage::Delivery(delivery) => Ok(delivery),
        ConsumerMessage::ServerClosedChannel(error)
        | ConsumerMessage::ServerClosedConnection(error) => Err(error.into()),
        ConsumerMessage::ServerCancelled => Err(LinkError::Broken("the queue was deleted")),
        ConsumerMessage::ClientCancelled
        | ConsumerMessage::ClientClosedChannel
        | ConsumerMessage::ClientClosedConnection => Err(LinkError::Broken("the link was closed")),
    }
}

/// The order in a message, or why there is none.
fn read(delivery: &Delivery) -> Result<Recordable, String> {
    let order = NewOrder::from_json(&delivery.body).map_err(|error| error.to_string())?;
    let message_id = delivery
        .properties
        .message_id()
        .clone()
        .filter(|id| !id.is_empty());
    match &message_id {
        Some(id) if id.contains('\0') => {
            Err("the message id contains NUL or is not UTF-8".to_owned())
        }
        Some(id) if id.len() > MESSAGE_ID_BYTES_MAX => Err("the message id is too long".to_owned()),
        _ => Ok(Recordable { message_id, order }),
    }
}

/// The queue for messages that can never be recorded, for an operator to look at.
struct DeadLetters {
    queue: String,
    unconfirmed: Unconfirmed<()>,
    confirming: Confirming,
}

impl DeadLetters {
    fn open(link: &mut Link, config: &QueueConfig) -> Result<Self, LinkError> {
        let queue = config.dead_queue();
        let confirming = link.open_confirming(&queue)?;
        Ok(Self {
            queue,
            unconfirmed: Unconfirmed::default(),
            confirming,
        })
    }

    /// Puts messages on the dead queue and waits until the broker has confirmed all of them.
    fn bury(&mut self, dead: &[(Delivery, String)]) -> Result<(), LinkError> {
        for (delivery, reason) in dead {
            let publish = Publish {
                body: &delivery.body,
                routing_key: self.queue.clone(),
                mandatory: true,
                immediate: false,
                properties: dead_letter_properties(&delivery.properties, reason),
            };
            self.confirming.channel.basic_publish("", publish)?;
            self.unconfirmed.push(());
        }
        while !self.unconfirmed.is_empty() {
            let confirm = self
                .confirming
                .confirms
                .recv_timeout(CONFIRM_LIMIT)
                .map_err(|_| {
                    LinkError::Broken("the broker does not confirm what goes to the dead queue")
                })?;
            let (taken, _) = self.unconfirmed.settle(confirm);
            if !taken || !self.confirming.returns.is_empty() {
                return Err(LinkError::Broken("the dead queue takes no messages"));
            }
        }
        for (delivery, reason) in dead {
            log::warn!(
                message_id = delivery.properties.message_id().as_deref().unwrap_or("none"),
                reason = reason.as_str();
                "message moved to the dead queue"
            );
        }
        Ok(())
    }
}

/// The original's properties as far as they describe it, and why it is here. What would act on
/// the broker is left out: an expiration, copies to other queues, a user who is not ours; and so
/// are headers that would leave no room for the reason.
fn dead_letter_properties(original: &AmqpProperties, reason: &str) -> AmqpProperties {
    let mut headers: FieldTable = original.headers().clone().unwrap_or_default();
    // As JSON every value is longer than on the wire.
    if serde_json::to_vec(&headers).map_or(usize::MAX, |json| json.len()) > HEADERS_BYTES_MAX {
        headers.clear();
    }
    headers.retain(|name, _| name != "CC" && name != "BCC");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    headers.insert(
        "x-dead-reason".to_owned(),
        AmqpValue::LongString(reason.to_owned()),
    );
    headers.insert(
        "x-dead-time".to_owned(),
        AmqpValue::Timestamp(now.as_secs()),
    );
    let mut properties = AmqpProperties::default().with_delivery_mode(2);
    if let Some(message_id) = original.message_id() {
        headers.insert(
            "x-dead-message-id".to_owned(),
            AmqpValue::LongString(message_id.clone()),
        );
        properties = properties.with_message_id(message_id.clone());
    }
    if let Some(content_type) = original.content_type() {
        properties = properties.with_content_type(content_type.clone());
    }
    if let Some(timestamp) = original.timestamp() {
        properties = properties.with_timestamp(*timestamp);
    }
    properties.with_headers(headers)
}
