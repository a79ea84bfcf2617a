//! The consumer during a fault of the database, of a message, or of both: each order is recorded once after the repair,
//! no order becomes a dead letter, and the other orders are not delayed.

use std::cell::Cell;

use amiquip::{AmqpProperties, AmqpValue};
use common::http::HttpConfig;
use serde_json::{Value, json};
use testkit::{Service, TestDatabase, TestQueue, eventually};

mod dead;

use dead::{Dead, count_dead, dead_letters};

/// A message on its way: its body and its properties.
type Published = (Vec<u8>, AmqpProperties);

/// The fields are dropped in this order, so that the consumer ends before its servers.
struct Billing {
    consumers: Vec<Service<billing::BillingConsumer>>,
    database: TestDatabase,
    queue: TestQueue,
    published: Cell<i64>,
}

impl Billing {
    fn start() -> Self {
        Self::start_with(1, 1 << 30)
    }

    fn start_with(consumers: usize, dead_letters_bytes_max: i64) -> Self {
        Self::start_on(TestDatabase::create(), consumers, dead_letters_bytes_max)
    }

    fn start_on(database: TestDatabase, consumers: usize, dead_letters_bytes_max: i64) -> Self {
        let queue = TestQueue::create();
        let config = billing::ConsumerConfig {
            http: HttpConfig::on_loopback(1),
            database: database.config(),
            queue: queue.config(),
            dead_letters_bytes_max,
        };
        let start = |_| {
            Service::start(
                |shutdown| billing::start_consumer(&config, shutdown),
                billing::BillingConsumer::address,
            )
        };
        let billing = Self {
            consumers: (0..consumers).map(start).collect(),
            database,
            queue,
            published: Cell::new(0),
        };
        eventually("the consumers are ready", || billing.is_ready());
        billing
    }

    fn is_ready(&self) -> bool {
        let mut consumers = self.consumers.iter();
        consumers.all(|consumer| consumer.client.get("/ready").status == 200)
    }

    /// The answer of `/ready`.
    fn ready(&self) -> (u16, Value) {
        let ready = self.consumers[0].client.get("/ready");
        (ready.status, ready.json["dependencies"].clone())
    }

    fn await_not_recording(&self) {
        let down = (503, json!({ "postgresql": "down", "rabbitmq": "up" }));
        eventually("/ready says that nothing is recorded", || {
            self.ready() == down
        });
    }

    fn await_recorded(&self, expected: &[&str]) {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        eventually(&format!("{expected:?} are recorded, each once"), || {
            self.recorded() == expected
        });
    }

    /// The message ids of the recorded orders, sorted.
    fn recorded(&self) -> Vec<String> {
        let sql = "SELECT message_id FROM orders ORDER BY message_id COLLATE \"C\"";
        let rows = self.database.query(sql, &[]);
        rows.iter().map(|row| row.get(0)).collect()
    }

    fn publish(&self, messages: &[Published]) {
        self.queue.publish_all(messages);
        let count = i64::try_from(messages.len()).expect("few");
        self.published.set(self.published.get() + count);
    }

    /// Waits until all published messages are settled.
    fn await_settled(&self) {
        let sum = |name| -> i64 {
            let consumers = self.consumers.iter();
            consumers.map(|consumer| gauge(consumer, name)).sum()
        };
        eventually("all is taken, and nothing is in hand", || {
            sum("messages_consumed_total") >= self.published.get()
                && sum("orders_unacknowledged") == 0
        });
    }
}

fn gauge(consumer: &Service<billing::BillingConsumer>, name: &str) -> i64 {
    let metrics = consumer.client.get("/metrics").text;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.expect(name).parse().expect("a whole number")
}

fn order(user_id: &str) -> Vec<u8> {
    json!({ "user_id": user_id, "number_of_items": 1, "total_amount": "1.00" })
        .to_string()
        .into_bytes()
}

/// An order whose message id is its user.
fn placed(id: &str) -> Published {
    (order(id), with_id(id))
}

fn garbage(id: &str) -> Published {
    (b"garbage".to_vec(), with_id(id))
}

fn with_id(id: &str) -> AmqpProperties {
    AmqpProperties::default().with_message_id(id.to_owned())
}

/// A fault of the database during which no order can be recorded, and its repair: orders and garbage that arrive
/// meanwhile wait, and are settled afterwards.
fn orders_wait(breaks: &str, mends: &str) {
    let billing = Billing::start();
    billing.publish(&[placed("before")]);
    billing.await_recorded(&["before"]);
    billing.database.execute(breaks);

    let ids: Vec<_> = (0..20).map(|number| format!("m-{number:02}")).collect();
    let mut messages: Vec<_> = ids.iter().map(|id| placed(id)).collect();
    messages.insert(7, garbage("g-1"));
    messages.push(placed("m-03"));
    billing.publish(&messages);
    billing.await_not_recording();
    let orders_dead = "SELECT count(*) FROM dead_letters WHERE message_id <> 'g-1'";
    assert_eq!(billing.database.count(orders_dead), 0);
    billing.database.execute(mends);

    let mut expected: Vec<_> = ids.iter().map(String::as_str).collect();
    expected.push("before");
    billing.await_recorded(&expected);
    billing.await_settled();
    let dead = dead_letters(&billing.database);
    let dead: Vec<_> = dead.iter().map(|dead| dead.message_id.as_deref()).collect();
    assert_eq!(dead, [Some("g-1")]);
    eventually("it is ready again", || billing.is_ready());
}

