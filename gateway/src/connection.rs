//! The connection to the broker, on a thread of its own: opening, declaring and closing wait for the broker,
//! and no order waits for them. The thread sends the publisher a channel with publisher confirms. The publisher
//! releases the channel, with the reason, to this thread, which closes it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use amiquip::ConnectionBlockedNotification;
use common::amqp::{AmqpConnection, AmqpError, ConfirmChannel, QueueConfig};
use common::outage::Outage;
use common::process::{self, StartError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

/// A connection that has lasted this long ends the outage, even if no order was confirmed on it.
const PROVEN_AFTER: Duration = Duration::from_mins(1);

/// A channel for the publisher. The publisher releases it and never drops it: a drop waits for the broker.
pub(crate) struct PublishChannel {
    pub(crate) confirm_channel: ConfirmChannel,
    /// The broker's alarms.
    pub(crate) blocked: Receiver<ConnectionBlockedNotification>,
}

/// What happened to the connection.
pub(crate) enum ConnectionEvent {
    /// Orders can be published.
    Opened(PublishChannel),
    /// The connection is lost, and no channel will follow the one that was released.
    Lost,
}

/// A channel that the publisher has released.
pub(crate) struct ReleasedChannel {
    pub(crate) channel: PublishChannel,
    /// Whether the broker has confirmed a message on it.
    pub(crate) confirmed: bool,
    pub(crate) reason: ReleaseReason,
}

/// Why the publisher has released a channel.
pub(crate) enum ReleaseReason {
    /// The publisher needs another channel on this connection, for which the queue is declared again.
    Renew,
    /// The connection is lost.
    Lost(AmqpError),
    /// The program ends.
    Shutdown,
}

/// Connects the publisher to the thread of the connection.
pub(crate) struct ConnectionHandle {
    pub(crate) events: Receiver<ConnectionEvent>,
    pub(crate) release: Sender<ReleasedChannel>,
    /// Closed when the thread has ended.
    pub(crate) ended: Receiver<()>,
}

/// Starts the thread. It ends when its channel is released for shutdown, or the publisher has ended.
pub(crate) fn start(config: &QueueConfig) -> Result<ConnectionHandle, StartError> {
    // Without a buffer, so that a channel which the publisher does not take stays with this thread.
    let (opened, events) = crossbeam_channel::bounded(0);
    let (release, released) = crossbeam_channel::unbounded();
    let (alive, ended) = crossbeam_channel::bounded(0);
    let config = config.clone();
    process::spawn("amqp-connection", move || {
        let _alive = alive;
        ConnectionThread {
            config,
            opened,
            released,
        }
        .run();
    })?;
    Ok(ConnectionHandle {
        events,
        release,
        ended,
    })
}

struct ConnectionThread {
    config: QueueConfig,
    opened: Sender<ConnectionEvent>,
    released: Receiver<ReleasedChannel>,
}

impl ConnectionThread {
    /// Opens one connection after another.
    fn run(self) {
        let mut outage = Outage::none(Duration::from_millis(100), Duration::from_secs(3));
        loop {
            let mut proven = false;
            // If a panic ended this thread, the gateway would refuse every later order.
            let left = catch_unwind(AssertUnwindSafe(|| self.serve(&mut outage, &mut proven)));
            let error = match left {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => AmqpError::Broken("the thread of the connection panicked"),
            };
            let _ = self.opened.send(ConnectionEvent::Lost);
            if proven {
                outage.end();
            }
            let text = "no connection to the broker; orders are refused";
            let pause = outage.note(error.level(), &error.to_string(), text);
            // The publisher has no channel to release, so this thread waits for the pause, or ends with the
            // publisher.
            if let Err(RecvTimeoutError::Disconnected) = self.released.recv_timeout(pause) {
                return;
            }
        }
    }

    /// Sends the publisher channels of one connection until the connection is lost; Ok at shutdown.
    fn serve(&self, outage: &mut Outage, proven: &mut bool) -> Result<(), AmqpError> {
        let mut connection = AmqpConnection::open(&self.config, "api-gateway")?;
        let opened = Instant::now();
        loop {
            let confirm_channel = connection.open_confirm_channel(&self.config.queue)?;
            let blocked = connection.blocked.clone();
            if outage.connects() {
                log::info!(queue = self.config.queue.as_str(); "publishing");
            }
            let channel = PublishChannel {
                confirm_channel,
                blocked,
            };
            if let Err(refused) = self.opened.send(ConnectionEvent::Opened(channel)) {
                let _deadline = connection.deadline();
                drop(refused);
                return Ok(());
            }
            let Ok(released) = self.released.recv() else {
                return Ok(());
            };
            *proven |= released.confirmed || opened.elapsed() >= PROVEN_AFTER;
            // Closing the channel waits for the broker.
            let _deadline = connection.deadline();
            drop(released.channel);
            match released.reason {
                ReleaseReason::Renew => {}
                ReleaseReason::Lost(error) => return Err(error),
                ReleaseReason::Shutdown => return Ok(()),
            }
        }
    }
}
