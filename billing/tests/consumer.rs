//! Orders from the queue to the table, with a real RabbitMQ, a real PostgreSQL, and relays in front of both for outages.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

use amiquip::{AmqpProperties, AmqpValue, Confirm, FieldTable, Publish, QueueDeclareOptions};
use common::amqp::{AmqpConnection, QueueConfig, QueueType};
use common::db::DatabaseConfig;
use common::http::HttpConfig;
use postgres::{Client, Transaction};
use serde_json::{Value, json};
use testkit::{Relay, Service, TestDatabase, TestQueue, eventually, eventually_some};

mod dead;

use dead::{Dead, count_dead, dead_letters};

/// A message on its way: its body and its properties.
type Published = (Vec<u8>, AmqpProperties);

/// The fields are dropped in this order, so that the consumer ends before its servers.
struct Billing {
    consumer: Service<billing::BillingConsumer>,
    database: TestDatabase,
    queue: TestQueue,
}

impl Billing {
    fn start() -> Self {
        Self::start_with(TestQueue::create())
    }

    /// Starts the consumer on a queue that may have messages already.
    fn start_with(queue: TestQueue) -> Self {
        let database = TestDatabase::create();
        let consumer = start_consumer(database.config(), queue.consumer());
        let billing = Self {
            consumer,
            database,
            queue,
        };
        billing.await_ready();
        billing
    }

    /// Starts the consumer behind relays to PostgreSQL and to RabbitMQ.
    fn behind_relays() -> (Self, Relay, Relay) {
        let (database, queue) = (TestDatabase::create(), TestQueue::create());
        let (database_config, queue_config) = (database.config(), queue.config());
        let postgresql = database.relay_up();
        let rabbitmq = queue.relay_up();
        let consumer = start_consumer(
            DatabaseConfig {
                hosts: postgresql.address().into(),
                ..database_config
            },
            QueueConfig {
                brokers: rabbitmq.address().into(),
                ..queue_config
            },
        );
        let billing = Self {
            consumer,
            database,
            queue,
        };
        billing.await_ready();
        (billing, postgresql, rabbitmq)
    }

    fn client(&self) -> &testkit::Client {
        &self.consumer.client
    }

    fn await_ready(&self) {
        eventually("the consumer is ready", || {
            self.client().get("/ready").status == 200
        });
    }

    /// The states of the dependencies in the answer of `/ready`.
    fn dependencies(&self) -> (u16, Value) {
        let ready = self.client().get("/ready");
        (ready.status, ready.json["dependencies"].clone())
    }

    fn await_dependencies(&self, expected: &(u16, Value)) {
        eventually(&format!("/ready says {expected:?}"), || {
            self.dependencies() == *expected
        });
    }

    fn publish(&self, user_id: &str) {
        self.queue.publish(&order(user_id), anonymous());
    }

    fn count(&self) -> u32 {
        count(&self.database)
    }

    fn await_count(&self, expected: u32) {
        eventually(&format!("{expected} orders are recorded"), || {
            self.count() >= expected
        });
    }

    /// The users of the recorded orders, in the order of recording.
    fn users(&self) -> Vec<String> {
        users(&self.database)
    }

    fn await_users(&self, expected: &[&str]) {
        eventually(&format!("orders of {expected:?} are recorded"), || {
            self.users() == expected
        });
    }

    /// The value of a metric in `/metrics`, of all its labels together.
    fn counter(&self, name: &str) -> u64 {
        let metrics = self.client().get("/metrics").text;
        let values: Vec<u64> = metrics
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix([' ', '{']))
            .filter_map(|rest| rest.split(' ').next_back()?.parse().ok())
            .collect();
        assert!(!values.is_empty(), "{name}");
        values.iter().sum()
    }

    /// Waits until there are `count` dead letters, and returns them.
    fn await_dead(&self, count: usize) -> Vec<Dead> {
        eventually_some(&format!("there are {count} dead letters"), || {
            Some(dead_letters(&self.database)).filter(|dead| dead.len() >= count)
        })
    }

    fn await_one_dead(&self) -> Dead {
        self.await_dead(1).remove(0)
    }

    fn count_dead(&self) -> i64 {
        count_dead(&self.database)
    }

    /// Shuts the consumer down; returns the database and the queue.
    fn end(self) -> (TestDatabase, TestQueue) {
        drop(self.consumer);
        (self.database, self.queue)
    }
}

fn start_consumer(
    database: DatabaseConfig,
    queue: QueueConfig,
) -> Service<billing::BillingConsumer> {
    start_consumer_with(database, queue, 1 << 30)
}

