//! Consumes messages and settles them. A message is acknowledged after the commit that contains it, so after a
//! crash in between the broker delivers it again, and recording it again changes nothing. The consumer
//! publishes nothing. After a failure of the broker, or if PostgreSQL fails for too long, the consumer drops the
//! connection to the broker, which requeues the unacknowledged messages; then the consumer waits and starts again.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use amiquip::ConsumerOptions;
use common::amqp::{AmqpConnection, AmqpError, QueueConfig};
use common::db::{Database, DbError};
use common::metrics::Metrics;
use common::outage::Outage;
use common::process::{self, StartError};
use common::shutdown::Shutdown;
use crossbeam_channel::{Receiver, select};

use crate::config::ConsumerConfig;
use crate::health::{Health, Recording};
use crate::ledger::Ledger;
use crate::message::Message;
use crate::message_report::MessageReport;
use crate::settle::{Fates, settle};
use crate::store::{MIGRATIONS, RecordStore};
use crate::unacknowledged::{PREFETCH, Unacknowledged};

/// How long a refused batch is divided.
const DIVISION_LIMIT: Duration = Duration::from_secs(1);

/// How long the consumer keeps unacknowledged messages while nothing can be recorded. One of them may be what ends
/// PostgreSQL each time: retries, together and then one by one, find it.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);

/// How often held messages are tried again, and how long that may take.
const TICK: Duration = Duration::from_secs(1);
const RETRIES_LIMIT: Duration = Duration::from_millis(200);

/// How many held messages are tried again together at most. After one that is held again the next is tried alone,
/// since each may wait for a lock.
const RETRIES_MAX: usize = 64;

/// A message that was tried alone and is held again waits this many times as long as its try took, so that slow
/// tries take at most a fifth of the time: a try may last until the limit of a statement, or end PostgreSQL.
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
    process::spawn("consumer", move || {
        consumer.run();
        drop(ended);
    })?;
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
            let outcome = catch_unwind(AssertUnwindSafe(|| self.session()));
            let interruption = match outcome {
                Ok(Ok(())) => return,
                Ok(Err(interruption)) => interruption,
                Err(_) => Interruption {
                    cause: "the consumer panicked".to_owned(),
                    level: log::Level::Error,
                    of_database: true,
                },
            };
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

    /// Waits until orders can be recorded. Without unacknowledged messages, or after [`RECOVERY_LIMIT`], the
    /// session ends instead.
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

    /// Checks whether orders can be recorded.
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
        let deadline = connection.deadline();
        channel.qos(0, PREFETCH, false)?;
        // This second receiver exists until the consumer is cancelled. If all receivers were dropped before, the
        // next delivery would make amiquip's thread end the connection.
        let deliveries;
        let consumer =
            channel.basic_consume(self.queue.queue.as_str(), ConsumerOptions::default())?;
        drop(deadline);
        deliveries = consumer.receiver().clone();
        // Declared last, so that it is dropped first, and the drops of channel and consumer get a deadline.
        let _deadline = connection.deadline_on_drop();

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
                    self.report.note_delivered(batch.len());
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
        let checked = self.check();
        let connection = AmqpConnection::open(&self.queue, "billing-consumer");
        let mut state = self.health.state();
        state.rabbitmq = connection.is_ok();
        if checked.is_err() {
            state.recording = Recording::Fails;
        } else if state.recording == Recording::Unknown || connection.is_err() {
            // After a failure of PostgreSQL connections to both servers do not suffice: an order has to be
            // recorded, or a check has to pass in the session. Without the broker there is no session, so this
            // check decides.
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
        let mut fates = Fates::new();
        let outcome = settle(&mut self.store, &mut batch, since + limit, &mut fates);
        let committed = self.health.state().note(&fates, since);
        self.report.note(&fates, since);
        if committed {
            self.note_success();
        }
        let acknowledged = unacknowledged.acknowledge(fates);
        unacknowledged.held.extend(batch);
        unacknowledged.show(&self.health, 0, None);
        acknowledged?;
        let checked = match outcome {
            Ok(()) if !committed => self.check(),
            outcome => outcome,
        };
        self.await_recovery(unacknowledged, checked)?;
        if unacknowledged.holds_too_much() {
            return Err(Interruption {
                cause: "too many messages are held".to_owned(),
                level: log::Level::Warn,
                of_database: true,
            });
        }
        Ok(())
    }

    /// Tries held messages again, and checks whether orders can be recorded.
    fn tick(&mut self, unacknowledged: &mut Unacknowledged<'_>) -> Result<(), Interruption> {
        self.report.begin_second();
        let since = Instant::now();
        let is_due = |message: &Message| message.held <= Some(since);
        // Messages that are held again are added behind the others, and are not due before the next tick; those
        // that met an outage are due at once.
        unacknowledged
            .held
            .make_contiguous()
            .sort_by_key(|message| message.held);
        let mut together = 1;
        while unacknowledged.held.front().is_some_and(is_due) && since.elapsed() < RETRIES_LIMIT {
            let next = unacknowledged.held.iter().take(together);
            let next = next.take_while(|message| is_due(message) && !message.suspect);
            let count = next.count().max(1);
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
