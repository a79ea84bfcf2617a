//! Conditional requests: an unchanged movie is not sent again, and the second of two editors does not overwrite a
//! change that they have not read.

use std::sync::Barrier;

use common::http::HttpConfig;
use serde_json::{Value, json};
use testkit::{Reply, Service, TestDatabase};

const JSON: (&str, &str) = ("content-type", "application/json");

struct Inventory {
    service: Service<inventory::Inventory>,
    _database: TestDatabase,
}

impl Inventory {
    fn start() -> Self {
        let database = TestDatabase::create();
        let config = inventory::Config {
            http: HttpConfig::on_loopback(4),
            database: database.config(),
        };
        let service = Service::start(
            |shutdown| inventory::start(&config, shutdown),
            inventory::Inventory::address,
        );
        Self {
            service,
            _database: database,
        }
    }

    fn create(&self, title: &str) -> Reply {
        self.service.client.post(
            "/api/movies",
            &json!({ "title": title, "description": "x" }),
        )
    }

    fn get(&self, target: &str, condition: (&str, &str)) -> Reply {
        self.service.client.send("GET", target, &[condition], None)
    }

    fn put(&self, target: &str, fields: &Value, condition: (&str, &str)) -> Reply {
        let body = fields.to_string();
        self.service
            .client
            .send("PUT", target, &[JSON, condition], Some(&body))
    }

    fn delete(&self, target: &str, condition: (&str, &str)) -> Reply {
        self.service
            .client
            .send("DELETE", target, &[condition], None)
    }
}

#[test]
fn a_movie_that_the_client_has_is_not_sent_again() {
    let inventory = Inventory::start();
    let created = inventory.create("Alien");
    let tag = created.header("etag");

    let again = inventory.get("/api/movies/1", ("if-none-match", tag));

    assert_eq!((again.status, again.text.as_str()), (304, ""));
    assert_eq!(again.header("etag"), tag);
    let read = inventory.service.client.get("/api/movies/1");
    assert_eq!((read.status, read.header("etag")), (200, tag));
}

#[test]
fn a_movie_that_was_changed_is_sent_again() {
    let inventory = Inventory::start();
    let tag = inventory.create("Alien").header("etag").to_owned();
    let changed = inventory
        .service
        .client
        .put("/api/movies/1", &json!({ "title": "Aliens" }));

    let read = inventory.get("/api/movies/1", ("if-none-match", &tag));

    assert_eq!((read.status, &read.json["title"]), (200, &json!("Aliens")));
    assert_eq!(read.header("etag"), changed.header("etag"));
    assert_ne!(read.header("etag"), tag);
}

#[test]
fn a_list_that_the_client_has_is_not_sent_again_until_it_changes() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    for target in [
        "/api/movies",
        "/api/movies?limit=10",
        "/api/movies?title=alien",
    ] {
        let tag = inventory
            .service
            .client
            .get(target)
            .header("etag")
            .to_owned();

        assert_eq!(
            inventory.get(target, ("if-none-match", &tag)).status,
            304,
            "{target}"
        );
        inventory.create("Alien again");
        assert_eq!(
            inventory.get(target, ("if-none-match", &tag)).status,
            200,
            "{target}"
        );
    }
}

#[test]
fn a_page_keeps_its_link_beside_its_tag() {
    let inventory = Inventory::start();
    inventory.create("Alien");
    inventory.create("Brazil");

    let page = inventory.service.client.get("/api/movies?limit=1");

    assert_eq!(
        page.header("link"),
        "</api/movies?limit=1&after=1>; rel=\"next\""
    );
    assert_eq!(page.header("etag").len(), 34);
}

#[test]
fn the_second_of_two_editors_is_told_of_the_first() {
    let inventory = Inventory::start();
    let tag = inventory.create("Alien").header("etag").to_owned();

    let first = inventory.put(
        "/api/movies/1",
        &json!({ "title": "Aliens" }),
        ("if-match", &tag),
    );
    let second = inventory.put(
        "/api/movies/1",
        &json!({ "title": "Alien 3" }),
        ("if-match", &tag),
    );

    assert_eq!(first.status, 200);
    let detail = "this has changed since you read it; read it again, and then change it";
    assert_eq!(second.problem(), (412, detail));
    let retried = inventory.put(
        "/api/movies/1",
        &json!({ "title": "Alien 3" }),
        ("if-match", first.header("etag")),
    );
    assert_eq!(
        (retried.status, &retried.json["title"]),
        (200, &json!("Alien 3"))
    );
}

