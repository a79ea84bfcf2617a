//! Movies, through a real socket, on a real PostgreSQL.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::iter;
use std::net::TcpStream;
use std::thread;

use common::http::HttpConfig;
use serde_json::{Value, json};
use testkit::{Client, Reply, Service, TestDatabase, eventually};

/// The number of slots is small, since the test server has few connections.
const WORKERS: usize = 2;

struct Inventory {
    service: Service<inventory::Inventory>,
    database: TestDatabase,
}

impl Inventory {
    fn start() -> Self {
        let database = TestDatabase::create();
        let config = inventory::Config {
            http: HttpConfig::on_loopback(WORKERS),
            database: database.config(),
        };
        let service = Service::start(
            |shutdown| inventory::start(&config, shutdown),
            inventory::Inventory::address,
        );
        Self { service, database }
    }

    fn client(&self) -> &Client {
        &self.service.client
    }

    fn get(&self, target: &str) -> Reply {
        self.client().get(target)
    }

    fn create(&self, title: &str) -> Value {
        self.client().post("/api/movies", &movie(title)).json
    }

    fn titles(&self, target: &str) -> Vec<String> {
        titles(&self.get(target))
    }

    /// Creates all movies at the same time.
    fn create_together(&self, titles: &[String]) -> Vec<Reply> {
        self.together(titles, |title| {
            self.client().post("/api/movies", &movie(title))
        })
    }

    /// Sends all requests while the table is locked, so that they continue at the same time.
    fn together<T: Sync>(&self, all: &[T], ask: impl Fn(&T) -> Reply + Sync) -> Vec<Reply> {
        let mut connection = self.database.connect();
        let mut lock = connection.transaction().expect("a transaction");
        lock.batch_execute("LOCK TABLE movies IN ACCESS EXCLUSIVE MODE")
            .expect("the lock");
        let waiting =
            "SELECT count(*) FROM pg_locks WHERE relation = 'movies'::regclass AND NOT granted";
        thread::scope(|scope| {
            let ask = &ask;
            let asking: Vec<_> = all
                .iter()
                .map(|one| scope.spawn(move || ask(one)))
                .collect();
            // The number of workers that have a request by then depends on the machine.
            eventually("some wait for the table, and the others for those", || {
                self.database.count(waiting) > 0
            });
            lock.rollback().expect("the end of the lock");
            let replies = asking
                .into_iter()
                .map(|asking| asking.join().expect("an answer"));
            replies.collect()
        })
    }
}

fn movie(title: &str) -> Value {
    json!({ "title": title, "description": "A film" })
}

fn titles(reply: &Reply) -> Vec<String> {
    let movies = reply.json.as_array().expect("an array");
    movies
        .iter()
        .map(|movie| movie["title"].as_str().expect("a title").to_owned())
        .collect()
}

fn with_id(mut movie: Value, id: &Value) -> Value {
    movie["id"] = id.clone();
    movie
}

#[test]
fn a_list_without_movies_is_an_empty_array() {
    let inventory = Inventory::start();

    let reply = inventory.get("/api/movies");

    assert_eq!((reply.status, reply.text.as_str()), (200, "[]"));
    assert_eq!(reply.header("content-type"), "application/json");
}

#[test]
fn a_created_movie_is_answered_with_its_place_and_can_be_read_there() {
    let inventory = Inventory::start();

    let reply = inventory.client().post("/api/movies", &movie("Alien"));

    assert_eq!(
        (reply.status, &reply.json),
        (201, &with_id(movie("Alien"), &json!(1)))
    );
    assert_eq!(reply.header("location"), "/api/movies/1");
    let read = inventory.get("/api/movies/1");
    assert_eq!((read.status, read.json), (200, reply.json));
}

#[test]
fn a_client_cannot_choose_an_id_or_add_a_field() {
    let inventory = Inventory::start();
    let mut wish = movie("Alien");
    wish["id"] = json!(77);
    wish["rating"] = json!(10);

    let reply = inventory.client().post("/api/movies", &wish);

    assert_eq!(
        (reply.status, reply.json),
        (201, with_id(movie("Alien"), &json!(1)))
    );
}

