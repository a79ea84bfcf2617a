//! How many orders wait and how many programs take them: for the metrics, and for the status when
//! somebody looks on. The gateway is who tells it, since it is there while the consumer is not.
//!
//! It asks over a connection of its own. The publisher's would not do: while an alarm of the broker
//! lasts, RabbitMQ reads nothing more from a connection that publishes, and a question would wait in
//! front of the orders behind it.

use std::io;
use std::time::{Duration, Instant};

use common::amqp::{AmqpConnection, AmqpError, Counts, QueueConfig};
use common::metrics::{IntGaugeVec, Metrics};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::asker::Asker;

/// How often the broker is asked while nobody looks on.
const EVERY: Duration = Duration::from_secs(5);

/// What RabbitMQ said of the queue of orders; one that is not there counts as empty.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Orders {
    pub(crate) latency: Duration,
    pub(crate) ready: u32,
    pub(crate) consumers: u32,
}

/// Starts the thread that sets the gauges and answers questions: None where RabbitMQ does not
/// answer. It holds nothing that a shutdown would have to wait for.
pub(crate) fn watch(config: &QueueConfig, metrics: &Metrics) -> io::Result<Asker<Option<Orders>>> {
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
            connection: None,
        };
        watch.answer(asked);
    })
}

struct Watch<'a> {
    config: &'a QueueConfig,
    gauges: &'a Gauges,
    connection: Option<AmqpConnection>,
}

impl Watch<'_> {
    fn answer(mut self, asked: &Receiver<Sender<Option<Orders>>>) {
        loop {
            // Waits first: the queue is made by the publisher meanwhile.
            match asked.recv_timeout(EVERY) {
                // Whoever asked may have stopped waiting.
                Ok(reply) => drop(reply.send(self.look())),
                Err(RecvTimeoutError::Timeout) => drop(self.look()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The next look after one that failed begins with a new connection.
    fn look(&mut self) -> Option<Orders> {
        let counted = self.count();
        if let Err(error) = &counted {
            log::debug!(cause = error.to_string().as_str(); "the queue cannot be counted");
            self.connection = None;
            self.gauges.forget();
        }
        counted.ok()
    }

    fn count(&mut self) -> Result<Orders, AmqpError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => AmqpConnection::open(self.config, "api-gateway, queues")?,
        };
        let connection = self.connection.insert(connection);
        let asked = Instant::now();
        let counts = connection.count(&self.config.queue)?;
        let latency = asked.elapsed();
        self.gauges.show(&self.config.queue, counts);
        Ok(Orders {
            latency,
            ready: counts.map_or(0, |counts| counts.ready),
            consumers: counts.map_or(0, |counts| counts.consumers),
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
