//! A connection to the broker whose blocking calls have deadlines, and the declaration of the queue.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use amiquip::{
    Auth, Channel, Confirm, Connection, ConnectionBlockedNotification, ConnectionOptions,
    ConnectionTuning, IoStream, QueueDeclareOptions, Return,
};
use crossbeam_channel::Receiver;
use socket2::{SockRef, TcpKeepalive};

use super::config::{Brokers, QueueConfig, QueueType};
use super::error::{ACCESS_REFUSED, AmqpError, NOT_FOUND, PRECONDITION_FAILED};
use super::inbound_limit::{FrameFilter, InboundLimit};
use super::queue_mismatch::effect;
use super::sanitizing_stream::SanitizingStream;
use super::tls_stream::encrypted;
use super::watchdog::{Deadline, DeadlineOnDrop, EXCHANGE_LIMIT, Watchdog};
use crate::hosts::Host;

/// How long the broker may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// The interval of heartbeats in seconds; the connection to a broker that is silent for two of them is closed
/// (AMQP 0-9-1 §4.2.7).
const HEARTBEAT_SECONDS: u16 = 10;

/// The time after which the connection to a peer that acknowledges nothing is closed.
const DEAD_PEER: Duration = Duration::from_secs(20);

/// How many frames may wait for amiquip's thread, which writes them. A message has three; amiquip's own bound
/// of 16 would make a publisher wait at every fifth message.
const FRAMES_MAX: usize = 4096;

/// The messages and consumers of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueCounts {
    /// Messages that are ready to be delivered.
    pub ready: u32,
    /// The consumers of the queue.
    pub consumers: u32,
}

/// A channel whose messages the broker confirms.
pub struct ConfirmChannel {
    /// The messages that no queue took. The broker returns a message before it confirms it
    /// (RabbitMQ, Publisher Confirms).
    pub returns: Receiver<Return>,
    /// The broker's confirms.
    pub confirms: Receiver<Confirm>,
    /// The channel for publishing; each message must be added to an [`OutstandingConfirms`](super::OutstandingConfirms).
    pub channel: Channel,
}

/// A connection to the broker. Its drop takes at most `EXCHANGE_LIMIT`.
pub struct AmqpConnection {
    watchdog: Watchdog,
    connection: Connection,
    inbound_limit: Arc<InboundLimit>,
    queue_type: QueueType,
    brokers: Brokers,
    /// The number of the node.
    broker: usize,
    /// Whether the arguments of the queue were compared with the settings.
    compared: bool,
    /// The begin and the end of alarms of the broker.
    pub blocked: Receiver<ConnectionBlockedNotification>,
}

impl AmqpConnection {
    /// Connects to the first of the nodes that answers; the management page shows `program`.
    pub fn open(config: &QueueConfig, program: &str) -> Result<Self, AmqpError> {
        let mut failures = Vec::new();
        for (number, node) in config.brokers.nodes.in_turn() {
            match Self::open_to(number, node, config, program) {
                Ok(connection) => {
                    // The next try begins after this node, unless it serves the queue: a node that is cut off
                    // from the others may accept connections.
                    config.brokers.nodes.try_first(number + 1);
                    return Ok(connection);
                }
                Err(error) => failures.push((number, node.to_string(), error)),
            }
        }
        if failures.len() == 1
            && let Some((_, _, failure)) = failures.pop()
        {
            return Err(failure);
        }
        // In the order of the setting, so that an outage has one text.
        failures.sort_by_key(|(number, ..)| *number);
        let failures = failures
            .into_iter()
            .map(|(_, node, failure)| (node, failure));
        Err(AmqpError::Nodes(failures.collect()))
    }

    fn open_to(
        number: usize,
        node: &Host,
        config: &QueueConfig,
        program: &str,
    ) -> Result<Self, AmqpError> {
        let password = config.password.read()?;
        let socket = connect(node)?;
        let (wakened, wake) = mio::Registration::new2();
        let inbound_limit = InboundLimit::new(wake);
        let watchdog = Watchdog::start(socket.try_clone()?, &inbound_limit)?;
        let deadline = watchdog.deadline();
        let options = ConnectionOptions::default()
            .auth(Auth::Plain {
                username: config.user.clone(),
                password,
            })
            .virtual_host(config.brokers.virtual_host.as_str())
            .heartbeat(HEARTBEAT_SECONDS)
            .connection_timeout(Some(EXCHANGE_LIMIT))
            .information(Some(program.to_owned()));
        let tuning = ConnectionTuning::default().mem_channel_bound(FRAMES_MAX);
        let filter = FrameFilter::new(Arc::clone(&inbound_limit));
        let stream: Box<dyn IoStream> = match &config.brokers.tls {
            None => Box::new(mio::net::TcpStream::from_stream(socket)?),
            Some(tls) => Box::new(encrypted(socket, tls, &node.name)?),
        };
        let stream = SanitizingStream::new(stream, filter, wakened);
        let mut connection = Connection::insecure_open_stream(stream, options, tuning)?;
        let blocked = connection.listen_for_connection_blocked()?;
        drop(deadline);
        Ok(Self {
            watchdog,
            connection,
            inbound_limit,
            queue_type: config.queue_type,
            brokers: config.brokers.clone(),
            broker: number,
            compared: false,
            blocked,
        })
    }

    /// Opens a channel.
    pub fn open_channel(&mut self) -> Result<Channel, AmqpError> {
        let _deadline = self.deadline();
        Ok(self.connection.open_channel(None)?)
    }