fn start_consumer_with(
    database: DatabaseConfig,
    queue: QueueConfig,
    dead_letters_bytes_max: i64,
) -> Service<billing::BillingConsumer> {
    let config = billing::ConsumerConfig {
        http: HttpConfig::on_loopback(1),
        database,
        queue,
        dead_letters_bytes_max,
    };
    Service::start(
        |shutdown| billing::start_consumer(&config, shutdown),
        billing::BillingConsumer::address,
    )
}

fn count(database: &TestDatabase) -> u32 {
    let count = database.count("SELECT count(*) FROM orders");
    u32::try_from(count).expect("not that many")
}

fn users(database: &TestDatabase) -> Vec<String> {
    let rows = database.query("SELECT user_id FROM orders ORDER BY id", &[]);
    rows.iter().map(|row| row.get(0)).collect()
}

fn message_ids(database: &TestDatabase) -> Vec<Option<String>> {
    let rows = database.query("SELECT message_id FROM orders ORDER BY message_id", &[]);
    rows.iter().map(|row| row.get(0)).collect()
}

fn order(user_id: &str) -> Vec<u8> {
    json!({ "user_id": user_id, "number_of_items": 1, "total_amount": "1.00" })
        .to_string()
        .into_bytes()
}

fn anonymous() -> AmqpProperties {
    AmqpProperties::default()
}

fn with_id(id: &str) -> AmqpProperties {
    AmqpProperties::default().with_message_id(id.to_owned())
}

/// Orders with ids of their own, of users of the same name.
fn numbered(numbers: Range<u32>) -> Vec<Published> {
    numbers
        .map(|number| {
            let id = format!("m-{number:06}");
            (order(&id), with_id(&id))
        })
        .collect()
}

/// Locks the table of orders until the transaction ends.
fn hold_table(client: &mut Client) -> Transaction<'_> {
    let mut transaction = client.transaction().expect("a transaction");
    transaction
        .batch_execute("LOCK TABLE orders IN SHARE MODE")
        .expect("a lock");
    transaction
}

/// Waits until the consumer has unacknowledged messages that it cannot record.
fn await_held_batch(database: &TestDatabase) {
    eventually("a batch waits for the table", || {
        let waiting = "SELECT count(*) FROM pg_locks \
                       WHERE relation = 'orders'::regclass AND NOT granted";
        database.count(waiting) == 1
    });
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock")
        .as_secs()
}

#[test]
fn an_order_is_recorded_with_the_id_of_its_message() {
    let billing = Billing::start();
    let body = br#"{"user_id":"20","number_of_items":"99","total_amount":"250"}"#;

    billing.queue.publish(body, with_id("m-1"));

    billing.await_count(1);
    let sql = "SELECT id, message_id, user_id, number_of_items, total_amount::text, \
                      now() - created_at < interval '5 minutes' FROM orders";
    let rows = billing.database.query(sql, &[]);
    let row = &rows[0];
    assert_eq!(
        (
            row.get::<_, i64>(0),
            row.get::<_, &str>(1),
            row.get::<_, &str>(2),
            row.get::<_, i32>(3),
            row.get::<_, &str>(4),
            row.get::<_, bool>(5),
        ),
        (1, "m-1", "20", 99, "250.00", true)
    );
}

#[test]
fn strings_and_numbers_are_recorded_alike_and_amounts_exactly() {
    let billing = Billing::start();
    let fifty = "🎬".repeat(50);
    let cases = [
        (json!(20).to_string(), "99", "250", ("20", 99, "250.00")),
        (
            json!("20").to_string(),
            "\"99\"",
            "\"250.00\"",
            ("20", 99, "250.00"),
        ),
        (
            json!(fifty).to_string(),
            "2147483647",
            "9999999999.99",
            (fifty.as_str(), i32::MAX, "9999999999.99"),
        ),
        (
            json!("'; --").to_string(),
            "1",
            "\"9999999999.99\"",
            ("'; --", 1, "9999999999.99"),
        ),
        (
            json!("\\{}\",").to_string(),
            "1",
            "0",
            ("\\{}\",", 1, "0.00"),
        ),
        (json!(" ").to_string(), "1", "\"0\"", (" ", 1, "0.00")),
        (json!("a").to_string(), "1", "0.07", ("a", 1, "0.07")),
        (json!("a").to_string(), "1", "29.9", ("a", 1, "29.90")),
        (
            json!("a").to_string(),
            "1",
            "1234567890.12",
            ("a", 1, "1234567890.12"),
        ),
    ];
    let messages: Vec<Published> = cases
        .iter()
        .map(|(user_id, items, amount, _)| {
            let body = format!(
                r#" {{"total_amount":{amount},"number_of_items":{items},"user_id":{user_id},"note":[1]}} "#
            );
            (body.into_bytes(), anonymous())
        })
        .collect();

    billing.queue.publish_all(&messages);

    billing.await_count(9);
    let rows = billing.database.query(
        "SELECT user_id, number_of_items, total_amount::text FROM orders ORDER BY id",
        &[],
    );
    let recorded: Vec<(&str, i32, &str)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(recorded, cases.map(|(_, _, _, expected)| expected));
}

