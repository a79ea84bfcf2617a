//! The bytes of forwarded requests and of their answers, with a scripted upstream in place of the inventory, which sends
//! valid and invalid answers.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use common::amqp::{QueueConfig, QueueType};
use common::http::HttpConfig;
use gateway::{AccessConfig, UpstreamLimits};
use serde_json::{Value, json};
use testkit::{
    Client, RawReply, RecordedRequest, Reply, ScriptedReply, ScriptedUpstream, Service, eventually,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An address without a broker, since movies need none.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

struct Gateway {
    service: Service<gateway::Gateway>,
    upstream: ScriptedUpstream,
}

impl Gateway {
    fn before(upstream: ScriptedUpstream) -> Self {
        let service = forwarding_to(upstream.address(), UpstreamLimits::default());
        Self { service, upstream }
    }

    fn client(&self) -> &Client {
        &self.service.client
    }

    /// Sends a request with these lines besides the usual ones.
    fn send(&self, request_line: &str, header_lines: &[&str], body: &str) -> RawReply {
        let mut request = format!("{request_line} HTTP/1.1\r\nHost: movies.example\r\n");
        for line in header_lines {
            request.push_str(line);
            request.push_str("\r\n");
        }
        request.push_str("Connection: close\r\n\r\n");
        request.push_str(body);
        RawReply::to(self.client().address(), request.as_bytes())
    }

    fn get(&self) -> RawReply {
        self.send("GET /api/movies", &[], "")
    }

    /// The only request that the upstream has received.
    fn received(&self) -> RecordedRequest {
        let requests = self.upstream.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests[0].clone()
    }
}

/// There is one slot, so that each request can use the connection of the one before.
fn forwarding_to(inventory: SocketAddr, limits: UpstreamLimits) -> Service<gateway::Gateway> {
    let config = gateway::Config {
        http: HttpConfig::on_loopback(1),
        inventories: vec![inventory],
        billing_api: ([127, 0, 0, 1], 1).into(),
        billing_consumer: ([127, 0, 0, 1], 1).into(),
        expose_orders: false,
        limits,
        queue: QueueConfig {
            brokers: NOBODY.into(),
            user: "nobody".to_owned(),
            password: "nothing".into(),
            queue: "none".to_owned(),
            queue_type: QueueType::default(),
        },
        access: AccessConfig::default(),
    };
    Service::start(
        |shutdown| gateway::start(&config, shutdown),
        gateway::Gateway::address,
    )
}

fn limits(limit: Duration) -> UpstreamLimits {
    UpstreamLimits {
        connect: limit,
        send: limit,
        response: limit,
        pause: limit,
        answer: Duration::from_mins(1),
    }
}

fn pairs(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn sorted(mut headers: Vec<(String, String)>) -> Vec<(String, String)> {
    headers.sort();
    headers
}

fn problem(reply: &RawReply) -> (u16, Value) {
    assert_eq!(reply.values("content-type"), ["application/problem+json"]);
    let mut problem: Value = serde_json::from_str(&reply.body).expect("a problem");
    let id = problem["request_id"].take();
    assert_eq!(reply.values("x-request-id"), [id.as_str().unwrap_or("")]);
    (reply.status(), problem)
}

fn bad_gateway(detail: &str) -> (u16, Value) {
    let problem = json!({
        "type": "about:blank",
        "title": "Bad Gateway",
        "status": 502,
        "detail": detail,
        "request_id": null,
    });
    (502, problem)
}

#[test]
fn method_path_and_query_arrive_byte_for_byte() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));
    let lines = [
        "GET /api/movies",
        "GET /api/movies/",
        "GET /api/movies?",
        "GET /api/movies//7",
        "GET /api/movies/../movies/./7",
        "GET /api/movies/%37/%2e%2E/%2F",
        "GET /api/movies?title=a+b%20c%2B&title=&&=x",
        "GET /api/movies?q=%zz%",
        "GET /api/movies/a:b;c=d,e@f!$&'()*~-._",
        "GET /api/movies?a[]=1&c=?/:@!$'()*,;",
        "POST /api/movies/7?x",
        "PUT /api/movies/7",
        "DELETE /api/movies",
        "OPTIONS /api/movies",
        "PATCH /api/movies/7",
        "PROPFIND /api/movies/7",
        "TRACE /api/movies",
        "get /api/movies",
        "M-SEARCH /api/movies",
    ];

    for line in lines {
        assert_eq!(gateway.send(line, &[], "").status(), 200, "{line}");
    }

    let received: Vec<_> = gateway
        .upstream
        .requests()
        .into_iter()
        .map(|request| request.line)
        .collect();
    assert_eq!(received, lines.map(|line| format!("{line} HTTP/1.1")));
}

