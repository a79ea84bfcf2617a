//! Consumes messages and settles them. A message is acknowledged after the commit that contains it, so after a
//! crash in between the broker delivers it again, and recording it again changes nothing. The consumer
//! publishes nothing. After every failure the consumer drops the connection, upon which the broker requeues
//! what was not acknowledged, waits, and starts again.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use amiquip::{Channel, ConsumerMessage, ConsumerOptions, Delivery};
use common::amqp::{AmqpConnection, AmqpError, QueueConfig};
use common::db::{Database, DbError};
use common::metrics::Metrics;
use common::outage::Outage;
use common::process::StartError;
use common::shutdown::Shutdown;
use crossbeam_channel::{Receiver, RecvError, select};

use crate::config::ConsumerConfig;
use crate::health::{Health, Recording};
use crate::ledger::Ledger;
use crate::message::{Message, MessageSource};
use crate::message_report::MessageReport;
use crate::settle::{Settled, settle};
use crate::store::{Fate, MIGRATIONS, RecordStore};

/// How many messages one commit may have.
const BATCH_MAX: usize = 1000;

/// How long a batch that is not full waits for more messages: a commit takes as long.
const BATCH_LINGER: Duration = Duration::from_millis(3);

/// How many messages may be unacknowledged: those that are held, the batch that is committed, and the next one.
/// The [`AmqpConnection`] limits their bytes.
const PREFETCH: u16 = 20_000;

/// With so many held messages the session ends, and all of them are requeued.
const HELD_MAX: usize = PREFETCH as usize - 2 * BATCH_MAX;

/// How long a batch that is refused is divided.
const DIVISION_LIMIT: Duration = Duration::from_secs(1);

/// How long unacknowledged messages are kept while nothing can be recorded. One of them may be what ends
/// PostgreSQL each time: it is found among those that are tried again, together and then one by one.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);

/// How often held messages are tried again, and how long that may take.
const TICK: Duration = Duration::from_secs(1);
const RETRIES_LIMIT: Duration = Duration::from_millis(200);

/// At most so many are tried again together, and one alone after one that is held again: each waits
/// for its lock.
const RETRIES_MAX: usize = 64;

/// One that was tried alone and in vain is left so many times as long as that took: it may wait for the
/// limit of a statement each time, or end PostgreSQL.
const RETRIES_PAUSE: u32 = 4;

/// Starts the thread that owns the connections to the broker and to the database. The returned channel closes
/// when the thread has ended.
pub(crate) fn start(
    config: &ConsumerConfig,
    metrics: &Metrics,
    health: Health,
    shutdown: &Shutdown,
) -> Result<Receiver<()>, StartError> {
    let database = Database::new(&config.database, MIGRATIONS);
    let mut consumer = Consumer {
        outage: Outage::none(Duration::from_millis(200), Duration::from_secs(3)),
        queue: config.queue.clone(),
        store: RecordStore::new(&database, config.dead_letters_bytes_max),
        health,
        report: MessageReport::new(metrics),
        shutdown: shutdown.clone(),
    };
    let (ended, end) = crossbeam_channel::bounded(0);
    thread::Builder::new()
        .name("consumer".to_owned())
        .spawn(move || {
            consumer.run();
            drop(ended);
        })
        .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))?;
    Ok(end)
}

/// Why a session with both servers ended.
struct Interruption {
    cause: String,
    /// Level error if an operator has to correct something.
    level: log::Level,
    /// Whether the database failed, and not the broker.
    of_database: bool,
}

impl Interruption {
    fn panic() -> Self {
        Self {
            cause: "the consumer panicked".to_owned(),
            level: log::Level::Error,
            of_database: true,
        }
    }
}

impl From<DbError> for Interruption {
    fn from(error: DbError) -> Self {
        Self {
            cause: error.to_string(),
            level: match error {
                DbError::Unavailable(_) | DbError::Locked(_) => log::Level::Warn,
                _ => log::Level::Error,
            },
            of_database: true,
        }
    }
}

impl From<AmqpError> for Interruption {
    fn from(error: AmqpError) -> Self {
        Self {
            cause: error.to_string(),
            level: error.level(),
            of_database: false,
        }
    }
}

impl From<amiquip::Error> for Interruption {
    fn from(error: amiquip::Error) -> Self {
        AmqpError::from(error).into()
    }
}

struct Consumer {
    outage: Outage,
    queue: QueueConfig,
    store: RecordStore,
    health: Health,
    report: MessageReport,
    shutdown: Shutdown,
}

