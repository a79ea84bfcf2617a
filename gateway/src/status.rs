//! How the platform is, for whoever looks on: `GET /api/status`. Every part is asked on a thread of
//! its own and has a second to answer; however many look on, each is asked once a second. No
//! service is asked, and no connection to it kept, while nobody looks.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::http::Handler::One;
use common::http::{HandlerResult, Request, Response, Route, Verb};
use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;
use serde_json::Value;

use crate::access::Access;
use crate::asker::Asker;
use crate::config::Limits;
use crate::proxy::Proxy;
use crate::publisher::Orders;
use crate::queues::Queues;
use crate::upstreams::Upstreams;

/// How long a part may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(1);

/// After so long without a question, what was needed to ask is given up.
const REST_AFTER: Duration = Duration::from_secs(10);

/// What a worker has for the status.
#[derive(Clone)]
pub(crate) struct Onlookers {
    pub(crate) access: Arc<Access>,
    pub(crate) status: Arc<Status>,
}

pub(crate) const ROUTES: &[Route<Onlookers>] = &[(Verb::Get, "/api/status", One(get_status))];

fn get_status<'a>(onlookers: &'a mut Onlookers, request: &Request) -> HandlerResult<'a> {
    onlookers.access.check_onlooker(request)?;
    let response = Response::json(200, &onlookers.status.report());
    Ok(response.with_header("cache-control", "no-store"))
}

/// Knows whom to ask, and what they said last.
pub(crate) struct Status {
    orders: Orders,
    queue: String,
    orders_readable: bool,
    inventory: Asker<Service>,
    billing: Asker<Service>,
    rabbitmq: Asker<Option<Queues>>,
    last: Mutex<Option<Round>>,
}

/// What all parts said.
#[derive(Clone)]
struct Round {
    asked: Instant,
    inventory: Service,
    billing: Service,
    rabbitmq: Option<Queues>,
}

impl Status {
    /// Nobody is asked yet.
    pub(crate) fn new(
        orders: &Orders,
        queue: &str,
        queues: Asker<Option<Queues>>,
        inventory: &Arc<Upstreams>,
        billing: &Arc<Upstreams>,
        limits: Limits,
        orders_readable: bool,
    ) -> io::Result<Self> {
        let service = |name, upstreams: &Arc<Upstreams>| {
            let upstreams = Arc::clone(upstreams);
            Asker::start(name, move |asked| answer_for(&upstreams, limits, asked))
        };
        Ok(Self {
            orders: orders.clone(),
            queue: queue.to_owned(),
            orders_readable,
            inventory: service("ask-inventory", inventory)?,
            billing: service("ask-billing", billing)?,
            rabbitmq: queues,
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
        let rabbitmq = self.rabbitmq.ask();
        let until = asked + ANSWER_LIMIT;
        Round {
            asked,
            inventory: inventory.recv_deadline(until).unwrap_or(Service::DOWN),
            billing: billing.recv_deadline(until).unwrap_or(Service::DOWN),
            rabbitmq: rabbitmq.recv_deadline(until).ok().flatten(),
        }
    }

    fn report_of(&self, round: &Round) -> Report<'_> {
        let queues = round.rabbitmq.as_ref();
        let rabbitmq = RabbitMq {
            state: match queues {
                _ if self.orders.is_blocked() => State::Blocked,
                Some(_) if self.orders.is_open() => State::Up,
                _ => State::Down,
            },
            latency_ms: queues.map(|queues| milliseconds(queues.latency)),
        };
        let all_up = [round.inventory.state, round.billing.state, rabbitmq.state]
            .iter()
            .all(|state| *state == State::Up);
        let consumed = queues.is_some_and(|queues| queues.orders.consumers > 0);
        Report {
            status: if all_up && consumed { "ok" } else { "degraded" },
            gateway: Gateway {
                state: State::Up,
                orders_posted: self.orders.confirmed(),
            },
            inventory: round.inventory,
            billing: round.billing,
            rabbitmq,
            queue: queues.map(|queues| Queue {
                name: &self.queue,
                ready: queues.orders.ready,
                consumers: queues.orders.consumers,
                dead: queues.dead,
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
    dead: u32,
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

    fn asked(proxy: &Proxy) -> Self {
        let asked = Instant::now();
        match proxy.readiness() {
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

/// Answers for a service; what is needed to ask it is kept for as long as there are questions.
fn answer_for(upstreams: &Arc<Upstreams>, limits: Limits, asked: &Receiver<Sender<Service>>) {
    while let Ok(first) = asked.recv() {
        let proxy = Proxy::new(upstreams, limits);
        let mut next = Ok(first);
        while let Ok(reply) = next {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(Service::asked(&proxy));
            next = asked.recv_timeout(REST_AFTER);
        }
    }
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
