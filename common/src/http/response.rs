//! What a handler gives back, and how it goes onto the wire: head and body in one write where
//! the body is small, in chunks where it is a stream, so that a long list needs little memory.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::exchange::Exchange;
use super::problem::Problem;

/// RFC 6797: for a year the browser asks by HTTPS alone.
const HSTS: &str = "max-age=31536000";

/// A stream is written in pieces of about this size, and one that ends before it is sent like
/// any other body, with its length.
const PIECE_BYTES: usize = 32 * 1024;

/// Whoever waits for the rest of such an answer would wait for ever.
const WRONG_LENGTH: &str = "the answer is not as long as it was said to be";

/// `chunk-size CRLF` of RFC 9112 §7.1, with leading zeros so that it can be filled in later.
const CHUNK_HEAD_BYTES: usize = 10;

/// An answer; `'a` is the state of the place that a stream still reads from.
pub struct Response<'a> {
    /// The HTTP status.
    pub status: u16,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    body: Body<'a>,
}

/// The content of an answer.
pub enum Body<'a> {
    /// No content and no Content-Length: 204, 304 and what an upstream sent without one.
    Empty,
    /// All of it, in memory.
    Bytes(Vec<u8>),
    /// Made while it is sent.
    Stream(Stream<'a>),
    /// The answer itself comes later, and from elsewhere; the place is free for the next request.
    Later(TakeOver),
}

/// Takes a request over to answer it later.
pub type TakeOver = Box<dyn FnOnce(Exchange) + Send>;

/// An answer whose first piece was made.
pub(super) enum Begun<'a> {
    /// That was all of it.
    Whole(Response<'static>),
    /// There is more to come.
    Begin(Response<'a>),
}

/// Content that is made while it is sent.
pub struct Stream<'a> {
    /// How many bytes it will have, where that is known beforehand.
    pub length: Option<u64>,
    /// Appends the next piece to the buffer; appending nothing is the end. A problem before
    /// the first piece was sent becomes the answer; a later one breaks the answer off.
    pub fill: Fill<'a>,
}

/// Makes the next piece of a [`Stream`].
pub type Fill<'a> = Box<dyn FnMut(&mut Vec<u8>) -> Result<(), Problem> + 'a>;

