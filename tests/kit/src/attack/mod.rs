//! Attacks by hostile, broken and slow clients on a program that listens. Meanwhile the process continues, serves other
//! clients at their usual latency and stays within its memory; afterwards it has its former number of threads and
//! descriptors.

mod cases;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

pub use cases::{Case, cases};

use crate::{Client, ProcessStats, Program, eventually};

/// How long any one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The settings of a program under attack: short time limits, so that the tests are quick.
pub const SETTINGS: &[(&str, &str)] = &[
    ("HTTP_WORKERS", "4"),
    ("HTTP_HEAD_SECONDS", "2"),
    ("HTTP_BODY_SECONDS", "2"),
    ("HTTP_SEND_SECONDS", "2"),
    ("HTTP_IDLE_SECONDS", "60"),
    ("HTTP_CONNECTIONS_PER_CLIENT_MAX", "4096"),
    ("HTTP_QUEUE_MILLISECONDS", "20000"),
    ("RUST_LOG", "info,access=warn"),
];

/// How much memory a program may take beyond its usage before an attack: a hundred connections, each with the largest
/// head, the buffers for bodies, and the memory that the allocator keeps.
const MEMORY_KIB_MAX: usize = 96 * 1024;

/// How many threads and descriptors a program may open for its own use during an attack: workers and their connections,
/// which it opens when it needs them.
const OWN_MAX: usize = 32;

/// A program under attack.
pub struct AttackedProgram<'p> {
    program: &'p Program,
    address: SocketAddr,
    path: &'static str,
}

