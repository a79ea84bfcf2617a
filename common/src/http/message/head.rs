//! The head of a request: method, target and header fields.

use std::fmt;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Instant;

use http::Method;
use percent_encoding::percent_decode_str;

use super::framing::{
    BodyFraming, FramingLimits, HEADERS_MAX, body_framing, check_hosts, malformed, problem_of,
    target_of, tokens, values,
};
use super::headers::Headers;
use super::problem::Problem;
use super::request_id::request_id;

/// The most options in `Connection`, each of which is compared with each header.
const OPTIONS_MAX: usize = 100;

/// Headers that may be given once: of two, nobody could tell which was meant.
const SINGLES: [&str; 9] = [
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Modified-Since",
    "If-Range",
    "If-Unmodified-Since",
    "Max-Forwards",
    "Referer",
    "User-Agent",
];

/// The route of a request, and the segments of its path that the route names.
#[derive(Debug, Default)]
pub(crate) struct RouteMatch {
    /// The pattern of the route. It is a label of the metrics, so it never has what a client invented.
    pub(crate) pattern: &'static str,
    pub(crate) bulkhead: usize,
    pub(crate) route: usize,
    pub(crate) params: Vec<(&'static str, String)>,
}

/// The head of a request.
#[derive(Debug)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// Path and query, byte for byte as the client sent them.
    pub target: String,
    /// The end-to-end header fields.
    pub headers: Headers,
    /// The id in the answer, log lines and messages: the client's own, or one made here.
    pub request_id: String,
    /// The address of the client.
    pub client: IpAddr,
    /// Whether it came by HTTPS.
    pub secure: bool,
    /// Whether a body follows, which may be empty.
    pub(crate) announces_body: bool,
    /// When the whole request had arrived.
    pub(crate) arrived: Instant,
    pub(crate) matched: RouteMatch,
    /// The name of the caller's key; for the log too.
    pub caller: OnceLock<String>,
    /// The id of the message that the request became, for the log.
    pub message_id: OnceLock<String>,
}

/// A head that was checked, and what it says about its connection and its body.
#[derive(Debug)]
pub(crate) struct ParsedHead {
    pub(crate) head: Head,
    pub(crate) framing: BodyFraming,
    pub(crate) http_10: bool,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
}

impl ParsedHead {
    /// Reads a complete head, as [`HeadScan`](super::framing::HeadScan) has found it.
    pub(crate) fn parse(
        bytes: &[u8],
        limits: &FramingLimits,
        client: IpAddr,
        secure: bool,
        arrived: Instant,
    ) -> Result<Self, Problem> {
        // Room for the header fields, not written before it is needed.
        let mut storage = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let storage = &mut storage[..limits.headers.min(HEADERS_MAX)];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(bytes, storage) {
            Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
            Ok(_) => return malformed("the head is malformed"),
            Err(error) => return Err(problem_of(error, bytes)),
        }
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return malformed("the request line is malformed");
        };
        let (fields, http_10) = (&*request.headers, version == 0);
        let (target, authority) = target_of(method, target)?;
        check_hosts(fields, authority, http_10)?;
        let framing = body_framing(fields, http_10, limits)?;
        let is_known = |expected: &[u8]| expected.eq_ignore_ascii_case(b"100-continue");
        if !values(fields, "expect").all(is_known) {
            let detail = "the only expectation known here is 100-continue";
            return Err(Problem::new(417, detail));
        }
        let options: Vec<_> = values(fields, "connection").flat_map(tokens).collect();
        if options.len() > OPTIONS_MAX {
            return Err(Problem::new(
                431,
                "there are too many options in Connection",
            ));
        }
        let has = |wanted: &[u8]| {
            options
                .iter()
                .any(|option| option.eq_ignore_ascii_case(wanted))
        };
        let mut head = Head::new(method, target, client, secure, arrived);
        head.announces_body = framing != BodyFraming::None;
        head.request_id = request_id(values(fields, "x-request-id").next());
        head.headers = Headers::with_capacity(64 * fields.len(), fields.len() + 1);
        for field in fields {
            match authority {
                // The authority of the target replaces Host (RFC 9112 §3.2.2).
                Some(host) if field.name.eq_ignore_ascii_case("host") => {
                    head.headers.push("host", host.as_bytes());
                }
                _ if is_of_this_connection(field.name, &options) => {}
                _ => head.headers.push(field.name, field.value),
            }
        }
        if let BodyFraming::Length(length) = framing {
            head.headers
                .push("content-length", length.to_string().as_bytes());
        }
        Ok(Self {
            head,
            framing,
            http_10,
            keep_alive: !has(b"close") && (!http_10 || has(b"keep-alive")),
            // In HTTP/1.0 the header is ignored (RFC 9110 §10.1.1).
            expects_continue: !http_10 && values(fields, "expect").next().is_some(),
        })
    }
}

impl Head {
    /// A head without header fields.
    pub(crate) fn new(
        method: &str,
        target: &str,
        client: IpAddr,
        secure: bool,
        arrived: Instant,
    ) -> Self {
        // A method that is no token becomes one that no route has.
        let method = Method::from_bytes(method.as_bytes()).or_else(|_| Method::from_bytes(b"-"));
        Self {
            method: method.unwrap_or_default(),
            target: target.to_owned(),
            headers: Headers::default(),
            request_id: String::new(),
            client,
            secure,
            announces_body: false,
            arrived,
            matched: RouteMatch {
                pattern: "edge",
                ..RouteMatch::default()
            },
            caller: OnceLock::new(),
            message_id: OnceLock::new(),
        }
    }

