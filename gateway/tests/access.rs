//! API keys and the rate limit.

mod alone;

use std::net::SocketAddr;
use std::path::PathBuf;

use alone::SETTINGS;
use common::amqp::{QueueConfig, QueueType};
use common::env::Vars;
use common::http::HttpConfig;
use gateway::{AccessConfig, Gateway, UpstreamLimits};
use testkit::{Client, Program, RawReply, Reply, ScriptedUpstream, Service, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_api-gateway");

/// The keys are `reader-key`, `writer-key` and `admin-key`.
const KEYS: &str = "\
reader:ec4408df15da46b328f6f3246fa723d0aa6cb0f0a0dd9c4626080ab1b02aa3b2:read
writer:3aec1946afb01344ae0065f3b123820a2144e455c13e5816dbd439e6634f7f26:write
admin:69a5265506c94c77b787a7d7377b7685a0eff82e33920a71e7ee22cd6154953e:admin
";

const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// A file that is deleted after its test.
struct KeysFile {
    path: PathBuf,
}

impl KeysFile {
    fn with(text: &str) -> Self {
        let name = format!("crud-master-keys-{}", uuid::Uuid::new_v4());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("a file for keys");
        Self { path }
    }

    fn vars(&self) -> Vec<(String, String)> {
        vec![("API_KEYS_FILE".to_owned(), self.path.display().to_string())]
    }
}

impl Drop for KeysFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A gateway before an inventory that answers every request with 204. No broker is at the address in its settings, so an
/// order that may be placed is answered 503.
fn gateway(vars: Vec<(String, String)>, inventory: SocketAddr) -> Service<Gateway> {
    gateway_with(HttpConfig::on_loopback(2), vars, inventory)
}

fn gateway_with(
    http: HttpConfig,
    vars: Vec<(String, String)>,
    inventory: SocketAddr,
) -> Service<Gateway> {
    let config = gateway::Config {
        http,
        inventories: vec![inventory],
        billing_api: ([127, 0, 0, 1], 1).into(),
        billing_consumer: ([127, 0, 0, 1], 1).into(),
        expose_orders: false,
        limits: UpstreamLimits::default(),
        queue: QueueConfig {
            brokers: SocketAddr::from(([127, 0, 0, 1], 1)).into(),
            user: "nobody".to_owned(),
            password: "nothing".into(),
            queue: "none".to_owned(),
            queue_type: QueueType::default(),
        },
        access: AccessConfig::from_vars(&Vars::from_pairs(vars)).expect("well-formed settings"),
    };
    Service::start(
        |shutdown| gateway::start(&config, shutdown),
        Gateway::address,
    )
}

/// The gateway as a process.
fn program(keys: &KeysFile, inventory: SocketAddr) -> Program {
    let (ip, port) = (inventory.ip().to_string(), inventory.port().to_string());
    let file = keys.path.display().to_string();
    let own = [
        ("INVENTORY_VM_IP", ip.as_str()),
        ("INVENTORY_API_PORT", &port),
        ("API_KEYS_FILE", &file),
        // The log has lines about requests too.
        ("RUST_LOG", "info"),
    ];
    Program::start(PROGRAM, SETTINGS.into_iter().chain(own))
}

fn ask(gateway: &Service<Gateway>, method: &str, path: &str, authorization: Option<&str>) -> Reply {
    let headers: Vec<_> = authorization
        .map(|value| ("authorization", value))
        .into_iter()
        .collect();
    gateway.client.send(method, path, &headers, None)
}

#[test]
fn each_role_may_do_its_own_and_no_more() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let keys = KeysFile::with(KEYS);
    let gateway = gateway(keys.vars(), inventory.address());
    for (key, expected) in [
        ("reader-key", [204, 204, 403, 403, 403, 403]),
        ("writer-key", [204, 204, 204, 204, 403, 411]),
        ("admin-key", [204, 204, 204, 204, 204, 411]),
    ] {
        let bearer = format!("Bearer {key}");
        let status = |method, path| ask(&gateway, method, path, Some(&bearer)).status;

        let statuses = [
            status("GET", "/api/movies"),
            status("HEAD", "/api/movies/1"),
            status("POST", "/api/movies"),
            status("PUT", "/api/movies/1"),
            status("DELETE", "/api/movies/1"),
            status("POST", "/api/billing"),
        ];

        assert_eq!(statuses, expected, "{key}");
    }
}

