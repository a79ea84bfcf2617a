//! Both programs as processes: their settings, their signals, and servers that stop and start.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, AmqpValue};
use serde_json::json;
use testkit::{
    Authority, Client, PrivatePostgres, Program, Relay, TestDatabase, TestQueue, eventually,
};

mod dead;

use dead::count_dead;

const API: &str = env!("CARGO_BIN_EXE_billing-api");
const CONSUMER: &str = env!("CARGO_BIN_EXE_billing-consumer");
const TOOL: &str = env!("CARGO_BIN_EXE_billing-dead-letters");
const PROGRAMS: [(&str, &str); 2] = [("billing-api", API), ("billing-consumer", CONSUMER)];

/// The settings of both programs; each reads those that it needs.
fn vars(database: &TestDatabase, queue: &TestQueue) -> Vec<(String, String)> {
    let mut vars = database.vars("BILLING_DB_NAME");
    vars.extend(queue.vars());
    for (key, value) in [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("BILLING_API_PORT", "0"),
        ("BILLING_CONSUMER_PORT", "0"),
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

/// The variables with a relay in front of the server whose variables begin with `server`.
fn behind(relay: &Relay, vars: Vec<(String, String)>, server: &str) -> Vec<(String, String)> {
    let address = relay.address();
    let vars = with(vars, &format!("{server}_HOST"), &address.ip().to_string());
    with(vars, &format!("{server}_PORT"), &address.port().to_string())
}

fn order(user_id: &str) -> Vec<u8> {
    json!({ "user_id": user_id, "number_of_items": 1, "total_amount": "1.00" })
        .to_string()
        .into_bytes()
}

/// Publishes orders, numbered from 0, each with an id of its own.
fn publish(queue: &TestQueue, count: u32) {
    let messages: Vec<_> = (0..count)
        .map(|number| {
            let id = format!("m-{number:06}");
            let properties = AmqpProperties::default().with_message_id(id.clone());
            (order(&id), properties)
        })
        .collect();
    queue.publish_all(&messages);
}

fn recorded(database: &TestDatabase) -> u32 {
    let count = database.count("SELECT count(*) FROM orders");
    u32::try_from(count).expect("not that many")
}

/// Starts the consumer, and waits until it consumes.
fn start_consumer(database: &TestDatabase, queue: &TestQueue) -> Program {
    let program = Program::start(CONSUMER, vars(database, queue));
    eventually("it consumes", || program.log().contains("msg=consuming"));
    program
}

/// Every number from 0 to `count`, once.
fn assert_recorded_once_each(database: &TestDatabase, count: u32) {
    let sql = "SELECT count(*), count(DISTINCT message_id), min(message_id), max(message_id) \
               FROM orders";
    let row = &database.query(sql, &[])[0];
    let (first, last) = ("m-000000", format!("m-{:06}", count - 1));
    assert_eq!(
        (
            row.get::<_, i64>(0),
            row.get::<_, i64>(1),
            row.get::<_, &str>(2),
            row.get::<_, &str>(3),
        ),
        (i64::from(count), i64::from(count), first, last.as_str())
    );
}

#[test]
fn a_missing_or_malformed_setting_is_named_and_ends_a_program_before_it_listens() {
    let missing = "is missing: set it in .env or in the environment";
    let no_port = "is malformed: it must be a port number from 0 to 65535";
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    for (name, path, key, value, problem) in [
        ("billing-api", API, "POSTGRES_READER_USER", "", missing),
        ("billing-api", API, "POSTGRES_READER_PASSWORD", "", missing),
        ("billing-api", API, "BILLING_DB_NAME", "", missing),
        ("billing-api", API, "BILLING_API_PORT", "70000", no_port),
        ("billing-api", API, "POSTGRES_PORT", "secret", no_port),
        (
            "billing-api",
            API,
            "HTTP_WORKERS",
            "0",
            "is malformed: it must be a whole number from 1 to 1024",
        ),
        (
            "billing-consumer",
            CONSUMER,
            "BILLING_CONSUMER_PORT",
            "",
            missing,
        ),
        (
            "billing-consumer",
            CONSUMER,
            "POSTGRES_PORT",
            "secret",
            no_port,
        ),
        ("billing-consumer", CONSUMER, "RABBITMQ_HOST", "", missing),
        (
            "billing-consumer",
            CONSUMER,
            "RABBITMQ_PORT",
            "secret",
            no_port,
        ),
        (
            "billing-consumer",
            CONSUMER,
            "POSTGRES_PASSWORD",
            "",
            missing,
        ),
        (
            "billing-consumer",
            CONSUMER,
            "RABBITMQ_CONSUMER_USER",
            "",
            missing,
        ),
        (
            "billing-consumer",
            CONSUMER,
            "RABBITMQ_CONSUMER_PASSWORD",
            "",
            missing,
        ),
        ("billing-consumer", CONSUMER, "RABBITMQ_QUEUE", "", missing),
        (
            "billing-consumer",
            CONSUMER,
            "LISTEN_ADDRESS",
            "secret",
            "is malformed: it must be an IP address such as 0.0.0.0",
        ),
    ] {
        let program = Program::start(path, with(vars(&database, &queue), key, value));

        let (status, log) = program.wait();

        assert_eq!(status.code(), Some(2), "{name}: {key}");
        assert!(
            log.starts_with(&format!("{name}: {key} {problem}")),
            "{log}"
        );
        assert!(
            !log.contains("secret") && !log.contains("listening"),
            "{log}"
        );
    }
}

#[test]
fn the_api_needs_no_setting_of_the_queue_and_none_of_the_role_that_owns_the_orders() {
    let database = TestDatabase::create().migrated(billing::MIGRATIONS);
    let mut vars = vars(&database, &TestQueue::create());
    let owner = ["POSTGRES_USER", "POSTGRES_PASSWORD"];
    vars.retain(|(key, _)| !key.starts_with("RABBITMQ_") && !owner.contains(&key.as_str()));

    let program = Program::start(API, vars);

    let client = Client::new(program.address());
    eventually("it is ready", || client.get("/ready").status == 200);
}

#[test]
fn the_consumer_needs_no_setting_of_those_who_only_read_or_publish() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let mut vars = vars(&database, &queue);
    let others = [
        "POSTGRES_READER_USER",
        "POSTGRES_READER_PASSWORD",
        "RABBITMQ_USER",
        "RABBITMQ_PASSWORD",
    ];
    vars.retain(|(key, _)| !others.contains(&key.as_str()));

    let program = Program::start(CONSUMER, vars);

    let client = Client::new(program.address());
    eventually("it is ready", || client.get("/ready").status == 200);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    for (_, path) in PROGRAMS {
        let first = Program::start(path, vars(&database, &queue));
        let port = first.address().port().to_string();
        let taken = ["BILLING_API_PORT", "BILLING_CONSUMER_PORT"]
            .iter()
            .fold(vars(&database, &queue), |vars, key| with(vars, key, &port));

        let (status, log) = Program::start(path, taken).wait();

        assert_eq!(status.code(), Some(1));
        assert!(
            log.contains(&format!("cannot listen on 127.0.0.1:{port}: ")),
            "{log}"
        );
    }
}

#[test]
fn sigint_and_sigterm_end_both_programs_with_0() {
    for (_, path) in PROGRAMS {
        for signal in ["INT", "TERM"] {
            let database = TestDatabase::create().migrated(billing::MIGRATIONS);
            let queue = TestQueue::create();
            let program = Program::start(path, vars(&database, &queue));
            let client = Client::new(program.address());
            eventually("it is ready", || client.get("/ready").status == 200);

            program.signal(signal);

            let (status, log) = program.wait();
            assert_eq!(status.code(), Some(0), "{log}");
            assert!(
                log.contains(&format!("msg=\"shutting down\" signal=SIG{signal}")),
                "{log}"
            );
        }
    }
}

#[test]
fn a_signal_ends_both_programs_with_0_while_their_servers_are_away() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let relay = Relay::down("127.0.0.1", 0);
    for (_, path) in PROGRAMS {
        let vars = behind(&relay, vars(&database, &queue), "POSTGRES");
        let program = Program::start(path, behind(&relay, vars, "RABBITMQ"));
        let client = Client::new(program.address());
        assert_eq!(client.get("/ready").status, 503);

        program.signal("TERM");

        let (status, log) = program.wait();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

#[test]
fn the_api_started_before_postgresql_answers_and_heals_by_itself() {
    let database = TestDatabase::create().migrated(billing::MIGRATIONS);
    let queue = TestQueue::create();
    let relay = database.relay_down();
    let program = Program::start(API, behind(&relay, vars(&database, &queue), "POSTGRES"));
    let client = Client::new(program.address());

    let orders = client.get("/api/orders");
    let ready = client.get("/ready");

    assert_eq!(
        orders.problem(),
        (503, "the database is unavailable; try again")
    );
    assert_eq!(orders.header("retry-after"), "1");
    assert_eq!(
        (ready.status, &ready.json["dependencies"]),
        (503, &json!({ "postgresql": "down" }))
    );
    assert_eq!(client.get("/health").status, 200);
    assert_eq!(client.get("/api/health").status, 200);
    relay.restore();
    eventually("it is ready", || client.get("/ready").status == 200);
    assert_eq!(client.get("/api/orders").text, "[]");
}

#[test]
fn the_api_answers_503_while_postgresql_is_away() {
    let database = TestDatabase::create().migrated(billing::MIGRATIONS);
    let queue = TestQueue::create();
    let relay = database.relay_up();
    let program = Program::start(API, behind(&relay, vars(&database, &queue), "POSTGRES"));
    let client = Client::new(program.address());
    eventually("it is ready", || client.get("/ready").status == 200);

    relay.cut();

    for target in ["/api/orders", "/api/orders/1", "/api/orders?user_id=20"] {
        eventually("the loss is noticed", || client.get(target).status == 503);
    }
    assert_eq!(client.get("/health").status, 200);
    let shows = |line| client.get("/metrics").text.contains(line);
    assert!(shows("\npostgresql_connected 0\n"));
    relay.restore();
    eventually("the orders are back", || {
        client.get("/api/orders").status == 200
    });
    assert!(shows("\npostgresql_connected 1\n"));
}

#[test]
fn the_consumer_started_before_either_server_heals_by_itself() {
    for (server, down, up) in [
        ("POSTGRES", "postgresql", "rabbitmq"),
        ("RABBITMQ", "rabbitmq", "postgresql"),
    ] {
        let (database, queue) = (TestDatabase::create(), TestQueue::create());
        let relay = match server {
            "POSTGRES" => database.relay_down(),
            _ => queue.relay_down(),
        };
        publish(&queue, 10);
        let vars = behind(&relay, vars(&database, &queue), server);
        let program = Program::start(CONSUMER, vars);
        let client = Client::new(program.address());

        eventually("it knows what is down", || {
            client.get("/ready").json["dependencies"] == json!({ down: "down", up: "up" })
        });

        assert_eq!(client.get("/health").status, 200);
        assert_eq!(queue.counts(), Some((10, 0)));
        relay.restore();
        eventually("it is ready", || client.get("/ready").status == 200);
        eventually("the orders are recorded", || recorded(&database) == 10);
    }
}

#[test]
fn sigterm_under_load_loses_no_order_and_the_next_consumer_records_the_rest() {
    const COUNT: u32 = 6000;
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    publish(&queue, COUNT);
    let program = start_consumer(&database, &queue);
    eventually("orders are recorded", || recorded(&database) > 0);

    program.signal("TERM");

    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    let before = recorded(&database);
    eventually("the others are in the queue", || {
        queue.counts() == Some((COUNT - before, 0))
    });
    let _next = start_consumer(&database, &queue);
    eventually("all are recorded", || recorded(&database) >= COUNT);
    assert_recorded_once_each(&database, COUNT);
    assert_eq!(count_dead(&database), 0);
}

#[test]
fn a_consumer_killed_under_load_loses_no_order_and_repeats_none() {
    const COUNT: u32 = 6000;
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    publish(&queue, COUNT);
    let program = start_consumer(&database, &queue);
    eventually("orders are recorded", || recorded(&database) > 0);

    program.signal("KILL");

    let (status, _) = program.wait();
    assert_eq!(status.code(), None);
    let _next = start_consumer(&database, &queue);
    eventually("all are recorded", || recorded(&database) >= COUNT);
    assert_recorded_once_each(&database, COUNT);
    assert_eq!(count_dead(&database), 0);
}

#[test]
fn a_program_suspended_in_the_midst_of_a_transaction_holds_up_the_consumers_for_seconds_only() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let consumer = start_consumer(&database, &queue);
    publish(&queue, 1);
    eventually("an order is recorded", || recorded(&database) == 1);
    database.execute(
        "CREATE TABLE hangs AS SELECT 1; \
         CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN WHILE EXISTS (SELECT FROM hangs) LOOP PERFORM pg_sleep(0.05); END LOOP; \
          RETURN NULL; END'; \
         CREATE TRIGGER hang AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION hang(); \
         INSERT INTO dead_letters (reason, detail, exchange, routing_key, properties, body, body_bytes) \
         VALUES ('body', '', '', '', '{}', \
                 '{\"user_id\":\"1\",\"number_of_items\":1,\"total_amount\":1}', 51)",
    );
    let mut tool = Command::new(TOOL);
    tool.arg("replay").env_clear().envs(vars(&database, &queue));
    let mut tool = tool.current_dir("/").spawn().expect("a program");
    eventually("it writes", || {
        let sql = "SELECT count(*) FROM pg_locks WHERE relation = 'hangs'::regclass \
                   AND pid <> pg_backend_pid()";
        database.count(sql) == 1
    });

    signal(&tool, "STOP");
    database.execute("DELETE FROM hangs");
    publish(&queue, 10);

    let asked = Instant::now();
    eventually("the others are recorded", || recorded(&database) == 10);
    assert!(asked.elapsed() < Duration::from_secs(15));
    signal(&tool, "CONT");
    assert!(tool.wait().expect("a child").success());
    assert_eq!((recorded(&database), count_dead(&database)), (10, 1));
    drop(consumer);
}

fn signal(program: &Child, name: &str) {
    let mut kill = Command::new("kill");
    let sent = kill.args(["-s", name, &program.id().to_string()]).status();
    assert!(sent.expect("kill").success(), "the program runs");
}

#[test]
fn garbage_in_the_batch_of_an_outage_costs_no_order() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let postgresql = database.relay_up();
    let vars = behind(&postgresql, vars(&database, &queue), "POSTGRES");
    let program = Program::start(CONSUMER, vars);
    eventually("it consumes", || program.log().contains("msg=consuming"));

    program.signal("STOP");
    publish(&queue, 10);
    queue.publish(b"garbage", AmqpProperties::default());
    postgresql.cut();
    program.signal("CONT");
    eventually("it meets the outage", || {
        program
            .log()
            .contains("interrupted; orders wait in the queue")
    });
    assert_eq!((recorded(&database), count_dead(&database)), (0, 0));
    postgresql.restore();

    eventually("all is settled", || {
        recorded(&database) == 10 && count_dead(&database) == 1
    });
    assert_recorded_once_each(&database, 10);
    eventually("nothing is left in the queue", || {
        queue.counts() == Some((0, 1))
    });
}

