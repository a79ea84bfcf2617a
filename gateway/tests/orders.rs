//! Orders, through a real socket, to a real RabbitMQ.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpValue, QueueDeclareOptions};
use common::amqp::QueueConfig;
use common::env::Vars;
use common::http::HttpConfig;
use gateway::{AccessConfig, UpstreamLimits};
use serde_json::{Value, json};
use testkit::{
    Client, QueuedMessage, RawReply, Relay, Reply, ScriptedUpstream, Service, TestQueue, eventually,
};

const WORKERS: usize = 8;

/// Longer than any client of the gateway waits.
const DEADLINE: Duration = Duration::from_secs(15);

/// Much less than the gateway waits for a confirm.
const AT_ONCE: Duration = Duration::from_secs(3);

/// The time that an order may take, and more for a busy machine.
const IN_TIME: Duration = Duration::from_secs(7);

/// The keys are `writer-key` and `admin-key`.
const KEYS: &str = "\
writer:3aec1946afb01344ae0065f3b123820a2144e455c13e5816dbd439e6634f7f26:write
admin:69a5265506c94c77b787a7d7377b7685a0eff82e33920a71e7ee22cd6154953e:admin
";

/// connection.blocked with a reason, and connection.unblocked, as RabbitMQ sends them.
const BLOCKED: &[u8] = b"\x01\0\0\0\0\0\x0b\0\x0a\0\x3c\x06memory\xce";
const UNBLOCKED: &[u8] = b"\x01\0\0\0\0\0\x04\0\x0a\0\x3d\xce";

/// The time after which the gateway closes a connection whose oldest order is not confirmed, and a little more.
const UNCONFIRMED_LIMIT: Duration = Duration::from_millis(16_500);

const JSON: (&str, &str) = ("content-type", "application/json");

struct Gateway {
    service: Service<gateway::Gateway>,
    queue: TestQueue,
}

impl Gateway {
    /// Starts the gateway and returns when it is ready.
    fn start() -> Self {
        let queue = TestQueue::create();
        let gateway = Self::publishing_to(queue.config(), queue);
        gateway.wait_until_ready();
        gateway
    }

    fn behind(relay: &Relay, queue: TestQueue) -> Self {
        let config = QueueConfig {
            brokers: relay.address().into(),
            ..queue.config()
        };
        Self::publishing_to(config, queue)
    }

    fn publishing_to(config: QueueConfig, queue: TestQueue) -> Self {
        Self::with_access(config, queue, AccessConfig::default())
    }

    fn with_access(config: QueueConfig, queue: TestQueue, access: AccessConfig) -> Self {
        let inventory = ScriptedUpstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let config = gateway::Config {
            http: HttpConfig::on_loopback(WORKERS),
            inventories: vec![inventory.address()],
            billing_api: ([127, 0, 0, 1], 1).into(),
            billing_consumer: ([127, 0, 0, 1], 1).into(),
            expose_orders: false,
            limits: UpstreamLimits::default(),
            access,
            queue: config,
        };
        let service = Service::start(
            |shutdown| gateway::start(&config, shutdown),
            gateway::Gateway::address,
        );
        Self { service, queue }
    }

    fn client(&self) -> &Client {
        &self.service.client
    }

    fn wait_until_ready(&self) {
        eventually("orders pass", || self.client().get("/ready").status == 200);
    }

    fn place(&self, body: &str) -> Reply {
        self.place_with(&[], body)
    }

    fn place_with(&self, headers: &[(&str, &str)], body: &str) -> Reply {
        place(self.client(), headers, body)
    }

    /// Another client, whose connection is open already.
    fn another_client(&self) -> Client {
        let client = Client::new(self.client().address());
        assert_eq!(client.get("/health").status, 200);
        client
    }
}

fn place(client: &Client, headers: &[(&str, &str)], body: &str) -> Reply {
    let headers = [&[JSON], headers].concat();
    client.send("POST", "/api/billing", &headers, Some(body))
}

fn order() -> Value {
    json!({ "user_id": "20", "number_of_items": "99", "total_amount": "250.00" })
}

fn order_with(field: &str, value: Value) -> String {
    let mut order = order();
    order[field] = value;
    order.to_string()
}

