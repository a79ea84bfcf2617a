//! Recorded orders, through a real socket, on a real PostgreSQL.

use common::http::HttpConfig;
use postgres::error::SqlState;
use serde_json::{Value, json};
use testkit::{Client, Reply, Service, TestDatabase, eventually};

/// The number of slots is small, since the test server has few connections.
const WORKERS: usize = 2;

struct Billing {
    service: Service<billing::BillingApi>,
    database: TestDatabase,
}

impl Billing {
    fn start() -> Self {
        Self::start_on(TestDatabase::create())
    }

    fn start_on(database: TestDatabase) -> Self {
        let billing = Self::on(database.migrated(billing::MIGRATIONS));
        billing.await_ready();
        billing
    }

    /// Starts billing-api and returns before it is ready.
    fn on(database: TestDatabase) -> Self {
        let config = billing::ApiConfig {
            http: HttpConfig::on_loopback(WORKERS),
            database: database.reader(),
        };
        let service = Service::start(
            |shutdown| billing::start_api(&config, shutdown),
            billing::BillingApi::address,
        );
        Self { service, database }
    }

    fn await_ready(&self) {
        eventually("the tables are there", || self.get("/ready").status == 200);
    }

    /// Starts billing-api with one order for each user, in the order of `users`.
    fn with_orders_of(users: &[&str]) -> Self {
        let billing = Self::start();
        for user_id in users {
            billing.database.execute(&format!(
                "INSERT INTO orders (user_id, number_of_items, total_amount) \
                 VALUES ('{user_id}', 1, 1)"
            ));
        }
        billing
    }

    fn client(&self) -> &Client {
        &self.service.client
    }

    fn get(&self, target: &str) -> Reply {
        self.client().get(target)
    }

    fn ids(&self, target: &str) -> Vec<i64> {
        ids(&self.get(target))
    }
}

fn ids(reply: &Reply) -> Vec<i64> {
    let orders = reply.json.as_array().expect("an array");
    orders
        .iter()
        .map(|order| order["id"].as_i64().expect("an id"))
        .collect()
}

