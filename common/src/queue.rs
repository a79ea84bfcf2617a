//! Where the queue is, how all programs see to it that it is there, and a link to it that can be cut. Every call
//! of amiquip that waits for the broker waits without limit, dropping a channel or a
//! connection included; a [`Link`] therefore keeps a second handle on its socket, and a
//! watchdog that shuts the socket down when a limit runs out. The waiting call then fails.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Shutdown as Half, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{
    AmqpValue, Auth, Channel, Confirm, Connection, ConnectionBlockedNotification,
    ConnectionOptions, ConnectionTuning, FieldTable, QueueDeclareOptions, Return,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use socket2::{SockRef, TcpKeepalive};

use crate::env::{ConfigError, Vars};
use crate::inflow::{Door, Inflow};
use crate::process::CommandError;
use crate::sanitizing::SanitizingStream;

/// How long the broker may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// How long one exchange with the broker may take: the handshake, a declaration, a close.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);

/// A broker that is silent for two of these is given up (AMQP 0-9-1 §4.2.7), in seconds.
const HEARTBEAT_SECONDS: u16 = 10;

/// Reply codes of AMQP 0-9-1.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// When a peer that acknowledges nothing is given up.
const DEAD_PEER: Duration = Duration::from_secs(20);

/// Frames on their way to the thread that writes them. A message is three; amiquip's own bound
/// of 16 would make a publisher wait at every fifth message.
const FRAMES_MAX: usize = 4096;

/// What a program does with the queue of orders; each has a user of the broker of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It puts orders there.
    Publish,
    /// It takes them from there.
    Consume,
}

impl Purpose {
    /// The variables with the name of the user and the password.
    const fn keys(self) -> [&'static str; 2] {
        match self {
            Self::Publish => ["RABBITMQ_USER", "RABBITMQ_PASSWORD"],
            Self::Consume => ["RABBITMQ_CONSUMER_USER", "RABBITMQ_CONSUMER_PASSWORD"],
        }
    }
}

/// Where the broker is, and which queue the orders take.
#[derive(Clone)]
pub struct QueueConfig {
    /// The broker's nodes.
    pub brokers: Brokers,
    /// The user to connect as.
    pub user: String,
    /// Their password.
    pub password: String,
    /// The queue of orders.
    pub queue: String,
    /// How the broker keeps it.
    pub queue_type: QueueType,
}

impl QueueConfig {
    /// From the `RABBITMQ_…` variables and `BILLING_QUEUE_TYPE`.
    pub fn from_vars(vars: &Vars, purpose: Purpose) -> Result<Self, ConfigError> {
        let [user, password] = purpose.keys();
        Ok(Self {
            brokers: Brokers::from_vars(vars)?,
            user: vars.text(user)?,
            password: vars.text(password)?,
            queue: vars.text("RABBITMQ_QUEUE")?,
            queue_type: QueueType::from_vars(vars)?,
        })
    }

    /// The queue in which former versions kept what can never be recorded.
    #[must_use]
    pub fn dead_queue(&self) -> String {
        format!("{}.dead", self.queue)
    }
}

/// A node of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// The broker's nodes, tried in turn, the one that served last first. Clones share what they
/// know of that, and what the log was told of the queue.
#[derive(Clone)]
pub struct Brokers {
    nodes: Vec<Broker>,
    first: Arc<AtomicUsize>,
    mismatch_told: Arc<Mutex<String>>,
}

impl Brokers {
    fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        const HOST: &str = "RABBITMQ_HOST";
        let (hosts, port) = (vars.text(HOST)?, vars.port("RABBITMQ_PORT")?);
        let nodes = hosts.split(',').map(|node| broker(node.trim(), port));
        let nodes = nodes.collect::<Option<Vec<_>>>().ok_or_else(|| {
            ConfigError::malformed(
                HOST,
                "a host or several, each with or without a port, as in rabbit-1,rabbit-2:5673",
            )
        })?;
        Ok(Self::new(nodes))
    }

    fn new(nodes: Vec<Broker>) -> Self {
        Self {
            nodes,
            first: Arc::default(),
            mismatch_told: Arc::default(),
        }
    }

    /// Every node once, with its number.
    fn in_turn(&self) -> impl Iterator<Item = (usize, &Broker)> {
        let first = self.first.load(Ordering::Relaxed) % self.nodes.len();
        let (before, from) = self.nodes.split_at(first);
        let numbered = (first..).zip(from);
        numbered.chain((0..).zip(before))
    }

    fn try_first(&self, number: usize) {
        self.first.store(number, Ordering::Relaxed);
    }

    /// Whether this differs from what the log was told last, which it replaces.
    fn is_news(&self, mismatch: &str) -> bool {
        let told = self.mismatch_told.lock();
        let mut told = told.unwrap_or_else(PoisonError::into_inner);
        let news = *told != mismatch;
        mismatch.clone_into(&mut told);
        news
    }
}

