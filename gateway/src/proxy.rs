//! Movies, and recorded orders, forwarded: what the client sent goes to the service behind as it
//! is, and what that one answers comes back as it is. Only the headers that belong to one
//! connection stay behind (RFC 9110 §7.6.1), and those that tell the service who asked are added.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::http::{
    Body, HandlerResult, Method, Problem, Request, Response, Stream, is_conditional,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use ureq::{Agent, Timeout};

use crate::config::Limits;
use crate::socket::{Addresses, IDLE_LIMIT, Sockets};
use crate::upstreams::Upstreams;

/// What came of sending a request on.
type Answer = Result<http::Response<ureq::Body>, ureq::Error>;

/// How long a service may take to say that it lives.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// How much of an answer is passed on at once.
const PIECE_BYTES: usize = 16 * 1024;

/// The longest head of an answer, and the longest line of a request's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// This gateway's name in `Via`.
const VIA: &str = "1.1 crud-master";

/// Headers that belong to one connection; so do those that `Connection` names. `Expect` is
/// answered by us, and ureq writes `Host` and the length itself.
const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// The services of one kind, as one worker reaches them.
pub(crate) struct Proxy {
    upstreams: Arc<Upstreams>,
    agent: Agent,
}

impl Proxy {
    pub(crate) fn new(upstreams: &Arc<Upstreams>, limits: Limits) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent("")
            .accept("")
            .accept_encoding("")
            .allow_non_standard_methods(true)
            .max_idle_connections(upstreams.len())
            .max_idle_connections_per_host(1)
            .max_idle_age(IDLE_LIMIT)
            .input_buffer_size(HEAD_BYTES_MAX)
            .output_buffer_size(HEAD_BYTES_MAX)
            .timeout_connect(Some(limits.connect))
            .timeout_send_request(Some(limits.send))
            .timeout_send_body(Some(limits.send))
            .timeout_recv_response(Some(limits.response))
            .timeout_per_read(Some(limits.pause))
            .build();
        Self {
            upstreams: Arc::clone(upstreams),
            agent: Agent::with_parts(config, Sockets, Addresses),
        }
    }

    /// Whether the process of one of them answers, now.
    pub(crate) fn is_up(&self) -> bool {
        self.ask("/health").is_some_and(|(status, _)| status == 200)
    }

    /// What one of them answers to a GET, soon: the status and the content. None where it does not
    /// answer.
    pub(crate) fn ask(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        self.probe(self.upstreams.choose(), path)
    }

    /// Whether that one can work, now.
    pub(crate) fn is_ready(&self, address: SocketAddr) -> bool {
        let ready = self.probe(address, "/ready");
        ready.is_some_and(|(status, _)| status == 200)
    }

    fn probe(&self, address: SocketAddr, path: &str) -> Option<(u16, Vec<u8>)> {
        let probe = || {
            let mut request = self.agent.get(format!("http://{address}{path}"));
            if let Some(key) = self.upstreams.operations_key() {
                request = request.header("authorization", key.authorization());
            }
            request
                .config()
                .timeout_connect(Some(PROBE_LIMIT))
                .timeout_recv_response(Some(PROBE_LIMIT))
                .build()
                .call()
        };
        // A connection that was closed while it was idle is no answer.
        let answer = match probe() {
            Err(error) if is_disconnect(&error) => probe(),
            answer => answer,
        };
        let mut answer = answer.ok()?;
        // Read to its end, so that the connection can be used again.
        let body = answer.body_mut().read_to_vec().ok()?;
        Some((answer.status().as_u16(), body))
    }

    /// Passes the request on and the answer back.
    pub(crate) fn forward(&mut self, request: &Request) -> HandlerResult<'static> {
        let address = self.upstreams.choose();
        let answer = match self.send(request, address)? {
            Err(error) => self.repeated(request, address, error)?,
            answer => answer,
        };
        let service = self.upstreams.service();
        let answer = answer.map_err(|error| problem(service, &error))?;
        Ok(passed_back(service, answer, &request.method))
    }

    /// A second try, where one may help and can do no harm. A connection that the service
    /// closed while it was idle shows only when it is used; a service that is gone has perhaps
    /// a neighbour.
    fn repeated(
        &self,
        request: &Request,
        failed: SocketAddr,
        error: ureq::Error,
    ) -> Result<Answer, Problem> {
        let stale = is_disconnect(&error);
        if !stale {
            self.upstreams.leave_out(failed);
        }
        let repeatable = stale && may_be_repeated(request) || never_sent(&error);
        let next = self
            .upstreams
            .choose_other(failed)
            .or(stale.then_some(failed));
        let Some(next) = next.filter(|_| repeatable) else {
            return Ok(Err(error));
        };
        let answer = self.send(request, next)?;
        if answer.is_err() {
            self.upstreams.leave_out(next);
        }
        Ok(answer)
    }

    fn send(&self, request: &Request, address: SocketAddr) -> Result<Answer, Problem> {
        let outgoing = passed_on(request, address)?;
        Ok(if has_body(request) {
            self.agent.run(outgoing.map(|()| request.body.as_slice()))
        } else {
            self.agent.run(outgoing)
        })
    }
}

