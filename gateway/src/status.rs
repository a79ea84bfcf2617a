//! How the platform is, for whoever looks on: `GET /api/status`. Every part is asked on a thread of
//! its own and has a second to answer; however many look on, each is asked once a second. No
//! service is asked, and no connection to it kept, while nobody looks.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::http::{DependencyState, Handler, HandlerResult, Request, Response, Route, Verb};
use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;
use serde_json::Value;

use crate::asker::Asker;
use crate::probe::Probe;
use crate::publisher::Orders;
use crate::queues;
use crate::upstreams::Upstreams;

/// How long a part may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(1);

/// After so long without a question, what was needed to ask is given up.
const REST_AFTER: Duration = Duration::from_secs(10);

pub(crate) const ROUTES: &[Route<Arc<Status>>] =
    &[(Verb::Get, "/api/status", Handler::One(get_status))];

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn get_status<'a>(status: &'a mut Arc<Status>, _: &Request) -> HandlerResult<'a> {
    let response = Response::json(200, &status.report());
    Ok(response.with_header("cache-control", "no-store"))
}

/// Knows whom to ask, and what they said last.
pub(crate) struct Status {
    orders: Orders,
    queue: String,
    orders_readable: bool,
    inventory: Asker<Service>,
    billing: Asker<Service>,
    consumer: Asker<Service>,
    dead_letters: Asker<Option<u64>>,
    rabbitmq: Asker<Option<queues::Orders>>,
    last: Mutex<Option<Round>>,
}

/// What all parts said.
#[derive(Clone)]
struct Round {
    asked: Instant,
    inventory: Service,
    billing: Service,
    consumer: Service,
    dead_letters: Option<u64>,
    rabbitmq: Option<queues::Orders>,
}

/// The services that are asked.
pub(crate) struct Services<'a> {
    pub(crate) inventory: &'a Arc<Upstreams>,
    pub(crate) billing_api: &'a Arc<Upstreams>,
    pub(crate) billing_consumer: &'a Arc<Upstreams>,
}

impl Status {
    /// Nobody is asked yet.
    pub(crate) fn new(
        orders: &Orders,
        queue: &str,
        rabbitmq: Asker<Option<queues::Orders>>,
        services: &Services<'_>,
        orders_readable: bool,
    ) -> io::Result<Self> {
        let service = |name, upstreams| asker(name, upstreams, Service::asked);
        Ok(Self {
            orders: orders.clone(),
            queue: queue.to_owned(),
            orders_readable,
            inventory: service("ask-inventory", services.inventory)?,
            billing: service("ask-billing", services.billing_api)?,
            consumer: service("ask-consumer", services.billing_consumer)?,
            dead_letters: asker("ask-dead", services.billing_api, dead_letters)?,
            rabbitmq,
            last: Mutex::default(),
        })
    }

    /// Of a second ago at most. Who comes while all are asked waits for what they say.
    fn report(&self) -> Report<'_> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last.take().filter(|round| round.asked.elapsed() < FRESH);
        let round = last.insert(fresh.unwrap_or_else(|| self.ask())).clone();
        drop(last);
        self.report_of(&round)
    }

    fn ask(&self) -> Round {
        let asked = Instant::now();
        let inventory = self.inventory.ask();
        let billing = self.billing.ask();
        let consumer = self.consumer.ask();
        let dead_letters = self.dead_letters.ask();
        let rabbitmq = self.rabbitmq.ask();
        let until = asked + ANSWER_LIMIT;
        Round {
            asked,
            inventory: inventory.recv_deadline(until).unwrap_or(Service::DOWN),
            billing: billing.recv_deadline(until).unwrap_or(Service::DOWN),
            consumer: consumer.recv_deadline(until).unwrap_or(Service::DOWN),
            dead_letters: dead_letters.recv_deadline(until).ok().flatten(),
            rabbitmq: rabbitmq.recv_deadline(until).ok().flatten(),
        }
    }

    fn report_of(&self, round: &Round) -> Report<'_> {
        let queues = round.rabbitmq.as_ref();
        let rabbitmq = RabbitMq {
            state: match (self.orders.state(), queues) {
                (DependencyState::Blocked, _) => State::Blocked,
                (DependencyState::Refusing, _) => State::Refusing,
                (DependencyState::Up, Some(_)) => State::Up,
                _ => State::Down,
            },
            latency_ms: queues.map(|queues| milliseconds(queues.latency)),
        };
        let services = [round.inventory, round.billing, round.consumer];
        let states = services.map(|service| service.state);
        let all_up = states
            .iter()
            .chain([&rabbitmq.state])
            .all(|state| *state == State::Up);
        let consumed = queues.is_some_and(|queues| queues.consumers > 0);
        Report {
            status: if all_up && consumed { "ok" } else { "degraded" },
            gateway: Gateway {
                state: State::Up,
                orders_posted: self.orders.confirmed(),
            },
            inventory: round.inventory,
            billing: round.billing,
            consumer: round.consumer,
            rabbitmq,
            queue: queues.map(|queues| Queue {
                name: &self.queue,
                ready: queues.ready,
                consumers: queues.consumers,
                dead: round.dead_letters,
            }),
            orders_readable: self.orders_readable,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    status: &'static str,
    gateway: Gateway,
    inventory: Service,
    billing: Service,
    consumer: Service,
    rabbitmq: RabbitMq,
    queue: Option<Queue<'a>>,
    orders_readable: bool,
}