impl Consumer {
    /// One session after another until the shutdown.
    fn run(&mut self) {
        loop {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.session()))
                .unwrap_or_else(|_| Err(Interruption::panic()));
            let Err(interruption) = outcome else { return };
            self.health.state().interrupted(interruption.of_database);
            if self.pause(&interruption) {
                return;
            }
        }
    }

    /// Logs the failure and waits before the next try; true if the shutdown was requested meanwhile.
    fn pause(&mut self, because: &Interruption) -> bool {
        let text = "interrupted; orders wait in the queue";
        let pause = self.outage.note(because.level, &because.cause, text);
        self.shutdown.wait_at_most(pause)
    }

    /// Waits until orders can be recorded. Without unacknowledged messages the session ends instead.
    fn await_recovery(
        &mut self,
        unacknowledged: &Unacknowledged<'_>,
        mut checked: Result<(), DbError>,
    ) -> Result<(), Interruption> {
        let since = Instant::now();
        while let Err(error) = checked {
            let interruption = Interruption::from(error);
            if unacknowledged.ledger.len() == 0 || since.elapsed() >= RECOVERY_LIMIT {
                return Err(interruption);
            }
            self.health.state().recording = Recording::Fails;
            if self.pause(&interruption) {
                return Ok(());
            }
            checked = self.check();
        }
        Ok(())
    }

    /// Finds out whether orders can be recorded.
    fn check(&mut self) -> Result<(), DbError> {
        self.health.state().trying_since = Some(Instant::now());
        let checked = self.store.check();
        self.health.state().trying_since = None;
        checked
    }

    /// Consumes until the shutdown, or until something breaks.
    fn session(&mut self) -> Result<(), Interruption> {
        let mut connection = self.connect()?;
        let channel = connection.open_channel()?;
        connection.declare(&self.queue.queue)?;
        let limit = connection.deadline();
        channel.qos(0, PREFETCH, false)?;
        // A second receiver, dropped after the consumer: amiquip's thread ends the connection
        // when it has a delivery for one that is gone.
        let deliveries;
        let consumer =
            channel.basic_consume(self.queue.queue.as_str(), ConsumerOptions::default())?;
        drop(limit);
        deliveries = consumer.receiver().clone();
        // Declared last, so that it is dropped first, and the drops of channel and consumer get a deadline.
        let _limit = connection.deadline_on_drop();

        self.health.state().rabbitmq = true;
        if self.outage.connects() {
            log::info!(queue = self.queue.queue.as_str(); "consuming");
        }
        let mut unacknowledged = Unacknowledged {
            connection: &connection,
            channel: &channel,
            deliveries: &deliveries,
            ledger: Ledger::default(),
            held: VecDeque::new(),
        };
        let mut ticked = Instant::now();
        // A select takes any channel that is ready, so a stream of orders would delay the shutdown.
        while !self.shutdown.is_requested() {
            select! {
                recv(self.shutdown.requested()) -> _ => {}
                recv(deliveries) -> first => {
                    let batch = unacknowledged.take_batch(first)?;
                    self.report.took(batch.len());
                    self.settle(&mut unacknowledged, batch, DIVISION_LIMIT)?;
                }
                default(TICK) => {}
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick(&mut unacknowledged)?;
            }
        }
        Ok(())
    }

    /// Connects to both servers. If one is unreachable the other is tried nevertheless, so that `/ready` shows the
    /// state of each.
    fn connect(&mut self) -> Result<AmqpConnection, Interruption> {
        let failed = self.health.state().recording == Recording::Fails;
        let checked = self.check();
        let connection = AmqpConnection::open(&self.queue, "billing-consumer");
        let mut state = self.health.state();
        state.rabbitmq = connection.is_ok();
        if checked.is_err() {
            state.recording = Recording::Fails;
        } else if !failed || connection.is_err() {
            // After a failure an order has to be recorded first.
            state.recording = Recording::Works;
        }
        drop(state);
        checked?;
        Ok(connection?)
    }

    /// Settles a batch and acknowledges the settled messages. If the batch fails, the messages that were settled
    /// before are acknowledged.
    fn settle(
        &mut self,
        unacknowledged: &mut Unacknowledged<'_>,
        mut batch: Vec<Message>,
        limit: Duration,
    ) -> Result<(), Interruption> {
        let since = Instant::now();
        let held = batch
            .iter()
            .filter(|message| message.held.is_some())
            .count();
        unacknowledged.show(&self.health, held, Some(since));
        let mut settled = Settled::new();
        let outcome = settle(&mut self.store, &mut batch, since + limit, &mut settled);
        let progress = settled
            .iter()
            .any(|(_, fate)| !matches!(fate, Fate::Held(_)));
        self.health.state().note(&settled, since);
        self.report.note(&settled, since);
        if progress {
            self.health.state().committed_at = Some(SystemTime::now());
            self.note_success();
        }
        let acknowledged = unacknowledged.acknowledge(settled);
        unacknowledged.held.extend(batch);
        unacknowledged.show(&self.health, 0, None);
        acknowledged?;
        let checked = match outcome {
            Ok(()) if !progress => self.check(),
            outcome => outcome,
        };
        self.await_recovery(unacknowledged, checked)?;
        if unacknowledged.holds_too_much() {
            let text = "too many messages wait for locks of other sessions".to_owned();
            return Err(DbError::Locked(text).into());
        }
        Ok(())
    }

    /// Tries held messages again, and finds out whether orders can be recorded.
    fn tick(&mut self, unacknowledged: &mut Unacknowledged<'_>) -> Result<(), Interruption> {
        self.report.tick();
        let since = Instant::now();
        let (mut left, mut together) = (unacknowledged.held.len(), 1);
        while left > 0 && since.elapsed() < RETRIES_LIMIT {
            if unacknowledged.held[0].held > Some(since) {
                unacknowledged.held.rotate_left(1);
                left -= 1;
                continue;
            }
            let next = unacknowledged.held.iter().take(together.min(left));
            let next = next.take_while(|next| next.held <= Some(since) && !next.suspect);
            let count = next.count().max(1);
            left -= count;
            // A message that is held again is put behind the others.
            let batch: Vec<_> = unacknowledged.held.drain(..count).collect();
            let (others, tried) = (unacknowledged.held.len(), Instant::now());
            self.settle(unacknowledged, batch, RETRIES_LIMIT)?;
            let all_settled = unacknowledged.held.len() == others;
            together = if all_settled {
                RETRIES_MAX.min(2 * together)
            } else {
                1
            };
            for message in unacknowledged.held.iter_mut().skip(others) {
                message.suspect |= count > 1;
                if let (1, Some(again)) = (count, &mut message.held) {
                    *again += RETRIES_PAUSE * tried.elapsed();
                }
            }
        }
        unacknowledged.show(&self.health, 0, None);
        let checked = self.check();
        if checked.is_ok() {
            self.note_success();
        }
        self.await_recovery(unacknowledged, checked)
    }

    /// Notes that orders are recorded, or can be.
    fn note_success(&mut self) {
        self.health.state().recording = Recording::Works;
        if self.outage.end() {
            log::info!("orders are recorded again");
        }
    }
}

