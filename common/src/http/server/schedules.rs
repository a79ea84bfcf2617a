//! The whole server under shuttle: workers, table, bulkheads, watches, whoever answers and sweeper
//! on a kernel in memory, by random schedules and by PCT. `SCHEDULES` is how many of each.

#![allow(clippy::unnecessary_wraps, reason = "a handler may fail; these do not")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use super::core::Core;
use super::poller::{self, FakeClient, Kernel};
use super::{Interest, Socket, connect, sweeper, watch, worker};
use crate::http::clock::{advance, now};
use crate::http::limits::Limits;
use crate::http::message::request::Request;
use crate::http::message::response::{Body, HandlerResult, Response, Stream};
use crate::http::service::bulkhead::{Answers, Batch, Bulkhead, Handler, Lease, Route};
use crate::http::service::router::{AnyBulkhead, Router, Verb};
use crate::http::sync::lock;
use crate::metrics::Metrics;

std::thread_local! {
    /// How often each request reached a handler.
    static HANDLED: RefCell<HashMap<String, usize>> = RefCell::default();
    static METRICS: Metrics = Metrics::new();
}

/// What a slot has; it must be used by one thread at a time.
struct ScheduleState {
    used: bool,
    later: Arc<Later>,
    meeting: Arc<Meeting>,
}

impl ScheduleState {
    fn used<T>(&mut self, using: impl FnOnce() -> T) -> T {
        assert!(
            !std::mem::replace(&mut self.used, true),
            "one slot, two threads"
        );
        thread::yield_now();
        let result = using();
        self.used = false;
        result
    }
}

fn echo(request: &Request) -> Response<'static> {
    let id = request.param("id").to_owned();
    HANDLED.with_borrow_mut(|handled| *handled.entry(id.clone()).or_default() += 1);
    Response::new(200, Body::Bytes(id.into_bytes()))
}

fn one<'a>(state: &'a mut ScheduleState, request: &Request) -> HandlerResult<'a> {
    Ok(state.used(|| echo(request)))
}

/// Every other request had better be answered for itself.
fn batch(state: &mut ScheduleState, requests: &[Request]) -> Answers {
    let answer = |request: &Request| {
        let alone = request.param("id").ends_with('b');
        (!alone).then(|| Ok(echo(request)))
    };
    state.used(|| requests.iter().map(answer).collect())
}

/// All had better be answered for themselves.
fn batch_of_none(_: &mut ScheduleState, requests: &[Request]) -> Answers {
    requests.iter().map(|_| None).collect()
}

/// Waits for the other one.
fn meet<'a>(state: &'a mut ScheduleState, request: &Request) -> HandlerResult<'a> {
    let mut here = lock(&state.meeting.here);
    *here += 1;
    state.meeting.changed.notify_all();
    while *here < 2 {
        here = state.meeting.changed.wait(here).expect("no poison");
    }
    Ok(echo(request))
}

/// Its answer is made in three pieces.
fn long<'a>(state: &'a mut ScheduleState, request: &Request) -> HandlerResult<'a> {
    let Body::Bytes(id) = state.used(|| echo(request)).body else {
        unreachable!("it has a body")
    };
    let mut left = 3;
    let fill = move |piece: &mut Vec<u8>| {
        state.used(|| {
            if left > 0 {
                left -= 1;
                piece.extend(id.repeat(5));
            }
        });
        Ok(())
    };
    let length = Some(3 * 5 * request.param("id").len() as u64);
    Ok(Response::new(
        200,
        Body::Stream(Stream {
            length,
            fill: Box::new(fill),
        }),
    ))
}

fn later(mut lease: Lease<ScheduleState>, request: Request) {
    let state = lease.state();
    lock(&state.later.held).0.push(request);
    state.later.changed.notify_all();
}

