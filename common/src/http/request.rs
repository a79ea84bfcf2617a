//! A request as a handler sees it: checked, and whole in memory.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::problem::Problem;

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

/// A request, whole in memory.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query, byte for byte as the client sent them.
    pub target: String,
    /// The headers in their order, names as the client wrote them. Values are read as
    /// ISO 8859-1, one character for each octet (RFC 9110 §5.5 leaves their meaning open).
    pub headers: Vec<(String, String)>,
    /// The content; empty where there was none.
    pub body: Vec<u8>,
    /// The id that answer, log lines and messages carry: the client's own, or made here.
    pub request_id: String,
    /// Who asked.
    pub client: IpAddr,
    /// Whether it came by HTTPS.
    pub secure: bool,
    /// By whose key it came, for the log.
    pub(crate) caller: OnceCell<String>,
    /// The segments that the route's pattern names.
    pub(crate) params: Vec<(&'static str, String)>,
}

impl Request {
    /// The path, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&self.target, |(path, _)| path)
    }

    /// Has the log tell by whose key it came.
    pub fn set_caller(&self, name: &str) {
        let _ = self.caller.set(name.to_owned());
    }

    /// The first header of that name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
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
            .filter(|(present, _)| present.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Problem::bad_request(format!(
                "the header {name} is given twice"
            ))),
        }
    }

    /// A segment of the path that the route's pattern names; empty where it names none such.
    #[must_use]
    pub fn param(&self, name: &str) -> &str {
        self.params
            .iter()
            .find(|(present, _)| *present == name)
            .map_or("", |(_, value)| value)
    }

    /// A segment of the path as the id of a row; None where no row can have it. `007` is not
    /// another name for 7.
    #[must_use]
    pub fn id_param(&self, name: &str) -> Option<i64> {
        let text = self.param(name);
        if is_digits(text) && (text == "0" || !text.starts_with('0')) {
            text.parse().ok()
        } else {
            None
        }
    }

    /// A parameter of the query, decoded. One that is given twice, or that is not UTF-8, is a
    /// problem: guessing which was meant would answer another question.
    pub fn query(&self, name: &str) -> Result<Option<String>, Problem> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let mut found = None;
        for pair in query.split('&') {
            if !names(pair, name) {
                continue;
            }
            let value = pair.split_once('=').map_or("", |(_, value)| value);
            let value = form_decoded(value)
                .ok_or_else(|| Problem::bad_request(format!("{name} is not UTF-8")))?;
            if found.replace(value).is_some() {
                return Err(Problem::bad_request(format!("{name} is given twice")));
            }
        }
        Ok(found)
    }

    /// A parameter of the query as a number in a range; the problem names it.
    pub fn query_number<T: FromStr + PartialOrd + std::fmt::Display>(
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

    /// The body, a JSON object, as a value of that type, which may borrow from it.
    pub fn json_object<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Problem> {
        self.require_json()?;
        // Also what the type passes over has to be UTF-8.
        let text = std::str::from_utf8(&self.body)
            .map_err(|_| Problem::bad_request("the body is not UTF-8"))?;
        // A struct would also be read from an array of its fields' values.
        if !text.trim_ascii_start().starts_with('{') {
            return Err(Problem::bad_request("the body is not a JSON object"));
        }
        serde_json::from_str(text).map_err(|error| {
            Problem::bad_request(format!("the body is not a JSON object: {error}"))
        })
    }

    /// That there is a body, and that it is said to be JSON. No length and no content is the
    /// same to us as no length at all: a proxy may have put an empty chunked body in its place.
    pub fn require_json(&self) -> Result<(), Problem> {
        if self.body.is_empty() && self.header("content-length").is_none() {
            return Err(Problem::length_required());
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

/// The first header of that name, in any case.
pub(super) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(present, _)| present.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// Whether the text is one or more ASCII digits: `parse` alone would take `+1`.
pub(super) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a pair of a query string gives that parameter, however its name is encoded.
pub(super) fn names(pair: &str, name: &str) -> bool {
    let key = pair.split_once('=').map_or(pair, |(key, _)| key);
    form_decoded(key).as_deref() == Some(name)
}

/// A name or value of a query string: `+` is a space, `%41` an A; None where it is not UTF-8.
fn form_decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct NoFields {}

    fn get(target: &str) -> Request {
        Request {
            method: Method::Get,
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            request_id: String::new(),
            client: IpAddr::from([127, 0, 0, 1]),
            secure: false,
            caller: OnceCell::new(),
            params: Vec::new(),
        }
    }

    fn with_content_type(media_type: &str) -> Request {
        Request {
            headers: vec![
                ("Content-Type".to_owned(), media_type.to_owned()),
                ("Content-Length".to_owned(), "2".to_owned()),
            ],
            body: b"{}".to_vec(),
            ..get("/")
        }
    }

    #[test]
    fn query_parameters_are_decoded() {
        let request = get("/api/movies?title=caf%C3%A9+noir&limit=2");

        assert_eq!(
            request.query("title").unwrap().as_deref(),
            Some("café noir")
        );
        assert_eq!(request.query("after"), Ok(None));
        assert_eq!(request.path(), "/api/movies");
    }

    #[test]
    fn a_query_parameter_that_is_given_twice_or_is_not_utf_8_is_refused() {
        let detail = |target: &str| get(target).query("title").unwrap_err().detail;

        assert_eq!(detail("/?title=a&title=b"), "title is given twice");
        assert_eq!(detail("/?title=%FF"), "title is not UTF-8");
    }

    #[test]
    fn a_number_in_the_query_is_held_to_its_range() {
        let limit = |target: &str| get(target).query_number("limit", 1..=1000);

        assert_eq!(limit("/"), Ok(None));
        assert_eq!(limit("/?limit=1000"), Ok(Some(1000)));
        for target in [
            "/?limit=0",
            "/?limit=1001",
            "/?limit=+1",
            "/?limit=",
            "/?limit=1e2",
        ] {
            let problem = limit(target).unwrap_err();
            assert_eq!(
                problem.detail, "limit must be a whole number from 1 to 1000",
                "{target}"
            );
        }
    }

    #[test]
    fn a_header_that_is_given_twice_is_refused_where_one_is_meant() {
        let mut request = with_content_type("application/json");
        request
            .headers
            .push(("content-type".to_owned(), "text/plain".to_owned()));

        let problem = request.json_object::<NoFields>().unwrap_err();

        let expected = (400, "the header Content-Type is given twice");
        assert_eq!((problem.status, &*problem.detail), expected);
    }

    #[test]
    fn only_json_is_taken_for_json() {
        for media_type in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_eq!(with_content_type(media_type).json_object(), Ok(NoFields {}));
        }
        for media_type in [
            "",
            "text/json",
            "application/jsonp",
            "application/x-www-form-urlencoded",
        ] {
            let problem = with_content_type(media_type)
                .json_object::<NoFields>()
                .unwrap_err();
            assert_eq!(problem.status, 415, "{media_type}");
        }
    }

    #[test]
    fn a_body_that_is_no_json_object_is_refused() {
        for body in ["", "[]", "null", "{", "{}x", "\"\""] {
            let request = Request {
                body: body.as_bytes().to_vec(),
                ..with_content_type("application/json")
            };
            let problem = request.json_object::<NoFields>().unwrap_err();
            assert_eq!(problem.status, 400, "{body}");
            assert!(
                problem.detail.starts_with("the body is not a JSON object"),
                "{body}"
            );
        }
    }

    #[test]
    fn a_body_is_utf_8_also_in_what_nobody_reads() {
        let request = Request {
            body: b"{\"note\":\"\xff\"}".to_vec(),
            ..with_content_type("application/json")
        };

        let problem = request.json_object::<NoFields>().unwrap_err();

        let expected = (400, "the body is not UTF-8");
        assert_eq!((problem.status, &*problem.detail), expected);
    }

    #[test]
    fn a_missing_body_is_asked_for() {
        assert_eq!(get("/").json_object::<NoFields>().unwrap_err().status, 411);
    }
}