    /// How many bytes of memory the target and the header fields take.
    pub(crate) fn bytes(&self) -> usize {
        self.target.capacity() + self.headers.bytes()
    }

    /// The path, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        path_of(&self.target)
    }

    /// The first header of that name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.values(name).next()
    }

    /// The token of `Authorization: Bearer TOKEN` (RFC 6750 §2.1).
    #[must_use]
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// The value of a header that must not be given twice.
    pub fn single_header(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.headers.values(name);
        let value = values.next();
        if values.next().is_some() {
            let detail = format!("the header {name} is given twice");
            return Err(Problem::bad_request(detail));
        }
        Ok(value)
    }

    /// Checks that no header is given twice that may be given once.
    pub(crate) fn require_singles(&self) -> Result<(), Problem> {
        SINGLES
            .iter()
            .try_for_each(|name| self.single_header(name).map(drop))
    }

    /// The segment of the path that has this name in the route's pattern; empty if there is none.
    #[must_use]
    pub fn param(&self, name: &str) -> &str {
        let mut params = self.matched.params.iter();
        params
            .find(|(present, _)| *present == name)
            .map_or("", |(_, value)| value)
    }

    /// A segment of the path as the id of a row; None if no row can have it. `007` is not another name for 7.
    #[must_use]
    pub fn id_param(&self, name: &str) -> Option<i64> {
        let text = self.param(name);
        let plain = is_digits(text) && (text == "0" || !text.starts_with('0'));
        text.parse().ok().filter(|_| plain)
    }

    /// The pattern of the route that the request takes.
    #[must_use]
    pub fn route(&self) -> &'static str {
        self.matched.pattern
    }

    /// Checks that the query has only these parameters: a misspelt one would filter nothing.
    pub fn require_query_of(&self, known: &[&str]) -> Result<(), Problem> {
        let mut pairs = self.query_pairs();
        let Some((name, _)) = pairs.find(|(name, _)| !known.contains(&&**name)) else {
            return Ok(());
        };
        let known = Some(known.join(", ")).filter(|known| !known.is_empty());
        let known = known.as_deref().unwrap_or("none");
        let detail = format!("there is no parameter {name}: this path has {known}");
        Err(Problem::bad_request(detail))
    }

    /// A parameter of the query, decoded. A parameter that is given twice, or that is not UTF-8, is a problem.
    pub fn query(&self, name: &str) -> Result<Option<String>, Problem> {
        let mut found = None;
        for (_, pair) in self.query_pairs().filter(|(present, _)| present == name) {
            let value = pair.split_once('=').map_or("", |(_, value)| value);
            let value = form_decoded(value)
                .ok_or_else(|| Problem::bad_request(format!("{name} is not UTF-8")))?;
            if found.replace(value).is_some() {
                return Err(Problem::bad_request(format!("{name} is given twice")));
            }
        }
        Ok(found)
    }

    /// The parameters of the query: each name, decoded if it is UTF-8, and the pair of name and value as it was
    /// sent.
    pub(super) fn query_pairs(&self) -> impl Iterator<Item = (String, &str)> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| {
            let name = pair.split_once('=').map_or(pair, |(name, _)| name);
            (form_decoded(name).unwrap_or_else(|| name.to_owned()), pair)
        })
    }

    /// A parameter of the query as a number in a range; the problem names it.
    pub fn query_number<T: FromStr + PartialOrd + fmt::Display>(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.query(name)? else {
            return Ok(None);
        };
        let (first, last) = (range.start(), range.end());
        let fits = |number: &T| is_digits(&text) && range.contains(number);
        let number = text.parse().ok().filter(fits).map(Some);
        number.ok_or_else(|| {
            let detail = format!("{name} must be a whole number from {first} to {last}");
            Problem::bad_request(detail)
        })
    }

    /// Checks that JSON may follow. A chunked body may still be empty, which only its end shows.
    pub fn announces_json(&self) -> Result<(), Problem> {
        match (self.announces_body, self.header("content-length")) {
            (false, _) => Err(Problem::length_required()),
            (true, Some(_)) => self.require_json_type(),
            (true, None) => Ok(()),
        }
    }

    pub(super) fn require_json_type(&self) -> Result<(), Problem> {
        if self.header("content-encoding").is_some() {
            let detail = "send the body as it is, without Content-Encoding";
            return Err(Problem::new(415, detail).with_header("accept-encoding", "identity"));
        }
        let media_type = self.single_header("Content-Type")?.unwrap_or("");
        let essence = media_type.split(';').next().unwrap_or("").trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            let detail = "send the body as JSON, with Content-Type: application/json";
            return Err(Problem::new(415, detail));
        }
        Ok(())
    }
}

/// The addresses whose connections and requests are counted together: a client with IPv6 usually has a /64.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

pub(crate) fn path_of(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// Whether a header is about the connection: those of framing, and those that `Connection` lists.
fn is_of_this_connection(name: &str, listed: &[&[u8]]) -> bool {
    const OWN: [&str; 5] = [
        "connection",
        "content-length",
        "transfer-encoding",
        "expect",
        "keep-alive",
    ];
    OWN.iter().any(|own| name.eq_ignore_ascii_case(own))
        || listed.iter().any(|token| {
            token.eq_ignore_ascii_case(name.as_bytes()) && !name.eq_ignore_ascii_case("host")
        })
}

/// Whether the text is one or more ASCII digits: `parse` alone would take `+1`.
fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A name or value of a query string: `+` is a space, `%41` an A; None if it is not UTF-8.
fn form_decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}
