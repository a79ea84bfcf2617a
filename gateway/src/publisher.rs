//! Orders onto the queue. One thread publishes them; the HTTP workers hand it orders over a bounded
//! channel, each with the client who waits for the answer, and that comes when the broker has
//! confirmed the message. So few workers carry many waiting clients, and orders that come together
//! are published together. The thread itself never waits for the broker: the connection is made and left
//! by another (`connection.rs`), so every order is answered in its time, whatever the connection does.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use amiquip::{
    AmqpProperties, AmqpValue, Confirm, ConnectionBlockedNotification, FieldTable, Publish,
};
use common::amqp::{AmqpError, OutstandingConfirms, QueueConfig};
use common::http::{DependencyState, Problem, Request, Response};
use common::metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Metrics};
use common::order::NewOrder;
use common::process::StartError;
use crossbeam_channel::{Receiver, Sender, TrySendError, never, select};
use serde_json::json;

use crate::connection::{
    self, ConnectionEvent, ConnectionHandle, PublishChannel, Reason, Released,
};
use crate::keys::{Keys, Known};

/// How long a client waits, from placing the order, whatever becomes of it.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A connection whose oldest message has waited so long has forgotten it, and is given up.
const LINK_LIMIT: Duration = Duration::from_secs(15);

/// Orders that wait to be published; the next one is refused.
const WAITING_MAX: usize = 1024;

/// Messages that are published and not confirmed. With [`ORDER_BYTES_MAX`](common::order::ORDER_BYTES_MAX)
/// they are less than amiquip holds for a broker that does not read: beyond that it would make this
/// thread wait.
const WINDOW_MAX: usize = 512;

/// How often limits are looked at.
const TICK: Duration = Duration::from_millis(250);

/// Where the broker has refused every order for so long, a channel of another making is tried: one
/// that was opened while a quorum queue had no leader refuses for ever.
const REFUSING_AFTER: Duration = Duration::from_secs(5);

/// After so long without an order that was refused, it may be otherwise by now: who is not ready is
/// sent no orders that could show it.
const REFUSAL_COUNTS: Duration = Duration::from_secs(10);

/// How often the log is told of orders that the broker has refused.
const REFUSALS_TOLD_EVERY: Duration = Duration::from_secs(1);

/// How long the farewell to the broker may take when no order is left.
const FAREWELL_LIMIT: Duration = Duration::from_millis(300);

/// An order on its way to the queue.
pub(crate) struct Outgoing {
    /// The client's fields, each as it was written.
    pub(crate) body: Vec<u8>,
    pub(crate) message_id: String,
    pub(crate) request_id: String,
    /// The order as it is read, where the client has chosen the message id: with a key of theirs.
    pub(crate) keyed: Option<NewOrder>,
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
    client: Request,
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
    /// For some time the broker has taken none of the orders that it was sent.
    refusing: AtomicBool,
}

impl State {
    /// Why an order has no chance now.
    fn closed_by(&self) -> Option<Refusal> {
        if !self.connected.load(Ordering::Relaxed) {
            Some(Refusal::Away)
        } else if self.blocked.load(Ordering::Relaxed) {
            Some(Refusal::Blocked)
        } else {
            None
        }
    }
}

impl Orders {
    /// How RabbitMQ is, as far as orders go.
    pub(crate) fn state(&self) -> DependencyState {
        match self.state.closed_by() {
            Some(Refusal::Blocked) => DependencyState::Blocked,
            Some(_) => DependencyState::Down,
            None if self.state.refusing.load(Ordering::Relaxed) => DependencyState::Refusing,
            None => DependencyState::Up,
        }
    }

    /// How many orders were confirmed since the start.
    pub(crate) fn confirmed(&self) -> u64 {
        self.counts.confirmed.get()
    }