#[test]
fn orders_wait_for_a_sequence_that_has_come_to_its_end() {
    orders_wait(
        "ALTER SEQUENCE orders_id_seq MAXVALUE 2",
        "ALTER SEQUENCE orders_id_seq NO MAXVALUE",
    );
}

#[test]
fn orders_wait_for_a_column_that_somebody_added_and_nobody_fills() {
    orders_wait(
        "ALTER TABLE orders ADD COLUMN region text NOT NULL DEFAULT 'x'; \
         ALTER TABLE orders ALTER COLUMN region DROP DEFAULT",
        "ALTER TABLE orders DROP COLUMN region",
    );
}

#[test]
fn orders_wait_for_a_constraint_that_no_order_keeps() {
    orders_wait(
        "ALTER TABLE orders ADD CONSTRAINT closed CHECK (false) NOT VALID",
        "ALTER TABLE orders DROP CONSTRAINT closed",
    );
}

#[test]
fn orders_wait_for_a_right_that_was_revoked() {
    orders_wait(
        "DO $$ BEGIN EXECUTE 'REVOKE INSERT ON orders FROM ' || quote_ident(current_user); \
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RAISE insufficient_privilege; END'; \
         CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION refuse(); \
         END $$",
        "DROP TRIGGER refuse ON orders; \
         DO $$ BEGIN EXECUTE 'GRANT INSERT ON orders TO ' || quote_ident(current_user); END $$",
    );
}

#[test]
fn orders_wait_for_a_unique_constraint_that_somebody_dropped() {
    orders_wait(
        "ALTER TABLE orders DROP CONSTRAINT orders_message_id_key",
        "ALTER TABLE orders ADD CONSTRAINT orders_message_id_key UNIQUE (message_id)",
    );
}

#[test]
fn orders_wait_for_a_schema_that_somebody_renamed_and_are_recorded_in_no_other() {
    let billing = Billing::start();
    billing.publish(&[placed("before")]);
    billing.await_recorded(&["before"]);
    let schema = billing.database.config().schema;
    let rename = |from: &str, to: &str| {
        let sql = format!("ALTER SCHEMA {from} RENAME TO {to}");
        billing.database.execute(&sql);
    };
    let away = format!("{schema}_away");
    rename(&schema, &away);

    billing.publish(&[placed("a"), garbage("g-1"), placed("b")]);
    billing.await_not_recording();
    rename(&away, &schema);

    billing.await_recorded(&["a", "b", "before"]);
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 1);
}

#[test]
fn orders_wait_for_a_disk_that_is_full() {
    // The trigger raises PostgreSQL's error; the drill fills a real disk.
    orders_wait(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RAISE disk_full; END'; \
         CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON orders",
    );
}

#[test]
fn orders_wait_while_commits_hang() {
    // A deferred trigger runs in the commit, which then waits as it would for a standby.
    orders_wait(
        "CREATE TABLE hangs AS SELECT 1; \
         CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN WHILE EXISTS (SELECT FROM hangs) LOOP PERFORM pg_sleep(0.05); END LOOP; \
          RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION hang()",
        "DELETE FROM hangs",
    );
}

#[test]
fn orders_wait_for_ids_that_lag_behind_the_rows() {
    let billing = Billing::start();
    billing.database.execute(
        "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
         SELECT 'old-' || n, 'old', 1, 1 FROM generate_series(1, 400) n; \
         SELECT setval('orders_id_seq', 1, false)",
    );

    let ids: Vec<_> = (0..10).map(|number| format!("m-{number}")).collect();
    let messages: Vec<_> = ids.iter().map(|id| placed(id)).collect();
    billing.publish(&messages);
    billing.await_not_recording();
    billing
        .database
        .execute("SELECT setval('orders_id_seq', max(id)) FROM orders");

    eventually("all are recorded", || {
        let new = "SELECT count(*) FROM orders WHERE user_id <> 'old'";
        billing.database.count(new) == 10
    });
    assert_eq!(count_dead(&billing.database), 0);
}

#[test]
fn orders_wait_for_a_lock_of_the_whole_table_and_ready_says_so() {
    let billing = Billing::start();
    let mut holder = billing.database.connect();
    let mut lock = holder.transaction().expect("a transaction");
    lock.batch_execute("LOCK TABLE orders").expect("a lock");

    // `/ready` shows the lock even while there is no order to record.
    billing.await_not_recording();
    billing.publish(&[placed("m-1"), garbage("g-1"), placed("m-2")]);
    billing.await_not_recording();
    lock.rollback().expect("the table is free");

    billing.await_recorded(&["m-1", "m-2"]);
    eventually("it is ready again", || billing.is_ready());
    billing.await_settled();
}