#[test]
fn a_body_arrives_byte_for_byte_whatever_the_method() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));
    let body = "\0 not JSON \r\n\r\n ü 🎬 ";
    for method in ["POST", "PUT", "PATCH", "DELETE", "GET", "OPTIONS", "REPORT"] {
        let length = format!("Content-Length: {}", body.len());

        let reply = gateway.send(&format!("{method} /api/movies"), &[&length], body);

        assert_eq!(reply.status(), 200, "{method}");
        let received = gateway.upstream.requests().pop().expect("a request");
        assert_eq!(
            (received.line, received.body),
            (
                format!("{method} /api/movies HTTP/1.1"),
                body.as_bytes().to_vec()
            )
        );
    }
}

#[test]
fn a_chunked_body_arrives_with_its_length() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));

    let reply = gateway.send(
        "POST /api/movies",
        &["Transfer-Encoding: chunked"],
        "4\r\nAlie\r\n1;x=y\r\nn\r\n0\r\n\r\n",
    );

    assert_eq!(reply.status(), 200);
    let received = gateway.received();
    assert_eq!(received.body, b"Alien");
    assert_eq!(received.values("content-length"), ["5"]);
    assert_eq!(received.values("transfer-encoding"), [""; 0]);
}

/// ureq cannot send a POST without a body, but an empty body without a length is equivalent.
#[test]
fn an_empty_body_and_none_can_be_told_apart() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));

    for (lines, body) in [
        (&["Content-Length: 0"][..], ""),
        (&[], ""),
        (&["Transfer-Encoding: chunked"], "0\r\n\r\n"),
    ] {
        let _ = gateway.send("POST /api/movies", lines, body);
    }

    let lengths: Vec<_> = gateway
        .upstream
        .requests()
        .iter()
        .map(|request| {
            (
                request.body.len(),
                request.values("content-length").concat(),
            )
        })
        .collect();
    let none = || (0, String::new());
    assert_eq!(lengths, [(0, "0".to_owned()), none(), none()]);
}

#[test]
fn a_body_of_a_megabyte_arrives_whole() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));
    let body = "0123456789abcdef".repeat(64 * 1024);

    let reply = gateway
        .client()
        .send("PUT", "/api/movies/7", &[], Some(&body));

    assert_eq!(reply.status, 200);
    assert!(gateway.received().body == body.as_bytes());
}

#[test]
fn end_to_end_headers_arrive_and_nothing_is_added_but_who_asked() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));

    let _ = gateway.send(
        "GET /api/movies",
        &[
            "Accept: application/json",
            "X-Tag: second?",
            "x-tag: \"first\"",
            "X-Request-Id: trace-7",
            "If-None-Match: W/\"5\"",
            "Range: bytes=0-1",
            "X-Empty:",
        ],
        "",
    );

    let address = gateway.upstream.address().to_string();
    let expected = pairs(&[
        ("accept", "application/json"),
        ("host", &address),
        ("if-none-match", "W/\"5\""),
        ("range", "bytes=0-1"),
        ("via", "1.1 crud-master"),
        ("x-empty", ""),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "movies.example"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "trace-7"),
        ("x-tag", "\"first\""),
        ("x-tag", "second?"),
    ]);
    let received = gateway.received();
    assert_eq!(received.values("x-tag"), ["second?", "\"first\""]);
    assert_eq!(sorted(received.headers), expected);
}

#[test]
fn what_a_client_shows_to_the_gateway_does_not_reach_the_inventory() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));

    let reply = gateway.send(
        "GET /api/movies",
        &[
            "Authorization: Bearer a.b.c\u{fc}",
            "Cookie: a=1",
            "cookie: b=2",
        ],
        "",
    );

    assert_eq!(reply.status(), 200);
    let received = gateway.received();
    for name in ["authorization", "cookie"] {
        assert_eq!(received.values(name), [""; 0], "{name}");
    }
}