#[test]
fn the_log_of_the_consumer_tells_of_a_postgresql_that_does_not_answer() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let program = start_consumer(&database, &queue);
    let mut holder = database.connect();
    let turn = "SELECT pg_advisory_lock('orders'::regclass::oid::bigint)";
    holder.batch_execute(turn).expect(turn);

    publish(&queue, 1);
    eventually("it is told", || {
        let text = "level=warn program=billing-consumer target=billing::health \
                    msg=\"PostgreSQL takes long; orders wait in the queue\"";
        program.log().contains(text)
    });
    drop(holder);

    eventually("it is told that this is over", || {
        program.log().contains("msg=\"PostgreSQL has answered\"")
    });
    assert_recorded_once_each(&database, 1);
}

#[test]
fn a_consumer_ends_with_0_in_time_whatever_is_frozen() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let postgresql = database.relay_up();
    let rabbitmq = queue.relay_up();
    for frozen in [&[&postgresql][..], &[&rabbitmq], &[&postgresql, &rabbitmq]] {
        let vars = behind(&postgresql, vars(&database, &queue), "POSTGRES");
        let program = Program::start(CONSUMER, behind(&rabbitmq, vars, "RABBITMQ"));
        eventually("it consumes", || program.log().contains("msg=consuming"));
        for relay in frozen {
            relay.freeze();
        }
        publish(&queue, 10);
        eventually("a server is waited for", || {
            frozen.iter().any(|relay| relay.holds_something())
        });

        let asked = Instant::now();
        program.signal("TERM");

        let (status, log) = program.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{log}");
        for relay in frozen {
            relay.restore();
        }
    }
    let _next = start_consumer(&database, &queue);
    eventually("all are recorded", || recorded(&database) == 10);
    assert_eq!(count_dead(&database), 0);
}

