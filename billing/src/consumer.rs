//! Takes messages off the queue and settles them. A message is acknowledged after the commit that
//! holds it, so a crash in between delivers it again, and recording it again changes nothing. The
//! consumer publishes nothing. Every failure takes one way back: drop the link (the broker keeps
//! what was not acknowledged), wait, start over.

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
use crate::message::{Message, Source};
use crate::report::Report;
use crate::settle::{Settled, settle};
use crate::store::{Fate, MIGRATIONS, RecordStore};

/// At most so many messages in one commit.
const BATCH_MAX: usize = 1000;

/// How long a batch that is not full waits for more: a commit costs as much.
const BATCH_LINGER: Duration = Duration::from_millis(3);

/// At most so many messages here that are not acknowledged: those that are held, the batch that is
/// committed, and the next one. What they may weigh is bounded by the [`AmqpConnection`].
const PREFETCH: u16 = 20_000;

/// With so many messages held the session ends, and all of them wait in the queue.
const HELD_MAX: usize = PREFETCH as usize - 2 * BATCH_MAX;

/// How long a batch that is refused is divided.
const DIVISION_LIMIT: Duration = Duration::from_secs(1);

/// How long the messages in hand are kept while nothing can be recorded. One of them may be what ends
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

/// Starts the thread that owns the link to the broker and the connection to the database. The
/// channel closes when the thread has ended.
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
        report: Report::new(metrics),
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
    /// Error where somebody has to mend something.
    level: log::Level,
    /// Rather than the broker's.
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
    report: Report,
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

    /// Tells the log and waits before the next try; true if the shutdown was requested meanwhile.
    fn pause(&mut self, because: &Interruption) -> bool {
        let text = "interrupted; orders wait in the queue";
        let pause = self.outage.note(because.level, &because.cause, text);
        self.shutdown.wait_at_most(pause)
    }

    /// Where orders cannot be recorded, waits until they can. Without messages in hand the session ends.
    fn await_recovery(
        &mut self,
        hand: &Hand<'_>,
        mut checked: Result<(), DbError>,
    ) -> Result<(), Interruption> {
        let since = Instant::now();
        while let Err(error) = checked {
            let interruption = Interruption::from(error);
            if hand.ledger.len() == 0 || since.elapsed() >= RECOVERY_LIMIT {
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
        let mut link = self.connect()?;
        let channel = link.open_channel()?;
        link.declare(&self.queue.queue)?;
        let limit = link.deadline();
        channel.qos(0, PREFETCH, false)?;
        // A second receiver, dropped after the consumer: amiquip's thread ends the connection
        // when it has a delivery for one that is gone.
        let deliveries;
        let consumer =
            channel.basic_consume(self.queue.queue.as_str(), ConsumerOptions::default())?;
        drop(limit);
        deliveries = consumer.receiver().clone();
        // Last, so that it is dropped first: the farewells above get a limit.
        let _limit = link.deadline_on_drop();

        self.health.state().rabbitmq = true;
        if self.outage.connects() {
            log::info!(queue = self.queue.queue.as_str(); "consuming");
        }
        let mut hand = Hand {
            link: &link,
            channel: &channel,
            deliveries: &deliveries,
            ledger: Ledger::default(),
            held: VecDeque::new(),
        };
        let mut ticked = Instant::now();
        // A select takes any that is ready: orders that keep coming would put the end off.
        while !self.shutdown.is_requested() {
            select! {
                recv(self.shutdown.requested()) -> _ => {}
                recv(deliveries) -> first => {
                    let batch = hand.take_batch(first)?;
                    self.report.took(batch.len());
                    self.settle(&mut hand, batch, DIVISION_LIMIT)?;
                }
                default(TICK) => {}
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick(&mut hand)?;
            }
        }
        Ok(())
    }

    /// Connects to both servers. Where one is away the other is asked all the same, so that
    /// `/ready` tells the truth of each.
    fn connect(&mut self) -> Result<AmqpConnection, Interruption> {
        let failed = self.health.state().recording == Recording::Fails;
        let checked = self.check();
        let link = AmqpConnection::open(&self.queue, "billing-consumer");
        let mut state = self.health.state();
        state.rabbitmq = link.is_ok();
        if checked.is_err() {
            state.recording = Recording::Fails;
        } else if !failed || link.is_err() {
            // What failed before has to succeed first where there is something to record.
            state.recording = Recording::Works;
        }
        drop(state);
        checked?;
        Ok(link?)
    }

    /// Has fates decided and acknowledges what is settled. The messages of a batch that fails are
    /// settled as far as it got.
    fn settle(
        &mut self,
        hand: &mut Hand<'_>,
        mut batch: Vec<Message>,
        limit: Duration,
    ) -> Result<(), Interruption> {
        let since = Instant::now();
        let held = batch
            .iter()
            .filter(|message| message.held.is_some())
            .count();
        hand.show(&self.health, held, Some(since));
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
        let put_down = hand.put_down(settled);
        hand.held.extend(batch);
        hand.show(&self.health, 0, None);
        put_down?;
        let checked = match outcome {
            Ok(()) if !progress => self.check(),
            outcome => outcome,
        };
        self.await_recovery(hand, checked)?;
        if hand.holds_too_much() {
            let text = "too many messages wait for somebody else".to_owned();
            return Err(DbError::Locked(text).into());
        }
        Ok(())
    }

    /// Tries held messages again, and finds out whether orders can be recorded.
    fn tick(&mut self, hand: &mut Hand<'_>) -> Result<(), Interruption> {
        self.report.tick();
        let since = Instant::now();
        let (mut left, mut together) = (hand.held.len(), 1);
        while left > 0 && since.elapsed() < RETRIES_LIMIT {
            if hand.held[0].held > Some(since) {
                hand.held.rotate_left(1);
                left -= 1;
                continue;
            }
            let next = hand.held.iter().take(together.min(left));
            let next = next.take_while(|next| next.held <= Some(since) && !next.suspect);
            let count = next.count().max(1);
            left -= count;
            // One that is held again goes behind the others.
            let batch: Vec<_> = hand.held.drain(..count).collect();
            let (others, tried) = (hand.held.len(), Instant::now());
            self.settle(hand, batch, RETRIES_LIMIT)?;
            let all_settled = hand.held.len() == others;
            together = if all_settled {
                RETRIES_MAX.min(2 * together)
            } else {
                1
            };
            for message in hand.held.iter_mut().skip(others) {
                message.suspect |= count > 1;
                if let (1, Some(again)) = (count, &mut message.held) {
                    *again += RETRIES_PAUSE * tried.elapsed();
                }
            }
        }
        hand.show(&self.health, 0, None);
        let checked = self.check();
        if checked.is_ok() {
            self.note_success();
        }
        self.await_recovery(hand, checked)
    }

    /// Orders are recorded, or could be.
    fn note_success(&mut self) {
        self.health.state().recording = Recording::Works;
        if self.outage.end() {
            log::info!("orders are recorded again");
        }
    }
}

/// The messages of one channel that are not acknowledged.
struct Hand<'a> {
    link: &'a AmqpConnection,
    channel: &'a Channel,
    deliveries: &'a Receiver<ConsumerMessage>,
    ledger: Ledger,
    held: VecDeque<Message>,
}