#[test]
fn headers_of_one_connection_do_not_reach_the_inventory() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));

    let _ = gateway.send(
        "GET /api/movies",
        &[
            "Connection: X-Listed , keep-alive,,x-also-listed",
            "X-Listed: 1",
            "X-Also-Listed: 1",
            "Connection: X-Listed-Later",
            "X-Listed-Later: 1",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic YTpi",
            "TE: trailers",
            "Trailer: X-Sum",
            "Upgrade: h2c",
            "X-Kept: 1",
        ],
        "",
    );

    let names: Vec<_> = sorted(gateway.received().headers)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        names,
        [
            "host",
            "via",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-kept",
            "x-request-id"
        ]
    );
}

#[test]
fn a_client_that_came_through_other_proxies_keeps_its_trace() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));

    let _ = gateway.send(
        "GET /api/movies",
        &[
            "X-Forwarded-For: 10.0.0.1",
            "Via: 1.0 first",
            "X-Forwarded-For: 10.0.0.2, 10.0.0.3",
            "Via: 1.1 second",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: forged.example",
        ],
        "",
    );

    let received = gateway.received();
    let trace = [
        received.values("x-forwarded-for"),
        received.values("via"),
        received.values("x-forwarded-proto"),
        received.values("x-forwarded-host"),
    ];
    assert_eq!(
        trace,
        [
            ["10.0.0.1, 10.0.0.2, 10.0.0.3, 127.0.0.1"],
            ["1.0 first, 1.1 second, 1.1 crud-master"],
            ["http"],
            ["movies.example"]
        ]
    );
}

#[test]
fn a_request_id_is_taken_from_the_client_or_made_and_is_the_same_on_both_sides() {
    let gateway = Gateway::before(ScriptedUpstream::answering(
        "HTTP/1.1 204 No Content\r\nX-Request-Id: the-inventory's own\r\n\r\n",
    ));

    let given = gateway.send("GET /api/movies", &["X-Request-Id: trace-7"], "");
    let made = gateway.send("GET /api/movies", &[], "");
    let malformed = gateway.send("GET /api/movies", &["X-Request-Id: two words"], "");

    let sent_on: Vec<_> = gateway
        .upstream
        .requests()
        .iter()
        .map(|request| request.values("x-request-id").concat())
        .collect();
    let returned = [&given, &made, &malformed].map(|reply| reply.values("x-request-id"));
    assert_eq!(
        returned,
        [0, 1, 2].map(|n: usize| vec![sent_on[n].as_str()])
    );
    assert_eq!(sent_on[0], "trace-7");
    assert_eq!((sent_on[1].len(), sent_on[2].len()), (36, 36));
}

#[test]
fn status_headers_and_content_come_back_as_they_were_sent() {
    let gateway = Gateway::before(ScriptedUpstream::answering(
        "HTTP/1.1 200 Very Well\r\n\
         Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
         Set-Cookie: a=1; Path=/\r\n\
         Content-Type: text/plain\r\n\
         Set-Cookie: b=2; Expires=Thu, 01 Jan 2037 00:00:00 GMT\r\n\
         ETag: \"a,b\"\r\n\
         Content-Encoding: gzip\r\n\
         Server: inventory\r\n\
         Via: 1.1 inner\r\n\
         Content-Length: 14\r\n\
         Set-Cookie: c=3\r\n\r\n\
         not\r\n\r\nreally\n",
    ));

    let reply = gateway.get().without(&["x-request-id"]);

    let cookies = [
        "a=1; Path=/",
        "b=2; Expires=Thu, 01 Jan 2037 00:00:00 GMT",
        "c=3",
    ];
    assert_eq!(reply.values("set-cookie"), cookies);
    let expected = pairs(&[
        ("connection", "close"),
        ("content-encoding", "gzip"),
        ("content-length", "14"),
        ("content-type", "text/plain"),
        ("cross-origin-resource-policy", "same-origin"),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("etag", "\"a,b\""),
        ("server", "inventory"),
        ("set-cookie", cookies[0]),
        ("set-cookie", cookies[1]),
        ("set-cookie", cookies[2]),
        ("via", "1.1 inner"),
        ("x-content-type-options", "nosniff"),
    ]);
    assert_eq!(
        (reply.status(), sorted(reply.headers), reply.body.as_str()),
        (200, expected, "not\r\n\r\nreally\n")
    );
}

