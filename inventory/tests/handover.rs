//! A new process takes over the port of the old one while clients go on asking.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use testkit::{Program, TestDatabase, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_inventory-api");

/// Clients that ask one request after another.
const CLIENTS: usize = 16;

/// From a client's connection to its request.
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

/// Asks on a connection of its own, a while after it is there, as a client far away does.
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

#[test]
fn no_answer_is_missed_while_one_process_takes_over_from_another() {
    let database = TestDatabase::create();
    let old = start(&database, "0");
    let address = old.address();
    let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));

    let unanswered: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut unanswered = 0;
                    while !stop.load(Ordering::Relaxed) {
                        if ask(address) == 200 {
                            answered.fetch_add(1, Ordering::Relaxed);
                        } else {
                            unanswered += 1;
                        }
                    }
                    unanswered
                })
            })
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
    });

    assert_eq!(unanswered, 0);
}