#[test]
fn movies_are_listed_in_the_order_of_their_ids() {
    let inventory = Inventory::start();
    for title in ["Brazil", "Alien", "Casablanca"] {
        inventory.create(title);
    }

    assert_eq!(
        inventory.titles("/api/movies"),
        ["Brazil", "Alien", "Casablanca"]
    );
}

#[test]
fn a_search_finds_any_part_of_a_title_in_any_case() {
    let inventory = Inventory::start();
    for title in ["Alien", "Aliens", "L'ÉCLAIR", "Brazil"] {
        inventory.create(title);
    }

    assert_eq!(
        inventory.titles("/api/movies?title=LIEN"),
        ["Alien", "Aliens"]
    );
    assert_eq!(
        inventory.titles("/api/movies?title=%C3%A9clair"),
        ["L'ÉCLAIR"]
    );
    assert_eq!(inventory.titles("/api/movies?title=nothing"), [""; 0]);
    assert_eq!(inventory.titles("/api/movies?title=").len(), 4);
}

#[test]
fn a_search_takes_letters_that_unicode_folds_to_one_for_one() {
    let inventory = Inventory::start();
    for title in ["Ο ΘΊΑΣΟΣ", "Ο θίασος", "\u{17f}olaris", "Straße"] {
        inventory.create(title);
    }

    for part in ["ΘΊΑΣΟΣ", "θίασος", "θίασοσ", "ΣΟΣ", "ςος"] {
        let found = inventory.titles(&format!("/api/movies?title={}", encoded(part)));
        assert_eq!(found, ["Ο ΘΊΑΣΟΣ", "Ο θίασος"], "{part}");
    }
    assert_eq!(
        inventory.titles("/api/movies?title=SOLA"),
        ["\u{17f}olaris"]
    );
    // A simple folding does not change one letter into two.
    assert_eq!(inventory.titles("/api/movies?title=strasse"), [""; 0]);
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        let _ = write!(encoded, "%{byte:02X}");
        encoded
    })
}

#[test]
fn a_search_takes_wildcards_and_quotes_literally() {
    let inventory = Inventory::start();
    for title in [
        "100% Wolf",
        "100 Wolves",
        "under_score",
        "underscore",
        r"back\slash",
        "O'Brien",
    ] {
        inventory.create(title);
    }

    assert_eq!(inventory.titles("/api/movies?title=100%25"), ["100% Wolf"]);
    assert_eq!(inventory.titles("/api/movies?title=r_s"), ["under_score"]);
    assert_eq!(inventory.titles("/api/movies?title=k%5Cs"), [r"back\slash"]);
    assert_eq!(inventory.titles("/api/movies?title=O'B"), ["O'Brien"]);
}