#[test]
fn every_answer_says_once_that_browsers_are_not_to_guess_nor_to_give_it_to_other_sites() {
    let gateway = Gateway::before(ScriptedUpstream::answering(
        "HTTP/1.1 200 OK\r\nX-Content-Type-Options: other\r\n\
         Cross-Origin-Resource-Policy: cross-origin\r\nContent-Length: 2\r\n\r\nok",
    ));

    for (request_line, status) in [
        ("GET /api/movies", 200),
        ("GET /", 200),
        ("GET /health", 200),
        ("GET /nothing", 404),
        ("PATCH /api/billing", 405),
        ("GET nowhere", 400),
    ] {
        let reply = gateway.send(request_line, &[], "");

        let said = (
            reply.status(),
            reply.values("x-content-type-options"),
            reply.values("cross-origin-resource-policy"),
        );
        assert_eq!(
            said,
            (status, vec!["nosniff"], vec!["same-origin"]),
            "{request_line}"
        );
    }
}

#[test]
fn headers_of_the_inner_connection_do_not_reach_the_client() {
    let gateway = Gateway::before(ScriptedUpstream::answering(
        "HTTP/1.1 200 OK\r\n\
         Connection: X-Listed\r\n\
         Connection: keep-alive, X-Listed-Later\r\n\
         X-Listed: 1\r\n\
         X-Listed-Later: 1\r\n\
         Keep-Alive: timeout=5\r\n\
         Proxy-Authenticate: Basic\r\n\
         Proxy-Authentication-Info: x\r\n\
         Proxy-Connection: keep-alive\r\n\
         Trailer: X-Sum\r\n\
         Upgrade: h2c\r\n\
         X-Kept: 1\r\n\
         Transfer-Encoding: chunked\r\n\r\n\
         2\r\nok\r\n0\r\n\r\n",
    ));

    let reply = gateway.get().without(&["date", "x-request-id"]);

    let expected = pairs(&[
        ("connection", "close"),
        ("content-length", "2"),
        ("cross-origin-resource-policy", "same-origin"),
        ("x-content-type-options", "nosniff"),
        ("x-kept", "1"),
    ]);
    assert_eq!(
        (sorted(reply.headers), reply.body.as_str()),
        (expected, "ok")
    );
}

#[test]
fn odd_statuses_pass() {
    for (answer, status, body) in [
        (
            "418 I'm a teapot\r\nContent-Length: 3\r\n\r\ntea",
            418,
            "tea",
        ),
        ("599 \r\nContent-Length: 0\r\n\r\n", 599, ""),
        ("299\r\nContent-Length: 0\r\n\r\n", 299, ""),
        (
            "301 Moved\r\nLocation: /api/movies/2\r\nContent-Length: 0\r\n\r\n",
            301,
            "",
        ),
        (
            "401 No\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nno",
            401,
            "no",
        ),
        ("500 Oops\r\nContent-Length: 4\r\n\r\noops", 500, "oops"),
        ("204 No Content\r\n\r\n", 204, ""),
        (
            "304 Not Modified\r\nETag: \"5\"\r\nContent-Length: 99\r\n\r\n",
            304,
            "",
        ),
    ] {
        let gateway = Gateway::before(ScriptedUpstream::answering(format!("HTTP/1.1 {answer}")));

        let reply = gateway.get();

        assert_eq!((reply.status(), reply.body.as_str()), (status, body));
        for name in ["location", "www-authenticate", "etag", "content-length"] {
            let sent = answer.to_ascii_lowercase().contains(&format!("\n{name}:"));
            assert_eq!(
                reply.values(name).len(),
                usize::from(sent),
                "{status} {name}"
            );
        }
    }
}

#[test]
fn an_interim_answer_is_not_taken_for_the_answer() {
    let gateway = Gateway::before(ScriptedUpstream::answering(format!(
        "HTTP/1.1 100 Continue\r\n\r\n{OK}"
    )));

    let reply = gateway.get();

    assert_eq!((reply.status(), reply.body.as_str()), (200, "ok"));
}