#[test]
fn nobody_we_know_is_asked_for_a_key() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let keys = KeysFile::with(KEYS);
    let gateway = gateway(keys.vars(), inventory.address());
    for authorization in [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer "),
        Some("Bearer reader-key2"),
        Some("Basic cmVhZGVyLWtleQ=="),
        Some("Bearer ec4408df15da46b328f6f3246fa723d0aa6cb0f0a0dd9c4626080ab1b02aa3b2"),
    ] {
        let reply = ask(&gateway, "GET", "/api/movies", authorization);

        let expected = (401, "send a valid API key, as Authorization: Bearer KEY");
        assert_eq!(reply.problem(), expected, "{authorization:?}");
        assert_eq!(
            reply.header("www-authenticate"),
            "Bearer realm=\"crud-master\""
        );
    }
    assert_eq!(ask(&gateway, "POST", "/api/billing", None).status, 401);
    assert_eq!(ask(&gateway, "GET", "/health", None).status, 200);
    assert_eq!(inventory.requests().len(), 0);
}

#[test]
fn a_key_is_limited_to_its_own_rate() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let keys = KeysFile::with(KEYS);
    let mut vars = keys.vars();
    vars.push(("RATE_LIMIT_PER_SECOND".to_owned(), "1".to_owned()));
    vars.push(("RATE_LIMIT_BURST".to_owned(), "3".to_owned()));
    let gateway = gateway(vars, inventory.address());
    let read = |key: &str| {
        ask(
            &gateway,
            "GET",
            "/api/movies",
            Some(&format!("Bearer {key}")),
        )
    };

    let statuses: Vec<u16> = (0..3).map(|_| read("reader-key").status).collect();
    let limited = read("reader-key");

    assert_eq!(statuses, [204; 3]);
    assert_eq!(
        limited.problem(),
        (429, "too many requests; try again in 1 s")
    );
    assert_eq!(limited.header("retry-after"), "1");
    assert_eq!(read("writer-key").status, 204);
}

#[test]
fn without_keys_an_address_is_limited() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let vars = vec![("RATE_LIMIT_PER_SECOND".to_owned(), "1".to_owned())];
    let gateway = gateway(vars, inventory.address());

    let statuses: Vec<u16> = (0..2)
        .map(|_| ask(&gateway, "GET", "/api/movies", None).status)
        .collect();

    assert_eq!(statuses, [204, 429]);
    assert_eq!(ask(&gateway, "GET", "/health", None).status, 200);
}

#[test]
fn a_wrong_setting_is_named_and_ends_the_program() {
    let keys = KeysFile::with("alice:not-a-hash:admin\n");
    let file = keys.path.display().to_string();
    for (key, value, problem) in [
        (
            "API_KEYS_FILE",
            file.as_str(),
            "where line 1 has no SHA-256 of 64 hexadecimal digits",
        ),
        (
            "API_KEYS_FILE",
            "/nowhere",
            "names /nowhere, which cannot be read",
        ),
        (
            "RATE_LIMIT_PER_SECOND",
            "0",
            "must be a whole number from 1 to 4294967295",
        ),
        ("API_KEYS_FILE", "", "is set and empty"),
        ("RATE_LIMIT_PER_SECOND", "", "is set and empty"),
        (
            "RATE_LIMIT_BURST",
            "5",
            "is set without RATE_LIMIT_PER_SECOND",
        ),
        ("TLS_CERT_FILE", "", "is set and empty"),
        ("TLS_KEY_FILE", "", "is set and empty"),
    ] {
        let program = Program::start(PROGRAM, SETTINGS.into_iter().chain([(key, value)]));

        let (status, log) = program.wait();

        assert_eq!(status.code(), Some(2), "{log}");
        assert!(
            log.starts_with(&format!("api-gateway: {key} ")) && log.contains(problem),
            "{log}"
        );
        assert!(!log.contains("not-a-hash"), "{log}");
    }
}