impl<'a> Response<'a> {
    /// An answer with that body and no headers.
    #[must_use]
    pub fn new(status: u16, body: Body<'a>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body,
        }
    }

    /// An answer without content.
    #[must_use]
    pub fn empty(status: u16) -> Self {
        Self::new(status, Body::Empty)
    }

    /// A value as JSON.
    ///
    /// # Panics
    /// When the value has a map with keys that are not strings; ours have none.
    #[must_use]
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("our answers have string keys only");
        Self::new(status, Body::Bytes(body)).with_header("content-type", "application/json")
    }

    /// The values of an iterator as a JSON array, made while it is sent.
    pub fn json_array<T: Serialize, E: Into<Problem>>(
        status: u16,
        values: impl Iterator<Item = Result<T, E>> + 'a,
    ) -> Self {
        let mut values = values;
        let mut opened = false;
        let mut closed = false;
        let fill = move |buffer: &mut Vec<u8>| {
            if closed {
                return Ok(());
            }
            let full = buffer.len() + PIECE_BYTES;
            while buffer.len() < full {
                let Some(value) = values.next().transpose().map_err(E::into)? else {
                    buffer.extend_from_slice(if opened { b"]" } else { b"[]" });
                    closed = true;
                    return Ok(());
                };
                buffer.push(if opened { b',' } else { b'[' });
                opened = true;
                serde_json::to_writer(&mut *buffer, &value).map_err(Problem::internal)?;
            }
            Ok(())
        };
        Self::new(
            status,
            Body::Stream(Stream {
                length: None,
                fill: Box::new(fill),
            }),
        )
        .with_header("content-type", "application/json")
    }

    /// Makes the first piece of a stream, which is all of it where it is short.
    pub(super) fn begun(self) -> Result<Begun<'a>, Problem> {
        let Self {
            status,
            headers,
            body,
        } = self;
        let Body::Stream(Stream { length, mut fill }) = body else {
            return Ok(Begun::Begin(Self {
                status,
                headers,
                body,
            }));
        };
        let mut begin = Vec::new();
        while begin.len() < PIECE_BYTES {
            let before = begin.len();
            fill(&mut begin)?;
            if begin.len() == before {
                return Ok(Begun::Whole(Response {
                    status,
                    headers,
                    body: Body::Bytes(begin),
                }));
            }
        }
        let fill: Fill<'a> = Box::new(move |buffer| {
            if begin.is_empty() {
                return fill(buffer);
            }
            buffer.append(&mut begin);
            Ok(())
        });
        Ok(Begun::Begin(Self {
            status,
            headers,
            body: Body::Stream(Stream { length, fill }),
        }))
    }

    /// Plain text in a format that has a media type of its own.
    #[must_use]
    pub fn text(status: u16, media_type: &'static str, text: String) -> Self {
        Self::new(status, Body::Bytes(text.into_bytes())).with_header("content-type", media_type)
    }

    /// An answer that whoever is handed the [`Exchange`] gives in its time.
    #[must_use]
    pub fn later(take_over: impl FnOnce(Exchange) + Send + 'static) -> Self {
        Self::new(202, Body::Later(Box::new(take_over)))
    }

    /// Who gives the answer in this one's place, if it is not this one.
    pub(super) fn into_later(self) -> Result<TakeOver, Self> {
        match self.body {
            Body::Later(take_over) => Ok(take_over),
            _ => Err(self),
        }
    }

    /// Sets a header, in place of one of that name; names are written in lower case.
    #[must_use]
    pub fn with_header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        let name = name.into();
        self.headers.retain(|(present, _)| *present != name);
        self.headers.push((name, value.into()));
        self
    }

    /// Adds a header beside others of that name.
    pub fn push_header(&mut self, name: String, value: String) {
        self.headers.push((name.into(), value.into()));
    }

    pub(super) fn body(&self) -> &Body<'a> {
        &self.body
    }

    /// Whether a header of that name, in lower case, is set.
    #[must_use]
    pub fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|(present, _)| present == name)
    }

    /// Writes the answer, with what browsers are to keep to. `head_only` answers a HEAD request: the head
    /// as for GET, no content.
    pub(super) fn write_to(mut self, out: &mut dyn Write, head_only: bool, terms: Terms) -> Sent {
        let mut buffer = Vec::with_capacity(512);
        self = self
            .with_header("x-content-type-options", "nosniff")
            .with_header("cross-origin-resource-policy", "same-origin");
        if terms.https {
            self = self.with_header("strict-transport-security", HSTS);
        }
        push_head(&mut buffer, self.status, &self.headers);
        match self.body {
            Body::Empty => {
                buffer.extend_from_slice(b"\r\n");
                Sent::from(out.write_all(&buffer).and_then(|()| out.flush()))
            }
            Body::Bytes(body) => {
                push_length(&mut buffer, body.len() as u64);
                if !head_only {
                    buffer.extend_from_slice(&body);
                }
                Sent::from(out.write_all(&buffer).and_then(|()| out.flush()))
            }
            Body::Stream(stream) => write_stream(out, buffer, stream, head_only, terms),
            Body::Later(_) => Sent::Refused(Problem::internal("an answer for later is none now")),
        }
    }
}

/// What the connection asks of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// The client knows no chunks: what has no length ends with the connection.
    pub(crate) http_10: bool,
    /// This answer is the last.
    pub(crate) close: bool,
    /// The connection is one of TLS.
    pub(crate) https: bool,
}

/// How the sending of an answer ended.
#[derive(Debug)]
pub(super) enum Sent {
    /// All of it went out.
    Whole,
    /// Nothing went out: the stream had a problem before its first piece.
    Refused(Problem),
    /// The stream had a problem midway: the client holds a part, and must be able to tell.
    BrokenOff(Problem),
    /// The client took no more.
    ClientGone(io::Error),
}

impl From<io::Result<()>> for Sent {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Sent::Whole,
            Err(error) => Sent::ClientGone(error),
        }
    }
}

/// How the end of a stream is told to the client.
#[derive(Clone, Copy, PartialEq)]
enum Framing {
    Length,
    Chunked,
    ConnectionEnd,
}