#[test]
fn an_order_that_waits_for_a_transaction_holds_up_no_other_and_nor_does_one_that_a_stranger_forbids()
 {
    let billing = Billing::start_with(2, 1 << 30);
    billing.database.execute(
        "ALTER TABLE orders ADD CONSTRAINT nobody_trusts_mallory CHECK (user_id <> 'mallory')",
    );
    billing.publish(&[placed("k")]);
    billing.await_recorded(&["k"]);
    let mut holder = billing.database.connect();
    let mut open = holder.transaction().expect("a transaction");
    let delete = "DELETE FROM orders WHERE message_id = 'k'";
    open.execute(delete, &[]).expect("an order");

    let mut messages: Vec<_> = (0..200)
        .map(|number| placed(&format!("m-{number:03}")))
        .collect();
    messages.insert(50, (order("mallory"), with_id("x")));
    messages.insert(100, placed("k"));
    messages.insert(150, garbage("g-1"));
    billing.publish(&messages);
    let others: Vec<_> = (0..200).map(|number| format!("m-{number:03}")).collect();
    let mut expected: Vec<_> = others.iter().map(String::as_str).collect();
    expected.push("k");
    billing.await_recorded(&expected);

    let held = || {
        billing
            .consumers
            .iter()
            .map(|consumer| gauge(consumer, "orders_held"))
    };
    eventually("both are held", || held().sum::<i64>() == 2);
    let oldest = || {
        let consumers = billing.consumers.iter();
        consumers
            .map(|consumer| gauge(consumer, "order_unacknowledged_oldest_seconds"))
            .max()
    };
    eventually("their age shows", || oldest() >= Some(1));
    assert!(billing.is_ready());
    open.commit().expect("the order is deleted");
    billing
        .database
        .execute("ALTER TABLE orders DROP CONSTRAINT nobody_trusts_mallory");

    expected.push("x");
    billing.await_recorded(&expected);
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 1);
}

#[test]
fn an_order_that_a_stranger_forbids_by_now_holds_up_no_other_where_the_last_was_like_it() {
    let billing = Billing::start();
    billing.publish(&[(order("mallory"), with_id("x"))]);
    billing.await_recorded(&["x"]);
    billing.database.execute(
        "ALTER TABLE orders ADD CONSTRAINT nobody_trusts_mallory CHECK (user_id <> 'mallory') NOT VALID",
    );

    billing.publish(&[placed("a"), (order("mallory"), with_id("y")), placed("b")]);

    billing.await_recorded(&["a", "b", "x"]);
}

#[test]
fn an_order_that_comes_again_when_somebody_has_removed_its_user_holds_up_no_other() {
    let billing = Billing::start();
    billing.publish(&[placed("k")]);
    billing.await_recorded(&["k"]);
    billing.database.execute(
        "ALTER TABLE orders ALTER user_id DROP NOT NULL; UPDATE orders SET user_id = NULL",
    );

    billing.publish(&[placed("a"), placed("k"), placed("b")]);

    billing.await_recorded(&["a", "b", "k"]);
}

#[test]
fn an_order_that_the_database_has_no_characters_for_is_a_dead_letter() {
    let billing = Billing::start_on(TestDatabase::create_in_latin1(), 1, 1 << 30);

    billing.publish(&[placed("a"), (order("Ж"), with_id("x")), placed("b")]);

    billing.await_settled();
    billing.await_recorded(&["a", "b"]);
    assert_eq!(dead_letters(&billing.database)[0].reason, "database");
}

#[test]
fn consumers_side_by_side_record_as_fast_as_one_where_a_commit_is_slow() {
    let billing = Billing::start_with(3, 1 << 30);
    // A deferred trigger runs in the commit, once for all of its orders, and stands for a slow disk.
    billing.database.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF current_setting(''slow.transaction'', true) IS DISTINCT FROM txid_current()::text \
          THEN PERFORM set_config(''slow.transaction'', txid_current()::text, true); \
          PERFORM pg_sleep(0.6); END IF; RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let ids: Vec<_> = (0..5000).map(|number| format!("m-{number:04}")).collect();
    let messages: Vec<_> = ids.iter().map(|id| placed(id)).collect();

    billing.publish(&messages);

    billing.await_settled();
    assert_eq!(billing.recorded(), ids);
}

/// A change of the tables by another program that refuses one valid order: that order waits, the others are recorded,
/// and it is recorded after the repair.
fn one_order_waits(breaks: &str, mends: &str, good: Published) {
    let billing = Billing::start();
    billing.publish(&[placed("before")]);
    billing.await_recorded(&["before"]);
    billing.database.execute(breaks);

    billing.publish(&[placed("a"), good, garbage("g-1"), placed("b")]);
    billing.await_recorded(&["a", "b", "before"]);
    eventually("it is held", || {
        gauge(&billing.consumers[0], "orders_held") == 1
    });
    assert!(billing.is_ready());
    billing.database.execute(mends);

    billing.await_recorded(&["a", "b", "before", "good"]);
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 1);
}

#[test]
fn an_order_waits_for_a_column_that_somebody_made_narrower() {
    one_order_waits(
        "ALTER TABLE orders ALTER user_id TYPE varchar(10)",
        "ALTER TABLE orders ALTER user_id TYPE text",
        (order("a user with a long name"), with_id("good")),
    );
}