/// Asks a service behind, which says what was said to it.
fn behind(lease: Lease<ScheduleState>, request: Request) {
    let socket = connect(([127, 0, 0, 1], 1).into()).expect("a socket");
    (&socket)
        .write_all(request.param("id").as_bytes())
        .expect("there is room");
    let deadline = now() + Duration::from_secs(10);
    let then = move |socket: Socket| {
        let mut buffer = [0; 8];
        let read = (&socket)
            .read(&mut buffer)
            .expect("an answer, or that it is too late");
        let response = if read == 0 {
            let _ = echo(&request);
            Response::new(504, Body::Bytes(Vec::new()))
        } else {
            assert_eq!(&buffer[..read], request.param("id").as_bytes());
            echo(&request)
        };
        lease.respond(request, Ok(response));
    };
    watch(socket, Interest::Read, deadline, then).expect("a place for the watch");
}

const ROUTES: &[Route<ScheduleState>] = &[
    (Verb::Get, "/one/:id", Handler::One(one)),
    (Verb::Get, "/batch/:id", Handler::Batch(&BATCH)),
    (Verb::Get, "/long/:id", Handler::One(long)),
    (Verb::Get, "/later/:id", Handler::Owned(later)),
    (Verb::Get, "/behind/:id", Handler::Owned(behind)),
    (Verb::Get, "/meet/:id", Handler::Batch(&MEET)),
];

const MEET: Batch<ScheduleState> = Batch {
    answer: batch_of_none,
    one: meet,
    ..BATCH
};

const BATCH: Batch<ScheduleState> = Batch {
    slots: 1,
    requests_max: 2,
    filter: |_| true,
    answer: batch,
    one,
};

/// Two requests that wait for each other.
#[derive(Default)]
struct Meeting {
    here: Mutex<usize>,
    changed: Condvar,
}

/// Requests that another thread answers.
#[derive(Default)]
struct Later {
    held: Mutex<(Vec<Request>, bool)>,
    changed: Condvar,
}

impl Later {
    fn answer_all(&self) {
        loop {
            let mut held = lock(&self.held);
            while held.0.is_empty() && !held.1 {
                held = self.changed.wait(held).expect("no poison");
            }
            let Some(request) = held.0.pop() else { return };
            drop(held);
            let response = echo(&request);
            request.respond(Ok(response));
        }
    }
}

struct Setup {
    core: Arc<Core>,
    bulkhead: Arc<Bulkhead<ScheduleState>>,
    kernel: Arc<Kernel>,
    later: Arc<Later>,
    threads: Vec<thread::JoinHandle<()>>,
}

fn start_worker(core: Arc<Core>) -> bool {
    thread::spawn(move || Arc::clone(&core.workers).work(move || worker::work(&core)));
    true
}

impl Setup {
    /// Any server with so many connections at the most.
    fn start(connections: usize) -> Self {
        let mut random = thread_rng();
        let room = if random.gen_range(0..3) == 0 {
            150
        } else {
            10_000
        };
        Self::start_with(connections, room, random.gen_range(1..3))
    }

    fn start_with(connections: usize, room: usize, slots: usize) -> Self {
        HANDLED.with_borrow_mut(HashMap::clear);
        let kernel = Kernel::boot(room);
        let later = Arc::new(Later::default());
        let limits = Limits {
            connections,
            ..Limits::default()
        };
        let state = {
            let (later, meeting) = (Arc::clone(&later), Arc::new(Meeting::default()));
            move || ScheduleState {
                used: false,
                later: Arc::clone(&later),
                meeting: Arc::clone(&meeting),
            }
        };
        let bulkhead = Arc::new(Bulkhead::new("", slots, ROUTES, &limits, state));
        let router = Router {
            bulkheads: vec![Arc::clone(&bulkhead) as Arc<dyn AnyBulkhead>],
            hosts: Vec::new(),
        };
        let listener = poller::bind(([127, 0, 0, 1], 1).into(), false, Duration::ZERO);
        let listener = listener.expect("a kernel");
        let workers = (
            thread_rng().gen_range(1..3),
            start_worker as fn(Arc<Core>) -> bool,
        );
        let metrics = METRICS.with(Metrics::clone);
        let core = Core::new(router, &limits, None, &metrics, listener, workers);
        let core = core.expect("a kernel");
        assert!(core.workers.start_missing());
        let (publisher, service) = (Arc::clone(&later), Arc::clone(&kernel));
        let threads = vec![
            thread::spawn(move || publisher.answer_all()),
            thread::spawn(move || {
                while let Some(client) = service.dialled() {
                    let said = client.recv();
                    client.send(&said);
                }
            }),
        ];
        Self {
            core,
            bulkhead,
            kernel,
            later,
            threads,
        }
    }