    /// Opens a channel with publisher confirms, and declares the queue if it does not exist.
    pub fn open_confirm_channel(&mut self, queue: &str) -> Result<ConfirmChannel, AmqpError> {
        self.find_or_make(queue)?;
        let channel = self.open_channel()?;
        let _deadline = self.deadline();
        let returns = channel.listen_for_returns()?;
        let confirms = channel.listen_for_publisher_confirms()?;
        channel.enable_publisher_confirms()?;
        Ok(ConfirmChannel {
            returns,
            confirms,
            channel,
        })
    }

    /// Declares a queue if it does not exist. An existing queue is used unchanged; a difference from the settings is
    /// logged at level error. The comparison takes a declaration, so a program that only publishes, and has no right
    /// to configure the queue, does not call this.
    pub fn declare(&mut self, queue: &str) -> Result<(), AmqpError> {
        if self.find_or_make(queue)? && !std::mem::replace(&mut self.compared, true) {
            self.compare(queue)?;
        }
        Ok(())
    }

    /// Declares a queue, durable and of the configured type, if it does not exist; returns whether it existed.
    /// No right to configure is needed for a queue that exists.
    fn find_or_make(&mut self, queue: &str) -> Result<bool, AmqpError> {
        let found = self.count(queue)?.is_some();
        if !found {
            self.make(queue)?;
        }
        self.brokers.nodes.try_first(self.broker);
        Ok(found)
    }

    /// Declares a queue on a channel of its own, since the broker closes a channel whose declaration it
    /// refuses.
    fn make(&mut self, queue: &str) -> Result<(), amiquip::Error> {
        let options = QueueDeclareOptions {
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments: self.queue_type.arguments(),
        };
        // The deadline precedes the channel, so that it covers the close of the channel too.
        let _deadline = self.deadline();
        let channel = self.connection.open_channel(None)?;
        channel.queue_declare(queue, options).map(drop)
    }

    /// Logs the first difference between the arguments of a queue and the settings. The broker reports it only
    /// in answer to a declaration.
    fn compare(&mut self, queue: &str) -> Result<(), AmqpError> {
        let said = match self.make(queue) {
            Err(amiquip::Error::ServerClosedChannel {
                code: PRECONDITION_FAILED,
                message,
                ..
            }) => message,
            // Without the right to configure, the program cannot find a difference.
            Ok(())
            | Err(amiquip::Error::ServerClosedChannel {
                code: ACCESS_REFUSED,
                ..
            }) => String::new(),
            Err(error) => return Err(error.into()),
        };
        if self.brokers.is_new_mismatch(&said) && !said.is_empty() {
            log::error!(
                queue = queue,
                effect = effect(&said),
                cause = said.as_str();
                "the arguments of the queue differ from those of {}={}; the queue is used unchanged",
                QueueType::VARIABLE, self.queue_type.name()
            );
        }
        Ok(())
    }

    /// Counts the messages and consumers of a queue; None if there is no such queue. In that case the broker
    /// closes the channel, so each count opens one of its own.
    pub fn count(&mut self, queue: &str) -> Result<Option<QueueCounts>, AmqpError> {
        let channel = self.open_channel()?;
        // The deadline precedes the channel, so that it covers the close of the channel too.
        let deadline = self.deadline();
        let counted = match channel.queue_declare_passive(queue) {
            Ok(declared) => Ok(Some(QueueCounts {
                ready: declared.declared_message_count().unwrap_or(0),
                consumers: declared.declared_consumer_count().unwrap_or(0),
            })),
            Err(amiquip::Error::ServerClosedChannel {
                code: NOT_FOUND, ..
            }) => Ok(None),
            Err(error) => Err(error.into()),
        };
        drop(channel);
        drop(deadline);
        counted
    }

    /// Whether the deliveries in memory have so many bytes that no further ones are read.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.inbound_limit.is_full()
    }

    /// Must be called with the tags of deliveries whose content is freed. While the deliveries in memory have 32 MiB
    /// together, no further ones are read from the broker.
    pub fn release(&self, delivery_tags: impl IntoIterator<Item = u64>) {
        self.inbound_limit.release(delivery_tags);
    }

    /// Counts `bytes` of a delivery as freed.
    pub fn reduce(&self, delivery_tag: u64, bytes: usize) {
        self.inbound_limit.reduce(delivery_tag, bytes);
    }

    /// Shuts the socket down after `EXCHANGE_LIMIT`, unless the returned value is dropped before.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.watchdog.deadline()
    }

    /// When the returned value is dropped, no more deliveries are read, and the drops that follow have a deadline.
    /// The value must be declared after the channels, so that it is dropped before them.
    #[must_use]
    pub fn deadline_on_drop(&self) -> DeadlineOnDrop {
        self.watchdog.deadline_on_drop(&self.inbound_limit)
    }
}

impl Drop for AmqpConnection {
    fn drop(&mut self) {
        // The drop of amiquip's connection, which follows, waits until the broker has closed it.
        drop(self.deadline_on_drop());
    }
}

fn connect(node: &Host) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (node.name.as_str(), node.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(socket) => {
                // Otherwise each confirmed message waits 40 ms for a delayed acknowledgement.
                socket.set_nodelay(true)?;
                let options = SockRef::from(&socket);
                options.set_tcp_user_timeout(Some(DEAD_PEER))?;
                // The broker may be configured to have no heartbeats.
                options.set_tcp_keepalive(&TcpKeepalive::new().with_time(DEAD_PEER))?;
                return Ok(socket);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