#[test]
fn an_order_waits_for_a_generated_column_of_somebody_that_overflows() {
    let large = json!({ "user_id": "1", "number_of_items": 1, "total_amount": "9999999999" });
    one_order_waits(
        "ALTER TABLE orders ADD cents integer GENERATED ALWAYS AS (total_amount * 100) STORED",
        "ALTER TABLE orders DROP cents",
        (large.to_string().into_bytes(), with_id("good")),
    );
}

#[test]
fn an_order_waits_for_the_user_that_somebody_wants_to_know() {
    one_order_waits(
        "CREATE TABLE users (id text PRIMARY KEY); \
         INSERT INTO users VALUES ('a'), ('b'), ('before'); \
         ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users",
        "INSERT INTO users VALUES ('good')",
        placed("good"),
    );
}

#[test]
fn an_order_waits_for_a_trigger_of_somebody_that_passes_it_over() {
    one_order_waits(
        "CREATE FUNCTION pass_over() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RETURN CASE WHEN NEW.user_id <> ''good'' THEN NEW END; END'; \
         CREATE TRIGGER pass_over BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pass_over()",
        "DROP TRIGGER pass_over ON orders",
        placed("good"),
    );
}

#[test]
fn an_order_waits_for_a_trigger_of_somebody_that_has_no_characters_for_it() {
    one_order_waits(
        "CREATE FUNCTION translate() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM convert_to(NEW.user_id, ''LATIN1''); RETURN NEW; END'; \
         CREATE TRIGGER translate BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION translate()",
        "DROP TRIGGER translate ON orders",
        (order("Ж"), with_id("good")),
    );
}

#[test]
fn orders_wait_for_a_trigger_of_somebody_that_passes_all_of_them_over() {
    orders_wait(
        "CREATE FUNCTION pass_over() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER pass_over BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pass_over()",
        "DROP TRIGGER pass_over ON orders",
    );
}

#[test]
fn orders_wait_for_a_constraint_that_is_checked_at_the_commit() {
    orders_wait(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RAISE check_violation; END'; \
         CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON orders",
    );
}

#[test]
fn an_order_whose_message_id_somebody_fills_in_is_recorded_once() {
    let billing = Billing::start();
    billing.database.execute(
        "CREATE FUNCTION fill_in() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN NEW.message_id := coalesce(NEW.message_id, ''filled in''); RETURN NEW; END'; \
         CREATE TRIGGER fill_in BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fill_in()",
    );

    billing.publish(&[(order("nameless"), AmqpProperties::default())]);

    billing.await_settled();
    billing.await_recorded(&["filled in"]);
}

#[test]
fn a_batch_with_many_locked_orders_holds_up_no_other() {
    let billing = Billing::start();
    let locked: Vec<_> = (0..40)
        .map(|number| placed(&format!("k-{number:02}")))
        .collect();
    billing.publish(&locked);
    eventually("they are recorded", || billing.recorded().len() == 40);
    let mut holder = billing.database.connect();
    let mut open = holder.transaction().expect("a transaction");
    let delete = "DELETE FROM orders WHERE message_id LIKE 'k-%'";
    open.execute(delete, &[]).expect("orders");

    let mut messages: Vec<_> = (0..400)
        .map(|number| placed(&format!("m-{number:03}")))
        .collect();
    for (number, locked) in locked.into_iter().enumerate() {
        messages.insert(number * 11, locked);
    }
    billing.publish(&messages);
    eventually("the others are recorded", || {
        billing.recorded().len() == 440
    });
    assert!(billing.is_ready());
    open.commit().expect("the orders are deleted");

    billing.await_settled();
    assert_eq!(
        (billing.recorded().len(), count_dead(&billing.database)),
        (440, 0)
    );
}

#[test]
fn a_conflict_that_finds_no_room_holds_up_no_order() {
    let billing = Billing::start();
    billing.publish(&[placed("m-1")]);
    billing.await_recorded(&["m-1"]);
    billing.database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE disk_full; END'; \
         CREATE TRIGGER refuse BEFORE INSERT ON dead_letters FOR EACH ROW EXECUTE FUNCTION refuse()",
    );

    let conflict = (order("other"), with_id("m-1"));
    billing.publish(&[garbage("g-1"), conflict, placed("m-2")]);
    billing.await_recorded(&["m-1", "m-2"]);
    assert!(billing.is_ready());
    billing
        .database
        .execute("DROP TRIGGER refuse ON dead_letters");

    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 2);
}

#[test]
fn orders_do_not_wait_for_dead_letters_that_cannot_be_stored() {
    let billing = Billing::start();
    let mut holder = billing.database.connect();
    let mut lock = holder.transaction().expect("a transaction");
    lock.batch_execute("LOCK TABLE dead_letters")
        .expect("a lock");

    // This message is larger than all unacknowledged deliveries together may be.
    let large = (vec![b'x'; 40 * 1024 * 1024], with_id("first"));
    billing.publish(&[placed("m-1"), large, placed("m-2")]);
    billing.await_recorded(&["m-1", "m-2"]);
    assert!(billing.is_ready());
    lock.rollback().expect("the table is free");
    eventually("it is stored", || count_dead(&billing.database) == 1);

    let alter = |sql: &str| {
        billing
            .database
            .execute(&format!("ALTER TABLE dead_letters {sql}"));
    };
    for (round, (breaks, mends)) in [
        (
            "ADD CONSTRAINT odd CHECK (reason <> 'body') NOT VALID",
            "DROP CONSTRAINT odd",
        ),
        ("RENAME TO gone", ""),
    ]
    .into_iter()
    .enumerate()
    {
        alter(breaks);
        let id = |name: &str| format!("{name}-{round}");
        let messages = [
            garbage(&id("g")),
            placed(&id("a")),
            garbage(&id("h")),
            placed(&id("b")),
        ];
        billing.publish(&messages);
        eventually("the orders are recorded", || {
            let recorded = billing.recorded();
            recorded.contains(&id("a")) && recorded.contains(&id("b"))
        });
        if mends.is_empty() {
            billing
                .database
                .execute("ALTER TABLE gone RENAME TO dead_letters");
        } else {
            alter(mends);
        }
        eventually("the dead letters are stored", || {
            count_dead(&billing.database) == 3 + 2 * i64::try_from(round).expect("few")
        });
    }
    billing.await_settled();
}

