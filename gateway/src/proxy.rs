//! What a proxy changes: the client's request goes to the service behind as it is, and the answer
//! comes back as it is. Only the headers that belong to one connection stay behind
//! (RFC 9110 §7.6.1), and those that tell the service who asked are added.

use std::net::SocketAddr;

use common::http::{Body, HandlerResult, Method, Problem, Request, Response, is_conditional};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// This gateway's name in `Via`.
const VIA: &str = "1.1 crud-master";

/// Headers that belong to one connection; so do those that `Connection` names. `Expect` is
/// answered by us, and `Host` and the length are written anew.
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

/// The request as the service behind gets it.
pub(crate) fn passed_on(
    request: &Request,
    address: SocketAddr,
) -> Result<http::Request<()>, Problem> {
    // Its target names no resource but a host, which ureq would put in place of the path.
    if request.method == Method::CONNECT {
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

/// An empty body is one where it had a length. Where there is none, an empty chunked one is put
/// behind a POST, PUT or PATCH. One of a HEAD request has no meaning (RFC 9110 §9.3.2).
pub(crate) fn has_body(request: &Request) -> bool {
    let sent = !request.body.is_empty() || request.header("content-length").is_some();
    sent && request.method != Method::HEAD
}

/// The request's end-to-end headers, and those that say where it came from.
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
            // Counted down for those that it speaks of (RFC 9110 §7.6.2).
            "max-forwards" if counts_forwards(request) => {
                let left = value.parse::<u64>().unwrap_or(1).saturating_sub(1);
                headers.insert("max-forwards", left.into());
            }
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

/// Of a request that is not to be passed on any more, the answer.
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

/// The head of the service's answer as ours.
pub(crate) fn passed_back<'a>(head: &http::Response<()>, body: Body<'a>) -> Response<'a> {
    let bodiless = matches!(body, Body::Empty);
    let mut response = Response::new(head.status().as_u16(), body);
    response.is_passed_on = true;
    let listed = listed_in(head.headers().get_all("connection").iter().map(text));
    for (name, value) in head.headers() {
        let stays_behind = match name.as_str() {
            // The length goes with the body, where there is one.
            "content-length" => !bodiless || head.status() == http::StatusCode::NO_CONTENT,
            // The client gets the id that our log has, and what we tell browsers to keep to.
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

/// None where chunks say it instead, which win over a length beside them (RFC 9112 §6.3).
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

/// `name` is in lower case; `listed` are the names that `Connection` has.
fn is_hop_by_hop(name: &str, listed: &[String]) -> bool {
    HOP_BY_HOP.contains(&name) || listed.iter().any(|listed| listed == name)
}

/// Whether a request may be sent again where its connection ended before an answer began. Of
/// idempotent methods (RFC 9110 §9.2.2) those that change something only where the connection was
/// a kept one, which the service may have closed before it saw the request; and where the first
/// try cannot have made a precondition of the second one false.
pub(crate) fn may_be_repeated(request: &Request, connection_was_kept: bool) -> bool {
    match request.method {
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE => true,
        Method::PUT | Method::DELETE => connection_was_kept && !is_conditional(request),
        _ => false,
    }
}
