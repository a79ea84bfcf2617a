//! How the platform is, for whoever looks on: `GET /api/status`. Every part is asked on a thread of
//! its own and has a second to answer; however many look on, each is asked once a second. Nothing
//! is asked, and no link kept, while nobody looks.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::http::{HandlerResult, Request, Response, Route, Verb};
use common::queue::{Counts, Link, LinkError, QueueConfig};
use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;
use serde_json::Value;

use crate::access::Access;
use crate::config::Limits;
use crate::proxy::Proxy;
use crate::publisher::Orders;
use crate::upstreams::Upstreams;

/// How long a part may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(1);

/// After so long without a question, what was needed to ask is given up.
const REST_AFTER: Duration = Duration::from_secs(10);

/// How often a dead queue that was not there is looked for: RabbitMQ logs each such question as
/// an error.
const DEAD_QUEUE_AGAIN: Duration = Duration::from_secs(5);

/// What a worker has for the status.
#[derive(Clone)]
pub(crate) struct Onlookers {
    pub(crate) access: Arc<Access>,
    pub(crate) status: Arc<Status>,
}

pub(crate) const ROUTES: &[Route<Onlookers>] = &[(Verb::Get, "/api/status", get_status)];

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

/// What RabbitMQ said of both queues.
#[derive(Debug, Clone, Copy)]
struct Queues {
    latency: Duration,
    orders: Counts,
    dead: u32,
}

impl Status {
    /// Nobody is asked yet.
    pub(crate) fn new(
        orders: &Orders,
        queue: &QueueConfig,
        inventory: &Arc<Upstreams>,
        billing: &Arc<Upstreams>,
        limits: Limits,
        orders_readable: bool,
    ) -> io::Result<Self> {
        let service = |name, upstreams: &Arc<Upstreams>| {
            let upstreams = Arc::clone(upstreams);
            Asker::start(
                name,
                move || Proxy::new(&upstreams, limits),
                |proxy| Service::asked(proxy),
            )
        };
        let config = queue.clone();
        Ok(Self {
            orders: orders.clone(),
            queue: queue.queue.clone(),
            orders_readable,
            inventory: service("ask-inventory", inventory)?,
            billing: service("ask-billing", billing)?,
            rabbitmq: Asker::start(
                "ask-rabbitmq",
                move || QueueWatch::new(&config),
                QueueWatch::queues,
            )?,
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

/// Looks at the queues over a link of its own. The publisher's would not do: while an alarm of
/// the broker lasts, RabbitMQ reads nothing more from a link that publishes, and a question
/// would wait in front of the orders behind it.
struct QueueWatch {
    config: QueueConfig,
    link: Option<Link>,
    no_dead_queue: Option<Instant>,
}

impl QueueWatch {
    fn new(config: &QueueConfig) -> Self {
        Self {
            config: config.clone(),
            link: None,
            no_dead_queue: None,
        }
    }

    /// None where RabbitMQ does not answer; the next question begins with a new link.
    fn queues(&mut self) -> Option<Queues> {
        let counted = self.count();
        if let Err(error) = &counted {
            log::debug!(cause = error.to_string().as_str(); "the queues cannot be counted");
            self.link = None;
        }
        counted.ok()
    }

    fn count(&mut self) -> Result<Queues, LinkError> {
        let link = match self.link.take() {
            Some(link) => link,
            None => Link::open(&self.config, "api-gateway status")?,
        };
        let link = self.link.insert(link);
        let asked = Instant::now();
        let orders = link.count(&self.config.queue)?;
        let latency = asked.elapsed();
        let look = self
            .no_dead_queue
            .is_none_or(|since| since.elapsed() >= DEAD_QUEUE_AGAIN);
        let mut dead = None;
        if look {
            dead = link.count(&self.config.dead_queue())?;
            self.no_dead_queue = dead.is_none().then(Instant::now);
        }
        Ok(Queues {
            latency,
            orders: orders.unwrap_or(Counts {
                ready: 0,
                consumers: 0,
            }),
            dead: dead.map_or(0, |dead| dead.ready),
        })
    }
}

/// Asks one part, on a thread of its own that ends with the last handle: a part that is silent
/// holds up no other.
struct Asker<A> {
    questions: Sender<Sender<A>>,
}

impl<A: Send + 'static> Asker<A> {
    /// `tools` makes what is needed to ask; it is kept for as long as there are questions.
    fn start<T>(
        name: &str,
        tools: impl Fn() -> T + Send + 'static,
        ask: impl Fn(&mut T) -> A + Send + 'static,
    ) -> io::Result<Self> {
        let (questions, asked) = crossbeam_channel::bounded(1);
        let work = move || {
            while let Ok(first) = asked.recv() {
                answer_until_quiet(first, &asked, tools(), &ask);
            }
        };
        thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self { questions })
    }

    /// Where the answer will come, if it comes. While the thread is stuck at an earlier question
    /// nothing more is asked.
    fn ask(&self) -> Receiver<A> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let _ = self.questions.try_send(reply);
        answer
    }
}

fn answer_until_quiet<A, T>(
    first: Sender<A>,
    asked: &Receiver<Sender<A>>,
    mut tools: T,
    ask: &impl Fn(&mut T) -> A,
) {
    let mut next = Ok(first);
    while let Ok(reply) = next {
        // Were this thread to end by a panic, the part would seem to be down for ever after.
        let Ok(answer) = catch_unwind(AssertUnwindSafe(|| ask(&mut tools))) else {
            return;
        };
        // Whoever asked may have stopped waiting.
        let _ = reply.send(answer);
        next = asked.recv_timeout(REST_AFTER);
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

    #[test]
    fn a_part_that_is_silent_is_not_asked_again_and_one_that_panicked_is() {
        let (tell, heard) = crossbeam_channel::unbounded();
        let (release, released) = crossbeam_channel::unbounded::<bool>();
        let asker = Asker::start(
            "a test",
            || (),
            move |()| {
                tell.send(()).expect("the test goes on");
                let panics = released.recv().expect("the test goes on");
                assert!(!panics, "as the test wants it");
            },
        )
        .expect("a thread");

        let silent = asker.ask();
        heard.recv().expect("the part is asked");
        // One question waits behind the silent one; the next is not put.
        let waiting = asker.ask();
        let refused = asker.ask();
        assert_eq!(refused.recv(), Err(crossbeam_channel::RecvError));
        release.send(true).expect("the part waits");
        release.send(false).expect("the part waits");

        assert_eq!(silent.recv(), Err(crossbeam_channel::RecvError));
        assert_eq!(waiting.recv(), Ok(()));
    }
}