#[test]
fn messages_of_strangers_without_an_id_are_recorded_each_for_itself() {
    let billing = Billing::start();

    billing.queue.publish_all(&[
        (order("20"), anonymous()),
        (order("20"), anonymous()),
        (order("20"), with_id("")),
        (order("20"), with_id("")),
    ]);

    billing.await_count(4);
    assert_eq!(message_ids(&billing.database), vec![None; 4]);
}

#[test]
fn the_same_message_id_is_recorded_once_in_a_batch_and_across_batches() {
    let billing = Billing::start();
    let twice = [
        (order("first"), with_id("m-1")),
        (order("first"), with_id("m-1")),
    ];

    billing.queue.publish_all(&twice);
    eventually("both are settled", || {
        billing.counter("orders_duplicate_total") == 1
    });
    billing.queue.publish_all(&twice);
    billing.publish("last");

    billing.await_users(&["first", "last"]);
    assert_eq!(billing.counter("orders_recorded_total"), 2);
    assert_eq!(billing.counter("orders_duplicate_total"), 3);
    assert_eq!(billing.counter("orders_dead_total"), 0);
}

#[test]
fn ids_that_differ_in_anything_are_different_ids() {
    let billing = Billing::start();
    let longest = "i".repeat(255);
    let ids: [&str; 7] = ["m-1", "M-1", "m-1 ", " m-1", "ü", "u\u{308}", &longest];

    for id in ids {
        billing.queue.publish(&order("20"), with_id(id));
    }

    billing.await_count(7);
    let recorded: BTreeSet<_> = message_ids(&billing.database).into_iter().collect();
    let expected: BTreeSet<_> = ids.iter().map(|id| Some((*id).to_owned())).collect();
    assert_eq!(recorded, expected);
}

