//! Which connections the server keeps, closes and refuses, and when.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{
    Client, Program, RawReply, Relay, TestDatabase, eventually, eventually_some, exchange,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_inventory-api");

/// Far less than the time limits that a test must not wait for, and enough for a busy machine.
const SOON: Duration = Duration::from_secs(8);

struct Inventory {
    program: Program,
    address: SocketAddr,
    relay: Relay,
    database: TestDatabase,
}

impl Inventory {
    fn start(settings: &[(&str, &str)]) -> Self {
        let database = TestDatabase::create();
        let relay = database.relay_up();
        let relay_port = relay.address().port().to_string();
        let own = [
            ("POSTGRES_HOST", "127.0.0.1"),
            ("POSTGRES_PORT", &relay_port),
            ("LISTEN_ADDRESS", "127.0.0.1"),
            ("INVENTORY_API_PORT", "0"),
            ("HTTP_WORKERS", "1"),
        ];
        let mut vars = database.vars("INVENTORY_DB_NAME");
        for (key, value) in own.iter().chain(settings) {
            vars.push(((*key).to_owned(), (*value).to_owned()));
        }
        let program = Program::start(PROGRAM, vars);
        let address = program.address();
        let client = Client::new(address);
        eventually("it is ready", || client.get("/api/movies").status == 200);
        Self {
            program,
            address,
            relay,
            database,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).expect("a socket option");
        stream
    }

    fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Keeps the only worker waiting for as long as `meanwhile` takes; returns its answer.
    fn while_a_request_waits(&self, meanwhile: impl FnOnce()) -> String {
        self.relay.freeze();
        let mut waiting = self.connect();
        waiting
            .write_all(request("GET /api/movies").as_bytes())
            .expect("it reads");
        eventually("the worker waits for the database", || {
            self.relay.holds_something()
        });

        meanwhile();

        self.relay.restore();
        let _ = waiting.shutdown(Shutdown::Write);
        rest(waiting)
    }
}

fn request(line: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// All bytes up to the end of the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an end");
    text
}

/// The next bytes of the connection.
fn next(stream: &mut TcpStream, bytes: usize) -> String {
    let mut text = vec![0; bytes];
    stream.read_exact(&mut text).expect("an answer");
    String::from_utf8(text).expect("text")
}

fn statuses(answers: &str) -> Vec<&str> {
    let behind = answers.split("HTTP/1.1 ").skip(1);
    behind.map(|answer| &answer[..3]).collect()
}