fn message_id(reply: &Reply) -> String {
    let id = reply.json["message_id"].as_str();
    id.expect("an answer with a message id").to_owned()
}

fn ids(messages: &[QueuedMessage]) -> Vec<String> {
    let id = |message: &QueuedMessage| message.properties.message_id().clone();
    messages.iter().filter_map(id).collect()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a time after 1970").as_secs()
}

#[test]
fn an_order_is_on_the_queue_with_its_fields_as_they_were_written_when_it_is_answered() {
    let gateway = Gateway::start();
    let body = "  {\"user_id\" : \"ü\\u0041\",\r\n\t\"total_amount\":250.00,\"number_of_items\":99 , \
                \"note\":{\"gift\":[true, 1.50e0]}}\n ";
    let before = now();

    let reply = gateway.place(body);

    let id = message_id(&reply);
    let answer = json!({ "message": "Message posted", "message_id": id });
    assert_eq!((reply.status, &reply.json), (200, &answer));
    let messages = gateway.queue.take_all();
    assert_eq!(messages.len(), 1);
    let QueuedMessage {
        body: taken,
        properties,
    } = &messages[0];
    assert_eq!(
        String::from_utf8_lossy(taken),
        r#"{"user_id":"ü\u0041","number_of_items":99,"total_amount":250.00}"#
    );
    assert_eq!(
        (
            properties.content_type().as_deref(),
            *properties.delivery_mode(),
            properties.message_id()
        ),
        (Some("application/json"), Some(2), &Some(id))
    );
    let timestamp = properties.timestamp().expect("a timestamp");
    assert!((before..=now()).contains(&timestamp), "{timestamp}");
    let request_id = AmqpValue::LongString(reply.header("x-request-id").to_owned());
    let headers = properties.headers().as_ref().expect("headers");
    assert_eq!(
        headers.iter().collect::<Vec<_>>(),
        [(&"x-request-id".to_owned(), &request_id)]
    );
}

#[test]
fn a_request_id_of_the_client_goes_with_the_message() {
    let gateway = Gateway::start();

    let reply = gateway.place_with(&[("x-request-id", "trace-7")], &order().to_string());

    assert_eq!(reply.header("x-request-id"), "trace-7");
    let message = gateway.queue.take().expect("a message");
    let headers = message.properties.headers().as_ref().expect("headers");
    assert_eq!(
        headers.get("x-request-id"),
        Some(&AmqpValue::LongString("trace-7".to_owned()))
    );
}

#[test]
fn every_order_gets_an_id_of_its_own() {
    let gateway = Gateway::start();

    let replies = [(); 2].map(|()| gateway.place(&order().to_string()));

    let answered = replies.map(|reply| message_id(&reply));
    assert_ne!(answered[0], answered[1]);
    assert_eq!(ids(&gateway.queue.take_all()), answered);
}

#[test]
fn an_idempotency_key_is_the_message_id() {
    let gateway = Gateway::start();
    let keys = ["a", "!~\"{}\\,;", &"k".repeat(64)];

    let answered = keys.map(|key| {
        let reply = gateway.place_with(&[("idempotency-key", key)], &order().to_string());
        message_id(&reply)
    });

    assert_eq!(answered, keys);
    assert_eq!(ids(&gateway.queue.take_all()), keys);
}

#[test]
fn of_two_idempotency_keys_neither_is_guessed_to_be_meant() {
    let gateway = Gateway::start();
    let keys = [("idempotency-key", "key-1"), ("idempotency-key", "key-2")];

    let reply = gateway.place_with(&keys, &order().to_string());

    assert_eq!(
        reply.problem(),
        (400, "the header Idempotency-Key is given twice")
    );
}

#[test]
fn an_idempotency_key_that_breaks_the_rule_is_refused_by_name() {
    let gateway = Gateway::start();
    for key in ["", "two words", "a\tb", &"k".repeat(65)] {
        let reply = gateway.place_with(&[("idempotency-key", key)], &order().to_string());

        let detail = "Idempotency-Key must have 1 to 64 visible ASCII characters";
        assert_eq!(reply.problem(), (400, detail), "{key}");
    }
    assert_eq!(gateway.queue.counts(), Some((0, 0)));
}

