//! `GET /api/status`, with a real RabbitMQ and scripted services.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::amqp::QueueConfig;
use common::env::Vars;
use common::http::HttpConfig;
use gateway::{AccessConfig, Gateway, UpstreamLimits};
use serde_json::{Value, json};
use testkit::{Reply, ScriptedReply, ScriptedUpstream, Service, TestQueue, eventually};

/// The hash of `reader-key`.
const READER: &str =
    "reader:ec4408df15da46b328f6f3246fa723d0aa6cb0f0a0dd9c4626080ab1b02aa3b2:read\n";

const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn ready() -> ScriptedUpstream {
    let body = r#"{"status":"ready","dependencies":{"postgresql":"up"}}"#;
    ScriptedUpstream::answering(answer("200 OK", body))
}

fn without_database() -> ScriptedUpstream {
    let body = r#"{"status":503,"dependencies":{"postgresql":"down"}}"#;
    ScriptedUpstream::answering(answer("503 Service Unavailable", body))
}

struct Parts {
    inventory: SocketAddr,
    billing: SocketAddr,
    consumer: SocketAddr,
    queue: QueueConfig,
}

fn gateway(parts: Parts) -> Service<Gateway> {
    gateway_with(parts, AccessConfig::default())
}

fn gateway_with(parts: Parts, access: AccessConfig) -> Service<Gateway> {
    let config = gateway::Config {
        http: HttpConfig::on_loopback(2),
        inventories: vec![parts.inventory],
        billing_api: parts.billing,
        billing_consumer: parts.consumer,
        expose_orders: false,
        limits: UpstreamLimits::default(),
        queue: parts.queue,
        access,
    };
    Service::start(
        |shutdown| gateway::start(&config, shutdown),
        Gateway::address,
    )
}

/// The status with each latency replaced, since its value differs each time.
fn status(gateway: &Service<Gateway>) -> Value {
    let mut reply = gateway.client.get("/api/status");
    assert_eq!(reply.status, 200, "{}", reply.text);
    for part in ["inventory", "billing", "consumer", "rabbitmq"] {
        let latency = &mut reply.json[part]["latency_ms"];
        *latency = json!(latency.as_f64().is_some_and(|ms| ms >= 0.0));
    }
    reply.json
}

fn wait_until_open(gateway: &Service<Gateway>) {
    eventually("orders pass", || {
        gateway.client.get("/api/status").json["rabbitmq"]["state"] == "up"
    });
}

#[test]
fn every_part_is_shown_as_it_is() {
    let (inventory, billing, queue) = (ready(), without_database(), TestQueue::create());
    let gateway = gateway(Parts {
        inventory: inventory.address(),
        billing: billing.address(),
        consumer: NOBODY,
        queue: queue.config(),
    });
    wait_until_open(&gateway);
    let order = json!({ "user_id": "20", "number_of_items": "99", "total_amount": "250" });
    assert_eq!(gateway.client.post("/api/billing", &order).status, 200);

    let expected = json!({
        "status": "degraded",
        "gateway": { "state": "up", "orders_posted": 1 },
        "inventory": { "state": "up", "latency_ms": true, "postgresql": "up" },
        "billing": { "state": "degraded", "latency_ms": true, "postgresql": "down" },
        "consumer": { "state": "down", "latency_ms": false, "postgresql": "unknown" },
        "rabbitmq": { "state": "up", "latency_ms": true },
        "queue": { "name": queue.name(), "ready": 1, "consumers": 0, "dead": null },
        "orders_readable": false,
    });

    eventually("all of that is seen", || status(&gateway) == expected);
    let reply = gateway.client.get("/api/status");
    assert_eq!(reply.header("cache-control"), "no-store");
    assert_eq!(
        inventory.requests()[0].line,
        "GET /ready HTTP/1.1",
        "nothing else is asked of a service"
    );
}