/// The request as the service behind gets it.
fn passed_on(request: &Request, address: SocketAddr) -> Result<http::Request<()>, Problem> {
    // Its target names no resource but a host, which ureq would put in place of the path.
    if request.method.as_str() == "CONNECT" {
        return Err(Problem::bad_request(
            "CONNECT is for proxies of another kind",
        ));
    }
    let must_be_encoded =
        || Problem::bad_request("the path or query has characters that must be percent-encoded");
    let uri = format!("http://{}{}", address, request.target);
    let uri: Uri = uri.parse().map_err(|_| must_be_encoded())?;
    // What a fragment would cut off belongs to the path or query as well.
    if uri.path_and_query().map(PathAndQuery::as_str) != Some(&request.target) {
        return Err(must_be_encoded());
    }
    let cannot = |error: http::Error| {
        Problem::bad_request(format!("the request cannot be passed on: {error}"))
    };
    let outgoing = http::Request::builder()
        .method(request.method.as_str())
        .uri(uri)
        .body(());
    let mut outgoing = outgoing.map_err(cannot)?;
    *outgoing.headers_mut() = headers_passed_on(request).map_err(cannot)?;
    Ok(outgoing)
}

/// An empty body is one where it had a length. Where there is none, ureq puts an empty chunked
/// one behind a POST, PUT or PATCH. One of a HEAD request has no meaning (RFC 9110 §9.3.2).
fn has_body(request: &Request) -> bool {
    let sent = !request.body.is_empty() || request.header("content-length").is_some();
    sent && request.method != Method::Head
}

/// The request's end-to-end headers, and those that say where it came from.
fn headers_passed_on(request: &Request) -> http::Result<HeaderMap> {
    let listed = request
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
    let listed = listed_in(listed.map(|(_, value)| value.as_str()));
    let client = request.client.to_string();
    let (mut forwarded_for, mut via, mut host) = (Vec::new(), Vec::new(), None);
    let mut headers = HeaderMap::with_capacity(request.headers.len() + 5);
    for (name, value) in &request.headers {
        let name = HeaderName::from_bytes(name.as_bytes())?;
        match name.as_str() {
            "host" => host = Some(value),
            "x-forwarded-for" => forwarded_for.push(value.as_str()),
            "via" => via.push(value.as_str()),
            "content-length" | "x-request-id" | "x-forwarded-proto" | "x-forwarded-host"
            // What a client shows to the gateway is for nobody else.
            | "authorization" | "cookie" => {}
            name if is_hop_by_hop(name, &listed) => {}
            _ => {
                headers.append(name, octets(value)?);
            }
        }
    }
    // Of several, in their order (RFC 9110 §5.3), ours is the last.
    forwarded_for.push(&client);
    via.push(VIA);
    let scheme = if request.secure { "https" } else { "http" };
    headers.insert("x-forwarded-for", octets(&forwarded_for.join(", "))?);
    headers.insert("x-forwarded-proto", HeaderValue::from_static(scheme));
    if let Some(host) = host {
        headers.insert("x-forwarded-host", octets(host)?);
    }
    headers.insert("via", octets(&via.join(", "))?);
    headers.insert("x-request-id", octets(&request.request_id)?);
    Ok(headers)
}