#[test]
fn what_can_never_be_recorded_becomes_a_dead_letter_and_the_orders_around_it_are_recorded() {
    let body = |user_id: &str, items: &str, amount: &str| {
        format!(r#"{{"user_id":{user_id},"number_of_items":{items},"total_amount":{amount}}}"#)
            .into_bytes()
    };
    let wrong_user = "user_id must have 1 to 50 characters";
    let wrong_number = "number_of_items must be a whole number from 1 to 2147483647";
    let wrong_amount = "total_amount must be a number from 0 to 9999999999.99";
    let cases = [
        (b"".to_vec(), "the body is not a JSON object"),
        (b"hello".to_vec(), "the body is not a JSON object"),
        (b"[]".to_vec(), "the body is not a JSON object"),
        (b"{\"user_id\":".to_vec(), "the body is not a JSON object: "),
        (b"{\"user_id\":\"\xff\"}".to_vec(), "the body is not UTF-8"),
        (b"\xef\xbb\xbf{}".to_vec(), "the body is not a JSON object"),
        (b"\0".to_vec(), "the body is not a JSON object"),
        (
            format!("{{\"note\":{}}}", "[".repeat(100_000)).into_bytes(),
            "the body is not a JSON object: ",
        ),
        (b"{}".to_vec(), "user_id is required"),
        (
            br#"{"user_id":"20","total_amount":1}"#.to_vec(),
            "number_of_items is required",
        ),
        (
            br#"{"user_id":"20","number_of_items":1}"#.to_vec(),
            "total_amount is required",
        ),
        (body("\"\"", "1", "1"), wrong_user),
        (
            body(&format!("\"{}\"", "ü".repeat(51)), "1", "1"),
            wrong_user,
        ),
        (
            body(&format!("\"{}\"", "x".repeat(200_000)), "1", "1"),
            wrong_user,
        ),
        (body(r#""a\u0000b""#, "1", "1"), wrong_user),
        (
            body("true", "1", "1"),
            "user_id must be a string or a number",
        ),
        (body("\"20\"", "0", "1"), wrong_number),
        (body("\"20\"", "1.5", "1"), wrong_number),
        (body("\"20\"", "2147483648", "1"), wrong_number),
        (body("\"20\"", "1", "\"NaN\""), wrong_amount),
        (body("\"20\"", "1", "-1"), wrong_amount),
        (body("\"20\"", "1", "1e400"), wrong_amount),
        (body("\"20\"", "1", "\"abc\""), wrong_amount),
        (body("\"20\"", "1", "29.999"), wrong_amount),
        (body("\"20\"", "1", "10000000000"), wrong_amount),
    ];
    let queue = TestQueue::create();
    let mut messages = Vec::new();
    for (number, (body, _)) in cases.iter().enumerate() {
        messages.push((order(&number.to_string()), anonymous()));
        messages.push((body.clone(), with_id(&format!("dead-{number}"))));
    }
    messages.push((order("last"), anonymous()));
    queue.publish_all(&messages);

    let billing = Billing::start_with(queue);

    let all_dead = billing.await_dead(cases.len());
    for (number, ((body, expected), dead)) in cases.iter().zip(all_dead).enumerate() {
        assert!(dead.detail.starts_with(expected), "{}", dead.detail);
        assert_eq!(
            (
                dead.body == *body,
                dead.message_id.as_deref(),
                dead.exchange.as_str(),
                dead.routing_key.as_str(),
                dead.is_recent,
            ),
            (
                true,
                Some(format!("dead-{number}").as_str()),
                "",
                billing.queue.name(),
                true,
            ),
            "{expected}"
        );
    }
    let mut expected: Vec<_> = (0..cases.len()).map(|number| number.to_string()).collect();
    expected.push("last".to_owned());
    eventually("the orders are recorded", || billing.users() == expected);
    let (database, queue) = billing.end();
    assert_eq!(queue.counts(), Some((0, 0)));
    assert_eq!(count_dead(&database), 25);
}

#[test]
fn a_message_id_that_no_table_can_hold_makes_a_dead_letter() {
    let billing = Billing::start();

    billing.queue.publish_all(&[
        (order("nul"), with_id("a\0b")),
        (order("good"), with_id("m-1")),
    ]);

    let dead = billing.await_one_dead();
    assert_eq!(
        (dead.body, dead.reason.as_str(), dead.detail.as_str()),
        (
            order("nul"),
            "message_id",
            "the message id contains NUL or is not UTF-8"
        )
    );
    assert_eq!(dead.message_id.as_deref(), Some("a\u{fffd}b"));
    assert_eq!(dead.properties["message_id"], json!("a\0b"));
    billing.await_users(&["good"]);
}

#[test]
fn a_dead_letter_keeps_everything_and_nothing_of_it_acts_on_the_broker() {
    let billing = Billing::start();
    let elsewhere = TestQueue::create();
    elsewhere.publish(b"makes the queue", anonymous());
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    let copies = AmqpValue::FieldArray(vec![text(elsewhere.name())]);
    let headers: FieldTable = [
        ("CC", copies),
        ("x-request-id", text("trace-7")),
        ("count", AmqpValue::LongInt(7)),
        ("huge", text(&"x".repeat(100_000))),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    let user = billing.queue.config().user;
    let original = with_id("m-1")
        .with_headers(headers)
        .with_content_type("application/json".to_owned())
        .with_content_encoding("identity".to_owned())
        .with_timestamp(1_700_000_000)
        .with_expiration("600000".to_owned())
        .with_priority(9)
        .with_delivery_mode(1)
        .with_correlation_id("c-1".to_owned())
        .with_reply_to("somewhere".to_owned())
        .with_type_("order".to_owned())
        .with_app_id("shop".to_owned())
        .with_user_id(user.clone());

    billing.queue.publish(b"{}", original);

    let dead = billing.await_one_dead();
    let typed = |kind: &str, value: Value| json!({ "type": kind, "value": value });
    let copies = json!([typed("LongString", json!(elsewhere.name()))]);
    assert_eq!(
        dead.properties,
        json!({
            "message_id": "m-1",
            "content_type": "application/json",
            "content_encoding": "identity",
            "timestamp": 1_700_000_000,
            "expiration": "600000",
            "priority": 9,
            "delivery_mode": 1,
            "correlation_id": "c-1",
            "reply_to": "somewhere",
            "type": "order",
            "app_id": "shop",
            "user_id": user,
            "headers": {
                "CC": typed("FieldArray", copies),
                "x-request-id": typed("LongString", json!("trace-7")),
                "count": typed("LongInt", json!(7)),
                "huge": typed("LongString", json!("x".repeat(100_000))),
            },
        })
    );
    assert_eq!(dead.request_id.as_deref(), Some("trace-7"));
    // The other queue has the message that declared it, and the broker's copy of the original.
    assert_eq!(elsewhere.take_all().len(), 2);
}

#[test]
fn orders_that_meet_a_broken_table_wait_for_it_and_none_is_buried() {
    let billing = Billing::start();
    billing
        .database
        .execute("ALTER TABLE orders RENAME TO purchases");

    billing.queue.publish_all(&numbered(0..20));

    let unready = json!({ "postgresql": "down", "rabbitmq": "up" });
    billing.await_dependencies(&(503, unready));
    assert_eq!(billing.count_dead(), 0);
    billing
        .database
        .execute("ALTER TABLE purchases RENAME TO orders");
    billing.await_count(20);
    assert_eq!(billing.count_dead(), 0);
    assert_eq!(billing.counter("orders_recorded_total"), 20);
}

#[test]
fn an_order_committed_but_not_acknowledged_is_delivered_again_and_recorded_once() {
    let (billing, _postgresql, rabbitmq) = Billing::behind_relays();
    let mut holder = billing.database.connect();
    let held = hold_table(&mut holder);
    billing.queue.publish_all(&numbered(0..10));
    await_held_batch(&billing.database);

    rabbitmq.cut();
    held.rollback().expect("the table is free");
    billing.await_count(1);
    rabbitmq.restore();

    eventually("the orders come again", || {
        billing.counter("orders_duplicate_total") >= 1
    });
    billing.await_count(10);
    assert_eq!(billing.count(), 10);
}

#[test]
fn every_order_is_recorded_once_whatever_is_cut_while_they_flow() {
    let (billing, postgresql, rabbitmq) = Billing::behind_relays();
    let enough = AtomicBool::new(false);

    let published = thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut published = 0;
            while !enough.load(Ordering::Relaxed) {
                billing
                    .queue
                    .publish_all(&numbered(published..published + 50));
                published += 50;
            }
            published
        });
        for relay in [&rabbitmq, &postgresql, &rabbitmq, &postgresql, &rabbitmq] {
            let before = billing.count();
            billing.await_count(before + 100);
            relay.cut();
            relay.restore();
        }
        enough.store(true, Ordering::Relaxed);
        publisher.join().expect("the publisher does not panic")
    });

    billing.await_count(published);
    let expected: Vec<_> = (0..published)
        .map(|number| Some(format!("m-{number:06}")))
        .collect();
    assert_eq!(message_ids(&billing.database), expected);
    assert_eq!(billing.count_dead(), 0);
}

