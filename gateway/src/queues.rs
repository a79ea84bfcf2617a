//! How many orders wait, how many programs take them, and how many dead letters there are: for the
//! metrics, and for the status when somebody looks on. The gateway is who tells it, since it is
//! there while the consumer is not.
//!
//! It asks over a link of its own. The publisher's would not do: while an alarm of the broker
//! lasts, RabbitMQ reads nothing more from a link that publishes, and a question would wait in
//! front of the orders behind it.

use std::io;
use std::time::{Duration, Instant};

use common::metrics::{IntGaugeVec, Metrics};
use common::queue::{Counts, Link, LinkError, QueueConfig};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::asker::Asker;

/// How often the broker is asked while nobody looks on.
const EVERY: Duration = Duration::from_secs(5);

/// How long a dead queue that was not there is left alone: RabbitMQ logs each question after one
/// as an error.
const DEAD_QUEUE_AGAIN: Duration = Duration::from_secs(30);

/// The same while somebody looks on.
const DEAD_QUEUE_AGAIN_WATCHED: Duration = Duration::from_secs(5);

/// What RabbitMQ said of both queues; what is not there counts as empty.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queues {
    pub(crate) latency: Duration,
    pub(crate) orders: Counts,
    pub(crate) dead: u32,
}

/// Starts the thread that sets the gauges and answers questions: None where RabbitMQ does not
/// answer. It holds nothing that a shutdown would have to wait for.
pub(crate) fn watch(config: &QueueConfig, metrics: &Metrics) -> io::Result<Asker<Option<Queues>>> {
    let gauges = Gauges {
        ready: metrics.gauges(
            "queue_messages_ready",
            "Messages that wait in a queue; absent while the broker is not reached.",
            "queue",
        ),
        consumers: metrics.gauges(
            "queue_consumers",
            "Programs that take messages from a queue; absent while the broker is not reached.",
            "queue",
        ),
    };
    let config = config.clone();
    Asker::start("queues", move |asked| {
        let watch = Watch {
            config: &config,
            gauges: &gauges,
            link: None,
            dead_queue_missing: None,
        };
        watch.answer(asked);
    })
}

struct Watch<'a> {
    config: &'a QueueConfig,
    gauges: &'a Gauges,
    link: Option<Link>,
    /// Since when, by the last look.
    dead_queue_missing: Option<Instant>,
}

impl Watch<'_> {
    fn answer(mut self, asked: &Receiver<Sender<Option<Queues>>>) {
        loop {
            // Waits first: the queue is made by the publisher meanwhile.
            match asked.recv_timeout(EVERY) {
                // Whoever asked may have stopped waiting.
                Ok(reply) => drop(reply.send(self.look(DEAD_QUEUE_AGAIN_WATCHED))),
                Err(RecvTimeoutError::Timeout) => drop(self.look(DEAD_QUEUE_AGAIN)),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The next look after one that failed begins with a new link.
    fn look(&mut self, again: Duration) -> Option<Queues> {
        let counted = self.count(again);
        if let Err(error) = &counted {
            log::debug!(cause = error.to_string().as_str(); "the queues cannot be counted");
            self.link = None;
            self.gauges.forget();
        }
        counted.ok()
    }

    fn count(&mut self, again: Duration) -> Result<Queues, LinkError> {
        let (queue, dead_queue) = (&self.config.queue, self.config.dead_queue());
        let link = match self.link.take() {
            Some(link) => link,
            None => Link::open(self.config, "api-gateway, queues")?,
        };
        let link = self.link.insert(link);
        let asked = Instant::now();
        let orders = link.count(queue)?;
        let latency = asked.elapsed();
        self.gauges.show(queue, orders);
        let mut dead = None;
        if self
            .dead_queue_missing
            .is_none_or(|since| since.elapsed() >= again)
        {
            dead = link.count(&dead_queue)?;
            self.gauges.show(&dead_queue, dead);
            self.dead_queue_missing = dead.is_none().then(Instant::now);
        }
        let nothing = Counts {
            ready: 0,
            consumers: 0,
        };
        Ok(Queues {
            latency,
            orders: orders.unwrap_or(nothing),
            dead: dead.map_or(0, |dead| dead.ready),
        })
    }
}

struct Gauges {
    ready: IntGaugeVec,
    consumers: IntGaugeVec,
}

impl Gauges {
    fn show(&self, queue: &str, counts: Option<Counts>) {
        let label = [queue];
        if let Some(counts) = counts {
            self.ready
                .with_label_values(&label)
                .set(counts.ready.into());
            self.consumers
                .with_label_values(&label)
                .set(counts.consumers.into());
        } else {
            let _ = self.ready.remove_label_values(&label);
            let _ = self.consumers.remove_label_values(&label);
        }
    }

    fn forget(&self) {
        self.ready.reset();
        self.consumers.reset();
    }
}