#[test]
fn pages_lead_through_all_movies_and_then_end() {
    let inventory = Inventory::start();
    for number in 1..=5 {
        inventory.create(&format!("Part {number}"));
    }
    let mut target = "/api/movies?limit=2&title=part".to_owned();
    let mut pages = Vec::new();

    loop {
        let reply = inventory.get(&target);
        pages.push(titles(&reply));
        let link = reply.header("link");
        if link.is_empty() {
            break;
        }
        let (uri, relation) = link.split_once("; ").expect("a link and its relation");
        assert_eq!(relation, r#"rel="next""#);
        target = uri.trim_matches(['<', '>']).to_owned();
    }

    assert_eq!(
        pages,
        [
            vec!["Part 1", "Part 2"],
            vec!["Part 3", "Part 4"],
            vec!["Part 5"]
        ]
    );
}

#[test]
fn a_page_that_ends_with_the_last_movie_has_no_next_one() {
    let inventory = Inventory::start();
    for title in ["Alien", "Brazil"] {
        inventory.create(title);
    }

    let reply = inventory.get("/api/movies?limit=2");

    assert_eq!((titles(&reply).len(), reply.header("link")), (2, ""));
    assert_eq!(inventory.titles("/api/movies?after=1"), ["Brazil"]);
    assert_eq!(inventory.titles("/api/movies?limit=1&after=1"), ["Brazil"]);
}

#[test]
fn a_page_that_makes_no_sense_is_refused_by_name() {
    let inventory = Inventory::start();
    for (query, detail) in [
        ("limit=0", "limit must be a whole number from 1 to 1000"),
        ("limit=1001", "limit must be a whole number from 1 to 1000"),
        ("limit=ten", "limit must be a whole number from 1 to 1000"),
        (
            "limit=1&after=-1",
            "after must be a whole number from 0 to 9223372036854775807",
        ),
        ("limit=1&limit=2", "limit is given twice"),
        ("title=%00", "title must not contain NUL"),
        ("title=%FF", "title is not UTF-8"),
    ] {
        let reply = inventory.get(&format!("/api/movies?{query}"));

        assert_eq!(reply.problem(), (400, detail), "{query}");
    }
}

#[test]
fn a_change_touches_only_the_fields_that_it_names() {
    let inventory = Inventory::start();
    inventory.create("Alien");

    let reply = inventory
        .client()
        .put("/api/movies/1", &json!({ "title": "Aliens" }));

    let expected = with_id(movie("Aliens"), &json!(1));
    assert_eq!((reply.status, &reply.json), (200, &expected));
    let reply = inventory
        .client()
        .put("/api/movies/1", &json!({ "description": "More" }));
    assert_eq!(
        reply.json,
        json!({ "id": 1, "title": "Aliens", "description": "More" })
    );
    assert_eq!(inventory.get("/api/movies/1").json, reply.json);
}

#[test]
fn a_deleted_movie_is_gone_and_said_so() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    inventory.create("Brazil");

    let reply = inventory.client().delete("/api/movies/1");

    let answer = json!({ "message": "Movie with id 1 has been deleted", "id": 1 });
    assert_eq!((reply.status, reply.json), (200, answer));
    assert_eq!(inventory.get("/api/movies/1").status, 404);
    assert_eq!(inventory.titles("/api/movies"), ["Brazil"]);
}

#[test]
fn deleting_a_movie_twice_is_not_found_the_second_time() {
    let inventory = Inventory::start();
    let path = format!("/api/movies/{}", inventory.create("Alien")["id"]);

    assert_eq!(inventory.client().delete(&path).status, 200);

    assert_eq!(inventory.client().delete(&path).status, 404);
}

#[test]
fn all_movies_are_deleted_and_counted() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    inventory.create("Brazil");

    let reply = inventory.client().delete("/api/movies");

    let answer = json!({ "message": "All movies have been deleted", "deleted": 2 });
    assert_eq!((reply.status, reply.json), (200, answer));
    assert_eq!(inventory.get("/api/movies").text, "[]");
}

#[test]
fn an_id_that_no_movie_has_is_not_found_whatever_it_looks_like() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    for id in [
        "2",
        "0",
        "-1",
        "+1",
        "01",
        "1.0",
        "one",
        "%31x",
        "1%00",
        "9223372036854775807",
        "9223372036854775808",
        "99999999999999999999999999",
        "%F0%9F%8E%AC",
        "1'--",
    ] {
        let path = format!("/api/movies/{id}");

        let statuses = [
            inventory.get(&path).status,
            inventory.client().put(&path, &movie("Aliens")).status,
            inventory.client().delete(&path).status,
        ];

        assert_eq!(statuses, [404; 3], "{id}");
    }
    assert_eq!(inventory.titles("/api/movies"), ["Alien"]);
}

#[test]
fn a_movie_that_breaks_a_rule_is_refused_by_the_name_of_the_field() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    let long = "ü".repeat(256);
    for (fields, detail) in [
        (json!({ "title": "Alien" }), "description is required"),
        (json!({ "description": "A film" }), "title is required"),
        (
            json!({ "title": 5, "description": "A film" }),
            "title must be a string",
        ),
        (
            json!({ "title": null, "description": "A film" }),
            "title must be a string",
        ),
        (
            json!({ "title": "Alien", "description": " \n" }),
            "description must not be blank",
        ),
        (
            json!({ "title": "a\0b", "description": "A film" }),
            "title must not contain NUL",
        ),
        (
            json!({ "title": long, "description": "A film" }),
            "title may have at most 255 characters",
        ),
    ] {
        let reply = inventory.client().post("/api/movies", &fields);

        assert_eq!(reply.problem(), (400, detail));
    }
    let reply = inventory.client().put("/api/movies/1", &json!({}));
    assert_eq!(reply.problem(), (400, "title or description is required"));
    assert_eq!(inventory.titles("/api/movies"), ["Alien"]);
}