/// A header's value as it was sent: one octet for each character.
fn octets(value: &str) -> http::Result<HeaderValue> {
    if value.is_ascii() {
        return Ok(HeaderValue::from_str(value)?);
    }
    let octets: Vec<u8> = value
        .chars()
        .filter_map(|character| u8::try_from(character).ok())
        .collect();
    Ok(HeaderValue::from_bytes(&octets)?)
}

/// A header's value as text: one character for each octet.
fn characters(value: &HeaderValue) -> String {
    match value.to_str() {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
    }
}

/// The service's answer as ours.
fn passed_back(
    service: &'static str,
    answer: http::Response<ureq::Body>,
    method: &Method,
) -> Response<'static> {
    let (head, body) = answer.into_parts();
    let status = head.status.as_u16();
    let bodiless = *method == Method::Head || status == 204 || status == 304;
    let length = content_length(&head.headers);
    let body = if bodiless {
        Body::Empty
    } else {
        Body::Stream(stream(
            service,
            length,
            body.into_with_config().limit(u64::MAX).reader(),
        ))
    };
    let mut response = Response::new(status, body);
    let listed = listed_in(head.headers.get_all("connection").iter().map(text));
    for (name, value) in &head.headers {
        let stays_behind = match name.as_str() {
            // The length goes with the body, where there is one.
            "content-length" => !bodiless,
            // The client gets the one that our log has.
            "x-request-id" => true,
            name => is_hop_by_hop(name, &listed),
        };
        if !stays_behind {
            response.push_header(name.as_str().to_owned(), characters(value));
        }
    }
    response
}

fn stream(
    service: &'static str,
    length: Option<u64>,
    mut reader: impl Read + 'static,
) -> Stream<'static> {
    let mut left = length;
    let fill = move |buffer: &mut Vec<u8>| {
        let begin = buffer.len();
        // Even where nothing is left, to be told that this is the end.
        let room = left.map_or(PIECE_BYTES, |left| {
            usize::try_from(left).unwrap_or(PIECE_BYTES)
        });
        buffer.resize(begin + room.clamp(1, PIECE_BYTES), 0);
        let read = reader
            .read(&mut buffer[begin..])
            .map_err(|error| problem(service, &error.into()));
        let bytes = *read.as_ref().unwrap_or(&0);
        buffer.truncate(begin + bytes);
        left = left.map(|left| left.saturating_sub(bytes as u64));
        read.map(|_| ())
    };
    Stream {
        length,
        fill: Box::new(fill),
    }
}

/// None where chunks say it instead, which win over a length beside them (RFC 9112 §6.3).
fn content_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key("transfer-encoding") {
        return None;
    }
    text(headers.get("content-length")?).parse().ok()
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or("")
}

/// The names in the values of `Connection`, in lower case.
fn listed_in<'a>(connection: impl Iterator<Item = &'a str>) -> Vec<String> {
    connection
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect()
}

/// `name` is in lower case; `listed` are the names that `Connection` has.
fn is_hop_by_hop(name: &str, listed: &[String]) -> bool {
    HOP_BY_HOP.contains(&name) || listed.iter().any(|listed| listed == name)
}

/// Idempotent methods (RFC 9110 §9.2.2), where the first try cannot have made a precondition of the
/// second one false.
fn may_be_repeated(request: &Request) -> bool {
    match &request.method {
        Method::Get | Method::Head | Method::Options => true,
        Method::Put | Method::Delete => !is_conditional(request),
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

/// Whether the service cannot have seen anything of the request.
fn never_sent(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        ureq::Error::Timeout(Timeout::Connect) | ureq::Error::ConnectionFailed => true,
        _ => false,
    }
}

fn problem(service: &str, error: &ureq::Error) -> Problem {
    match error {
        ureq::Error::Timeout(timeout) if *timeout != Timeout::Connect => {
            Problem::gateway_timeout(format!("{service} takes too long; try again"), error)
        }
        _ => Problem::bad_gateway(format!("{service} cannot be reached; try again"), error),
    }
}
