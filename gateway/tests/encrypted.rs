//! RabbitMQ over TLS: what is encrypted, and which brokers are refused.

use amiquip::AmqpProperties;
use common::amqp::{AmqpConnection, Purpose, QueueConfig};
use common::env::Vars;
use serde_json::json;
use testkit::{Authority, Client, Folder, Pairs, Program, TestQueue, eventually, with};

const PROGRAM: &str = env!("CARGO_BIN_EXE_api-gateway");

fn config(vars: Pairs) -> QueueConfig {
    QueueConfig::from_vars(&Vars::from_pairs(vars), Purpose::Publish).expect("settings")
}

/// Why there is no connection with these variables.
fn refusal(vars: Pairs) -> String {
    let error = AmqpConnection::open(&config(vars), "tests").map(drop);
    error.expect_err("a refusal").to_string()
}

fn start(vars: Pairs) -> Program {
    let own = [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("API_GATEWAY_PORT", "0"),
        ("HTTP_WORKERS", "2"),
        ("INVENTORY_VM_IP", "127.0.0.1"),
        ("INVENTORY_API_PORT", "1"),
        ("BILLING_VM_IP", "127.0.0.1"),
        ("BILLING_API_PORT", "1"),
        ("BILLING_CONSUMER_PORT", "1"),
    ];
    Program::start(PROGRAM, with(vars, &own))
}

/// Whether the gateway has a connection to the broker, as `/ready` says it.
fn publishes(client: &Client) -> bool {
    client.get("/ready").json["dependencies"]["rabbitmq"] == "up"
}

#[test]
fn every_order_is_confirmed_over_tls_and_every_connection_is_encrypted() {
    let queue = TestQueue::create_over_tls();
    let publisher = queue.publisher();
    let vars = with(
        queue.vars(),
        &[
            ("RABBITMQ_USER", &*publisher.user),
            ("RABBITMQ_PASSWORD", &*publisher.user),
        ],
    );
    queue.declare_with(&[]);
    let program = start(vars);
    let client = Client::new(program.address());
    eventually("it publishes", || publishes(&client));

    let order = json!({"user_id": "20", "number_of_items": 1, "total_amount": "2.50"});
    for _ in 0..100 {
        assert_eq!(client.post("/api/billing", &order).status, 200);
    }

    assert_eq!(queue.counts(), Some((100, 0)));
    eventually("the broker shows encrypted connections", || {
        let connections = queue.connections_of(&publisher.user);
        let encrypted = connections.iter().all(|one| one["ssl"] == true);
        !connections.is_empty() && encrypted
    });
}

#[test]
fn messages_that_no_socket_takes_at_once_arrive_whole() {
    let queue = TestQueue::create_over_tls();
    let bodies: Vec<Vec<u8>> = (0..20)
        .map(|number| vec![number; 3 * 1024 * 1024 + usize::from(number)])
        .collect();
    let messages: Vec<_> = bodies
        .iter()
        .map(|body| (body.clone(), AmqpProperties::default()))
        .collect();

    queue.publish_all(&messages);

    let arrived: Vec<_> = queue
        .take_all()
        .into_iter()
        .map(|message| message.body)
        .collect();
    assert!(arrived == bodies);
}

#[test]
fn of_several_nodes_each_is_named_with_its_reason() {
    let queue = TestQueue::create_over_tls();
    let authority = Authority::create();
    let foreign = authority.file();
    let changes = [
        ("RABBITMQ_HOST", "localhost,127.0.0.1:1"),
        ("RABBITMQ_CACERTFILE", &*foreign),
    ];

    let found = refusal(with(queue.vars(), &changes));

    let (node, reasons) = found.split_once(": ").expect("a node and its reason");
    assert!(node.starts_with("localhost:"), "{found}");
    assert_eq!(
        reasons,
        "cannot connect to RabbitMQ: no authority in RABBITMQ_CACERTFILE has signed the certificate of localhost; \
         127.0.0.1:1: cannot connect to RabbitMQ: Connection refused (os error 111)"
    );
}

