//! Orders onto the queue. One thread owns the link to the broker; the HTTP workers hand it
//! orders over a bounded channel, each with the client who waits for the answer, and that comes
//! when the broker has confirmed the message. So few workers carry many waiting clients, and
//! orders that come together are published together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use amiquip::{
    AmqpProperties, AmqpValue, Confirm, ConnectionBlockedNotification, FieldTable, Publish,
};
use common::backoff::Backoff;
use common::http::{Exchange, Problem, Response};
use common::metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Metrics};
use common::process::StartError;
use common::queue::{Confirming, Link, LinkError, QueueConfig, Unconfirmed};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, never, select};
use serde_json::json;

/// How long a client waits for the confirm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// A link whose oldest message has waited so long has forgotten it, and is given up.
const LINK_LIMIT: Duration = Duration::from_secs(15);

/// Orders that wait to be published; the next one is refused.
const WAITING_MAX: usize = 1024;

/// Messages that are published and not confirmed.
const WINDOW_MAX: usize = 512;

/// The same in bytes: below what amiquip holds for a broker that does not read, since beyond
/// that it would make this thread wait.
const WINDOW_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How often a quiet link is looked at.
const TICK: Duration = Duration::from_secs(1);

/// An order on its way to the queue.
pub(crate) struct Outgoing {
    /// The client's JSON, byte for byte.
    pub(crate) body: Vec<u8>,
    pub(crate) message_id: String,
    pub(crate) request_id: String,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The broker has it, on disk.
    Confirmed,
    /// The broker does not have it.
    Refused(Refusal),
    /// The broker has not said.
    Unknown(&'static str),
}

/// Why the broker does not have a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Away,
    Blocked,
    Full,
    Late,
    NoQueue,
    Nack,
}

impl Refusal {
    const ALL: [Self; 6] = [
        Self::Away,
        Self::Blocked,
        Self::Full,
        Self::Late,
        Self::NoQueue,
        Self::Nack,
    ];

    /// For the metrics, and for the log.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Away => ("away", "there is no link to RabbitMQ"),
            Self::Blocked => ("blocked", "an alarm of RabbitMQ blocks publishers"),
            Self::Full => ("full", "too many orders wait already"),
            Self::Late => ("late", "it waited too long"),
            Self::NoQueue => ("no_queue", "the queue is gone"),
            Self::Nack => ("nack", "RabbitMQ could not store it"),
        }
    }
}

struct Waiting {
    message: Outgoing,
    placed: Instant,
    client: Exchange,
}

/// The workers' end; cheap to clone.
#[derive(Clone)]
pub(crate) struct Orders {
    waiting: Sender<Waiting>,
    state: Arc<State>,
    counts: Counts,
}

/// What the publisher's thread last knew of the broker.
#[derive(Default)]
struct State {
    connected: AtomicBool,
    /// An alarm: the broker is short of memory or disk and reads no publishes.
    blocked: AtomicBool,
}

impl Orders {
    /// Whether an order has a chance now.
    pub(crate) fn is_open(&self) -> bool {
        self.closed_by().is_none()
    }

    fn closed_by(&self) -> Option<Refusal> {
        if !self.state.connected.load(Ordering::Relaxed) {
            Some(Refusal::Away)
        } else if self.state.blocked.load(Ordering::Relaxed) {
            Some(Refusal::Blocked)
        } else {
            None
        }
    }

    /// Whether an alarm of the broker keeps orders out.
    pub(crate) fn is_blocked(&self) -> bool {
        self.closed_by() == Some(Refusal::Blocked)
    }

    /// How many orders were confirmed since the start.
    pub(crate) fn confirmed(&self) -> u64 {
        self.counts.confirmed.get()
    }

    /// The client is answered when the broker has confirmed the message, or with a problem, at
    /// [`CONFIRM_LIMIT`] at the latest.
    pub(crate) fn place(&self, message: Outgoing, client: Exchange) {
        if let Some(refusal) = self.closed_by() {
            return self.counts.refuse(client, refusal);
        }
        let waiting = Waiting {
            message,
            placed: Instant::now(),
            client,
        };
        match self.waiting.try_send(waiting) {
            Ok(()) => {}
            Err(TrySendError::Full(waiting)) => self.counts.refuse(waiting.client, Refusal::Full),
            // The publisher's thread ends when nobody is left who could place an order.
            Err(TrySendError::Disconnected(waiting)) => {
                self.counts.refuse(waiting.client, Refusal::Away);
            }
        }
    }
}