impl From<SocketAddr> for Brokers {
    fn from(address: SocketAddr) -> Self {
        Self::new(vec![Broker {
            host: address.ip().to_string(),
            port: address.port(),
        }])
    }
}

/// A host or `host:port`; an IPv6 address with a port stands in brackets.
fn broker(text: &str, default_port: u16) -> Option<Broker> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => {
                (host, &text[text.len() - port.len() - 1..])
            }
            _ => (text, ""),
        },
    };
    let sane = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(sane) {
        return None;
    }
    let port = match port {
        "" => default_port,
        _ => port.strip_prefix(':')?.parse().ok()?,
    };
    Some(Broker {
        host: host.to_owned(),
        port,
    })
}

/// How the broker keeps a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueueType {
    /// On one node.
    #[default]
    Classic,
    /// On several nodes of a cluster; it serves for as long as most of them do.
    Quorum,
}

impl QueueType {
    const VARIABLE: &str = "BILLING_QUEUE_TYPE";

    fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        match vars.optional(Self::VARIABLE) {
            None | Some("classic") => Ok(Self::Classic),
            Some("quorum") => Ok(Self::Quorum),
            Some(_) => Err(ConfigError::malformed(Self::VARIABLE, "classic or quorum")),
        }
    }

    /// Its name, as the variable has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }

    /// A classic queue has none, so that a stranger who declares it plainly agrees with us.
    fn arguments(self) -> FieldTable {
        let mut arguments = FieldTable::new();
        if self == Self::Quorum {
            let text = AmqpValue::LongString(self.name().to_owned());
            arguments.insert("x-queue-type".to_owned(), text);
            // RabbitMQ 4 throws a message away that came back 20 times; an outage of the
            // database is no reason to.
            let limit = AmqpValue::LongInt(i32::MAX);
            arguments.insert("x-delivery-limit".to_owned(), limit);
        }
        arguments
    }
}

/// What waits in a queue, and who takes it from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages that are ready to be delivered.
    pub ready: u32,
    /// Consumers.
    pub consumers: u32,
}

/// A channel whose messages the broker confirms.
pub struct Confirming {
    /// What the broker says of messages that no queue took. For a message this is sent before
    /// its confirm (RabbitMQ, Publisher Confirms).
    pub returns: Receiver<Return>,
    /// The broker's confirms.
    pub confirms: Receiver<Confirm>,
    /// Publish here, and note each message in an [`Unconfirmed`].
    pub channel: Channel,
}

/// Messages that were published on a [`Confirming`] channel and are not confirmed yet, in the
/// order of their delivery tags.
#[derive(Debug)]
pub struct Unconfirmed<T> {
    last_tag: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for Unconfirmed<T> {
    fn default() -> Self {
        Self {
            last_tag: 0,
            waiting: BTreeMap::new(),
        }
    }
}

impl<T> Unconfirmed<T> {
    /// Notes the message that was just published: the broker counts them from 1.
    pub fn push(&mut self, message: T) {
        self.last_tag += 1;
        self.waiting.insert(self.last_tag, message);
    }

    /// Takes out the messages that a confirm is about; true where the broker has them.
    pub fn settle(&mut self, confirm: Confirm) -> (bool, BTreeMap<u64, T>) {
        let (taken, payload) = match confirm {
            Confirm::Ack(payload) => (true, payload),
            Confirm::Nack(payload) => (false, payload),
        };
        let later = self.waiting.split_off(&(payload.delivery_tag + 1));
        let mut settled = std::mem::replace(&mut self.waiting, later);
        if !payload.multiple {
            let others = settled.split_off(&payload.delivery_tag);
            let mut earlier = std::mem::replace(&mut settled, others);
            self.waiting.append(&mut earlier);
        }
        (taken, settled)
    }

    /// The messages that wait, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.values()
    }

