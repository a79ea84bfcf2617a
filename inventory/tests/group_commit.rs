//! Several inventories and many clients on one table, which other programs change meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::http::HttpConfig;
use serde_json::{Value, json};
use testkit::{Client, Service, TestDatabase, eventually};

/// The number of slots is small, since the test server has few connections.
const WORKERS: usize = 4;

fn start(database: &TestDatabase) -> Service<inventory::Inventory> {
    let config = inventory::Config {
        http: HttpConfig::on_loopback(WORKERS),
        database: database.config(),
    };
    let service = Service::start(
        |shutdown| inventory::start(&config, shutdown),
        inventory::Inventory::address,
    );
    eventually("the table is there", || {
        service.client.get("/ready").status == 200
    });
    service
}

fn movie(title: &str) -> Value {
    json!({ "title": title, "description": "A film" })
}

#[test]
fn who_follows_while_others_create_at_two_inventories_sees_each_movie_once() {
    const WRITERS: usize = 32;
    const MOVIES_EACH: usize = 40;
    let database = TestDatabase::create();
    let services = [start(&database), start(&database)];
    let writing = AtomicUsize::new(WRITERS);

    let seen = thread::scope(|scope| {
        for number in 0..WRITERS {
            let (client, writing) = (&services[number % 2].client, &writing);
            scope.spawn(move || {
                let create = |_| client.post("/api/movies", &movie("Alien")).status;
                let statuses: Vec<u16> = (0..MOVIES_EACH).map(create).collect();
                // The count is lowered before the check, since the reader continues until all have written.
                writing.fetch_sub(1, Ordering::Release);
                assert_eq!(statuses, [201; MOVIES_EACH]);
            });
        }
        let mut seen: Vec<i64> = Vec::new();
        loop {
            // The count is read before the page, so that the last page is read after all movies are created.
            let over = writing.load(Ordering::Acquire) == 0;
            let after = seen.last().copied().unwrap_or(0);
            let page = services[0]
                .client
                .get(&format!("/api/movies?limit=1000&after={after}"));
            let movies = page.json.as_array().expect("a page").clone();
            if over && movies.is_empty() {
                return seen;
            }
            seen.extend(movies.iter().map(|movie| movie["id"].as_i64().expect("id")));
        }
    });

    let all: Vec<i64> = database
        .query("SELECT id FROM movies ORDER BY id", &[])
        .iter()
        .map(|row| row.get("id"))
        .collect();
    assert_eq!(all.len(), WRITERS * MOVIES_EACH);
    assert_eq!(seen, all);
}

#[test]
fn inventories_of_two_schemas_do_not_wait_for_each_other() {
    let (one, other) = (TestDatabase::create(), TestDatabase::create());
    let (held, free) = (start(&one), start(&other));
    let mut connection = one.connect();
    let mut lock = connection.transaction().expect("a transaction");
    lock.batch_execute(
        "SELECT pg_advisory_xact_lock('pg_class'::regclass::oid::integer, 'movies'::regclass::oid::integer)",
    )
    .expect("the lock");

    let (waited, created) = thread::scope(|scope| {
        let waiting = scope.spawn(|| held.client.post("/api/movies", &movie("Alien")));
        let created = free.client.post("/api/movies", &movie("Alien")).status;
        (waiting.join().expect("an answer"), created)
    });

    // The create does not get the lock within lock_timeout, and changes nothing.
    assert_eq!((waited.status, created), (503, 201));
    lock.rollback().expect("the end of the lock");
    assert_eq!(held.client.get("/api/movies").text, "[]");
}

/// Sends a request of every kind; returns the statuses of the answers.
fn ask_everything(client: &Client) -> Vec<u16> {
    let created = client.post("/api/movies", &movie("Brazil"));
    let path = format!("/api/movies/{}", created.json["id"]);
    let if_match = [("if-match", "*"), ("content-type", "application/json")];
    vec![
        created.status,
        client.get(&path).status,
        client.put(&path, &movie("Aliens")).status,
        client
            .send("PUT", &path, &if_match, Some(r#"{"title":"Alien"}"#))
            .status,
        client.get("/api/movies?limit=20").status,
        client.get("/api/movies?title=ali&limit=20").status,
        client.get("/api/movies?title=long").status,
        client.get("/api/movies").status,
        client.get("/api/movies/1").status,
        client.send("DELETE", &path, &if_match[..1], None).status,
    ]
}

#[test]
fn a_table_that_is_altered_under_load_costs_nobody_an_error() {
    const CLIENTS: usize = 4;
    let database = TestDatabase::create();
    let service = start(&database);
    let long = json!({ "title": "Long", "description": "long ".repeat(1000) });
    assert_eq!(service.client.post("/api/movies", &long).status, 201);
    let (rounds, over) = (AtomicUsize::new(0), AtomicBool::new(false));

    let statuses: Vec<Vec<u16>> = thread::scope(|scope| {
        let (client, rounds, over) = (&service.client, &rounds, &over);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(move || {
                    let mut statuses = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        statuses.push(ask_everything(client));
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                    statuses
                })
            })
            .collect();
        for change in [
            "ALTER COLUMN title TYPE varchar(300)",
            "ADD COLUMN rating integer",
            "ALTER COLUMN description TYPE varchar",
            "ALTER COLUMN title TYPE text",
            "DROP COLUMN rating",
            "ALTER COLUMN description TYPE text",
        ] {
            let before = rounds.load(Ordering::Relaxed);
            eventually("all places have prepared and used their statements", || {
                rounds.load(Ordering::Relaxed) >= before + 3 * CLIENTS
            });
            database.execute(&format!("ALTER TABLE movies {change}"));
        }
        over.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .flat_map(|client| client.join().expect("answers"))
            .collect()
    });

    let expected = [201, 200, 200, 200, 200, 200, 200, 200, 200, 200];
    for statuses in statuses {
        assert_eq!(statuses, expected);
    }
}