fn confirmed(message_id: &str) -> Response<'static> {
    Response::json(
        200,
        &json!({ "message": "Message posted", "message_id": message_id }),
    )
}

fn refused(refusal: Refusal) -> Problem {
    Problem::unavailable("the order was not placed; try again", refusal.texts().1)
}

fn unknown(cause: &'static str) -> Problem {
    Problem::unavailable(
        "whether the order was placed is not known; a repeat is safe with the Idempotency-Key of \
         this request, and without one may order twice",
        cause,
    )
}

/// Starts the thread that owns the link. It ends when the last [`Orders`] is dropped and every
/// message has its outcome.
pub(crate) fn start(
    config: &QueueConfig,
    metrics: &Metrics,
) -> Result<(Orders, JoinHandle<()>), StartError> {
    let (sender, waiting) = crossbeam_channel::bounded(WAITING_MAX);
    let state = Arc::new(State::default());
    let counts = Counts::new(metrics);
    let publisher = Publisher {
        config: config.clone(),
        waiting,
        state: Arc::clone(&state),
        counts: counts.clone(),
    };
    let thread = thread::Builder::new()
        .name("publisher".to_owned())
        .spawn(move || publisher.run())
        .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))?;
    Ok((
        Orders {
            waiting: sender,
            state,
            counts,
        },
        thread,
    ))
}

#[derive(Clone)]
struct Counts {
    published: IntCounter,
    confirmed: IntCounter,
    refused: IntCounterVec,
    unknown: IntCounter,
    seconds: Histogram,
    connected: IntGauge,
    blocked: IntGauge,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help);
        let refused = metrics.counters(
            "orders_refused_total",
            "Orders that the broker does not have, by cause.",
            "cause",
        );
        for refusal in Refusal::ALL {
            // Shown as 0 until it happens: an alarm can ask for it.
            let _ = refused.with_label_values(&[refusal.texts().0]);
        }
        Self {
            published: counter("orders_published_total", "Orders sent to the broker."),
            confirmed: counter(
                "orders_confirmed_total",
                "Orders that the broker confirmed.",
            ),
            refused,
            unknown: counter("orders_unknown_total", "Orders whose confirm never came."),
            seconds: metrics.seconds(
                "order_confirm_seconds",
                "From an order's arrival to its confirm.",
            ),
            connected: metrics.gauge(
                "rabbitmq_connected",
                "1 while there is a link to the broker.",
            ),
            blocked: metrics.gauge(
                "rabbitmq_blocked",
                "1 while an alarm of the broker blocks publishers.",
            ),
        }
    }

    fn refuse(&self, client: Exchange, refusal: Refusal) {
        self.refused.with_label_values(&[refusal.texts().0]).inc();
        client.answer(Err(refused(refusal)));
    }
}

/// Why the publisher left a link.
enum End {
    /// Nobody is left who could place an order.
    AllPlaced,
    Lost(LinkError),
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        Self::Lost(error)
    }
}

impl From<amiquip::Error> for End {
    fn from(error: amiquip::Error) -> Self {
        Self::Lost(error.into())
    }
}

struct Publisher {
    config: QueueConfig,
    waiting: Receiver<Waiting>,
    state: Arc<State>,
    counts: Counts,
}