#[test]
fn of_many_editors_at_once_one_wins() {
    let inventory = Inventory::start();
    let tag = inventory.create("Alien").header("etag").to_owned();
    let start = Barrier::new(4);

    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let editors: Vec<_> = (0..4)
            .map(|editor| {
                let (inventory, tag, start) = (&inventory, &tag, &start);
                scope.spawn(move || {
                    start.wait();
                    let fields = json!({ "title": format!("By editor {editor}") });
                    inventory
                        .put("/api/movies/1", &fields, ("if-match", tag))
                        .status
                })
            })
            .collect();
        editors
            .into_iter()
            .map(|editor| editor.join().expect("an answer"))
            .collect()
    });

    let count = |status| statuses.iter().filter(|given| **given == status).count();
    assert_eq!((count(200), count(412)), (1, 3), "{statuses:?}");
}

#[test]
fn only_what_was_seen_is_deleted() {
    let inventory = Inventory::start();
    let tag = inventory.create("Alien").header("etag").to_owned();

    assert_eq!(
        inventory
            .delete("/api/movies/1", ("if-match", "\"another\""))
            .status,
        412
    );
    assert_eq!(
        inventory.delete("/api/movies/1", ("if-match", &tag)).status,
        200
    );
    assert_eq!(
        inventory.delete("/api/movies/1", ("if-match", &tag)).status,
        404
    );
}

#[test]
fn all_movies_are_not_deleted_on_a_condition_that_does_not_hold() {
    let inventory = Inventory::start();
    inventory.create("Alien");

    assert_eq!(
        inventory
            .delete("/api/movies", ("if-match", "\"another\""))
            .status,
        412
    );

    assert_eq!(
        inventory.delete("/api/movies", ("if-match", "*")).status,
        200
    );
}

#[test]
fn a_condition_on_a_movie_that_is_not_there_is_not_found() {
    let inventory = Inventory::start();

    let put = inventory.put(
        "/api/movies/1",
        &json!({ "title": "Alien" }),
        ("if-match", "*"),
    );

    assert_eq!(put.status, 404);
    assert_eq!(
        inventory
            .delete("/api/movies/1", ("if-none-match", "*"))
            .status,
        404
    );
}

#[test]
fn a_precondition_is_evaluated_whatever_the_method() {
    let inventory = Inventory::start();
    let tag = inventory.create("Alien").header("etag").to_owned();
    let client = &inventory.service.client;
    let other = ("if-match", "\"0\"");
    let body = r#"{"title":"Brazil","description":"x"}"#;

    for (method, target) in [
        ("GET", "/api/movies/1"),
        ("HEAD", "/api/movies/1"),
        ("GET", "/api/movies"),
    ] {
        let reply = client.send(method, target, &[other], None);
        assert_eq!(reply.status, 412, "{method} {target}");
    }
    assert_eq!(
        inventory.get("/api/movies/1", ("if-match", &tag)).status,
        200
    );
    assert_eq!(
        inventory.get("/api/movies/1", ("if-match", "*")).status,
        200
    );
    for condition in [other, ("if-none-match", "*")] {
        let created = client.send("POST", "/api/movies", &[JSON, condition], Some(body));
        let deleted = inventory.delete("/api/movies", condition);
        assert_eq!(
            (created.status, deleted.status),
            (412, 412),
            "{condition:?}"
        );
    }
    assert_eq!(
        client.get("/api/movies").json.as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_weak_tag_is_told_what_to_do() {
    let inventory = Inventory::start();
    let weak = format!("W/{}", inventory.create("Alien").header("etag"));

    let reply = inventory.put(
        "/api/movies/1",
        &json!({ "title": "Aliens" }),
        ("if-match", &weak),
    );

    assert_eq!(reply.status, 412);
    assert!(reply.text.contains("weak tag"), "{}", reply.text);
}