    /// The drain ends, each request was handled once, and no slot is left taken.
    fn finish(self) {
        sweeper::drain(&self.core);
        for round in 0.. {
            if !sweeper::sweep(&self.core, now(), Some(Duration::ZERO)) {
                break;
            }
            if round % 8 == 0 && round < 100 {
                advance(Duration::from_millis(100));
            }
            thread::yield_now();
        }
        self.core.poller.end_all();
        while self.core.workers.live() > 0 {
            thread::yield_now();
        }
        lock(&self.later.held).1 = true;
        self.later.changed.notify_all();
        for thread in self.threads {
            thread.join().expect("no panic");
        }
        // Of a request whose client has had its 503, the service behind may still be asked.
        self.core.watches.sweep(|_, _, _| true).for_each(drop);
        assert!(self.bulkhead.is_at_rest());
        let handled = HANDLED.with_borrow(HashMap::clone);
        assert!(handled.values().all(|times| *times == 1), "{handled:?}");
    }
}

/// Reads that many answers: their statuses and bodies.
fn answers(client: &FakeClient, many: usize) -> Vec<(u16, String)> {
    let (mut answers, mut input) = (Vec::new(), Vec::new());
    while answers.len() < many {
        let more = client.recv();
        if more.is_empty() {
            break;
        }
        input.extend(more);
        while let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(input[..end].to_vec()).expect("text");
            let length = head.split("content-length: ").nth(1).expect("a length");
            let length: usize = length
                .lines()
                .next()
                .expect("a line")
                .parse()
                .expect("a number");
            if input.len() < end + 4 + length {
                break;
            }
            let body = String::from_utf8(input[end + 4..end + 4 + length].to_vec());
            answers.push((head[9..12].parse().expect("a status"), body.expect("text")));
            input.drain(..end + 4 + length);
        }
    }
    assert!(answers.len() <= many, "an answer too many");
    answers
}

fn get(path: &str, id: &str) -> Vec<u8> {
    format!("GET /{path}/{id} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes()
}

fn expected(path: &str, id: &str) -> (u16, String) {
    (200, id.repeat(if path == "long" { 15 } else { 1 }))
}

fn any_path() -> &'static str {
    ["one", "batch", "batch", "long", "later", "behind"][thread_rng().gen_range(0..6)]
}

fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules = std::env::var("SCHEDULES").map_or(500, |many| many.parse().expect("a number"));
    shuttle::check_random(scenario.clone(), schedules);
    shuttle::check_pct(scenario, schedules, 3);
}