/// A change by another program that makes PostgreSQL ignore dead letters without an error: they wait, orders do not, and
/// all are stored after the repair.
fn dead_letters_wait(breaks: &str, mends: &str) {
    let billing = Billing::start();
    billing.publish(&[placed("m-1"), garbage("old-1"), garbage("old-2")]);
    billing.await_settled();
    billing.database.execute(breaks);

    let nameless = (b"nameless".to_vec(), AmqpProperties::default());
    let again = (b"again".to_vec(), with_id("old-1"));
    let conflict = (order("other"), with_id("m-1"));
    billing.publish(&[garbage("g-1"), nameless, again, conflict, placed("m-2")]);
    billing.await_recorded(&["m-1", "m-2"]);
    eventually("they are taken", || {
        gauge(&billing.consumers[0], "messages_consumed_total") >= 8
    });
    billing.database.execute(mends);

    billing.await_settled();
    let mut dead: Vec<_> = dead_letters(&billing.database)
        .into_iter()
        .map(|dead| String::from_utf8(dead.body).expect("UTF-8"))
        .collect();
    dead.sort_unstable();
    let conflict = String::from_utf8(order("other")).expect("UTF-8");
    let expected = [
        "again", "garbage", "garbage", "garbage", "nameless", &conflict,
    ];
    assert_eq!(dead, expected);
}

#[test]
fn dead_letters_wait_for_ids_that_lag_behind_the_rows() {
    dead_letters_wait(
        "UPDATE dead_letters SET id = DEFAULT; \
         SELECT setval('dead_letters_id_seq', min(id), false) FROM dead_letters",
        "SELECT setval('dead_letters_id_seq', max(id)) FROM dead_letters",
    );
}

#[test]
fn dead_letters_wait_for_a_trigger_of_somebody_that_passes_them_over() {
    dead_letters_wait(
        "CREATE FUNCTION pass_over() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER pass_over BEFORE INSERT ON dead_letters \
         FOR EACH ROW EXECUTE FUNCTION pass_over()",
        "DROP TRIGGER pass_over ON dead_letters",
    );
}

#[test]
fn dead_letters_wait_for_an_index_of_somebody_that_has_no_two_with_one_message_id() {
    dead_letters_wait(
        "CREATE UNIQUE INDEX one_each ON dead_letters (message_id)",
        "DROP INDEX one_each",
    );
}

#[test]
fn another_order_with_the_same_message_id_is_a_dead_letter_and_the_same_order_is_none() {
    let billing = Billing::start();
    let as_numbers = br#"{"total_amount":1,"number_of_items":"1","user_id":"m-1"}"#.to_vec();
    billing.publish(&[
        placed("m-1"),
        (as_numbers, with_id("m-1")),
        (order("other"), with_id("m-1")),
        placed("m-2"),
    ]);
    billing.await_recorded(&["m-1", "m-2"]);
    billing.publish(&[placed("m-1"), (order("third"), with_id("m-1"))]);

    billing.await_settled();

    let dead = dead_letters(&billing.database);
    let dead: Vec<_> = dead
        .iter()
        .map(|dead| {
            (
                dead.reason.as_str(),
                dead.message_id.as_deref(),
                dead.body.clone(),
            )
        })
        .collect();
    assert_eq!(
        dead,
        [
            ("conflict", Some("m-1"), order("other")),
            ("conflict", Some("m-1"), order("third")),
        ]
    );
    let users = billing
        .database
        .query("SELECT user_id FROM orders ORDER BY id", &[]);
    let users: Vec<&str> = users.iter().map(|row| row.get(0)).collect();
    assert_eq!(users, ["m-1", "m-2"]);
}

#[test]
fn a_dead_letter_that_comes_again_is_one_and_is_counted_once() {
    let billing = Billing::start();

    billing.publish(&[garbage("g-1"), garbage("g-1"), placed("m-1")]);
    billing.await_settled();
    billing.publish(&[garbage("g-1"), (b"other".to_vec(), with_id("g-1"))]);
    billing.await_settled();

    assert_eq!(count_dead(&billing.database), 2);
    let metrics = billing.consumers[0].client.get("/metrics").text;
    assert!(
        metrics.contains("\norders_dead_total{reason=\"body\"} 2\n"),
        "{metrics}"
    );
}