#[test]
fn a_broker_that_is_not_ours_is_refused_with_the_setting_and_the_reason() {
    let (authority, other) = (Authority::create(), Authority::create());
    let queue = TestQueue::create_over_tls();
    let (roots, foreign) = (authority.file(), other.file());
    let listening = |name, expired| {
        let signed = if expired {
            authority.sign_expired(name)
        } else {
            authority.sign(name)
        };
        let address = Authority::listen_with(&signed, None);
        address.port().to_string()
    };
    let (expired, misnamed) = (listening("localhost", true), listening("elsewhere", false));
    let plain = TestQueue::create().vars();
    let plain = plain
        .iter()
        .find(|(key, _)| key == "RABBITMQ_PORT")
        .expect("a port");

    for (changes, problem) in [
        (
            vec![("RABBITMQ_CACERTFILE", &*foreign)],
            "no authority in RABBITMQ_CACERTFILE has signed the certificate of localhost",
        ),
        (
            vec![("RABBITMQ_CACERTFILE", "system")],
            "no authority in RABBITMQ_CACERTFILE has signed the certificate of localhost",
        ),
        (
            vec![("RABBITMQ_HOST", "127.0.0.1")],
            "the certificate of 127.0.0.1 is for another name than RABBITMQ_HOST has: DnsName(\"localhost\")",
        ),
        (
            vec![
                ("RABBITMQ_PORT", &*misnamed),
                ("RABBITMQ_CACERTFILE", &*roots),
            ],
            "the certificate of localhost is for another name than RABBITMQ_HOST has: DnsName(\"elsewhere\")",
        ),
        (
            vec![
                ("RABBITMQ_PORT", &*expired),
                ("RABBITMQ_CACERTFILE", &*roots),
            ],
            "the certificate of localhost, which RABBITMQ_TLS has checked, has expired",
        ),
        (
            vec![("RABBITMQ_PORT", &*plain.1)],
            "RABBITMQ_TLS asks for TLS, and localhost does not speak it at this port",
        ),
        (
            vec![
                ("RABBITMQ_PASSWORD", ""),
                ("RABBITMQ_PASSWORD_FILE", "/nowhere"),
            ],
            "RABBITMQ_PASSWORD_FILE names /nowhere, which cannot be read: \
             No such file or directory (os error 2)",
        ),
    ] {
        let found = refusal(with(queue.vars(), &changes));

        assert_eq!(found, format!("cannot connect to RabbitMQ: {problem}"));
    }
}

#[test]
fn a_broker_that_asks_for_a_certificate_gets_it_or_is_named() {
    let authority = Authority::create();
    let address = Authority::listen_with(&authority.sign("localhost"), Some(&authority));
    let queue = TestQueue::create_over_tls();
    let (roots, port) = (authority.file(), address.port().to_string());
    let asking = with(
        queue.vars(),
        &[("RABBITMQ_PORT", &*port), ("RABBITMQ_CACERTFILE", &*roots)],
    );
    let refused = refusal(asking);
    assert!(refused.contains("RABBITMQ_CERTFILE"), "{refused}");

    let consumer = queue.consumer();
    let shown = with(
        queue.vars(),
        &[
            ("RABBITMQ_USER", &*consumer.user),
            ("RABBITMQ_PASSWORD", &*consumer.user),
            ("RABBITMQ_CERTFILE", &TestQueue::tls_file("client.pem")),
            ("RABBITMQ_KEYFILE", &TestQueue::tls_file("client.key")),
        ],
    );
    let _connection = AmqpConnection::open(&config(shown), "tests").expect("a connection");

    eventually("the broker has seen the certificate", || {
        let connections = queue.connections_of(&consumer.user);
        let subjects = connections.iter().map(|one| &one["peer_cert_subject"]);
        subjects.eq(["CN=test client"])
    });
}

#[test]
fn a_virtual_host_has_queues_of_its_own_and_one_that_is_not_there_is_named() {
    let queue = TestQueue::create();
    let virtual_host = queue.create_virtual_host();
    let inside = with(queue.vars(), &[("RABBITMQ_VHOST", &*virtual_host)]);
    let mut connection = AmqpConnection::open(&config(inside), "tests").expect("a connection");

    connection.declare(queue.name()).expect("a queue");

    assert!(connection.count(queue.name()).expect("a count").is_some());
    assert_eq!(queue.counts(), None);
    let refused = refusal(with(queue.vars(), &[("RABBITMQ_VHOST", "nowhere")]));
    assert!(refused.contains("vhost nowhere not found"), "{refused}");
}

