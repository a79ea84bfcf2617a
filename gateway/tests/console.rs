//! `GET /` and the orders that the console shows, as a client gets them. `tests/browser` tests the page in a browser.

use std::net::SocketAddr;

use common::amqp::{QueueConfig, QueueType};
use common::env::Vars;
use common::http::HttpConfig;
use gateway::{AccessConfig, Gateway, UpstreamLimits};
use serde_json::json;
use testkit::{Reply, ScriptedUpstream, Service};

const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

const NO_ORDERS: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\
                         Link: </api/orders?limit=1&after=7>; rel=\"next\"\r\n\r\n[]";

/// The keys are `writer-key` and `admin-key`.
const KEYS: &str = "\
writer:3aec1946afb01344ae0065f3b123820a2144e455c13e5816dbd439e6634f7f26:write
admin:69a5265506c94c77b787a7d7377b7685a0eff82e33920a71e7ee22cd6154953e:admin
";

fn gateway(billing_api: SocketAddr, expose_orders: bool, access: AccessConfig) -> Service<Gateway> {
    let config = gateway::Config {
        http: HttpConfig::on_loopback(2),
        inventories: vec![NOBODY],
        billing_api,
        billing_consumer: NOBODY,
        expose_orders,
        limits: UpstreamLimits::default(),
        queue: QueueConfig {
            brokers: NOBODY.into(),
            user: "nobody".to_owned(),
            password: "nothing".into(),
            queue: "none".to_owned(),
            queue_type: QueueType::default(),
        },
        access,
    };
    Service::start(
        |shutdown| gateway::start(&config, shutdown),
        Gateway::address,
    )
}

fn open_gateway() -> Service<Gateway> {
    gateway(NOBODY, false, AccessConfig::default())
}

fn get(gateway: &Service<Gateway>, path: &str, headers: &[(&str, &str)]) -> Reply {
    gateway.client.send("GET", path, headers, None)
}

#[test]
fn a_browser_gets_the_page_under_a_strict_policy() {
    let gateway = open_gateway();

    let reply = get(&gateway, "/", &[("accept", BROWSER)]);

    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "text/html; charset=utf-8")
    );
    assert!(
        reply.text.starts_with("<!doctype html>"),
        "{:.80}",
        reply.text
    );
    let policy = reply.header("content-security-policy");
    for part in [
        "default-src 'none'",
        "style-src 'sha256-",
        "script-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(
        ["x-content-type-options", "referrer-policy", "vary"].map(|name| reply.header(name)),
        ["nosniff", "no-referrer", "accept"]
    );
}

#[test]
fn who_asks_for_no_page_gets_a_list_of_addresses() {
    let gateway = open_gateway();
    for accept in ["*/*", "application/json", ""] {
        let reply = get(&gateway, "/", &[("accept", accept)]);

        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), "application/json");
        assert_eq!(reply.json["movies"], "/api/movies");
        assert_eq!(reply.header("vary"), "accept");
    }
}

#[test]
fn what_a_browser_has_already_is_not_sent_again() {
    let gateway = open_gateway();
    for accept in [BROWSER, "*/*"] {
        let tag = get(&gateway, "/", &[("accept", accept)]);
        let tag = tag.header("etag");

        let again = get(&gateway, "/", &[("accept", accept), ("if-none-match", tag)]);

        assert_eq!((again.status, again.text.as_str()), (304, ""), "{accept}");
        assert_eq!(again.header("cache-control"), "no-cache");
    }
}

#[test]
fn the_page_is_only_read() {
    let gateway = open_gateway();
    let allow = "GET, HEAD, OPTIONS";

    let head = gateway
        .client
        .send("HEAD", "/", &[("accept", BROWSER)], None);
    let options = gateway.client.send("OPTIONS", "/", &[], None);
    let post = gateway.client.post("/", &json!({}));

    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!((options.status, options.header("allow")), (204, allow));
    assert_eq!((post.status, post.header("allow")), (405, allow));
    assert_eq!(gateway.client.get("/index.html").status, 404);
}

#[test]
fn orders_and_dead_letters_are_not_there_unless_they_are_exposed() {
    let billing = ScriptedUpstream::answering(NO_ORDERS);
    let gateway = gateway(billing.address(), false, AccessConfig::default());

    for path in [
        "/api/orders",
        "/api/orders/1",
        "/api/dead-letters",
        "/api/dead-letters/1",
    ] {
        let reply = gateway.client.get(path);

        let nothing = format!("there is nothing at {path}");
        assert_eq!(reply.problem(), (404, nothing.as_str()));
    }
    assert_eq!(billing.requests().len(), 0);
}