#[test]
fn two_consumers_record_every_order_once_while_a_standby_takes_over_and_all_is_encrypted() {
    let authority = Authority::create();
    let signed = authority.sign("localhost");
    let mut primary = PrivatePostgres::create_with_tls(&signed, &authority.file());
    let standby = primary.standby();
    primary.commit_on_standby();
    let queue = TestQueue::create_over_tls();
    let [first, second] = [&primary, &standby].map(|server| server.address().port());
    let hosts = format!("localhost:{first},localhost:{second}");
    let mut vars = primary.vars();
    vars.extend(queue.vars());
    for (key, value) in [
        ("POSTGRES_HOST", &*hosts),
        ("POSTGRES_SSLMODE", "verify-full"),
        ("POSTGRES_SSLROOTCERT", &authority.file()),
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("BILLING_CONSUMER_PORT", "0"),
    ] {
        vars = with(vars, key, value);
    }
    let consumers = [(); 2].map(|()| Program::start(CONSUMER, vars.clone()));
    eventually("both consume", || queue.counts() == Some((0, 2)));
    let recorded = |orders: u32| {
        let sql = "SELECT concat(count(*), ' ', count(DISTINCT message_id)) FROM orders";
        let expected = format!("{orders} {orders}");
        eventually(&expected, || standby.text(sql) == expected);
    };
    publish(&queue, 200);
    recorded(200);

    primary.kill();
    publish(&queue, 400);
    standby.execute("SELECT pg_promote()");

    recorded(400);
    for consumer in &consumers {
        let client = Client::new(consumer.address());
        eventually("it is ready", || client.get("/ready").status == 200);
    }
    let encrypted = "SELECT bool_and(ssl)::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                      WHERE usename = 'tests'";
    assert_eq!(standby.text(encrypted), "true");
}

