//! Publishes orders. The HTTP workers send each order, with its request, over a bounded channel to the
//! publisher's thread, which answers the request when the broker has confirmed the message. Few workers
//! therefore serve many waiting clients, and orders that arrive together are published together. The
//! publisher's thread never waits for the broker: another thread opens and closes the connection
//! (`connection.rs`), so every order is answered in time, whatever the connection does.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use amiquip::{
    AmqpProperties, AmqpValue, Confirm, ConnectionBlockedNotification, FieldTable, Publish,
};
use common::amqp::{AmqpError, OutstandingConfirms, QueueConfig};
use common::http::{DependencyState, Problem, Request, Response};
use common::metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Metrics};
use common::order::NewOrder;
use common::process::{self, StartError};
use crossbeam_channel::{Receiver, Sender, TrySendError, never, select};
use serde_json::json;

use crate::connection::{
    self, ConnectionEvent, ConnectionHandle, PublishChannel, ReleaseReason, ReleasedChannel,
};
use crate::idempotency_keys::{IdempotencyKeys, KeyMatch};

/// How long an order may wait, after its check, until its client is answered; the thread looks every 250 ms.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A connection is closed when its oldest message has waited for a confirm for this long.
const UNCONFIRMED_LIMIT: Duration = Duration::from_secs(15);

/// How many orders may wait to be published; the gateway refuses further ones.
const WAITING_MAX: usize = 1024;

/// How many messages may be published and not confirmed. So many messages of
/// [`ORDER_BYTES_MAX`](common::order::ORDER_BYTES_MAX) bytes fit in amiquip's write buffer. If the buffer were
/// full while the broker does not read, amiquip would block this thread.
const WINDOW_MAX: usize = 512;

/// How often the publisher checks its time limits.
const TICK: Duration = Duration::from_millis(250);

/// When the broker has refused every order for this long, the publisher opens another channel: RabbitMQ refuses
/// all messages of a channel that was opened while a quorum queue had no leader.
const REFUSING_AFTER: Duration = Duration::from_secs(5);

/// For how long after a refusal the gateway is not ready. This time has an end because a load balancer sends no
/// orders to a gateway that is not ready, and only an order can show that the broker accepts orders again.
const REFUSAL_RECENT: Duration = Duration::from_secs(10);

/// How often the publisher logs how many orders the broker has refused.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// How long the connection may take to close when no order is left.
const CLOSE_LIMIT: Duration = Duration::from_millis(300);

/// The message that an order becomes.
pub(crate) struct OrderMessage {
    /// The fields of the order, each as the client wrote it.
    pub(crate) body: Vec<u8>,
    pub(crate) message_id: String,
    pub(crate) request_id: String,
    /// The parsed order, where the request has an `Idempotency-Key`.
    pub(crate) keyed: Option<NewOrder>,
}

/// What the broker did with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PublishOutcome {
    /// The broker has stored it.
    Confirmed,
    /// The broker does not have it.
    Refused(Refusal),
    /// No confirm has come.
    Unknown(&'static str),
}

/// Why the broker does not have a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Disconnected,
    Blocked,
    Full,
    TimedOut,
    NoQueue,
    Nack,
}

impl Refusal {
    const ALL: [Self; 6] = [
        Self::Disconnected,
        Self::Blocked,
        Self::Full,
        Self::TimedOut,
        Self::NoQueue,
        Self::Nack,
    ];

    /// The label of the metric, and the cause in the log.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Disconnected => ("disconnected", "there is no connection to RabbitMQ"),
            Self::Blocked => ("blocked", "an alarm of RabbitMQ blocks publishers"),
            Self::Full => ("full", "too many orders wait already"),
            Self::TimedOut => ("timeout", "the order waited too long"),
            Self::NoQueue => ("no_queue", "the queue does not exist"),
            Self::Nack => ("nack", "RabbitMQ could not store the order"),
        }
    }
}

