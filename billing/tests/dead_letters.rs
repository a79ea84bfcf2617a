//! The operator's program for the dead queue, as a process, before a real RabbitMQ.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::SystemTime;

use amiquip::{AmqpProperties, AmqpValue, FieldTable, Publish};
use common::queue::Link;
use serde_json::{Value, json};
use testkit::{Message, TestQueue};

const PROGRAM: &str = env!("CARGO_BIN_EXE_billing-dead-letters");

/// What is passed without being acknowledged by the program.
const HELD_MAX: usize = 10_000;

/// Runs the program; its exit code, and what it wrote.
fn run(queue: &TestQueue, arguments: &[&str]) -> (Option<i32>, String, String) {
    run_with(queue.vars(), arguments)
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

/// A dead letter as the consumer writes them, two hours old.
fn dead_letter(dead_id: &str, body: &[u8]) -> (Vec<u8>, AmqpProperties) {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    let headers: FieldTable = [
        ("x-dead-reason", text("user_id is required")),
        ("x-dead-time", AmqpValue::Timestamp(now - 7300)),
        ("x-dead-id", text(dead_id)),
        ("x-request-id", text("trace-7")),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    let properties = AmqpProperties::default().with_headers(headers);
    (body.to_vec(), properties)
}

fn with_id((body, properties): (Vec<u8>, AmqpProperties), id: &str) -> (Vec<u8>, AmqpProperties) {
    (body, properties.with_message_id(id.to_owned()))
}

/// Puts messages on the dead queue.
fn bury(queue: &TestQueue, messages: &[(Vec<u8>, AmqpProperties)]) {
    let mut link = Link::open(&queue.config(), "tests").expect("a link");
    let confirming = link.open_confirming(&queue.dead_name()).expect("a channel");
    for (body, properties) in messages {
        let mut publish = Publish::new(body, queue.dead_name());
        publish.properties = properties.clone();
        let published = confirming.channel.basic_publish("", publish);
        published.expect("a publish");
    }
    let mut last = 0;
    while last < messages.len() as u64 {
        let confirm = confirming.confirms.recv().expect("a confirm");
        let amiquip::Confirm::Ack(ack) = confirm else {
            panic!("{confirm:?}")
        };
        last = last.max(ack.delivery_tag);
    }
}

fn bodies(messages: &[Message]) -> Vec<String> {
    let text = |message: &Message| String::from_utf8_lossy(&message.body).into_owned();
    messages.iter().map(text).collect()
}

/// A folder that is gone with its test.
struct Folder(PathBuf);

impl Folder {
    fn create(queue: &TestQueue) -> Self {
        let path = std::env::temp_dir().join(queue.name());
        fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("a folder");
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries
            .map(|entry| name(entry.expect("an entry")))
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_list_shows_age_id_reason_and_content_and_leaves_all_in_its_place() {
    let queue = TestQueue::create();
    let letters = [
        with_id(dead_letter("d-1", b"{\"note\": \"one\"}"), "m-1"),
        dead_letter("d-2", b"\x1b]0;owned\x07\n\xe2\x80\xae"),
        with_id(dead_letter("d-3", b"three"), "spaces are hard to type"),
        (b"hello".to_vec(), AmqpProperties::default()),
    ];
    bury(&queue, &letters);

    let listed = run(&queue, &["list"]);

    let id = |id: &str| format!("{id:<36}");
    let expected = format!(
        "  2h  {}  user_id is required  {{\"note\": \"one\"}}\n\
         \x20 2h  {}  user_id is required  \\u{{1b}}]0;owned\\u{{7}}\\n\\u{{202e}}\n\
         \x20 2h  {}  user_id is required  three\n\
         \x20  -  {}  unknown  hello\n\
         4 of 4 dead letters\n",
        id("m-1"),
        id("d-2"),
        id("d-3"),
        id("sha256-2cf24dba5fb0a30e26e83b2a"),
    );
    assert_eq!(listed, (Some(0), expected, String::new()));
    let (_, first, _) = run(&queue, &["list", "1"]);
    assert!(first.ends_with("one\"}\n1 of 4 dead letters\n"), "{first}");
    let left = queue.take_all_dead();
    let kept: Vec<_> = left.into_iter().map(|m| (m.body, m.properties)).collect();
    assert_eq!(kept, letters);
}

#[test]
fn a_replay_puts_all_back_as_they_were_each_with_an_id() {
    let queue = TestQueue::create();
    let (body, properties) = with_id(dead_letter("d-1", b"one"), "m-1");
    let properties = properties
        .with_content_type("text/plain".to_owned())
        .with_timestamp(1_700_000_000);
    bury(&queue, &[(body, properties), dead_letter("d-2", b"two")]);

    let replayed = run(&queue, &["replay"]);

    assert_eq!(
        replayed,
        (Some(0), "2 of 2 replayed\n".to_owned(), String::new())
    );
    let headers: FieldTable = [(
        "x-request-id".to_owned(),
        AmqpValue::LongString("trace-7".to_owned()),
    )]
    .into_iter()
    .collect();
    let plain = || {
        AmqpProperties::default()
            .with_delivery_mode(2)
            .with_headers(headers.clone())
    };
    let orders = queue.take_all();
    let orders: Vec<_> = orders.into_iter().map(|m| (m.body, m.properties)).collect();
    assert_eq!(
        orders,
        [
            (
                b"one".to_vec(),
                plain()
                    .with_content_type("text/plain".to_owned())
                    .with_message_id("m-1".to_owned())
                    .with_timestamp(1_700_000_000)
            ),
            (b"two".to_vec(), plain().with_message_id("d-2".to_owned())),
        ]
    );
    assert!(queue.take_dead().is_none());
}

#[test]
fn only_those_that_are_named_are_replayed_or_dropped() {
    let queue = TestQueue::create();
    bury(
        &queue,
        &[
            with_id(dead_letter("d-1", b"one"), "m-1"),
            dead_letter("d-2", b"two"),
            with_id(dead_letter("d-3", b"three"), "m-3"),
            with_id(dead_letter("d-4", b"four"), "m-3"),
            (b"hello".to_vec(), AmqpProperties::default()),
            dead_letter("d-6", b"six"),
        ],
    );

    let replayed = run(&queue, &["replay", "d-2", "m-3"]);
    let dropped = run(&queue, &["drop", "d-1", "sha256-2cf24dba5fb0a30e26e83b2a"]);

    assert_eq!((replayed.0, replayed.1.as_str()), (Some(0), "3 replayed\n"));
    assert_eq!((dropped.0, dropped.1.as_str()), (Some(0), "2 dropped\n"));
    assert_eq!(bodies(&queue.take_all()), ["two", "three", "four"]);
    assert_eq!(bodies(&queue.take_all_dead()), ["six"]);
}

#[test]
fn an_id_that_no_dead_letter_has_is_named() {
    let queue = TestQueue::create();
    bury(&queue, &[dead_letter("d-1", b"one")]);

    let (code, out, error) = run(&queue, &["drop", "nobody", "d-1"]);

    assert_eq!(
        (code, out.as_str(), error.as_str()),
        (
            Some(1),
            "1 dropped\n",
            "billing-dead-letters: no dead letter is called nobody\n"
        )
    );
    assert!(queue.take_dead().is_none());
}

#[test]
fn an_export_has_a_line_of_json_for_each_and_what_is_no_text_as_base64() {
    let queue = TestQueue::create();
    let folder = Folder::create(&queue);
    let file = folder.0.join("dead.jsonl");
    fs::write(&file, "an older export").expect("a file");
    bury(
        &queue,
        &[
            with_id(dead_letter("d-1", b"line\n\"two\""), "m-1"),
            (b"\xff\0".to_vec(), AmqpProperties::default()),
        ],
    );

    let (code, out, error) = run(&queue, &["export", file.to_str().expect("UTF-8")]);

    assert_eq!(
        (code, out.as_str(), error.as_str()),
        (Some(0), "2 dead letters exported\n", "")
    );
    let text = fs::read_to_string(&file).expect("a file");
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let time = lines[0]["time"].take();
    assert!(
        time.as_str().is_some_and(|time| time.ends_with('Z')),
        "{time}"
    );
    assert_eq!(
        lines,
        [
            json!({
                "id": "m-1", "message_id": "m-1", "reason": "user_id is required", "time": null,
                "timestamp": null, "content_type": null, "body": "line\n\"two\"",
            }),
            json!({
                "id": "sha256-ea5dbf9596d187e9500f23e9", "message_id": null, "reason": "unknown",
                "time": null, "timestamp": null, "content_type": null, "body_base64": "/wA=",
            }),
        ]
    );
    assert_eq!(folder.names(), ["dead.jsonl"]);
    assert_eq!(queue.take_all_dead().len(), 2);
}

#[test]
fn an_export_that_fails_leaves_what_was_there() {
    let queue = TestQueue::create();
    let folder = Folder::create(&queue);
    let file = folder.0.join("dead.jsonl");
    fs::write(&file, "an older export").expect("a file");
    let relay = queue.relay_down();
    let mut vars = queue.vars();
    vars.retain(|(key, _)| key != "RABBITMQ_HOST");
    vars.push(("RABBITMQ_HOST".to_owned(), relay.address().to_string()));

    let (code, _, error) = run_with(vars, &["export", file.to_str().expect("UTF-8")]);

    assert_eq!(code, Some(1), "{error}");
    assert_eq!(
        fs::read_to_string(&file).expect("a file"),
        "an older export"
    );
    assert_eq!(folder.names(), ["dead.jsonl"]);
}

#[test]
fn of_a_queue_that_is_too_long_to_be_held_one_is_dropped_and_the_others_keep_their_order() {
    let queue = TestQueue::create();
    let letters: Vec<_> = (0..HELD_MAX + 500)
        .map(|number| dead_letter(&format!("d-{number}"), number.to_string().as_bytes()))
        .collect();
    bury(&queue, &letters);

    let dropped = run(&queue, &["drop", "d-5000"]);

    assert_eq!(dropped, (Some(0), "1 dropped\n".to_owned(), String::new()));
    let left = queue.take_all_dead();
    let left: Vec<_> = left.into_iter().map(|m| (m.body, m.properties)).collect();
    let others = letters.into_iter().enumerate();
    let others = others.filter(|(number, _)| *number != 5000);
    assert!(left == others.map(|(_, letter)| letter).collect::<Vec<_>>());
}

#[test]
fn how_to_call_it_is_told_and_other_calls_are_refused() {
    let queue = TestQueue::create();
    let (code, out, _) = run(&queue, &["--version"]);
    assert_eq!(
        (code, out),
        (
            Some(0),
            format!("billing-dead-letters {}\n", env!("CARGO_PKG_VERSION"))
        )
    );
    let (code, out, _) = run(&queue, &["--help"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("Usage: billing-dead-letters list"), "{out}");
    for wrong in [
        &[][..],
        &["drop"],
        &["list", "0"],
        &["list", "all"],
        &["export"],
        &["purge"],
    ] {
        let (code, out, error) = run(&queue, wrong);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{wrong:?}");
        assert!(
            error.contains("Usage: billing-dead-letters list"),
            "{error}"
        );
    }
}