/// Other programs publish messages that are larger than all orders together; some of them are orders.
#[test]
fn a_backlog_of_huge_messages_is_settled_in_bounded_memory() {
    const MEBIBYTE: usize = 1024 * 1024;
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let huge_order = |user_id: &str, bytes: usize| {
        let note = " ".repeat(bytes);
        format!(r#"{{"note":"{note}","user_id":"{user_id}","number_of_items":1,"total_amount":1}}"#)
            .into_bytes()
    };
    for round in 0..6 {
        let id = |name: &str| AmqpProperties::default().with_message_id(format!("{name}-{round}"));
        queue.publish(&huge_order("large", 16 * MEBIBYTE), id("large"));
        queue.publish(&vec![b'x'; 16 * MEBIBYTE], id("poison"));
        queue.publish_all(&vec![
            (
                huge_order("less", MEBIBYTE),
                AmqpProperties::default()
            );
            10
        ]);
        queue.publish_all(&vec![(vec![0; MEBIBYTE], AmqpProperties::default()); 10]);
        queue.publish(&order("small"), id("small"));
    }

    let program = start_consumer(&database, &queue);

    let client = Client::new(program.address());
    eventually("all is settled", || {
        let metrics = client.get("/metrics").text;
        recorded(&database) == 6 * 12 && metrics.contains("orders_dead_total{reason=\"body\"} 66\n")
    });
    let most = program.stats().most_resident_kib / 1024;
    assert!(most < 160, "{most} MiB for a backlog of 312 MiB");
    program.signal("TERM");
    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(queue.counts(), Some((0, 0)));
    assert_eq!(count_dead(&database), 6 * 11);
    let alone = log
        .matches("msg=\"message put aside as a dead letter\"")
        .count();
    let together = log
        .lines()
        .filter_map(|line| line.split_once("more messages put aside or held\" count="))
        .filter_map(|(_, rest)| rest.parse::<usize>().ok());
    assert_eq!(alone + together.sum::<usize>(), 6 * 11, "{log}");
}

#[test]
fn what_the_consumer_records_the_api_reads_out() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let _consumer = start_consumer(&database, &queue);
    let api = Program::start(API, vars(&database, &queue));
    let client = Client::new(api.address());
    let body = br#"{"user_id":20,"number_of_items":"99","total_amount":250}"#;
    let properties = AmqpProperties::default().with_message_id("m-1".to_owned());

    queue.publish(body, properties);

    eventually("the order is shown", || {
        client.get("/api/orders/1").status == 200
    });
    let mut shown = client.get("/api/orders/1").json;
    let created_at = shown["created_at"].take();
    assert_eq!(
        shown,
        json!({
            "id": 1,
            "message_id": "m-1",
            "user_id": "20",
            "number_of_items": 99,
            "total_amount": "250.00",
            "created_at": null,
        })
    );
    let rfc_3339 = "SELECT abs(extract(epoch FROM now() - $1::text::timestamptz)) < 300 \
                    AND $1 ~ '^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{6}Z$'";
    let created_at = created_at.as_str().expect("a time");
    let row = &database.query(rfc_3339, &[&created_at])[0];
    assert!(row.get::<_, bool>(0), "{created_at}");
}