struct PendingOrder {
    message: OrderMessage,
    placed: Instant,
    request: Request,
}

/// Sends orders to the publisher's thread; a clone is cheap.
#[derive(Clone)]
pub(crate) struct OrderSender {
    waiting: Sender<PendingOrder>,
    state: Arc<BrokerState>,
    order_metrics: OrderMetrics,
}

/// The state of the broker, as the publisher's thread last observed it.
#[derive(Default)]
struct BrokerState {
    connected: AtomicBool,
    /// The broker has an alarm: it is short of memory or disk and reads no messages.
    blocked: AtomicBool,
    /// The broker has refused every order for some time.
    refusing: AtomicBool,
}

impl BrokerState {
    /// Why the broker cannot accept an order now.
    fn closed_by(&self) -> Option<Refusal> {
        if !self.connected.load(Ordering::Relaxed) {
            Some(Refusal::Disconnected)
        } else if self.blocked.load(Ordering::Relaxed) {
            Some(Refusal::Blocked)
        } else {
            None
        }
    }
}

impl OrderSender {
    /// Whether RabbitMQ accepts orders.
    pub(crate) fn state(&self) -> DependencyState {
        match self.state.closed_by() {
            Some(Refusal::Blocked) => DependencyState::Blocked,
            Some(_) => DependencyState::Down,
            None if self.state.refusing.load(Ordering::Relaxed) => DependencyState::Refusing,
            None => DependencyState::Up,
        }
    }

    /// How many orders were answered 200 since the start.
    pub(crate) fn confirmed(&self) -> u64 {
        self.order_metrics.confirmed.get()
    }