impl Publisher {
    /// One link after another until all is placed.
    fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut last_cause = String::new();
        loop {
            let (end, was_up) = self.with_link(&mut backoff);
            if was_up {
                // Whatever it is now, it is an outage of its own.
                last_cause.clear();
            }
            let error = match end {
                End::AllPlaced => return,
                End::Lost(error) => error,
            };
            let cause = error.to_string();
            if cause != last_cause {
                log::log!(error.level(), cause = cause.as_str(); "no link to the broker; orders are refused");
                last_cause = cause;
            }
            if self.refuse_until(Instant::now() + backoff.delay()) {
                return;
            }
        }
    }

    fn set_connected(&self, connected: bool) {
        self.state.connected.store(connected, Ordering::Relaxed);
        self.counts.connected.set(i64::from(connected));
        self.set_blocked(false);
    }

    fn set_blocked(&self, blocked: bool) {
        self.state.blocked.store(blocked, Ordering::Relaxed);
        self.counts.blocked.set(i64::from(blocked));
    }

    /// Refuses what still arrives, until then; true when nobody is left who could place one.
    fn refuse_until(&self, then: Instant) -> bool {
        loop {
            match self.waiting.recv_deadline(then) {
                Ok(waiting) => self.counts.refuse(waiting.client, Refusal::Away),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    fn with_link(&self, backoff: &mut Backoff) -> (End, bool) {
        let mut unconfirmed = Unconfirmed::default();
        let mut was_up = false;
        // Were this thread to end by a panic, orders would be refused for ever after.
        let left = catch_unwind(AssertUnwindSafe(|| {
            self.publish_over_link(&mut unconfirmed, backoff, &mut was_up)
        }));
        let end = match left {
            Ok(Ok(())) => End::AllPlaced,
            Ok(Err(end)) => end,
            Err(_) => End::Lost(LinkError::Broken("the publisher panicked")),
        };
        self.give_up(&mut unconfirmed);
        (end, was_up)
    }

    /// Nothing that was sent over the link will be confirmed, and nothing more is sent.
    fn give_up(&self, unconfirmed: &mut Unconfirmed<Sent>) {
        self.set_connected(false);
        for sent in unconfirmed.iter_mut() {
            self.tell(sent, Outcome::Unknown("the link broke before the confirm"));
        }
    }

    fn publish_over_link(
        &self,
        unconfirmed: &mut Unconfirmed<Sent>,
        backoff: &mut Backoff,
        was_up: &mut bool,
    ) -> Result<(), End> {
        let mut link = Link::open(&self.config, "api-gateway")?;
        let confirming = link.open_confirming(&self.config.queue)?;
        let blocked = link.blocked.clone();
        // Last, so that it is dropped first: the channel's farewell gets a limit.
        let _limit = link.limit_from_drop();

        self.set_connected(true);
        *was_up = true;
        log::info!(queue = self.config.queue.as_str(); "publishing");
        backoff.reset();
        let end = self.publish_until_lost(&confirming, &blocked, unconfirmed);
        // Before the farewell, which may take its time.
        self.give_up(unconfirmed);
        for waiting in self.waiting.try_iter() {
            self.counts.refuse(waiting.client, Refusal::Away);
        }
        end
    }

    fn publish_until_lost(
        &self,
        confirming: &Confirming,
        blocked: &Receiver<ConnectionBlockedNotification>,
        unconfirmed: &mut Unconfirmed<Sent>,
    ) -> Result<(), End> {
        let mut window_bytes = 0;
        let mut last_look = Instant::now();
        let mut all_placed = false;
        loop {
            if all_placed && unconfirmed.is_empty() {
                return Ok(());
            }
            let full = unconfirmed.len() >= WINDOW_MAX || window_bytes >= WINDOW_BYTES_MAX;
            let closed = never();
            let waiting = if full || all_placed {
                &closed
            } else {
                &self.waiting
            };
            select! {
                recv(waiting) -> next => match next {
                    Ok(waiting) => self.publish(confirming, waiting, unconfirmed, &mut window_bytes)?,
                    Err(_) => all_placed = true,
                },
                recv(confirming.confirms) -> confirm => {
                    let confirm = confirm.map_err(|_| LinkError::Broken("it ended the link"))?;
                    self.settle(confirming, confirm, unconfirmed, &mut window_bytes)?;
                }
                recv(blocked) -> notification => self.note_alarm(notification.ok())?,
                default(TICK) => {}
            }
            if last_look.elapsed() >= TICK {
                last_look = Instant::now();
                self.look_at_the_oldest(unconfirmed)?;
            }
        }
    }

    /// Tells the clients who have waited long enough.
    fn look_at_the_oldest(&self, unconfirmed: &mut Unconfirmed<Sent>) -> Result<(), LinkError> {
        for sent in unconfirmed.iter_mut() {
            let waited = sent.placed.elapsed();
            if waited > LINK_LIMIT {
                return Err(LinkError::Broken("it does not confirm"));
            }
            if waited < CONFIRM_LIMIT {
                break;
            }
            self.tell(sent, Outcome::Unknown("no confirm in time"));
        }
        Ok(())
    }

    fn publish(
        &self,
        confirming: &Confirming,
        waiting: Waiting,
        unconfirmed: &mut Unconfirmed<Sent>,
        window_bytes: &mut usize,
    ) -> Result<(), End> {
        if waiting.placed.elapsed() >= CONFIRM_LIMIT {
            self.counts.refuse(waiting.client, Refusal::Late);
            return Ok(());
        }
        let Waiting {
            message,
            placed,
            client,
        } = waiting;
        let publish = Publish {
            body: &message.body,
            routing_key: self.config.queue.clone(),
            mandatory: true,
            immediate: false,
            properties: properties(&message),
        };
        *window_bytes += message.body.len();
        unconfirmed.push(Sent {
            message_id: message.message_id,
            body_bytes: message.body.len(),
            placed,
            client: Some(client),
            returned: false,
        });
        self.counts.published.inc();
        Ok(confirming.channel.basic_publish("", publish)?)
    }

    fn settle(
        &self,
        confirming: &Confirming,
        confirm: Confirm,
        unconfirmed: &mut Unconfirmed<Sent>,
        window_bytes: &mut usize,
    ) -> Result<(), End> {
        // A message that no queue took is returned first and then confirmed like any other.
        let mut queue_is_gone = false;
        for returned in confirming.returns.try_iter() {
            queue_is_gone = true;
            let id = returned
                .properties
                .message_id()
                .as_deref()
                .unwrap_or_default();
            if let Some(sent) = unconfirmed
                .iter_mut()
                .find(|s| !s.returned && s.message_id == id)
            {
                sent.returned = true;
            }
        }
        let (taken, settled) = unconfirmed.settle(confirm);
        if queue_is_gone || !taken {
            // Before anyone is told: who hears of it finds `/ready` of the same opinion.
            self.set_connected(false);
        }
        for mut sent in settled.into_values() {
            *window_bytes -= sent.body_bytes;
            let outcome = match (taken, sent.returned) {
                (true, false) => Outcome::Confirmed,
                (true, true) => Outcome::Refused(Refusal::NoQueue),
                (false, _) => Outcome::Refused(Refusal::Nack),
            };
            self.tell(&mut sent, outcome);
        }
        if queue_is_gone {
            // A new link declares the queue anew.
            return Err(LinkError::Broken("the queue is gone").into());
        }
        if !taken {
            // A channel that was opened while a quorum queue had no leader refuses for ever.
            return Err(LinkError::Broken("it does not store what it is sent").into());
        }
        Ok(())
    }

    fn note_alarm(&self, notification: Option<ConnectionBlockedNotification>) -> Result<(), End> {
        match notification {
            Some(ConnectionBlockedNotification::Blocked(reason)) => {
                self.set_blocked(true);
                log::warn!(reason = reason.as_str(); "the broker raised an alarm; orders are refused");
            }
            Some(ConnectionBlockedNotification::Unblocked) => {
                self.set_blocked(false);
                log::info!("the broker's alarm is over");
            }
            None => return Err(LinkError::Broken("it ended the link").into()),
        }
        Ok(())
    }

    /// Answers the client, unless they had another answer before.
    fn tell(&self, sent: &mut Sent, outcome: Outcome) {
        let Some(client) = sent.client.take() else {
            return;
        };
        match outcome {
            Outcome::Confirmed => {
                self.counts.confirmed.inc();
                let waited = sent.placed.elapsed();
                self.counts.seconds.observe(waited.as_secs_f64());
                client.answer(Ok(confirmed(&sent.message_id)));
            }
            Outcome::Refused(refusal) => self.counts.refuse(client, refusal),
            Outcome::Unknown(cause) => {
                self.counts.unknown.inc();
                client.answer(Err(unknown(cause)));
            }
        }
    }
}

/// A published message whose confirm is awaited.
struct Sent {
    message_id: String,
    body_bytes: usize,
    placed: Instant,
    /// Who waits for it; None where they have been answered.
    client: Option<Exchange>,
    returned: bool,
}

fn properties(message: &Outgoing) -> AmqpProperties {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut headers = FieldTable::new();
    headers.insert(
        "x-request-id".to_owned(),
        AmqpValue::LongString(message.request_id.clone()),
    );
    AmqpProperties::default()
        .with_content_type("application/json".to_owned())
        .with_delivery_mode(2)
        .with_message_id(message.message_id.clone())
        .with_timestamp(now.as_secs())
        .with_headers(headers)
}
