//! Movies through the gateway are the inventory's answers, to the byte. Two inventories get equal requests: one
//! directly, the other through the gateway.

use e2e::{Platform, TestInventory};
use serde_json::json;
use testkit::{RawReply, eventually};

struct DirectAndForwarded {
    direct: TestInventory,
    platform: Platform,
}

impl DirectAndForwarded {
    fn start() -> Self {
        Self {
            direct: TestInventory::start(),
            platform: Platform::start_without_consumer(),
        }
    }

    /// The inventory's answers, one directly and one through the gateway.
    fn answers(&self, line: &str, header_lines: &[&str], body: &str) -> [RawReply; 2] {
        let mut request = format!(
            "{line} HTTP/1.1\r\nHost: movies.example\r\nConnection: close\r\nX-Request-Id: trace-7\r\n"
        );
        for line in header_lines {
            request.push_str(line);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.push_str(body);
        [&self.direct.service.client, &self.platform.gateway.client].map(|client| {
            let mut reply = RawReply::to(client.address(), request.as_bytes())
                // The time of the answer, and the framing of the answer to a GET on this connection.
                .without(&["date", "transfer-encoding"]);
            // The order of headers of different names has no meaning (RFC 9110 §5.3).
            reply.headers.sort_by(|one, other| one.0.cmp(&other.0));
            reply
        })
    }

    fn answers_to_json(&self, line: &str, body: &str) -> [RawReply; 2] {
        let length = format!("Content-Length: {}", body.len());
        self.answers(line, &["Content-Type: application/json", &length], body)
    }
}

#[test]
fn every_request_without_content_is_answered_as_the_inventory_does() {
    let services = DirectAndForwarded::start();
    for title in ["Alien", "Aliens", "100% Wolf", "七人の侍"] {
        let movie = json!({ "title": title, "description": "A film" }).to_string();
        let [direct, forwarded] = services.answers_to_json("POST /api/movies", &movie);
        assert_eq!(forwarded, direct);
    }
    for (line, status) in [
        ("GET /api/movies", 200),
        ("GET /api/movies/", 200),
        ("GET /api/movies?", 200),
        ("GET /api/movies?title=LIEN", 200),
        ("GET /api/movies?title=", 200),
        ("GET /api/movies?title=100%25", 200),
        ("GET /api/movies?title=%E4%BE%8D", 200),
        ("GET /api/movies?title=a+b", 200),
        ("GET /api/movies?title=a&title=b", 400),
        ("GET /api/movies?title=%00", 400),
        ("GET /api/movies?title=%FF", 400),
        ("GET /api/movies?limit=2", 200),
        ("GET /api/movies/?limit=1&title=a&after=1", 200),
        ("GET /api/movies?after=4", 200),
        ("GET /api/movies?limit=0", 400),
        ("GET /api/movies?limit=1001", 400),
        ("GET /api/movies?after=-1", 400),
        ("GET /api/movies/1", 200),
        ("GET /api/movies/1/", 200),
        ("GET /api/movies/%31", 200),
        ("GET /api/movies/1//", 404),
        ("GET /api/movies//1", 404),
        ("GET /api/movies/../movies/1", 404),
        ("GET /api/movies/1/cast", 404),
        ("GET /api/movies/5", 404),
        ("GET /api/movies/one", 404),
        ("GET /api/movies/99999999999999999999", 404),
        ("HEAD /api/movies", 200),
        ("HEAD /api/movies/", 200),
        ("HEAD /api/movies/1", 200),
        ("HEAD /api/movies/5", 404),
        ("HEAD /api/movies?limit=2", 200),
        ("HEAD /api/movies?limit=0", 400),
        ("OPTIONS /api/movies", 204),
        ("OPTIONS /api/movies/", 204),
        ("OPTIONS /api/movies/1", 204),
        ("OPTIONS /api/movies/1/cast", 404),
        ("PATCH /api/movies/1", 405),
        ("PUT /api/movies", 405),
        ("POST /api/movies/1", 405),
        ("PROPFIND /api/movies", 405),
        ("TRACE /api/movies", 405),
        ("get /api/movies", 405),
        ("POST /api/movies", 411),
        ("PUT /api/movies/1", 411),
        ("DELETE /api/movies/2", 200),
        ("DELETE /api/movies/2", 404),
        ("DELETE /api/movies/one", 404),
        ("DELETE /api/movies/3/", 200),
        ("DELETE /api/movies", 200),
        ("DELETE /api/movies/", 200),
        ("GET /api/movies", 200),
    ] {
        let [direct, forwarded] = services.answers(line, &[], "");

        assert_eq!(
            (forwarded.status(), &forwarded),
            (status, &direct),
            "{line}"
        );
    }
}

#[test]
fn every_request_with_content_is_answered_as_the_inventory_does() {
    let services = DirectAndForwarded::start();
    let film = r#"{"title":"Alien","description":"A film"}"#;
    let huge = json!({ "title": "Alien", "description": "x".repeat(1024 * 1024) }).to_string();
    for (line, body, status) in [
        ("POST /api/movies", film, 201),
        (
            "POST /api/movies/",
            " { \"title\" : \"\\u00fc\", \"description\":\"\\n\\\"\", \"id\":77}\n",
            201,
        ),
        ("POST /api/movies", "", 400),
        ("POST /api/movies", "{", 400),
        ("POST /api/movies", "[]", 400),
        ("POST /api/movies", r#"{"title":"Alien"}"#, 400),
        (
            "POST /api/movies",
            r#"{"title":5,"description":"A film"}"#,
            400,
        ),
        (
            "POST /api/movies",
            r#"{"title":" ","description":"A film"}"#,
            400,
        ),
        ("POST /api/movies", &huge, 413),
        ("PUT /api/movies/1", r#"{"title":"Aliens"}"#, 200),
        (
            "PUT /api/movies/1/",
            r#"{"description":"More","rating":5}"#,
            200,
        ),
        ("PUT /api/movies/1", film, 200),
        ("PUT /api/movies/1", "{}", 400),
        ("PUT /api/movies/1", r#"{"title":null}"#, 400),
        ("PUT /api/movies/1", &huge, 413),
        ("PUT /api/movies/5", film, 404),
        ("PUT /api/movies/one", film, 404),
        ("PUT /api/movies", film, 405),
        ("PATCH /api/movies/1", film, 405),
        ("GET /api/movies/1", film, 200),
        ("DELETE /api/movies/2", film, 200),
        ("GET /api/movies", "", 200),
    ] {
        let [direct, forwarded] = services.answers_to_json(line, body);

        assert_eq!(
            (forwarded.status(), &forwarded),
            (status, &direct),
            "{line} {body:.80}"
        );
    }
}

#[test]
fn content_types_and_framings_are_told_apart_as_the_inventory_does() {
    let services = DirectAndForwarded::start();
    let film = r#"{"title":"Alien","description":"A film"}"#;
    let length = format!("Content-Length: {}", film.len());
    let chunked = format!("{:x}\r\n{film}\r\n0\r\n\r\n", film.len());
    let json = "Content-Type: application/json";
    for (lines, body, status) in [
        (&[length.as_str()][..], film, 415),
        (&[&length, "Content-Type: text/plain"], film, 415),
        (&[&length, "Content-Type: application/jsonp"], film, 415),
        (
            &[&length, "Content-Type: APPLICATION/json ; charset=utf-8"],
            film,
            201,
        ),
        (&[json, "Content-Length: 0"], "", 400),
        (&["Content-Length: 0"], "", 415),
        (&[json], "", 411),
        (&[json, "Transfer-Encoding: chunked"], &chunked, 201),
        (&[json, "Transfer-Encoding: chunked"], "0\r\n\r\n", 411),
        (&[json, &length, "Expect: 100-continue"], film, 201),
    ] {
        let [direct, forwarded] = services.answers("POST /api/movies", lines, body);

        assert_eq!(
            (forwarded.status(), &forwarded),
            (status, &direct),
            "{lines:?}"
        );
    }
}

#[test]
fn a_list_of_many_movies_is_the_same_by_way_of_the_gateway() {
    let platform = Platform::start_without_consumer();
    let description = "x".repeat(20_000);
    for number in 0..100 {
        let movie = json!({ "title": format!("Film {number}"), "description": description });
        assert_eq!(
            platform.gateway.client.post("/api/movies", &movie).status,
            201
        );
    }

    let direct = platform.movies.service.client.get("/api/movies");
    let forwarded = platform.gateway.client.get("/api/movies");

    assert_eq!(
        (forwarded.status, forwarded.json.as_array().map(Vec::len)),
        (200, Some(100))
    );
    assert!(forwarded.text == direct.text);
}

#[test]
fn pages_are_followed_by_way_of_the_gateway() {
    let platform = Platform::start_without_consumer();
    let client = &platform.gateway.client;
    for number in 1..=5 {
        let movie = json!({ "title": format!("Part {number}"), "description": "A film" });
        assert_eq!(client.post("/api/movies", &movie).status, 201);
    }
    let mut target = "/api/movies?limit=2".to_owned();
    let mut sizes = Vec::new();

    loop {
        let reply = client.get(&target);
        sizes.push(reply.json.as_array().map_or(0, Vec::len));
        let Some((uri, _)) = reply.header("link").split_once("; ") else {
            break;
        };
        target = uri.trim_matches(['<', '>']).to_owned();
    }

    assert_eq!(sizes, [2, 2, 1]);
}

#[test]
fn a_request_id_that_the_gateway_made_is_the_one_that_the_inventory_answers_with() {
    let platform = Platform::start_without_consumer();

    let reply = platform.gateway.client.get("/api/movies/one");

    assert_eq!(reply.json["request_id"], reply.header("x-request-id"));
    assert_eq!(reply.header("x-request-id").len(), 36);
}

#[test]
fn a_broker_that_is_cut_off_does_not_stop_movies() {
    let platform = Platform::start_without_consumer();
    let client = &platform.gateway.client;
    platform.relay_to_broker.cut();
    eventually("the loss is noticed", || client.get("/ready").status == 503);

    let created = client.post(
        "/api/movies",
        &json!({ "title": "Alien", "description": "A film" }),
    );
    let read = client.get("/api/movies/1");

    assert_eq!((created.status, read.status), (201, 200));
    assert_eq!(read.json, created.json);
    let states = json!({ "inventory": "up", "rabbitmq": "down" });
    assert_eq!(client.get("/ready").json["dependencies"], states);
}