impl Hand<'_> {
    /// The first message and those that are here already or come within [`BATCH_LINGER`].
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
        self.link
            .reduce(tag, message.body_bytes - message.body.len());
        Ok(message)
    }

    /// Acknowledges what is settled and keeps what is held.
    fn put_down(&mut self, settled: Settled) -> Result<(), amiquip::Error> {
        let mut done = Vec::with_capacity(settled.len());
        for (mut message, fate) in settled {
            if let Fate::Held(_) = fate {
                message.held = Some(Instant::now());
                self.held.push_back(message);
            } else if let Source::Queue(delivery) = message.source {
                done.push((delivery.delivery_tag(), delivery));
            }
        }
        self.link.release(done.iter().map(|(tag, _)| *tag));
        let acknowledgements = self.ledger.settle(done);
        if let Some(last) = acknowledgements.up_to {
            last.ack_multiple(self.channel)?;
        }
        let mut alone = acknowledgements.alone.into_iter();
        alone.try_for_each(|delivery| delivery.ack(self.channel))
    }

    /// Whether what is held leaves no room for anything else.
    fn holds_too_much(&self) -> bool {
        let all = !self.held.is_empty() && self.ledger.len() == self.held.len();
        self.held.len() >= HELD_MAX || (all && self.link.is_full())
    }

    /// Shows what is in hand, with so many that are held and tried again.
    fn show(&self, health: &Health, tried_again: usize, trying_since: Option<Instant>) {
        let mut state = health.state();
        state.in_hand = self.ledger.len() + self.deliveries.len();
        state.oldest = self.ledger.oldest();
        state.held = self.held.len() + tried_again;
        if state.held == 0 {
            state.unrecorded_since = None;
        }
        state.trying_since = trying_since;
    }
}

/// The message in what amiquip tells a consumer; everything else it tells is an end.
fn delivery(message: ConsumerMessage) -> Result<Delivery, AmqpError> {
    match message {
        ConsumerMessage::Delivery(delivery) => Ok(delivery),
        ConsumerMessage::ServerClosedChannel(error)
        | ConsumerMessage::ServerClosedConnection(error) => Err(error.into()),
        ConsumerMessage::ServerCancelled => Err(AmqpError::Broken("the queue was deleted")),
        ConsumerMessage::ClientCancelled
        | ConsumerMessage::ClientClosedChannel
        | ConsumerMessage::ClientClosedConnection => Err(AmqpError::Broken("the link was closed")),
    }
}
