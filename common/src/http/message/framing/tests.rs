use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::http::message::head::ParsedHead;

const LIMITS: FramingLimits = FramingLimits {
    request_line_bytes: 256,
    head_bytes: 2048,
    headers: 16,
    body_bytes: 1024,
};

/// A request as the edge reads it.
#[derive(Debug, Clone, PartialEq)]
struct Whole {
    /// Where the next request begins.
    end: usize,
    body: Vec<u8>,
}

/// None while the request is not all there.
type Reading = Result<Option<Whole>, Problem>;

/// Reads a request that arrives in these pieces.
fn read<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> Reading {
    let mut pieces = pieces.into_iter();
    let mut arrived = Vec::new();
    let mut scan = HeadScan::default();
    let head_bytes = loop {
        if let Some(head_bytes) = scan.scan(&arrived, &LIMITS)? {
            break head_bytes;
        }
        let Some(piece) = pieces.next() else {
            return Ok(None);
        };
        arrived.extend_from_slice(piece);
    };
    let mut body = Vec::new();
    let mut at = head_bytes;
    let mut framing = framing_of(&arrived[..head_bytes])?;
    loop {
        match framing {
            BodyFraming::None => return Ok(Some(Whole { end: at, body })),
            BodyFraming::Length(length) if arrived.len() >= at + length => {
                let end = at + length;
                body.extend_from_slice(&arrived[at..end]);
                return Ok(Some(Whole { end, body }));
            }
            BodyFraming::Length(_) => {}
            BodyFraming::Chunked(ref mut chunked) => {
                at += chunked.read(&arrived[at..], |piece| body.extend_from_slice(piece))?;
                if chunked.is_done() {
                    return Ok(Some(Whole { end: at, body }));
                }
            }
        }
        let Some(piece) = pieces.next() else {
            return Ok(None);
        };
        arrived.extend_from_slice(piece);
    }
}

fn parse(head: &[u8]) -> Result<ParsedHead, Problem> {
    let client = [127, 0, 0, 1].into();
    ParsedHead::parse(head, &LIMITS, client, false, Instant::now())
}

fn framing_of(head: &[u8]) -> Result<BodyFraming, Problem> {
    parse(head).map(|parsed| parsed.framing)
}

/// The status of the refusal; 0 where the bytes are the begin of a request, and 200 where they
/// have a whole one.
fn status(bytes: impl AsRef<[u8]>) -> u16 {
    match read([bytes.as_ref()]) {
        Ok(Some(_)) => 200,
        Ok(None) => 0,
        Err(refusal) => refusal.status,
    }
}

/// A request with these header lines beside its Host.
fn with(lines: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n")
}

/// A request with that body in chunks.
fn chunked(body: &str) -> String {
    with("Transfer-Encoding: chunked") + body
}

fn parsed<T>(head: &str, look: impl FnOnce(ParsedHead) -> T) -> Result<T, u16> {
    parse(head.as_bytes())
        .map(look)
        .map_err(|refusal| refusal.status)
}

#[track_caller]
fn assert_statuses<B: AsRef<[u8]>>(cases: impl IntoIterator<Item = (B, u16)>) {
    for (bytes, expected) in cases {
        let shown = String::from_utf8_lossy(bytes.as_ref()).into_owned();
        assert_eq!(status(bytes), expected, "{shown:?}");
    }
}

