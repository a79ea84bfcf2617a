//! The program as a process: its settings, its signals, its log, and two services behind it that stop and start.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::AmqpValue;
use serde_json::{Value, json};
use testkit::{
    Client, Program, Relay, Reply, ScriptedReply, ScriptedUpstream, TestQueue, eventually,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_api-gateway");

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn vars(queue: &TestQueue, inventory: &ScriptedUpstream) -> Vec<(String, String)> {
    let mut vars = queue.vars();
    for (key, value) in [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("API_GATEWAY_PORT", "0"),
        ("HTTP_WORKERS", "4"),
        ("INVENTORY_VM_IP", &inventory.address().ip().to_string()),
        (
            "INVENTORY_API_PORT",
            &inventory.address().port().to_string(),
        ),
        ("BILLING_VM_IP", "127.0.0.1"),
        ("BILLING_API_PORT", "1"),
        ("BILLING_CONSUMER_PORT", "1"),
    ] {
        vars.push((key.to_owned(), value.to_owned()));
    }
    vars
}

fn with(mut vars: Vec<(String, String)>, key: &str, value: &str) -> Vec<(String, String)> {
    vars.retain(|(present, _)| present != key);
    vars.push((key.to_owned(), value.to_owned()));
    vars
}

fn order() -> Value {
    json!({ "user_id": "20", "number_of_items": "99", "total_amount": "250.00" })
}

fn wait_until_ready(client: &Client) {
    eventually("it is ready", || client.get("/ready").status == 200);
}

#[test]
fn a_missing_or_malformed_setting_is_named_and_ends_the_program_before_it_listens() {
    let queue = TestQueue::create();
    let inventory = ScriptedUpstream::answering(OK);
    let port = "is malformed: it must be a port number from 0 to 65535";
    let missing = "is missing: set it in .env or in the environment";
    for (key, value, problem) in [
        ("RABBITMQ_HOST", "", missing),
        ("RABBITMQ_USER", "", missing),
        ("RABBITMQ_PASSWORD", "", missing),
        ("RABBITMQ_QUEUE", "", missing),
        ("RABBITMQ_PORT", "secret", port),
        ("API_GATEWAY_PORT", "70000", port),
        (
            "LOG_FORMAT",
            "secret",
            "is malformed: it must be logfmt or json",
        ),
        ("INVENTORY_API_PORT", "-1", port),
        ("BILLING_API_PORT", "", missing),
        ("BILLING_CONSUMER_PORT", "", missing),
        (
            "BILLING_VM_IP",
            "billing",
            "is malformed: it must be an IP address such as 192.168.56.12",
        ),
        (
            "EXPOSE_ORDERS",
            "yes",
            "is malformed: it must be true or false",
        ),
        (
            "INVENTORY_VM_IP",
            "secret",
            "is malformed: it must be an IP address such as 192.168.56.11",
        ),
        (
            "LISTEN_ADDRESS",
            "secret",
            "is malformed: it must be an IP address such as 0.0.0.0",
        ),
        (
            "HTTP_WORKERS",
            "0",
            "is malformed: it must be a whole number from 1 to 1024",
        ),
        (
            "ENV_FILE",
            "/nowhere",
            "names /nowhere, which cannot be read: ",
        ),
    ] {
        let program = Program::start(PROGRAM, with(vars(&queue, &inventory), key, value));

        let (status, log) = program.wait();

        assert_eq!(status.code(), Some(2), "{key}");
        assert!(
            log.starts_with(&format!("api-gateway: {key} {problem}")),
            "{log}"
        );
        assert!(
            !log.contains("secret") && !log.contains("listening"),
            "{log}"
        );
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let queue = TestQueue::create();
    let inventory = ScriptedUpstream::answering(OK);
    let port = inventory.address().port().to_string();
    let vars = with(vars(&queue, &inventory), "API_GATEWAY_PORT", &port);

    let (status, log) = Program::start(PROGRAM, vars).wait();

    assert_eq!(status.code(), Some(1));
    assert!(
        log.contains(&format!("cannot listen on 127.0.0.1:{port}: ")),
        "{log}"
    );
}

#[test]
fn sigint_and_sigterm_end_the_program_with_0() {
    for signal in ["INT", "TERM"] {
        let queue = TestQueue::create();
        let program = Program::start(PROGRAM, vars(&queue, &ScriptedUpstream::answering(OK)));
        wait_until_ready(&Client::new(program.address()));

        program.signal(signal);

        let (status, log) = program.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(
            log.contains(&format!("msg=\"shutting down\" signal=SIG{signal}")),
            "{log}"
        );
    }
}

#[test]
fn a_signal_ends_the_program_with_0_while_nothing_behind_it_is_there() {
    let queue = TestQueue::create();
    let nobody = with(
        vars(&queue, &ScriptedUpstream::answering(OK)),
        "RABBITMQ_PORT",
        "1",
    );
    let program = Program::start(PROGRAM, with(nobody, "INVENTORY_API_PORT", "1"));
    let client = Client::new(program.address());
    assert_eq!(client.post("/api/billing", &order()).status, 503);

    program.signal("TERM");

    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_request_that_was_accepted_before_the_signal_is_answered() {
    let queue = TestQueue::create();
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let inventory = ScriptedUpstream::start(move |request| {
        if request.line.contains("/api/movies") {
            let _ = released.lock().expect("nobody panics").recv();
        }
        ScriptedReply::Answer(OK.into())
    });
    let program = Program::start(PROGRAM, vars(&queue, &inventory));
    let client = Client::new(program.address());

    let reply = thread::scope(|scope| {
        let reply = scope.spawn(|| client.get("/api/movies"));
        eventually("it is under way", || inventory.requests().len() == 1);
        program.signal("TERM");
        eventually("the signal is heard", || program.log().contains("SIGTERM"));
        release.send(()).expect("the inventory waits");
        reply.join().expect("a client")
    });

    assert_eq!((reply.status, reply.text.as_str()), (200, "ok"));
    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn orders_at_the_time_of_the_signal_are_on_the_queue_where_they_were_answered() {
    let queue = TestQueue::create();
    let program = Program::start(PROGRAM, vars(&queue, &ScriptedUpstream::answering(OK)));
    let address = program.address();
    wait_until_ready(&Client::new(address));
    let clients = [(); 4].map(|()| Client::new(address));
    for client in &clients {
        assert_eq!(client.get("/health").status, 200);
    }
    let placed = AtomicUsize::new(0);
    let body = order().to_string();
    let json = [("content-type", "application/json")];
    let place_until_it_ends = |client: Client| {
        let mut ids = Vec::new();
        while let Ok(reply) = client.try_send("POST", "/api/billing", &json, Some(&body)) {
            if reply.status == 200 {
                ids.push(reply.json["message_id"].to_string());
                placed.fetch_add(1, Ordering::Relaxed);
            } else {
                assert_eq!(reply.status, 503, "{}", reply.text);
            }
        }
        ids
    };

    let (answered, (status, log)): (HashSet<_>, _) = thread::scope(|scope| {
        let clients = clients.map(|client| scope.spawn(|| place_until_it_ends(client)));
        eventually("orders are placed", || placed.load(Ordering::Relaxed) >= 40);
        program.signal("TERM");
        let end = program.wait();
        let ids = clients.map(|client| client.join().expect("a client"));
        (ids.into_iter().flatten().collect(), end)
    });

    assert_eq!(status.code(), Some(0), "{log}");
    let on_queue: HashSet<_> = queue
        .take_all()
        .iter()
        .map(|message| json!(message.properties.message_id()).to_string())
        .collect();
    assert_eq!(on_queue, answered);
}

#[test]
fn started_before_the_inventory_and_rabbitmq_it_answers_and_heals_by_itself() {
    let queue = TestQueue::create();
    let inventory = ScriptedUpstream::answering(OK);
    let address = inventory.address();
    let movies = Relay::down(&address.ip().to_string(), address.port());
    let orders = queue.relay_down();
    let port = |relay: &Relay| relay.address().port().to_string();
    let vars = with(vars(&queue, &inventory), "RABBITMQ_PORT", &port(&orders));
    let vars = with(vars, "RABBITMQ_HOST", "127.0.0.1");
    let program = Program::start(PROGRAM, with(vars, "INVENTORY_API_PORT", &port(&movies)));
    let client = Client::new(program.address());

    let statuses = [
        client.get("/api/movies").status,
        client.post("/api/billing", &order()).status,
        client.get("/health").status,
    ];
    let ready = client.get("/ready");

    assert_eq!(statuses, [502, 503, 200]);
    assert_eq!(
        ready.problem(),
        (503, "not ready: inventory and rabbitmq cannot be reached")
    );
    let states = json!({ "inventory": "down", "rabbitmq": "down" });
    assert_eq!(ready.json["dependencies"], states);
    movies.restore();
    orders.restore();
    wait_until_ready(&client);
    assert_eq!(client.get("/api/movies").text, "ok");
    assert_eq!(client.post("/api/billing", &order()).status, 200);
    assert_eq!(queue.counts(), Some((1, 0)));
}

#[test]
fn each_line_about_a_request_has_its_id() {
    let queue = TestQueue::create();
    let program = Program::start(PROGRAM, vars(&queue, &ScriptedUpstream::answering(OK)));
    let client = Client::new(program.address());
    wait_until_ready(&client);
    let body = order().to_string();
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", "trace-7"),
    ];

    let _ = client.send("GET", "/api/movies", &headers[1..], None);
    let _ = client.send("POST", "/api/billing", &headers, Some(&body));

    program.signal("TERM");
    let (_, log) = program.wait();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains(" request_id=trace-7 "))
        .collect();
    assert_eq!(lines.len(), 2, "{log}");
    for (line, path) in lines.iter().zip(["/api/movies", "/api/billing"]) {
        assert!(
            line.contains(&format!(" path={path} ")) && line.contains(" status=200 "),
            "{line}"
        );
    }
}

#[test]
fn nobody_fills_the_log_by_what_is_refused() {
    let queue = TestQueue::create();
    let program = Program::start(PROGRAM, vars(&queue, &ScriptedUpstream::answering(OK)));
    let client = Client::new(program.address());
    let target = format!("/{}", "n".repeat(8000));

    for _ in 0..2000 {
        assert_eq!(client.get(&target).status, 404);
    }
    // The other refusals are logged with the first request of a later second.
    eventually("all are told", || {
        assert_eq!(client.get("/health").status, 200);
        let log = program.log();
        let counts = log
            .lines()
            .filter_map(|line| line.split_once(" count=")?.1.split(' ').next());
        let counted: usize = counts.filter_map(|count| count.parse::<usize>().ok()).sum();
        counted + log.matches(" status=404 ").count() == 2000
    });

    let bytes = program.log().len();
    assert!(bytes < 100_000, "{bytes} bytes");
}

#[test]
fn large_and_nested_bodies_from_many_clients_take_little_memory() {
    const LIMIT_KIB: usize = 300 * 1024;
    const CLIENTS: usize = 16;
    let (queue, inventory) = (TestQueue::create(), ScriptedUpstream::answering(OK));
    let program = Program::start(PROGRAM, vars(&queue, &inventory));
    let client = Client::new(program.address());
    wait_until_ready(&client);
    let (order_bytes, movie_bytes) = (16_000, 1_048_000);

    for (path, bytes, expected) in [
        ("/api/billing", order_bytes, 400),
        ("/api/billing", movie_bytes, 413),
        ("/api/movies", movie_bytes, 200),
    ] {
        for (begin, filling, end) in [
            (r#"{"user_id":[0"#, ",{}", "]}"),
            (r#"{"user_id":{"a":1"#, r#","a":1"#, "}}"),
            (r#"{"user_id":"#, "9", "}"),
            (r#"{"user_id":""#, r"\u0041", r#""}"#),
            (r#"{"a":1"#, r#","a":[]"#, "}"),
            ("", "[", ""),
        ] {
            let count = (bytes - begin.len() - end.len()) / filling.len();
            let body = format!("{begin}{}{end}", filling.repeat(count));
            let headers = [("content-type", "application/json")];
            let ask = || client.send("POST", path, &headers, Some(&body)).status;
            let statuses: Vec<u16> = thread::scope(|scope| {
                let asking: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
                let answers = asking.into_iter().map(|one| one.join().expect("an answer"));
                answers.collect()
            });

            assert_eq!(statuses, [expected; CLIENTS], "{path} {body:.40}");
        }
    }
    let most = program.stats().most_resident_kib;
    assert!(most < LIMIT_KIB, "{most} KiB");
}

#[test]
fn help_and_version_are_answered_and_other_arguments_refused() {
    let run = |argument: &str| {
        std::process::Command::new(PROGRAM)
            .arg(argument)
            .output()
            .expect(PROGRAM)
    };

    let version = run("--version");

    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    assert_eq!(text, format!("api-gateway {}\n", env!("CARGO_PKG_VERSION")));
    assert!(String::from_utf8_lossy(&run("--help").stdout).contains("Usage: api-gateway"));
    assert_eq!(run("--verbose").status.code(), Some(2));
}

#[test]
fn a_password_that_rabbitmq_does_not_know_is_one_error() {
    let queue = TestQueue::create();
    let vars = with(
        vars(&queue, &ScriptedUpstream::answering(OK)),
        "RABBITMQ_PASSWORD",
        "another",
    );

    let program = Program::start(PROGRAM, vars);

    eventually("the error is told", || {
        program.log().contains("level=error")
    });
    program.signal("TERM");
    let (_, log) = program.wait();
    let told: Vec<_> = log
        .lines()
        .filter(|l| l.contains("no connection to the broker"))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("level=error"), "{told:?}");
}

#[test]
fn orders_that_the_broker_refuses_are_a_line_a_second_and_end_no_link() {
    let queue = TestQueue::create();
    let overflow = AmqpValue::LongString("reject-publish".to_owned());
    queue.declare_with(&[
        ("x-max-length", AmqpValue::LongLongInt(1)),
        ("x-overflow", overflow),
    ]);
    let program = Program::start(PROGRAM, vars(&queue, &ScriptedUpstream::answering(OK)));
    let client = Client::new(program.address());
    wait_until_ready(&client);
    let started = Instant::now();

    let statuses: Vec<_> = (0..100)
        .map(|_| client.post("/api/billing", &order()).status)
        .collect();

    let seconds = usize::try_from(started.elapsed().as_secs()).expect("a short test");
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1);
    let log = program.log();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert!(
        (1..=seconds + 1).contains(&count("the broker refused orders")),
        "{log}"
    );
    assert_eq!(
        (
            count("no connection to the broker"),
            count("msg=publishing")
        ),
        (0, 1)
    );
}

#[test]
fn a_broker_that_takes_links_and_serves_none_is_told_of_once() {
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    let port = relay.address().port().to_string();
    let vars = with(
        vars(&queue, &ScriptedUpstream::answering(OK)),
        "RABBITMQ_PORT",
        &port,
    );
    let program = Program::start(PROGRAM, vars);
    let client = Client::new(program.address());
    wait_until_ready(&client);
    assert_eq!(client.post("/api/billing", &order()).status, 200);

    for _ in 0..3 {
        relay.cut();
        eventually("the connection is lost", || {
            client.get("/ready").status == 503
        });
        relay.restore();
        wait_until_ready(&client);
    }

    let log = program.log();
    let told: Vec<_> = log
        .lines()
        .filter(|l| l.contains("no connection to the broker"))
        .collect();
    let causes: HashSet<_> = told
        .iter()
        .map(|line| line.split("cause=").nth(1))
        .collect();
    assert_eq!(told.len(), causes.len(), "{told:#?}");
    assert_eq!(log.matches("msg=publishing").count(), 2, "{log}");
}

/// Ends the program by a signal while `request` waits for its answer; returns the answer.
fn ends_in_time(
    program: Program,
    under_way: impl Fn() -> bool,
    request: impl Fn(Client) -> Reply + Sync,
) -> Reply {
    let client = Client::new(program.address());
    let reply = thread::scope(|scope| {
        let reply = scope.spawn(|| request(client));
        eventually("it is under way", under_way);
        end_in_time(program);
        reply.join()
    });
    reply.expect("a client with an answer")
}

/// Ends the program by a signal.
fn end_in_time(program: Program) {
    let signalled = Instant::now();
    program.signal("TERM");
    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(
        signalled.elapsed() < Duration::from_secs(10),
        "{:?}",
        signalled.elapsed()
    );
}

#[test]
fn a_signal_ends_the_program_with_0_in_time_while_rabbitmq_is_frozen_with_orders_in_flight() {
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    let port = relay.address().port().to_string();
    let vars = with(
        vars(&queue, &ScriptedUpstream::answering(OK)),
        "RABBITMQ_PORT",
        &port,
    );
    let program = Program::start(PROGRAM, vars);
    wait_until_ready(&Client::new(program.address()));
    relay.freeze();

    let reply = ends_in_time(
        program,
        || relay.holds_something(),
        |client| client.post("/api/billing", &order()),
    );

    let (status, detail) = reply.problem();
    assert_eq!(status, 503);
    assert!(
        detail.starts_with("whether the order was placed is not known"),
        "{detail}"
    );
}

#[test]
fn a_signal_ends_the_program_with_0_in_time_while_rabbitmq_is_frozen_before_the_link_is_made() {
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    relay.freeze();
    let port = relay.address().port().to_string();
    let vars = with(
        vars(&queue, &ScriptedUpstream::answering(OK)),
        "RABBITMQ_PORT",
        &port,
    );
    let program = Program::start(PROGRAM, vars);

    eventually("the handshake hangs", || relay.holds_something());
    let reply = Client::new(program.address()).post("/api/billing", &order());

    assert_eq!(reply.status, 503);
    end_in_time(program);
}

#[test]
fn a_signal_ends_the_program_with_0_in_time_while_an_inventory_is_frozen_with_requests_in_flight() {
    let queue = TestQueue::create();
    let inventory = ScriptedUpstream::start(|_| ScriptedReply::Silence);
    let program = Program::start(PROGRAM, vars(&queue, &inventory));

    let reply = ends_in_time(
        program,
        || !inventory.requests().is_empty(),
        |client| client.get("/api/movies"),
    );

    let detail = "this takes too long; whether it is done is not known";
    assert_eq!(reply.problem(), (503, detail));
}

#[test]
fn with_a_key_of_operations_nobody_else_sees_the_metrics_and_the_services_are_asked_with_it() {
    let bearer = "Bearer a-key";
    let inventory = ScriptedUpstream::start(move |request| {
        let known = request.values("authorization") == [bearer];
        let up = r#"{"status":"ready","dependencies":{"postgresql":"up"}}"#;
        let body = if known { up } else { "{}" };
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        ScriptedReply::Answer((head + body).into_bytes())
    });
    let queue = TestQueue::create();
    let program = Program::start(
        PROGRAM,
        with(vars(&queue, &inventory), "OPERATIONS_KEY", "a-key"),
    );
    let client = Client::new(program.address());
    wait_until_ready(&client);

    assert_eq!(client.get("/ready").json, json!({ "status": "ready" }));
    assert_eq!(client.get("/metrics").status, 401);
    let header = [("authorization", bearer)];
    let ready = client.send("GET", "/ready", &header, None);
    let up = json!({ "inventory": "up", "rabbitmq": "up" });
    assert_eq!(ready.json["dependencies"], up);
    let metrics = client.send("GET", "/metrics", &header, None);
    assert!(metrics.text.contains("\nprocess_threads "));
    // The gateway probes services with its own key, and forwards no client's key.
    let status = client.get("/api/status").json;
    assert_eq!(status["inventory"]["postgresql"], "up");
    let _ = client.send("GET", "/api/movies", &header, None);
    let requests = inventory.requests();
    let movies = requests.iter().find(|r| r.line.contains("/api/movies"));
    let none: [&str; 0] = [];
    assert_eq!(movies.expect("it came").values("authorization"), none);
}