#[test]
fn what_is_away_is_shown_as_down_and_as_up_when_it_is_back() {
    let queue = TestQueue::create();
    let relay = queue.relay_down();
    let gateway = gateway(Parts {
        inventory: NOBODY,
        billing: NOBODY,
        consumer: NOBODY,
        queue: QueueConfig {
            brokers: relay.address().into(),
            ..queue.config()
        },
    });

    let all_down = status(&gateway);

    let service = json!({ "state": "down", "latency_ms": false, "postgresql": "unknown" });
    let expected = json!({
        "status": "degraded",
        "gateway": { "state": "up", "orders_posted": 0 },
        "inventory": service,
        "billing": service,
        "consumer": service,
        "rabbitmq": { "state": "down", "latency_ms": false },
        "queue": null,
        "orders_readable": false,
    });
    assert_eq!(all_down, expected);
    relay.restore();
    wait_until_open(&gateway);
    relay.cut();
    eventually("it is seen to be away", || {
        status(&gateway)["queue"] == Value::Null
    });
    relay.restore();
    wait_until_open(&gateway);
}

#[test]
fn a_part_that_says_nothing_costs_a_second_and_hides_no_other() {
    let (silent, billing) = (ScriptedUpstream::start(|_| ScriptedReply::Silence), ready());
    let queue = TestQueue::create();
    let gateway = gateway(Parts {
        inventory: silent.address(),
        billing: billing.address(),
        consumer: NOBODY,
        queue: queue.config(),
    });
    let started = Instant::now();

    let seen = status(&gateway);

    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(seen["inventory"]["state"], "down");
    assert_eq!(seen["billing"]["state"], "up");
    assert_eq!(
        seen["queue"]["ready"],
        json!(0),
        "the queue is counted meanwhile"
    );
}

#[test]
fn a_broker_that_says_nothing_costs_a_second_and_is_shown_as_down() {
    let (inventory, billing, queue) = (ready(), ready(), TestQueue::create());
    let relay = queue.relay_up();
    let gateway = gateway(Parts {
        inventory: inventory.address(),
        billing: billing.address(),
        consumer: NOBODY,
        queue: QueueConfig {
            brokers: relay.address().into(),
            ..queue.config()
        },
    });
    wait_until_open(&gateway);
    relay.freeze();
    eventually("what was said before is too old", || {
        status(&gateway)["queue"] == Value::Null
    });
    let started = Instant::now();

    let seen = status(&gateway);

    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(seen["rabbitmq"]["state"], "down");
    assert_eq!(seen["inventory"]["state"], "up");
}

#[test]
fn however_many_look_on_each_part_is_asked_once_a_second() {
    let (inventory, billing, queue) = (ready(), ready(), TestQueue::create());
    let gateway = gateway(Parts {
        inventory: inventory.address(),
        billing: billing.address(),
        consumer: NOBODY,
        queue: queue.config(),
    });
    let started = Instant::now();

    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    assert_eq!(gateway.client.get("/api/status").status, 200);
                }
            });
        }
    });

    let rounds = usize::try_from(started.elapsed().as_secs()).expect("a short test") + 1;
    let of_billing = |path: &str| {
        let requests = billing.requests();
        let asked = requests
            .iter()
            .filter(|request| request.line.contains(path));
        asked.count()
    };
    let asked = [
        inventory.requests().len(),
        of_billing("/ready"),
        of_billing("/api/dead-letters/count"),
    ];
    assert!(
        asked.iter().all(|asked| (1..=rounds).contains(asked)),
        "{asked:?} in {rounds} s"
    );
}