/// The unacknowledged messages of one channel.
struct Unacknowledged<'a> {
    connection: &'a AmqpConnection,
    channel: &'a Channel,
    deliveries: &'a Receiver<ConsumerMessage>,
    ledger: Ledger,
    held: VecDeque<Message>,
}

impl Unacknowledged<'_> {
    /// The first message, and those that have arrived already or arrive within [`BATCH_LINGER`].
    fn take_batch(
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

    /// Acknowledges the settled messages and keeps the held ones.
    fn acknowledge(&mut self, settled: Settled) -> Result<(), amiquip::Error> {
        let mut done = Vec::with_capacity(settled.len());
        for (mut message, fate) in settled {
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
    fn holds_too_much(&self) -> bool {
        let all = !self.held.is_empty() && self.ledger.len() == self.held.len();
        self.held.len() >= HELD_MAX || (all && self.connection.is_full())
    }

    /// Updates the metrics; `tried_again` is the number of held messages that are being tried again.
    fn show(&self, health: &Health, tried_again: usize, trying_since: Option<Instant>) {
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

/// The delivery of a [`ConsumerMessage`]; every other one is the end of the consumer.
fn delivery(message: ConsumerMessage) -> Result<Delivery, AmqpError> {
    match message {
        ConsumerMessage::Delivery(delivery) => Ok(delivery),
        ConsumerMessage::ServerClosedChannel(error)
        | ConsumerMessage::ServerClosedConnection(error) => Err(error.into()),
        ConsumerMessage::ServerCancelled => Err(AmqpError::Broken("the queue was deleted")),
        ConsumerMessage::ClientCancelled
        | ConsumerMessage::ClientClosedChannel
        | ConsumerMessage::ClientClosedConnection => {
            Err(AmqpError::Broken("the connection was closed"))
        }
    }
}