#[test]
fn titles_of_every_script_come_back_as_they_were_sent() {
    let inventory = Inventory::start();
    for title in [
        "七人の侍",
        "Ирония судьбы",
        "🎬",
        "\"quoted\" \\ / \u{7f}\t",
        &"ü".repeat(255),
    ] {
        let id = inventory.create(title)["id"].clone();

        let read = inventory.get(&format!("/api/movies/{id}"));

        assert_eq!(read.json["title"], title);
    }
}

#[test]
fn a_body_that_is_no_json_object_is_refused() {
    let inventory = Inventory::start();
    for body in [
        "",
        "{",
        "[]",
        "null",
        "\"Alien\"",
        "{\"title\":\"Alien\",}",
        "title=Alien",
    ] {
        let headers = [("content-type", "application/json")];

        let reply = inventory
            .client()
            .send("POST", "/api/movies", &headers, Some(body));

        let (status, detail) = reply.problem();
        assert_eq!(status, 400, "{body}");
        assert!(
            detail.starts_with("the body is not a JSON object"),
            "{body}: {detail}"
        );
    }
}

#[test]
fn a_body_that_is_not_said_to_be_json_is_an_unsupported_media_type() {
    let inventory = Inventory::start();
    let body = movie("Alien").to_string();
    for headers in [&[][..], &[("content-type", "text/plain")]] {
        let reply = inventory
            .client()
            .send("POST", "/api/movies", headers, Some(&body));

        assert_eq!(reply.status, 415, "{headers:?}");
    }
    let headers = [("content-type", "application/json; charset=utf-8")];
    let reply = inventory
        .client()
        .send("POST", "/api/movies", &headers, Some(&body));
    assert_eq!(reply.status, 201);
}

#[test]
fn a_body_without_a_length_is_asked_for_it_and_one_over_the_limit_is_refused() {
    let inventory = Inventory::start();
    let bare = "POST /api/movies HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
                Content-Type: application/json\r\n\r\n";
    let huge = json!({ "title": "Alien", "description": "x".repeat(1024 * 1024) });

    let answer = testkit::exchange(inventory.client().address(), bare.as_bytes());
    let reply = inventory.client().post("/api/movies", &huge);

    assert!(
        answer.starts_with("HTTP/1.1 411 Length Required\r\n"),
        "{answer}"
    );
    assert_eq!(
        reply.problem(),
        (413, "a body may have at most 1048576 bytes")
    );
    assert_eq!(inventory.get("/api/movies").text, "[]");
}

#[test]
fn a_path_with_one_trailing_slash_is_the_same_resource() {
    let inventory = Inventory::start();
    inventory.create("Alien");

    assert_eq!(inventory.titles("/api/movies/"), ["Alien"]);
    assert_eq!(inventory.get("/api/movies/1/").json["title"], "Alien");
    assert_eq!(inventory.get("/api/movies/1//").status, 404);
}

#[test]
fn head_answers_as_get_does_without_the_content() {
    let inventory = Inventory::start();
    inventory.create("Alien");

    let got = inventory.get("/api/movies/1");
    let head = inventory.client().send("HEAD", "/api/movies/1", &[], None);

    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), got.text.len().to_string());
    assert_eq!(
        inventory
            .client()
            .send("HEAD", "/api/movies", &[], None)
            .status,
        200
    );
    assert_eq!(
        inventory
            .client()
            .send("HEAD", "/api/movies/9", &[], None)
            .status,
        404
    );
}