#[test]
fn exposed_orders_are_forwarded_and_only_read() {
    let billing = ScriptedUpstream::answering(NO_ORDERS);
    let gateway = gateway(billing.address(), true, AccessConfig::default());

    let list = gateway
        .client
        .get("/api/orders?order=desc&limit=1&user_id=%C3%BC");
    let one = gateway.client.get("/api/orders/7");
    let allow = "GET, HEAD, OPTIONS";
    let options = gateway.client.send("OPTIONS", "/api/orders", &[], None);
    let refused = ["POST", "PUT", "DELETE", "PATCH"].map(|method| {
        let headers = [("content-type", "application/json")];
        let reply = gateway
            .client
            .send(method, "/api/orders/7", &headers, Some("{}"));
        (reply.status, reply.header("allow").to_owned())
    });

    assert_eq!((list.status, list.text.as_str()), (200, "[]"));
    assert_eq!(
        list.header("link"),
        r#"</api/orders?limit=1&after=7>; rel="next""#
    );
    assert_eq!(one.status, 200);
    assert_eq!((options.status, options.header("allow")), (204, allow));
    assert_eq!(refused, [(); 4].map(|()| (405, allow.to_owned())));
    assert_eq!(gateway.client.get("/api/orders/7/items").status, 404);
    let lines: Vec<_> = billing
        .requests()
        .into_iter()
        .map(|request| request.line)
        .collect();
    assert_eq!(
        lines,
        [
            "GET /api/orders?order=desc&limit=1&user_id=%C3%BC HTTP/1.1",
            "GET /api/orders/7 HTTP/1.1"
        ]
    );
}

#[test]
fn dead_letters_are_forwarded_and_only_read_where_orders_are() {
    let billing = ScriptedUpstream::answering(NO_ORDERS);
    let gateway = gateway(billing.address(), true, AccessConfig::default());

    let list = gateway.client.get("/api/dead-letters?limit=1&reason=body");
    let one = gateway.client.get("/api/dead-letters/7");
    let refused = gateway
        .client
        .send("DELETE", "/api/dead-letters/7", &[], None);

    assert_eq!((list.status, list.text.as_str()), (200, "[]"));
    assert_eq!(one.status, 200);
    let allow = "GET, HEAD, OPTIONS";
    assert_eq!((refused.status, refused.header("allow")), (405, allow));
    let lines: Vec<_> = billing
        .requests()
        .into_iter()
        .map(|request| request.line)
        .collect();
    assert_eq!(
        lines,
        [
            "GET /api/dead-letters?limit=1&reason=body HTTP/1.1",
            "GET /api/dead-letters/7 HTTP/1.1"
        ]
    );
}

#[test]
fn a_billing_that_is_gone_is_named() {
    let gateway = gateway(NOBODY, true, AccessConfig::default());

    let reply = gateway.client.get("/api/orders");

    assert_eq!(
        reply.problem(),
        (502, "billing cannot be reached; try again")
    );
}

#[test]
fn where_keys_are_in_force_orders_and_dead_letters_are_for_administrators() {
    let billing = ScriptedUpstream::answering(NO_ORDERS);
    let file = std::env::temp_dir().join(format!("crud-master-keys-{}", uuid::Uuid::new_v4()));
    std::fs::write(&file, KEYS).expect("a file for keys");
    let vars = Vars::from_pairs([("API_KEYS_FILE", file.display().to_string())]);
    let access = AccessConfig::from_vars(&vars);
    std::fs::remove_file(&file).expect("it is still there");
    let gateway = gateway(
        billing.address(),
        true,
        access.expect("well-formed settings"),
    );
    for path in ["/api/orders", "/api/dead-letters"] {
        let ask = |headers: &[(&str, &str)]| get(&gateway, path, headers);

        let stranger = ask(&[]);
        let writer = ask(&[("authorization", "Bearer writer-key")]);
        let admin = ask(&[("authorization", "Bearer admin-key")]);

        assert_eq!((stranger.status, admin.status), (401, 200));
        assert_eq!(
            writer.problem(),
            (403, "this key may not do that: it needs the role admin")
        );
    }
    assert_eq!(billing.requests().len(), 2);
    assert_eq!(get(&gateway, "/", &[("accept", BROWSER)]).status, 200);
}
