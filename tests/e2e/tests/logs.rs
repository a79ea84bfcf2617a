//! The lines of the logs about one order, from the gateway to the consumer.

use std::path::Path;

use amiquip::{AmqpProperties, AmqpValue};
use e2e::{programs, wait_until_ready};
use serde_json::{Value, json};
use testkit::{Client, Program, TestDatabase, TestQueue, eventually};

/// The two programs that handle an order.
struct OrderPrograms {
    gateway: Program,
    consumer: Program,
    client: Client,
}

impl OrderPrograms {
    fn start(programs: &Path, database: &TestDatabase, queue: &TestQueue, format: &str) -> Self {
        let mut vars = database.vars("BILLING_DB_NAME");
        vars.extend(queue.vars());
        let own = [
            ("LISTEN_ADDRESS", "127.0.0.1"),
            ("API_GATEWAY_PORT", "0"),
            ("BILLING_CONSUMER_PORT", "0"),
            // The test requests no movies and no recorded orders.
            ("INVENTORY_VM_IP", "127.0.0.1"),
            ("INVENTORY_API_PORT", "1"),
            ("BILLING_VM_IP", "127.0.0.1"),
            ("BILLING_API_PORT", "1"),
            ("LOG_FORMAT", format),
        ];
        vars.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let start = |name| {
            let path = programs.join(name);
            Program::start(path.to_str().expect("UTF-8"), vars.clone())
        };
        let (gateway, consumer) = (start("api-gateway"), start("billing-consumer"));
        let client = Client::new(gateway.address());
        wait_until_ready(&Client::new(consumer.address()));
        eventually("there is a connection to the broker", || {
            client.get("/ready").json["dependencies"]["rabbitmq"] == "up"
        });
        Self {
            gateway,
            consumer,
            client,
        }
    }

    /// Places an order; returns its message id.
    fn place(&self, headers: &[(&str, &str)]) -> String {
        let order = json!({ "user_id": "20", "number_of_items": 1, "total_amount": "1.00" });
        let headers = [headers, &[("content-type", "application/json")]].concat();
        let reply = self
            .client
            .send("POST", "/api/billing", &headers, Some(&order.to_string()));
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json["message_id"].as_str().expect("an id").to_owned()
    }

    /// Waits for this number of lines of both programs with the text, and returns them, the gateway's first.
    fn lines_with(&self, text: &str, count: usize) -> Vec<String> {
        let lines = || {
            let logs = self.gateway.log() + &self.consumer.log();
            let lines = logs.lines().filter(|line| line.contains(text));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        eventually("the lines are there", || lines().len() >= count);
        lines()
    }
}

fn assert_has(line: &str, pairs: &[&str]) {
    for pair in pairs {
        assert!(line.contains(&format!(" {pair}")), "{pair}: {line}");
    }
}

#[test]
fn one_search_finds_the_lines_of_an_order_by_its_message_id_or_by_its_request_id() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let pair = OrderPrograms::start(&programs(), &database, &queue, "logfmt");

    let message_id = pair.place(&[("x-request-id", "trace-7")]);

    let by_message = pair.lines_with(&format!(" message_id={message_id} "), 2);
    let by_request = pair.lines_with(" request_id=trace-7 ", 2);
    assert_eq!((by_message.len(), &by_message), (2, &by_request));
    let placed = [
        "target=access",
        "method=POST",
        "route=/api/billing",
        "status=200",
        "ms=",
    ];
    assert_has(&by_message[0], &placed);
    let recorded = [
        "target=order",
        "msg=\"order recorded\"",
        "order_id=1 ",
        "age_seconds=",
        "ms=",
    ];
    assert_has(&by_message[1], &recorded);
}

#[test]
fn lines_of_json_have_the_fields_of_an_order() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let pair = OrderPrograms::start(&programs(), &database, &queue, "json");

    let message_id = pair.place(&[("x-request-id", "trace-8")]);

    let lines = pair.lines_with(&message_id, 2);
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let told = |line: &Value| {
        let of = |key: &str| line[key].clone();
        [
            "program",
            "msg",
            "request_id",
            "message_id",
            "status",
            "order_id",
        ]
        .map(of)
    };
    let expected = [
        json!(["api-gateway", "request", "trace-8", message_id, 200, null]),
        json!([
            "billing-consumer",
            "order recorded",
            "trace-8",
            message_id,
            null,
            1
        ]),
    ];
    assert_eq!(json!([told(&lines[0]), told(&lines[1])]), json!(expected));
    assert!(lines[0]["ms"].is_f64() && lines[1]["age_seconds"].is_u64());
}

#[test]
fn an_order_sent_twice_is_logged_as_recorded_once() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let pair = OrderPrograms::start(&programs(), &database, &queue, "logfmt");

    let first = pair.place(&[("idempotency-key", "key-7")]);
    let _ = pair.lines_with("msg=\"order recorded\"", 1);
    let second = pair.place(&[("idempotency-key", "key-7")]);

    assert_eq!((first.as_str(), second.as_str()), ("key-7", "key-7"));
    let lines = pair.lines_with(" message_id=key-7 ", 4);
    assert_has(&lines[2], &["msg=\"order recorded\"", "order_id=1 "]);
    assert_has(&lines[3], &["msg=\"order already recorded\""]);
    assert!(!lines[3].contains("order_id="), "{}", lines[3]);
}

#[test]
fn a_message_of_another_program_is_logged_without_forging_a_line() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let pair = OrderPrograms::start(&programs(), &database, &queue, "logfmt");
    let forged = "m-1\nlevel=error msg=\"forged\" x=\u{202e}";
    let headers = [(
        "x-request-id".to_owned(),
        AmqpValue::LongString(forged.to_owned()),
    )];
    let properties = AmqpProperties::default()
        .with_message_id(forged.to_owned())
        .with_headers(headers.into_iter().collect());

    queue.publish(b"no order", properties.clone());
    let order = br#"{"user_id":20,"number_of_items":"99","total_amount":250}"#;
    queue.publish(order, properties);

    let quoted = r#"message_id="m-1\nlevel=error msg=\"forged\" x=\u202e""#;
    let mut lines = pair.lines_with(quoted, 2);
    lines.sort();
    assert!(
        lines
            .iter()
            .all(|line| line.starts_with("time=") && !line.contains("request_id="))
    );
    let all = lines.join("\n");
    assert_has(
        &all,
        &[
            "msg=\"order recorded\"",
            "msg=\"message put aside as a dead letter\"",
            "reason=body",
        ],
    );
    assert!(!pair.consumer.log().contains("level=error program="));
}