#[test]
fn head_gets_the_head_that_get_would_have() {
    let gateway = Gateway::before(ScriptedUpstream::start(|request| {
        let body = if request.line.starts_with("HEAD") {
            ""
        } else {
            "ok"
        };
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Kept: 1\r\n\r\n";
        ScriptedReply::Answer(format!("{head}{body}").into_bytes())
    }));

    let got = gateway.get();
    let head = gateway.send("HEAD /api/movies", &[], "");

    let own = ["date", "x-request-id"];
    let expected = RawReply {
        body: String::new(),
        ..got.without(&own)
    };
    let head = head.without(&own);
    assert_eq!(
        (head.status(), sorted(head.headers), head.body),
        (200, sorted(expected.headers), expected.body)
    );
}

#[test]
fn a_head_request_with_content_is_forwarded_without_it() {
    let gateway = Gateway::before(ScriptedUpstream::answering("HTTP/1.1 200 OK\r\n\r\n"));

    let reply = gateway.send("HEAD /api/movies", &["Content-Length: 2"], "{}");

    assert_eq!((reply.status(), gateway.received().body.len()), (200, 0));
}

#[test]
fn answers_of_every_framing_and_of_10_megabytes_come_back_whole() {
    let content = "0123456789abcdef".repeat(10 * 64 * 1024);
    let length = format!("Content-Length: {}\r\n\r\n{content}", content.len());
    let mut chunked = "Transfer-Encoding: chunked\r\n\r\n".to_owned();
    let mut rest = content.as_str();
    // The chunks have every size, so that they end anywhere in a buffer.
    for size in (1..).step_by(997) {
        let (chunk, others) = rest.split_at(size.min(rest.len()));
        let _ = write!(chunked, "{:x};x=y\r\n{chunk}\r\n", chunk.len());
        if chunk.is_empty() {
            break;
        }
        rest = others;
    }
    for (framing, reply_with) in [
        (
            "length",
            ScriptedReply::Answer as fn(Vec<u8>) -> ScriptedReply,
        ),
        ("chunked", ScriptedReply::Answer),
        ("the end of the connection", ScriptedReply::Last),
    ] {
        let framed = match framing {
            "length" => &length,
            "chunked" => &chunked,
            _ => &format!("\r\n{content}"),
        };
        let answer = format!("HTTP/1.1 200 OK\r\n{framed}").into_bytes();
        let gateway = Gateway::before(ScriptedUpstream::start(move |_| reply_with(answer.clone())));

        let reply = gateway.client().get("/api/movies");

        assert_eq!((reply.status, reply.text.len()), (200, content.len()));
        assert!(reply.text == content, "{framing}");
    }
}

#[test]
fn chunks_win_over_a_length_that_is_given_beside_them() {
    let gateway = Gateway::before(ScriptedUpstream::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nok\r\n0\r\n\r\n",
    ));

    let reply = gateway.get();

    assert_eq!(
        (reply.values("content-length"), reply.body.as_str()),
        (vec!["2"], "ok")
    );
}

#[test]
fn heads_of_many_headers_pass_both_ways() {
    let lines: Vec<_> = (0..60)
        .map(|number| format!("X-Tag-{number}: {}", "v".repeat(100)))
        .collect();
    let gateway = Gateway::before(ScriptedUpstream::answering(format!(
        "HTTP/1.1 200 OK\r\n{}\r\nContent-Length: 2\r\n\r\nok",
        lines.join("\r\n")
    )));
    let sent: Vec<_> = lines.iter().map(String::as_str).collect();

    let reply = gateway.send("GET /api/movies", &sent, "");

    let tags = |headers: &[(String, String)]| {
        let tags = headers
            .iter()
            .filter(|(name, _)| name.starts_with("x-tag-"));
        tags.map(|(_, value)| value.len()).collect::<Vec<_>>()
    };
    assert_eq!((reply.status(), tags(&reply.headers)), (200, vec![100; 60]));
    assert_eq!(tags(&gateway.received().headers), [100; 60]);
}