fn write_stream(
    out: &mut dyn Write,
    mut head: Vec<u8>,
    mut stream: Stream<'_>,
    head_only: bool,
    terms: Terms,
) -> Sent {
    let mut piece = vec![0; CHUNK_HEAD_BYTES];
    let mut ended = false;
    while !head_only && !ended && piece.len() < CHUNK_HEAD_BYTES + PIECE_BYTES {
        let before = piece.len();
        if let Err(problem) = (stream.fill)(&mut piece) {
            return Sent::Refused(problem);
        }
        ended = piece.len() == before;
    }
    if ended {
        let body = &piece[CHUNK_HEAD_BYTES..];
        let length = body.len() as u64;
        if stream.length.is_some_and(|stated| stated != length) {
            return Sent::Refused(Problem::internal(WRONG_LENGTH));
        }
        push_length(&mut head, length);
        head.extend_from_slice(body);
        return Sent::from(out.write_all(&head).and_then(|()| out.flush()));
    }
    let framing = match stream.length {
        Some(length) => {
            push_length(&mut head, length);
            Framing::Length
        }
        None if terms.http_10 => {
            head.extend_from_slice(b"\r\n");
            Framing::ConnectionEnd
        }
        None => {
            head.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            Framing::Chunked
        }
    };
    if let Err(error) = out.write_all(&head) {
        return Sent::ClientGone(error);
    }
    if head_only {
        return Sent::from(out.flush());
    }
    let mut sent = 0;
    loop {
        sent += (piece.len() - CHUNK_HEAD_BYTES) as u64;
        if stream.length.is_some_and(|stated| stated < sent) {
            return Sent::BrokenOff(Problem::internal(WRONG_LENGTH));
        }
        if let Err(error) = write_piece(out, &mut piece, framing) {
            return Sent::ClientGone(error);
        }
        piece.truncate(CHUNK_HEAD_BYTES);
        if let Err(problem) = (stream.fill)(&mut piece) {
            return Sent::BrokenOff(problem);
        }
        if piece.len() == CHUNK_HEAD_BYTES {
            if stream.length.is_some_and(|stated| stated != sent) {
                return Sent::BrokenOff(Problem::internal(WRONG_LENGTH));
            }
            let end: &[u8] = if framing == Framing::Chunked {
                b"0\r\n\r\n"
            } else {
                b""
            };
            if let Err(error) = out.write_all(end).and_then(|()| out.flush()) {
                return Sent::ClientGone(error);
            }
            return Sent::Whole;
        }
    }
}

/// Writes the piece behind the space for a chunk's head, as one write.
fn write_piece(out: &mut dyn Write, piece: &mut Vec<u8>, framing: Framing) -> io::Result<()> {
    if framing == Framing::Chunked {
        let size = piece.len() - CHUNK_HEAD_BYTES;
        write!(&mut piece[..CHUNK_HEAD_BYTES], "{size:08x}\r\n")?;
        piece.extend_from_slice(b"\r\n");
        out.write_all(piece)
    } else {
        out.write_all(&piece[CHUNK_HEAD_BYTES..])
    }
}

fn push_head(buffer: &mut Vec<u8>, status: u16, headers: &[(Cow<'_, str>, Cow<'_, str>)]) {
    let _ = write!(buffer, "HTTP/1.1 {status} {}\r\n", reason_phrase(status));
    let mut dated = false;
    for (name, value) in headers {
        dated |= name == "date";
        buffer.extend_from_slice(name.as_bytes());
        buffer.extend_from_slice(b": ");
        // A line break in a value would end the header, and what follows would be the client's
        // to misread (response splitting). Values are ISO 8859-1, as in requests.
        if value
            .bytes()
            .all(|byte| byte.is_ascii() && !b"\r\n\0".contains(&byte))
        {
            buffer.extend_from_slice(value.as_bytes());
        } else {
            buffer.extend(
                value
                    .chars()
                    .map(|character| match u8::try_from(character) {
                        Ok(b'\r' | b'\n' | 0) => b' ',
                        Ok(octet) => octet,
                        Err(_) => b'?',
                    }),
            );
        }
        buffer.extend_from_slice(b"\r\n");
    }
    if !dated {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds());
        let _ = write!(buffer, "date: {}\r\n", httpdate::HttpDate::from(now));
    }
}