#[test]
fn every_field_may_be_a_string_or_a_number() {
    let gateway = Gateway::start();
    for body in [
        r#"{"user_id":20,"number_of_items":99,"total_amount":250.5}"#,
        r#"{"user_id":"20","number_of_items":"99","total_amount":"180"}"#,
        r#"{"user_id":"x","number_of_items":2147483647,"total_amount":9999999999.99}"#,
        r#"{"user_id":"x","number_of_items":1,"total_amount":0}"#,
    ] {
        assert_eq!(gateway.place(body).status, 200, "{body}");

        let message = gateway.queue.take().expect(body);
        assert_eq!(String::from_utf8_lossy(&message.body), body);
    }
}

#[test]
fn an_order_that_breaks_a_rule_is_refused_by_the_name_of_the_field() {
    let gateway = Gateway::start();
    let user_id = "user_id must have 1 to 50 characters, none of them NUL";
    let number_of_items = "number_of_items must be a whole number from 1 to 2147483647";
    let total_amount = "total_amount must be a number from 0 to 9999999999.99 in plain digits, \
                        with at most two after the point";
    for (field, value, detail) in [
        ("user_id", json!(""), user_id),
        ("user_id", json!("ü".repeat(51)), user_id),
        ("user_id", json!("a\0b"), user_id),
        ("user_id", json!(null), "user_id is required"),
        (
            "user_id",
            json!(["20"]),
            "user_id must be a string or a number",
        ),
        ("number_of_items", json!(0), number_of_items),
        ("number_of_items", json!(-1), number_of_items),
        ("number_of_items", json!(1.5), number_of_items),
        ("number_of_items", json!("2147483648"), number_of_items),
        ("number_of_items", json!("many"), number_of_items),
        (
            "number_of_items",
            json!(null),
            "number_of_items is required",
        ),
        ("total_amount", json!(-1), total_amount),
        ("total_amount", json!("29.999"), total_amount),
        ("total_amount", json!("1e400"), total_amount),
        ("total_amount", json!("NaN"), total_amount),
        ("total_amount", json!("abc"), total_amount),
        ("total_amount", json!("10000000000"), total_amount),
        ("total_amount", json!(null), "total_amount is required"),
        (
            "total_amount",
            json!(true),
            "total_amount must be a string or a number",
        ),
    ] {
        let reply = gateway.place(&order_with(field, value));

        assert_eq!(reply.problem(), (400, detail));
    }
    assert_eq!(gateway.queue.counts(), Some((0, 0)));
}

#[test]
fn a_body_that_is_no_json_object_is_refused() {
    let gateway = Gateway::start();
    for body in [
        "",
        "{",
        "[]",
        "null",
        "user_id=20",
        "[\"20\",\"99\",\"250.00\"]",
    ] {
        let reply = gateway.place(body);

        let (status, detail) = reply.problem();
        assert_eq!(status, 400, "{body}");
        assert!(detail.starts_with("the body is not"), "{body}: {detail}");
    }
    assert_eq!(gateway.queue.counts(), Some((0, 0)));
}

#[test]
fn a_body_that_is_not_said_to_be_json_is_an_unsupported_media_type() {
    let gateway = Gateway::start();
    let body = order().to_string();
    for headers in [&[][..], &[("content-type", "text/plain")]] {
        let reply = gateway
            .client()
            .send("POST", "/api/billing", headers, Some(&body));

        assert_eq!(reply.status, 415, "{headers:?}");
    }
    let headers = [("content-type", "Application/JSON; charset=utf-8")];
    let reply = gateway
        .client()
        .send("POST", "/api/billing", &headers, Some(&body));
    assert_eq!(reply.status, 200);
}

#[test]
fn a_body_without_a_length_is_asked_for_it_and_one_over_the_limit_is_refused() {
    let gateway = Gateway::start();
    let bare = "POST /api/billing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
                Content-Type: application/json\r\n\r\n";
    let limit = 16 * 1024;
    let padded = |bytes| {
        let empty = order_with("note", json!("")).len();
        order_with("note", json!("x".repeat(bytes - empty)))
    };

    let without = RawReply::to(gateway.client().address(), bare.as_bytes());
    let over = gateway.place(&padded(limit + 1));
    let at = gateway.place(&padded(limit));

    assert_eq!(without.status_line, "HTTP/1.1 411 Length Required");
    assert_eq!(over.problem(), (413, "a body may have at most 16384 bytes"));
    assert_eq!(at.status, 200);
    let message = gateway.queue.take().expect("a message");
    let fields = r#"{"user_id":"20","number_of_items":"99","total_amount":"250.00"}"#;
    assert_eq!(message.body, fields.as_bytes());
}