#[test]
fn an_answer_with_a_header_of_32_kilobytes_passes() {
    let long = "v".repeat(32 * 1024);
    let gateway = Gateway::before(ScriptedUpstream::answering(format!(
        "HTTP/1.1 200 OK\r\nX-Tag: {long}\r\nContent-Length: 2\r\n\r\nok"
    )));

    let reply = gateway.get();

    assert_eq!((reply.status(), reply.body.as_str()), (200, "ok"));
    assert!(reply.values("x-tag") == [long]);
}

#[test]
fn what_cannot_be_forwarded_is_the_clients_to_mend() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));
    for line in [
        "CONNECT /api/movies",
        "GET /api/movies/<7>",
        "GET /api/movies?title=a#b",
        "GE(T /api/movies",
    ] {
        let reply = gateway.send(line, &[], "");

        assert_eq!(problem(&reply).0, 400, "{line}");
    }
    assert_eq!(gateway.upstream.requests(), []);
}

#[test]
fn an_inventory_that_is_not_there_is_a_502() {
    let gateway = forwarding_to(NOBODY, UpstreamLimits::default());
    let request = b"GET /api/movies HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

    let reply = RawReply::to(gateway.client.address(), request);

    let expected = bad_gateway("the inventory cannot be reached; try again");
    assert_eq!(problem(&reply), expected);
}

#[test]
fn an_inventory_that_hangs_up_or_does_not_speak_http_is_a_502() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 abc Nothing\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nAliens",
        "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nAlien",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nAlien\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nAlien",
    ] {
        let gateway = Gateway::before(ScriptedUpstream::start(|_| {
            ScriptedReply::Last(answer.into())
        }));

        let reply = gateway.get();

        let what = if answer.is_empty() {
            "cannot be reached"
        } else {
            "gave no valid answer"
        };
        let expected = bad_gateway(&format!("the inventory {what}; try again"));
        assert_eq!(problem(&reply), expected, "{answer}");
    }
}

#[test]
fn a_change_that_was_sent_and_has_no_answer_may_have_been_made_and_its_client_is_told() {
    let try_again = "the inventory cannot be reached; try again";
    let nobody = forwarding_to(NOBODY, UpstreamLimits::default());
    let silent = ScriptedUpstream::start(|_| ScriptedReply::Silence);
    let slow = forwarding_to(silent.address(), limits(Duration::from_millis(200)));
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let change = format!("{method} /api/movies/7 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n");
        let change = format!("{change}Connection: close\r\n\r\n{{}}");
        let told = |address| {
            let reply = RawReply::to(address, change.as_bytes());
            problem(&reply).1["detail"].clone()
        };
        let gone = ScriptedUpstream::start(|_| ScriptedReply::Last(String::new().into()));
        let gone = Gateway::before(gone);

        let unknown =
            "whether the request was carried out is not known; look before you send it again";
        assert_eq!(told(nobody.client.address()), try_again, "{method}");
        assert_eq!(
            told(gone.client().address()),
            format!("the inventory cannot be reached; {unknown}"),
            "{method}"
        );
        assert_eq!(
            told(slow.client.address()),
            format!("the inventory takes too long; {unknown}"),
            "{method}"
        );
    }
}

#[test]
fn an_answer_whose_chunks_never_end_a_line_is_broken_off() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = format!("{head}\r{}", "A".repeat(1024 * 1024));
    let gateway = Gateway::before(ScriptedUpstream::answering(answer));

    let reply = gateway.get();

    let expected = bad_gateway("the inventory gave no valid answer; try again");
    assert_eq!(problem(&reply), expected);
}

#[test]
fn an_inventory_that_says_nothing_is_a_504() {
    let upstream = ScriptedUpstream::start(|_| ScriptedReply::Silence);
    let gateway = Gateway {
        service: forwarding_to(upstream.address(), limits(Duration::from_millis(200))),
        upstream,
    };

    let reply = gateway.get();

    let expected = json!({
        "type": "about:blank",
        "title": "Gateway Timeout",
        "status": 504,
        "detail": "the inventory takes too long; try again",
        "request_id": null,
    });
    assert_eq!(problem(&reply), (504, expected));
    // The gateway does not repeat a request to a slow service.
    assert_eq!(gateway.upstream.requests().len(), 1);
}

#[test]
fn an_inventory_that_stops_in_the_first_part_of_its_answer_is_a_504() {
    let upstream =
        ScriptedUpstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nAlien");
    let gateway = Gateway {
        service: forwarding_to(upstream.address(), limits(Duration::from_millis(200))),
        upstream,
    };

    assert_eq!(gateway.get().status(), 504);
}