#[test]
fn orders_wait_in_the_queue_while_postgresql_is_away() {
    let (billing, postgresql, _rabbitmq) = Billing::behind_relays();
    postgresql.cut();
    billing.await_dependencies(&(503, json!({ "postgresql": "down", "rabbitmq": "up" })));

    billing.queue.publish_all(&numbered(0..10));
    eventually("the orders wait where they are safe", || {
        billing.queue.counts() == Some((10, 0))
    });

    postgresql.restore();
    billing.await_count(10);
    assert_eq!(billing.count_dead(), 0);
}

#[test]
fn an_order_that_crashes_postgresql_each_time_holds_up_no_other() {
    let (billing, postgresql, _rabbitmq) = Billing::behind_relays();
    // The transaction that records this order waits for the crash.
    billing.database.execute(
        "CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF NEW.message_id = ''m-000010'' THEN \
          PERFORM set_config(''application_name'', TG_TABLE_SCHEMA, true), pg_sleep(600); END IF; \
          RETURN NEW; END'; \
         CREATE TRIGGER crash BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION crash()",
    );
    let crashing = "FROM pg_stat_activity WHERE application_name = current_schema()";
    let count = format!("SELECT count(*) {crashing}");
    let end = format!("SELECT pg_terminate_backend(pid) {crashing}");

    billing.queue.publish_all(&numbered(0..20));
    for _ in 0..15 {
        eventually("it crashes, or the others are recorded", || {
            billing.database.count(&count) > 0 || billing.count() == 19
        });
        if billing.count() == 19 {
            break;
        }
        postgresql.cut();
        billing.database.execute(&end);
        billing.await_dependencies(&(503, json!({ "postgresql": "down", "rabbitmq": "up" })));
        postgresql.restore();
    }

    assert_eq!((billing.count(), billing.count_dead()), (19, 0));
    billing.database.execute("DROP TRIGGER crash ON orders");
    billing.await_count(20);
    assert_eq!(billing.count_dead(), 0);
}

#[test]
fn ready_says_which_dependency_is_down_and_health_does_not_mind() {
    let (billing, postgresql, rabbitmq) = Billing::behind_relays();
    let state = |postgresql: &str, rabbitmq: &str| json!({ "postgresql": postgresql, "rabbitmq": rabbitmq });
    assert_eq!(billing.dependencies(), (200, state("up", "up")));

    postgresql.cut();
    billing.await_dependencies(&(503, state("down", "up")));
    rabbitmq.cut();
    billing.await_dependencies(&(503, state("down", "down")));
    let ready = billing.client().get("/ready");
    let health = billing.client().get("/health");
    postgresql.restore();
    billing.await_dependencies(&(503, state("up", "down")));
    rabbitmq.restore();
    billing.await_dependencies(&(200, state("up", "up")));

    assert_eq!(
        ready.problem(),
        (503, "not ready: postgresql and rabbitmq cannot be reached")
    );
    assert_eq!(ready.header("retry-after"), "1");
    assert_eq!(
        (health.status, health.json),
        (200, json!({ "status": "ok" }))
    );
}