    /// The client is answered when the broker has confirmed the message, or with a problem, at
    /// [`ANSWER_LIMIT`] at the latest.
    pub(crate) fn place(&self, message: Outgoing, client: Request) {
        if let Some(refusal) = self.state.closed_by() {
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
            // The program ends.
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

/// The publisher's thread, to be ended.
pub(crate) struct Publishing {
    /// Never sent on: dropped, it ends the thread.
    end: Sender<Infallible>,
    thread: JoinHandle<()>,
    /// Closed when the thread with the connection has ended.
    connection_ended: Receiver<()>,
}

impl Publishing {
    /// To be called when every client is answered. A broker that does not hear the farewell is
    /// left without: it has been told of every order, and no client waits for what it says.
    pub(crate) fn end(self) {
        drop(self.end);
        let _ = self.thread.join();
        let _ = self.connection_ended.recv_timeout(FAREWELL_LIMIT);
    }
}

/// Starts the threads that publish and that have the connection.
pub(crate) fn start(
    config: &QueueConfig,
    metrics: &Metrics,
) -> Result<(Orders, Publishing), StartError> {
    let no_thread = |error| StartError::System("cannot start a thread".to_owned(), error);
    let (sender, waiting) = crossbeam_channel::bounded(WAITING_MAX);
    let (end, ended) = crossbeam_channel::bounded(0);
    let state = Arc::new(State::default());
    let counts = Counts::new(metrics);
    let ConnectionHandle {
        events: connection_events,
        released,
        ended: connection_ended,
    } = connection::start(config).map_err(no_thread)?;
    let mut publisher = Publisher {
        queue: config.queue.clone(),
        waiting,
        ended,
        connection_events,
        released,
        state: Arc::clone(&state),
        counts: counts.clone(),
        channel: None,
        next: None,
        keys: Keys::default(),
        refusals: Refusals::default(),
        last_look: Instant::now(),
    };
    let thread = thread::Builder::new()
        .name("publisher".to_owned())
        .spawn(move || publisher.run())
        .map_err(no_thread)?;
    let orders = Orders {
        waiting: sender,
        state,
        counts,
    };
    let publishing = Publishing {
        end,
        thread,
        connection_ended,
    };
    Ok((orders, publishing))
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

    fn refuse(&self, client: Request, refusal: Refusal) {
        self.refused.with_label_values(&[refusal.texts().0]).inc();
        client.respond(Err(refused(refusal)));
    }

    /// Answers the client, unless they had another answer before.
    fn tell(&self, sent: &mut Sent, outcome: Outcome) {
        let Some(client) = sent.client.take() else {
            return;
        };
        match outcome {
            Outcome::Confirmed => {
                self.confirmed.inc();
                let waited = sent.placed.elapsed();
                self.seconds.observe(waited.as_secs_f64());
                client.respond(Ok(confirmed(&sent.message_id)));
            }
            Outcome::Refused(refusal) => self.refuse(client, refusal),
            Outcome::Unknown(cause) => {
                self.unknown.inc();
                client.respond(Err(unknown(cause)));
            }
        }
    }
}

/// Something that the publisher's thread waits for.
enum Event {
    Order(Waiting),
    Connection(ConnectionEvent),
    Confirm(Confirm),
    Alarm(ConnectionBlockedNotification),
    ConnectionEnded,
    Tick,
    End,
}

struct Publisher {
    queue: String,
    waiting: Receiver<Waiting>,
    ended: Receiver<Infallible>,
    connection_events: Receiver<ConnectionEvent>,
    released: Sender<Released>,
    state: Arc<State>,
    counts: Counts,
    /// Where orders are published; None while there is no connection, or another channel is on its way.
    channel: Option<OpenChannel>,
    /// The oldest order that waits, so that its limit can be looked at.
    next: Option<Waiting>,
    keys: Keys,
    refusals: Refusals,
    last_look: Instant,
}

/// A channel, and what was published on it.
struct OpenChannel {
    publish_channel: PublishChannel,
    outstanding: OutstandingConfirms<Sent>,
    /// Whether the broker has taken a message.
    confirmed: bool,
    opened: Instant,
    /// Since when the broker reads what is published: from the beginning, or from the end of its
    /// last alarm.
    read_since: Instant,
    /// It is given back as soon as nothing waits for its confirm.
    to_be_renewed: bool,
}

/// Orders that the broker would not have, since it last took one.
#[derive(Default)]
struct Refusals {
    first: Option<Instant>,
    last: Option<Instant>,
    /// Those that the log was not told of yet.
    untold: u64,
    last_told: Option<Instant>,
}

impl Publisher {
    fn run(&mut self) {
        // Were this thread to end by a panic, orders would be refused for ever after.
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
                Event::ConnectionEnded => self.lose(AmqpError::Broken("it ended the link")),
                Event::Tick => {}
                Event::End => return self.finish(),
            }
            self.attend_to_the_next();
            if self.last_look.elapsed() >= TICK {
                self.last_look = Instant::now();
                self.look_at_limits();
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
                &publish_channel.confirming.confirms,
                &publish_channel.blocked,
            ),
            None => (&no_confirms, &no_alarms),
        };
        select! {
            recv(waiting) -> waiting => waiting.map_or(Event::End, Event::Order),
            recv(confirms) -> confirm => confirm.map_or(Event::ConnectionEnded, Event::Confirm),
            recv(alarms) -> alarm => alarm.map_or(Event::ConnectionEnded, Event::Alarm),
            // Its thread ends after this one.
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
        // A connection may be blocked from its beginning; it says so, and it is of the same mind while
        // its channels change.
        if !self.state.connected.load(Ordering::Relaxed) {
            self.set_connected(true);
        }
    }

    fn set_connected(&mut self, connected: bool) {
        self.set_blocked(false);
        self.refusals = Refusals::default();
        self.state.refusing.store(false, Ordering::Relaxed);
        self.state.connected.store(connected, Ordering::Relaxed);
        self.counts.connected.set(i64::from(connected));
    }

    fn set_blocked(&self, blocked: bool) {
        self.state.blocked.store(blocked, Ordering::Relaxed);
        self.counts.blocked.set(i64::from(blocked));
    }

    /// Nothing that was sent over the connection will be confirmed, and nothing more is sent.
    fn lose(&mut self, error: AmqpError) {
        self.set_connected(false);
        self.release(Reason::Lost(error), "the link broke before the confirm");
    }

    /// Those who wait for confirms on the channel hear that there will be none.
    fn release(&mut self, reason: Reason, cause: &'static str) {
        let Some(mut channel) = self.channel.take() else {
            return;
        };
        for sent in channel.outstanding.iter_mut() {
            self.counts.tell(sent, Outcome::Unknown(cause));
        }
        let _ = self.released.send(Released {
            channel: channel.publish_channel,
            confirmed: channel.confirmed,
            reason,
        });
    }

    /// Nobody will place an order any more, and whoever still waits has waited for too long.
    fn finish(&mut self) {
        self.set_connected(false);
        self.release(Reason::Shutdown, "the gateway ended before the confirm");
        for waiting in self.next.take().into_iter().chain(self.waiting.try_iter()) {
            self.counts.refuse(waiting.client, Refusal::Away);
        }
    }

    /// The order that has waited longest is published, or refused, or goes on waiting for room.
    fn attend_to_the_next(&mut self) {
        let Some(waiting) = self.next.take() else {
            return;
        };
        if let Some(refusal) = self.state.closed_by() {
            self.counts.refuse(waiting.client, refusal);
        } else if waiting.placed.elapsed() >= ANSWER_LIMIT {
            self.counts.refuse(waiting.client, Refusal::Late);
        } else if self.channel.as_ref().is_some_and(OpenChannel::has_room) {
            self.publish(waiting);
        } else {
            self.next = Some(waiting);
        }
    }

    fn publish(&mut self, waiting: Waiting) {
        let Some(channel) = &mut self.channel else {
            return self.counts.refuse(waiting.client, Refusal::Away);
        };
        let Waiting {
            mut message,
            placed,
            client,
        } = waiting;
        let keyed = message.keyed.take();
        let known = keyed.map(|order| self.keys.remember(&message.message_id, order));
        if known == Some(Known::Other) {
            return client.respond(Err(Problem::new(
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
            .confirming
            .channel
            .basic_publish("", publish);
        self.counts.published.inc();
        channel.outstanding.push(Sent {
            message_id: message.message_id,
            placed,
            client: Some(client),
            returned: false,
            is_new_key: known == Some(Known::New),
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
                (true, false) => Outcome::Confirmed,
                (true, true) => Outcome::Refused(Refusal::NoQueue),
                (false, _) => Outcome::Refused(Refusal::Nack),
            };
            if outcome == Outcome::Confirmed {
                channel.confirmed = true;
                self.refusals.first = None;
                self.state.refusing.store(false, Ordering::Relaxed);
            } else {
                // Another channel declares the queue anew.
                channel.to_be_renewed |= sent.returned;
                self.refusals.note();
                if sent.is_new_key {
                    self.keys.forget(&sent.message_id);
                }
            }
            self.counts.tell(&mut sent, outcome);
        }
        self.renew();
    }

    /// Gives the channel back for another one, where that is due and nothing waits on it. A broker
    /// with an alarm would not answer.
    fn renew(&mut self) {
        if self.state.closed_by().is_some() {
            return;
        }
        let due = |channel: &OpenChannel| {
            channel.to_be_renewed
                || channel.opened.elapsed() >= REFUSING_AFTER
                    && self.refusals.last > Some(channel.opened)
                    && self.refusals.have_lasted()
        };
        if let Some(channel) = &mut self.channel {
            channel.to_be_renewed = due(channel);
            if channel.to_be_renewed && channel.outstanding.is_empty() {
                self.release(Reason::Renew, "");
            }
        }
    }

    /// Answers those who have waited long enough, and looks how the broker is.
    fn look_at_limits(&mut self) {
        self.refusals.tell();
        let refusing = self.refusals.have_lasted() && self.refusals.count_still();
        self.state.refusing.store(refusing, Ordering::Relaxed);
        let Some(channel) = &mut self.channel else {
            return;
        };
        let mut silent = Duration::ZERO;
        for sent in channel.outstanding.iter_mut() {
            silent = silent.max(sent.placed.max(channel.read_since).elapsed());
            if sent.placed.elapsed() >= ANSWER_LIMIT {
                self.counts
                    .tell(sent, Outcome::Unknown("no confirm in time"));
            }
        }
        // While an alarm lasts, the broker has said why it is silent.
        let blocked = self.state.blocked.load(Ordering::Relaxed);
        if silent > LINK_LIMIT && !blocked {
            self.lose(AmqpError::Broken("it does not confirm"));
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

    /// Marks the messages that no queue took: each is returned first, and then confirmed like any
    /// other.
    fn note_returns(&mut self) {
        for returned in self.publish_channel.confirming.returns.try_iter() {
            let id = returned.properties.message_id().as_deref();
            let mut waiting = self.outstanding.iter_mut();
            let sent = waiting.find(|sent| !sent.returned && Some(&*sent.message_id) == id);
            if let Some(sent) = sent {
                sent.returned = true;
            }
        }
    }
}

impl Refusals {
    fn note(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        self.untold += 1;
        self.tell();
    }

    /// Whether nothing else has come of orders for some time.
    fn have_lasted(&self) -> bool {
        self.first
            .is_some_and(|first| first.elapsed() >= REFUSING_AFTER)
    }

    /// Whether the last one is not too long ago.
    fn count_still(&self) -> bool {
        self.last
            .is_some_and(|last| last.elapsed() < REFUSAL_COUNTS)
    }

    fn tell(&mut self) {
        let told_lately = self
            .last_told
            .is_some_and(|told| told.elapsed() < REFUSALS_TOLD_EVERY);
        if self.untold > 0 && !told_lately {
            log::warn!(orders = self.untold; "the broker refused orders");
            self.untold = 0;
            self.last_told = Some(Instant::now());
        }
    }
}

/// A published message whose confirm is awaited.
struct Sent {
    message_id: String,
    placed: Instant,
    /// Who waits for it; None where they have been answered.
    client: Option<Request>,
    returned: bool,
    /// Its key was not known before.
    is_new_key: bool,
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