#[test]
fn of_a_long_body_the_start_is_kept_and_of_each_once_there_are_too_many() {
    const MEBIBYTE: usize = 1024 * 1024;
    let billing = Billing::start_with(1, 512 * 1024);
    let long = vec![b'x'; 3 * MEBIBYTE];

    billing.publish(&[(long.clone(), with_id("long"))]);
    billing.await_settled();
    billing.publish(&[(long[..20_000].to_vec(), with_id("short"))]);
    billing.await_settled();

    let dead = dead_letters(&billing.database);
    let lengths: Vec<_> = dead
        .iter()
        .map(|dead| (dead.body.len(), dead.body_bytes))
        .collect();
    assert_eq!(lengths, [(MEBIBYTE, 3 * 1024 * 1024), (16 * 1024, 20_000)]);
}

#[test]
fn who_follows_the_ids_misses_no_order_however_many_consumers_record() {
    const COUNT: i64 = 4000;
    let billing = Billing::start_with(3, 1 << 30);
    let messages: Vec<_> = (0..COUNT)
        .map(|number| placed(&format!("m-{number:05}")))
        .collect();
    let mut reader = billing.database.connect();

    billing.publish(&messages);

    let (mut after, mut seen) = (0_i64, 0_i64);
    eventually("all are seen", || {
        let sql = "SELECT id FROM orders WHERE id > $1 ORDER BY id LIMIT 50";
        let rows = reader.query(sql, &[&after]).expect(sql);
        seen += i64::try_from(rows.len()).expect("few");
        after = rows.last().map_or(after, |last| last.get(0));
        billing.database.count("SELECT count(*) FROM orders") == COUNT && rows.is_empty()
    });
    assert_eq!(seen, COUNT);
}

#[test]
fn dead_letters_are_stored_whatever_characters_the_database_has() {
    let billing = Billing::start_on(TestDatabase::create_in_latin1(), 1, 1 << 30);
    let header = ("Ж".to_owned(), AmqpValue::LongString("Б 😀".to_owned()));
    let headers = AmqpProperties::default().with_headers([header].into_iter().collect());

    billing.publish(&[
        placed("a"),
        garbage("Ж"),
        // Only the body of this one differs.
        garbage("Б"),
        garbage("Ж"),
        garbage("a\0b"),
        placed("ЖЖ"),
        (b"garbage".to_vec(), headers),
        placed("b"),
    ]);

    billing.await_settled();
    billing.await_recorded(&["a", "b"]);
    let mut dead = dead_letters(&billing.database);
    dead.sort_by_key(|dead| dead.message_id.clone());
    let ids: Vec<_> = dead.iter().map(|dead| dead.message_id.as_deref()).collect();
    let given = |dead: &Dead| dead.properties["message_id"].as_str().map(str::to_owned);
    let given: Vec<_> = dead.iter().filter_map(given).collect();
    assert_eq!(
        ids,
        [
            None,
            Some(r"\u0411"),
            Some(r"\u0416"),
            Some(r"\u0416\u0416"),
            Some(r"a\ufffdb"),
        ]
    );
    assert_eq!(given, ["Б", "Ж", "ЖЖ", "a\0b"]);
    let header = json!({ "Ж": { "type": "LongString", "value": "Б 😀" } });
    assert_eq!(dead[0].properties["headers"], header);
}

#[test]
fn a_large_order_that_waits_holds_up_no_other() {
    let billing = Billing::start();
    billing.database.execute(
        "ALTER TABLE orders ADD CONSTRAINT nobody_trusts_mallory CHECK (user_id <> 'mallory')",
    );
    // This message is larger than all unacknowledged deliveries together may be.
    let mut large = order("mallory");
    large.resize(40 * 1024 * 1024, b' ');

    billing.publish(&[(large, with_id("x")), placed("a")]);
    eventually("it is held", || {
        gauge(&billing.consumers[0], "orders_held") == 1
    });
    billing.publish(&[placed("b")]);
    billing.await_recorded(&["a", "b"]);
    billing
        .database
        .execute("ALTER TABLE orders DROP CONSTRAINT nobody_trusts_mallory");

    billing.await_recorded(&["a", "b", "x"]);
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 0);
}

/// A test of [`one_order_waits`] in a table without orders.
fn the_first_order_waits(breaks: &str, mends: &str, good: Published) {
    let billing = Billing::start();
    billing.database.execute(breaks);

    billing.publish(&[good, placed("a"), placed("b")]);
    billing.await_recorded(&["a", "b"]);
    billing.database.execute(mends);

    billing.await_recorded(&["a", "b", "good"]);
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 0);
}

#[test]
fn the_first_order_waits_for_a_constraint_that_the_least_order_does_not_keep() {
    let free = json!({ "user_id": "1", "number_of_items": 1, "total_amount": "0" });
    the_first_order_waits(
        "ALTER TABLE orders ADD CONSTRAINT nothing_is_free CHECK (total_amount > 0)",
        "ALTER TABLE orders DROP CONSTRAINT nothing_is_free",
        (free.to_string().into_bytes(), with_id("good")),
    );
}

#[test]
fn the_first_order_waits_for_the_user_that_somebody_wants_to_know() {
    the_first_order_waits(
        "CREATE TABLE users (id text PRIMARY KEY); INSERT INTO users VALUES ('a'), ('b'); \
         ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users",
        "INSERT INTO users VALUES ('good')",
        placed("good"),
    );
}