impl<'p> AttackedProgram<'p> {
    /// Takes a program of which a worker answers a GET of `path` with 200.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn new(program: &'p Program, path: &'static str) -> Self {
        allow_many_descriptors();
        let address = program.address();
        let client = Client::new(address);
        eventually("the program is ready", || client.get(path).status == 200);
        Self {
            program,
            address,
            path,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_nodelay(true).expect("a socket option");
        for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            set(&stream, Some(PATIENCE)).expect("a socket option");
        }
        stream
    }

    /// A connection with a small receive buffer, so that the system takes little of an answer for the client.
    fn connect_with_a_small_window(&self) -> TcpStream {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None);
        let socket = socket.expect("a socket");
        socket
            .set_recv_buffer_size(4096)
            .and_then(|()| socket.connect(&self.address.into()))
            .and_then(|()| socket.set_read_timeout(Some(PATIENCE)))
            .expect("a connection");
        socket.into()
    }

    fn lives(&self) -> bool {
        let health = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        answers(self.connect(), health) == [200]
    }

    /// A value of `/metrics`.
    fn metric(&self, name: &str) -> Option<f64> {
        metric(&Client::new(self.address), name)
    }

    /// Runs all attacks, and checks that the program has freed its resources.
    ///
    /// # Panics
    /// If a condition does not hold.
    pub fn withstands_everything(&self, large: &str) {
        let before = self.before();
        let started = self.metric("process_start_time_seconds");

        self.withstands_malformed_requests();
        self.withstands_endless_parts();
        self.withstands_large_bodies();
        self.answers_bursts();
        self.withstands_slow_heads();
        self.withstands_slow_bodies();
        self.withstands_idle_connections();
        self.withstands_readers_that_leave(large);
        self.withstands_slow_readers(large);

        self.is_back_to(&before);
        assert_eq!(self.metric("process_start_time_seconds"), started);
    }

    /// Checks that each of [`cases`] gets its answer.
    ///
    /// # Panics
    /// If one does not, or the listener ends.
    pub fn withstands_malformed_requests(&self) {
        let cases = cases(self.path);
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(Vec::new());

        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let answered = answers(self.connect(), &case.bytes);
                        if answered != case.expected || !self.lives() {
                            let name = &case.name;
                            let failure = format!("{name}: {answered:?}, not {:?}", case.expected);
                            failures.lock().expect("no panic").push(failure);
                        }
                    }
                });
            }
        });

        assert_eq!(failures.into_inner().expect("no panic"), [""; 0]);
    }

    /// Checks that a part of a request without an end is cut off, and takes little memory.
    ///
    /// # Panics
    /// If it is not, or takes more.
    pub fn withstands_endless_parts(&self) {
        const BYTES_EACH: usize = 4 * 1024 * 1024;
        let head = format!("POST {} HTTP/1.1\r\nHost: h\r\n", self.path);
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
        let parts: [(&str, String, &str); 8] = [
            ("line ends", String::new(), "\r\n"),
            ("request line", "GET /".to_owned(), "a"),
            ("name of a header", head.clone(), "a"),
            ("value of a header", format!("{head}X: "), "a"),
            ("headers", head, "X: y\r\n"),
            ("extension", format!("{chunked}5;"), "a"),
            ("trailers", format!("{chunked}0\r\n"), "X: y\r\n"),
            ("chunks", chunked, "1\r\na\r\n"),
        ];
        let before = self.program.stats();

        thread::scope(|scope| {
            for (name, begin, piece) in &parts {
                for _ in 0..12 {
                    scope.spawn(move || {
                        let mut stream = self.connect();
                        let mut sent = stream.write_all(begin.as_bytes());
                        let pieces = piece.repeat(64 * 1024 / piece.len());
                        for _ in 0..BYTES_EACH / pieces.len() {
                            sent = sent.and_then(|()| stream.write_all(pieces.as_bytes()));
                        }
                        // Empty lines are ignored for as long as a connection may be idle.
                        let expected = if begin.is_empty() { 200 } else { 400 };
                        let end = "GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
                        let status = answers(stream, end.as_bytes())[..].first().copied();
                        let refused = status.is_none_or(|status| status / 100 == expected / 100);
                        assert!(refused, "{name}: {sent:?}, {status:?}");
                    });
                }
            }
        });

        self.has_grown_within_bounds(before, "endless parts");
        assert!(self.lives());
    }

    /// Checks that many large incomplete bodies take no more memory than all bodies together may.
    ///
    /// # Panics
    /// If they do.
    pub fn withstands_large_bodies(&self) {
        let before = self.program.stats();
        let head = format!("GET {} HTTP/1.1\r\nHost: h\r\n", self.path);
        let heads = [
            format!("{head}Content-Length: 1048576\r\n\r\n"),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n100000\r\n"),
        ];
        let body = vec![b'a'; 1024 * 1024 - 1];

        let streams: Vec<_> = (0..150)
            .map(|number| {
                let mut stream = self.connect();
                // A refusal may come before the end of the body.
                let _ = stream.write_all(heads[number % 2].as_bytes());
                let _ = stream.write_all(&body);
                stream
            })
            .collect();

        assert!(self.lives());
        self.has_grown_within_bounds(before, "large bodies");
        let statuses: Vec<_> = streams
            .into_iter()
            .flat_map(|stream| answers(stream, b""))
            .collect();
        let allowed = |status: &u16| matches!(status, 503 | 408);
        assert!(statuses.iter().all(allowed), "{statuses:?}");
        assert!(statuses.contains(&503), "{statuses:?}");
    }

    fn has_grown_within_bounds(&self, before: ProcessStats, what: &str) {
        let after = self.program.stats();
        let grown = after
            .most_resident_kib
            .saturating_sub(before.most_resident_kib.max(before.resident_kib));
        report(&format!("{what}: {grown} KiB more at the most"));
        assert!(grown <= MEMORY_KIB_MAX, "{what}: {before:?}, {after:?}");
    }

    /// Checks that connections which arrive at the same time are all answered, and none waits for another to close.
    ///
    /// # Panics
    /// If one waits.
    pub fn answers_bursts(&self) {
        for clients in [64, 256, 1000] {
            let request = format!("GET {} HTTP/1.1\r\nHost: h\r\n\r\n", self.path);
            let streams: Vec<Mutex<Option<TcpStream>>> =
                (0..clients).map(|_| Mutex::default()).collect();
            let threads = 16;
            let together = Barrier::new(threads);
            let started = Instant::now();

            thread::scope(|scope| {
                for thread in 0..threads {
                    let (streams, together, request) = (&streams, &together, &request);
                    scope.spawn(move || {
                        together.wait();
                        let own = || streams.iter().skip(thread).step_by(threads);
                        for place in own() {
                            let mut stream = self.connect();
                            stream.write_all(request.as_bytes()).expect("it reads");
                            *place.lock().expect("no panic") = Some(stream);
                        }
                        for place in own() {
                            let stream = place.lock().expect("no panic");
                            let status = answer(stream.as_ref().expect("it was put there"));
                            assert_eq!(status, Some(200), "one of {clients} at once");
                        }
                    });
                }
            });

            report(&format!("{clients} at once: {:?}", started.elapsed()));
        }
    }

    /// Sends hundreds of heads byte by byte.
    ///
    /// # Panics
    /// If other clients wait longer, or one of the heads is not cut off.
    pub fn withstands_slow_heads(&self) {
        self.withstands_slow_senders("slow heads", "GET / HTTP/1.1\r\nHost: h\r\nX: ");
    }

    /// Sends hundreds of bodies byte by byte.
    ///
    /// # Panics
    /// If other clients wait longer, or one of the bodies is not cut off.
    pub fn withstands_slow_bodies(&self) {
        self.withstands_slow_senders("slow bodies", &self.with_body(1_000_000));
    }

    fn with_body(&self, length: usize) -> String {
        let path = self.path;
        format!("GET {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n")
    }

    fn withstands_slow_senders(&self, what: &'static str, begin: &str) {
        let pace = self.latency_of_others(what);
        let mut slow: Vec<_> = (0..300)
            .map(|_| {
                let mut stream = self.connect();
                stream.write_all(begin.as_bytes()).expect("it reads");
                stream.set_nonblocking(true).expect("a socket option");
                (stream, Vec::new())
            })
            .collect();
        let mut ended = Vec::new();
        let large = format!("{}{}", self.with_body(100_000), "a".repeat(100_000));
        assert_eq!(answers(self.connect(), large.as_bytes()), [200], "{what}");

        // For each request of the other clients, each slow client sends one byte.
        pace.holds_while(|| {
            let open = slow.extract_if(.., |(stream, answer)| {
                let _ = stream.write(b"a");
                !is_open(stream.read_to_end(answer))
            });
            ended.extend(open.map(|(_, answer)| statuses(&answer)));
            !slow.is_empty()
        });

        let late = ended.iter().filter(|statuses| **statuses == [408]).count();
        assert_eq!((late, ended.len()), (300, 300), "{what}");
    }

    /// Requests much with clients that read nothing.
    ///
    /// # Panics
    /// If other clients wait longer, or one of these is not cut off.
    pub fn withstands_slow_readers(&self, large: &str) {
        let before = self.program.stats();
        let whole = Client::new(self.address).get(large).text.len();
        let pace = self.latency_of_others("slow readers");
        let request = format!("GET {large} HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut readers = Vec::new();

        pace.holds_while(|| {
            // The answer to each client has begun before the next one sends its request, so that the test measures
            // how little they read, and not how much they request at once.
            if readers.len() < 100 {
                let mut reader = self.connect_with_a_small_window();
                reader.write_all(request.as_bytes()).expect("it reads");
                reader.read_exact(&mut [0]).expect("an answer");
                readers.push(reader);
                return true;
            }
            // The program's own connections do not count: they are used at once, or closed.
            self.metric("http_connections").unwrap_or(f64::MAX) >= 8.0
        });

        self.has_grown_within_bounds(before, "slow readers");
        // The last clients may still be served, since they read now.
        let served = readers.iter_mut().filter_map(|reader| {
            let mut arrived = Vec::new();
            reader.set_nonblocking(true).ok()?;
            let _ = reader.read_to_end(&mut arrived);
            (arrived.len() >= whole).then_some(())
        });
        let served = served.count();
        assert!(served < 8, "the system's buffers hold all of {large}");
    }

    /// Requests much with clients that read a little and close the connection.
    ///
    /// # Panics
    /// If another client does not get its own complete answer.
    pub fn withstands_readers_that_leave(&self, large: &str) {
        const LEAVING: usize = 60;
        let client = Client::new(self.address);
        let whole = client.get(large).text.len();
        let request = format!("GET {large} HTTP/1.1\r\nHost: h\r\n\r\n");
        let left = AtomicUsize::new(0);

        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while left.fetch_add(1, Ordering::Relaxed) < LEAVING {
                        let mut stream = self.connect();
                        stream.write_all(request.as_bytes()).expect("it reads");
                        stream.read_exact(&mut [0; 1024]).expect("an answer");
                    }
                });
            }
            scope.spawn(|| {
                let client = Client::new(self.address);
                while left.load(Ordering::Relaxed) < LEAVING {
                    let reply = client.get(large);
                    assert_eq!((reply.status, reply.text.len()), (200, whole));
                }
            });
            while left.load(Ordering::Relaxed) < LEAVING {
                assert_eq!(client.get(self.path).status, 200);
            }
        });
    }

    /// Opens two thousand connections that send nothing.
    ///
    /// # Panics
    /// If other clients wait longer.
    pub fn withstands_idle_connections(&self) {
        let pace = self.latency_of_others("2,000 idle connections");
        let before = self.program.stats();
        let idle: Vec<_> = (0..2000).map(|_| self.connect()).collect();
        eventually("all are accepted", || {
            self.metric("http_connections")
                .is_some_and(|open| open >= 2000.0)
        });
        let mut rounds = 0;

        pace.holds_while(|| {
            rounds += 1;
            rounds < 200
        });

        self.has_grown_within_bounds(before, "2,000 idle connections");
        drop(idle);
    }

    /// Waits until threads, descriptors and connections are as before the attack.
    fn is_back_to(&self, before: &Baseline) {
        // All requests use one connection: each new one would wake a thread that should end.
        let client = Client::new(self.address);
        eventually(
            "connections, threads and descriptors are given back",
            || {
                let now = self.program.stats();
                metric(&client, "http_connections") <= before.connections
                    && now.threads <= before.stats.threads + OWN_MAX
                    && now.descriptors <= before.stats.descriptors + OWN_MAX
            },
        );
        report(&format!(
            "{:?} before, {:?} afterwards",
            before.stats,
            self.program.stats()
        ));
    }

    fn before(&self) -> Baseline {
        Baseline {
            stats: self.program.stats(),
            connections: self.metric("http_connections"),
        }
    }

    /// Measures the latency of other clients for a later comparison.
    fn latency_of_others(&self, what: &'static str) -> LatencyBaseline<'_> {
        let client = Client::new(self.address);
        let times = (0..50).map(|_| self.time_of_one(&client)).collect();
        LatencyBaseline {
            target: self,
            what,
            client,
            usual: median(times),
        }
    }

    fn time_of_one(&self, client: &Client) -> Duration {
        let started = Instant::now();
        let reply = client.get(self.path);
        assert_eq!(reply.status, 200, "{}", reply.text);
        started.elapsed()
    }
}