#[test]
fn a_queue_that_a_stranger_declared_otherwise_is_used_as_it_is() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    queue.declare_with(&[("x-max-length", AmqpValue::LongLongInt(5))]);
    queue.publish(&order("20"), with_id("m-1"));

    let consumer = start_consumer(database.config(), queue.config());

    eventually("it is ready", || {
        consumer.client.get("/ready").status == 200
    });
    eventually("the order is recorded", || {
        let metrics = consumer.client.get("/metrics").text;
        metrics.contains("\norders_recorded_total 1\n")
    });
}

#[test]
fn a_consumer_answers_operators_and_nobody_else() {
    let billing = Billing::start();
    billing.queue.publish_all(&[
        (order("20"), with_id("m-1")),
        (order("20"), with_id("m-1")),
        (b"{}".to_vec(), anonymous()),
    ]);
    eventually("there is a dead letter", || billing.count_dead() == 1);

    eventually("the counters tell it", || {
        ["recorded", "duplicate", "dead"]
            .map(|what| billing.counter(&format!("orders_{what}_total")))
            == [1, 1, 1]
    });

    let metrics = billing.client().get("/metrics").text;
    for line in [
        "\nmessages_consumed_total 3\n",
        "\norders_dead_total{reason=\"user_id\"} 1\n",
        "\norders_dead_total{reason=\"body\"} 0\n",
        "\norder_batch_size_sum 2\n",
        "\norder_lag_seconds ",
        "\npostgresql_connected 1\n",
        "\nrabbitmq_connected 1\n",
        "\nprocess_start_time_seconds ",
        "\nprocess_resident_memory_bytes ",
        "\nprocess_open_fds ",
        "\nprocess_threads ",
    ] {
        assert!(metrics.contains(line), "{line:?} in {metrics}");
    }
    assert_eq!(billing.client().get("/api/orders").status, 404);
}

#[test]
fn a_queue_deleted_under_the_consumer_is_declared_again() {
    let billing = Billing::start();
    billing.publish("before");
    billing.await_users(&["before"]);

    billing.queue.delete();

    eventually("the queue is back, with its consumer", || {
        billing.queue.counts() == Some((0, 1))
    });
    billing.publish("behind");
    billing.await_users(&["before", "behind"]);
}

#[test]
fn a_stranger_who_declares_the_queue_plainly_agrees_with_us() {
    let plain = || QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let queue = TestQueue::create();
    let declare = |queue: &TestQueue| {
        queue.on_channel(|channel| channel.queue_declare(queue.name(), plain()).is_ok())
    };
    assert!(declare(&queue));

    let billing = Billing::start_with(queue);

    assert!(declare(&billing.queue));
    billing.publish("20");
    billing.await_users(&["20"]);
}

#[test]
fn a_thousand_unreadable_messages_among_ten_thousand_cost_only_themselves() {
    let queue = TestQueue::create();
    let messages: Vec<Published> = (0..11_000)
        .map(|number| {
            let id = format!("m-{number:06}");
            let body = match number % 11 {
                5 => format!("poison {number}").into_bytes(),
                _ => order(&id),
            };
            (body, with_id(&id))
        })
        .collect();
    let (poison, good): (Vec<_>, Vec<_>) = (0..11_000).partition(|number: &u32| number % 11 == 5);
    queue.publish_all(&messages);

    let billing = Billing::start_with(queue);

    billing.await_count(10_000);
    eventually("all is settled", || {
        billing.counter("orders_dead_total") == 1000
    });
    let name = |number: &u32| format!("m-{number:06}");
    let recorded: Vec<_> = message_ids(&billing.database)
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(recorded, good.iter().map(name).collect::<Vec<_>>());
    let (database, queue) = billing.end();
    let dead = dead_letters(&database).into_iter();
    let mut dead: Vec<_> = dead.map(|dead| (dead.message_id, dead.body)).collect();
    dead.sort();
    let poison = poison.iter().map(|number| {
        let body = format!("poison {number}").into_bytes();
        (Some(name(number)), body)
    });
    assert_eq!(dead, poison.collect::<Vec<_>>());
    assert_eq!((count(&database), queue.counts()), (10_000, Some((0, 0))));
}