#[test]
fn a_message_id_is_itself_and_no_other_to_whatever_collation() {
    let billing = Billing::start();
    billing.publish(&[placed("k"), garbage("g")]);
    billing.await_settled();
    let retype = |collation: &str| {
        for table in ["orders", "dead_letters"] {
            billing.database.execute(&format!(
                "ALTER TABLE {table} ALTER message_id TYPE text COLLATE {collation}"
            ));
        }
    };
    billing.database.execute(
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    );
    retype("any_case");

    billing.publish(&[(order("k"), with_id("K")), garbage("G"), placed("a")]);
    billing.await_recorded(&["a", "k"]);
    eventually("those that look like others are held", || {
        gauge(&billing.consumers[0], "orders_held") == 2
    });
    retype("\"default\"");

    billing.await_recorded(&["K", "a", "k"]);
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 2);
}

#[test]
fn orders_do_not_wait_for_thousands_of_dead_letters_that_cannot_be_stored() {
    let billing = Billing::start();
    let mut holder = billing.database.connect();
    let mut lock = holder.transaction().expect("a transaction");
    lock.batch_execute("LOCK TABLE dead_letters")
        .expect("a lock");

    let garbage: Vec<_> = (0..5000)
        .map(|number| garbage(&format!("g-{number}")))
        .collect();
    billing.publish(&garbage);
    billing.publish(&[placed("a"), placed("b")]);
    billing.await_recorded(&["a", "b"]);
    assert!(billing.is_ready());
    lock.rollback().expect("the table is free");

    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 5000);
}

#[test]
fn orders_that_keep_coming_and_are_all_refused_are_said_not_to_be_recorded() {
    let billing = Billing::start();
    billing.publish(&[placed("before")]);
    billing.await_recorded(&["before"]);
    billing
        .database
        .execute("ALTER TABLE orders ADD CONSTRAINT closed CHECK (false) NOT VALID");

    let (mut expected, down) = (vec!["before".to_owned()], json!("down"));
    eventually("/ready says so while they come", || {
        let id = format!("m-{:05}", expected.len());
        // Dead letters and duplicates that are settled do not show that orders are recorded.
        billing.publish(&[placed(&id), garbage("g"), placed("before")]);
        expected.push(id);
        billing.ready().1["postgresql"] == down
    });
    billing
        .database
        .execute("ALTER TABLE orders DROP CONSTRAINT closed");

    eventually("all are recorded, each once", || {
        billing.recorded() == expected
    });
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 1);
}

#[test]
fn an_order_like_the_last_one_that_waits_holds_up_no_other() {
    let billing = Billing::start();
    billing.database.execute(
        "CREATE TABLE users (id text PRIMARY KEY); INSERT INTO users VALUES ('k'), ('a'), ('mallory'); \
         ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users",
    );
    billing.publish(&[(order("mallory"), with_id("x-1"))]);
    billing.await_recorded(&["x-1"]);
    billing.database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF NEW.user_id = ''mallory'' THEN \
          RAISE sqlclient_unable_to_establish_sqlconnection; END IF; RETURN NEW; END'; \
         CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let held = |count| {
        eventually("it is held", || {
            gauge(&billing.consumers[0], "orders_held") == count
        });
    };

    billing.publish(&[(order("mallory"), with_id("x-2"))]);
    held(1);
    billing.publish(&[placed("k")]);
    billing.await_recorded(&["k", "x-1"]);
    let mut holder = billing.database.connect();
    let mut open = holder.transaction().expect("a transaction");
    let lock = "SELECT FROM users WHERE id = 'k' FOR UPDATE";
    open.execute(lock, &[]).expect("a row");
    billing.publish(&[(order("k"), with_id("k-2"))]);
    held(2);
    eventually("/ready tells of it", || !billing.is_ready());
    billing.publish(&[placed("a")]);

    billing.await_recorded(&["a", "k", "x-1"]);
    eventually("it is ready again", || billing.is_ready());
    open.rollback().expect("the row is free");
    billing.database.execute("DROP TRIGGER refuse ON orders");
    billing.await_recorded(&["a", "k", "k-2", "x-1", "x-2"]);
}

#[test]
fn thousands_of_orders_that_wait_for_a_transaction_hold_up_no_other() {
    let billing = Billing::start();
    let locked: Vec<_> = (0..3000)
        .map(|number| placed(&format!("k-{number:04}")))
        .collect();
    billing.publish(&locked);
    billing.await_settled();
    let mut holder = billing.database.connect();
    let mut open = holder.transaction().expect("a transaction");
    let update = "UPDATE orders SET user_id = user_id";
    open.execute(update, &[]).expect("orders");

    billing.publish(&locked);
    eventually("they are held", || {
        gauge(&billing.consumers[0], "orders_held") == 3000
    });
    billing.publish(&[placed("a")]);
    eventually("the other is recorded", || billing.recorded().len() == 3001);
    assert_eq!(gauge(&billing.consumers[0], "orders_held"), 3000);
    open.rollback().expect("the orders are free");

    billing.await_settled();
    assert_eq!(
        (billing.recorded().len(), count_dead(&billing.database)),
        (3001, 0)
    );
}

