//! `GET /api/status`: the state of every component of the platform. Each component is probed on a thread of
//! its own, has a second to answer, and is probed once a second however many clients ask. Without such
//! requests no service is probed, and no connection to one is kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::http::{DependencyState, Handler, HandlerResult, Request, Response, Route, Verb};
use common::process::StartError;
use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;
use serde_json::Value;

use crate::probe::Probe;
use crate::probe_thread::ProbeThread;
use crate::publisher::OrderSender;
use crate::queue_monitor::QueueSample;
use crate::upstreams::Upstreams;

/// How long a component may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long a snapshot is fresh.
const FRESH: Duration = Duration::from_secs(1);

/// After this time without a request, a probe closes its connections.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

pub(crate) const ROUTES: &[Route<Arc<PlatformStatus>>] =
    &[(Verb::Get, "/api/status", Handler::One(get_status))];

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn get_status<'a>(status: &'a mut Arc<PlatformStatus>, _: &Request) -> HandlerResult<'a> {
    let response = Response::json(200, &status.report());
    Ok(response.with_header("cache-control", "no-store"))
}

/// Probes the components, and keeps the last snapshot.
pub(crate) struct PlatformStatus {
    orders: OrderSender,
    queue: String,
    orders_readable: bool,
    inventory: ProbeThread<ServiceStatus>,
    billing: ProbeThread<ServiceStatus>,
    consumer: ProbeThread<ServiceStatus>,
    dead_letters: ProbeThread<Option<u64>>,
    rabbitmq: ProbeThread<Option<QueueSample>>,
    last: Mutex<Option<Snapshot>>,
}

/// The states of all components.
#[derive(Clone)]
struct Snapshot {
    taken: Instant,
    inventory: ServiceStatus,
    billing: ServiceStatus,
    consumer: ServiceStatus,
    dead_letters: Option<u64>,
    rabbitmq: Option<QueueSample>,
}

/// The services that are probed.
pub(crate) struct ProbedServices<'a> {
    pub(crate) inventory: &'a Arc<Upstreams>,
    pub(crate) billing_api: &'a Arc<Upstreams>,
    pub(crate) billing_consumer: &'a Arc<Upstreams>,
}

impl PlatformStatus {
    /// Starts the threads; no component is probed yet.
    pub(crate) fn new(
        orders: &OrderSender,
        queue: &str,
        rabbitmq: ProbeThread<Option<QueueSample>>,
        services: &ProbedServices<'_>,
        orders_readable: bool,
    ) -> Result<Self, StartError> {
        let service = |name, upstreams| probe_thread(name, upstreams, ServiceStatus::probed);
        Ok(Self {
            orders: orders.clone(),
            queue: queue.to_owned(),
            orders_readable,
            inventory: service("probe-inventory", services.inventory)?,
            billing: service("probe-billing", services.billing_api)?,
            consumer: service("probe-consumer", services.billing_consumer)?,
            dead_letters: probe_thread("probe-dead", services.billing_api, dead_letters)?,
            rabbitmq,
            last: Mutex::default(),
        })
    }

    /// The report of a snapshot that is at most a second old. Requests during the probes wait for the result.
    fn report(&self) -> StatusReport<'_> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last
            .take()
            .filter(|snapshot| snapshot.taken.elapsed() < FRESH);
        let snapshot = last
            .insert(fresh.unwrap_or_else(|| self.probe_all()))
            .clone();
        drop(last);
        self.report_of(&snapshot)
    }

    fn probe_all(&self) -> Snapshot {
        let until = Instant::now() + ANSWER_LIMIT;
        let inventory = self.inventory.request();
        let billing = self.billing.request();
        let consumer = self.consumer.request();
        let dead_letters = self.dead_letters.request();
        let rabbitmq = self.rabbitmq.request();
        Snapshot {
            inventory: inventory
                .recv_deadline(until)
                .unwrap_or(ServiceStatus::DOWN),
            billing: billing.recv_deadline(until).unwrap_or(ServiceStatus::DOWN),
            consumer: consumer.recv_deadline(until).unwrap_or(ServiceStatus::DOWN),
            dead_letters: dead_letters.recv_deadline(until).ok().flatten(),
            rabbitmq: rabbitmq.recv_deadline(until).ok().flatten(),
            // The probes of a silent component last a second, after which the snapshot is fresh all the same.
            taken: Instant::now(),
        }
    }

    fn report_of(&self, snapshot: &Snapshot) -> StatusReport<'_> {
        let queue = snapshot.rabbitmq.as_ref();
        let rabbitmq = RabbitMqStatus {
            state: match (self.orders.state(), queue) {
                (DependencyState::Blocked, _) => ComponentState::Blocked,
                (DependencyState::Refusing, _) => ComponentState::Refusing,
                (DependencyState::Up, Some(_)) => ComponentState::Up,
                _ => ComponentState::Down,
            },
            latency_ms: queue.map(|queue| milliseconds(queue.latency)),
        };
        let services = [snapshot.inventory, snapshot.billing, snapshot.consumer];
        let states = services.map(|service| service.state);
        let all_up = states
            .iter()
            .chain([&rabbitmq.state])
            .all(|state| *state == ComponentState::Up);
        let consumed = queue.is_some_and(|queue| queue.consumers > 0);
        StatusReport {
            status: if all_up && consumed { "ok" } else { "degraded" },
            gateway: GatewayStatus {
                state: ComponentState::Up,
                orders_posted: self.orders.confirmed(),
            },
            inventory: snapshot.inventory,
            billing: snapshot.billing,
            consumer: snapshot.consumer,
            rabbitmq,
            queue: queue.map(|queue| QueueStatus {
                name: &self.queue,
                ready: queue.ready,
                consumers: queue.consumers,
                dead: snapshot.dead_letters,
            }),
            orders_readable: self.orders_readable,
        }
    }
}

