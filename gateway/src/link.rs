//! The link to the broker, on a thread of its own: whatever opens, declares or closes waits for the
//! broker, and nobody who waits for an answer shall wait with it. The thread lends the publisher a
//! channel for confirmed messages, and takes it back with what is to be done about it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::ConnectionBlockedNotification;
use common::backoff::Backoff;
use common::queue::{Confirming, Link, LinkError, QueueConfig};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

/// A link that held so long was one, even where no order came to prove it.
const PROVEN_AFTER: Duration = Duration::from_mins(1);

/// More causes than these are not told of one outage.
const CAUSES_MAX: usize = 8;

/// A channel for the publisher, who returns it and never drops it: that waits for the broker.
pub(crate) struct Lent {
    pub(crate) confirming: Confirming,
    /// The broker's alarms.
    pub(crate) blocked: Receiver<ConnectionBlockedNotification>,
}

/// What the publisher hears of the link.
pub(crate) enum News {
    /// Orders can be published.
    Lent(Lent),
    /// The channel that was to be renewed will not come: the link is lost.
    Lost,
}

/// A channel that comes back.
pub(crate) struct Returned {
    pub(crate) lent: Lent,
    /// Whether the broker has confirmed a message on it.
    pub(crate) confirmed: bool,
    pub(crate) why: Why,
}

/// Why a channel comes back.
pub(crate) enum Why {
    /// Another one on the same link is wanted, and the queue declared anew.
    Renew,
    /// The link serves no more.
    Lost(LinkError),
    /// Nobody will place an order any more.
    End,
}

/// The publisher's end.
pub(crate) struct Keeper {
    pub(crate) news: Receiver<News>,
    pub(crate) returned: Sender<Returned>,
    /// Closed when the thread has ended.
    pub(crate) ended: Receiver<()>,
}

/// Starts the thread. It ends when the channel that it lent comes back for good, or nobody is left
/// to lend one to.
pub(crate) fn keep(config: &QueueConfig) -> io::Result<Keeper> {
    // Without a buffer: a channel that the publisher does not take stays with its link.
    let (lend, news) = crossbeam_channel::bounded(0);
    let (returned, returns) = crossbeam_channel::unbounded();
    let (alive, ended) = crossbeam_channel::bounded(0);
    let config = config.clone();
    thread::Builder::new()
        .name("link".to_owned())
        .spawn(move || {
            let _alive = alive;
            LinkThread {
                config,
                lend,
                returns,
            }
            .run();
        })?;
    Ok(Keeper {
        news,
        returned,
        ended,
    })
}

struct LinkThread {
    config: QueueConfig,
    lend: Sender<News>,
    returns: Receiver<Returned>,
}

impl LinkThread {
    /// One link after another.
    fn run(self) {
        let mut outage = Outage::new();
        loop {
            let mut proven = false;
            // Were this thread to end by a panic, orders would be refused for ever after.
            let left = catch_unwind(AssertUnwindSafe(|| self.serve(&mut outage, &mut proven)));
            let error = match left {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => LinkError::Broken("its thread panicked"),
            };
            let _ = self.lend.send(News::Lost);
            let pause = outage.note(&error, proven);
            // Nothing is lent now, so nothing comes back: this waits, or is told of the end.
            if let Err(RecvTimeoutError::Disconnected) = self.returns.recv_timeout(pause) {
                return;
            }
        }
    }

    /// Lends channels of one link until it is lost; Ok at the end.
    fn serve(&self, outage: &mut Outage, proven: &mut bool) -> Result<(), LinkError> {
        let mut link = Link::open(&self.config, "api-gateway")?;
        let opened = Instant::now();
        loop {
            let confirming = link.open_confirming(&self.config.queue)?;
            let blocked = link.blocked.clone();
            outage.note_link(&self.config.queue);
            let lent = Lent {
                confirming,
                blocked,
            };
            if let Err(refused) = self.lend.send(News::Lent(lent)) {
                let _limit = link.limit();
                drop(refused);
                return Ok(());
            }
            let Ok(returned) = self.returns.recv() else {
                return Ok(());
            };
            *proven |= returned.confirmed || opened.elapsed() >= PROVEN_AFTER;
            // Before the channel's farewell.
            let _limit = link.limit();
            drop(returned.lent);
            match returned.why {
                Why::Renew => {}
                Why::Lost(error) => return Err(error),
                Why::End => return Ok(()),
            }
        }
    }
}

/// What the log is told of outages, and how soon the next try comes. Both start anew when a link
/// has served, and not when it is made: a broker that accepts links and serves none of them is one
/// outage.
struct Outage {
    backoff: Backoff,
    /// The causes that the log was told; none while all is well.
    told: Vec<String>,
    /// Whether the log was told that there is a link.
    link_told: bool,
}

impl Outage {
    fn new() -> Self {
        Self {
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(3)),
            told: Vec::new(),
            link_told: false,
        }
    }

    fn note_link(&mut self, queue: &str) {
        if !std::mem::replace(&mut self.link_told, true) {
            log::info!(queue = queue; "publishing");
        }
    }

    /// The link is lost, or could not be made; says how long to wait.
    fn note(&mut self, error: &LinkError, proven: bool) -> Duration {
        if proven {
            self.backoff.reset();
            self.told.clear();
            self.link_told = false;
        }
        let cause = error.to_string();
        if !self.told.contains(&cause) && self.told.len() < CAUSES_MAX {
            log::log!(
                error.level(), cause = cause.as_str();
                "no link to the broker; orders are refused"
            );
            self.told.push(cause);
        }
        self.backoff.delay()
    }
}
