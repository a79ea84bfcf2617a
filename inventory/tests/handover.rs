//! A new process takes over the port of the old one while clients go on asking.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use testkit::{Client, Program, TestDatabase, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_inventory-api");

/// Clients that ask without a pause.
const CLIENTS: usize = 4;

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

/// Asks on a connection of its own. One that the kernel had given to a process which ends
/// before it accepts it is reset, with nothing read: it is asked again, as every client does.
fn ask(client: &Client) -> u16 {
    let headers = [("connection", "close")];
    let ask = || client.try_send("GET", "/api/movies", &headers, None);
    ask().or_else(|_| ask()).map_or(0, |reply| reply.status)
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
                    let client = Client::new(address);
                    let mut unanswered = 0;
                    while !stop.load(Ordering::Relaxed) {
                        if ask(&client) == 200 {
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