#[test]
fn a_queue_with_other_arguments_is_used_and_the_log_says_once_what_they_do() {
    let (single, type_) = ("x-single-active-consumer", "x-queue-type");
    for (arguments, queue_type, effect) in [
        (
            vec![(single, AmqpValue::Boolean(true))],
            "classic",
            "one consumer records all orders, and another one only after that one has ended",
        ),
        (
            vec![("x-message-ttl", AmqpValue::LongInt(3_600_000))],
            "classic",
            "orders that wait longer than that are deleted",
        ),
        (
            vec![(type_, AmqpValue::LongString("classic".to_owned()))],
            "quorum",
            "the queue has another type",
        ),
    ] {
        let (database, queue) = (TestDatabase::create(), TestQueue::create());
        queue.declare_with(&arguments);
        let relay = queue.relay_up();
        let vars = behind(&relay, vars(&database, &queue), "RABBITMQ");
        let program = Program::start(CONSUMER, with(vars, "BILLING_QUEUE_TYPE", queue_type));
        let client = Client::new(program.address());

        eventually("it is ready", || client.get("/ready").status == 200);
        // A new connection finds the queue unchanged.
        relay.cut();
        eventually("the link is gone", || client.get("/ready").status == 503);
        relay.restore();
        eventually("it is ready again", || client.get("/ready").status == 200);
        publish(&queue, 1);
        eventually("the order is recorded", || recorded(&database) == 1);

        let log = program.log();
        let told: Vec<_> = log.lines().filter(|l| l.contains("level=error")).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        let asked =
            format!("those of BILLING_QUEUE_TYPE={queue_type}; the queue is used unchanged");
        for part in [effect, &asked, arguments[0].0] {
            assert!(told[0].contains(part), "{part} in {told:?}");
        }
    }
}

