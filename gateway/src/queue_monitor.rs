//! Counts the messages and the consumers of the queue of orders, for the metrics and for `/api/status`. The
//! gateway does so because it runs while the consumer does not.
//!
//! The monitor has a connection of its own: during an alarm RabbitMQ reads nothing from a connection that
//! publishes, so on the publisher's connection a passive declaration would wait, and orders behind it.

use std::time::{Duration, Instant};

use common::amqp::{AmqpConnection, AmqpError, QueueConfig, QueueCounts};
use common::metrics::{IntGaugeVec, Metrics};
use common::process::StartError;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::probe_thread::ProbeThread;

/// How often the monitor takes a sample when there are no requests for the status.
const EVERY: Duration = Duration::from_secs(5);

/// The queue of orders as RabbitMQ reported it; a queue that does not exist counts as empty.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueSample {
    pub(crate) latency: Duration,
    pub(crate) ready: u32,
    pub(crate) consumers: u32,
}

/// Starts the thread that sets the gauges and takes samples; a sample is None if RabbitMQ does not answer.
/// A shutdown does not wait for the thread.
pub(crate) fn start(
    config: &QueueConfig,
    metrics: &Metrics,
) -> Result<ProbeThread<Option<QueueSample>>, StartError> {
    let gauges = QueueGauges {
        ready: metrics.gauges(
            "queue_messages_ready",
            "Messages that wait in a queue; absent while there is no connection to the broker.",
            "queue",
        ),
        consumers: metrics.gauges(
            "queue_consumers",
            "Consumers of a queue; absent while there is no connection to the broker.",
            "queue",
        ),
    };
    let config = config.clone();
    ProbeThread::start("queue-monitor", move |received| {
        let monitor = QueueMonitor {
            config: &config,
            gauges: &gauges,
            connection: None,
        };
        monitor.run(received);
    })
}

struct QueueMonitor<'a> {
    config: &'a QueueConfig,
    gauges: &'a QueueGauges,
    connection: Option<AmqpConnection>,
}

impl QueueMonitor<'_> {
    fn run(mut self, received: &Receiver<Sender<Option<QueueSample>>>) {
        loop {
            // The thread waits first, since the publisher declares the queue meanwhile.
            match received.recv_timeout(EVERY) {
                // The request for the status may have timed out.
                Ok(reply) => drop(reply.send(self.sample())),
                Err(RecvTimeoutError::Timeout) => drop(self.sample()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// After a failure the next sample is taken over a new connection.
    fn sample(&mut self) -> Option<QueueSample> {
        let sample = self.count();
        if let Err(error) = &sample {
            log::debug!(cause = error.to_string().as_str(); "the queue cannot be counted");
            self.connection = None;
            self.gauges.forget();
        }
        sample.ok()
    }

    fn count(&mut self) -> Result<QueueSample, AmqpError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => AmqpConnection::open(self.config, "api-gateway, queue monitor")?,
        };
        let connection = self.connection.insert(connection);
        let asked = Instant::now();
        let counts = connection.count(&self.config.queue)?;
        let latency = asked.elapsed();
        self.gauges.show(&self.config.queue, counts);
        Ok(QueueSample {
            latency,
            ready: counts.map_or(0, |counts| counts.ready),
            consumers: counts.map_or(0, |counts| counts.consumers),
        })
    }
}

struct QueueGauges {
    ready: IntGaugeVec,
    consumers: IntGaugeVec,
}

impl QueueGauges {
    fn show(&self, queue: &str, counts: Option<QueueCounts>) {
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