#[test]
fn a_line_of_the_head_ends_in_cr_and_lf_and_nothing_else() {
    assert_statuses([
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        ("GET / HTTP/1.1\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\n\n", 400),
        ("GET / HTTP/1.1\rHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\n\rX", 400),
        ("\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ]);
}

#[test]
fn a_head_has_no_nul() {
    assert_statuses([
        ("\0", 400),
        ("G\0T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nX: \0\r\n\r\n", 400),
    ]);
}

#[test]
fn the_request_line_is_three_words_with_single_spaces_between_them() {
    for line in [
        "",
        " ",
        "GET",
        "GET /",
        "GET /a b HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET\t/\tHTTP/1.1",
        " GET / HTTP/1.1",
        "/ HTTP/1.1",
        "G(T / HTTP/1.1",
        "G\u{e9}T / HTTP/1.1",
        "GET / HTTP/1.1 extra",
    ] {
        assert_eq!(
            status(format!("{line}\r\nHost: h\r\n\r\n")),
            400,
            "{line:?}"
        );
    }
}

#[test]
fn any_token_is_a_method() {
    for method in ["GET", "get", "M-SEARCH", "!#$%&'*+-.^_`|~09az"] {
        let head = format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n");

        let read = parsed(&head, |parsed| parsed.head.method.to_string());

        assert_eq!(read.as_deref(), Ok(method));
    }
}

#[test]
fn only_http_1_0_and_1_1_are_spoken() {
    for (version, expected) in [
        ("HTTP/1.1", 200),
        ("HTTP/1.0", 200),
        ("HTTP/1.2", 505),
        ("HTTP/2.0", 505),
        ("HTTP/0.9", 505),
        ("HTTP/9.9", 505),
        ("HTTP/1.10", 400),
        ("HTTP/11", 400),
        ("HTTP/1", 400),
        ("HTTP/1.", 400),
        ("HTTP/2", 400),
        ("HTTP/a.1", 400),
        ("HTTP/1,1", 400),
        ("HTTP/-1.1", 400),
        ("HTTPS/1.1", 400),
        ("http/1.1", 400),
        ("Http/1.1", 400),
        ("HTTP/1.1x", 400),
        ("", 400),
    ] {
        let head = format!("GET / {version}\r\nHost: h\r\n\r\n");

        assert_eq!(status(&head), expected, "{version:?}");
    }
    assert_eq!(status("PRI * HTTP/2.0\r\n\r\n"), 505);
}

#[test]
fn a_target_is_a_path_without_characters_that_no_uri_has() {
    for (target, expected) in [
        ("/", 200),
        ("/a?b=c&d", 200),
        ("//a", 200),
        ("/%00%0d%0a", 200),
        ("/[]{}|\\^", 200),
        ("*", 200),
        ("**", 400),
        ("h:80", 400),
        ("http://h/", 200),
        ("HTTPS://h:80/a?b", 200),
        ("http://h", 200),
        ("http://h?a", 400),
        ("http:///a", 400),
        ("http://user@h/", 400),
        ("http://h:a/", 400),
        ("ftp://h/", 400),
        ("a", 400),
        ("?a", 400),
        ("/#a", 400),
        ("/\"", 400),
        ("/<", 400),
        ("/>", 400),
        ("/`", 400),
        ("/\t", 400),
        ("/\u{7f}", 400),
        ("/\u{e9}", 400),
    ] {
        let head = format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n");

        assert_eq!(status(&head), expected, "{target:?}");
    }
    assert_eq!(status(b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n"), 400);
}

#[test]
fn a_long_request_line_is_refused_before_its_end() {
    let longest = LIMITS.request_line_bytes - "GET /".len();

    assert_eq!(status(format!("GET /{}", "a".repeat(longest))), 0);
    assert_eq!(status(format!("GET /{}", "a".repeat(longest + 1))), 414);
    assert_eq!(status("A".repeat(LIMITS.request_line_bytes + 1)), 414);
}

#[test]
fn a_long_head_is_refused_before_its_end() {
    let begin = "GET / HTTP/1.1\r\nHost: h\r\nX: ";
    let longest = LIMITS.head_bytes - begin.len();

    assert_eq!(status(format!("{begin}{}", "a".repeat(longest))), 0);
    assert_eq!(status(format!("{begin}{}", "a".repeat(longest + 1))), 431);
    assert_eq!(
        status("GET / HTTP/1.1\r\n".to_owned() + &"a".repeat(4096)),
        431
    );
}

#[test]
fn there_may_be_so_many_headers_and_no_more() {
    let headers = |count: usize| {
        let others = "X: y\r\n".repeat(count - 1);
        format!("GET / HTTP/1.1\r\nHost: h\r\n{others}\r\n")
    };

    assert_eq!(status(headers(LIMITS.headers)), 200);
    assert_eq!(status(headers(LIMITS.headers + 1)), 431);
}

#[test]
fn there_may_be_a_hundred_options_of_a_connection_and_no_more() {
    let options = |count: usize| {
        let options = "a, ".repeat(count - 1);
        format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: {options}b\r\n\r\n")
    };

    assert_eq!(status(options(100)), 200);
    assert_eq!(status(options(101)), 431);
}

#[test]
fn the_name_of_a_header_is_a_token_with_its_colon_behind_it() {
    for (line, expected) in [
        ("X:", 200),
        ("X:y", 200),
        ("X:   \t y \t", 200),
        ("X: y: z", 200),
        ("!#$%&'*+-.^_`|~: y", 200),
        ("X : y", 400),
        ("X\t: y", 400),
        (" X: y", 400),
        ("\tX: y", 400),
        (": y", 400),
        (":", 400),
        ("X", 400),
        ("X Y: z", 400),
        ("X(: y", 400),
        ("X\u{e9}: y", 400),
        ("X\u{7f}: y", 400),
        ("X\u{b}: y", 400),
        ("X: y\r\n folded", 400),
        ("X: y\r\n\tfolded", 400),
        ("X:\r\n y", 400),
    ] {
        assert_eq!(status(with(line)), expected, "{line:?}");
    }
}

#[test]
fn the_value_of_a_header_has_no_control_character_but_tabs() {
    for byte in 0..=255_u8 {
        let mut head = b"GET / HTTP/1.1\r\nHost: h\r\nX: a".to_vec();
        head.push(byte);
        head.extend_from_slice(b"b\r\n\r\n");

        let allowed = byte == b'\t' || (b' '..=b'~').contains(&byte) || byte >= 0x80;

        assert_eq!(status(head), if allowed { 200 } else { 400 }, "{byte:#x}");
    }
}

#[test]
fn there_is_one_host_of_which_only_http_1_0_may_know_nothing() {
    for (lines, expected) in [
        ("1.1\r\nHost: h", 200),
        ("1.1\r\nHOST: h:80", 200),
        ("1.1\r\nHost: [::1]:80", 200),
        ("1.1\r\nHost:", 200),
        ("1.1", 400),
        ("1.1\r\nHost: h\r\nHost: h", 400),
        ("1.1\r\nHost: h\r\nhost: other", 400),
        ("1.1\r\nHost: h other", 400),
        ("1.1\r\nHost: h/path", 400),
        ("1.1\r\nHost: user@h", 400),
        ("1.1\r\nHost: h\\", 400),
        ("1.1\r\nHost: a:1:2", 400),
        ("1.1\r\nHost: a:", 200),
        ("1.1\r\nHost: :80", 400),
        ("1.1\r\nHost: [v1.a:b]", 200),
        ("1.1\r\nHost: [1.2.3.4]", 400),
        ("1.1\r\nHost: [::1]a", 400),
        ("1.1\r\nHost: %zz", 400),
        ("1.1\r\nHost: %2d", 200),
        ("1.1\r\nHost: h#", 400),
        ("1.1\r\nHost: \u{fc}", 400),
        ("1.0", 200),
        ("1.0\r\nHost: h", 200),
        ("1.0\r\nHost: h\r\nHost: h", 400),
        ("1.0\r\nHost: h/", 400),
    ] {
        assert_eq!(
            status(format!("GET / HTTP/{lines}\r\n\r\n")),
            expected,
            "{lines:?}"
        );
    }
}

#[test]
fn a_content_length_is_digits_and_nothing_else() {
    for (value, expected) in [
        ("0", 200),
        (" 5", 0),
        ("5 \t", 0),
        ("005", 0),
        ("1024", 0),
        ("1025", 413),
        ("40000000000", 413),
        ("9223372036854775808", 413),
        ("18446744073709551615", 413),
        ("18446744073709551616", 413),
        ("18446744073709551621", 413),
        ("99999999999999999999999999999999999999999999", 413),
        ("", 400),
        ("+5", 400),
        ("-5", 400),
        ("-0", 400),
        ("5,5", 400),
        ("5, 5", 400),
        ("5 5", 400),
        ("5;", 400),
        ("0x5", 400),
        ("5.0", 400),
        ("5e0", 400),
        ("1_000", 400),
        ("five", 400),
        ("\"5\"", 400),
        ("\u{665}", 400),
        ("\u{ff15}", 400),
    ] {
        assert_eq!(
            status(with(&format!("Content-Length: {value}"))),
            expected,
            "{value:?}"
        );
    }
}

#[test]
fn a_body_has_one_length() {
    for lines in [
        "Content-Length: 0\r\nContent-Length: 0",
        "Content-Length: 0\r\ncontent-length: 5",
        "Content-Length: 0\r\nX: y\r\nCONTENT-LENGTH: 0",
        "Content-Length: 0\r\nContent-Length:",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Transfer-Encoding: identity\r\nContent-Length: 0",
        "Transfer-Encoding:\r\nContent-Length: 0",
    ] {
        assert_eq!(status(with(lines)), 400, "{lines}");
    }
}

#[test]
fn chunked_and_nothing_else_is_a_transfer_encoding() {
    for value in ["chunked", "Chunked", "CHUNKED", "chunked \t"] {
        let head = with(&format!("Transfer-Encoding: {value}"));

        assert_eq!(
            framing_of(head.as_bytes()),
            Ok(BodyFraming::Chunked(Chunked::new(&LIMITS))),
            "{value:?}"
        );
    }
    for value in [
        "",
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        "chunked;q=1",
        "xchunked",
        "chunkedx",
        "chunk\u{e9}d",
        "\"chunked\"",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: chunked",
    ] {
        let head = with(&format!("Transfer-Encoding: {value}"));

        assert_eq!(status(head), 501, "{value:?}");
    }
    for value in ["\u{b}chunked", "chunked\u{c}", "chunked\0"] {
        let head = with(&format!("Transfer-Encoding: {value}"));

        assert_eq!(status(head), 400, "{value:?}");
    }
}

#[test]
fn http_1_0_knows_no_transfer_encoding() {
    assert_eq!(
        status("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        400
    );
}

#[test]
fn the_only_expectation_is_100_continue() {
    let expects = |lines: &str| parsed(&with(lines), |head| head.expects_continue);

    assert_eq!(expects("X: y"), Ok(false));
    assert_eq!(expects("Expect: 100-continue"), Ok(true));
    assert_eq!(expects("expect: 100-Continue"), Ok(true));
    for lines in [
        "Expect:",
        "Expect: 200-ok",
        "Expect: 100-continue, 200-ok",
        "Expect: 100-continue\r\nExpect: more",
    ] {
        assert_eq!(expects(lines), Err(417), "{lines}");
    }
    let ignored = "POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(parsed(ignored, |head| head.expects_continue), Ok(false));
}

#[test]
fn a_connection_is_kept_until_a_client_says_close_and_in_http_1_0_where_it_says_so() {
    for (lines, kept) in [
        ("1.1\r\nHost: h", true),
        ("1.1\r\nHost: h\r\nConnection: keep-alive", true),
        ("1.1\r\nHost: h\r\nConnection: closed", true),
        ("1.1\r\nHost: h\r\nConnection: close", false),
        ("1.1\r\nHost: h\r\nConnection: CLOSE", false),
        ("1.1\r\nHost: h\r\nConnection: keep-alive,close", false),
        ("1.1\r\nHost: h\r\nConnection: ,, close ,", false),
        (
            "1.1\r\nHost: h\r\nConnection: x\r\nConnection: close",
            false,
        ),
        ("1.0", false),
        ("1.0\r\nConnection: keep-alive", true),
        ("1.0\r\nConnection: keep-alive, close", false),
    ] {
        let head = format!("GET / HTTP/{lines}\r\n\r\n");

        assert_eq!(parsed(&head, |head| head.keep_alive), Ok(kept), "{lines}");
    }
}

#[test]
fn chunks_are_joined_and_their_extensions_and_trailers_passed_over() {
    for (chunks, body) in [
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("005\r\nhello\r\n000\r\n\r\n", "hello"),
        ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello"),
        ("5;a=b\r\nhello\r\n0;c\r\n\r\n", "hello"),
        ("5 ; a=\"b c\"\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5\r\n\r\n\0\n\r\r\n0\r\n\r\n", "\r\n\0\n\r"),
        ("5\r\nhello\r\n0\r\nA: b\r\nC:\r\n\r\n", "hello"),
        (
            "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
            "01234567890123456789",
        ),
    ] {
        let request = chunked(chunks);

        let read = read([(request.clone() + "GET /next").as_bytes()]);

        let whole = Whole {
            end: request.len(),
            body: body.as_bytes().to_vec(),
        };
        assert_eq!(read, Ok(Some(whole)), "{chunks:?}");
    }
}

#[test]
fn a_chunk_is_its_size_in_hexadecimal_its_line_its_data_and_another_line_end() {
    for chunks in [
        "\r\n",
        " 5\r\n",
        "+5\r\n",
        "-5\r\n",
        "0x5\r\n",
        "5x\r\n",
        "g\r\n",
        "5_0\r\n",
        ";a\r\n",
        "5 5\r\n",
        "5 a\r\n",
        "5 \r\n",
        "5\t\r\n",
        "5\n",
        "5\r5",
        "5\rhello",
        "5\r\r\n",
        "5;a\n",
        "5;a\rb",
        "5;\0\r\n",
        "5;a\u{7f}\r\n",
        "5\r\nhello0",
        "5\r\nhello\n",
        "5\r\nhello\r0",
        "5\r\nhello!\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n",
        "00000000000000005\r\n",
        "10000000000000000\r\n",
    ] {
        assert_eq!(status(chunked(chunks)), 400, "{chunks:?}");
    }
}

#[test]
fn a_chunk_of_any_size_is_held_to_the_limit_of_the_body() {
    let data = "a".repeat(LIMITS.body_bytes);

    assert_eq!(status(chunked(&format!("400\r\n{data}\r\n0\r\n\r\n"))), 200);
    for size in ["401", "ffff", "7fffffffffffffff", "FFFFFFFFFFFFFFFF"] {
        assert_eq!(
            status(chunked(&format!("{size}\r\n{data}a"))),
            413,
            "{size}"
        );
    }
    assert_eq!(status(chunked(&"1\r\na\r\n".repeat(1025))), 413);
}

#[test]
fn the_end_of_a_chunked_body_is_an_empty_line_behind_trailers_that_are_headers() {
    for trailers in [
        "0\r\nGET / HTTP/1.1\r\n",
        "0\r\nA\r\n\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\nA: b\r\n folded\r\n\r\n",
        "0\r\n: b\r\n\r\n",
        "0\r\nA: b\n\r\n",
        "0\r\nA: b\rC: d\r\n\r\n",
        "0\r\nA: \0\r\n\r\n",
        "0\r\nA(: b\r\n\r\n",
        "0\r\n\n",
        "0\r\n\rX",
        "0\r\n0\r\n\r\n",
    ] {
        assert_eq!(status(chunked(trailers)), 400, "{trailers:?}");
    }
    for unfinished in [
        "0",
        "0\r",
        "0\r\n",
        "0\r\n\r",
        "0\r\nA: b\r\n",
        "0\r\nA: b\r\n\r",
    ] {
        assert_eq!(status(chunked(unfinished)), 0, "{unfinished:?}");
    }
}

#[test]
fn a_line_of_a_chunk_and_the_trailers_together_have_a_limit() {
    let extension = |bytes: usize| chunked(&format!("5;{}", "a".repeat(bytes)));
    let trailers = |count: usize| chunked(&format!("0\r\n{}", "A: b\r\n".repeat(count)));

    assert_eq!(status(extension(CHUNK_LINE_BYTES_MAX - 2)), 0);
    assert_eq!(status(extension(CHUNK_LINE_BYTES_MAX - 1)), 400);
    assert_eq!(status(trailers(TRAILER_BYTES_MAX / 4)), 0);
    assert_eq!(status(trailers(TRAILER_BYTES_MAX / 4 + 1)), 400);
}

/// A request as others read it: httparse for the head, the sizes of chunks and the
/// trailers, and `chunked_transfer`, by which tiny_http reads, where there are no trailers.
fn second_opinion(bytes: &[u8]) -> Option<Whole> {
    let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut storage);
    let head_bytes = complete(request.parse(bytes))?;
    if values(request.headers, "transfer-encoding")
        .next()
        .is_some()
    {
        return second_opinion_of_chunks(bytes, head_bytes);
    }
    let length = match values(request.headers, "content-length").next() {
        Some(length) => std::str::from_utf8(length).ok()?.parse::<usize>().ok()?,
        None => 0,
    };
    let end = head_bytes.checked_add(length)?;
    let body = bytes.get(head_bytes..end)?.to_vec();
    Some(Whole { end, body })
}

fn second_opinion_of_chunks(bytes: &[u8], head_bytes: usize) -> Option<Whole> {
    let mut at = head_bytes;
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((line, size))) =
            httparse::parse_chunk_size(bytes.get(at..)?)
        else {
            return None;
        };
        at += line;
        if size == 0 {
            break;
        }
        let end = at.checked_add(usize::try_from(size).ok()?)?;
        body.extend_from_slice(bytes.get(at..end)?);
        at = end + 2;
        if bytes.get(end..at)? != b"\r\n" {
            return None;
        }
    }
    let mut storage = vec![httparse::EMPTY_HEADER; TRAILER_BYTES_MAX];
    let Ok(httparse::Status::Complete((trailers, fields))) =
        httparse::parse_headers(&bytes[at..], &mut storage)
    else {
        return None;
    };
    let end = at + trailers;
    if fields.is_empty() {
        let mut rest = &bytes[head_bytes..];
        let mut third_opinion = Vec::new();
        chunked_transfer::Decoder::new(&mut rest)
            .read_to_end(&mut third_opinion)
            .ok()?;
        if (bytes.len() - rest.len(), &third_opinion) != (end, &body) {
            return None;
        }
    }
    Some(Whole { end, body })
}

fn complete(parsed: httparse::Result<usize>) -> Option<usize> {
    match parsed {
        Ok(httparse::Status::Complete(bytes)) => Some(bytes),
        _ => None,
    }
}

/// Bytes of a request, shown as text when a test fails.
#[derive(Clone)]
struct Wire(Vec<u8>);

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A request that is as it should be, with its body.
#[derive(Debug, Clone)]
struct Valid {
    wire: Wire,
    body: Vec<u8>,
}

fn header_line() -> impl Strategy<Value = String> {
    prop_oneof![
        "X-[A-Za-z0-9]{0,8}:[ \t]{0,2}([!-~]([ -~]{0,12}[!-~])?)?[ \t]{0,2}",
        "(Accept|TE|Upgrade|Trailer|Content-Type|Via): [a-z/;=, ]{0,12}",
        "(Connection|connection): (close|keep-alive|x-a, close)",
        Just("Expect: 100-continue".to_owned()),
        Just("X-Octets: caf\u{e9}".to_owned()),
    ]
}

fn body_bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        prop_oneof![
            4 => any::<u8>(),
            1 => proptest::sample::select(&b"\r\n0;: "[..]),
        ],
        0..40,
    )
}

/// The framing headers and the bytes behind the head.
fn framed_body() -> impl Strategy<Value = (String, Vec<u8>, Vec<u8>)> {
    let none = Just((String::new(), Vec::new(), Vec::new()));
    let by_length = (body_bytes(), "0{0,3}").prop_map(|(body, zeros)| {
        let header = format!("Content-Length: {zeros}{}\r\n", body.len());
        (header, body.clone(), body)
    });
    let chunk = (body_bytes(), "0{0,2}", any::<bool>(), extension());
    let in_chunks = (
        proptest::collection::vec(chunk, 0..4),
        "0{1,3}",
        extension(),
        proptest::collection::vec("[A-Za-z][A-Za-z0-9-]{0,8}:[ -~]{0,12}", 0..3),
        "(T|t)ransfer-(E|e)ncoding: ?(chunked|Chunked)",
    )
        .prop_map(|(chunks, last, last_extension, trailers, header)| {
            let (mut wire, mut body) = (Vec::new(), Vec::new());
            for (data, zeros, upper, extension) in chunks {
                if data.is_empty() {
                    continue;
                }
                let size = data.len();
                let size = if upper {
                    format!("{zeros}{size:X}")
                } else {
                    format!("{zeros}{size:x}")
                };
                wire.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
                wire.extend_from_slice(&data);
                wire.extend_from_slice(b"\r\n");
                body.extend_from_slice(&data);
            }
            wire.extend_from_slice(format!("{last}{last_extension}\r\n").as_bytes());
            for trailer in trailers {
                wire.extend_from_slice(format!("{trailer}\r\n").as_bytes());
            }
            wire.extend_from_slice(b"\r\n");
            (format!("{header}\r\n"), wire, body)
        });
    prop_oneof![1 => none, 2 => by_length, 4 => in_chunks]
}

fn extension() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just(String::new()),
        1 => "[ \t]?;[ \t]?[a-z]{1,4}(=([a-z]{1,4}|\"[a-z ;,]{0,4}\"))?",
    ]
}