#[test]
fn options_and_other_methods_are_told_what_a_resource_allows() {
    let inventory = Inventory::start();
    for (path, allow) in [
        ("/api/movies", "GET, HEAD, POST, DELETE, OPTIONS"),
        ("/api/movies/1", "GET, HEAD, PUT, DELETE, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
    ] {
        let options = inventory.client().send("OPTIONS", path, &[], None);
        let patch = inventory.client().send("PATCH", path, &[], Some("{}"));

        assert_eq!((options.status, options.header("allow")), (204, allow));
        assert_eq!((patch.status, patch.header("allow")), (405, allow));
    }
}

#[test]
fn a_problem_is_described_as_rfc_9457_asks() {
    let inventory = Inventory::start();

    let reply = inventory
        .client()
        .send("GET", "/api/films", &[("x-request-id", "trace-7")], None);

    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(reply.header("x-request-id"), "trace-7");
    let expected = json!({
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is nothing at /api/films",
        "request_id": "trace-7",
    });
    assert_eq!((reply.status, reply.json), (404, expected));
}

#[test]
fn operations_are_answered_by_the_process_and_by_its_database() {
    let inventory = Inventory::start();
    inventory.get("/api/movies/1");

    let health = inventory.get("/health");
    let ready = inventory.get("/ready");
    let metrics = inventory.get("/metrics");

    assert_eq!(
        (health.status, health.json),
        (200, json!({ "status": "ok" }))
    );
    let state = json!({ "status": "ready", "dependencies": { "postgresql": "up" } });
    assert_eq!((ready.status, ready.json), (200, state));
    assert_eq!(
        metrics.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    for line in [
        "http_requests_total{method=\"GET\",route=\"/api/movies/:id\",status=\"404\"} 1\n",
        "\nprocess_start_time_seconds ",
        "\nprocess_resident_memory_bytes ",
        "\nprocess_open_fds ",
        "\nprocess_threads ",
    ] {
        assert!(metrics.text.contains(line), "{line:?} in {}", metrics.text);
    }
}

#[test]
fn movies_that_are_created_together_have_an_id_each() {
    let inventory = Inventory::start();
    inventory.get("/api/movies");
    let titles: Vec<String> = (0..40).map(|number| format!("Part {number}")).collect();

    let replies = inventory.create_together(&titles);

    for (title, reply) in titles.iter().zip(replies) {
        let created = with_id(movie(title), &reply.json["id"]);
        assert_eq!((reply.status, &reply.json), (201, &created));
        assert_eq!(inventory.get(reply.header("location")).json, created);
    }
}

#[test]
fn movies_that_are_asked_for_together_are_each_found() {
    let inventory = Inventory::start();
    let alien = inventory.create("Alien");
    // The description is too long to be read together with others.
    let brazil = json!({ "title": "Brazil", "description": "long ".repeat(1000) });
    let brazil = inventory.client().post("/api/movies", &brazil).json;
    let paths: Vec<String> = (0..40)
        .map(|number| match number % 4 {
            0 => format!("/api/movies/{}", alien["id"]),
            1 => format!("/api/movies/{}", brazil["id"]),
            2 => "/api/movies/7000".to_owned(),
            _ => "/api/movies/none".to_owned(),
        })
        .collect();

    let replies = inventory.together(&paths, |path| inventory.get(path));

    for (number, reply) in replies.iter().enumerate() {
        let missing = |id: &str| (404, json!(format!("there is no movie with id {id}")));
        let (expected, seen) = match number % 4 {
            0 => ((200, alien.clone()), reply.json.clone()),
            1 => ((200, brazil.clone()), reply.json.clone()),
            2 => (missing("7000"), reply.json["detail"].clone()),
            _ => (missing("none"), reply.json["detail"].clone()),
        };
        assert_eq!((reply.status, seen), expected, "{}", paths[number]);
    }
}

#[test]
fn pages_that_are_asked_for_together_are_each_their_own() {
    let inventory = Inventory::start();
    for number in 1..=9 {
        inventory.create(&format!("Part {number}"));
    }
    let pages: Vec<(u8, u8)> = (0..32)
        .map(|number| (1 + number % 3, number % 11))
        .collect();

    let replies = inventory.together(&pages, |(limit, after)| {
        inventory.get(&format!("/api/movies?limit={limit}&after={after}"))
    });

    for ((limit, after), reply) in pages.iter().zip(&replies) {
        let expected: Vec<String> = (after + 1..=9)
            .take((*limit).into())
            .map(|number| format!("Part {number}"))
            .collect();
        assert_eq!(titles(reply), expected);
        let more = after + limit < 9;
        let link = reply.headers.iter().any(|(name, _)| name == "link");
        assert_eq!(link, more, "{limit} behind {after}");
    }
}

#[test]
fn long_descriptions_are_listed_whole() {
    let inventory = Inventory::start();
    inventory.create("Short");
    inventory.database.execute(
        "INSERT INTO movies (title, description) \
         SELECT 'Long ' || n, repeat('long', 262144) FROM generate_series(1, 60) n",
    );

    for target in [
        "/api/movies",
        "/api/movies?limit=61",
        "/api/movies?title=o&limit=1000",
    ] {
        let reply = inventory.get(target);

        let movies = reply.json.as_array().expect("an array");
        let lengths: Vec<usize> = movies
            .iter()
            .map(|movie| movie["description"].as_str().map_or(0, str::len))
            .collect();
        let expected: Vec<usize> = iter::once(6).chain(iter::repeat_n(1_048_576, 60)).collect();
        assert_eq!((reply.status, lengths), (200, expected), "{target}");
    }
}

#[test]
fn who_reads_long_pages_slowly_keeps_nobody_from_pages() {
    let database = TestDatabase::create();
    let config = inventory::Config {
        http: HttpConfig::on_loopback(8),
        database: database.config(),
    };
    let service = Service::start(
        |shutdown| inventory::start(&config, shutdown),
        inventory::Inventory::address,
    );
    eventually("the table is there", || {
        service.client.get("/ready").status == 200
    });
    database.execute(
        "INSERT INTO movies (title, description) \
         SELECT 'Long ' || n, repeat('x', 1000000) FROM generate_series(1, 100) n",
    );
    let slow_readers: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = TcpStream::connect(service.client.address()).expect("a connection");
            stream
                .write_all(b"GET /api/movies?limit=100 HTTP/1.1\r\nHost: a\r\n\r\n")
                .expect("a request");
            stream
                .read_exact(&mut [0; 64])
                .expect("the begin of an answer");
            stream
        })
        .collect();

    let replies: Vec<u16> = (0..4)
        .map(|after| {
            service
                .client
                .get(&format!("/api/movies?limit=1&after={after}"))
                .status
        })
        .collect();

    assert_eq!((replies, slow_readers.len()), (vec![200; 4], 3));
}

