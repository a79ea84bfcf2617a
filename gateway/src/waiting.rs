//! How many orders wait and how many programs take them, for the metrics. The gateway is who tells
//! it, since it is there while the consumer is not. It asks over a link of its own: one that
//! publishes nothing is heard while an alarm of the broker stops the others.

use std::thread;
use std::time::Duration;

use common::metrics::{IntGaugeVec, Metrics};
use common::process::StartError;
use common::queue::{Link, LinkError, QueueConfig};
use common::shutdown::Shutdown;

/// How often the broker is asked. RabbitMQ itself counts no oftener.
const EVERY: Duration = Duration::from_secs(5);

/// Of how many questions one is after a queue that was not there: RabbitMQ logs it as an error.
const MISSING_EVERY: u32 = 6;

/// Starts the thread that asks. It holds nothing that a shutdown would have to wait for, and ends
/// by itself soon after one.
pub(crate) fn start(
    config: &QueueConfig,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    let mut waiting = Waiting {
        queues: [config.queue.clone(), config.dead_queue()].map(|name| Queue { name, rest: 0 }),
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
    let (config, shutdown) = (config.clone(), shutdown.clone());
    thread::Builder::new()
        .name("waiting".to_owned())
        .spawn(move || {
            // The queue is made by the publisher meanwhile.
            while !shutdown.wait_at_most(EVERY) {
                // The publisher's log tells of the outage.
                let _ = waiting.watch(&config, &shutdown);
                waiting.forget();
            }
        })
        .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))?;
    Ok(())
}

struct Waiting {
    queues: [Queue; 2],
    ready: IntGaugeVec,
    consumers: IntGaugeVec,
}

struct Queue {
    name: String,
    /// Questions that are left out.
    rest: u32,
}

impl Waiting {
    /// Asks until the shutdown, or until the link breaks.
    fn watch(&mut self, config: &QueueConfig, shutdown: &Shutdown) -> Result<(), LinkError> {
        let mut link = Link::open(config, "api-gateway, metrics")?;
        loop {
            for queue in &mut self.queues {
                if queue.rest > 0 {
                    queue.rest -= 1;
                    continue;
                }
                let labels = [queue.name.as_str()];
                if let Some(counts) = link.count(&queue.name)? {
                    self.ready
                        .with_label_values(&labels)
                        .set(counts.ready.into());
                    self.consumers
                        .with_label_values(&labels)
                        .set(counts.consumers.into());
                } else {
                    queue.rest = MISSING_EVERY - 1;
                    let _ = self.ready.remove_label_values(&labels);
                    let _ = self.consumers.remove_label_values(&labels);
                }
            }
            if shutdown.wait_at_most(EVERY) {
                return Ok(());
            }
        }
    }

    fn forget(&self) {
        self.ready.reset();
        self.consumers.reset();
    }
}