#[test]
fn an_order_whose_statement_does_not_end_holds_up_no_other_and_is_shown_as_held() {
    let billing = Billing::start();
    billing.database.execute(
        "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF NEW.user_id = ''mallory'' THEN PERFORM pg_sleep(600); END IF; RETURN NEW; END'; \
         CREATE TRIGGER hang BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION hang()",
    );

    billing.publish(&[placed("a"), (order("mallory"), with_id("x")), placed("b")]);
    billing.await_recorded(&["a", "b"]);
    eventually("it is held", || {
        gauge(&billing.consumers[0], "orders_held") == 1
    });
    billing.publish(&[placed("c")]);
    eventually("the other is recorded", || {
        // The order counts as held even while it is tried again.
        assert_eq!(gauge(&billing.consumers[0], "orders_held"), 1);
        billing.recorded().len() == 3
    });
    billing.database.execute("DROP TRIGGER hang ON orders");

    billing.await_recorded(&["a", "b", "c", "x"]);
    billing.await_settled();
}

#[test]
fn nothing_is_asked_of_a_trigger_of_somebody_but_what_it_is_for() {
    let billing = Billing::start();
    billing.database.execute(
        "CREATE FUNCTION tally() RETURNS trigger LANGUAGE plpgsql AS \
         'DECLARE one text; BEGIN SELECT user_id INTO STRICT one FROM new LIMIT 1; RETURN NULL; END'; \
         CREATE TRIGGER tally AFTER INSERT ON orders REFERENCING NEW TABLE AS new \
         FOR EACH STATEMENT EXECUTE FUNCTION tally()",
    );

    billing.publish(&[placed("a"), garbage("g")]);

    billing.await_recorded(&["a"]);
    billing.await_settled();
    assert!(billing.is_ready());
}

#[test]
fn an_order_of_another_user_is_a_conflict_to_whatever_collation() {
    let billing = Billing::start();
    billing.database.execute(
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         ALTER TABLE orders ALTER user_id TYPE text COLLATE any_case",
    );

    billing.publish(&[(order("anna"), with_id("k"))]);
    billing.await_recorded(&["k"]);
    billing.publish(&[(order("ANNA"), with_id("k")), (order("anna"), with_id("k"))]);

    billing.await_settled();
    let dead = dead_letters(&billing.database);
    assert_eq!((dead.len(), dead[0].reason.as_str()), (1, "conflict"));
}

/// A trigger that ends the backend that inserts such an order.
fn ends_the_backend_of(condition: &str) -> String {
    format!(
        "CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN IF {condition} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; \
          RETURN NEW; END'; \
         CREATE TRIGGER crash BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION crash()"
    )
}

#[test]
fn an_order_that_ends_its_backend_each_time_is_held_and_holds_up_no_other() {
    let billing = Billing::start();
    billing
        .database
        .execute(&ends_the_backend_of("NEW.user_id = ''mallory''"));

    let ids: Vec<_> = (0..900).map(|number| format!("m-{number:03}")).collect();
    let mut messages: Vec<_> = ids.iter().map(|id| placed(id)).collect();
    messages.insert(500, (order("mallory"), with_id("x")));
    messages.insert(700, garbage("g-1"));
    billing.publish(&messages);
    let mut expected: Vec<_> = ids.iter().map(String::as_str).collect();
    billing.await_recorded(&expected);
    eventually("it is held", || {
        gauge(&billing.consumers[0], "orders_held") == 1
    });
    billing.publish(&[placed("later")]);
    expected.push("later");
    billing.await_recorded(&expected);
    assert!(billing.is_ready());
    billing.database.execute("DROP TRIGGER crash ON orders");

    expected.push("x");
    billing.await_recorded(&expected);
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 1);
}

#[test]
fn an_order_that_somebody_records_otherwise_is_recorded_once_and_its_repeat_is_no_conflict() {
    let billing = Billing::start();
    billing.database.execute(
        "CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN NEW.user_id := upper(NEW.user_id); RETURN NEW; END'; \
         CREATE TRIGGER tidy BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tidy()",
    );
    billing.publish(&[placed("a")]);
    billing.await_recorded(&["a"]);

    billing.publish(&[placed("a"), placed("b"), placed("b")]);

    billing.await_recorded(&["a", "b"]);
    billing.await_settled();
    assert_eq!(count_dead(&billing.database), 0);
}

#[test]
fn of_two_orders_with_one_message_id_the_one_that_is_passed_over_is_the_conflict() {
    let billing = Billing::start();
    billing.database.execute(
        "CREATE FUNCTION pass_over() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN RETURN CASE WHEN NEW.user_id <> ''mallory'' THEN NEW END; END'; \
         CREATE TRIGGER pass_over BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pass_over()",
    );

    billing.publish(&[(order("mallory"), with_id("k")), placed("k"), placed("a")]);

    billing.await_recorded(&["a", "k"]);
    billing.await_settled();
    let dead = dead_letters(&billing.database);
    let dead: Vec<_> = dead
        .iter()
        .map(|dead| (dead.reason.as_str(), dead.body.clone()))
        .collect();
    assert_eq!(dead, [("conflict", order("mallory"))]);
}