/// The resources that a program uses before an attack.
struct Baseline {
    stats: ProcessStats,
    connections: Option<f64>,
}

/// The usual latency of other clients.
struct LatencyBaseline<'t> {
    target: &'t AttackedProgram<'t>,
    what: &'static str,
    client: Client,
    usual: Duration,
}

impl LatencyBaseline<'_> {
    /// Sends requests of another client, one for each call of `attack`, until `attack` returns false.
    fn holds_while(&self, mut attack: impl FnMut() -> bool) {
        let started = Instant::now();
        let (mut times, mut machine) = (Vec::new(), Vec::new());
        while attack() {
            times.push(self.target.time_of_one(&self.client));
            // No worker gives this answer, so it shows how busy the machine is.
            let asked = Instant::now();
            assert_eq!(self.client.get("/health").status, 200);
            machine.push(asked.elapsed());
            assert!(
                started.elapsed() < 3 * PATIENCE,
                "{} have no end",
                self.what
            );
        }
        let requests = times.len();
        let worst = times.iter().max().copied().unwrap_or_default();
        let (now, machine) = (median(times), median(machine));
        report(&format!(
            "{}: {requests} others at {now:?}, {worst:?} at worst; {:?} before; health at {machine:?}",
            self.what, self.usual
        ));
        // The latency may grow by an order of magnitude, and further on a machine that has become busy. A wait for a
        // slow client would take two seconds, which are the time limits of SETTINGS.
        let bound = self.usual * 10 + machine * 20 + Duration::from_secs(1);
        assert!(now < bound, "{}: {now:?} is not below {bound:?}", self.what);
        assert!(worst < PATIENCE, "{}: {worst:?} at worst", self.what);
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Opens more connections than a program with few descriptors can have.
///
/// # Panics
/// If a client over the limit gets no answer, other clients wait longer, or resources are missing afterwards.
pub fn withstands_a_crowd(program: &Program, path: &'static str, descriptors: usize) {
    let target = AttackedProgram::new(program, path);
    let before = target.before();
    let early = Client::new(target.address);
    assert_eq!(early.get(path).status, 200);
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");

    let crowd: Vec<_> = (0..descriptors * 2).map(|_| target.connect()).collect();
    // As many clients as there is room for send requests at once, for which workers are started.
    let statuses: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = crowd
            .iter()
            .map(|mut stream| {
                let request = &request;
                scope.spawn(move || {
                    let _ = stream.write_all(request.as_bytes());
                    answer(stream)
                })
            })
            .collect();
        let statuses = clients
            .into_iter()
            .map(|client| client.join().expect("a client"));
        statuses.collect()
    });

    let answered = |status| {
        statuses
            .iter()
            .filter(|answered| **answered == status)
            .count()
    };
    let (served, turned_away) = (answered(Some(200)), answered(Some(503)));
    assert_eq!(served + turned_away, crowd.len(), "{statuses:?}");
    assert!(served > 0 && turned_away > 0, "{statuses:?}");
    assert_eq!(early.get(path).status, 200);
    drop((crowd, early));
    eventually("new clients are served", || target.lives());
    target.is_back_to(&before);
}