fn push_length(buffer: &mut Vec<u8>, length: u64) {
    let _ = write!(buffer, "content-length: {length}\r\n\r\n");
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The reason phrase of a status, RFC 9110 §15 and RFC 6585.
#[must_use]
pub(super) fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP_11: Terms = Terms {
        http_10: false,
        close: false,
        https: false,
    };
    const HTTP_10: Terms = Terms {
        http_10: true,
        close: true,
        https: false,
    };

    fn sent(response: Response<'_>) -> String {
        let mut out = Vec::new();
        let sent = response
            .with_header("date", "now")
            .write_to(&mut out, false, HTTP_11);
        assert!(matches!(sent, Sent::Whole | Sent::BrokenOff(_)), "{sent:?}");
        String::from_utf8(out).unwrap()
    }

    fn numbers(count: usize) -> impl Iterator<Item = Result<usize, Problem>> {
        (0..count).map(Ok)
    }

    /// The content of a chunked answer, or None where its framing is broken.
    fn unchunked(text: &str) -> Option<String> {
        let (_, mut rest) = text.split_once("transfer-encoding: chunked\r\n\r\n")?;
        let mut content = String::new();
        loop {
            let (size, after) = rest.split_once("\r\n")?;
            let size = usize::from_str_radix(size, 16).ok()?;
            content.push_str(after.get(..size)?);
            rest = after.get(size..)?.strip_prefix("\r\n")?;
            if size == 0 {
                return rest.is_empty().then_some(content);
            }
        }
    }

    #[test]
    fn a_short_array_is_sent_with_its_length() {
        let text = sent(Response::json_array(200, numbers(3)));

        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: now\r\n\
             x-content-type-options: nosniff\r\n\
             cross-origin-resource-policy: same-origin\r\ncontent-length: 7\r\n\r\n[0,1,2]"
        );
    }

    #[test]
    fn an_empty_array_is_two_brackets() {
        assert!(sent(Response::json_array(200, numbers(0))).ends_with("\r\n\r\n[]"));
    }

    #[test]
    fn a_long_array_is_sent_in_chunks() {
        let text = sent(Response::json_array(200, numbers(50_000)));

        let content = unchunked(&text).expect("well-formed chunks");
        assert_eq!(
            serde_json::from_str::<Vec<usize>>(&content).unwrap().len(),
            50_000
        );
    }

    #[test]
    fn a_problem_before_the_first_piece_sends_nothing() {
        let mut out = Vec::new();
        let values = std::iter::once(Err::<(), _>(Problem::internal("the table is gone")));

        let sent = Response::json_array(200, values).write_to(&mut out, false, HTTP_11);

        assert!(matches!(sent, Sent::Refused(problem) if problem.status == 500));
        assert!(out.is_empty());
    }

    #[test]
    fn a_problem_midway_leaves_an_answer_that_cannot_be_taken_for_whole() {
        let values = numbers(50_000).chain([Err(Problem::internal("the server went away"))]);

        let text = sent(Response::json_array(200, values));

        assert_eq!(unchunked(&text), None);
    }

    #[test]
    fn a_stream_that_is_not_as_long_as_it_says_is_broken_off() {
        for (said, sent_whole) in [(49_999, false), (50_001, false), (50_000, true)] {
            let mut left = 50_000;
            let fill = move |buffer: &mut Vec<u8>| {
                let piece = left.min(10_000);
                buffer.resize(buffer.len() + piece, b'm');
                left -= piece;
                Ok(())
            };
            let stream = Stream {
                length: Some(said),
                fill: Box::new(fill),
            };

            let sent =
                Response::new(200, Body::Stream(stream)).write_to(&mut Vec::new(), false, HTTP_11);

            assert_eq!(matches!(sent, Sent::Whole), sent_whole, "{said}: {sent:?}");
        }
    }

    #[test]
    fn a_client_of_http_1_0_gets_no_chunks() {
        let mut out = Vec::new();

        let sent = Response::json_array(200, numbers(50_000)).write_to(&mut out, false, HTTP_10);

        assert!(matches!(sent, Sent::Whole));

        let text = String::from_utf8(out).unwrap();
        let (head, content) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            !head.contains("transfer-encoding") && !head.contains("content-length"),
            "{head}"
        );
        assert_eq!(
            serde_json::from_str::<Vec<usize>>(content).unwrap().len(),
            50_000
        );
    }

    #[test]
    fn a_head_request_gets_the_head_that_get_would_have() {
        let mut out = Vec::new();

        let _ = Response::json(200, &[1, 2])
            .with_header("date", "now")
            .write_to(&mut out, true, HTTP_11);

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: now\r\n\
             x-content-type-options: nosniff\r\n\
             cross-origin-resource-policy: same-origin\r\ncontent-length: 5\r\n\r\n"
        );
    }

    #[test]
    fn a_line_break_in_a_header_value_does_not_reach_the_wire() {
        let text = sent(Response::empty(204).with_header("location", "/a\r\nset-cookie: b"));

        assert!(text.contains("location: /a  set-cookie: b\r\n"), "{text}");
    }
}