fn valid_request() -> impl Strategy<Value = Valid> {
    (
        "[A-Z]{1,7}",
        "/[a-z0-9%/?&=]{0,20}",
        proptest::collection::vec(header_line(), 0..5),
        framed_body(),
        any::<proptest::sample::Index>(),
    )
        .prop_map(|(method, target, lines, (framing, wire, body), place)| {
            let mut lines: Vec<_> = lines.into_iter().map(|line| line + "\r\n").collect();
            lines.push("Host: h\r\n".to_owned());
            lines.insert(place.index(lines.len()), framing);
            let mut bytes =
                format!("{method} {target} HTTP/1.1\r\n{}\r\n", lines.concat()).into_bytes();
            bytes.extend_from_slice(&wire);
            Valid {
                wire: Wire(bytes),
                body,
            }
        })
}

/// What may follow a request on its connection.
fn follower() -> impl Strategy<Value = Wire> {
    prop_oneof![
        Just(Wire(Vec::new())),
        valid_request().prop_map(|valid| valid.wire),
        proptest::collection::vec(any::<u8>(), 0..8).prop_map(Wire),
    ]
}

/// A change at one place of a request.
#[derive(Debug, Clone)]
enum Change {
    Replace(u8),
    Insert(Vec<u8>),
    Remove(usize),
    Repeat(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let byte = || {
        prop_oneof![
            1 => any::<u8>(),
            3 => proptest::sample::select(&b"\r\n\0 \t:;,+-0159afAFx\x0b\x7f\xff"[..]),
        ]
    };
    let piece = proptest::sample::select(
        &[
            "\r\n",
            "\r\n\r\n",
            "\n",
            "\r",
            " ",
            "0\r\n\r\n",
            "Content-Length: 5\r\n",
            "\r\nContent-Length: 0\r\n",
            "Transfer-Encoding: chunked\r\n",
            "\r\nTransfer-Encoding: identity\r\n",
            "Host: h\r\n",
            ", chunked",
            "FFFFFFFFFFFFFFFF",
            ";a=b",
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        ][..],
    );
    prop_oneof![
        4 => byte().prop_map(Change::Replace),
        3 => byte().prop_map(|byte| Change::Insert(vec![byte])),
        3 => piece.prop_map(|piece| Change::Insert(piece.as_bytes().to_vec())),
        3 => (1..6_usize).prop_map(Change::Remove),
        1 => (1..40_usize).prop_map(Change::Repeat),
    ]
}

fn mutated_request() -> impl Strategy<Value = Wire> {
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), change()), 1..4);
    (valid_request(), follower(), changes).prop_map(|(valid, follower, changes)| {
        let mut bytes = valid.wire.0;
        bytes.extend_from_slice(&follower.0);
        for (place, change) in changes {
            let at = place.index(bytes.len() + 1);
            let end = |length: usize| (at + length).min(bytes.len());
            match change {
                Change::Replace(byte) if at < bytes.len() => bytes[at] = byte,
                Change::Replace(_) => {}
                Change::Insert(piece) => drop(bytes.splice(at..at, piece)),
                Change::Remove(length) => drop(bytes.drain(at..end(length))),
                Change::Repeat(length) => {
                    let piece = bytes[at..end(length)].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        Wire(bytes)
    })
}

fn ends_where_others_say(valid: &Valid, follower: &Wire) -> Result<(), TestCaseError> {
    let whole = Whole {
        end: valid.wire.0.len(),
        body: valid.body.clone(),
    };
    let wire = [&valid.wire.0[..], &follower.0].concat();

    prop_assert_eq!(read([&wire[..]]), Ok(Some(whole.clone())));
    prop_assert_eq!(second_opinion(&wire), Some(whole));
    Ok(())
}

fn is_read_alike_however_it_is_split(Wire(bytes): &Wire) -> Result<(), TestCaseError> {
    let at_once = read([&bytes[..]]);

    for at in 0..=bytes.len() {
        let (begin, rest) = bytes.split_at(at);
        prop_assert_eq!(&read([begin, rest]), &at_once, "split at {}", at);
    }
    prop_assert_eq!(read(bytes.chunks(1)), at_once);
    Ok(())
}

fn is_taken_only_where_others_agree(Wire(bytes): &Wire) -> Result<(), TestCaseError> {
    if let Ok(Some(whole)) = read([&bytes[..]]) {
        prop_assert_eq!(second_opinion(bytes), Some(whole));
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_valid_request_ends_where_others_say(valid in valid_request(), follower in follower()) {
        ends_where_others_say(&valid, &follower)?;
    }

    #[test]
    fn a_request_is_read_alike_however_it_is_split(
        valid in valid_request(),
        mutated in mutated_request(),
    ) {
        is_read_alike_however_it_is_split(&valid.wire)?;
        is_read_alike_however_it_is_split(&mutated)?;
    }

    #[test]
    fn what_is_no_longer_valid_is_taken_only_where_others_agree(mutated in mutated_request()) {
        is_taken_only_where_others_agree(&mutated)?;
    }

    #[test]
    fn no_bytes_at_all_make_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200).prop_map(Wire),
    ) {
        is_read_alike_however_it_is_split(&bytes)?;
        is_taken_only_where_others_agree(&bytes)?;
    }
}

/// All of the properties for `FUZZ_SECONDS`, 600 if unset:
/// `nice cargo test --release -p common --lib fuzz -- --ignored --nocapture`.
#[test]
#[ignore = "runs for as long as FUZZ_SECONDS says"]
#[expect(clippy::print_stderr, reason = "whoever waits for it wants to know")]
fn the_properties_hold_for_as_long_as_one_likes_to_fuzz() {
    const CASES: u32 = 10_000;
    let seconds = std::env::var("FUZZ_SECONDS").map_or(600, |text| text.parse().expect("seconds"));
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let requests = (valid_request(), follower(), mutated_request());
    let mut taken = 0_u64;
    for round in 1.. {
        let of_round = Cell::new(0);
        TestRunner::new(config.clone())
            .run(&requests, |(valid, follower, mutated)| {
                of_round.set(of_round.get() + u64::from(status(&mutated.0) == 200));
                ends_where_others_say(&valid, &follower)?;
                is_read_alike_however_it_is_split(&mutated)?;
                is_taken_only_where_others_agree(&mutated)
            })
            .unwrap_or_else(|failure| panic!("{failure}"));
        taken += of_round.get();
        if Instant::now() >= deadline {
            let requests = round * u64::from(CASES);
            eprintln!(
                "{requests} requests as they should be, and as many changed ones, of which {taken} were taken"
            );
            return;
        }
    }
}