#[test]
fn the_lag_is_that_of_the_oldest_order_in_the_commit() {
    let billing = Billing::start();
    let placed = |id: &str, at| {
        let trace = AmqpValue::LongString("trace-7".to_owned());
        let headers = [("x-request-id".to_owned(), trace)].into_iter().collect();
        with_id(id).with_timestamp(at).with_headers(headers)
    };
    let mut holder = billing.database.connect();
    let held = hold_table(&mut holder);
    billing.publish("first");
    await_held_batch(&billing.database);

    billing.queue.publish_all(&[
        (order("timely"), placed("m-1", unix_seconds())),
        (order("late"), placed("m-2", unix_seconds() - 5000)),
        (order("timeless"), with_id("m-3")),
        (order("stranger"), with_id("m-5").with_timestamp(0)),
        (order("stranger"), with_id("m-6").with_timestamp(1)),
        (order("odd"), placed("m-7", 0)),
    ]);
    eventually("they are here", || billing.queue.counts() == Some((0, 1)));
    held.rollback().expect("the table is free");

    eventually("the lag is told", || {
        (5000..5100).contains(&billing.counter("order_lag_seconds"))
    });
    billing
        .queue
        .publish(&order("early"), placed("m-4", u64::MAX));
    eventually("a clock that is ahead is no lag", || {
        billing.counter("order_lag_seconds") == 0
    });
}

#[test]
fn orders_may_be_kept_in_a_quorum_queue() {
    let billing = Billing::start_with(TestQueue::create_of(QueueType::Quorum));

    billing.queue.publish_all(&[
        (order("before"), with_id("m-1")),
        (b"{}".to_vec(), with_id("m-2")),
        (order("behind"), with_id("m-3")),
    ]);

    billing.await_users(&["before", "behind"]);
    assert_eq!(billing.await_one_dead().detail, "user_id is required");
    let plain = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    billing.queue.on_channel(|channel| {
        let refused = channel.queue_declare(billing.queue.name(), plain);
        let refused = refused.map(drop).expect_err("it is no classic queue");
        let refused = refused.to_string();
        assert!(refused.contains("x-queue-type"), "{refused}");
    });
}

#[test]
fn two_consumers_side_by_side_record_every_order_once() {
    let billing = Billing::start();
    let _second = start_consumer(billing.database.config(), billing.queue.config());
    eventually("both consume", || billing.queue.counts() == Some((0, 2)));

    for round in 0..6 {
        // The orders of the second half of each round are also the first half of the next.
        billing
            .queue
            .publish_all(&numbered(round * 100..round * 100 + 200));
    }

    eventually("all is settled", || billing.queue.counts() == Some((0, 2)));
    billing.await_count(700);
    let ids = message_ids(&billing.database);
    assert_eq!((ids.len(), &ids[699]), (700, &Some("m-000699".to_owned())));
    assert_eq!(billing.count_dead(), 0);
}

#[test]
fn a_shutdown_while_orders_wait_records_what_is_unacknowledged_or_leaves_it_with_the_rest() {
    let billing = Billing::start();
    let mut holder = billing.database.connect();
    let held = hold_table(&mut holder);
    billing.queue.publish_all(&numbered(0..2500));
    await_held_batch(&billing.database);
    let address = billing.client().address();

    let ending = thread::spawn(move || billing.end());
    eventually("the shutdown is heard", || {
        TcpStream::connect(address).is_err()
    });
    held.rollback().expect("the table is free");

    let (database, queue) = ending.join().expect("the consumer ends well");
    let recorded = count(&database);
    assert!(recorded <= 1000, "{recorded}");
    eventually("the others are in the queue", || {
        queue.counts() == Some((2500 - recorded, 0))
    });
}

/// Publishes through a relay that changes the bytes, to send what no client library sends.
fn publish_changed(
    queue: &TestQueue,
    change: fn(&mut [u8]),
    body: &[u8],
    properties: AmqpProperties,
) {
    let relay = queue.relay_changing(change);
    let through_relay = QueueConfig {
        brokers: relay.address().into(),
        ..queue.config()
    };
    let mut connection = AmqpConnection::open(&through_relay, "tests").expect("a connection");
    let confirm_channel = connection
        .open_confirm_channel(queue.name())
        .expect("a channel");
    let mut publish = Publish::new(body, queue.name());
    publish.properties = properties;
    confirm_channel
        .channel
        .basic_publish("", publish)
        .expect("a publish");
    let confirm = confirm_channel.confirms.recv().expect("a confirm");
    assert!(matches!(confirm, Confirm::Ack(_)), "{confirm:?}");
}

/// Changes the first byte of `poison` to one that UTF-8 does not have.
fn poison(bytes: &mut [u8]) {
    let found = bytes.windows(6).position(|window| window == b"poison");
    if let Some(place) = found {
        bytes[place] = 0xff;
    }
}