#[test]
fn dead_letters_are_counted_by_billing_and_unknown_while_it_does_not_say() {
    let (inventory, queue) = (ready(), TestQueue::create());
    let answers = Arc::new(AtomicBool::new(true));
    let answering = Arc::clone(&answers);
    let billing = ScriptedUpstream::start(move |request| match request.line.as_str() {
        "GET /api/dead-letters/count HTTP/1.1" if answering.load(Ordering::Relaxed) => {
            ScriptedReply::Answer(answer("200 OK", r#"{"count":7,"bytes":4096}"#).into())
        }
        "GET /api/dead-letters/count HTTP/1.1" => {
            ScriptedReply::Answer(answer("503 Service Unavailable", r#"{"count":7}"#).into())
        }
        _ => ScriptedReply::Answer(answer("200 OK", "{}").into()),
    });
    let gateway = gateway(Parts {
        inventory: inventory.address(),
        billing: billing.address(),
        consumer: NOBODY,
        queue: queue.config(),
    });
    wait_until_open(&gateway);
    let dead = || status(&gateway)["queue"]["dead"].clone();

    eventually("they are counted", || dead() == json!(7));
    answers.store(false, Ordering::Relaxed);
    eventually("that is not known any more", || dead() == Value::Null);
}

#[test]
fn a_consumer_that_records_nothing_is_seen_and_the_platform_degraded() {
    let (inventory, billing, queue) = (ready(), ready(), TestQueue::create());
    let records = Arc::new(AtomicBool::new(true));
    let recording = Arc::clone(&records);
    let consumer = ScriptedUpstream::start(move |request| {
        assert_eq!(request.line, "GET /ready HTTP/1.1");
        ScriptedReply::Answer(
            if recording.load(Ordering::Relaxed) {
                let states = r#"{"dependencies":{"postgresql":"up","rabbitmq":"up"}}"#;
                answer("200 OK", states)
            } else {
                let states = r#"{"dependencies":{"postgresql":"down","rabbitmq":"up"}}"#;
                answer("503 Service Unavailable", states)
            }
            .into(),
        )
    });
    let gateway = gateway(Parts {
        inventory: inventory.address(),
        billing: billing.address(),
        consumer: consumer.address(),
        queue: queue.config(),
    });
    wait_until_open(&gateway);
    queue.on_channel(|channel| {
        let options = amiquip::ConsumerOptions::default();
        let _consumer = channel.basic_consume(queue.name(), options).expect("a consumer");
        let seen = || {
            let status = status(&gateway);
            (status["status"].clone(), status["consumer"].clone())
        };
        let consumer = |state, postgresql| {
            json!({ "state": state, "latency_ms": true, "postgresql": postgresql })
        };

        let well = (json!("ok"), consumer("up", "up"));
        eventually("all is well", || seen() == well);
        records.store(false, Ordering::Relaxed);
        let ill = (json!("degraded"), consumer("degraded", "down"));
        eventually("it is seen", || seen() == ill);
    });
}

#[test]
fn who_looks_on_needs_a_key_and_uses_up_no_rate() {
    let (inventory, billing, queue) = (ready(), ready(), TestQueue::create());
    let file = std::env::temp_dir().join(format!("crud-master-keys-{}", uuid::Uuid::new_v4()));
    std::fs::write(&file, READER).expect("a file for keys");
    let path = file.display().to_string();
    let access = AccessConfig::from_vars(&Vars::from_pairs([
        ("API_KEYS_FILE", path.as_str()),
        ("RATE_LIMIT_PER_SECOND", "1"),
        ("RATE_LIMIT_BURST", "2"),
    ]));
    std::fs::remove_file(&file).expect("it is still there");
    let parts = Parts {
        inventory: inventory.address(),
        billing: billing.address(),
        consumer: NOBODY,
        queue: queue.config(),
    };
    let gateway = gateway_with(parts, access.expect("well-formed settings"));
    let ask = |method: &str, path: &str, key: &str| -> Reply {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        gateway.client.send(method, path, &headers, None)
    };

    let looks: Vec<u16> = (0..20)
        .map(|_| ask("GET", "/api/status", "reader-key").status)
        .collect();
    let reads: Vec<u16> = (0..3)
        .map(|_| ask("GET", "/api/movies", "reader-key").status)
        .collect();
    let guesses: Vec<u16> = (0..3)
        .map(|_| ask("GET", "/api/status", "a-guess").status)
        .collect();

    assert_eq!(looks, [200; 20]);
    assert_eq!(reads, [200, 200, 429]);
    assert_eq!(guesses, [401, 401, 429]);
    assert_eq!(ask("POST", "/api/status", "reader-key").status, 405);
    let options = ask("OPTIONS", "/api/status", "");
    assert_eq!(
        (options.status, options.header("allow")),
        (204, "GET, HEAD, OPTIONS")
    );
}
