//! Takes orders off the queue and records them. An order is acknowledged after the commit that
//! holds it, so a crash in between delivers it again, and recording it again changes nothing.
//! What can never be recorded goes the way of [`DeadLetters`], and is acknowledged when it has
//! arrived there; orders do not wait for it. Every failure takes one way back: drop the links
//! (the broker keeps what was not acknowledged), wait, start over.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use amiquip::{AmqpValue, Channel, ConsumerMessage, ConsumerOptions, Delivery};
use common::backoff::Backoff;
use common::db::{Database, DbError};
use common::http::{Dependency, is_request_id};
use common::log as logging;
use common::metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Metrics};
use common::order::NewOrder;
use common::process::StartError;
use common::queue::{Link, LinkError, QueueConfig};
use common::shutdown::Shutdown;
use crossbeam_channel::{Receiver, RecvError, select};

use crate::config::ConsumerConfig;
use crate::dead_letters::{Dead, DeadLetters, REASON_KINDS, Reason};
use crate::store::{self, OrderStore, Recordable};

/// At most so many orders in one commit.
const BATCH_MAX: usize = 500;

/// How long a batch that is not full waits for more: a commit costs as much.
const BATCH_LINGER: Duration = Duration::from_millis(3);

/// At most so many messages here that are not acknowledged: the next batch arrives while this
/// one is committed. What they may weigh is bounded by the [`Link`].
const PREFETCH: u16 = 1000;

/// The longest message id that a table should be filled with; AMQP's own limit.
const MESSAGE_ID_BYTES_MAX: usize = 255;

/// How often the confirms of dead letters are looked after.
const TICK: Duration = Duration::from_secs(1);

/// Whether the two servers are there, as last seen by the consumer.
#[derive(Clone)]
pub(crate) struct Links {
    postgresql: Arc<AtomicBool>,
    rabbitmq: Arc<AtomicBool>,
    postgresql_connected: IntGauge,
    rabbitmq_connected: IntGauge,
}

impl Links {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            postgresql: Arc::default(),
            rabbitmq: Arc::default(),
            postgresql_connected: metrics.gauge(
                "postgresql_connected",
                "1 while orders can be recorded, as last seen.",
            ),
            rabbitmq_connected: metrics.gauge(
                "rabbitmq_connected",
                "1 while there is a link to the broker.",
            ),
        }
    }

    /// The state of both. While no order arrives, only a question of its own shows that the
    /// database is away; `orders` asks it.
    pub(crate) fn dependencies(&self, orders: &mut OrderStore) -> Vec<Dependency> {
        let postgresql = self.postgresql.load(Ordering::Relaxed) && orders.is_up();
        let rabbitmq = self.rabbitmq.load(Ordering::Relaxed);
        vec![
            Dependency {
                name: "postgresql",
                state: postgresql.into(),
            },
            Dependency {
                name: "rabbitmq",
                state: rabbitmq.into(),
            },
        ]
    }

    fn set(&self, postgresql: bool, rabbitmq: bool) {
        self.set_postgresql(postgresql);
        self.set_rabbitmq(rabbitmq);
    }

    fn set_postgresql(&self, up: bool) {
        self.postgresql.store(up, Ordering::Relaxed);
        self.postgresql_connected.set(i64::from(up));
    }

    fn set_rabbitmq(&self, up: bool) {
        self.rabbitmq.store(up, Ordering::Relaxed);
        self.rabbitmq_connected.set(i64::from(up));
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
        burials: Burials::default(),
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
            "Messages put on the dead queue, by what was wrong.",
            "reason",
        );
        for kind in REASON_KINDS {
            dead.with_label_values(&[kind]);
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
            batch_orders: metrics.sizes("order_batch_size", "Orders in one commit."),
            lag: metrics.gauge(
                "order_lag_seconds",
                "From the timestamp of the oldest order of the latest commit to that commit.",
            ),
        }
    }

    fn note_commit(&self, batch: &[(Delivery, Recordable)], ids: &[Option<i64>]) {
        let new = ids.iter().flatten().count() as u64;
        self.recorded.inc_by(new);
        self.duplicate.inc_by(batch.len() as u64 - new);
        let orders = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        self.batch_orders.observe(f64::from(orders));
        let ages = batch.iter().filter_map(|(delivery, _)| age(delivery));
        let lag = ages.max().unwrap_or(0);
        self.lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
    }

    fn note_buried(&self, buried: &[Dead]) {
        for dead in buried {
            self.dead.with_label_values(&[dead.reason.kind]).inc();
        }
    }
}

