//! The program as a process: its settings, its signals, and a PostgreSQL that stops and starts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::json;
use testkit::{Client, Program, Relay, Reply, TestDatabase, eventually, eventually_some};

const PROGRAM: &str = env!("CARGO_BIN_EXE_inventory-api");

fn vars(database: &TestDatabase) -> Vec<(String, String)> {
    let mut vars = database.vars("INVENTORY_DB_NAME");
    for (key, value) in [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("INVENTORY_API_PORT", "0"),
        ("HTTP_WORKERS", "2"),
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

/// The program behind a relay to PostgreSQL.
fn behind(relay: &Relay, database: &TestDatabase) -> Program {
    behind_with(relay, vars(database))
}

fn behind_with(relay: &Relay, vars: Vec<(String, String)>) -> Program {
    let vars = with(vars, "POSTGRES_HOST", &relay.address().ip().to_string());
    let vars = with(vars, "POSTGRES_PORT", &relay.address().port().to_string());
    Program::start(PROGRAM, vars)
}

#[test]
fn a_missing_or_malformed_setting_is_named_and_ends_the_program_before_it_listens() {
    let database = TestDatabase::create();
    for (key, value, problem) in [
        (
            "POSTGRES_PASSWORD",
            "",
            "is missing: set it in .env or in the environment",
        ),
        (
            "POSTGRES_PORT",
            "secret",
            "is malformed: it must be a port number from 0 to 65535",
        ),
        (
            "INVENTORY_API_PORT",
            "70000",
            "is malformed: it must be a port number from 0 to 65535",
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
        let program = Program::start(PROGRAM, with(vars(&database), key, value));

        let (status, log) = program.wait();

        assert_eq!(status.code(), Some(2), "{key}");
        assert!(
            log.starts_with(&format!("inventory-api: {key} {problem}")),
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
    let database = TestDatabase::create();
    let first = Program::start(PROGRAM, vars(&database));
    let port = first.address().port().to_string();

    let (status, log) =
        Program::start(PROGRAM, with(vars(&database), "INVENTORY_API_PORT", &port)).wait();

    assert_eq!(status.code(), Some(1));
    assert!(
        log.contains(&format!("cannot listen on 127.0.0.1:{port}: ")),
        "{log}"
    );
}

#[test]
fn sigint_and_sigterm_end_the_program_with_0() {
    for signal in ["INT", "TERM"] {
        let database = TestDatabase::create();
        let program = Program::start(PROGRAM, vars(&database));
        let client = Client::new(program.address());
        assert_eq!(client.get("/health").status, 200);

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
fn a_client_that_does_not_take_its_answer_does_not_keep_the_program_from_ending() {
    let database = TestDatabase::create();
    let program = Program::start(PROGRAM, vars(&database));
    let client = Client::new(program.address());
    eventually("the table is there", || client.get("/ready").status == 200);
    // More bytes than the system and the server together can have for one connection.
    database.execute(
        "INSERT INTO movies (title, description) \
         SELECT 'Film ' || n, repeat('x', 1000000) FROM generate_series(1, 100) n",
    );
    let mut stream = TcpStream::connect(program.address()).expect("a connection");
    stream
        .write_all(b"GET /api/movies HTTP/1.1\r\nHost: a\r\n\r\n")
        .expect("a request");
    stream
        .read_exact(&mut [0; 64])
        .expect("the begin of an answer");

    program.signal("TERM");

    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_hundred_long_movies_are_read_in_little_memory() {
    const LITTLE_KIB: usize = 16 * 1024;
    const READERS: usize = 32;
    let database = TestDatabase::create();
    // On a busy machine two slots need much time for so many requests.
    let vars = with(vars(&database), "HTTP_QUEUE_MILLISECONDS", "60000");
    let program = Program::start(PROGRAM, vars);
    let client = Client::new(program.address());
    eventually("the table is there", || client.get("/ready").status == 200);
    database.execute(
        "INSERT INTO movies (title, description) \
         SELECT 'Film ' || n, repeat('x', 1000000) FROM generate_series(1, 100) n",
    );
    let before = program.stats().most_resident_kib;

    for target in [
        "/api/movies",
        "/api/movies?limit=100",
        "/api/movies?title=Film&limit=100",
    ] {
        let listed = client.get(target);

        assert!(listed.text.len() > 100_000_000, "{target}");
        let more = program.stats().most_resident_kib - before;
        assert!(more < LITTLE_KIB, "{more} KiB for {target}");
    }

    let lengths: Vec<usize> = thread::scope(|scope| {
        let client = &client;
        let movies = (1..=READERS).map(|id| format!("/api/movies/{id}"));
        let readers: Vec<_> = movies
            .map(|movie| scope.spawn(move || client.get(&movie).text.len()))
            .collect();
        let lengths = readers
            .into_iter()
            .map(|reader| reader.join().expect("an answer"));
        lengths.collect()
    });
    assert!(
        lengths.iter().all(|length| *length > 1_000_000),
        "{lengths:?}"
    );
    let more = program.stats().most_resident_kib - before;
    // A part of the memory has the bytes that readers have not read yet.
    assert!(
        more < 3 * LITTLE_KIB,
        "{more} KiB for {READERS} at the same time"
    );
}

#[test]
fn bodies_of_a_megabyte_from_many_clients_take_little_memory() {
    const LIMIT_KIB: usize = 300 * 1024;
    const CLIENTS: usize = 16;
    let database = TestDatabase::create();
    let vars = with(vars(&database), "HTTP_WORKERS", "16");
    let vars = with(vars, "HTTP_QUEUE_MILLISECONDS", "60000");
    let program = Program::start(PROGRAM, vars);
    let client = Client::new(program.address());
    let movie = json!({ "title": "Alien", "description": "A film" });
    assert_eq!(client.post("/api/movies", &movie).status, 201);
    let filled = |begin: &str, filling: &str, end: &str| {
        let count = (1_048_000 - begin.len() - end.len()) / filling.len();
        format!("{begin}{}{end}", filling.repeat(count))
    };
    let nested = format!(
        r#"{{"title":{}{}}}"#,
        "[".repeat(520_000),
        "]".repeat(520_000)
    );
    let bodies = [
        (400, nested),
        (400, filled(r#"{"description":"x","title":["#, "{},", "0]}")),
        (
            400,
            filled(r#"{"description":"x","title":{"#, r#""a":1,"#, r#""a":1}}"#),
        ),
        (400, filled(r#"{"description":"x","title":[1"#, ",1", "]}")),
        (400, filled(r#"{"description":"x","title":"#, "9", "}")),
        (
            400,
            filled(r#"{"description":"x","title":""#, r"\u0041", r#""}"#),
        ),
        (
            400,
            filled("{", r#""a":1,"#, r#""description":5,"title":"x"}"#),
        ),
        (0, filled(r#"{"title":"x","description":""#, "x", r#""}"#)),
        (
            0,
            filled(r#"{"title":"x","description":""#, r"\u00fc", r#""}"#),
        ),
    ];

    for (refused, body) in &bodies {
        for (method, path, done) in [("POST", "/api/movies", 201), ("PUT", "/api/movies/1", 200)] {
            let ask = || {
                let headers = [("content-type", "application/json")];
                client.send(method, path, &headers, Some(body)).status
            };
            let statuses: Vec<u16> = thread::scope(|scope| {
                let asking: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
                let answers = asking.into_iter().map(|one| one.join().expect("an answer"));
                answers.collect()
            });

            let expected = if *refused == 0 { done } else { *refused };
            assert_eq!(statuses, [expected; CLIENTS], "{method} {body:.40}");
        }
    }
    let most = program.stats().most_resident_kib;
    assert!(most < LIMIT_KIB, "{most} KiB");
}

#[test]
fn whether_a_change_was_made_is_not_claimed_to_be_known_when_the_connection_broke() {
    const AWAY: &str = "the database is unavailable; try again";
    let database = TestDatabase::create();
    let relay = database.relay_up();
    let program = behind_with(&relay, with(vars(&database), "HTTP_WORKERS", "1"));
    let client = Client::new(program.address());
    let movie = json!({ "title": "Alien", "description": "A film" });
    let broken_midway = |ask: &(dyn Fn() -> Reply + Sync)| {
        eventually("the movies are back", || {
            client.get("/api/movies").status == 200
        });
        relay.freeze();
        let reply = thread::scope(|scope| {
            let asking = scope.spawn(ask);
            eventually("it is on its way", || relay.holds_something());
            relay.cut();
            asking.join().expect("an answer")
        });
        let never_sent = client.post("/api/movies", &movie);
        assert_eq!(never_sent.problem(), (503, AWAY));
        relay.restore();
        reply
    };

    for (ask, detail) in [
        (
            &(|| client.post("/api/movies", &movie)) as &(dyn Fn() -> Reply + Sync),
            "whether the movie was created is not known; look for it before you send it again, \
             which may create it twice",
        ),
        (
            &|| client.put("/api/movies/1", &movie),
            "whether the movie was changed is not known; a repeat is safe; if it is answered \
             412 because of If-Match, read the movie",
        ),
        (
            &|| client.delete("/api/movies/1"),
            "whether the movie was deleted is not known; a repeat is safe, and is answered 404 if it \
             was",
        ),
        (
            &|| client.delete("/api/movies"),
            "whether the movies were deleted is not known; a repeat is safe",
        ),
    ] {
        let reply = eventually_some("a change is broken off", || {
            let reply = broken_midway(ask);
            // On a busy machine the idle connection may have been closed before the request.
            (reply.problem() != (503, AWAY)).then_some(reply)
        });

        assert_eq!(reply.problem(), (503, detail));
        assert_eq!(reply.header("retry-after"), "1");
    }
}

#[test]
fn started_before_postgresql_it_answers_and_heals_by_itself() {
    let database = TestDatabase::create();
    let relay = database.relay_down();
    let program = behind(&relay, &database);
    let client = Client::new(program.address());

    let movies = client.get("/api/movies");
    let ready = client.get("/ready");

    assert_eq!(
        movies.problem(),
        (503, "the database is unavailable; try again")
    );
    assert_eq!(movies.header("retry-after"), "1");
    assert_eq!(
        (ready.status, &ready.json["dependencies"]),
        (503, &json!({ "postgresql": "down" }))
    );
    assert_eq!(client.get("/health").status, 200);
    relay.restore();
    eventually("it is ready", || client.get("/ready").status == 200);
    assert_eq!(client.get("/api/movies").text, "[]");
}

#[test]
fn a_postgresql_that_goes_away_is_a_503_until_it_is_back() {
    let database = TestDatabase::create();
    let relay = database.relay_up();
    let program = behind(&relay, &database);
    let client = Client::new(program.address());
    let movie = json!({ "title": "Alien", "description": "A film" });
    assert_eq!(client.post("/api/movies", &movie).status, 201);

    relay.cut();

    eventually("the loss is noticed", || {
        client.get("/api/movies").status == 503
    });
    assert_eq!(client.post("/api/movies", &movie).status, 503);
    assert_eq!(client.get("/health").status, 200);
    relay.restore();
    eventually("the movies are back", || {
        client.get("/api/movies").status == 200
    });
    assert_eq!(client.get("/api/movies/1").json["title"], "Alien");
}

/// Sends `times` requests for the health over one connection; returns how many answers are 200.
fn healthy(address: SocketAddr, times: usize) -> usize {
    let stream = TcpStream::connect(address).expect("a connection");
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience).expect("a socket option");
    let id = "i".repeat(128);
    let request = format!("GET /health HTTP/1.1\r\nHost: h\r\nX-Request-Id: {id}\r\n\r\n");
    let last = "GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let requests = request.repeat(times - 1) + last;
    let mut answers = String::new();
    thread::scope(|scope| {
        let mut sending = &stream;
        scope.spawn(move || sending.write_all(requests.as_bytes()));
        let _ = (&stream).read_to_string(&mut answers);
    });
    answers.matches("HTTP/1.1 200").count()
}

/// The program with a log of which only the lines about its start are read.
fn unread() -> (Child, BufReader<ChildStderr>, SocketAddr) {
    let database = TestDatabase::create();
    let mut program = Command::new(PROGRAM)
        .env_clear()
        .envs(vars(&database))
        .current_dir("/")
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program");
    let mut log = BufReader::new(program.stderr.take().expect("it is piped"));
    let (mut line, mut address, mut is_up) = (String::new(), None, false);
    while address.is_none() || !is_up {
        line.clear();
        log.read_line(&mut line).expect("a line");
        is_up |= line.contains("PostgreSQL is up");
        if let Some((_, rest)) = line.split_once("msg=listening address=") {
            address = rest.split(' ').next().map(str::parse);
        }
    }
    let address = address.expect("it listens").expect("an address");
    (program, log, address)
}

fn end(program: &mut Child) -> Option<i32> {
    let pid = program.id().to_string();
    let sent = Command::new("kill").args(["-s", "TERM", &pid]).status();
    assert!(sent.expect("kill").success());
    let ended = eventually_some("the program ends", || {
        program.try_wait().expect("a child can be waited for")
    });
    ended.code()
}

#[test]
fn a_log_that_nobody_reads_keeps_nobody_waiting_and_what_is_lost_of_it_is_counted() {
    const REQUESTS: usize = 8000;
    let (mut program, log, address) = unread();

    assert_eq!(healthy(address, REQUESTS), REQUESTS);

    let lines = thread::spawn(move || {
        let lines = log.lines().map_while(Result::ok);
        lines.collect::<Vec<_>>()
    });
    let last = || Client::new(address).get("/health").status;
    assert_eq!(last(), 200);
    // The rest is written while it is read.
    assert_eq!(end(&mut program), Some(0));
    let lines = lines.join().expect("no panic");
    let counts = lines.iter().filter_map(|line| {
        let (_, count) = line.split_once("the log was not read, so lines were lost\" lines=")?;
        Some(count.parse::<usize>().expect("a number"))
    });
    let missing: usize = counts.clone().sum();
    assert!(missing > 0, "none were lost");
    // Besides those of the requests there are the lines about the shutdown and the end.
    let written = lines.len() - counts.count();
    assert_eq!(written + missing, REQUESTS + 3);
    assert!(lines.last().is_some_and(|line| line.contains("msg=ended")));
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_the_program_from_ending() {
    let (mut program, _log, address) = unread();

    assert_eq!(healthy(address, 3000), 3000);

    assert_eq!(end(&mut program), Some(0));
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
    assert_eq!(
        text,
        format!("inventory-api {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(String::from_utf8_lossy(&run("--help").stdout).contains("Usage: inventory-api"));
    assert_eq!(run("--verbose").status.code(), Some(2));
}

#[test]
fn with_a_key_of_operations_nobody_else_sees_more_than_whether_it_lives_and_is_ready() {
    let database = TestDatabase::create();
    let relay = database.relay_up();
    let program = behind_with(&relay, with(vars(&database), "OPERATIONS_KEY", "a-key"));
    let client = Client::new(program.address());
    let get = |path: &str, authorization: &str| {
        client.send("GET", path, &[("authorization", authorization)], None)
    };
    eventually("it is ready", || client.get("/ready").status == 200);

    for stranger in [
        "",
        "a-key",
        "Basic a-key",
        "Bearer",
        "Bearer a-ke",
        "Bearer a-key2",
    ] {
        let (ready, metrics) = (get("/ready", stranger), get("/metrics/", stranger));
        assert_eq!(ready.json, json!({ "status": "ready" }), "{stranger}");
        let detail = "send the key of operations, as Authorization: Bearer KEY";
        assert_eq!(metrics.problem(), (401, detail), "{stranger}");
        let realm = metrics.header("www-authenticate");
        assert_eq!(realm, "Bearer realm=\"crud-master\"");
    }
    assert_eq!(client.get("/metrics").status, 401);
    assert_eq!(client.send("HEAD", "/metrics", &[], None).status, 401);
    assert_eq!(client.get("/health").json, json!({ "status": "ok" }));
    for with_key in ["Bearer a-key", "bearer  a-key"] {
        let up = json!({ "status": "ready", "dependencies": { "postgresql": "up" } });
        assert_eq!(get("/ready", with_key).json, up);
        assert!(
            get("/metrics", with_key)
                .text
                .contains("\nprocess_threads ")
        );
    }

    relay.cut();

    eventually("the loss is noticed", || client.get("/ready").status == 503);
    let ready = client.get("/ready");
    assert_eq!(ready.problem(), (503, "not ready"));
    assert!(!ready.text.contains("postgresql"), "{}", ready.text);
    let ready = get("/ready", "Bearer a-key");
    let detail = "not ready: postgresql cannot be reached";
    assert_eq!(ready.problem(), (503, detail));
    assert_eq!(ready.json["dependencies"], json!({ "postgresql": "down" }));
    let log = program.log();
    assert!(!log.contains("a-key"), "{log}");
}

#[test]
fn a_key_of_operations_that_is_empty_or_cannot_be_sent_is_refused() {
    let database = TestDatabase::create();
    for (value, problem) in [
        ("", "is set and empty: give it a value, or leave it out"),
        (
            "two words",
            "is malformed: it must be visible ASCII characters without blanks",
        ),
        (
            "schlüssel",
            "is malformed: it must be visible ASCII characters without blanks",
        ),
    ] {
        let program = Program::start(PROGRAM, with(vars(&database), "OPERATIONS_KEY", value));

        let (status, log) = program.wait();

        assert_eq!(status.code(), Some(2), "{log}");
        let said = format!("inventory-api: OPERATIONS_KEY {problem}");
        assert_eq!(log.trim_end(), said);
    }
}