#[test]
fn an_answer_that_breaks_off_cannot_be_taken_for_whole() {
    let chunk = "x".repeat(100_000);
    let broken = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{chunk}\r\n",
        chunk.len()
    );
    let gateway = Gateway::before(ScriptedUpstream::start(move |_| {
        ScriptedReply::Last(broken.clone().into())
    }));

    let reply = gateway
        .client()
        .try_send("GET", "/api/movies", &[], None)
        .map(|reply| reply.text.len());

    assert!(reply.is_err(), "{reply:?}");
}

#[test]
fn connections_to_the_inventory_are_used_again() {
    let gateway = Gateway::before(ScriptedUpstream::start(|request| {
        let answer = match request.line.split(' ').next() {
            Some("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            Some("DELETE") => "HTTP/1.1 204 No Content\r\n\r\n",
            Some("PUT") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            _ => OK,
        };
        ScriptedReply::Answer(answer.into())
    }));

    for method in ["GET", "HEAD", "DELETE", "PUT", "POST", "GET"] {
        let _ = gateway.client().send(method, "/api/movies", &[], None);
    }

    let connections: Vec<_> = gateway
        .upstream
        .requests()
        .iter()
        .map(|request| request.connection)
        .collect();
    assert_eq!(connections, [0; 6]);
}

/// Sends a GET, and then a request of that method, for which the inventory closes the connection without an answer.
/// Returns the gateway's answer, and how many requests the inventory has received.
fn on_a_stale_connection(method: &str, headers: &[(&str, &str)]) -> (Reply, usize) {
    let gateway = Gateway::before(ScriptedUpstream::start(|request| {
        if (request.connection, request.turn) == (0, 1) {
            ScriptedReply::Last(Vec::new())
        } else {
            ScriptedReply::Answer(OK.into())
        }
    }));
    assert_eq!(gateway.client().get("/api/movies").status, 200);

    let reply = gateway
        .client()
        .send(method, "/api/movies/7", headers, Some("{}"));

    (reply, gateway.upstream.requests().len() - 1)
}

#[test]
fn what_may_be_done_twice_is_repeated_once_on_another_connection() {
    for method in ["GET", "PUT", "DELETE"] {
        let (reply, asked) = on_a_stale_connection(method, &[]);

        assert_eq!(
            (reply.status, reply.text.as_str(), asked),
            (200, "ok", 2),
            "{method}"
        );
    }
}

#[test]
fn what_may_not_be_done_twice_is_never_repeated() {
    let unchanged = ("if-match", "\"1\"");
    for (method, headers) in [
        ("POST", &[][..]),
        ("PATCH", &[]),
        ("PUT", &[unchanged]),
        ("DELETE", &[unchanged]),
    ] {
        let (reply, asked) = on_a_stale_connection(method, headers);

        assert_eq!((reply.status, asked), (502, 1), "{method}");
    }
}

#[test]
fn a_connection_that_the_inventory_has_closed_costs_nobody_an_answer() {
    let gateway = Gateway::before(ScriptedUpstream::start(|_| ScriptedReply::Last(OK.into())));
    for count in 1..=5 {
        let reply = gateway
            .client()
            .send("POST", "/api/movies", &[], Some("{}"));

        assert_eq!(reply.status, 200);
        eventually("it is closed", || gateway.upstream.closed() == count);
    }
    assert_eq!(gateway.upstream.requests().len(), 5);
}

#[test]
fn an_inventory_that_always_hangs_up_is_asked_twice_at_most() {
    let gateway = Gateway::before(ScriptedUpstream::start(|_| ScriptedReply::Last(Vec::new())));

    let reply = gateway.get();

    assert_eq!(
        (reply.status(), gateway.upstream.requests().len()),
        (502, 2)
    );
}

#[test]
fn only_movies_are_forwarded() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));
    for target in [
        "/movies",
        "/api",
        "/api/moviesx",
        "/api/movie",
        "//api/movies",
        "/api/orders",
    ] {
        assert_eq!(gateway.client().get(target).status, 404, "{target}");
    }
    assert_eq!(gateway.upstream.requests(), []);
}

