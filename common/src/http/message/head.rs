//! What a request says before its body.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Instant;

use http::Method;
use percent_encoding::percent_decode_str;

use super::framing::{self, BodyFraming, tokens, values};
use super::headers::Headers;
use super::problem::Problem;
use super::request_id::request_id;

/// Headers of which there may be one: of two nobody could tell which was meant.
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

/// Where a request goes, and what the pattern of its route has found in its path.
#[derive(Debug, Default)]
pub(crate) struct RouteMatch {
    /// The pattern: a label of the metrics, so never what a client made up.
    pub(crate) pattern: &'static str,
    pub(crate) bulkhead: usize,
    pub(crate) route: usize,
    pub(crate) params: Vec<(&'static str, String)>,
}

/// What a request says before its body.
#[derive(Debug)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// Path and query, byte for byte as the client sent them.
    pub target: String,
    /// The end-to-end header fields.
    pub headers: Headers,
    /// The id that answer, log lines and messages carry: the client's own, or made here.
    pub request_id: String,
    /// Who asked.
    pub client: IpAddr,
    /// Whether it came by HTTPS.
    pub secure: bool,
    /// Whether a body, perhaps an empty one, follows.
    pub(crate) announces_body: bool,
    /// When it was here, whole.
    pub(crate) arrived: Instant,
    pub(crate) matched: RouteMatch,
    /// By whose key it came; for the log too.
    pub caller: OnceLock<String>,
    /// Which message it became; for the log, so that both ends of the queue can be found by it.
    pub message_id: OnceLock<String>,
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
        // What is no token is a method that no route has.
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

    pub(crate) fn of(
        head: &framing::RawHead<'_, '_>,
        client: IpAddr,
        secure: bool,
        arrived: Instant,
    ) -> Self {
        let mut this = Self::new(head.method, head.target, client, secure, arrived);
        this.announces_body = head.framing != BodyFraming::None;
        this.request_id = request_id(values(head.headers, "x-request-id").next());
        this.headers = Headers::with_capacity(64 * head.headers.len(), head.headers.len() + 1);
        let listed = values(head.headers, "connection").flat_map(tokens);
        let listed: Vec<_> = listed.collect();
        for header in head.headers {
            match head.authority {
                // The target says it more precisely (RFC 9112 §3.2.2).
                Some(host) if header.name.eq_ignore_ascii_case("host") => {
                    this.headers.push("host", host.as_bytes());
                }
                _ if is_of_this_connection(header.name, &listed) => {}
                _ => this.headers.push(header.name, header.value),
            }
        }
        if let BodyFraming::Length(length) = head.framing {
            this.headers
                .push("content-length", length.to_string().as_bytes());
        }
        this
    }

    /// How many bytes of memory its texts take.
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

    /// A header that must not be given twice: which of two was meant, nobody can tell.
    pub fn single_header(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.headers.values(name);
        let value = values.next();
        if values.next().is_some() {
            let detail = format!("the header {name} is given twice");
            return Err(Problem::bad_request(detail));
        }
        Ok(value)
    }

    /// That no header is given twice of which there may be one.
    pub(crate) fn require_singles(&self) -> Result<(), Problem> {
        SINGLES
            .iter()
            .try_for_each(|name| self.single_header(name).map(drop))
    }

    /// A segment of the path that the route's pattern names; empty where it names none such.
    #[must_use]
    pub fn param(&self, name: &str) -> &str {
        let mut params = self.matched.params.iter();
        params
            .find(|(present, _)| *present == name)
            .map_or("", |(_, value)| value)
    }

    /// A segment of the path as the id of a row; None where no row can have it. `007` is not
    /// another name for 7.
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

    /// That the query has only these parameters: one that is misspelt would filter nothing.
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

    /// A parameter of the query, decoded. One that is given twice, or that is not UTF-8, is a
    /// problem: guessing which was meant would answer another question.
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

    /// The parameters of the query: their names, decoded where they are UTF-8, and the pairs of
    /// name and value as they were sent.
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

    /// That JSON may follow. Of chunks nobody knows yet whether there is anything in them.
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

/// Whose connections and requests are counted together: a client with IPv6 usually has a whole /64.
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

/// Framing, which the connection has read, and what the client's `Connection` lists.
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

/// A name or value of a query string: `+` is a space, `%41` an A; None where it is not UTF-8.
fn form_decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
}
