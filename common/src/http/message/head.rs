//! What a request says before its body.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Instant;

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

/// A request method; names are case-sensitive (RFC 9110 §9.1).
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Other(String),
}

impl Method {
    pub(crate) fn new(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => Self::Other(name.to_owned()),
        }
    }

    /// As it stands in the request line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other(name) => name,
        }
    }
}

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
    announces_body: bool,
    /// When it was here, whole.
    pub(crate) arrived: Instant,
    pub(crate) matched: RouteMatch,
    caller: OnceLock<String>,
    message_id: OnceLock<String>,
}

impl Head {
    pub(crate) fn new(
        head: &framing::Head<'_, '_>,
        client: IpAddr,
        secure: bool,
        now: Instant,
    ) -> Self {
        let listed: Vec<_> = values(head.headers, "connection")
            .flat_map(tokens)
            .collect();
        let bytes = head
            .headers
            .iter()
            .map(|header| header.name.len() + header.value.len());
        let mut headers = Headers::with_capacity(bytes.sum(), head.headers.len() + 1);
        for header in head.headers {
            match head.authority {
                // The target says it more precisely (RFC 9112 §3.2.2).
                Some(host) if header.name.eq_ignore_ascii_case("host") => {
                    headers.push("host", host.as_bytes());
                }
                _ if is_of_this_connection(header.name, &listed) => {}
                _ => headers.push(header.name, header.value),
            }
        }
        if let BodyFraming::Length(length) = head.framing {
            headers.push("content-length", length.to_string().as_bytes());
        }
        let request_id = request_id(head.header("x-request-id"));
        let target = head.target.to_owned();
        Self {
            headers,
            announces_body: head.framing != BodyFraming::None,
            ..Self::bare(
                Method::new(head.method),
                target,
                request_id,
                client,
                secure,
                now,
            )
        }
    }

    /// A head without header fields.
    pub(crate) fn bare(
        method: Method,
        target: String,
        request_id: String,
        client: IpAddr,
        secure: bool,
        arrived: Instant,
    ) -> Self {
        Self {
            method,
            target,
            headers: Headers::default(),
            request_id,
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

    /// The path, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        path_of(&self.target)
    }

    /// Has the log tell by whose key the request came.
    pub fn set_caller(&self, name: &str) {
        let _ = self.caller.set(name.to_owned());
    }

    /// By whose key the request came.
    pub fn caller(&self) -> Option<&str> {
        self.caller.get().map(String::as_str)
    }

    /// Has the log tell which message the request became, so that both ends of the queue can be
    /// found by it.
    pub fn set_message_id(&self, message_id: &str) {
        let _ = self.message_id.set(message_id.to_owned());
    }

    pub(crate) fn message_id(&self) -> Option<&str> {
        self.message_id.get().map(String::as_str)
    }

    /// The first header of that name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(present, _)| present.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    }

    /// The token of `Authorization: Bearer TOKEN` (RFC 6750 §2.1).
    #[must_use]
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// A header that must not be given twice: which of two was meant, nobody can tell.
    pub fn single_header(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(|(_, value)| value)),
            _ => Err(Problem::bad_request(format!(
                "the header {name} is given twice"
            ))),
        }
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
        let unknown = |pair: &&str| !known.iter().any(|known| names(pair, known));
        let Some(pair) = self.query_pairs().find(unknown) else {
            return Ok(());
        };
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let name = form_decoded(name).unwrap_or_else(|| name.to_owned());
        Err(Problem::bad_request(match known {
            [] => format!("there is no parameter {name}: this path has none"),
            _ => format!(
                "there is no parameter {name}: this path has {}",
                known.join(", ")
            ),
        }))
    }

    /// A parameter of the query, decoded. One that is given twice, or that is not UTF-8, is a
    /// problem: guessing which was meant would answer another question.
    pub fn query(&self, name: &str) -> Result<Option<String>, Problem> {
        let mut found = None;
        for pair in self.query_pairs().filter(|pair| names(pair, name)) {
            let value = pair.split_once('=').map_or("", |(_, value)| value);
            let value = form_decoded(value)
                .ok_or_else(|| Problem::bad_request(format!("{name} is not UTF-8")))?;
            if found.replace(value).is_some() {
                return Err(Problem::bad_request(format!("{name} is given twice")));
            }
        }
        Ok(found)
    }

    pub(crate) fn query_pairs(&self) -> impl Iterator<Item = &str> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter(|pair| !pair.is_empty())
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
        let number = text.parse().ok().filter(|number| range.contains(number));
        match number {
            Some(number) if is_digits(&text) => Ok(Some(number)),
            _ => Err(Problem::bad_request(format!(
                "{name} must be a whole number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
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
            return Err(Problem::unsupported_encoding());
        }
        let media_type = self.single_header("Content-Type")?.unwrap_or("");
        let essence = media_type.split(';').next().unwrap_or("").trim();
        if essence.eq_ignore_ascii_case("application/json") {
            Ok(())
        } else {
            Err(Problem::unsupported_media_type())
        }
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

/// Whether a pair of a query string gives that parameter, however its name is encoded.
pub(super) fn names(pair: &str, name: &str) -> bool {
    let key = pair.split_once('=').map_or(pair, |(key, _)| key);
    form_decoded(key).as_deref() == Some(name)
}

/// A name or value of a query string: `+` is a space, `%41` an A; None where it is not UTF-8.
pub(crate) fn form_decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}