#[test]
fn of_several_brokers_one_that_is_there_is_found_and_another_when_it_is_gone() {
    let (database, queue) = (TestDatabase::create(), TestQueue::create());
    let brokers = [queue.relay_down(), queue.relay_up(), queue.relay_up()];
    let hosts = brokers.each_ref().map(|relay| relay.address().to_string());
    let vars = with(vars(&database, &queue), "RABBITMQ_HOST", &hosts.join(","));
    let program = Program::start(CONSUMER, vars);
    let client = Client::new(program.address());
    eventually("it is ready", || client.get("/ready").status == 200);

    for (gone, back) in [(1, 0), (2, 1), (0, 2)] {
        brokers[gone].cut();
        publish(&queue, 10);
        eventually("orders are recorded by way of another", || {
            queue.counts() == Some((0, 1))
        });
        brokers[back].restore();
    }
    assert_recorded_once_each(&database, 10);
}

#[test]
fn help_and_version_are_answered_and_other_arguments_refused() {
    for (name, path) in PROGRAMS {
        let run = |argument: &str| {
            std::process::Command::new(path)
                .arg(argument)
                .output()
                .expect(path)
        };

        let version = run("--version");

        let text = String::from_utf8_lossy(&version.stdout).into_owned();
        assert_eq!(text, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        let help = run("--help").stdout;
        assert!(String::from_utf8_lossy(&help).contains(&format!("Usage: {name}")));
        assert_eq!(run("--verbose").status.code(), Some(2));
    }
}

#[test]
fn with_a_key_of_operations_nobody_else_sees_the_metrics_of_either_program() {
    let database = TestDatabase::create().migrated(billing::MIGRATIONS);
    let queue = TestQueue::create();
    for (name, path) in PROGRAMS {
        let with_key = with(vars(&database, &queue), "OPERATIONS_KEY", "a-key");
        let program = Program::start(path, with_key);
        let client = Client::new(program.address());
        let header = [("authorization", "Bearer a-key")];

        eventually("it is ready", || client.get("/ready").status == 200);

        assert_eq!(client.get("/ready").json, json!({ "status": "ready" }));
        assert_eq!(client.get("/metrics").status, 401, "{name}");
        let ready = client.send("GET", "/ready", &header, None);
        assert_eq!(ready.json["dependencies"]["postgresql"], "up", "{name}");
        let metrics = client.send("GET", "/metrics", &header, None);
        assert!(metrics.text.contains("\nprocess_threads "), "{name}");
    }
}