#[test]
fn a_movie_that_postgresql_refuses_is_not_refused_in_the_name_of_others() {
    let inventory = Inventory::start();
    inventory.get("/api/movies");
    inventory
        .database
        .execute("ALTER TABLE movies ADD CHECK (title NOT LIKE '%3')");
    let titles: Vec<String> = (0..40).map(|number| format!("Part {number}")).collect();

    let replies = inventory.create_together(&titles);

    let refused: Vec<&String> = titles
        .iter()
        .zip(&replies)
        .filter(|(_, reply)| reply.status != 201)
        .map(|(title, _)| title)
        .collect();
    assert_eq!(refused, ["Part 3", "Part 13", "Part 23", "Part 33"]);
    assert_eq!(inventory.titles("/api/movies").len(), 36);
}

#[test]
fn a_broken_table_costs_its_callers_a_500_that_tells_nothing_and_heals_with_the_table() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    inventory
        .database
        .execute("ALTER TABLE movies RENAME TO films");

    let reply = inventory.get("/api/movies/1");

    assert_eq!(reply.status, 500);
    assert!(
        !reply.text.contains("movies\" does not exist") && !reply.text.contains("SQL"),
        "{}",
        reply.text
    );
    assert_eq!(inventory.get("/health").status, 200);
    inventory
        .database
        .execute("ALTER TABLE films RENAME TO movies");
    eventually("the movie is back", || {
        inventory.get("/api/movies/1").status == 200
    });
}