#[test]
fn a_broker_that_is_refused_has_one_line_and_the_gateway_is_not_ready_until_it_is_repaired() {
    let queue = TestQueue::create_over_tls();
    let (folder, other) = (Folder::create(), Authority::create());
    let foreign = std::fs::read_to_string(other.file()).expect("an authority");
    let ours = std::fs::read_to_string(TestQueue::tls_file("ca.pem")).expect("an authority");
    let roots = folder.write("ca.pem", &foreign, 0o644);
    let program = start(with(queue.vars(), &[("RABBITMQ_CACERTFILE", &*roots)]));
    let client = Client::new(program.address());
    let cause = "no authority in RABBITMQ_CACERTFILE has signed the certificate of localhost";
    eventually(cause, || program.log().contains(cause));
    assert_eq!(client.get("/ready").status, 503);
    let order = json!({"user_id": "20", "number_of_items": 1, "total_amount": "2.50"});
    assert_eq!(client.post("/api/billing", &order).status, 503);

    folder.write("ca.pem", &ours, 0o644);

    eventually("it publishes", || publishes(&client));
    assert_eq!(client.post("/api/billing", &order).status, 200);
    let log = program.log();
    let lines = log.matches("no connection to the broker").count();
    assert_eq!(lines, 1, "{log}");
}

#[test]
fn a_password_that_was_changed_on_both_sides_needs_no_restart() {
    let queue = TestQueue::create();
    queue.declare_with(&[]);
    let publisher = queue.publisher();
    let folder = Folder::create();
    let file = folder.write("password", "not yet", 0o600);
    let program = start(with(
        queue.vars(),
        &[
            ("RABBITMQ_USER", &*publisher.user),
            ("RABBITMQ_PASSWORD", ""),
            ("RABBITMQ_PASSWORD_FILE", &*file),
        ],
    ));
    let client = Client::new(program.address());
    eventually("the password is refused", || {
        program.log().contains("no connection to the broker")
    });

    folder.write("password", &format!("{}\n", publisher.user), 0o600);

    eventually("it publishes", || publishes(&client));
}

#[test]
fn a_malformed_setting_of_the_broker_ends_the_program_before_it_listens() {
    let queue = TestQueue::create();
    let key = TestQueue::tls_file("client.key");
    let roots = TestQueue::tls_file("ca.pem");
    let tls = ("RABBITMQ_TLS", "true");
    let root = ("RABBITMQ_CACERTFILE", &*roots);
    let too_long = "v".repeat(256);

    for (changes, expected) in [
        (
            vec![("RABBITMQ_TLS", "secret")],
            "RABBITMQ_TLS is malformed: it must be true or false",
        ),
        (vec![("RABBITMQ_TLS", "")], "RABBITMQ_TLS is set and empty"),
        (
            vec![tls],
            "RABBITMQ_CACERTFILE is missing: RABBITMQ_TLS checks",
        ),
        (
            vec![root],
            "RABBITMQ_CACERTFILE is set, and RABBITMQ_TLS does not turn TLS on",
        ),
        (
            vec![tls, root, ("RABBITMQ_KEYFILE", &*key)],
            "RABBITMQ_CERTFILE is missing: RABBITMQ_KEYFILE is set",
        ),
        (
            vec![("RABBITMQ_VHOST", &*too_long)],
            "RABBITMQ_VHOST is malformed: it must be 255 bytes at most",
        ),
        (
            vec![("RABBITMQ_HOST", "a,,b")],
            "RABBITMQ_HOST is malformed: it must be a host",
        ),
        (
            vec![("RABBITMQ_PASSWORD_FILE", "/nowhere")],
            "RABBITMQ_PASSWORD_FILE and RABBITMQ_PASSWORD are both set",
        ),
    ] {
        let (status, log) = start(with(queue.vars(), &changes)).wait();

        assert_eq!(status.code(), Some(2), "{log}");
        assert!(
            log.starts_with(&format!("api-gateway: {expected}")),
            "{log}"
        );
        assert!(
            !log.contains("secret") && !log.contains("listening"),
            "{log}"
        );
    }
}