#[test]
fn every_request_is_answered_once_and_in_its_turn() {
    explore(|| {
        let setup = Setup::start(4);
        let clients: Vec<_> = (0..3)
            .map(|nth| {
                let client = setup.kernel.connect().expect("a listener");
                thread::spawn(move || {
                    let ids = [format!("{nth}a"), format!("{nth}b")];
                    let paths = [any_path(), any_path()];
                    let requests = [get(paths[0], &ids[0]), get(paths[1], &ids[1])];
                    let all = [expected(paths[0], &ids[0]), expected(paths[1], &ids[1])];
                    if nth == 0 {
                        // Pipelined, and split somewhere.
                        let bytes = requests.concat();
                        let at = thread_rng().gen_range(0..bytes.len());
                        client.send(&bytes[..at]);
                        client.send(&bytes[at..]);
                        assert_eq!(answers(&client, 2), all);
                    } else {
                        for (request, one) in requests.iter().zip(all) {
                            client.send(request);
                            assert_eq!(answers(&client, 1), [one]);
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("no panic");
        }
        setup.finish();
    });
}

/// The client gets one of the two, and the next client on that place of the table none.
#[test]
fn an_answer_meets_the_sweepers_503() {
    explore(|| {
        let setup = Setup::start_with(1, 10_000, thread_rng().gen_range(1..3));
        let path = ["later", "behind"][thread_rng().gen_range(0..2)];
        let client = setup.kernel.connect().expect("a listener");
        let first = thread::spawn(move || {
            client.send(&get(path, "old"));
            let got = answers(&client, 1);
            let late = got
                .first()
                .is_some_and(|(status, _)| [503, 504].contains(status));
            assert!(late || got == [(200, "old".to_owned())], "{got:?}");
        });
        let core = Arc::clone(&setup.core);
        let sweeper = thread::spawn(move || {
            for _ in 0..3 {
                advance(Duration::from_secs(17));
                sweeper::sweep(&core, now(), None);
            }
        });
        first.join().expect("no panic");
        sweeper.join().expect("no panic");
        // The place is free when the old connection is gone.
        let new = loop {
            let client = setup.kernel.connect().expect("a listener");
            client.send(&get("later", "new"));
            let got = answers(&client, 1);
            if got.first().is_some_and(|(status, _)| *status == 200) {
                break got;
            }
            advance(Duration::from_secs(2));
            sweeper::sweep(&setup.core, now(), None);
            thread::yield_now();
        };
        assert_eq!(new, [(200, "new".to_owned())]);
        setup.finish();
    });
}

/// Whoever gets an answer gets the right one.
#[test]
fn a_drain_in_the_middle_ends() {
    explore(|| {
        let setup = Setup::start(4);
        let clients: Vec<_> = (0..2)
            .map(|nth: usize| {
                let client = setup.kernel.connect().expect("a listener");
                thread::spawn(move || {
                    for id in [format!("{nth}a"), format!("{nth}b")] {
                        let path = any_path();
                        client.send(&get(path, &id));
                        let got = answers(&client, 1);
                        if got.is_empty() {
                            return;
                        }
                        assert_eq!(got, [expected(path, &id)]);
                    }
                })
            })
            .collect();
        setup.finish();
        for client in clients {
            client.join().expect("no panic");
        }
    });
}

/// Whoever was closed or turned away tries again, and all are served.
#[test]
fn newcomers_are_served_at_the_cap() {
    explore(|| {
        let setup = Setup::start(thread_rng().gen_range(1..3));
        let clients: Vec<_> = (0..3)
            .map(|nth: usize| {
                let (kernel, core) = (Arc::clone(&setup.kernel), Arc::clone(&setup.core));
                thread::spawn(move || {
                    for attempt in 0.. {
                        let client = kernel.connect().expect("a listener");
                        let (path, id) = (any_path(), format!("{nth}.{attempt}"));
                        client.send(&get(path, &id));
                        let got = answers(&client, 1);
                        if got.first().is_some_and(|(status, _)| *status == 200) {
                            assert_eq!(got, [expected(path, &id)]);
                            return;
                        }
                        sweeper::sweep(&core, now(), None);
                        thread::yield_now();
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("no panic");
        }
        setup.finish();
    });
}

/// A slot is not free while a request waits that may have it: these two are answered only where both
/// have one.
#[test]
fn what_a_batch_leaves_alone_is_answered_in_all_slots() {
    explore(|| {
        let setup = Setup::start_with(4, 10_000, 2);
        let clients: Vec<_> = (0..2)
            .map(|nth: usize| {
                let client = setup.kernel.connect().expect("a listener");
                thread::spawn(move || {
                    let id = nth.to_string();
                    client.send(&get("meet", &id));
                    assert_eq!(answers(&client, 1), [(200, id)]);
                })
            })
            .collect();
        for client in clients {
            client.join().expect("no panic");
        }
        setup.finish();
    });
}