#[test]
fn a_chunked_body_is_a_body() {
    let gateway = Gateway::start();
    let order = order().to_string();
    let request = format!(
        "POST /api/billing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{order}\r\n0\r\n\r\n",
        order.len()
    );

    let reply = RawReply::to(gateway.client().address(), request.as_bytes());

    assert_eq!(reply.status(), 200);
    let message: Value =
        serde_json::from_slice(&gateway.queue.take().expect("a message").body).expect("JSON");
    assert_eq!(message.to_string(), order);
}

#[test]
fn options_and_other_methods_are_told_what_orders_allow() {
    let gateway = Gateway::start();
    for path in ["/api/billing", "/api/billing/"] {
        let options = gateway.client().send("OPTIONS", path, &[], None);
        assert_eq!(
            (options.status, options.header("allow")),
            (204, "POST, OPTIONS")
        );

        for method in ["GET", "PUT", "DELETE", "PATCH"] {
            let reply = gateway.client().send(method, path, &[], None);

            assert_eq!(
                (reply.status, reply.header("allow")),
                (405, "POST, OPTIONS")
            );
            assert_eq!(reply.problem().1, "this resource allows POST, OPTIONS");
        }
        assert_eq!(gateway.client().send("HEAD", path, &[], None).status, 405);
    }
    assert_eq!(gateway.client().get("/api/billing/1").status, 404);
}

#[test]
fn a_path_with_one_trailing_slash_takes_orders_too() {
    let gateway = Gateway::start();

    let reply = gateway.client().post("/api/billing/", &order());

    assert_eq!(ids(&gateway.queue.take_all()), [message_id(&reply)]);
}

#[test]
fn a_stranger_who_declares_the_queue_durable_and_plain_agrees() {
    let gateway = Gateway::start();
    let declare = |durable| {
        let options = QueueDeclareOptions {
            durable,
            ..QueueDeclareOptions::default()
        };
        gateway
            .queue
            .on_channel(|channel| channel.queue_declare(gateway.queue.name(), options).is_ok())
    };

    assert_eq!((declare(true), declare(false)), (true, false));
}

#[test]
fn orders_of_many_clients_at_once_are_all_confirmed_and_all_on_the_queue() {
    const CLIENTS: usize = 8;
    const ORDERS: usize = 50;
    let gateway = Gateway::start();
    let clients = [(); CLIENTS].map(|()| gateway.another_client());

    let answered: Vec<_> = thread::scope(|scope| {
        let place_all = |client: Client| {
            let one = |number| place(&client, &[], &order_with("number_of_items", json!(number)));
            (1..=ORDERS)
                .map(|number| message_id(&one(number)))
                .collect::<Vec<_>>()
        };
        let threads = clients.map(|client| scope.spawn(move || place_all(client)));
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a client"))
            .collect()
    });

    let messages = gateway.queue.take_all();
    assert_eq!(messages.len(), CLIENTS * ORDERS);
    let unique = |ids: Vec<String>| ids.into_iter().collect::<HashSet<_>>();
    assert_eq!(unique(ids(&messages)), unique(answered));
    let metrics = gateway.client().get("/metrics").text;
    assert!(
        metrics.contains("\norders_confirmed_total 400\n"),
        "{metrics}"
    );
}