/// One line for each order of a batch that is committed: the end of what the gateway's line with
/// the same `message_id` began. `since` is when the first of them was taken.
fn tell_of_orders(batch: &[(Delivery, Recordable)], ids: &[Option<i64>], since: Instant) {
    let _gathering = logging::gather();
    let ms = logging::logged_millis(since.elapsed());
    for ((delivery, new), order_id) in batch.iter().zip(ids) {
        let message = match order_id {
            Some(_) => "order recorded",
            None => "order already recorded",
        };
        log::info!(
            target: "order",
            message_id = new.message_id.as_deref(),
            request_id = request_id(delivery),
            order_id = *order_id,
            age_seconds = age(delivery),
            ms = ms;
            "{message}"
        );
    }
}

/// Of the request that placed the order, where one of our gateways did.
fn request_id(delivery: &Delivery) -> Option<&str> {
    match delivery
        .properties
        .headers()
        .as_ref()?
        .get("x-request-id")?
    {
        AmqpValue::LongString(id) if is_request_id(id) => Some(id),
        _ => None,
    }
}

/// How long ago it was placed, in seconds. A stranger's message need not say so, nor sensibly.
fn age(delivery: &Delivery) -> Option<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let at = (*delivery.properties.timestamp())?;
    Some(now.map_or(0, |now| now.as_secs()).saturating_sub(at))
}

/// What the log is told of dead letters: a line for each, but no more than [`Burials::TOLD_MAX`]
/// a second, so that nobody fills a disk by publishing nonsense; of the others how many they were.
#[derive(Default)]
struct Burials {
    told: usize,
    untold: usize,
    /// When the second began.
    since: Option<Instant>,
}

impl Burials {
    const TOLD_MAX: usize = 100;

    fn note(&mut self, buried: &[Dead]) {
        let told = buried.len().min(Self::TOLD_MAX - self.told);
        self.told += told;
        self.untold += buried.len() - told;
        let _gathering = logging::gather();
        for Dead { delivery, reason } in &buried[..told] {
            log::warn!(
                target: "order",
                message_id = delivery.properties.message_id().as_deref(),
                request_id = request_id(delivery),
                age_seconds = age(delivery),
                reason = reason.kind,
                cause = reason.text.as_str();
                "message moved to the dead queue"
            );
        }
    }

    fn tell_when_due(&mut self) {
        if self.since.is_none_or(|since| since.elapsed() >= TICK) {
            self.tell();
        }
    }

