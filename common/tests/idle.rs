//! Idle connections cost a server little. This test is alone in its process, since it counts threads and memory.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use common::http::{
    AnyBulkhead, Body, Bulkhead, Handler, HandlerResult, HttpConfig, Limits, Request, Response,
    Route, Server, Verb,
};
use common::metrics::Metrics;
use common::shutdown;
use rustix::process::{Resource, getrlimit, setrlimit};

const ROUTES: &[Route<()>] = &[(Verb::Get, "/good", Handler::One(good))];

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn good<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
    Ok(Response::new(200, Body::Bytes(b"good".to_vec())))
}

/// The number of threads of this process, and its memory in KiB.
fn threads_and_memory() -> (usize, usize) {
    let status = fs::read_to_string("/proc/self/status").expect("a file");
    let value = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line");
        let number = line.split_whitespace().nth(1).expect("a number");
        number.parse().expect("a number")
    };
    (value("Threads:"), value("VmRSS:"))
}

fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn thousands_of_idle_connections_cost_no_thread_and_little_memory() {
    const MEMORY_KIB: usize = 14 * 1024;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a limit may be raised to its maximum");
    // Both ends of each connection are in this process.
    let descriptors = usize::try_from(limit.maximum.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let idle_max = (descriptors.saturating_sub(1000) / 2).min(10_000);
    let connections = idle_max + 100;
    let mut limits = Limits::default();
    (limits.connections, limits.connections_per_client) = (connections, connections);
    let config = HttpConfig {
        limits,
        ..HttpConfig::on_loopback(2)
    };
    let bulkhead = Bulkhead::new("/good", 2, ROUTES, &config.limits, || ());
    let bulkheads: Vec<Arc<dyn AnyBulkhead>> = vec![Arc::new(bulkhead)];
    let (trigger, shutdown) = shutdown::channel();
    let server = Server::start(&config, bulkheads, || Vec::new, &Metrics::new(), &shutdown)
        .expect("a server");
    let address = server.address();
    assert!(ask(address, "/good").ends_with("good"));
    let (threads, memory) = threads_and_memory();

    let mut idle: Vec<TcpStream> = Vec::new();
    for nth in 0..idle_max {
        let mut stream = TcpStream::connect(address).expect("a connection");
        if nth % 2 == 0 {
            stream
                .write_all(b"GET /good HTTP/1.1\r\nHost: h\r\n\r\n")
                .expect("it reads");
            stream.read_exact(&mut [0; 12]).expect("an answer");
        }
        idle.push(stream);
    }

    assert!(ask(address, "/good").ends_with("good"));
    let metrics = ask(address, "/metrics");
    let open = metrics
        .lines()
        .find_map(|line| line.strip_prefix("http_connections "));
    let open: usize = open.and_then(|open| open.parse().ok()).expect("a number");
    assert!(open >= idle_max, "{open} of {idle_max}");
    let (threads_now, memory_now) = threads_and_memory();
    // A worker may have waited in each of the two slots, for which another worker was started.
    assert!(
        threads_now <= threads + 2,
        "{threads} and {threads_now} threads"
    );
    assert!(
        memory_now < memory + MEMORY_KIB,
        "{memory} and {memory_now} KiB"
    );
    drop(idle);
    drop(trigger);
    server.join();
}