#[test]
fn without_a_broker_orders_are_refused_at_once_and_pass_again_when_it_is_back() {
    let queue = TestQueue::create();
    let relay = queue.relay_down();
    let gateway = Gateway::behind(&relay, queue);
    let started = Instant::now();

    let reply = gateway.place(&order().to_string());

    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert_eq!(
        reply.problem(),
        (503, "the order was not placed; try again")
    );
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(gateway.client().get("/health").status, 200);
    let ready = gateway.client().get("/ready");
    assert_eq!(
        ready.problem(),
        (503, "not ready: rabbitmq cannot be reached")
    );
    let states = json!({ "inventory": "up", "rabbitmq": "down" });
    assert_eq!(ready.json["dependencies"], states);
    // The gateway answers a client's mistake even without a connection to the broker.
    assert_eq!(gateway.place("{}").problem(), (400, "user_id is required"));
    relay.restore();
    gateway.wait_until_ready();
    let reply = gateway.place(&order().to_string());
    assert_eq!(ids(&gateway.queue.take_all()), [message_id(&reply)]);
    let metrics = gateway.client().get("/metrics").text;
    for line in [
        "orders_refused_total{cause=\"disconnected\"} 1",
        "orders_refused_total{cause=\"blocked\"} 0",
        "orders_published_total 1",
        "orders_confirmed_total 1",
        "rabbitmq_connected 1",
    ] {
        assert!(
            metrics.lines().any(|present| present == line),
            "{line} in {metrics}"
        );
    }
}

#[test]
fn the_metrics_show_what_waits_and_who_takes_it_for_as_long_as_that_is_known() {
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    let gateway = Gateway::behind(&relay, queue);
    gateway.wait_until_ready();
    let shows = |name: &str, value: &str| {
        let metrics = gateway.client().get("/metrics").text;
        let series = format!("{name}{{queue=\"{}\"}}{value}", gateway.queue.name());
        metrics.contains(&series)
    };

    for _ in 0..2 {
        assert_eq!(gateway.place(&order().to_string()).status, 200);
    }

    eventually("two orders wait", || shows("queue_messages_ready", " 2\n"));
    assert!(shows("queue_consumers", " 0\n"));
    relay.cut();
    eventually("that is not known any more", || {
        !shows("queue_messages_ready", "") && !shows("queue_consumers", "")
    });
}