    /// The messages that wait, oldest first, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.waiting.values_mut()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Why there is no link, or no more.
#[derive(Debug)]
pub enum LinkError {
    /// The broker's socket cannot be had.
    Connect(io::Error),
    /// The broker, or the link to it, ended the conversation.
    Amqp(amiquip::Error),
    /// The broker did something that leaves no way on; the text says what.
    Broken(&'static str),
}

impl LinkError {
    /// Error where it does not pass by itself: only an operator can mend a password or a right.
    #[must_use]
    pub fn level(&self) -> log::Level {
        match self {
            Self::Amqp(
                amiquip::Error::InvalidCredentials
                | amiquip::Error::ServerClosedChannel {
                    code: ACCESS_REFUSED,
                    ..
                }
                | amiquip::Error::ServerClosedConnection {
                    code: ACCESS_REFUSED,
                    ..
                },
            ) => log::Level::Error,
            _ => log::Level::Warn,
        }
    }
}

impl From<amiquip::Error> for LinkError {
    fn from(error: amiquip::Error) -> Self {
        Self::Amqp(error)
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Connect(error)
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect to RabbitMQ: {error}"),
            Self::Amqp(error) => write!(f, "lost RabbitMQ: {error}"),
            Self::Broken(text) => write!(f, "gave RabbitMQ up: {text}"),
        }
    }
}

impl std::error::Error for LinkError {}

impl From<LinkError> for CommandError {
    fn from(error: LinkError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A connection to the broker. Dropping it takes [`EXCHANGE_LIMIT`] at most.
pub struct Link {
    watchdog: Watchdog,
    connection: Connection,
    inflow: Arc<Inflow>,
    queue_type: QueueType,
    brokers: Brokers,
    /// Which of the brokers this is.
    broker: usize,
    /// Whether the queue was compared with what is asked for.
    compared: bool,
    /// What the broker says when one of its alarms begins or ends.
    pub blocked: Receiver<ConnectionBlockedNotification>,
}

impl Link {
    /// Connects to the first of the nodes that answers; `program` is what the management page
    /// shows.
    pub fn open(config: &QueueConfig, program: &str) -> Result<Self, LinkError> {
        let mut failure = LinkError::Broken("there is none");
        for (number, broker) in config.brokers.in_turn() {
            match Self::open_to(number, broker, config, program) {
                Ok(link) => {
                    // Unless this one serves. A node that is cut off from the others may answer.
                    config.brokers.try_first(number + 1);
                    return Ok(link);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn open_to(
        number: usize,
        broker: &Broker,
        config: &QueueConfig,
        program: &str,
    ) -> Result<Self, LinkError> {
        let socket = connect(broker)?;
        let (wakened, wake) = mio::Registration::new2();
        let inflow = Inflow::new(wake);
        let watchdog = Watchdog::start(socket.try_clone()?, &inflow)?;
        let limit = watchdog.limit(EXCHANGE_LIMIT);
        let options = ConnectionOptions::default()
            .auth(Auth::Plain {
                username: config.user.clone(),
                password: config.password.clone(),
            })
            .heartbeat(HEARTBEAT_SECONDS)
            .connection_timeout(Some(EXCHANGE_LIMIT))
            .information(Some(program.to_owned()));
        let tuning = ConnectionTuning::default().mem_channel_bound(FRAMES_MAX);
        let door = Door::new(Arc::clone(&inflow));
        let stream =
            SanitizingStream::new(mio::net::TcpStream::from_stream(socket)?, door, wakened);
        let mut connection = Connection::insecure_open_stream(stream, options, tuning)?;
        let blocked = connection.listen_for_connection_blocked()?;
        drop(limit);
        Ok(Self {
            watchdog,
            connection,
            inflow,
            queue_type: config.queue_type,
            brokers: config.brokers.clone(),
            broker: number,
            compared: false,
            blocked,
        })
    }

    /// Opens a channel.
    pub fn open_channel(&mut self) -> Result<Channel, LinkError> {
        let _limit = self.limit();
        Ok(self.connection.open_channel(None)?)
    }

    /// Opens a channel for confirmed messages to that queue, which is made where it is not there.
    pub fn open_confirming(&mut self, queue: &str) -> Result<Confirming, LinkError> {
        self.find_or_make(queue)?;
        let channel = self.open_channel()?;
        let _limit = self.limit();
        let returns = channel.listen_for_returns()?;
        let confirms = channel.listen_for_publisher_confirms()?;
        channel.enable_publisher_confirms()?;
        Ok(Confirming {
            returns,
            confirms,
            channel,
        })
    }

    /// Sees to it that a queue is there. One that is there is used as it is; what it has beyond what
    /// is configured, the log tells at level error. To learn that takes a declaration, so whoever
    /// only publishes, and may not configure the queue, does not ask.
    pub fn declare(&mut self, queue: &str) -> Result<(), LinkError> {
        if self.find_or_make(queue)? && !std::mem::replace(&mut self.compared, true) {
            self.compare(queue)?;
        }
        Ok(())
    }

    /// Whether a queue is there already, so that a user who may configure nothing will do. Otherwise
    /// it is made, durable and of the type that is configured.
    fn find_or_make(&mut self, queue: &str) -> Result<bool, LinkError> {
        let found = self.count(queue)?.is_some();
        if !found {
            self.make(queue)?;
        }
        self.brokers.try_first(self.broker);
        Ok(found)
    }

    /// Declares a queue as all of our programs do, on a channel of its own: the broker closes one
    /// whose wish it refuses.
    fn make(&mut self, queue: &str) -> Result<(), amiquip::Error> {
        let options = QueueDeclareOptions {
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments: self.queue_type.arguments(),
        };
        // Before the channel, so that its farewell is within the limit too.
        let _limit = self.limit();
        let channel = self.connection.open_channel(None)?;
        channel.queue_declare(queue, options).map(drop)
    }

    /// Tells the log what a queue has that is not asked for. The broker says it only to who
    /// declares the queue otherwise, and names the first difference.
    fn compare(&mut self, queue: &str) -> Result<(), LinkError> {
        let said = match self.make(queue) {
            Err(amiquip::Error::ServerClosedChannel {
                code: PRECONDITION_FAILED,
                message,
                ..
            }) => message,
            // Who has no right to configure learns nothing, and goes on.
            Ok(())
            | Err(amiquip::Error::ServerClosedChannel {
                code: ACCESS_REFUSED,
                ..
            }) => String::new(),
            Err(error) => return Err(error.into()),
        };
        if self.brokers.is_news(&said) && !said.is_empty() {
            log::error!(
                queue = queue,
                effect = effect(&said),
                cause = said.as_str();
                "the queue has other arguments than {}={} asks for, and is used as it is",
                QueueType::VARIABLE, self.queue_type.name()
            );
        }
        Ok(())
    }

    /// Counts what is in a queue; None where there is no such queue. For that the broker closes
    /// the channel that asks, so each question has one of its own.
    pub fn count(&mut self, queue: &str) -> Result<Option<Counts>, LinkError> {
        let channel = self.open_channel()?;
        // Before the channel, so that its farewell is within the limit too.
        let limit = self.limit();
        let counted = match channel.queue_declare_passive(queue) {
            Ok(declared) => Ok(Some(Counts {
                ready: declared.declared_message_count().unwrap_or(0),
                consumers: declared.declared_consumer_count().unwrap_or(0),
            })),
            Err(amiquip::Error::ServerClosedChannel {
                code: NOT_FOUND, ..
            }) => Ok(None),
            Err(error) => Err(error.into()),
        };
        drop(channel);
        drop(limit);
        counted
    }

    /// Whether no further deliveries are read, since those that are kept weigh too much.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.inflow.is_full()
    }

    /// To be called with the tags of deliveries whose content is not kept any more. While those
    /// that are kept have 32 MiB together, no further ones are read from the broker.
    pub fn release(&self, delivery_tags: impl IntoIterator<Item = u64>) {
        self.inflow.release(delivery_tags);
    }

    /// This delivery takes so many bytes of memory less than it had.
    pub fn reduce(&self, delivery_tag: u64, bytes: usize) {
        self.inflow.reduce(delivery_tag, bytes);
    }

    /// For as long as the returned value lives, at most [`EXCHANGE_LIMIT`], the broker is
    /// waited for; then the link is cut.
    #[must_use]
    pub fn limit(&self) -> Limit {
        self.watchdog.limit(EXCHANGE_LIMIT)
    }

    /// Puts a limit on the drops that follow, and takes no more deliveries in. Declared after
    /// the channels, the returned value is dropped before them, and then the limit begins.
    #[must_use]
    pub fn limit_from_drop(&self) -> LimitFromDrop {
        LimitFromDrop {
            deadlines: self.watchdog.deadlines.clone(),
            inflow: Arc::clone(&self.inflow),
        }
    }
}

/// What the argument that the broker names does to orders.
fn effect(said: &str) -> &'static str {
    let argument = said.split('\'').nth(1).unwrap_or_default();
    match argument {
        "durable" => "orders are lost when RabbitMQ restarts",
        "auto_delete" => "the queue is deleted, with its orders, when its last consumer leaves",
        "x-expires" => {
            "the queue is deleted, with its orders, when no consumer uses it for so long"
        }
        "x-message-ttl" => "orders that wait for longer are deleted",
        "x-max-length" | "x-max-length-bytes" | "x-overflow" => {
            "a full queue refuses new orders if x-overflow is reject-publish, and otherwise the \
             oldest orders are deleted"
        }
        "x-delivery-limit" => "an order that was given back so often is deleted",
        "x-single-active-consumer" => {
            "one consumer records all orders, and another only when that one is gone"
        }
        "x-dead-letter-exchange" | "x-dead-letter-routing-key" | "x-dead-letter-strategy" => {
            "orders that RabbitMQ deletes from the queue are published elsewhere"
        }
        "x-max-priority" => "orders with a priority are recorded before others",
        "x-queue-type" => {
            "orders are kept as that type keeps them: set BILLING_QUEUE_TYPE to it, or empty and \
             delete the queue, and it is made anew"
        }
        _ => "see what RabbitMQ's manual says of it",
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The connection's own drop, which follows, waits for the broker's farewell.
        drop(self.limit_from_drop());
    }
}

fn connect(broker: &Broker) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (broker.host.as_str(), broker.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(socket) => {
                // Without it each confirmed message waits 40 ms for a delayed acknowledgement.
                socket.set_nodelay(true)?;
                let options = SockRef::from(&socket);
                options.set_tcp_user_timeout(Some(DEAD_PEER))?;
                // For a broker that is set to have no heartbeats.
                options.set_tcp_keepalive(&TcpKeepalive::new().with_time(DEAD_PEER))?;
                return Ok(socket);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Shuts a socket down when a deadline passes. Ends when the last handle on it is dropped.
struct Watchdog {
    deadlines: Sender<Option<Instant>>,
}

impl Watchdog {
    fn start(socket: TcpStream, inflow: &Arc<Inflow>) -> io::Result<Self> {
        let (deadlines, orders) = crossbeam_channel::unbounded();
        let inflow = Arc::clone(inflow);
        thread::Builder::new()
            .name("amqp-watchdog".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || watch(&socket, &inflow, &orders))?;
        Ok(Self { deadlines })
    }

    fn limit(&self, limit: Duration) -> Limit {
        let _ = self.deadlines.send(Some(Instant::now() + limit));
        Limit {
            deadlines: self.deadlines.clone(),
        }
    }
}

fn watch(socket: &TcpStream, inflow: &Inflow, deadlines: &Receiver<Option<Instant>>) {
    let mut deadline = None;
    loop {
        let next = match deadline {
            None => deadlines.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => deadlines.recv_deadline(at),
        };
        match next {
            Ok(next) => deadline = next,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let _ = socket.shutdown(Half::Both);
                // Who does not read does not see the end either.
                inflow.end();
                deadline = None;
            }
        }
    }
}

/// While it lives, the link is cut when the limit runs out.
pub struct Limit {
    deadlines: Sender<Option<Instant>>,
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = self.deadlines.send(None);
    }
}

/// When it is dropped, the limit begins.
pub struct LimitFromDrop {
    deadlines: Sender<Option<Instant>>,
    inflow: Arc<Inflow>,
}

impl Drop for LimitFromDrop {
    fn drop(&mut self) {
        self.inflow.end();
        let _ = self.deadlines.send(Some(Instant::now() + EXCHANGE_LIMIT));
    }
}

#[cfg(test)]
mod tests {
    use amiquip::ConfirmPayload;

    use super::*;

    fn published(count: usize) -> Unconfirmed<usize> {
        let mut unconfirmed = Unconfirmed::default();
        (1..=count).for_each(|message| unconfirmed.push(message));
        unconfirmed
    }

    fn messages(settled: (bool, BTreeMap<u64, usize>)) -> (bool, Vec<usize>) {
        (settled.0, settled.1.into_values().collect())
    }

    fn payload(delivery_tag: u64, multiple: bool) -> ConfirmPayload {
        ConfirmPayload {
            delivery_tag,
            multiple,
        }
    }

    #[test]
    fn a_refused_message_is_not_taken_by_a_later_confirm_of_several() {
        let mut unconfirmed = published(5);

        assert_eq!(
            messages(unconfirmed.settle(Confirm::Nack(payload(3, false)))),
            (false, vec![3])
        );
        assert_eq!(
            messages(unconfirmed.settle(Confirm::Ack(payload(5, true)))),
            (true, vec![1, 2, 4, 5])
        );
        assert!(unconfirmed.is_empty());
    }

    #[test]
    fn a_confirm_of_one_leaves_those_before_and_behind_it() {
        let mut unconfirmed = published(3);

        assert_eq!(
            messages(unconfirmed.settle(Confirm::Ack(payload(2, false)))),
            (true, vec![2])
        );
        assert_eq!(
            messages(unconfirmed.settle(Confirm::Ack(payload(2, false)))),
            (true, vec![])
        );
        assert_eq!(unconfirmed.len(), 2);
    }

    fn brokers(hosts: &str) -> Result<Vec<Broker>, ConfigError> {
        let vars = Vars::from_pairs([("RABBITMQ_HOST", hosts), ("RABBITMQ_PORT", "5672")]);
        Brokers::from_vars(&vars).map(|brokers| brokers.nodes)
    }

    fn hosts_in_turn(brokers: &Brokers) -> Vec<&str> {
        let hosts = brokers.in_turn().map(|(_, broker)| broker.host.as_str());
        hosts.collect()
    }

    #[test]
    fn a_host_or_several_with_ports_of_their_own_are_brokers() {
        let broker = |host: &str, port| Broker {
            host: host.to_owned(),
            port,
        };

        assert_eq!(brokers("192.0.2.1"), Ok(vec![broker("192.0.2.1", 5672)]));
        assert_eq!(
            brokers("rabbit-1, rabbit_2.example:5673,::1,[2001:db8::1]:5674,[::1]"),
            Ok(vec![
                broker("rabbit-1", 5672),
                broker("rabbit_2.example", 5673),
                broker("::1", 5672),
                broker("2001:db8::1", 5674),
                broker("::1", 5672),
            ])
        );
    }

    #[test]
    fn a_list_of_brokers_that_is_malformed_is_named() {
        for hosts in [
            ",", "a,", "a,,b", ":5672", "a:", "a:b", "a:70000", "amqp://a", "a b", "[::1", "[::1]5",
        ] {
            assert_eq!(brokers(hosts).unwrap_err().key, "RABBITMQ_HOST", "{hosts}");
        }
    }

    #[test]
    fn the_broker_that_served_last_is_tried_first_and_then_the_others() {
        let vars = Vars::from_pairs([("RABBITMQ_HOST", "a,b,c"), ("RABBITMQ_PORT", "1")]);
        let brokers = Brokers::from_vars(&vars).expect("a list");
        assert_eq!(hosts_in_turn(&brokers), ["a", "b", "c"]);

        brokers.clone().try_first(1);
        assert_eq!(hosts_in_turn(&brokers), ["b", "c", "a"]);
        brokers.try_first(3);
        assert_eq!(hosts_in_turn(&brokers), ["a", "b", "c"]);
    }

    #[test]
    fn what_an_argument_does_is_told_by_its_name() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'orders' in \
                    vhost '/': received none but current is the value '1' of type 'signedint'";

        assert_eq!(effect(said), "orders that wait for longer are deleted");
        assert_eq!(effect("something"), "see what RabbitMQ's manual says of it");
    }

    #[test]
    fn a_mismatch_is_news_until_it_changes() {
        let brokers = Brokers::new(Vec::new());
        let news = ["", "a", "a", "b", "", "b"].map(|said| brokers.clone().is_news(said));

        assert_eq!(news, [false, true, false, true, true, true]);
    }

    #[test]
    fn a_queue_type_that_is_none_is_named() {
        let of = |value| QueueType::from_vars(&Vars::from_pairs([("BILLING_QUEUE_TYPE", value)]));

        assert_eq!(of(""), Ok(QueueType::Classic));
        assert_eq!(of("classic"), Ok(QueueType::Classic));
        assert_eq!(of("quorum"), Ok(QueueType::Quorum));
        assert_eq!(of("Quorum").unwrap_err().key, "BILLING_QUEUE_TYPE");
    }
}
