//! The headers that the gateway changes. It forwards requests and answers unchanged, but removes the headers
//! that belong to one connection (RFC 9110 §7.6.1), and adds those that name the client to the service.

use std::net::SocketAddr;

use common::http::{Body, HandlerResult, Method, Problem, Request, Response, is_conditional};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// This gateway's name in `Via`.
const VIA: &str = "1.1 crud-master";

/// Headers that belong to one connection, besides those that `Connection` names. The server of the gateway
/// answers `Expect`.
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

/// The request as the gateway sends it to the service.
pub(crate) fn passed_on(
    request: &Request,
    address: SocketAddr,
) -> Result<http::Request<()>, Problem> {
    // The target of CONNECT is a host and not a resource; ureq would use the host as the path.
    if request.method == Method::CONNECT {
        return Err(Problem::bad_request(
            "this gateway makes no tunnels for CONNECT",
        ));
    }
    let must_be_encoded =
        || Problem::bad_request("the path or query has characters that must be percent-encoded");
    let uri = format!("http://{}{}", address, request.target);
    let uri: Uri = uri.parse().map_err(|_| must_be_encoded())?;
    // A fragment would be cut off, although it belongs to the target that the client sent.
    if uri.path_and_query().map(PathAndQuery::as_str) != Some(&request.target) {
        return Err(must_be_encoded());
    }
    let cannot = |error: http::Error| {
        Problem::bad_request(format!("the request cannot be passed on: {error}"))
    };
    let outgoing = http::Request::builder()
        .method(&request.method)
        .uri(uri)
        .body(());
    let mut outgoing = outgoing.map_err(cannot)?;
    *outgoing.headers_mut() = headers_passed_on(request).map_err(cannot)?;
    if has_body(request) {
        outgoing
            .headers_mut()
            .insert("content-length", request.body.len().into());
    }
    Ok(outgoing)
}

/// Whether the request is sent with a body. A body may be empty if the client sent a length. ureq-proto adds an
/// empty chunked body to a POST, PUT or PATCH without one. The body of a HEAD request has no meaning
/// (RFC 9110 §9.3.2).
pub(crate) fn has_body(request: &Request) -> bool {
    let sent = !request.body.is_empty() || request.header("content-length").is_some();
    sent && request.method != Method::HEAD
}

/// The request's end-to-end headers, and those that name the client.
fn headers_passed_on(request: &Request) -> http::Result<HeaderMap> {
    let listed = listed_in(request.headers.values("connection"));
    let client = request.client.to_string();
    let (mut forwarded_for, mut via, mut host) = (Vec::new(), Vec::new(), None);
    let mut headers = HeaderMap::with_capacity(request.headers.iter().count() + 5);
    for (name, value) in request.headers.iter() {
        let name = HeaderName::from_bytes(name.as_bytes())?;
        match name.as_str() {
            "host" => host = Some(value),
            "x-forwarded-for" => forwarded_for.push(value),
            "via" => via.push(value),
            // The count is lowered for the methods that have one (RFC 9110 §7.6.2).
            "max-forwards" if counts_forwards(request) => {
                let left = value.parse::<u64>().unwrap_or(1).saturating_sub(1);
                headers.insert("max-forwards", left.into());
            }
            "content-length" | "x-request-id" | "x-forwarded-proto" | "x-forwarded-host"
            // The client sent its credentials to the gateway, and not to the services.
            | "authorization" | "cookie" => {}
            name if is_hop_by_hop(name, &listed) => {}
            _ => {
                headers.append(name, octets(value)?);
            }
        }
    }
    // Several values keep their order (RFC 9110 §5.3); the gateway's is the last.
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

/// The answer to a request whose `Max-Forwards` is 0; None for a request that is passed on.
pub(crate) fn answered_here(request: &Request) -> Option<HandlerResult<'static>> {
    let is_last = counts_forwards(request) && request.header("max-forwards") == Some("0");
    let allow = "GET, HEAD, POST, PUT, DELETE, OPTIONS";
    is_last.then(|| match request.method {
        Method::OPTIONS => Ok(Response::empty(204).with_header("allow", allow)),
        _ => Err(Problem::method_not_allowed(allow.to_owned())),
    })
}

fn counts_forwards(request: &Request) -> bool {
    matches!(request.method.as_str(), "OPTIONS" | "TRACE")
}

/// A header's value as octets: one for each character.
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

/// The service's answer as the gateway sends it to the client.
pub(crate) fn passed_back<'a>(head: &http::Response<()>, body: Body<'a>) -> Response<'a> {
    let bodiless = matches!(body, Body::Empty);
    let mut response = Response::new(head.status().as_u16(), body);
    response.is_passed_on = true;
    let listed = listed_in(head.headers().get_all("connection").iter().map(text));
    for (name, value) in head.headers() {
        let stays_behind = match name.as_str() {
            // The server writes the length of a body.
            "content-length" => !bodiless || head.status() == http::StatusCode::NO_CONTENT,
            // The gateway sets these: the id that its log has, and its instructions to browsers.
            "x-request-id"
            | "x-content-type-options"
            | "cross-origin-resource-policy"
            | "strict-transport-security" => true,
            name => is_hop_by_hop(name, &listed),
        };
        if !stays_behind {
            response.push_header(name.as_str().to_owned(), characters(value));
        }
    }
    response
}

/// The length that the headers state; None for a chunked body, whose chunks override a length (RFC 9112 §6.3).
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
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

/// Whether a header belongs to one connection. `name` is in lower case; `listed` are the names in `Connection`.
fn is_hop_by_hop(name: &str, listed: &[String]) -> bool {
    HOP_BY_HOP.contains(&name) || listed.iter().any(|listed| listed == name)
}

/// Whether a request may be sent again if its connection ended before an answer began. A safe method may be
/// repeated. Any other idempotent method (RFC 9110 §9.2.2) may be repeated on two conditions: the connection had
/// been idle, so that the service may have closed it before the request arrived, and the request has no
/// precondition, which the first try may have made false.
pub(crate) fn may_be_repeated(request: &Request, connection_was_kept: bool) -> bool {
    match request.method {
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE => true,
        Method::PUT | Method::DELETE => connection_was_kept && !is_conditional(request),
        _ => false,
    }
}