#[test]
fn a_broker_that_is_cut_under_load_costs_no_confirmed_order_and_leaves_no_client_waiting() {
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    let gateway = Gateway::behind(&relay, queue);
    gateway.wait_until_ready();
    let clients = [(); 4].map(|()| gateway.another_client());
    let (confirmed, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let enough = AtomicBool::new(false);
    let load = |client: Client| {
        let mut placed = Vec::new();
        while !enough.load(Ordering::Relaxed) {
            let started = Instant::now();
            let reply = place(&client, &[], &order().to_string());
            assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
            if reply.status == 200 {
                placed.push(message_id(&reply));
                confirmed.fetch_add(1, Ordering::Relaxed);
            } else {
                assert_eq!((reply.status, reply.header("retry-after")), (503, "1"));
                refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        placed
    };
    let more = |count: &AtomicUsize| {
        let before = count.load(Ordering::Relaxed);
        eventually("the answers change", || {
            count.load(Ordering::Relaxed) >= before + 20
        });
    };

    let placed: Vec<_> = thread::scope(|scope| {
        let threads = clients.map(|client| scope.spawn(|| load(client)));
        for _ in 0..3 {
            more(&confirmed);
            relay.cut();
            more(&refused);
            relay.restore();
        }
        more(&confirmed);
        enough.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a client"))
            .collect()
    });

    let on_queue: HashSet<_> = ids(&gateway.queue.take_all()).into_iter().collect();
    let lost: Vec<_> = placed.iter().filter(|id| !on_queue.contains(*id)).collect();
    assert_eq!(lost, [""; 0]);
}

#[test]
fn an_order_is_never_confirmed_into_a_queue_that_was_deleted() {
    let gateway = Gateway::start();
    gateway.queue.delete();

    let reply = gateway.place(&order().to_string());

    assert_eq!(
        reply.problem(),
        (503, "the order was not placed; try again")
    );
    assert_eq!(reply.header("retry-after"), "1");
    let reply = gateway.place(&order().to_string());
    assert_eq!(ids(&gateway.queue.take_all()), [message_id(&reply)]);
    assert_eq!(gateway.client().get("/ready").status, 200);
    assert_eq!(
        metric(&gateway, "orders_refused_total{cause=\"no_queue\"}"),
        1
    );
    assert_eq!(
        metric(&gateway, "orders_refused_total{cause=\"disconnected\"}"),
        0
    );
}

#[test]
fn a_broker_that_hangs_leaves_no_client_waiting_and_a_repeat_is_safe_with_the_key() {
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    let gateway = Gateway::behind(&relay, queue);
    gateway.wait_until_ready();
    relay.freeze();
    let place = || gateway.place_with(&[("idempotency-key", "key-7")], &order().to_string());
    let started = Instant::now();

    let reply = place();

    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    let detail = "whether the order was placed is not known; a repeat is safe with the \
                  Idempotency-Key of this request, and without one may order twice";
    assert_eq!(reply.problem(), (503, detail));
    assert_eq!(reply.header("retry-after"), "1");
    relay.restore();
    eventually("orders pass", || place().status == 200);
    let on_queue: HashSet<_> = ids(&gateway.queue.take_all()).into_iter().collect();
    assert_eq!(on_queue, HashSet::from(["key-7".to_owned()]));
}

/// A queue that is full with one order.
fn declare_full_with_one(queue: &TestQueue) {
    let overflow = AmqpValue::LongString("reject-publish".to_owned());
    queue.declare_with(&[
        ("x-max-length", AmqpValue::LongLongInt(1)),
        ("x-overflow", overflow),
    ]);
}

fn metric(gateway: &Gateway, series: &str) -> u64 {
    let metrics = gateway.client().get("/metrics").text;
    let value = metrics.lines().find_map(|line| line.strip_prefix(series));
    let value = value.unwrap_or_else(|| panic!("{series} in {metrics}"));
    value.trim().parse().expect("a number")
}

#[test]
fn an_order_that_the_broker_refuses_costs_no_other_and_no_link() {
    let queue = TestQueue::create();
    declare_full_with_one(&queue);
    let gateway = Gateway::publishing_to(queue.config(), queue);
    gateway.wait_until_ready();
    assert_eq!(gateway.place(&order().to_string()).status, 200);

    for _ in 0..14 {
        let reply = gateway.place(&order().to_string());

        let detail = "the order was not placed; try again";
        assert_eq!(reply.problem(), (503, detail));
    }

    let ready = gateway.client().get("/ready");
    assert_eq!(
        (ready.status, &ready.json["dependencies"]["rabbitmq"]),
        (200, &json!("up"))
    );
    assert_eq!(metric(&gateway, "orders_refused_total{cause=\"nack\"}"), 14);
    assert_eq!(
        metric(&gateway, "orders_refused_total{cause=\"disconnected\"}"),
        0
    );
    assert!(gateway.queue.take().is_some());
    assert_eq!(gateway.place(&order().to_string()).status, 200);
}

#[test]
fn a_broker_that_takes_no_order_for_long_is_not_ready_and_takes_them_when_it_can() {
    let queue = TestQueue::create();
    declare_full_with_one(&queue);
    let gateway = Gateway::publishing_to(queue.config(), queue);
    gateway.wait_until_ready();
    assert_eq!(gateway.place(&order().to_string()).status, 200);

    eventually("it is not ready", || {
        assert_eq!(gateway.place(&order().to_string()).status, 503);
        gateway.client().get("/ready").status == 503
    });

    let ready = gateway.client().get("/ready");
    let detail = "not ready: rabbitmq refuses what it is sent";
    assert_eq!(ready.problem(), (503, detail));
    assert_eq!(ready.json["dependencies"]["rabbitmq"], "refusing");
    let status = gateway.client().get("/api/status").json;
    assert_eq!(status["rabbitmq"]["state"], "refusing");
    gateway.queue.delete();
    // The gateway makes the queue again when it notices that it does not exist.
    eventually("orders pass", || {
        gateway.place(&order().to_string()).status == 200
    });
    assert_eq!(gateway.client().get("/ready").status, 200);
    assert_eq!(
        metric(&gateway, "orders_refused_total{cause=\"disconnected\"}"),
        0
    );
}

/// How often the gateway has requested confirms.
static CONFIRM_SELECTS: AtomicUsize = AtomicUsize::new(0);

fn count_confirm_selects(bytes: &mut [u8]) {
    let asked = bytes.windows(5).filter(|bytes| *bytes == b"\0\x55\0\x0a\0");
    CONFIRM_SELECTS.fetch_add(asked.count(), Ordering::Relaxed);
}

#[test]
fn a_channel_on_which_every_order_is_refused_for_long_is_replaced_on_the_link_that_stays() {
    let queue = TestQueue::create();
    declare_full_with_one(&queue);
    let relay = queue.relay_changing(count_confirm_selects);
    let gateway = Gateway::behind(&relay, queue);
    gateway.wait_until_ready();
    assert_eq!(gateway.place(&order().to_string()).status, 200);
    assert_eq!(CONFIRM_SELECTS.load(Ordering::Relaxed), 1);

    eventually("another channel is tried", || {
        assert_eq!(gateway.place(&order().to_string()).status, 503);
        CONFIRM_SELECTS.load(Ordering::Relaxed) == 2
    });

    assert_eq!(
        metric(&gateway, "orders_refused_total{cause=\"disconnected\"}"),
        0
    );
    assert!(gateway.queue.take().is_some());
    assert_eq!(gateway.place(&order().to_string()).status, 200);
}

#[test]
fn every_order_is_answered_in_its_time_also_one_that_could_not_be_sent_yet() {
    // There are more clients than unconfirmed messages may be.
    const CLIENTS: usize = 520;
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    let gateway = Gateway::behind(&relay, queue);
    gateway.wait_until_ready();
    let clients: Vec<_> = (0..CLIENTS).map(|_| gateway.another_client()).collect();
    let body = order().to_string();
    relay.freeze();

    let answers: Vec<_> = thread::scope(|scope| {
        let place_one = |client: Client| {
            let started = Instant::now();
            let reply = place(&client, &[], &body);
            (reply.status, started.elapsed())
        };
        let threads = clients.into_iter();
        let threads: Vec<_> = threads
            .map(|client| scope.spawn(move || place_one(client)))
            .collect();
        let answers = threads.into_iter();
        answers
            .map(|thread| thread.join().expect("a client"))
            .collect()
    });

    for (status, took) in answers {
        assert_eq!(status, 503);
        assert!(took < IN_TIME, "{took:?}");
    }
    assert!(metric(&gateway, "orders_refused_total{cause=\"timeout\"}") > 0);
    assert!(metric(&gateway, "orders_unknown_total") > 0);
}

#[test]
fn an_alarm_of_the_broker_is_told_and_orders_are_refused_until_it_is_over() {
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    let gateway = Gateway::behind(&relay, queue);
    gateway.wait_until_ready();

    relay.say_to_clients(BLOCKED);

    let ready = || gateway.client().get("/ready");
    eventually("the alarm is told", || ready().status == 503);
    let detail = "not ready: rabbitmq is blocked by an alarm";
    assert_eq!(ready().problem(), (503, detail));
    assert_eq!(ready().json["dependencies"]["rabbitmq"], "blocked");
    assert_eq!(gateway.place(&order().to_string()).status, 503);
    assert_eq!(
        metric(&gateway, "orders_refused_total{cause=\"blocked\"}"),
        1
    );
    let status = gateway.client().get("/api/status").json;
    assert_eq!(status["rabbitmq"]["state"], "blocked");
    relay.say_to_clients(UNBLOCKED);
    gateway.wait_until_ready();
    assert_eq!(gateway.place(&order().to_string()).status, 200);
}

#[test]
fn an_alarm_ends_no_link_however_long_an_order_waits_behind_it() {
    let queue = TestQueue::create();
    let relay = queue.relay_up();
    let gateway = Gateway::behind(&relay, queue);
    gateway.wait_until_ready();
    // The broker stops reading, and its notification arrives after the order was published.
    relay.freeze();
    let started = Instant::now();
    thread::scope(|scope| {
        let reply = scope.spawn(|| gateway.place(&order().to_string()));
        eventually("it is on its way", || relay.holds_something());
        relay.say_to_clients(BLOCKED);
        assert_eq!(reply.join().expect("a client").status, 503);
    });

    while started.elapsed() < UNCONFIRMED_LIMIT {
        let ready = gateway.client().get("/ready");
        assert_eq!(ready.json["dependencies"]["rabbitmq"], "blocked");
        thread::yield_now();
    }

    relay.say_to_clients(UNBLOCKED);
    relay.restore();
    gateway.wait_until_ready();
    assert_eq!(gateway.place(&order().to_string()).status, 200);
    assert_eq!(gateway.queue.take_all().len(), 2);
    assert_eq!(
        metric(&gateway, "orders_refused_total{cause=\"disconnected\"}"),
        0
    );
}

#[test]
fn a_key_is_refused_with_another_order_and_taken_with_an_equal_one() {
    let gateway = Gateway::start();
    let place = |key: &str, body: &str| {
        let reply = gateway.place_with(&[("idempotency-key", key)], body);
        let detail = reply.problem().1.to_owned();
        (reply.status, detail)
    };
    let taken = (200, String::new());

    let first = place(
        "key-1",
        r#"{"user_id":"20","number_of_items":1,"total_amount":"250.00"}"#,
    );
    // The fields have another order, are strings, with other digits, and the key is in quotes; the parsed order is equal.
    let equal = place(
        "\"key-1\"",
        r#"{"total_amount":250, "number_of_items":"1", "user_id":20, "note":1}"#,
    );
    let other = place(
        "key-1",
        r#"{"user_id":"20","number_of_items":2,"total_amount":"250.00"}"#,
    );

    assert_eq!((first, equal), (taken.clone(), taken));
    let detail = "this Idempotency-Key was used for another order; send that one again, or this one \
                  with a key of its own";
    assert_eq!(other, (422, detail.to_owned()));
    assert_eq!(ids(&gateway.queue.take_all()), ["key-1", "key-1"]);
}

#[test]
fn a_key_whose_order_was_refused_may_stand_for_another() {
    let queue = TestQueue::create();
    declare_full_with_one(&queue);
    let gateway = Gateway::publishing_to(queue.config(), queue);
    gateway.wait_until_ready();
    let place = |items: i32| {
        let body = order_with("number_of_items", json!(items));
        gateway
            .place_with(&[("idempotency-key", "key-1")], &body)
            .status
    };
    assert_eq!(gateway.place(&order().to_string()).status, 200);
    assert_eq!(place(1), 503);
    assert!(gateway.queue.take().is_some());

    let statuses = [place(2), place(1)];

    assert_eq!(statuses, [200, 422]);
}

#[test]
fn where_callers_are_known_a_key_belongs_to_its_caller() {
    let file = std::env::temp_dir().join(format!("crud-master-keys-{}", uuid::Uuid::new_v4()));
    std::fs::write(&file, KEYS).expect("a file for keys");
    let vars = Vars::from_pairs([("API_KEYS_FILE", file.display().to_string())]);
    let access = AccessConfig::from_vars(&vars).expect("well-formed keys");
    std::fs::remove_file(&file).expect("it is still there");
    let queue = TestQueue::create();
    let gateway = Gateway::with_access(queue.config(), queue, access);
    gateway.wait_until_ready();
    let place = |caller: &str, items: i32| {
        let bearer = format!("Bearer {caller}-key");
        let headers = [
            ("authorization", bearer.as_str()),
            ("idempotency-key", "key-1"),
        ];
        let reply = gateway.place_with(&headers, &order_with("number_of_items", json!(items)));
        (reply.status, reply.json["message_id"].clone())
    };

    let answers = [place("writer", 1), place("admin", 2), place("writer", 2)];

    let expected = [
        (200, json!("writer key-1")),
        (200, json!("admin key-1")),
        (422, Value::Null),
    ];
    assert_eq!(answers, expected);
    let on_queue = ids(&gateway.queue.take_all());
    assert_eq!(on_queue, ["writer key-1", "admin key-1"]);
}

#[test]
fn a_user_who_may_only_publish_places_orders_on_a_queue_that_is_there() {
    let queue = TestQueue::create();
    let config = queue.publisher();
    let gateway = Gateway::publishing_to(config, queue);
    // A user without the right to make the queue waits until another user makes it.
    assert_eq!(gateway.place(&order().to_string()).status, 503);
    gateway.queue.declare_with(&[]);

    gateway.wait_until_ready();

    let reply = gateway.place(&order().to_string());
    assert_eq!(ids(&gateway.queue.take_all()), [message_id(&reply)]);
}