#[test]
fn two_services_may_bring_up_one_schema_at_once() {
    let database = TestDatabase::create();
    let config = inventory::Config {
        http: HttpConfig::on_loopback(WORKERS),
        database: database.config(),
    };
    let services: Vec<_> = (0..4)
        .map(|_| {
            Service::start(
                |shutdown| inventory::start(&config, shutdown),
                inventory::Inventory::address,
            )
        })
        .collect();

    for service in &services {
        assert_eq!(service.client.get("/api/movies").status, 200);
    }

    assert_eq!(database.count("SELECT count(*) FROM schema_migrations"), 2);
}

#[test]
fn the_table_repeats_the_rules() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    for (title, description) in [
        ("''", "'x'"),
        ("' '", "'x'"),
        ("'x'", "e'\\t'"),
        ("NULL", "'x'"),
        ("repeat('x', 256)", "'x'"),
    ] {
        let insert =
            format!("INSERT INTO movies (title, description) VALUES ({title}, {description})");

        let refused = std::panic::catch_unwind(|| inventory.database.execute(&insert));

        assert!(refused.is_err(), "{insert}");
    }
}

#[test]
fn a_search_at_100_000_movies_uses_the_index() {
    let inventory = Inventory::start();
    inventory.create("The needle in the haystack");
    inventory.database.execute(
        "INSERT INTO movies (title, description) \
         SELECT 'Film ' || md5(n::text), 'x' FROM generate_series(1, 100000) n; ANALYZE movies",
    );

    let pattern = inventory::search_pattern("NEEDLE");
    let explain = format!("EXPLAIN {}", inventory::search_sql());
    let plan = inventory
        .database
        .query(&explain, &[&pattern, &0_i64, &None::<i64>]);

    let plan = plan.iter().fold(String::new(), |mut text, row| {
        let _ = writeln!(text, "{}", row.get::<_, &str>(0));
        text
    });
    assert!(
        plan.contains("Bitmap Index Scan on movies_casefolded_title_trigrams"),
        "{plan}"
    );
    assert_eq!(
        inventory.titles("/api/movies?title=NEEDLE"),
        ["The needle in the haystack"]
    );
    assert_eq!(inventory.titles("/api/movies").len(), 100_001);
}

#[test]
fn a_query_parameter_that_a_path_does_not_know_is_refused_with_those_that_it_does() {
    let inventory = Inventory::start();
    for (target, known) in [
        ("/api/movies?page=2", "this path has title, limit, after"),
        (
            "/api/movies?limit=2&Title=a",
            "this path has title, limit, after",
        ),
        ("/api/movies/1?limit=1", "this path has none"),
    ] {
        let reply = inventory.get(target);

        assert_eq!(reply.status, 400, "{target}");
        assert!(
            reply.text.contains("there is no parameter"),
            "{}",
            reply.text
        );
        assert!(reply.text.contains(known), "{}", reply.text);
    }
    assert_eq!(inventory.get("/api/movies?&&l%69mit=1&").status, 200);
}

#[test]
fn a_body_that_is_compressed_or_begins_with_a_byte_order_mark_is_told_so() {
    let inventory = Inventory::start();
    let json = ("content-type", "application/json");
    let body = r#"{"title":"Alien","description":"x"}"#;

    let gzip = [json, ("content-encoding", "gzip")];
    let compressed = inventory
        .service
        .client
        .send("POST", "/api/movies", &gzip, Some(body));
    let marked = format!("\u{feff}{body}");
    let marked = inventory
        .service
        .client
        .send("POST", "/api/movies", &[json], Some(&marked));

    assert_eq!(
        (compressed.status, compressed.header("accept-encoding")),
        (415, "identity")
    );
    assert_eq!(marked.status, 400);
    assert!(marked.text.contains("byte order mark"), "{}", marked.text);
}

#[test]
fn every_answer_says_how_it_may_be_kept() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    for (target, keep) in [
        ("/api/movies/1", "no-cache"),
        ("/api/movies?limit=1", "no-cache"),
        ("/api/movies", "no-cache"),
        ("/api/movies/7", "no-store"),
        ("/ready", "no-store"),
        ("/health", "no-store"),
        ("/metrics", "no-store"),
        ("/nothing", "no-store"),
    ] {
        assert_eq!(
            inventory.get(target).header("cache-control"),
            keep,
            "{target}"
        );
    }
}
