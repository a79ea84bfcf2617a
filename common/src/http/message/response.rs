//! The answer of a handler, and the head that is sent before its body.

use std::borrow::Cow;
use std::io::Write;

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::problem::Problem;

/// The browser uses HTTPS alone for a year (RFC 6797).
const HSTS: &str = "max-age=31536000";

/// A stream is made in pieces of about this size. A shorter stream is sent as a body with its length.
pub(crate) const PIECE_BYTES: usize = if cfg!(feature = "shuttle") {
    8
} else {
    32 * 1024
};

/// The cause in the log if a stream is not as long as its Content-Length.
pub(crate) const WRONG_LENGTH: &str = "the answer is not as long as it was said to be";

/// An answer or a problem. The answer may still read from the state of its slot.
pub type HandlerResult<'a> = Result<Response<'a>, Problem>;

/// An answer; `'a` is the state of the slot that a stream still reads from.
#[must_use]
pub struct Response<'a> {
    /// The HTTP status.
    pub status: u16,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    pub(crate) body: Body<'a>,
    /// Whether the answer is that of another server, which has set its `Cache-Control`.
    pub is_passed_on: bool,
}

/// The content of an answer.
pub enum Body<'a> {
    /// No content and no Content-Length: 204, 304 and what an upstream sent without one.
    Empty,
    /// The content is in memory.
    Bytes(Vec<u8>),
    /// The content is made while it is sent.
    Stream(Stream<'a>),
}

/// Content that is made while it is sent.
pub struct Stream<'a> {
    /// How many bytes the content will have, if that is known beforehand.
    pub length: Option<u64>,
    /// Appends the next piece to the buffer; appending nothing is the end. A problem before
    /// the first piece was sent becomes the answer; a later one truncates the answer.
    pub fill: BodySource<'a>,
}

/// Makes the next piece of a [`Stream`].
pub type BodySource<'a> = Box<dyn FnMut(&mut Vec<u8>) -> Result<(), Problem> + Send + 'a>;