#[derive(Serialize)]
struct Gateway {
    state: State,
    orders_posted: u64,
}

#[derive(Serialize)]
struct RabbitMq {
    state: State,
    latency_ms: Option<f64>,
}

#[derive(Serialize)]
struct Queue<'a> {
    name: &'a str,
    ready: u32,
    consumers: u32,
    /// None where billing-api does not say.
    dead: Option<u64>,
}

/// How a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Up,
    /// It answers, but lacks what it needs.
    Degraded,
    Down,
    /// An alarm of RabbitMQ keeps orders out.
    Blocked,
    /// RabbitMQ takes none of the orders that it is sent.
    Refusing,
}

/// What a service says of itself and of its database.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Service {
    state: State,
    latency_ms: Option<f64>,
    postgresql: &'static str,
}

impl Service {
    const DOWN: Self = Self {
        state: State::Down,
        latency_ms: None,
        postgresql: "unknown",
    };

    fn asked(probe: &Probe) -> Self {
        let asked = Instant::now();
        match probe.ask("/ready") {
            Some((status, body)) => Self::of_answer(status, &body, asked.elapsed()),
            None => Self::DOWN,
        }
    }

    fn of_answer(status: u16, body: &[u8], latency: Duration) -> Self {
        let state = match status {
            200 => State::Up,
            503 => State::Degraded,
            // Whoever this is, it is none of ours.
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

/// With two places: what is behind them is noise.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

/// How many dead letters there are, as billing-api says.
fn dead_letters(billing: &Probe) -> Option<u64> {
    let (status, body) = billing.ask("/api/dead-letters/count")?;
    let answer: Value = serde_json::from_slice(&body).ok()?;
    answer["count"].as_u64().filter(|_| status == 200)
}

/// Asks services of one kind; what is needed for that is kept for as long as there are questions.
fn asker<A: Send + 'static>(
    name: &str,
    upstreams: &Arc<Upstreams>,
    ask: fn(&Probe) -> A,
) -> io::Result<Asker<A>> {
    let upstreams = Arc::clone(upstreams);
    Asker::start(name, move |asked: &Receiver<Sender<A>>| {
        while let Ok(first) = asked.recv() {
            let probe = Probe::new(&upstreams);
            let mut next = Ok(first);
            while let Ok(reply) = next {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(ask(&probe));
                next = asked.recv_timeout(REST_AFTER);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(status: u16, body: &str) -> Service {
        Service::of_answer(status, body.as_bytes(), Duration::from_micros(1234))
    }

    #[test]
    fn a_service_is_what_its_readiness_says() {
        let up = r#"{"status":"ready","dependencies":{"postgresql":"up"}}"#;
        let down = r#"{"status":503,"dependencies":{"postgresql":"down"}}"#;
        let answered = |state, postgresql| Service {
            state,
            latency_ms: Some(1.23),
            postgresql,
        };

        assert_eq!(service(200, up), answered(State::Up, "up"));
        assert_eq!(service(503, down), answered(State::Degraded, "down"));
        assert_eq!(service(503, "{}"), answered(State::Degraded, "unknown"));
        assert_eq!(service(503, "busy"), answered(State::Degraded, "unknown"));
        assert_eq!(service(404, up), Service::DOWN);
    }
}