/// Changes the string that begins with `nested` to nested arrays.
fn nest(bytes: &mut [u8]) {
    let Some(place) = bytes.windows(6).position(|window| window == b"nested") else {
        return;
    };
    let (head, content) = bytes.split_at_mut(place);
    let [.., kind, a, b, c, d] = head else {
        panic!("a string has a type and a length")
    };
    *kind = b'A';
    let mut length = u32::from_be_bytes([*a, *b, *c, *d]);
    for array in content[..length as usize].chunks_exact_mut(5) {
        length -= 5;
        array[0] = b'A';
        array[1..].copy_from_slice(&length.to_be_bytes());
    }
}

#[test]
fn properties_that_are_not_utf_8_stop_neither_their_message_nor_those_behind_it() {
    let queue = TestQueue::create();
    queue.publish(&order("before"), anonymous());
    let properties = with_id("m-1")
        .with_content_type("poison".to_owned())
        .with_headers(FieldTable::new());
    publish_changed(&queue, poison, &order("odd"), properties);
    publish_changed(&queue, poison, &order("buried"), with_id("poison"));
    queue.publish(&order("behind"), anonymous());

    let billing = Billing::start_with(queue);

    billing.await_users(&["before", "odd", "behind"]);
    let ids = message_ids(&billing.database);
    assert_eq!(ids, [Some("m-1".to_owned()), None, None]);
    let dead = billing.await_one_dead();
    assert_eq!(
        (dead.body, dead.reason.as_str()),
        (order("buried"), "message_id")
    );
}

#[test]
fn texts_that_are_not_utf_8_end_no_connection_over_tls() {
    let queue = TestQueue::create_over_tls();
    publish_changed(
        &queue,
        poison,
        &order("odd"),
        with_id("m-1").with_content_type("poison".to_owned()),
    );
    publish_changed(&queue, poison, &order("buried"), with_id("poison"));
    queue.publish(&order("behind"), anonymous());

    let billing = Billing::start_with(queue);

    billing.await_users(&["odd", "behind"]);
    assert_eq!(billing.count_dead(), 1);
}

#[test]
fn more_than_the_consumer_holds_at_once_passes_over_tls() {
    const MEBIBYTE: usize = 1024 * 1024;
    let queue = TestQueue::create_over_tls();
    let unreadable: Vec<Published> = (0..40)
        .map(|number| (vec![0; MEBIBYTE], with_id(&format!("m-{number}"))))
        .collect();
    queue.publish_all(&unreadable);
    queue.publish(&order("behind"), with_id("behind"));

    let billing = Billing::start_with(queue);

    billing.await_users(&["behind"]);
    eventually("all is settled", || billing.count_dead() == 40);
}

#[test]
fn a_routing_key_that_is_not_utf_8_makes_a_dead_letter_and_ends_no_connection() {
    let queue = TestQueue::create();
    queue.publish(&order("before"), with_id("m-1"));
    // The broker delivers the copy with the key that the message was published with.
    let copy = AmqpValue::FieldArray(vec![AmqpValue::LongString(queue.name().to_owned())]);
    let headers: FieldTable = [("CC".to_owned(), copy)].into_iter().collect();
    let relay = queue.relay_changing(poison);
    let through_relay = QueueConfig {
        brokers: relay.address().into(),
        ..queue.config()
    };
    let mut connection = AmqpConnection::open(&through_relay, "tests").expect("a connection");
    let confirm_channel = connection
        .open_confirm_channel(queue.name())
        .expect("a channel");
    for (body, id) in [(b"{}".to_vec(), "odd"), (order("odd"), "valid")] {
        let mut publish = Publish::new(&body, "poison");
        publish.properties = with_id(id).with_headers(headers.clone());
        let published = confirm_channel.channel.basic_publish("", publish);
        published.expect("a publish");
        confirm_channel.confirms.recv().expect("a confirm");
    }
    queue.publish(&order("behind"), with_id("m-2"));

    let billing = Billing::start_with(queue);

    billing.await_users(&["before", "behind"]);
    let dead = billing.await_dead(2);
    let reasons: Vec<_> = dead
        .iter()
        .map(|dead| (dead.reason.as_str(), dead.routing_key.as_str()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("user_id", "\u{fffd}oison"),
            ("routing_key", "\u{fffd}oison")
        ]
    );
}

#[test]
fn headers_nested_without_end_do_not_end_the_consumer() {
    let queue = TestQueue::create();
    let deep = AmqpValue::LongString(format!("nested{}", "x".repeat(12_000 - 6)));
    let headers = [("h".to_owned(), deep)].into_iter().collect();
    let properties = with_id("m-1").with_headers(headers);
    publish_changed(&queue, nest, &order("deep"), properties);
    queue.publish(&order("behind"), anonymous());

    let billing = Billing::start_with(queue);

    billing.await_users(&["deep", "behind"]);
}
