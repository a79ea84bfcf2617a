//! A new process takes over the port of the old one while clients send requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::{Program, TestDatabase, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_inventory-api");

/// How many clients send one request after another.
const CLIENTS: usize = 16;

/// The time from a client's connection to its request.
const ROUND_TRIP: Duration = Duration::from_millis(20);

fn start(database: &TestDatabase, port: &str) -> Program {
    let mut vars = database.vars("INVENTORY_DB_NAME");
    for (key, value) in [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("INVENTORY_API_PORT", port),
        ("HTTP_REUSE_PORT", "true"),
        ("HTTP_WORKERS", "2"),
    ] {
        vars.push((key.to_owned(), value.to_owned()));
    }
    Program::start(PROGRAM, vars)
}

/// Sends a request on a connection of its own, some time after it is open, as a distant client does.
fn ask(address: SocketAddr) -> u16 {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return 0;
    };
    thread::sleep(ROUND_TRIP);
    let request = b"GET /api/movies HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    let answered = stream
        .write_all(request)
        .and_then(|()| stream.read_to_string(&mut answer));
    answered
        .ok()
        .and_then(|_| answer.get(9..12)?.parse().ok())
        .unwrap_or(0)
}

/// A client that sends requests over a connection for as long as the server keeps it. Returns how many of the requests
/// that followed soon after an answer had no answer.
fn ask_again_and_again(address: SocketAddr, answered: &AtomicUsize, stop: &AtomicBool) -> usize {
    let mut unanswered = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(address).expect("somebody listens");
        let mut idle_since = Instant::now();
        loop {
            thread::sleep(ROUND_TRIP);
            let sent = stream.write_all(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
            let soon = idle_since.elapsed() < Duration::from_millis(500);
            let Some(is_last) = sent.ok().and_then(|()| read_answer(&mut stream)) else {
                unanswered += usize::from(soon);
                break;
            };
            answered.fetch_add(1, Ordering::Relaxed);
            idle_since = Instant::now();
            if is_last || stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    unanswered
}

/// Whether this was the last answer of the connection; None if the answer is truncated.
fn read_answer(stream: &mut TcpStream) -> Option<bool> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.split("content-length: ").nth(1)?.lines().next()?;
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).ok()?;
    Some(head.contains("connection: close"))
}

/// Clients call `ask` while one process takes over from another; returns how many requests had no answer.
fn unanswered_in_a_handover(
    ask: impl Fn(SocketAddr, &AtomicUsize, &AtomicBool) -> usize + Sync,
) -> usize {
    let database = TestDatabase::create();
    let old = start(&database, "0");
    let address = old.address();
    let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));

    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| ask(address, &answered, &stop)))
            .collect();
        let answered_more = |count: usize| {
            let before = answered.load(Ordering::Relaxed);
            eventually("clients go on", || {
                answered.load(Ordering::Relaxed) >= before + count
            });
        };
        answered_more(200);

        let new = start(&database, &address.port().to_string());
        assert_eq!(new.address(), address);
        answered_more(200);
        old.signal("TERM");
        let (status, log) = old.wait();

        assert_eq!(status.code(), Some(0), "{log}");
        answered_more(200);
        stop.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().expect("no panic"))
            .sum()
    })
}

#[test]
fn no_answer_is_missed_while_one_process_takes_over_from_another() {
    let unanswered = unanswered_in_a_handover(|address, answered, stop| {
        let mut unanswered = 0;
        while !stop.load(Ordering::Relaxed) {
            if ask(address) == 200 {
                answered.fetch_add(1, Ordering::Relaxed);
            } else {
                unanswered += 1;
            }
        }
        unanswered
    });

    assert_eq!(unanswered, 0);
}

#[test]
fn whoever_keeps_a_connection_is_told_to_take_another_before_it_is_closed() {
    assert_eq!(unanswered_in_a_handover(ask_again_and_again), 0);
}