    /// Publishes the message, and answers the client when the broker has confirmed it, or with a problem
    /// after [`ANSWER_LIMIT`] at the latest.
    pub(crate) fn place(&self, message: OrderMessage, request: Request) {
        if let Some(refusal) = self.state.closed_by() {
            return self.order_metrics.refuse(request, refusal);
        }
        let waiting = PendingOrder {
            message,
            placed: Instant::now(),
            request,
        };
        match self.waiting.try_send(waiting) {
            Ok(()) => {}
            Err(TrySendError::Full(waiting)) => {
                self.order_metrics.refuse(waiting.request, Refusal::Full);
            }
            // The publisher has ended, since the program ends.
            Err(TrySendError::Disconnected(waiting)) => {
                self.order_metrics
                    .refuse(waiting.request, Refusal::Disconnected);
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

/// Ends the publisher's thread.
pub(crate) struct PublisherHandle {
    /// Nothing is sent on it: dropping it ends the thread.
    end: Sender<Infallible>,
    thread: JoinHandle<()>,
    /// Closed when the thread of the connection has ended.
    connection_ended: Receiver<()>,
}

impl PublisherHandle {
    /// Ends the thread, which answers the clients that still wait. If the connection does not close in time, the
    /// program does not wait for it, since every client has its answer.
    pub(crate) fn end(self) {
        drop(self.end);
        let _ = self.thread.join();
        let _ = self.connection_ended.recv_timeout(CLOSE_LIMIT);
    }
}

/// Starts the thread that publishes and the thread of the connection.
pub(crate) fn start(
    config: &QueueConfig,
    metrics: &Metrics,
) -> Result<(OrderSender, PublisherHandle), StartError> {
    let (sender, waiting) = crossbeam_channel::bounded(WAITING_MAX);
    let (end, ended) = crossbeam_channel::bounded(0);
    let state = Arc::new(BrokerState::default());
    let order_metrics = OrderMetrics::new(metrics);
    let ConnectionHandle {
        events: connection_events,
        release: release_channel,
        ended: connection_ended,
    } = connection::start(config)?;
    let mut publisher = Publisher {
        queue: config.queue.clone(),
        waiting,
        ended,
        connection_events,
        release_channel,
        state: Arc::clone(&state),
        order_metrics: order_metrics.clone(),
        channel: None,
        next: None,
        idempotency_keys: IdempotencyKeys::default(),
        refusals: RefusalPeriod::default(),
        last_check: Instant::now(),
    };
    let thread = process::spawn("publisher", move || publisher.run())?;
    let orders = OrderSender {
        waiting: sender,
        state,
        order_metrics,
    };
    let handle = PublisherHandle {
        end,
        thread,
        connection_ended,
    };
    Ok((orders, handle))
}

#[derive(Clone)]
struct OrderMetrics {
    published: IntCounter,
    confirmed: IntCounter,
    refused: IntCounterVec,
    unknown: IntCounter,
    seconds: Histogram,
    connected: IntGauge,
    blocked: IntGauge,
}

impl OrderMetrics {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help);
        let refused = metrics.counters(
            "orders_refused_total",
            "Orders that the broker does not have, by cause.",
            "cause",
        );
        for refusal in Refusal::ALL {
            // The metric exists from the start, as 0, so that an alert can be written for it.
            let _ = refused.with_label_values(&[refusal.texts().0]);
        }
        Self {
            published: counter("orders_published_total", "Orders sent to the broker."),
            confirmed: counter(
                "orders_confirmed_total",
                "Orders that were answered 200 after the confirm of the broker.",
            ),
            refused,
            unknown: counter(
                "orders_unknown_total",
                "Orders whose clients were answered before a confirm arrived.",
            ),
            seconds: metrics.seconds(
                "order_confirm_seconds",
                "From an order's arrival to its confirm.",
            ),
            connected: metrics.gauge(
                "rabbitmq_connected",
                "1 while there is a connection to the broker.",
            ),
            blocked: metrics.gauge(
                "rabbitmq_blocked",
                "1 while an alarm of the broker blocks publishers.",
            ),
        }
    }

    fn refuse(&self, request: Request, refusal: Refusal) {
        self.refused.with_label_values(&[refusal.texts().0]).inc();
        request.respond(Err(refused(refusal)));
    }

    /// Answers the client, unless it has an answer already.
    fn answer(&self, sent: &mut UnconfirmedOrder, outcome: PublishOutcome) {
        let Some(request) = sent.request.take() else {
            return;
        };
        match outcome {
            PublishOutcome::Confirmed => {
                self.confirmed.inc();
                let waited = sent.placed.elapsed();
                self.seconds.observe(waited.as_secs_f64());
                request.respond(Ok(confirmed(&sent.message_id)));
            }
            PublishOutcome::Refused(refusal) => self.refuse(request, refusal),
            PublishOutcome::Unknown(cause) => {
                self.unknown.inc();
                request.respond(Err(unknown(cause)));
            }
        }
    }
}

/// An event that the publisher's thread handles.
enum Event {
    Order(PendingOrder),
    Connection(ConnectionEvent),
    Confirm(Confirm),
    Alarm(ConnectionBlockedNotification),
    ConnectionEnded,
    Tick,
    End,
}

struct Publisher {
    queue: String,
    waiting: Receiver<PendingOrder>,
    ended: Receiver<Infallible>,
    connection_events: Receiver<ConnectionEvent>,
    release_channel: Sender<ReleasedChannel>,
    state: Arc<BrokerState>,
    order_metrics: OrderMetrics,
    /// The channel on which orders are published; None without a connection, and while another channel is opened.
    channel: Option<OpenChannel>,
    /// The oldest order that waits, taken out of the queue so that its time limit can be checked.
    next: Option<PendingOrder>,
    idempotency_keys: IdempotencyKeys,
    refusals: RefusalPeriod,
    last_check: Instant,
}

/// A channel, and the messages that were published on it.
struct OpenChannel {
    publish_channel: PublishChannel,
    outstanding: OutstandingConfirms<UnconfirmedOrder>,
    /// Whether the broker has confirmed a message.
    confirmed: bool,
    opened: Instant,
    /// The time since which the broker reads messages: when the channel was opened, or when the last alarm
    /// ended.
    read_since: Instant,
    /// Whether the channel is to be released as soon as no message waits for its confirm.
    to_be_renewed: bool,
}

/// The orders that the broker has refused since it last confirmed one.
#[derive(Default)]
struct RefusalPeriod {
    first: Option<Instant>,
    last: Option<Instant>,
    /// How many refusals are not logged yet.
    unlogged: u64,
    last_logged: Option<Instant>,
}

impl Publisher {
    fn run(&mut self) {
        // If a panic ended this thread, the gateway would refuse every later order.
        while catch_unwind(AssertUnwindSafe(|| self.publish_until_the_end())).is_err() {
            self.lose(AmqpError::Broken("the publisher panicked"));
        }
    }

    fn publish_until_the_end(&mut self) {
        loop {
            match self.next_event() {
                Event::Order(waiting) => self.next = Some(waiting),
                Event::Connection(ConnectionEvent::Opened(channel)) => self.open(channel),
                Event::Connection(ConnectionEvent::Lost) => self.set_connected(false),
                Event::Confirm(confirm) => self.settle(confirm),
                Event::Alarm(notification) => self.note_alarm(&notification),
                Event::ConnectionEnded => self.lose(AmqpError::Broken("the broker closed it")),
                Event::Tick => {}
                Event::End => return self.finish(),
            }
            self.publish_next();
            if self.last_check.elapsed() >= TICK {
                self.last_check = Instant::now();
                self.check_limits();
            }
        }
    }

    fn next_event(&self) -> Event {
        let (no_orders, no_confirms, no_alarms) = (never(), never(), never());
        let waiting = match &self.next {
            None => &self.waiting,
            Some(_) => &no_orders,
        };
        let (confirms, alarms) = match &self.channel {
            Some(OpenChannel {
                publish_channel, ..
            }) => (
                &publish_channel.confirm_channel.confirms,
                &publish_channel.blocked,
            ),
            None => (&no_confirms, &no_alarms),
        };
        select! {
            recv(waiting) -> waiting => waiting.map_or(Event::End, Event::Order),
            recv(confirms) -> confirm => confirm.map_or(Event::ConnectionEnded, Event::Confirm),
            recv(alarms) -> alarm => alarm.map_or(Event::ConnectionEnded, Event::Alarm),
            // The thread of the connection ends after this one.
            recv(self.connection_events) -> event => event.map_or(Event::End, Event::Connection),
            recv(self.ended) -> _ => Event::End,
            default(TICK) => Event::Tick,
        }
    }

    fn open(&mut self, channel: PublishChannel) {
        let opened = Instant::now();
        self.channel = Some(OpenChannel {
            publish_channel: channel,
            outstanding: OutstandingConfirms::default(),
            confirmed: false,
            opened,
            read_since: opened,
            to_be_renewed: false,
        });
        // The broker may block a connection from its beginning and sends a notification of it. A new channel
        // does not change that state; a new connection does.
        if !self.state.connected.load(Ordering::Relaxed) {
            self.set_connected(true);
        }
    }

    fn set_connected(&mut self, connected: bool) {
        self.set_blocked(false);
        self.refusals = RefusalPeriod::default();
        self.state.refusing.store(false, Ordering::Relaxed);
        self.state.connected.store(connected, Ordering::Relaxed);
        self.order_metrics.connected.set(i64::from(connected));
    }

    fn set_blocked(&self, blocked: bool) {
        self.state.blocked.store(blocked, Ordering::Relaxed);
        self.order_metrics.blocked.set(i64::from(blocked));
    }

    /// Abandons the connection: no message on it will be confirmed, and no further one is published on it.
    fn lose(&mut self, error: AmqpError) {
        self.set_connected(false);
        self.release(
            ReleaseReason::Lost(error),
            "the connection was lost before the confirm",
        );
    }

    /// Releases the channel, and answers the clients that wait for its confirms that their orders are unknown.
    fn release(&mut self, reason: ReleaseReason, cause: &'static str) {
        let Some(mut channel) = self.channel.take() else {
            return;
        };
        for sent in channel.outstanding.iter_mut() {
            self.order_metrics
                .answer(sent, PublishOutcome::Unknown(cause));
        }
        let _ = self.release_channel.send(ReleasedChannel {
            channel: channel.publish_channel,
            confirmed: channel.confirmed,
            reason,
        });
    }

    /// Releases the channel at the end of the program, and refuses the orders that still wait.
    fn finish(&mut self) {
        self.set_connected(false);
        self.release(
            ReleaseReason::Shutdown,
            "the gateway ended before the confirm",
        );
        for waiting in self.next.take().into_iter().chain(self.waiting.try_iter()) {
            self.order_metrics
                .refuse(waiting.request, Refusal::Disconnected);
        }
    }

    /// Publishes the order that has waited longest, refuses it, or leaves it waiting for room.
    fn publish_next(&mut self) {
        let Some(waiting) = self.next.take() else {
            return;
        };
        if let Some(refusal) = self.state.closed_by() {
            self.order_metrics.refuse(waiting.request, refusal);
        } else if waiting.placed.elapsed() >= ANSWER_LIMIT {
            self.order_metrics
                .refuse(waiting.request, Refusal::TimedOut);
        } else if self.channel.as_ref().is_some_and(OpenChannel::has_room) {
            self.publish(waiting);
        } else {
            self.next = Some(waiting);
        }
    }

    fn publish(&mut self, waiting: PendingOrder) {
        let Some(channel) = &mut self.channel else {
            return self
                .order_metrics
                .refuse(waiting.request, Refusal::Disconnected);
        };
        let PendingOrder {
            mut message,
            placed,
            request,
        } = waiting;
        let keyed = message.keyed.take();
        let key_match =
            keyed.map(|order| self.idempotency_keys.remember(&message.message_id, order));
        if key_match == Some(KeyMatch::Other) {
            return request.respond(Err(Problem::new(
                422,
                "this Idempotency-Key was used for another order; send that one again, or this one \
                 with a key of its own",
            )));
        }
        let publish = Publish {
            body: &message.body,
            routing_key: self.queue.clone(),
            mandatory: true,
            immediate: false,
            properties: properties(&message),
        };
        let published = channel
            .publish_channel
            .confirm_channel
            .channel
            .basic_publish("", publish);
        self.order_metrics.published.inc();
        channel.outstanding.push(UnconfirmedOrder {
            message_id: message.message_id,
            placed,
            request: Some(request),
            returned: false,
            is_new_key: key_match == Some(KeyMatch::New),
        });
        if let Err(error) = published {
            self.lose(error.into());
        }
    }

    fn settle(&mut self, confirm: Confirm) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        channel.note_returns();
        let (taken, settled) = channel.outstanding.settle(confirm);
        for mut sent in settled.into_values() {
            let outcome = match (taken, sent.returned) {
                (true, false) => PublishOutcome::Confirmed,
                (true, true) => PublishOutcome::Refused(Refusal::NoQueue),
                (false, _) => PublishOutcome::Refused(Refusal::Nack),
            };
            if outcome == PublishOutcome::Confirmed {
                channel.confirmed = true;
                self.refusals.first = None;
                self.state.refusing.store(false, Ordering::Relaxed);
            } else {
                // The queue is declared again with the next channel.
                channel.to_be_renewed |= sent.returned;
                self.refusals.note();
                if sent.is_new_key {
                    self.idempotency_keys.forget(&sent.message_id);
                }
            }
            self.order_metrics.answer(&mut sent, outcome);
        }
        self.renew();
    }

    /// Releases the channel for another one, if that is due and no message waits for its confirm. Nothing is
    /// done during an alarm, since the broker would not answer.
    fn renew(&mut self) {
        if self.state.closed_by().is_some() {
            return;
        }
        let due = |channel: &OpenChannel| {
            channel.to_be_renewed
                || channel.opened.elapsed() >= REFUSING_AFTER
                    && self.refusals.last > Some(channel.opened)
                    && self.refusals.persist()
        };
        if let Some(channel) = &mut self.channel {
            channel.to_be_renewed = due(channel);
            if channel.to_be_renewed && channel.outstanding.is_empty() {
                self.release(ReleaseReason::Renew, "");
            }
        }
    }

    /// Answers the clients whose time is over, and abandons a connection on which no confirm arrives.
    fn check_limits(&mut self) {
        self.refusals.log();
        let refusing = self.refusals.persist() && self.refusals.are_recent();
        self.state.refusing.store(refusing, Ordering::Relaxed);
        let Some(channel) = &mut self.channel else {
            return;
        };
        let mut silent = Duration::ZERO;
        for sent in channel.outstanding.iter_mut() {
            silent = silent.max(sent.placed.max(channel.read_since).elapsed());
            if sent.placed.elapsed() >= ANSWER_LIMIT {
                self.order_metrics
                    .answer(sent, PublishOutcome::Unknown("no confirm arrived in time"));
            }
        }
        // During an alarm the broker confirms nothing, although the connection works.
        let blocked = self.state.blocked.load(Ordering::Relaxed);
        if silent > UNCONFIRMED_LIMIT && !blocked {
            self.lose(AmqpError::Broken("no confirm arrived in time"));
        } else {
            self.renew();
        }
    }

    fn note_alarm(&mut self, notification: &ConnectionBlockedNotification) {
        match notification {
            ConnectionBlockedNotification::Blocked(reason) => {
                self.set_blocked(true);
                log::warn!(reason = reason.as_str(); "the broker raised an alarm; orders are refused");
            }
            ConnectionBlockedNotification::Unblocked => {
                if let Some(channel) = &mut self.channel {
                    channel.read_since = Instant::now();
                }
                self.set_blocked(false);
                log::info!("the broker's alarm is over");
            }
        }
    }
}

impl OpenChannel {
    fn has_room(&self) -> bool {
        !self.to_be_renewed && self.outstanding.len() < WINDOW_MAX
    }