    fn tell(&mut self) {
        if self.untold > 0 {
            log::warn!(target: "order", count = self.untold; "more messages moved to the dead queue");
        }
        *self = Self {
            since: Some(Instant::now()),
            ..Self::default()
        };
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
            let level = match interruption {
                Interruption::Broker(error) => error.level(),
                Interruption::Database(_) | Interruption::Panic => log::Level::Warn,
            };
            log::log!(level, cause = cause.as_str(); "interrupted; orders wait in the queue");
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
    burials: Burials,
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
            self.burials.tell();
            let Err(interruption) = outcome else { return };
            match interruption {
                Interruption::Database(_) => self.links.set_postgresql(false),
                // It was reached after the database was.
                Interruption::Broker(_) => self.links.set(true, false),
                Interruption::Panic => self.links.set_rabbitmq(false),
            }
            self.outage.begin(&interruption);
            if backoff.wait(&self.shutdown) {
                return;
            }
        }
    }

    /// Consumes until the shutdown, or until something breaks.
    fn session(&mut self, backoff: &mut Backoff) -> Result<(), Interruption> {
        let (mut link, mut dead_letters) = self.connect()?;
        let channel = link.open_channel()?;
        link.declare(&self.queue.queue)?;
        let limit = link.limit();
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
        let desk = Desk {
            channel: &channel,
            link: &link,
        };
        let (confirms, alarms) = (dead_letters.confirms(), dead_letters.alarms());
        // A select takes any that is ready: orders that keep coming would put the end off.
        while !self.shutdown.is_requested() {
            select! {
                recv(self.shutdown.requested()) -> _ => {}
                recv(deliveries) -> first => {
                    let taken = Instant::now();
                    let batch = take_batch(first, &deliveries)?;
                    self.settle(&desk, &mut dead_letters, batch, taken)?;
                    self.outage.note_recorded();
                    backoff.reset();
                }
                recv(confirms) -> confirm => {
                    let buried = dead_letters.settle(confirm)?;
                    desk.acknowledge(self.note_buried(buried).collect(), Some(0))?;
                }
                recv(alarms) -> notification => dead_letters.note_alarm(notification)?,
                default(TICK) => {}
            }
            self.burials.tell_when_due();
            dead_letters.check()?;
        }
        let mut buried = Vec::new();
        // What the broker does not say by now it will deliver again.
        let _ = dead_letters.finish(&mut buried);
        Ok(desk.acknowledge(self.note_buried(buried).collect(), Some(0))?)
    }

    /// Connects to both servers. Where one is away the other is asked all the same, so that
    /// `/ready` tells the truth of each; what broke the session before counts as down until
    /// this one consumes.
    fn connect(&mut self) -> Result<(Link, DeadLetters), Interruption> {
        let probed = self.orders.probe();
        let link = Link::open(&self.queue, "billing-consumer");
        if probed.is_err() || link.is_err() {
            self.links.set(probed.is_ok(), link.is_ok());
        }
        probed?;
        Ok((link?, DeadLetters::open(&self.queue)?))
    }

    /// Records what can be recorded, and buries the rest meanwhile, so that as a rule all of it is
    /// acknowledged at once. Orders never wait long for a dead queue that takes nothing: what is
    /// recorded and not acknowledged comes again, and is recorded twice if it has no message id.
    fn settle(
        &mut self,
        desk: &Desk<'_>,
        dead_letters: &mut DeadLetters,
        batch: Vec<Delivery>,
        taken: Instant,
    ) -> Result<(), Interruption> {
        self.counts.consumed.inc_by(batch.len() as u64);
        let mut recordable = Vec::with_capacity(batch.len());
        let mut dead = Vec::new();
        for delivery in batch {
            match read(&delivery) {
                Ok(new) => recordable.push((delivery, new)),
                Err(reason) => dead.push(Dead { delivery, reason }),
            }
        }
        dead_letters.bury(dead)?;
        let (mut recorded, mut refused) = (Vec::new(), Vec::new());
        let outcome = self.record(recordable, taken, &mut recorded, &mut refused);
        let mut buried = Vec::new();
        let settled = if outcome.is_ok() {
            let handed_over = dead_letters.bury(refused);
            handed_over.and_then(|()| dead_letters.settle_soon(&mut buried))
        } else {
            // What is on the dead queue by now must not come again.
            dead_letters.finish(&mut buried)
        };
        recorded.extend(self.note_buried(buried));
        // After a failure nobody knows which are still to be buried: each is acknowledged alone.
        let oldest_dead = match settled {
            Ok(()) => dead_letters.oldest_tag(),
            Err(_) => Some(0),
        };
        desk.acknowledge(recorded, oldest_dead)?;
        outcome?;
        Ok(settled?)
    }

    /// Records a batch; one that the database takes for wrong costs only itself.
    fn record(
        &mut self,
        mut batch: Vec<(Delivery, Recordable)>,
        taken: Instant,
        recorded: &mut Vec<Delivery>,
        refused: &mut Vec<Dead>,
    ) -> Result<(), Interruption> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.orders.record(batch.iter().map(|(_, new)| new)) {
            Ok(ids) => {
                self.counts.note_commit(&batch, &ids);
                tell_of_orders(&batch, &ids, taken);
                recorded.extend(batch.into_iter().map(|(delivery, _)| delivery));
                Ok(())
            }
            Err(DbError::BadData(reason)) if batch.len() == 1 => {
                let reason = Reason {
                    kind: "database",
                    text: format!("the database refused it: {reason}"),
                };
                refused.extend(batch.into_iter().map(|(delivery, _)| Dead {
                    delivery,
                    reason: reason.clone(),
                }));
                Ok(())
            }
            Err(DbError::BadData(_)) => {
                let second = batch.split_off(batch.len() / 2);
                self.record(batch, taken, recorded, refused)?;
                self.record(second, taken, recorded, refused)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Counts what is on the dead queue now; the originals, to be acknowledged.
    fn note_buried(&mut self, buried: Vec<Dead>) -> impl Iterator<Item = Delivery> + use<> {
        self.counts.note_buried(&buried);
        self.burials.note(&buried);
        buried.into_iter().map(|dead| dead.delivery)
    }
}

/// Where deliveries are handed back.
struct Desk<'a> {
    channel: &'a Channel,
    link: &'a Link,
}