/// The ids on each page, from the page at `first` to the last.
fn pages(billing: &Billing, first: &str) -> Vec<Vec<i64>> {
    let mut target = first.to_owned();
    let mut pages = Vec::new();
    loop {
        let reply = billing.get(&target);
        pages.push(ids(&reply));
        let link = reply.header("link");
        if link.is_empty() {
            return pages;
        }
        let (uri, relation) = link.split_once("; ").expect("a link and its relation");
        assert_eq!(relation, r#"rel="next""#);
        uri.trim_matches(['<', '>']).clone_into(&mut target);
    }
}

#[test]
fn a_list_without_orders_is_an_empty_array() {
    let billing = Billing::start();

    let reply = billing.get("/api/orders");

    assert_eq!((reply.status, reply.text.as_str()), (200, "[]"));
    assert_eq!(reply.header("content-type"), "application/json");
}

#[test]
fn an_order_is_shown_whole_alone_and_in_the_list() {
    let billing = Billing::start();
    billing.database.execute(
        "INSERT INTO orders (message_id, user_id, number_of_items, total_amount, created_at) \
         VALUES ('m-1', '20', 99, 250, '2026-01-02 03:04:05.678901+02')",
    );

    let reply = billing.get("/api/orders/1");

    let order = json!({
        "id": 1,
        "message_id": "m-1",
        "user_id": "20",
        "number_of_items": 99,
        "total_amount": "250.00",
        "created_at": "2026-01-02T01:04:05.678901Z",
    });
    assert_eq!((reply.status, &reply.json), (200, &order));
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(billing.get("/api/orders").json, json!([order]));
}

#[test]
fn an_order_whose_message_had_no_id_shows_null() {
    let billing = Billing::with_orders_of(&["20"]);

    let reply = billing.get("/api/orders/1");

    assert_eq!(reply.json["message_id"], Value::Null);
    assert!(reply.text.contains(r#""message_id":null"#));
}

#[test]
fn the_greatest_and_the_smallest_order_come_back_exactly() {
    let billing = Billing::start();
    let user_id = "🎬".repeat(50);
    billing.database.execute(&format!(
        "INSERT INTO orders (user_id, number_of_items, total_amount) \
         VALUES ('{user_id}', 2147483647, 9999999999.99), ('\"\\', 1, 0), ('a', 1, 0.07)"
    ));

    let reply = billing.get("/api/orders");

    let shown: Vec<_> = reply.json.as_array().expect("an array").iter().collect();
    let shown: Vec<_> = shown
        .iter()
        .map(|order| {
            json!([
                order["user_id"],
                order["number_of_items"],
                order["total_amount"]
            ])
        })
        .collect();
    assert_eq!(
        shown,
        [
            json!([user_id, 2_147_483_647, "9999999999.99"]),
            json!(["\"\\", 1, "0.00"]),
            json!(["a", 1, "0.07"]),
        ]
    );
}

#[test]
fn a_filter_finds_the_orders_of_exactly_that_user() {
    let billing = Billing::with_orders_of(&["20", "200", "20", "two words", "ü"]);

    assert_eq!(billing.ids("/api/orders?user_id=20"), [1, 3]);
    assert_eq!(billing.ids("/api/orders?user_id=two+words"), [4]);
    assert_eq!(billing.ids("/api/orders?user_id=%C3%BC"), [5]);
    assert_eq!(billing.ids("/api/orders?user_id=2"), [0; 0]);
    assert_eq!(billing.ids("/api/orders?user_id=%25"), [0; 0]);
    assert_eq!(billing.ids("/api/orders?user_id="), [0; 0]);
    let nobody = format!("/api/orders?user_id={}", "x".repeat(1000));
    assert_eq!(billing.ids(&nobody), [0; 0]);
}

#[test]
fn pages_lead_through_all_orders_and_then_end() {
    let billing = Billing::with_orders_of(&["a", "b", "a", "b", "a"]);

    let reply = billing.get("/api/orders?limit=2");

    assert_eq!(
        (ids(&reply), reply.header("link")),
        (vec![1, 2], r#"</api/orders?limit=2&after=2>; rel="next""#)
    );
    assert_eq!(
        pages(&billing, "/api/orders?limit=2"),
        [vec![1, 2], vec![3, 4], vec![5]]
    );
}

#[test]
fn pages_of_one_user_lead_through_their_orders_only() {
    let billing = Billing::with_orders_of(&["a", "b", "a", "b", "a"]);

    let reply = billing.get("/api/orders?user_id=a&after=0&limit=2");

    assert_eq!(
        (ids(&reply), reply.header("link")),
        (
            vec![1, 3],
            r#"</api/orders?user_id=a&limit=2&after=3>; rel="next""#
        )
    );
    assert_eq!(
        pages(&billing, "/api/orders?limit=2&user_id=a"),
        [vec![1, 3], vec![5]]
    );
}

#[test]
fn the_newest_orders_come_first_where_that_is_asked_for() {
    let billing = Billing::with_orders_of(&["a", "b", "a", "b", "a"]);

    let reply = billing.get("/api/orders?order=desc&limit=2");

    assert_eq!(
        (ids(&reply), reply.header("link")),
        (
            vec![5, 4],
            r#"</api/orders?order=desc&limit=2&after=4>; rel="next""#
        )
    );
    assert_eq!(
        pages(&billing, "/api/orders?order=desc&limit=2"),
        [vec![5, 4], vec![3, 2], vec![1]]
    );
    assert_eq!(
        pages(&billing, "/api/orders?order=desc&limit=2&user_id=a"),
        [vec![5, 3], vec![1]]
    );
    assert_eq!(billing.ids("/api/orders?order=desc"), [5, 4, 3, 2, 1]);
    assert_eq!(billing.ids("/api/orders?order=desc&after=0"), [0; 0]);
    assert_eq!(billing.ids("/api/orders?order=asc&after=3"), [4, 5]);
}

#[test]
fn a_page_that_ends_with_the_last_order_has_no_next_one() {
    let billing = Billing::with_orders_of(&["a", "a"]);

    let reply = billing.get("/api/orders?limit=2");

    assert_eq!((ids(&reply).len(), reply.header("link")), (2, ""));
    assert_eq!(billing.ids("/api/orders?after=1"), [2]);
    assert_eq!(billing.ids("/api/orders?limit=1&after=1&user_id=a"), [2]);
    assert_eq!(billing.ids("/api/orders?limit=1000&after=2"), [0; 0]);
}

#[test]
fn a_query_that_makes_no_sense_is_refused_by_name() {
    let billing = Billing::start();
    for (query, detail) in [
        ("limit=0", "limit must be a whole number from 1 to 1000"),
        ("limit=1001", "limit must be a whole number from 1 to 1000"),
        ("limit=", "limit must be a whole number from 1 to 1000"),
        (
            "after=-1",
            "after must be a whole number from 0 to 9223372036854775807",
        ),
        (
            "after=9223372036854775808",
            "after must be a whole number from 0 to 9223372036854775807",
        ),
        ("limit=1&limit=2", "limit is given twice"),
        ("user_id=1&user_id=2", "user_id is given twice"),
        ("order=newest", "order must be asc or desc"),
        ("order=", "order must be asc or desc"),
        ("order=desc&order=asc", "order is given twice"),
        ("user_id=%00", "user_id must not contain NUL"),
        ("user_id=%FF", "user_id is not UTF-8"),
    ] {
        let reply = billing.get(&format!("/api/orders?{query}"));

        assert_eq!(reply.problem(), (400, detail), "{query}");
    }
}

#[test]
fn an_id_that_no_order_has_is_not_found_whatever_it_looks_like() {
    let billing = Billing::with_orders_of(&["20"]);
    for id in [
        "2",
        "0",
        "-1",
        "+1",
        "01",
        "1.0",
        "one",
        "1%00",
        "9223372036854775807",
        "9223372036854775808",
        "99999999999999999999999999",
        "%F0%9F%8E%AC",
        "1'--",
    ] {
        let reply = billing.get(&format!("/api/orders/{id}"));

        assert_eq!(reply.status, 404, "{id}");
    }
    assert_eq!(
        billing.get("/api/orders/2").problem(),
        (404, "there is no order with id 2")
    );
}

#[test]
fn a_path_with_one_trailing_slash_is_the_same_resource() {
    let billing = Billing::with_orders_of(&["20"]);

    assert_eq!(billing.ids("/api/orders/"), [1]);
    assert_eq!(billing.ids("/api/orders/?user_id=20"), [1]);
    assert_eq!(billing.get("/api/orders/1/").json["id"], 1);
    assert_eq!(billing.get("/api/orders/1//").status, 404);
}

#[test]
fn head_answers_as_get_does_without_the_content() {
    let billing = Billing::with_orders_of(&["20"]);
    let head = |path: &str| billing.client().send("HEAD", path, &[], None);

    let got = billing.get("/api/orders/1");
    let one = head("/api/orders/1");

    assert_eq!((one.status, one.text.as_str()), (200, ""));
    assert_eq!(one.header("content-length"), got.text.len().to_string());
    let statuses =
        ["/api/orders", "/api/orders/9", "/api/health", "/health"].map(|path| head(path).status);
    assert_eq!(statuses, [200, 404, 200, 200]);
}

#[test]
fn options_and_other_methods_are_told_that_orders_can_only_be_read() {
    let billing = Billing::with_orders_of(&["20"]);
    let allow = "GET, HEAD, OPTIONS";
    for path in [
        "/api/orders",
        "/api/orders/1",
        "/api/health",
        "/health",
        "/ready",
        "/metrics",
    ] {
        let options = billing.client().send("OPTIONS", path, &[], None);
        assert_eq!((options.status, options.header("allow")), (204, allow));

        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let headers = [("content-type", "application/json")];
            let reply = billing.client().send(method, path, &headers, Some("{}"));

            assert_eq!(
                (reply.status, reply.header("allow")),
                (405, allow),
                "{method} {path}"
            );
        }
    }
    assert_eq!(billing.ids("/api/orders"), [1]);
}

#[test]
fn a_problem_is_described_as_rfc_9457_asks() {
    let billing = Billing::start();

    let reply = billing
        .client()
        .send("GET", "/api/movies", &[("x-request-id", "trace-7")], None);

    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(reply.header("x-request-id"), "trace-7");
    let expected = json!({
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is nothing at /api/movies",
        "request_id": "trace-7",
    });
    assert_eq!((reply.status, reply.json), (404, expected));
}

#[test]
fn operations_are_answered_by_the_process_and_by_its_database() {
    let billing = Billing::start();
    assert_eq!(billing.get("/api/orders/1").status, 404);

    let health = ["/health", "/api/health"].map(|path| billing.get(path));
    let ready = billing.get("/ready");
    let metrics = billing.get("/metrics");

    for health in health {
        assert_eq!(
            (health.status, health.json),
            (200, json!({ "status": "ok" }))
        );
    }
    let state = json!({ "status": "ready", "dependencies": { "postgresql": "up" } });
    assert_eq!((ready.status, ready.json), (200, state));
    assert_eq!(
        metrics.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    for line in [
        "http_requests_total{method=\"GET\",route=\"/api/orders/:id\",status=\"404\"} 1\n",
        "\nprocess_start_time_seconds ",
        "\nprocess_resident_memory_bytes ",
        "\nprocess_open_fds ",
        "\nprocess_threads ",
    ] {
        assert!(metrics.text.contains(line), "{line:?} in {}", metrics.text);
    }
}

#[test]
fn a_broken_table_costs_its_readers_a_500_that_tells_nothing_and_heals_with_the_table() {
    for target in ["/api/orders", "/api/orders/1", "/api/orders?user_id=20"] {
        let billing = Billing::with_orders_of(&["20"]);
        billing
            .database
            .execute("ALTER TABLE orders RENAME TO purchases");

        let reply = billing.get(target);

        let detail = "something went wrong here; the log has the details under this request_id";
        assert_eq!(reply.problem(), (500, detail), "{target}");
        for internal in ["does not exist", "SQL", "SELECT", "127.0.0.1"] {
            assert!(!reply.text.contains(internal), "{}", reply.text);
        }
        assert_eq!(billing.get("/health").status, 200);
        billing
            .database
            .execute("ALTER TABLE purchases RENAME TO orders");
        eventually("the order is back", || billing.get(target).status == 200);
    }
}

#[test]
fn a_list_of_20_000_orders_arrives_whole() {
    let billing = Billing::start();
    billing.database.execute(
        "INSERT INTO orders (user_id, number_of_items, total_amount) \
         SELECT n % 2, 1, n FROM generate_series(1, 20000) n",
    );

    let all = billing.ids("/api/orders");

    assert_eq!(all, (1..=20_000).collect::<Vec<_>>());
    assert_eq!(billing.ids("/api/orders?user_id=1").len(), 10_000);
}

#[test]
fn the_table_repeats_the_rules() {
    let billing = Billing::start();
    billing.database.execute(
        "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
         VALUES ('m-1', '20', 1, 0)",
    );
    let mut client = billing.database.connect();
    for (values, refusal) in [
        ("'m-1', '20', 1, 0", SqlState::UNIQUE_VIOLATION),
        ("'', '20', 1, 0", SqlState::CHECK_VIOLATION),
        ("NULL, '', 1, 0", SqlState::CHECK_VIOLATION),
        ("NULL, repeat('ü', 51), 1, 0", SqlState::CHECK_VIOLATION),
        ("NULL, '20', 0, 0", SqlState::CHECK_VIOLATION),
        ("NULL, '20', 1, -0.01", SqlState::CHECK_VIOLATION),
        ("NULL, '20', 1, 'NaN'", SqlState::CHECK_VIOLATION),
        (
            "NULL, '20', 2147483648, 0",
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        ),
        (
            "NULL, '20', 1, 10000000000",
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        ),
        ("NULL, NULL, 1, 0", SqlState::NOT_NULL_VIOLATION),
        ("NULL, '20', NULL, 0", SqlState::NOT_NULL_VIOLATION),
        ("NULL, '20', 1, NULL", SqlState::NOT_NULL_VIOLATION),
    ] {
        let refused = client.batch_execute(&format!(
            "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
             VALUES ({values})"
        ));

        let state = refused.as_ref().err().and_then(|error| error.code());
        assert_eq!(state, Some(&refusal), "{values}");
    }
    assert_eq!(billing.database.count("SELECT count(*) FROM orders"), 1);
}

#[test]
fn an_order_is_found_by_the_id_of_its_message() {
    let billing = Billing::with_orders_of(&["20", "20"]);
    billing
        .database
        .execute("UPDATE orders SET message_id = 'm-' || id");

    let ids = |query: &str| billing.ids(&format!("/api/orders?{query}"));

    assert_eq!(ids("message_id=m-2"), [2]);
    assert_eq!(ids("message_id=m-2&user_id=20&limit=1"), [2]);
    assert_eq!(ids("message_id=m-2&user_id=21"), [0_i64; 0]);
    assert_eq!(ids("message_id=m"), [0_i64; 0]);
    let reply = billing.get("/api/orders?message_id=a%00b");
    assert_eq!(reply.problem(), (400, "message_id must not contain NUL"));
}

#[test]
fn the_api_waits_for_the_schema_which_its_owner_makes() {
    let billing = Billing::on(TestDatabase::create());
    let said = || billing.get("/api/orders");
    assert_eq!(
        said().problem(),
        (503, "the database is unavailable; try again")
    );
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()";
    assert_eq!(billing.database.count(tables), 0);

    let Billing { service, database } = billing;
    let billing = Billing {
        service,
        database: database.migrated(billing::MIGRATIONS),
    };

    billing.await_ready();
    assert_eq!(billing.get("/api/orders").text, "[]");
}

#[test]
fn dead_letters_are_listed_counted_and_shown_whole() {
    let billing = Billing::start();
    assert_eq!(billing.get("/api/dead-letters").text, "[]");
    billing.database.execute(
        "INSERT INTO dead_letters (message_id, request_id, reason, detail, exchange, routing_key, \
                                   properties, body, body_bytes, received_at) \
         SELECT 'm-' || n, NULL, CASE n WHEN 2 THEN 'conflict' ELSE 'body' END, 'odd', '', 'q', \
                '{\"app_id\":\"\\u0000\"}', '\\xff', 1 + n, '2026-01-02 03:04:05.678901+02' \
         FROM generate_series(1, 3) n",
    );

    let reply = billing.get("/api/dead-letters/2");

    let listed = json!({
        "id": 2,
        "message_id": "m-2",
        "request_id": null,
        "reason": "conflict",
        "detail": "odd",
        "exchange": "",
        "routing_key": "q",
        "body_bytes": 3,
        "cut": true,
        "received_at": "2026-01-02T01:04:05.678901Z",
    });
    let mut shown = listed.clone();
    shown["properties"] = json!({ "app_id": "\0" });
    shown["body"] = json!({ "base64": "/w==" });
    assert_eq!((reply.status, &reply.json), (200, &shown));
    let conflicts = billing.get("/api/dead-letters?reason=conflict");
    assert_eq!(conflicts.json, json!([listed]));
    let ids = |query: &str| billing.ids(&format!("/api/dead-letters?{query}"));
    assert_eq!(ids("message_id=m-3"), [3]);
    assert_eq!(ids("order=desc&limit=2"), [3, 2]);
    assert_eq!(
        pages(&billing, "/api/dead-letters?limit=2"),
        [vec![1, 2], vec![3]]
    );
    let counts = billing.get("/api/dead-letters/count").json;
    assert_eq!(counts["count"], json!(3));
    assert!(
        counts["bytes"].as_i64().is_some_and(|bytes| bytes > 8192),
        "{counts}"
    );
    for id in ["7", "x", "99999999999999999999"] {
        let reply = billing.get(&format!("/api/dead-letters/{id}"));
        let said = format!("there is no dead letter with id {id}");
        assert_eq!(reply.problem(), (404, said.as_str()));
    }
    eventually("the metrics tell it", || {
        billing.get("/metrics").text.contains("\ndead_letters ")
    });
}

#[test]
fn a_filter_that_the_database_has_no_characters_for_is_refused_and_the_next_is_answered() {
    let billing = Billing::start_on(TestDatabase::create_in_latin1());

    for target in [
        "/api/orders?user_id=%D0%96",
        "/api/orders?message_id=%D0%96&limit=1",
        "/api/dead-letters?message_id=%D0%96",
        "/api/dead-letters?reason=%D0%96",
    ] {
        let reply = billing.get(target);

        assert_eq!(reply.status, 400, "{target}: {}", reply.text);
        assert!(
            reply.text.contains("characters that the encoding"),
            "{}",
            reply.text
        );
    }
    assert_eq!(billing.get("/api/orders?user_id=%C3%A4").text, "[]");
}