    /// Marks the messages that no queue took. The broker returns such a message first and confirms it
    /// afterwards.
    fn note_returns(&mut self) {
        for returned in self.publish_channel.confirm_channel.returns.try_iter() {
            let id = returned.properties.message_id().as_deref();
            let mut waiting = self.outstanding.iter_mut();
            let sent = waiting.find(|sent| !sent.returned && Some(&*sent.message_id) == id);
            if let Some(sent) = sent {
                sent.returned = true;
            }
        }
    }
}

impl RefusalPeriod {
    fn note(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.unlogged += 1;
        self.log();
    }

    /// Whether the broker has confirmed no order for some time.
    fn persist(&self) -> bool {
        self.first
            .is_some_and(|first| first.elapsed() >= REFUSING_AFTER)
    }

    /// Whether the last refusal is recent.
    fn are_recent(&self) -> bool {
        self.last
            .is_some_and(|last| last.elapsed() < REFUSAL_RECENT)
    }

    fn log(&mut self) {
        let logged_lately = self
            .last_logged
            .is_some_and(|told| told.elapsed() < REFUSALS_LOGGED_EVERY);
        if self.unlogged > 0 && !logged_lately {
            log::warn!(orders = self.unlogged; "the broker refused orders");
            self.unlogged = 0;
            self.last_logged = Some(Instant::now());
        }
    }
}

/// A published message that the broker has not confirmed yet.
struct UnconfirmedOrder {
    message_id: String,
    placed: Instant,
    /// The request that waits for the confirm; None if it has been answered.
    request: Option<Request>,
    returned: bool,
    /// Whether its `Idempotency-Key` was not remembered before.
    is_new_key: bool,
}

fn properties(message: &OrderMessage) -> AmqpProperties {
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