#[test]
fn the_keys_are_those_that_the_file_has_now_and_a_broken_file_changes_none() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let keys = KeysFile::with(KEYS);
    let program = program(&keys, inventory.address());
    let client = Client::new(program.address());
    let status = |key: &str| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        client.send("GET", "/api/movies", &headers, None).status
    };
    assert_eq!(["reader-key", "admin-key"].map(status), [204, 204]);

    let without_reader = KEYS.split_once('\n').expect("a line").1;
    std::fs::write(&keys.path, without_reader).expect("a file for keys");
    program.signal("HUP");
    eventually("the key that was deleted is refused", || {
        status("reader-key") == 401
    });
    assert_eq!(status("admin-key"), 204);

    std::fs::write(&keys.path, "").expect("a file for keys");
    eventually("the broken file is told", || {
        program.log().contains("the keys stay as they were")
    });
    assert_eq!(["reader-key", "admin-key"].map(status), [401, 204]);
}

#[test]
fn the_log_tells_by_whose_key_a_request_came() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let keys = KeysFile::with(KEYS);
    let program = program(&keys, inventory.address());
    let client = Client::new(program.address());

    let headers = [("authorization", "Bearer reader-key")];
    assert_eq!(
        client.send("GET", "/api/movies", &headers, None).status,
        204
    );
    assert_eq!(
        client
            .send("DELETE", "/api/movies/1", &headers, None)
            .status,
        403
    );

    eventually("both are told", || {
        program.log().matches(" caller=reader ").count() == 2
    });
}

#[test]
fn an_open_gateway_says_so_at_its_start() {
    let program = Program::start(PROGRAM, SETTINGS);
    let _ = program.address();

    assert!(
        program.log().contains("API_KEYS_FILE is not set"),
        "{}",
        program.log()
    );
}

#[test]
fn what_the_head_of_an_order_decides_is_answered_without_asking_for_its_body() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let keys = KeysFile::with(KEYS);
    let gateway = gateway(keys.vars(), inventory.address());
    let ask = |lines: &str| {
        let head = format!(
            "POST /api/billing HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\
             Content-Length: 80\r\n{lines}\r\n"
        );
        let answer = testkit::exchange(gateway.client.address(), head.as_bytes());
        answer.lines().next().unwrap_or_default().to_owned()
    };
    let json = "Content-Type: application/json\r\n";
    let key = "Authorization: Bearer writer-key\r\n";

    let stranger = ask(json);
    let reader = ask(&format!("{json}Authorization: Bearer reader-key\r\n"));
    let text = ask(&format!("{key}Content-Type: text/plain\r\n"));
    let bad_key = ask(&format!("{key}{json}Idempotency-Key: a b\r\n"));
    let compressed = ask(&format!("{key}{json}Content-Encoding: gzip\r\n"));
    let good = ask(&format!("{key}{json}"));

    let lines = [stranger, reader, text, bad_key, compressed, good];
    let statuses: Vec<_> = lines.iter().filter_map(|line| line.get(9..12)).collect();
    assert_eq!(statuses, ["401", "403", "415", "400", "415", "100"]);
}

#[test]
fn a_body_in_chunks_of_somebody_without_a_key_is_passed_over_and_the_connection_kept() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let keys = KeysFile::with(KEYS);
    let gateway = gateway(keys.vars(), inventory.address());
    let requests = "PUT /api/movies/1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                    5\r\nhello\r\n0\r\n\r\n\
                    GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

    let answers = testkit::exchange(gateway.client.address(), requests.as_bytes());

    let statuses: Vec<_> = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| &answer[..3])
        .collect();
    assert_eq!(statuses, ["401", "200"], "{answers}");
    assert_eq!(inventory.requests(), []);
}

#[test]
fn a_name_that_is_not_ours_is_refused_where_names_are_given() {
    let inventory = ScriptedUpstream::answering(NO_CONTENT);
    let mut config = HttpConfig::on_loopback(1);
    config.hosts = vec!["movies.example".to_owned()];
    let gateway = gateway_with(config, Vec::new(), inventory.address());
    let status = |host: &str| {
        let request =
            format!("GET /api/movies HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        RawReply::to(gateway.client.address(), request.as_bytes()).status()
    };

    for host in [
        "movies.example",
        "MOVIES.example:5000",
        "127.0.0.1",
        "[::1]:5000",
        "localhost",
    ] {
        assert_eq!(status(host), 204, "{host}");
    }
    for host in ["evil.example", "movies.example.evil", "127.0.0.1.evil:5000"] {
        assert_eq!(status(host), 421, "{host}");
    }
}
