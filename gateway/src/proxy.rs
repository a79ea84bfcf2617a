//! Movies, forwarded: what the client sent goes to the inventory as it is, what the inventory
//! answers comes back as it is. Only the headers that belong to one connection stay behind
//! (RFC 9110 §7.6.1), and those that tell the inventory who asked are added.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use common::http::{Body, HandlerResult, Method, Problem, Request, Response, Stream};
use http::{HeaderMap, Uri};
use ureq::{Agent, Timeout};

/// How long the inventory may take to accept a connection, then to take the request.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// How long the inventory may take until its answer begins.
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);

/// How long an answer may pause while it is sent.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// How long the inventory may take to say that it lives.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// A connection that was idle for longer is not used again.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// How much of an answer is passed on at once.
const PIECE_BYTES: usize = 16 * 1024;

/// This gateway's name in `Via`.
const VIA: &str = "1.1 crud-master";

/// Headers that belong to one connection; so do those that `Connection` names. `Expect` is
/// answered by us, and ureq writes `Host` and the length itself.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// The inventory, as one worker reaches it.
pub(crate) struct Inventory {
    address: SocketAddr,
    agent: Agent,
}

impl Inventory {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent("")
            .accept("")
            .accept_encoding("")
            .allow_non_standard_methods(true)
            .no_delay(true)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .max_idle_age(IDLE_LIMIT)
            .input_buffer_size(PIECE_BYTES)
            .output_buffer_size(PIECE_BYTES)
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_send_request(Some(SEND_LIMIT))
            .timeout_send_body(Some(SEND_LIMIT))
            .timeout_recv_response(Some(RESPONSE_LIMIT))
            .timeout_per_read(Some(READ_LIMIT))
            .build();
        Self {
            address,
            agent: config.new_agent(),
        }
    }

    /// Whether the inventory's process answers, now.
    pub(crate) fn is_up(&self) -> bool {
        let probe = self
            .agent
            .get(format!("http://{}/health", self.address))
            .config()
            .timeout_connect(Some(PROBE_LIMIT))
            .timeout_recv_response(Some(PROBE_LIMIT))
            .build()
            .call();
        probe.is_ok_and(|mut response| {
            // Read to its end, so that the connection can be used again.
            response.status() == 200 && response.body_mut().read_to_vec().is_ok()
        })
    }

    /// Passes the request on and the answer back.
    pub(crate) fn forward(&mut self, request: &Request) -> HandlerResult<'static> {
        let uri = format!("http://{}{}", self.address, request.target);
        let uri: Uri = uri.parse().map_err(|_| {
            Problem::bad_request("the path or query has characters that must be percent-encoded")
        })?;
        let answer = match self.send(request, &uri) {
            // A connection that the inventory closed while it was idle shows only when it is
            // used. What may be done twice is tried on another one.
            Err(error) if is_disconnect(&error) && is_idempotent(&request.method) => {
                self.send(request, &uri)
            }
            answer => answer,
        };
        Ok(passed_back(
            answer.map_err(|error| problem(&error))?,
            &request.method,
        ))
    }

    fn send(
        &self,
        request: &Request,
        uri: &Uri,
    ) -> Result<http::Response<ureq::Body>, ureq::Error> {
        let mut outgoing = http::Request::builder()
            .method(request.method.as_str())
            .uri(uri);
        for (name, value) in passed_on(request) {
            outgoing = outgoing.header(name, value);
        }
        if request.header("content-length").is_some()
            || request.header("transfer-encoding").is_some()
        {
            self.agent.run(outgoing.body(request.body.as_slice())?)
        } else {
            self.agent.run(outgoing.body(())?)
        }
    }
}

/// The request's end-to-end headers, and those that say where it came from.
fn passed_on(request: &Request) -> Vec<(String, String)> {
    let listed = request.header("connection").unwrap_or("").to_owned();
    let mut host = String::new();
    let mut forwarded_for = request.client.to_string();
    let mut via = VIA.to_owned();
    let mut headers = Vec::with_capacity(request.headers.len() + 5);
    for (name, value) in &request.headers {
        match name.to_ascii_lowercase().as_str() {
            "host" => host.clone_from(value),
            "x-forwarded-for" => forwarded_for = format!("{value}, {forwarded_for}"),
            "via" => via = format!("{value}, {via}"),
            "content-length" | "x-request-id" | "x-forwarded-proto" | "x-forwarded-host" => {}
            name if is_hop_by_hop(name, &listed) => {}
            _ => headers.push((name.clone(), value.clone())),
        }
    }
    headers.push(("x-forwarded-for".to_owned(), forwarded_for));
    headers.push(("x-forwarded-proto".to_owned(), "http".to_owned()));
    headers.push(("x-forwarded-host".to_owned(), host));
    headers.push(("via".to_owned(), via));
    headers.push(("x-request-id".to_owned(), request.request_id.clone()));
    headers
}

/// The inventory's answer as ours.
fn passed_back(answer: http::Response<ureq::Body>, method: &Method) -> Response<'static> {
    let (head, body) = answer.into_parts();
    let length = content_length(&head.headers);
    let status = head.status.as_u16();
    let bodiless = *method == Method::Head || status == 204 || status == 304;
    let body = if bodiless {
        Body::Empty
    } else {
        Body::Stream(stream(
            length,
            body.into_with_config().limit(u64::MAX).reader(),
        ))
    };
    let mut response = Response::new(status, body);
    let listed = text(head.headers.get("connection")).to_owned();
    for (name, value) in &head.headers {
        // The length goes with the body, where there is one.
        if !is_hop_by_hop(name.as_str(), &listed) && (bodiless || name != "content-length") {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            response.push_header(name.as_str().to_owned(), value);
        }
    }
    response
}

fn stream(length: Option<u64>, mut reader: impl Read + 'static) -> Stream<'static> {
    let fill = move |buffer: &mut Vec<u8>| {
        let begin = buffer.len();
        buffer.resize(begin + PIECE_BYTES, 0);
        let read = reader
            .read(&mut buffer[begin..])
            .map_err(|error| problem(&error.into()));
        buffer.truncate(begin + *read.as_ref().unwrap_or(&0));
        read.map(|_| ())
    };
    Stream {
        length,
        fill: Box::new(fill),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers.get("content-length")).parse().ok()
}

fn text(value: Option<&http::HeaderValue>) -> &str {
    value.and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// `name` is in lower case; `listed` is the value of `Connection`.
fn is_hop_by_hop(name: &str, listed: &str) -> bool {
    HOP_BY_HOP.contains(&name)
        || listed
            .split(',')
            .any(|token| token.trim().eq_ignore_ascii_case(name))
}

/// RFC 9110 §9.2.2.
fn is_idempotent(method: &Method) -> bool {
    match method {
        Method::Get | Method::Head | Method::Put | Method::Delete | Method::Options => true,
        Method::Post => false,
        Method::Other(name) => name == "TRACE",
    }
}

/// Whether the connection ended before an answer began.
fn is_disconnect(error: &ureq::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error, ureq::Error::Io(error) if matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    ))
}

fn problem(error: &ureq::Error) -> Problem {
    match error {
        ureq::Error::Timeout(Timeout::Connect) => {
            Problem::bad_gateway("the inventory cannot be reached; try again", error)
        }
        ureq::Error::Timeout(_) => {
            Problem::gateway_timeout("the inventory takes too long; try again", error)
        }
        _ => Problem::bad_gateway("the inventory cannot be reached; try again", error),
    }
}