/// Checks that a program without a descriptor for a new connection serves those that it has, and accepts new ones as
/// soon as it can.
///
/// # Panics
/// If it does not.
pub fn survives_without_descriptors(program: &Program, path: &'static str) {
    let target = AttackedProgram::new(program, path);
    target.answers_bursts();
    let early = Client::new(target.address);
    assert_eq!(early.get(path).status, 200);

    let usual = program.limit_descriptors(1);
    let mut late = target.connect();
    eventually("it notices", || program.log().contains("cannot accept"));
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    late.write_all(request.as_bytes())
        .expect("the system reads");
    for _ in 0..100 {
        assert_eq!(early.get(path).status, 200);
    }
    late.set_nonblocking(true).expect("a socket option");
    let nothing = late.peek(&mut [0]).expect_err("nobody accepts it");
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    late.set_nonblocking(false).expect("a socket option");
    program.limit_descriptors(usual);

    assert_eq!(answer(&late), Some(200));
    assert!(target.lives());
}

fn metric(client: &Client, name: &str) -> Option<f64> {
    let text = client.get("/metrics").text;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Raises the limit of descriptors of this process, since the usual 1024 are too few for many clients.
fn allow_many_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a limit may be raised to its maximum");
}

/// Sends bytes, ends the client's side, and returns the statuses of all answers up to the end of the connection.
fn answers(mut stream: TcpStream, bytes: &[u8]) -> Vec<u16> {
    // A refusal may come, and the connection end, before all is written or read.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    match stream.read_to_end(&mut answers) {
        Err(error) if !is_reset(&error) => panic!("no end of the connection: {error}"),
        _ => statuses(&answers),
    }
}

/// The status of an answer whose connection stays open.
fn answer(mut stream: &TcpStream) -> Option<u16> {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(read @ 1..) => answer.extend_from_slice(&piece[..read]),
            _ => return None,
        }
    }
    statuses(&answer).first().copied()
}

/// The statuses of all answers; interim ones are left out.
fn statuses(answers: &[u8]) -> Vec<u16> {
    const BEGIN: &[u8] = b"HTTP/1.1 ";
    let begins = answers
        .windows(BEGIN.len() + 4)
        .filter(|window| window.starts_with(BEGIN));
    begins
        .filter_map(|line| {
            std::str::from_utf8(&line[BEGIN.len()..])
                .ok()?
                .trim_end()
                .parse()
                .ok()
        })
        .filter(|status| *status >= 200)
        .collect()
}

/// Whether a nonblocking connection is open and has nothing to read now.
fn is_open(read: io::Result<usize>) -> bool {
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// Prints a line, which is shown with `--nocapture` and if a test fails.
#[expect(clippy::print_stderr, reason = "whoever measures wants to see it")]
fn report(line: &str) {
    eprintln!("{line}");
}