impl<'a> Response<'a> {
    /// An answer with that body and no headers.
    pub fn new(status: u16, body: Body<'a>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body,
            is_passed_on: false,
        }
    }

    /// An answer without content.
    pub fn empty(status: u16) -> Self {
        Self::new(status, Body::Empty)
    }

    /// A value as JSON.
    ///
    /// # Panics
    /// When the value has a map with keys that are not strings; ours have none.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("our answers have string keys only");
        Self::new(status, Body::Bytes(body)).with_header("content-type", "application/json")
    }

    /// The values of an iterator as a JSON array, made while it is sent.
    pub fn json_array<T: Serialize + Send + 'a, E: Into<Problem> + Send + 'a>(
        status: u16,
        values: impl Iterator<Item = Result<T, E>> + Send + 'a,
    ) -> Self {
        let mut values = values.map(Some).chain(std::iter::once(None));
        let mut opened = false;
        let fill = move |buffer: &mut Vec<u8>| {
            let full = buffer.len() + PIECE_BYTES;
            while buffer.len() < full
                && let Some(value) = values.next()
            {
                match value.transpose().map_err(E::into)? {
                    Some(value) => {
                        buffer.push(if opened { b',' } else { b'[' });
                        serde_json::to_writer(&mut *buffer, &value).map_err(Problem::internal)?;
                    }
                    None => buffer.extend_from_slice(if opened { b"]" } else { b"[]" }),
                }
                opened = true;
            }
            Ok(())
        };
        let (length, fill) = (None, Box::new(fill));
        let body = Body::Stream(Stream { length, fill });
        Self::new(status, body).with_header("content-type", "application/json")
    }

    /// Text of that media type.
    pub fn text(status: u16, media_type: &'static str, text: String) -> Self {
        Self::new(status, Body::Bytes(text.into_bytes())).with_header("content-type", media_type)
    }

    /// A problem as JSON (RFC 9457).
    pub(crate) fn of_problem(problem: Problem, request_id: &str) -> Response<'static> {
        let body = ProblemJson {
            r#type: "about:blank",
            title: reason_phrase(problem.status),
            status: problem.status,
            detail: &problem.detail,
            request_id,
            dependencies: problem.dependencies.as_deref(),
        };
        let mut response = Response::json(problem.status, &body)
            .with_header("content-type", "application/problem+json");
        for (name, value) in problem.headers {
            response = response.with_header(name, value);
        }
        response
    }

    /// Makes the first piece of a stream. If that is all of it, the body is no longer a stream.
    pub(crate) fn begun(self) -> Result<Self, Problem> {
        let Body::Stream(Stream { length, mut fill }) = self.body else {
            return Ok(self);
        };
        let mut begin = Vec::new();
        while begin.len() < PIECE_BYTES {
            let before = begin.len();
            fill(&mut begin)?;
            if begin.len() == before {
                if length.is_some_and(|stated| stated != begin.len() as u64) {
                    return Err(Problem::internal(WRONG_LENGTH));
                }
                let body = Body::Bytes(begin);
                return Ok(Self { body, ..self });
            }
        }
        let mut begin = Some(begin);
        let fill = Box::new(move |buffer: &mut Vec<u8>| match begin.take() {
            Some(begin) => {
                *buffer = begin;
                Ok(())
            }
            None => fill(buffer),
        });
        let body = Body::Stream(Stream { length, fill });
        Ok(Self { body, ..self })
    }

    /// Sets a header, and replaces one of that name; names are written in lower case.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.retain(|(present, _)| *present != name);
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds a header beside others of that name.
    pub fn push_header(&mut self, name: String, value: String) {
        self.headers.push((name.into(), value.into()));
    }

    /// Whether a header of that name, in lower case, is set.
    fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|(present, _)| present == name)
    }

    /// Writes the status line and the headers, those for browsers included. The caller adds the headers of the
    /// framing, and the empty line.
    pub(crate) fn write_head(&self, out: &mut Vec<u8>, request_id: &str, https: bool, date: &str) {
        let (status, reason) = (self.status, reason_phrase(self.status));
        let _ = write!(out, "HTTP/1.1 {status} {reason}\r\n");
        let (is_ours, has_tag) = (!self.is_passed_on, self.has_header("etag"));
        for (name, value) in &self.headers {
            push_header(out, name, value);
        }
        for (name, value, applies) in [
            ("date", date, true),
            ("x-request-id", request_id, true),
            ("x-content-type-options", "nosniff", true),
            ("cross-origin-resource-policy", "same-origin", true),
            ("strict-transport-security", HSTS, https),
            // An answer with a tag may be stored, and validated by its tag.
            ("cache-control", "no-cache", is_ours && has_tag),
            ("cache-control", "no-store", is_ours && !has_tag),
        ] {
            if applies && !self.has_header(name) {
                push_header(out, name, value);
            }
        }
    }
}

/// The members of RFC 9457, and extensions.
#[derive(Serialize)]
struct ProblemJson<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dependencies: Option<&'a Value>,
}

/// Writes a header. Line breaks in the value are replaced, because the client would read what follows them as
/// another header (response splitting). Values are ISO 8859-1.
fn push_header(out: &mut Vec<u8>, name: &str, value: &str) {
    let is_clean = |byte: u8| byte.is_ascii() && !matches!(byte, b'\r' | b'\n' | 0);
    let octet = |character| match u8::try_from(character) {
        Ok(b'\r' | b'\n' | 0) => b' ',
        Ok(octet) => octet,
        Err(_) => b'?',
    };
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    if value.bytes().all(is_clean) {
        out.extend_from_slice(value.as_bytes());
    } else {
        out.extend(value.chars().map(octet));
    }
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase of a status (RFC 9110 §15).
fn reason_phrase(status: u16) -> &'static str {
    match status {
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        _ => StatusCode::from_u16(status)
            .map_or(None, |status| status.canonical_reason())
            .unwrap_or(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_before_the_first_piece_is_the_answer() {
        let values = std::iter::once(Err::<(), _>(Problem::internal("the table is gone")));

        let begun = Response::json_array(200, values).begun();

        assert_eq!(begun.map(|begun| begun.status).unwrap_err().status, 500);
    }

    #[test]
    fn a_line_break_in_a_header_value_does_not_reach_the_wire() {
        let mut out = Vec::new();

        Response::empty(204)
            .with_header("location", "/a\r\nset-cookie: b")
            .write_head(&mut out, "id", false, "now");

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 204 No Content\r\nlocation: /a  set-cookie: b\r\ndate: now\r\n\
             x-request-id: id\r\nx-content-type-options: nosniff\r\n\
             cross-origin-resource-policy: same-origin\r\ncache-control: no-store\r\n"
        );
    }
}