fn movie(title: &str) -> Value {
    json!({ "title": title, "description": "A film" })
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let inventory = Inventory::start(&[]);
    let post = |title: &str| {
        let body = movie(title).to_string();
        let length = body.len();
        format!(
            "POST /api/movies HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    };
    let requests = [
        post("Alien"),
        request("GET /health"),
        request("GET /api/movies/2"),
        post("Brazil"),
        request("GET /api/movies/2"),
        request("HEAD /api/movies/1"),
        request("DELETE /api/movies/1"),
    ];

    let answers = exchange(inventory.address, requests.concat().as_bytes());

    let expected = ["201", "200", "404", "201", "200", "200", "200"];
    assert_eq!(statuses(&answers), expected, "{answers}");
}

#[test]
fn a_body_is_asked_for_where_a_client_waits_to_be_asked() {
    let inventory = Inventory::start(&[]);
    let body = movie("Alien").to_string();
    let mut stream = inventory.connect();
    let head = format!(
        "POST /api/movies HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );

    stream.write_all(head.as_bytes()).expect("it reads");
    let asked = next(&mut stream, 25);
    stream.write_all(body.as_bytes()).expect("it reads");

    assert_eq!(asked, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(statuses(&rest(stream)), ["201"]);
}

#[test]
fn a_body_in_chunks_arrives_whole() {
    let inventory = Inventory::start(&[]);
    let body = movie(&"é".repeat(255)).to_string();
    let mut request = "POST /api/movies HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
                       Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        .as_bytes()
        .to_vec();
    for piece in body.as_bytes().chunks(7) {
        request.extend_from_slice(format!("{:x};a=b\r\n", piece.len()).as_bytes());
        request.extend_from_slice(piece);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\nX-Trailer: y\r\n\r\n");

    let reply = RawReply::to(inventory.address, &request);

    assert_eq!(reply.status(), 201, "{}", reply.body);
    let created: Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(created["title"], "é".repeat(255));
}

#[test]
fn http_1_0_is_answered_without_chunks_and_with_the_end_of_the_connection() {
    let inventory = Inventory::start(&[]);
    inventory.database.execute(
        "INSERT INTO movies (title, description)
         SELECT 'Alien', repeat('a', 1000) FROM generate_series(1, 200)",
    );
    let mut stream = inventory.connect();
    let request = b"GET /api/movies HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    stream.write_all(request).expect("it reads");

    let answer = rest(stream);

    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("connection: close"), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    let movies: Value = serde_json::from_str(body).expect("all of it");
    assert_eq!(movies.as_array().map(Vec::len), Some(200));
}

#[test]
fn a_connection_is_kept_until_a_client_asks_to_close_it() {
    let inventory = Inventory::start(&[]);
    let mut stream = inventory.connect();
    let health = request("GET /health");

    stream.write_all(health.as_bytes()).expect("it reads");
    let length = RawReply::to(inventory.address, health.as_bytes());
    let first = next(&mut stream, 12);
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .expect("it reads");

    let answers = first + &rest(stream);
    assert_eq!(statuses(&answers), ["200", "200"], "{answers}");
    assert_eq!(answers.matches("connection: close").count(), 1);
    assert_eq!(length.values("connection"), [""; 0]);
}

#[test]
fn who_says_nothing_for_long_is_closed_without_an_answer() {
    let inventory = Inventory::start(&[("HTTP_IDLE_SECONDS", "1")]);
    let fresh = inventory.connect();
    let mut used = inventory.connect();
    used.write_all(request("GET /health").as_bytes())
        .expect("it reads");

    assert_eq!(rest(fresh), "");
    assert_eq!(statuses(&rest(used)), ["200"]);
}

#[test]
fn a_request_that_comes_too_slowly_is_told_so() {
    let limits = [("HTTP_HEAD_SECONDS", "1"), ("HTTP_BODY_SECONDS", "1")];
    let inventory = Inventory::start(&limits);
    let begin = "POST /api/movies HTTP/1.1\r\nHost: h\r\n";
    for (part, problem) in [
        (
            begin.to_owned(),
            "the request line and headers take too long",
        ),
        (
            format!("{begin}Content-Length: 9\r\n\r\n{{"),
            "the body takes too long",
        ),
        (
            format!("{begin}Transfer-Encoding: chunked\r\n\r\n9\r\n{{"),
            "the body takes too long",
        ),
    ] {
        let mut stream = inventory.connect();
        stream.write_all(part.as_bytes()).expect("it reads");

        let answer = rest(stream);

        assert_eq!(statuses(&answer), ["408"], "{part}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(answer.contains(problem), "{answer}");
    }
}

#[test]
fn requests_that_are_too_many_are_turned_away_at_once_while_health_is_answered() {
    let limits = [
        ("HTTP_QUEUE_MAX", "1"),
        ("HTTP_QUEUE_MILLISECONDS", "30000"),
    ];
    let inventory = Inventory::start(&limits);
    let mut streams: Vec<_> = (0..4).map(|_| inventory.connect()).collect();
    let mut turned_away = Vec::new();

    let waited = inventory.while_a_request_waits(|| {
        let started = Instant::now();
        for stream in &mut streams {
            let line = "GET /api/movies/1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            stream.write_all(line.as_bytes()).expect("it reads");
            stream.set_nonblocking(true).expect("a socket option");
        }
        eventually("all but one are answered", || {
            turned_away.extend(streams.extract_if(.., |stream| stream.peek(&mut [0]).is_ok()));
            turned_away.len() == 3
        });
        assert_eq!(inventory.client().get("/health").status, 200);
        assert_eq!(inventory.client().get("/metrics").status, 200);
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    });

    assert_eq!(statuses(&waited), ["200"]);
    for stream in streams.iter().chain(&turned_away) {
        stream.set_nonblocking(false).expect("a socket option");
    }
    for stream in turned_away {
        let answer = rest(stream);
        assert_eq!(statuses(&answer), ["503"]);
        assert!(answer.contains("retry-after: 1"), "{answer}");
        assert!(answer.contains("this service is overloaded"), "{answer}");
    }
    assert_eq!(
        streams
            .into_iter()
            .map(rest)
            .map(|answer| answer[9..12].to_owned())
            .collect::<Vec<_>>(),
        ["404"]
    );
}

#[test]
fn who_waits_too_long_for_a_worker_is_turned_away() {
    let inventory = Inventory::start(&[("HTTP_QUEUE_MILLISECONDS", "100")]);

    let waited = inventory.while_a_request_waits(|| {
        let reply = inventory.client().get("/api/movies");

        assert_eq!(reply.status, 503);
        assert_eq!(reply.header("retry-after"), "1");
    });

    assert_eq!(statuses(&waited), ["200"]);
}

#[test]
fn who_hears_nothing_of_a_new_movie_for_long_is_told_so() {
    let inventory = Inventory::start(&[("HTTP_ANSWER_SECONDS", "1")]);
    inventory.relay.freeze();

    let movie = json!({ "title": "Alien", "description": "A film" });
    let reply = inventory.client().post("/api/movies", &movie);

    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(
        reply.text.contains("whether it is done is not known"),
        "{}",
        reply.text
    );
    inventory.relay.restore();
    eventually("movies are created again", || {
        inventory.client().post("/api/movies", &movie).status == 201
    });
}

#[test]
fn who_hears_nothing_from_a_worker_for_long_is_told_so_and_may_ask_again() {
    let inventory = Inventory::start(&[("HTTP_ANSWER_SECONDS", "1")]);
    let mut stream = None;
    // After a slow start some workers may have been given up already.
    let given_up = || {
        let log = inventory.program.log();
        log.matches("nothing was heard of it").count()
    };
    let before = given_up();

    let waited = inventory.while_a_request_waits(|| {
        // This request waits behind the one that keeps the worker.
        let mut second = inventory.connect();
        second
            .write_all(request("GET /api/movies").as_bytes())
            .expect("it reads");
        stream = Some(second);
        eventually("the worker is given up", || given_up() > before);
    });

    assert_eq!(statuses(&waited), ["503"]);
    assert!(
        waited.contains("whether it is done is not known"),
        "{waited}"
    );
    let mut stream = stream.expect("it is connected");
    assert_eq!(next(&mut stream, 12), "HTTP/1.1 200");
    assert_eq!(inventory.client().get("/api/movies").status, 200);
}

/// More bytes than all buffers between the program and the client can have.
const LONG_LIST: &str = "INSERT INTO movies (title, description)
                         SELECT 'Alien', repeat('a', 1000) FROM generate_series(1, 30000)";

#[test]
fn an_answer_that_stops_midway_is_truncated_in_its_time() {
    let inventory = Inventory::start(&[("HTTP_ANSWER_SECONDS", "1")]);
    inventory.database.execute(LONG_LIST);
    let mut stream = inventory.connect();
    stream
        .write_all(request("GET /api/movies").as_bytes())
        .expect("it reads");
    stream.read_exact(&mut [0]).expect("an answer");

    inventory.relay.freeze();

    let mut arrived = Vec::new();
    let _ = stream.read_to_end(&mut arrived);
    assert!(!arrived.ends_with(b"\r\n0\r\n\r\n"));
    eventually("it is logged", || {
        let log = inventory.program.log();
        log.contains("an answer stopped midway and is truncated")
    });
    inventory.relay.restore();
    eventually("the worker is back", || {
        inventory.client().get("/api/movies/1").status == 200
    });
}

#[test]
fn an_answer_that_breaks_off_cannot_be_taken_for_a_whole_one_in_http_1_0_either() {
    let inventory = Inventory::start(&[]);
    inventory.database.execute(LONG_LIST);
    let mut stream = inventory.connect();
    stream
        .write_all(b"GET /api/movies HTTP/1.0\r\n\r\n")
        .expect("it reads");
    stream.read_exact(&mut [0]).expect("an answer");

    inventory.relay.cut();

    let end = stream.read_to_end(&mut Vec::new());
    assert_eq!(
        end.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionReset)
    );
}

#[test]
fn who_waits_for_an_answer_is_not_idle() {
    let inventory = Inventory::start(&[("HTTP_IDLE_SECONDS", "1")]);
    let asleep = inventory.connect();

    let waited = inventory.while_a_request_waits(|| assert_eq!(rest(asleep), ""));

    assert_eq!(statuses(&waited), ["200"]);
}

#[test]
fn a_malformed_request_is_refused_behind_the_answer_to_the_one_before() {
    let inventory = Inventory::start(&[]);
    let mut stream = inventory.connect();

    inventory.while_a_request_waits(|| {
        let requests = request("GET /api/movies") + "NONSENSE\r\n\r\n";
        stream.write_all(requests.as_bytes()).expect("it reads");
    });

    let answers = rest(stream);
    assert_eq!(statuses(&answers), ["200", "400"], "{answers}");
}

#[test]
fn at_sigterm_what_is_under_way_is_answered_and_nothing_else_begun() {
    let inventory = Inventory::start(&[]);
    let mut idle = inventory.connect();
    idle.write_all(request("GET /health").as_bytes())
        .expect("it reads");
    let (address, started) = (inventory.address, Instant::now());

    let waited = inventory.while_a_request_waits(|| {
        inventory.program.signal("TERM");
        assert_eq!(statuses(&rest(idle)), ["200"]);
        eventually("new connections are refused", || {
            TcpStream::connect(address).is_err()
        });
    });

    assert_eq!(statuses(&waited), ["200"], "{waited}");
    assert!(waited.contains("connection: close"), "{waited}");
    let (status, log) = inventory.program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn a_request_that_ends_after_sigterm_is_answered_and_its_connection_closed() {
    let inventory = Inventory::start(&[]);
    let body = movie("Alien").to_string();
    let mut stream = inventory.connect();
    let head = format!(
        "POST /api/movies HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("it reads");
    assert_eq!(next(&mut stream, 25), "HTTP/1.1 100 Continue\r\n\r\n");

    inventory.program.signal("TERM");
    eventually("the signal is heard", || {
        inventory.program.log().contains("SIGTERM")
    });
    stream.write_all(body.as_bytes()).expect("it reads");

    let answer = rest(stream);
    assert_eq!(statuses(&answer), ["201"], "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(inventory.program.wait().0.code(), Some(0));
}

/// One connection that has carried a request, and another that has sent nothing yet.
fn used_and_fresh(inventory: &Inventory) -> (Client, TcpStream) {
    let client = inventory.client();
    eventually("earlier ones are closed", || {
        client
            .get("/metrics")
            .text
            .contains("\nhttp_connections 1\n")
    });
    let fresh = inventory.connect();
    eventually("both are there", || {
        client
            .get("/metrics")
            .text
            .contains("\nhttp_connections 2\n")
    });
    (client, fresh)
}

#[test]
fn at_the_cap_one_connection_that_is_idle_makes_room() {
    for key in ["HTTP_CONNECTIONS_MAX", "HTTP_CONNECTIONS_PER_CLIENT_MAX"] {
        let inventory = Inventory::start(&[(key, "3")]);
        let (_used, mut second) = used_and_fresh(&inventory);
        let mut third = inventory.connect();
        let health = request("GET /health");
        for stream in [&mut second, &mut third] {
            stream.write_all(health.as_bytes()).expect("it reads");
            assert_eq!(next(stream, 12), "HTTP/1.1 200");
        }

        let mut newcomer = inventory.connect();
        newcomer.write_all(health.as_bytes()).expect("it reads");

        assert_eq!(next(&mut newcomer, 12), "HTTP/1.1 200", "{key}");
        // One of the three was closed, most likely the one that was used first.
        let last = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        let kept = [second, third].into_iter().filter_map(|mut stream| {
            stream.write_all(last).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.contains("HTTP/1.1 200").then_some(())
        });
        assert!(kept.count() >= 1, "{key}");
    }
}

#[test]
fn a_connection_too_many_is_turned_away_at_once() {
    for key in ["HTTP_CONNECTIONS_MAX", "HTTP_CONNECTIONS_PER_CLIENT_MAX"] {
        let inventory = Inventory::start(&[(key, "3")]);
        let (client, fresh) = used_and_fresh(&inventory);
        let others = [fresh, inventory.connect()];
        for mut other in &others {
            other
                .write_all(b"GET /health HTTP/1.1\r\n")
                .expect("it reads");
        }
        eventually("all are there", || {
            client
                .get("/metrics")
                .text
                .contains("\nhttp_connections 3\n")
        });
        // The used connection is closed for this one as soon as it is idle.
        let last = eventually_some("it is there", || {
            let mut last = inventory.connect();
            last.write_all(b"GET /health HTTP/1.1\r\n")
                .expect("it reads");
            let reply = client.try_send("GET", "/health", &[], None);
            reply
                .map_or(true, |reply| reply.status == 503)
                .then_some(last)
        });

        let answer = rest(inventory.connect());

        assert_eq!(statuses(&answer), ["503"], "{key}");
        assert!(answer.contains("retry-after: 1"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        drop((others, last));
        eventually("there is room again", || {
            statuses(&exchange(
                inventory.address,
                request("GET /health").as_bytes(),
            )) == ["200"]
        });
    }
}

#[test]
fn no_header_changes_the_client_that_the_log_names() {
    let inventory = Inventory::start(&[]);
    let forged = "GET /api/movies/7 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
                  X-Request-Id: forged-7\r\n\
                  X-Forwarded-For: 10.9.8.7\r\nForwarded: for=10.9.8.7\r\n\
                  X-Real-IP: 10.9.8.7\r\n\r\n";

    let reply = RawReply::to(inventory.address, forged.as_bytes());

    assert_eq!(reply.status(), 404);
    assert_eq!(reply.values("x-request-id"), ["forged-7"]);
    eventually("the request is logged", || {
        let log = inventory.program.log();
        log.contains(" request_id=forged-7 client=127.0.0.1 ")
    });
    assert!(!inventory.program.log().contains("10.9.8.7"));
}

#[test]
fn many_clients_on_one_worker_are_all_answered() {
    let inventory = Inventory::start(&[("HTTP_QUEUE_MILLISECONDS", "30000")]);

    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let client = inventory.client();
                for _ in 0..10 {
                    assert_eq!(client.get("/api/movies").status, 200);
                }
            });
        }
    });
}