impl Desk<'_> {
    /// Acknowledges deliveries: all at once as far as no older one waits to be buried, the others
    /// each for itself.
    fn acknowledge(
        &self,
        mut done: Vec<Delivery>,
        oldest_dead: Option<u64>,
    ) -> Result<(), amiquip::Error> {
        done.sort_unstable_by_key(Delivery::delivery_tag);
        let tags: Vec<_> = done.iter().map(Delivery::delivery_tag).collect();
        self.link.release(tags.iter().copied());
        let before = oldest_dead.map_or(tags.len(), |dead| tags.partition_point(|tag| *tag < dead));
        let after = done.split_off(before);
        if let Some(last) = done.pop() {
            last.ack_multiple(self.channel)?;
        }
        after
            .into_iter()
            .try_for_each(|delivery| delivery.ack(self.channel))
    }
}

/// The first message and those that are here already or come within [`BATCH_LINGER`].
fn take_batch(
    first: Result<ConsumerMessage, RecvError>,
    deliveries: &Receiver<ConsumerMessage>,
) -> Result<Vec<Delivery>, LinkError> {
    let ended = LinkError::Broken("the broker ended the deliveries");
    let mut batch = vec![delivery(first.map_err(|_| ended)?)?];
    let deadline = Instant::now() + BATCH_LINGER;
    while batch.len() < BATCH_MAX {
        match deliveries.recv_deadline(deadline) {
            Ok(message) => batch.push(delivery(message)?),
            Err(_) => break,
        }
    }
    Ok(batch)
}

/// The message in what amiquip tells a consumer; everything else it tells is an end.
pub(crate) fn delivery(message: ConsumerMessage) -> Result<Delivery, LinkError> {
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
fn read(delivery: &Delivery) -> Result<Recordable, Reason> {
    let order = NewOrder::from_json(&delivery.body).map_err(|error| Reason {
        kind: error.at_fault().unwrap_or("body"),
        text: error.to_string(),
    })?;
    let message_id = delivery
        .properties
        .message_id()
        .clone()
        .filter(|id| !id.is_empty());
    let problem = match &message_id {
        Some(id) if id.contains('\0') => "the message id contains NUL or is not UTF-8",
        Some(id) if id.len() > MESSAGE_ID_BYTES_MAX => "the message id is too long",
        _ => return Ok(Recordable { message_id, order }),
    };
    Err(Reason {
        kind: "message_id",
        text: problem.to_owned(),
    })
}
