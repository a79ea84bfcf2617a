//! The operator's program for dead letters, as a process, on a real PostgreSQL.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use serde_json::{Value, json};
use testkit::{TestDatabase, TestQueue, eventually};

mod dead;

use dead::{count_dead, dead_letters};

const PROGRAM: &str = env!("CARGO_BIN_EXE_billing-dead-letters");

/// A database with the tables of billing.
fn database() -> TestDatabase {
    TestDatabase::create().migrated(billing::MIGRATIONS)
}

/// Runs the program; returns its exit code and its output.
fn run(database: &TestDatabase, arguments: &[&str]) -> (Option<i32>, String, String) {
    run_with(database.vars("BILLING_DB_NAME"), arguments)
}

fn run_with(vars: Vec<(String, String)>, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .env_clear()
        .envs(vars)
        .current_dir("/")
        .output();
    let Output {
        status,
        stdout,
        stderr,
    } = output.expect(PROGRAM);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// Adds a dead letter like those of the consumer, two hours old.
fn put_aside(database: &TestDatabase, message_id: Option<&str>, reason: &str, body: &[u8]) -> i64 {
    let rows = database.query(
        "INSERT INTO dead_letters (message_id, reason, detail, exchange, routing_key, properties, \
                                   body, body_bytes, received_at) \
         VALUES ($1, $2, $2 || ' is odd', '', 'q', json_strip_nulls(json_build_object('message_id', $1::text)), \
                 $3, octet_length($3::bytea), now() - interval '2 hours') RETURNING id",
        &[&message_id, &reason, &body],
    );
    rows[0].get(0)
}

fn order(user_id: &str) -> Vec<u8> {
    json!({ "user_id": user_id, "number_of_items": 1, "total_amount": "1.00" })
        .to_string()
        .into_bytes()
}

fn recorded(database: &TestDatabase) -> Vec<(Option<String>, String)> {
    let rows = database.query("SELECT message_id, user_id FROM orders ORDER BY id", &[]);
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn ok(said: &str) -> (Option<i32>, String, String) {
    (Some(0), said.to_owned(), String::new())
}

/// A folder that is deleted after its test.
struct Folder(PathBuf);

impl Folder {
    fn create(database: &TestDatabase) -> Self {
        let path = std::env::temp_dir().join(database.config().schema);
        fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn file(&self) -> (PathBuf, String) {
        let path = self.0.join("dead letters.jsonl");
        let text = path.to_string_lossy().into_owned();
        (path, text)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_list_shows_one_line_for_each_and_nothing_that_a_terminal_obeys() {
    let database = database();
    put_aside(&database, Some("m-1"), "user_id", b"{\"note\": \"one\"}");
    put_aside(&database, None, "body", b"\x1b]0;owned\x07\n\xe2\x80\xae");

    let listed = run(&database, &["list"]);

    let dash = format!("{:<36}", "-");
    let id = format!("{:<36}", "m-1");
    assert_eq!(
        listed,
        ok(&format!(
            "       1    2h  user_id          {id}  user_id is odd  {{\"note\": \"one\"}}\n       \
             2    2h  body             {dash}  body is odd  \\u{{1b}}]0;owned\\u{{7}}\\n\\u{{202e}}\n\
             2 of 2 dead letters\n"
        ))
    );
}

#[test]
fn filters_choose_by_reason_message_id_id_and_age_and_all_of_them_are_to_fit() {
    let database = database();
    for (message_id, reason) in [
        ("a", "body"),
        ("b", "conflict"),
        ("c", "body"),
        ("d", "body"),
    ] {
        put_aside(&database, Some(message_id), reason, message_id.as_bytes());
    }
    database.execute("UPDATE dead_letters SET received_at = now() WHERE message_id = 'd'");
    let listed = |filters: &[&str]| {
        let (code, out, error) = run(&database, &[&["list"], filters].concat());
        assert_eq!(code, Some(0), "{error}");
        let lines = out.lines().filter(|line| line.starts_with("   "));
        let id = |line: &str| line.split_whitespace().next().expect("an id").to_owned();
        lines.map(id).collect::<Vec<_>>().join(" ")
    };

    for (filters, expected) in [
        (&["--reason", "body"][..], "1 3 4"),
        (&["--reason", "body", "--older-than", "1h"], "1 3"),
        (&["--newer-than", "30m"], "4"),
        (&["--message-id", "b"], "2"),
        (&["3", "1"], "1 3"),
        (&["3", "2", "--reason", "conflict"], "2"),
        (&["--after", "2", "--limit", "1"], "3"),
        (&["--message-id", "none"], ""),
    ] {
        assert_eq!(listed(filters), expected, "{filters:?}");
    }
}

#[test]
fn one_is_shown_whole_and_one_that_there_is_not_is_said() {
    let database = database();
    let id = put_aside(&database, Some("m-1"), "body", b"\xff\x00");

    let (code, out, _) = run(&database, &["show", &id.to_string()]);

    let mut shown: Value = serde_json::from_str(&out).expect("JSON");
    let at = shown["received_at"].take();
    assert!(at.as_str().is_some_and(|at| at.ends_with('Z')), "{at}");
    assert_eq!(
        (code, shown),
        (
            Some(0),
            json!({
                "id": 1,
                "message_id": "m-1",
                "request_id": null,
                "reason": "body",
                "detail": "body is odd",
                "exchange": "",
                "routing_key": "q",
                "body_bytes": 2,
                "cut": false,
                "received_at": null,
                "properties": { "message_id": "m-1" },
                "body": { "base64": "/wA=" },
            })
        )
    );
    let missing = run(&database, &["show", "7"]);
    let said = "billing-dead-letters: there is no such dead letter\n";
    assert_eq!(missing, (Some(1), String::new(), said.to_owned()));
}

#[test]
fn a_replay_records_what_can_be_recorded_by_now_once_and_says_why_the_rest_remains() {
    let database = database();
    database.execute(
        "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
         VALUES ('there', 'there', 1, 1), ('other', 'other', 1, 1)",
    );
    put_aside(&database, Some("m-1"), "database", &order("one"));
    put_aside(&database, None, "database", &order("nameless"));
    put_aside(&database, Some("there"), "database", &order("there"));
    put_aside(&database, Some("other"), "database", &order("another"));
    put_aside(&database, Some("m-2"), "user_id", b"garbage");
    let cut = put_aside(&database, Some("m-3"), "database", &order("cut"));
    database.execute(&format!(
        "UPDATE dead_letters SET body_bytes = 5000 WHERE id = {cut}"
    ));

    let replayed = run(&database, &["replay"]);

    assert_eq!(
        replayed,
        ok("4: another order is recorded with this message id\n\
            5: the body is not a JSON object\n\
            6: only the start of the body is kept\n\
            3 replayed, 3 remain\n")
    );
    let row = |id: Option<&str>, user: &str| (id.map(str::to_owned), user.to_owned());
    assert_eq!(
        recorded(&database),
        [
            row(Some("there"), "there"),
            row(Some("other"), "other"),
            row(Some("m-1"), "one"),
            row(None, "nameless"),
        ]
    );
    let reasons: Vec<_> = dead_letters(&database)
        .into_iter()
        .map(|dead| dead.reason)
        .collect();
    assert_eq!(reasons, ["conflict", "body", "body"]);
    assert_eq!(
        run(&database, &["replay", "1", "2"]),
        ok("0 replayed, 0 remain\n")
    );
}

#[test]
fn a_replay_of_a_dead_letter_that_waits_for_a_lock_leaves_it_and_goes_on() {
    let database = database();
    put_aside(&database, Some("k"), "database", &order("k"));
    put_aside(&database, Some("m-1"), "database", &order("m-1"));
    let mut holder = database.connect();
    let mut open = holder.transaction().expect("a transaction");
    let insert = "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
                  VALUES ('k', 'k', 1, 1)";
    open.execute(insert, &[]).expect("an order");

    let replayed = run(&database, &["replay"]);

    assert_eq!(
        replayed,
        ok(
            "1: not now: another session holds a lock in PostgreSQL: canceling statement due to lock \
             timeout (SQLSTATE 55P03)\n1 replayed, 1 remain\n"
        )
    );
    open.commit().expect("the order is there");
    assert_eq!(run(&database, &["replay"]), ok("1 replayed, 0 remain\n"));
    assert_eq!((recorded(&database).len(), count_dead(&database)), (2, 0));
}

#[test]
fn a_replay_that_could_not_remove_its_dead_letter_records_nothing() {
    let database = database();
    put_aside(&database, None, "database", &order("nameless"));
    database.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER keep BEFORE DELETE ON dead_letters FOR EACH ROW EXECUTE FUNCTION keep()",
    );

    let replayed = run(&database, &["replay"]);

    assert_eq!(
        replayed,
        ok(
            "1: not now: PostgreSQL refused: a trigger or a policy of somebody else has passed a message \
             over\n0 replayed, 1 remain\n"
        )
    );
    assert_eq!((recorded(&database).len(), count_dead(&database)), (0, 1));
    database.execute("DROP TRIGGER keep ON dead_letters");
    assert_eq!(run(&database, &["replay"]), ok("1 replayed, 0 remain\n"));
    assert_eq!((recorded(&database).len(), count_dead(&database)), (1, 0));
}

#[test]
fn what_is_dropped_is_gone_and_nothing_else() {
    let database = database();
    for body in [&b"1"[..], b"2", b"3"] {
        put_aside(&database, None, "body", body);
    }

    assert_eq!(run(&database, &["drop", "2"]), ok("1 dropped\n"));

    let left: Vec<_> = dead_letters(&database)
        .into_iter()
        .map(|dead| dead.body)
        .collect();
    assert_eq!(left, [b"1", b"3"]);
    assert_eq!(
        run(&database, &["drop", "--older-than", "0s"]),
        ok("2 dropped\n")
    );
    assert_eq!(count_dead(&database), 0);
}

#[test]
fn an_export_has_a_line_for_each_and_leaves_all_in_its_place() {
    let database = database();
    put_aside(&database, Some("m-1"), "body", b"text");
    put_aside(&database, None, "body", &vec![b'x'; 3_000_000]);
    let folder = Folder::create(&database);
    let (path, text) = folder.file();

    let exported = run(&database, &["export", &text]);

    assert_eq!(exported, ok("2 dead letters exported\n"));
    let lines = fs::read_to_string(path).expect("a file");
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!((lines.len(), &lines[0]["body"]), (2, &json!("text")));
    assert_eq!(lines[1]["body"].as_str().map(str::len), Some(3_000_000));
    assert_eq!(count_dead(&database), 2);
    let names = fs::read_dir(&folder.0).expect("a folder").count();
    assert_eq!(names, 1);
}

#[test]
fn an_export_that_cannot_be_written_is_said_and_leaves_nothing() {
    let database = database();

    let (code, out, error) = run(&database, &["export", "/nowhere/dead.jsonl"]);

    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains("No such file or directory"), "{error}");
}

#[test]
fn a_million_dead_letters_are_listed_at_once() {
    let database = database();
    database.execute(
        "INSERT INTO dead_letters (message_id, reason, detail, exchange, routing_key, properties, \
                                   body, body_bytes) \
         SELECT 'm-' || n, CASE n WHEN 900000 THEN 'conflict' ELSE 'body' END, 'odd', '', 'q', '{}', \
                '', 0 FROM generate_series(1, 1000000) n; ANALYZE dead_letters",
    );
    // With so many rows a plan that reads all of them takes far longer than one that does not.
    let mut vars = database.vars("BILLING_DB_NAME");
    vars.push(("RUST_LOG".to_owned(), "error".to_owned()));
    database.execute("ALTER TABLE dead_letters SET (autovacuum_enabled = false)");
    let read = "SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables \
                WHERE relid = 'dead_letters'::regclass";
    let before = database.count(read);

    for (filters, end) in [
        (&["list"][..], "1000 of 100000 or more dead letters\n"),
        (&["list", "--reason", "conflict"], "1 of 1 dead letters\n"),
        (&["list", "--message-id", "m-7"], "1 of 1 dead letters\n"),
        (&["list", "999999"], "1 of 1 dead letters\n"),
    ] {
        let (_, out, error) = run_with(vars.clone(), filters);
        assert!(out.ends_with(end), "{filters:?} {out} {error}");
    }

    eventually("the counters are told, and no list reads all", || {
        database.count(read) - before <= 2 * 100_000
    });
}

#[test]
fn what_an_older_version_left_in_rabbitmq_is_imported_with_its_reason() {
    let (database, queue) = (database(), TestQueue::create());
    let old = queue.old_dead_queue();
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    let dead = |reason: &str, id: Option<&str>| {
        let headers: FieldTable = [
            ("x-dead-reason".to_owned(), text(reason)),
            ("x-request-id".to_owned(), text("trace-7")),
        ]
        .into_iter()
        .collect();
        let properties = AmqpProperties::default().with_headers(headers);
        match id {
            Some(id) => properties.with_message_id(id.to_owned()),
            None => properties,
        }
    };
    let mut vars = database.vars("BILLING_DB_NAME");
    vars.extend(queue.vars());
    let import = || run_with(vars.clone(), &["import"]);
    assert_eq!(import(), ok("0 dead letters imported\n"));
    old.publish_all(&[
        (b"one".to_vec(), dead("user_id is required", Some("m-1"))),
        (order("20"), dead("the database refused it: x", None)),
        (b"three".to_vec(), AmqpProperties::default()),
    ]);

    assert_eq!(import(), ok("3 dead letters imported\n"));

    let letters = dead_letters(&database);
    let letters: Vec<_> = letters
        .iter()
        .map(|dead| {
            (
                dead.reason.as_str(),
                dead.detail.as_str(),
                dead.request_id.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        letters,
        [
            ("user_id", "user_id is required", Some("trace-7")),
            ("database", "the database refused it: x", Some("trace-7")),
            ("body", "unknown", None),
        ]
    );
    assert_eq!(old.counts(), Some((0, 0)));
    assert_eq!(import(), ok("0 dead letters imported\n"));
}

#[test]
fn an_import_that_is_stopped_says_so_and_the_next_one_takes_the_rest() {
    const COUNT: i64 = 300;
    let (database, queue) = (database(), TestQueue::create());
    let mut vars = database.vars("BILLING_DB_NAME");
    vars.extend(queue.vars());
    let import = || run_with(vars.clone(), &["import"]);
    assert_eq!(import(), ok("0 dead letters imported\n"));
    let old = queue.old_dead_queue();
    let letter = |number| {
        let id = AmqpProperties::default().with_message_id(format!("m-{number}"));
        (b"garbage".to_vec(), id)
    };
    old.publish_all(&(0..COUNT).map(letter).collect::<Vec<_>>());
    // A transaction that records waits for this lock.
    let mut holder = database.connect();
    let turn = "SELECT pg_advisory_lock('orders'::regclass::oid::bigint)";
    holder.batch_execute(turn).expect(turn);

    let stopped = Command::new(PROGRAM)
        .arg("import")
        .env_clear()
        .envs(vars.clone())
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect(PROGRAM);
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                 AND objid = 'orders'::regclass::oid";
    eventually("the import waits", || database.count(waits) == 1);
    let signalled = Command::new("kill").arg(stopped.id().to_string()).status();
    assert!(signalled.expect("kill").success());
    drop(holder);
    let stopped = stopped.wait_with_output().expect("the import ends");

    let imported = count_dead(&database);
    assert!(imported < COUNT);
    let said =
        format!("billing-dead-letters: stopped before the end; {imported} dead letters imported\n");
    assert_eq!(String::from_utf8(stopped.stderr).expect("UTF-8"), said);
    assert_eq!(stopped.status.code(), Some(1));
    let rest = COUNT - imported;
    assert_eq!(import(), ok(&format!("{rest} dead letters imported\n")));
    assert_eq!(count_dead(&database), COUNT);
}

#[test]
fn a_call_that_makes_no_sense_is_refused_with_how_it_is_made() {
    let database = database();
    for (arguments, said) in [
        (&[][..], "list, show, replay, drop, export or import?"),
        (&["bury"], "list, show, replay, drop, export or import?"),
        (&["drop"], "drop needs a filter"),
        (&["show"], "show takes the ID of one"),
        (
            &["list", "--reason", "bad"],
            "--reason does not take \"bad\"",
        ),
        (
            &["list", "--older-than", "7"],
            "--older-than does not take \"7\"",
        ),
        (&["list", "--limit", "0"], "--limit does not take \"0\""),
        (&["list", "--after"], "--after does not take \"\""),
        (&["drop", "x"], "x is no id and no filter"),
    ] {
        let (code, out, error) = run(&database, arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(
            error.starts_with(&format!("billing-dead-letters: {said}"))
                && error.contains("Usage: billing-dead-letters list"),
            "{error}"
        );
    }
}

#[test]
fn a_database_that_is_away_is_said() {
    let database = database();
    let mut vars = database.vars("BILLING_DB_NAME");
    vars.retain(|(key, _)| key != "POSTGRES_PORT");
    vars.push(("POSTGRES_PORT".to_owned(), "1".to_owned()));

    let (code, out, error) = run_with(vars, &["list"]);

    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(error.contains("PostgreSQL is unavailable"), "{error}");
}

#[test]
fn dead_letters_that_are_replayed_twice_at_once_are_recorded_once() {
    let database = database();
    for number in 0..200 {
        put_aside(&database, None, "database", &order(&number.to_string()));
    }

    std::thread::scope(|scope| {
        let replays = [(); 2].map(|()| scope.spawn(|| run(&database, &["replay"])));
        for replay in replays {
            assert_eq!(replay.join().expect("no panic").0, Some(0));
        }
    });

    assert_eq!((recorded(&database).len(), count_dead(&database)), (200, 0));
}

#[test]
fn an_export_to_what_is_no_file_is_refused() {
    let database = database();

    let (code, out, error) = run(&database, &["export", "/dev/null"]);

    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(error, "billing-dead-letters: /dev/null is no file\n");
}