#[derive(Serialize)]
struct StatusReport<'a> {
    status: &'static str,
    gateway: GatewayStatus,
    inventory: ServiceStatus,
    billing: ServiceStatus,
    consumer: ServiceStatus,
    rabbitmq: RabbitMqStatus,
    queue: Option<QueueStatus<'a>>,
    orders_readable: bool,
}

#[derive(Serialize)]
struct GatewayStatus {
    state: ComponentState,
    orders_posted: u64,
}

#[derive(Serialize)]
struct RabbitMqStatus {
    state: ComponentState,
    latency_ms: Option<f64>,
}

#[derive(Serialize)]
struct QueueStatus<'a> {
    name: &'a str,
    ready: u32,
    consumers: u32,
    /// None if billing-api does not answer.
    dead: Option<u64>,
}

/// The state of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum ComponentState {
    Up,
    /// The component answers, but one of its dependencies is down.
    Degraded,
    Down,
    /// An alarm of RabbitMQ blocks publishers.
    Blocked,
    /// RabbitMQ refuses every order.
    Refusing,
}

/// The state of a service and of its database, as its `/ready` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct ServiceStatus {
    state: ComponentState,
    latency_ms: Option<f64>,
    postgresql: &'static str,
}

impl ServiceStatus {
    const DOWN: Self = Self {
        state: ComponentState::Down,
        latency_ms: None,
        postgresql: "unknown",
    };

    fn probed(probe: &Probe) -> Self {
        let asked = Instant::now();
        match probe.get("/ready") {
            Some((status, body)) => Self::of_answer(status, &body, asked.elapsed()),
            None => Self::DOWN,
        }
    }

    fn of_answer(status: u16, body: &[u8], latency: Duration) -> Self {
        let state = match status {
            200 => ComponentState::Up,
            503 => ComponentState::Degraded,
            // Another program listens on the address.
            _ => return Self::DOWN,
        };
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        let postgresql = match answer["dependencies"]["postgresql"].as_str() {
            Some("up") => "up",
            Some("down") => "down",
            _ => "unknown",
        };
        Self {
            state,
            latency_ms: Some(milliseconds(latency)),
            postgresql,
        }
    }
}

/// Rounded to hundredths: further digits are noise.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

/// The number of dead letters; None if billing-api does not answer.
fn dead_letters(billing: &Probe) -> Option<u64> {
    let (status, body) = billing.get("/api/dead-letters/count")?;
    let answer: Value = serde_json::from_slice(&body).ok()?;
    answer["count"].as_u64().filter(|_| status == 200)
}

/// Starts a thread that probes services of one kind. The thread keeps its connections while requests arrive.
fn probe_thread<A: Send + 'static>(
    name: &str,
    upstreams: &Arc<Upstreams>,
    ask: fn(&Probe) -> A,
) -> Result<ProbeThread<A>, StartError> {
    let upstreams = Arc::clone(upstreams);
    ProbeThread::start(name, move |received: &Receiver<Sender<A>>| {
        while let Ok(first) = received.recv() {
            let probe = Probe::new(&upstreams);
            let mut next = Ok(first);
            while let Ok(reply) = next {
                // The request for the status may have timed out.
                let _ = reply.send(ask(&probe));
                next = received.recv_timeout(IDLE_LIMIT);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(status: u16, body: &str) -> ServiceStatus {
        ServiceStatus::of_answer(status, body.as_bytes(), Duration::from_micros(1234))
    }

    #[test]
    fn the_state_of_a_service_is_that_of_its_readiness() {
        let up = r#"{"status":"ready","dependencies":{"postgresql":"up"}}"#;
        let down = r#"{"status":503,"dependencies":{"postgresql":"down"}}"#;
        let answered = |state, postgresql| ServiceStatus {
            state,
            latency_ms: Some(1.23),
            postgresql,
        };

        assert_eq!(service(200, up), answered(ComponentState::Up, "up"));
        assert_eq!(
            service(503, down),
            answered(ComponentState::Degraded, "down")
        );
        assert_eq!(
            service(503, "{}"),
            answered(ComponentState::Degraded, "unknown")
        );
        assert_eq!(
            service(503, "busy"),
            answered(ComponentState::Degraded, "unknown")
        );
        assert_eq!(service(404, up), ServiceStatus::DOWN);
    }
}
