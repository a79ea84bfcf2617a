//! The connection to the broker, on a thread of its own: whatever opens, declares or closes waits for the
//! broker, and no order waits with it. The thread hands the publisher a channel for confirmed messages,
//! and takes it back to close it, with what is to be done next.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::ConnectionBlockedNotification;
use common::amqp::{AmqpConnection, AmqpError, ConfirmChannel, QueueConfig};
use common::outage::Outage;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

/// A connection that held so long was one, even where no order came to prove it.
const PROVEN_AFTER: Duration = Duration::from_mins(1);

/// A channel for the publisher, who gives it back and never drops it: a drop waits for the broker.
pub(crate) struct PublishChannel {
    pub(crate) confirming: ConfirmChannel,
    /// The broker's alarms.
    pub(crate) blocked: Receiver<ConnectionBlockedNotification>,
}

/// What the publisher hears of the connection.
pub(crate) enum ConnectionEvent {
    /// Orders can be published.
    Opened(PublishChannel),
    /// The channel that was to be renewed will not come: the connection is lost.
    Lost,
}

/// A channel that comes back.
pub(crate) struct Released {
    pub(crate) channel: PublishChannel,
    /// Whether the broker has confirmed a message on it.
    pub(crate) confirmed: bool,
    pub(crate) reason: Reason,
}

/// Why a channel comes back.
pub(crate) enum Reason {
    /// Another one on the same connection is wanted, and the queue declared anew.
    Renew,
    /// The connection serves no more.
    Lost(AmqpError),
    /// Nobody will place an order any more.
    Shutdown,
}

/// The publisher's end.
pub(crate) struct ConnectionHandle {
    pub(crate) events: Receiver<ConnectionEvent>,
    pub(crate) released: Sender<Released>,
    /// Closed when the thread has ended.
    pub(crate) ended: Receiver<()>,
}

/// Starts the thread. It ends when its channel comes back for good, or the publisher is gone.
pub(crate) fn start(config: &QueueConfig) -> io::Result<ConnectionHandle> {
    // Without a buffer: a channel that the publisher does not take stays with its connection.
    let (opened, events) = crossbeam_channel::bounded(0);
    let (released, comes_back) = crossbeam_channel::unbounded();
    let (alive, ended) = crossbeam_channel::bounded(0);
    let config = config.clone();
    thread::Builder::new()
        .name("connection".to_owned())
        .spawn(move || {
            let _alive = alive;
            ConnectionThread {
                config,
                opened,
                comes_back,
            }
            .run();
        })?;
    Ok(ConnectionHandle {
        events,
        released,
        ended,
    })
}

struct ConnectionThread {
    config: QueueConfig,
    opened: Sender<ConnectionEvent>,
    comes_back: Receiver<Released>,
}

impl ConnectionThread {
    /// One connection after another.
    fn run(self) {
        let mut outage = Outage::none(Duration::from_millis(100), Duration::from_secs(3));
        loop {
            let mut proven = false;
            // Were this thread to end by a panic, orders would be refused for ever after.
            let left = catch_unwind(AssertUnwindSafe(|| self.serve(&mut outage, &mut proven)));
            let error = match left {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => AmqpError::Broken("its thread panicked"),
            };
            let _ = self.opened.send(ConnectionEvent::Lost);
            if proven {
                outage.end();
            }
            let text = "no link to the broker; orders are refused";
            let pause = outage.note(error.level(), &error.to_string(), text);
            // The publisher has no channel now, so none comes back: this waits, or is told of the end.
            if let Err(RecvTimeoutError::Disconnected) = self.comes_back.recv_timeout(pause) {
                return;
            }
        }
    }

    /// Hands out channels of one connection until it is lost; Ok at the end.
    fn serve(&self, outage: &mut Outage, proven: &mut bool) -> Result<(), AmqpError> {
        let mut connection = AmqpConnection::open(&self.config, "api-gateway")?;
        let opened = Instant::now();
        loop {
            let confirming = connection.open_confirm_channel(&self.config.queue)?;
            let blocked = connection.blocked.clone();
            if outage.connects() {
                log::info!(queue = self.config.queue.as_str(); "publishing");
            }
            let channel = PublishChannel {
                confirming,
                blocked,
            };
            if let Err(refused) = self.opened.send(ConnectionEvent::Opened(channel)) {
                let _deadline = connection.deadline();
                drop(refused);
                return Ok(());
            }
            let Ok(released) = self.comes_back.recv() else {
                return Ok(());
            };
            *proven |= released.confirmed || opened.elapsed() >= PROVEN_AFTER;
            // Before the channel's farewell.
            let _deadline = connection.deadline();
            drop(released.channel);
            match released.reason {
                Reason::Renew => {}
                Reason::Lost(error) => return Err(error),
                Reason::Shutdown => return Ok(()),
            }
        }
    }
}