#[test]
fn the_host_of_an_absolute_target_takes_the_place_of_host() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));

    let reply = gateway.send("GET http://other.example:81/api/movies?a=b", &[], "");

    assert_eq!(reply.status(), 200);
    let received = gateway.received();
    assert_eq!(received.line, "GET /api/movies?a=b HTTP/1.1");
    assert_eq!(received.values("x-forwarded-host"), ["other.example:81"]);
}

#[test]
fn options_and_trace_go_as_far_as_max_forwards_says() {
    let gateway = Gateway::before(ScriptedUpstream::answering(OK));

    let last = gateway.send("OPTIONS /api/movies", &["Max-Forwards: 0"], "");
    let next = gateway.send("OPTIONS /api/movies", &["Max-Forwards: 5"], "");
    let get = gateway.send("GET /api/movies", &["Max-Forwards: 0"], "");

    assert_eq!(
        (last.status(), next.status(), get.status()),
        (204, 200, 200)
    );
    assert!(!last.values("allow").is_empty());
    let received = gateway.upstream.requests();
    let left: Vec<_> = received
        .iter()
        .map(|request| request.values("max-forwards"))
        .collect();
    assert_eq!(left, [["4"], ["0"]]);
}

#[test]
fn a_204_has_no_length_whatever_the_inventory_says() {
    let answer = "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n";
    let gateway = Gateway::before(ScriptedUpstream::answering(answer));

    let reply = gateway.get();

    assert_eq!(
        (reply.status(), reply.values("content-length")),
        (204, Vec::new())
    );
}

#[test]
fn what_changes_something_is_not_repeated_where_its_connection_was_new() {
    for (method, asked) in [("PUT", 1), ("DELETE", 1), ("GET", 2)] {
        let gateway = Gateway::before(ScriptedUpstream::start(|_| ScriptedReply::Last(Vec::new())));

        let reply = gateway.send(&format!("{method} /api/movies/1"), &[], "");

        assert_eq!(
            (reply.status(), gateway.upstream.requests().len()),
            (502, asked),
            "{method}"
        );
    }
}

/// The time limit is for a pause, and not for the whole answer.
#[test]
fn an_answer_that_comes_in_many_small_pieces_comes_back_whole() {
    const PIECES: usize = 12;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let limit = Duration::from_millis(800);
    let gateway = forwarding_to(address, limits(limit));

    let reply = thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {PIECES}\r\n\r\n");
            stream.write_all(head.as_bytes()).expect("it reads");
            for _ in 0..PIECES {
                // The test needs a service that answers slowly.
                thread::sleep(limit / 8);
                stream.write_all(b"x").expect("it reads");
            }
        });
        gateway.client.get("/api/movies")
    });

    assert_eq!((reply.status, reply.text), (200, "x".repeat(PIECES)));
}

/// An inventory whose answers have `bytes` bytes, of which it sends the last ones one by one until the gateway closes
/// the connection.
fn trickling(bytes: usize, at_once: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            let begin = [head.as_bytes(), &vec![b'x'; at_once]].concat();
            thread::spawn(move || {
                let mut sent = stream.write_all(&begin);
                while sent.is_ok() {
                    // The test needs a service that answers slowly.
                    thread::sleep(Duration::from_millis(20));
                    sent = stream.write_all(b"x");
                }
            });
        }
    });
    address
}

#[test]
fn an_inventory_that_sends_byte_after_byte_holds_its_slot_no_longer_than_a_client_waits() {
    let limits = UpstreamLimits {
        answer: Duration::from_millis(400),
        ..limits(Duration::from_millis(200))
    };
    let gateway = forwarding_to(trickling(20_000, 0), limits);

    // There is one slot.
    for _ in 0..3 {
        assert_eq!(gateway.client.get("/api/movies").status, 504);
    }
}

#[test]
fn a_long_answer_that_comes_byte_after_byte_is_truncated() {
    let limits = limits(Duration::from_millis(200));
    let gateway = forwarding_to(trickling(1_000_000, 100_000), limits);

    for _ in 0..3 {
        let reply = gateway
            .client
            .try_send("GET", "/api/movies", &[], None)
            .map(|reply| reply.text.len());
        assert!(reply.is_err(), "{reply:?}");
    }
}
