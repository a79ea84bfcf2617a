//! Requests that are malformed, hostile or unusual, and the answer to each.

/// Bytes on a connection of their own, which the client ends after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The defect, or the property that looks like one.
    pub name: String,
    /// The bytes that the client sends.
    pub bytes: Vec<u8>,
    /// The statuses of the answers in their order; none if the connection is only closed.
    pub expected: Vec<u16>,
}

/// A line of a table: the name, the bytes, the statuses. In the bytes `|` stands for CR LF and `{}` for a path at which
/// a worker answers a GET with 200. No program has the path `/smuggled`: a request for it that was parsed shows as a
/// 404.
type CaseRow = (&'static str, &'static [u8], &'static [u16]);

/// All cases for a program that answers a GET of `path` with 200.
#[must_use]
pub fn cases(path: &str) -> Vec<Case> {
    let tables = [
        ("request line", REQUEST_LINES),
        ("other protocol", OTHER_PROTOCOLS),
        ("target", TARGETS),
        ("header", HEADERS),
        ("host", HOSTS),
        ("length", LENGTHS),
        ("encoding", ENCODINGS),
        ("chunks", CHUNKS),
        ("pair", PAIRS),
    ];
    let mut cases = Vec::new();
    for (group, rows) in tables {
        for (name, bytes, expected) in rows {
            cases.push(Case {
                name: format!("{group}: {name}"),
                bytes: expanded(bytes, path),
                expected: expected.to_vec(),
            });
        }
    }
    cases.extend(oversized(path));
    cases.extend(cut_off(path));
    cases
}

fn expanded(template: &[u8], path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = template;
    while let Some((byte, behind)) = rest.split_first() {
        rest = match byte {
            b'|' => {
                bytes.extend_from_slice(b"\r\n");
                behind
            }
            b'{' if behind.starts_with(b"}") => {
                bytes.extend_from_slice(path.as_bytes());
                &behind[1..]
            }
            _ => {
                bytes.push(*byte);
                behind
            }
        };
    }
    bytes
}

const REQUEST_LINES: &[CaseRow] = &[
    ("nothing at all", b"", &[]),
    ("nothing but empty lines", b"||||||||", &[]),
    (
        "empty lines before it",
        b"||GET {} HTTP/1.1|Host: h||",
        &[200],
    ),
    ("one word", b"GET|Host: h||", &[400]),
    (
        "two words, as HTTP/0.9 had them",
        b"GET {}|Host: h||",
        &[400],
    ),
    ("HTTP/0.9 to the letter", b"GET {}||", &[400]),
    ("four words", b"GET {} HTTP/1.1 more|Host: h||", &[400]),
    ("a space before it", b" GET {} HTTP/1.1|Host: h||", &[400]),
    ("a space behind it", b"GET {} HTTP/1.1 |Host: h||", &[400]),
    (
        "two spaces before the target",
        b"GET  {} HTTP/1.1|Host: h||",
        &[400],
    ),
    (
        "two spaces before the version",
        b"GET {}  HTTP/1.1|Host: h||",
        &[400],
    ),
    ("tabs for spaces", b"GET\t{}\tHTTP/1.1|Host: h||", &[400]),
    (
        "vertical tabs for spaces",
        b"GET\x0b{}\x0bHTTP/1.1|Host: h||",
        &[400],
    ),
    ("no method", b"{} HTTP/1.1|Host: h||", &[400]),
    (
        "a method with a parenthesis",
        b"GE(T {} HTTP/1.1|Host: h||",
        &[400],
    ),
    (
        "a method with a control character",
        b"GE\x01T {} HTTP/1.1|Host: h||",
        &[400],
    ),
    (
        "a method with an octet above ASCII",
        b"GE\xffT {} HTTP/1.1|Host: h||",
        &[400],
    ),
    ("a method with NUL", b"GE\0T {} HTTP/1.1|Host: h||", &[400]),
    (
        "a method that nobody knows",
        b"BREW /health HTTP/1.1|Host: h||",
        &[405],
    ),
    (
        "a method in lower case",
        b"get /health HTTP/1.1|Host: h||",
        &[405],
    ),
    (
        "a method of any token",
        b"!#$%&'*+-.^_`~ /health HTTP/1.1|Host: h||",
        &[405],
    ),
    ("TRACE", b"TRACE /health HTTP/1.1|Host: h||", &[405]),
    ("LF for its end", b"GET {} HTTP/1.1\nHost: h||", &[400]),
    (
        "LF alone everywhere",
        b"GET {} HTTP/1.1\nHost: h\n\n",
        &[400],
    ),
    ("CR for its end", b"GET {} HTTP/1.1\rHost: h||", &[400]),
    (
        "two CR at its end",
        b"GET {} HTTP/1.1\r\r\nHost: h||",
        &[400],
    ),
    ("CR inside", b"GET {}\r HTTP/1.1|Host: h||", &[400]),
    ("LF before it", b"\nGET {} HTTP/1.1|Host: h||", &[400]),
    ("CR before it", b"\rGET {} HTTP/1.1|Host: h||", &[400]),
    ("version 0.9", b"GET {} HTTP/0.9|Host: h||", &[505]),
    ("version 1.2", b"GET {} HTTP/1.2|Host: h||", &[200]),
    ("version 2.0", b"GET {} HTTP/2.0|Host: h||", &[505]),
    ("version 3.0", b"GET {} HTTP/3.0|Host: h||", &[505]),
    ("version 2", b"GET {} HTTP/2|Host: h||", &[400]),
    ("version 1.10", b"GET {} HTTP/1.10|Host: h||", &[400]),
    ("version 01.1", b"GET {} HTTP/01.1|Host: h||", &[400]),
    ("version 1,1", b"GET {} HTTP/1,1|Host: h||", &[400]),
    ("version -1.1", b"GET {} HTTP/-1.1|Host: h||", &[400]),
    ("version 1.", b"GET {} HTTP/1.|Host: h||", &[400]),
    (
        "version in lower case",
        b"GET {} http/1.1|Host: h||",
        &[400],
    ),
    (
        "version of another protocol",
        b"GET {} HTTPS/1.1|Host: h||",
        &[400],
    ),
    (
        "version with a space",
        b"GET {} HTTP/ 1.1|Host: h||",
        &[400],
    ),
    ("version with NUL", b"GET {} HTTP/1.1\0|Host: h||", &[400]),
];

const OTHER_PROTOCOLS: &[CaseRow] = &[
    (
        "HTTP/2 with prior knowledge",
        b"PRI * HTTP/2.0||SM||\0\0\0\x04\0\0\0\0\0",
        &[505],
    ),
    (
        "TLS",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\x8a\x1f\x0a\x0d\x0a",
        &[400],
    ),
    ("SSH", b"SSH-2.0-OpenSSH_9.9|", &[]),
    ("SMTP", b"EHLO client|", &[]),
    ("SOCKS 5", b"\x05\x01\0", &[400]),
    ("Redis", b"*1|$4|PING|", &[]),
    ("PostgreSQL", b"\0\0\0\x08\x04\xd2\x16\x2f", &[400]),
    ("AMQP", b"AMQP\0\0\x09\x01", &[400]),
    ("RTSP", b"OPTIONS * RTSP/1.0|CSeq: 1||", &[400]),
    (
        "PROXY protocol",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2|GET {} HTTP/1.1|Host: h||",
        &[400],
    ),
    ("a shell", b"id; ls -l /\n", &[400]),
    ("an answer", b"HTTP/1.1 200 OK|Content-Length: 0||", &[400]),
];

const TARGETS: &[CaseRow] = &[
    (
        "an absolute URI",
        b"GET http://h{} HTTP/1.1|Host: h||",
        &[200],
    ),
    (
        "an authority",
        b"CONNECT h:443 HTTP/1.1|Host: h:443||",
        &[400],
    ),
    ("an asterisk", b"OPTIONS * HTTP/1.1|Host: h||", &[204]),
    (
        "an absolute URI of another host",
        b"GET http://other:80{} HTTP/1.1|Host: h||",
        &[200],
    ),
    (
        "an absolute URI without a host",
        b"GET http://{} HTTP/1.1|Host: h||",
        &[400],
    ),
    (
        "an absolute URI with a user",
        b"GET http://a@h{} HTTP/1.1|Host: h||",
        &[400],
    ),
    (
        "an absolute URI of another scheme",
        b"GET ftp://h{} HTTP/1.1|Host: h||",
        &[400],
    ),
    ("no slash", b"GET api HTTP/1.1|Host: h||", &[400]),
    ("only a query", b"GET ?a HTTP/1.1|Host: h||", &[400]),
    ("a space", b"GET {}?a b HTTP/1.1|Host: h||", &[400]),
    ("a fragment", b"GET {}#a HTTP/1.1|Host: h||", &[400]),
    ("a quote", b"GET {}?\" HTTP/1.1|Host: h||", &[400]),
    (
        "angle brackets",
        b"GET {}?<script> HTTP/1.1|Host: h||",
        &[400],
    ),
    ("a backtick", b"GET {}?` HTTP/1.1|Host: h||", &[400]),
    ("NUL", b"GET {}?\0 HTTP/1.1|Host: h||", &[400]),
    ("DEL", b"GET {}?\x7f HTTP/1.1|Host: h||", &[400]),
    ("UTF-8", b"GET {}?\xc3\xa9 HTTP/1.1|Host: h||", &[400]),
    ("ISO 8859-1", b"GET {}?\xe9 HTTP/1.1|Host: h||", &[400]),
    ("a bare CR", b"GET {}?\ra HTTP/1.1|Host: h||", &[400]),
    (
        "CR LF and a header",
        b"GET {}?|X: y HTTP/1.1|Host: h||",
        &[400],
    ),
    (
        "CR LF and a header, encoded",
        b"GET /health?%0d%0aX:%20y HTTP/1.1|Host: h||",
        &[200],
    ),
    (
        "NUL, encoded",
        b"GET /health?%00 HTTP/1.1|Host: h||",
        &[200],
    ),
    (
        "percent signs that encode nothing",
        b"GET /health?%%zz%1 HTTP/1.1|Host: h||",
        &[200],
    ),
    (
        "a way up",
        b"GET /../../etc/passwd HTTP/1.1|Host: h||",
        &[404],
    ),
    (
        "a way up, encoded",
        b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1|Host: h||",
        &[404],
    ),
    ("two slashes", b"GET //health HTTP/1.1|Host: h||", &[404]),
    ("a backslash", b"GET \\health HTTP/1.1|Host: h||", &[400]),
    ("a word", b"GET health HTTP/1.1|Host: h||", &[400]),
];

const HEADERS: &[CaseRow] = &[
    ("a space before the colon", b"GET {} HTTP/1.1|Host: h|X : y||", &[400]),
    ("a tab before the colon", b"GET {} HTTP/1.1|Host: h|X\t: y||", &[400]),
    ("a space before the name", b"GET {} HTTP/1.1| Host: h||", &[400]),
    ("folded with a space", b"GET {} HTTP/1.1|Host: h|X: y| z||", &[400]),
    ("folded with a tab", b"GET {} HTTP/1.1|Host: h|X: y|\tz||", &[400]),
    ("a line of spaces", b"GET {} HTTP/1.1|Host: h|  ||", &[400]),
    ("no name", b"GET {} HTTP/1.1|Host: h|: y||", &[400]),
    ("no colon", b"GET {} HTTP/1.1|Host: h|X||", &[400]),
    ("a name of two words", b"GET {} HTTP/1.1|Host: h|X Y: z||", &[400]),
    ("a name with a slash", b"GET {} HTTP/1.1|Host: h|X/Y: z||", &[400]),
    ("a name with NUL", b"GET {} HTTP/1.1|Host: h|X\0: z||", &[400]),
    ("a name with an octet above ASCII", b"GET {} HTTP/1.1|Host: h|X\xe9: z||", &[400]),
    ("a name with a control character", b"GET {} HTTP/1.1|Host: h|X\x08: z||", &[400]),
    ("a value with NUL", b"GET {} HTTP/1.1|Host: h|X: \0||", &[400]),
    ("a value with a bare CR", b"GET {} HTTP/1.1|Host: h|X: a\rY: b||", &[400]),
    ("a value with a bare LF", b"GET {} HTTP/1.1|Host: h|X: a\nY: b||", &[400]),
    ("a value with a control character", b"GET {} HTTP/1.1|Host: h|X: \x1b[2J||", &[400]),
    ("a value with DEL", b"GET {} HTTP/1.1|Host: h|X: \x7f||", &[400]),
    ("a value with octets above ASCII", b"GET {} HTTP/1.1|Host: h|X: \xff\xfe\xc3\xa9||", &[200]),
    ("no value", b"GET {} HTTP/1.1|Host: h|X:||", &[200]),
    ("two keys", b"GET {} HTTP/1.1|Host: h|Authorization: a|authorization: b||", &[400]),
    ("white space around a value", b"GET {} HTTP/1.1|Host: h|X: \t y \t ||", &[200]),
    ("LF for the empty line", b"GET {} HTTP/1.1|Host: h|\n", &[400]),
    ("CR for the empty line", b"GET {} HTTP/1.1|Host: h|\rGET", &[400]),
    ("a forged client", b"GET {} HTTP/1.1|Host: h|X-Forwarded-For: 10.9.8.7||", &[200]),
    ("an encoded line break", b"GET {} HTTP/1.1|Host: h|X: a%0d%0aX-Injected: 1||", &[200]),
    ("a request id that would split the answer", b"GET {} HTTP/1.1|Host: h|X-Request-Id: a%0d%0aX: y||", &[200]),
    ("an expectation that nobody knows", b"GET {} HTTP/1.1|Host: h|Expect: 200-ok||", &[417]),
    ("two expectations", b"GET {} HTTP/1.1|Host: h|Expect: 100-continue, 200-ok||", &[417]),
    ("a continuation without a body", b"GET {} HTTP/1.1|Host: h|Expect: 100-continue||", &[200]),
    ("an upgrade", b"GET {} HTTP/1.1|Host: h|Connection: upgrade|Upgrade: websocket||", &[200]),
    (
        "an upgrade to HTTP/2",
        b"GET {} HTTP/1.1|Host: h|Connection: Upgrade, HTTP2-Settings|Upgrade: h2c|HTTP2-Settings: AAMAAABk||",
        &[200],
    ),
    ("a Connection that lists what must stay", b"GET {} HTTP/1.1|Host: h|Connection: host, content-length||", &[200]),
    ("a Connection of commas", b"GET {} HTTP/1.1|Host: h|Connection: ,,,, ,||", &[200]),
    ("close among others", b"GET {} HTTP/1.1|Host: h|Connection: a, CLOSE||GET /smuggled HTTP/1.1|Host: h||", &[200]),
];

const HOSTS: &[CaseRow] = &[
    ("none", b"GET {} HTTP/1.1||", &[400]),
    ("none in HTTP/1.0", b"GET {} HTTP/1.0||", &[200]),
    ("empty", b"GET {} HTTP/1.1|Host:||", &[200]),
    ("two", b"GET {} HTTP/1.1|Host: h|Host: h||", &[400]),
    (
        "two that differ",
        b"GET {} HTTP/1.1|Host: h|X: y|HOST: other||",
        &[400],
    ),
    (
        "two in HTTP/1.0",
        b"GET {} HTTP/1.0|Host: h|Host: h||",
        &[400],
    ),
    ("two words", b"GET {} HTTP/1.1|Host: h other||", &[400]),
    ("two ports", b"GET {} HTTP/1.1|Host: a:1:2||", &[400]),
    (
        "a port of letters",
        b"GET {} HTTP/1.1|Host: x:abc||",
        &[400],
    ),
    ("a bracket alone", b"GET {} HTTP/1.1|Host: [::1||", &[400]),
    (
        "brackets around a name",
        b"GET {} HTTP/1.1|Host: [h]||",
        &[400],
    ),
    (
        "percent signs that encode nothing",
        b"GET {} HTTP/1.1|Host: %zz||",
        &[400],
    ),
    (
        "an address of IPv6 with a port",
        b"GET {} HTTP/1.1|Host: [::1]:80||",
        &[200],
    ),
    ("percent-encoded", b"GET {} HTTP/1.1|Host: a%2db||", &[200]),
    ("with a path", b"GET {} HTTP/1.1|Host: h/smuggled||", &[400]),
    ("with a user", b"GET {} HTTP/1.1|Host: user@h||", &[400]),
    ("with a quote", b"GET {} HTTP/1.1|Host: h\"||", &[400]),
    ("above ASCII", b"GET {} HTTP/1.1|Host: \xc3\xa9||", &[400]),
    ("in a folded line", b"GET {} HTTP/1.1|Host:| h||", &[400]),
];

const LENGTHS: &[CaseRow] = &[
    (
        "with leading zeros",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 005||hello",
        &[200],
    ),
    (
        "with white space around",
        b"GET {} HTTP/1.1|Host: h|Content-Length: \t5 ||hello",
        &[200],
    ),
    (
        "of nothing",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 0||",
        &[200],
    ),
    (
        "empty",
        b"GET {} HTTP/1.1|Host: h|Content-Length:||hello",
        &[400],
    ),
    (
        "+5",
        b"GET {} HTTP/1.1|Host: h|Content-Length: +5||hello",
        &[400],
    ),
    (
        "-5",
        b"GET {} HTTP/1.1|Host: h|Content-Length: -5||hello",
        &[400],
    ),
    (
        "-0",
        b"GET {} HTTP/1.1|Host: h|Content-Length: -0||",
        &[400],
    ),
    (
        "0x5",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 0x5||hello",
        &[400],
    ),
    (
        "5.0",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5.0||hello",
        &[400],
    ),
    (
        "5e0",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5e0||hello",
        &[400],
    ),
    (
        "5,5",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5,5||hello",
        &[400],
    ),
    (
        "5, 6",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5, 6||hello",
        &[400],
    ),
    (
        "5 5",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5 5||hello",
        &[400],
    ),
    (
        "five",
        b"GET {} HTTP/1.1|Host: h|Content-Length: five||hello",
        &[400],
    ),
    (
        "in quotes",
        b"GET {} HTTP/1.1|Host: h|Content-Length: \"5\"||hello",
        &[400],
    ),
    (
        "in digits of another script",
        b"GET {} HTTP/1.1|Host: h|Content-Length: \xd9\xa5||hello",
        &[400],
    ),
    (
        "with a vertical tab",
        b"GET {} HTTP/1.1|Host: h|Content-Length: \x0b5||hello",
        &[400],
    ),
    (
        "with NUL",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5\0||hello",
        &[400],
    ),
    (
        "with a space before the colon",
        b"GET {} HTTP/1.1|Host: h|Content-Length : 5||hello",
        &[400],
    ),
    (
        "in a folded line",
        b"GET {} HTTP/1.1|Host: h|Content-Length:| 5||hello",
        &[400],
    ),
    (
        "twice the same",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5|Content-Length: 5||hello",
        &[400],
    ),
    (
        "twice, different",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5|Content-Length: 0||hello",
        &[400],
    ),
    (
        "twice, in two cases",
        b"GET {} HTTP/1.1|Host: h|content-length: 0|CONTENT-LENGTH: 5||hello",
        &[400],
    ),
    (
        "one byte over the limit",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 1048577||hello",
        &[413],
    ),
    (
        "40 GB",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 40000000000||hello",
        &[413],
    ),
    (
        "2^31",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 2147483648||hello",
        &[413],
    ),
    (
        "2^32 + 5",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 4294967301||hello",
        &[413],
    ),
    (
        "2^63",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 9223372036854775808||hello",
        &[413],
    ),
    (
        "2^64 - 1",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 18446744073709551615||hello",
        &[413],
    ),
    (
        "2^64",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 18446744073709551616||hello",
        &[413],
    ),
    (
        "2^64 + 5",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 18446744073709551621||hello",
        &[413],
    ),
    (
        "with more digits than any number",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 99999999999999999999999999999999999999||hello",
        &[413],
    ),
    (
        "over the limit, with a continuation asked for",
        b"POST {} HTTP/1.1|Host: h|Expect: 100-continue|Content-Length: 1048577||",
        &[413],
    ),
    (
        "under another name",
        b"GET {} HTTP/1.1|Host: h|Content_Length: 5||hello",
        &[200],
    ),
    (
        "in HTTP/1.0",
        b"GET {} HTTP/1.0|Content-Length: 5||hello",
        &[200],
    ),
    (
        "of a body that is cut off",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 6||hello",
        &[],
    ),
];

const ENCODINGS: &[CaseRow] = &[
    (
        "chunked in capitals",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: CHUNKED||0||",
        &[200],
    ),
    (
        "identity",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: identity||",
        &[501],
    ),
    (
        "gzip",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: gzip||",
        &[501],
    ),
    (
        "gzip, chunked",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: gzip, chunked||0||",
        &[501],
    ),
    (
        "chunked, gzip",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked, gzip||0||",
        &[501],
    ),
    (
        "chunked, chunked",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked, chunked||0||",
        &[501],
    ),
    (
        "chunked, identity",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked, identity||0||",
        &[501],
    ),
    (
        "xchunked",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: xchunked||0||",
        &[501],
    ),
    (
        "chunked with a parameter",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked;q=1||0||",
        &[501],
    ),
    (
        "chunked in quotes",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: \"chunked\"||0||",
        &[501],
    ),
    (
        "a comma",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: ,chunked||0||",
        &[501],
    ),
    (
        "empty",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding:||0||",
        &[501],
    ),
    (
        "twice",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked|Transfer-Encoding: chunked||0||",
        &[501],
    ),
    (
        "twice, different",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked|Transfer-Encoding: x||0||",
        &[501],
    ),
    (
        "twice, the other way",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: x|Transfer-Encoding: chunked||0||",
        &[501],
    ),
    (
        "a vertical tab",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: \x0bchunked||0||",
        &[400],
    ),
    (
        "a NUL",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked\0||0||",
        &[400],
    ),
    (
        "an octet above ASCII",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked\xff||0||",
        &[501],
    ),
    (
        "a space before the colon",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding : chunked||0||",
        &[400],
    ),
    (
        "folded",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding:| chunked||0||",
        &[400],
    ),
    (
        "behind a bare CR",
        b"GET {} HTTP/1.1|Host: h|X: y\rTransfer-Encoding: chunked||0||",
        &[400],
    ),
    (
        "behind a bare LF",
        b"GET {} HTTP/1.1|Host: h|X: y\nTransfer-Encoding: chunked||0||",
        &[400],
    ),
    (
        "in HTTP/1.0",
        b"GET {} HTTP/1.0|Host: h|Transfer-Encoding: chunked||0||",
        &[400],
    ),
    (
        "before a length",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked|Content-Length: 5||0||",
        &[400],
    ),
    (
        "behind a length",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5|Transfer-Encoding: chunked||0||",
        &[400],
    ),
    (
        "identity and a length",
        b"GET {} HTTP/1.1|Host: h|Content-Length: 5|Transfer-Encoding: identity||hello",
        &[400],
    ),
    (
        "under another name",
        b"GET {} HTTP/1.1|Host: h|Transfer_Encoding: chunked||0||",
        &[200, 400],
    ),
];

const CHUNKS: &[CaseRow] = &[
    (
        "extensions and trailers",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;a=\"b\"|hello|0;c|X: y||",
        &[200],
    ),
    (
        "leading zeros",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0005|hello|000||",
        &[200],
    ),
    (
        "a line end as data",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||2|||0||",
        &[200],
    ),
    (
        "no size",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked|||",
        &[400],
    ),
    (
        "a size that is none",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||xyz|hello|0||",
        &[400],
    ),
    (
        "a size with a sign",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||+5|hello|0||",
        &[400],
    ),
    (
        "a size below nothing",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||-5|hello|0||",
        &[400],
    ),
    (
        "a size with 0x",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0x5|hello|0||",
        &[400],
    ),
    (
        "a size behind a space",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked|| 5|hello|0||",
        &[400],
    ),
    (
        "a size before a space",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5 |hello|0||",
        &[400],
    ),
    (
        "two sizes",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5 0|hello|0||",
        &[400],
    ),
    (
        "a size with an underscore",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0_5|hello|0||",
        &[400],
    ),
    (
        "a size of 2^64 - 1",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||FFFFFFFFFFFFFFFF|hello",
        &[413],
    ),
    (
        "a size of 2^64",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||10000000000000000|hello",
        &[400],
    ),
    (
        "a size of 17 digits",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||00000000000000005|hello|0||",
        &[400],
    ),
    (
        "a size of 2^63",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||8000000000000000|hello",
        &[413],
    ),
    (
        "LF behind a size",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5\nhello|0||",
        &[400],
    ),
    (
        "CR behind a size",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5\rhello|0||",
        &[400],
    ),
    (
        "LF in an extension",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;a\nhello|0||",
        &[400],
    ),
    (
        "CR in an extension",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;a\rb|hello|0||",
        &[400],
    ),
    (
        "NUL in an extension",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;\0|hello|0||",
        &[400],
    ),
    (
        "a line end in a quoted extension",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;a=\"|\"|hello|0||",
        &[400],
    ),
    (
        "data shorter than its size",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||6|hello|0||",
        &[400],
    ),
    (
        "data longer than its size",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||4|hello|0||",
        &[400],
    ),
    (
        "LF behind data",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello\n0||",
        &[400],
    ),
    (
        "CR behind data",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello\r0||",
        &[400],
    ),
    (
        "no end",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello|",
        &[],
    ),
    (
        "no empty line behind the last",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello|0|",
        &[],
    ),
    (
        "LF behind the last",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0\n\n",
        &[400],
    ),
    (
        "LF for the empty line",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0|\n",
        &[400],
    ),
    (
        "a trailer that is none",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0|GET /smuggled HTTP/1.1||",
        &[400],
    ),
    (
        "a trailer with a space before the colon",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0|X : y||",
        &[400],
    ),
    (
        "a folded trailer",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0|X: y| z||",
        &[400],
    ),
    (
        "a trailer with NUL",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0|X: \0||",
        &[400],
    ),
    (
        "trailers that belong into the head",
        b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||0|Content-Length: 99|Host: x||",
        &[200],
    ),
];

const PAIRS: &[CaseRow] = &[
    ("two requests", b"GET {} HTTP/1.1|Host: h||GET /health HTTP/1.1|Host: h||", &[200, 200]),
    ("a body by length, and a request", b"GET {} HTTP/1.1|Host: h|Content-Length: 5||helloGET /health HTTP/1.1|Host: h||", &[200, 200]),
    ("a body in chunks, and a request", b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hello|0||GET /health HTTP/1.1|Host: h||", &[200, 200]),
    ("a request as a body by length", b"GET {} HTTP/1.1|Host: h|Content-Length: 39||GET /smuggled HTTP/1.1|Host: hhhhh||", &[200]),
    ("a request as a chunk", b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||27|GET /smuggled HTTP/1.1|Host: hhhhh|||0||", &[200]),
    ("a body longer than its length", b"GET {} HTTP/1.1|Host: h|Content-Length: 3||hello||", &[200, 400]),
    ("a malformed one behind a good one", b"GET {} HTTP/1.1|Host: h||GET {}|Host: h||", &[200, 400]),
    ("a good one behind a malformed one", b"GET {}|Host: h||GET /smuggled HTTP/1.1|Host: h||", &[400]),
    ("CL.TE", b"POST {} HTTP/1.1|Host: h|Content-Length: 44|Transfer-Encoding: chunked||0||GET /smuggled HTTP/1.1|Host: h||", &[400]),
    ("TE.CL", b"POST {} HTTP/1.1|Host: h|Transfer-Encoding: chunked|Content-Length: 4||24|GET /smuggled HTTP/1.1|Host: h||0||", &[400]),
    ("TE.TE", b"POST {} HTTP/1.1|Host: h|Transfer-Encoding: chunked|Transfer-Encoding: identity||0||GET /smuggled HTTP/1.1|Host: h||", &[501]),
    ("CL.CL", b"POST {} HTTP/1.1|Host: h|Content-Length: 0|Content-Length: 35||GET /smuggled HTTP/1.1|Host: h||", &[400]),
    ("TE hidden by a space", b"POST {} HTTP/1.1|Host: h|Content-Length: 4|Transfer-Encoding : chunked||0||GET /smuggled HTTP/1.1|Host: h||", &[400]),
    ("TE hidden by a tab", b"POST {} HTTP/1.1|Host: h|Content-Length: 4|Transfer-Encoding:\tchunked||0||GET /smuggled HTTP/1.1|Host: h||", &[400]),
    ("TE hidden by a line end", b"POST {} HTTP/1.1|Host: h|Content-Length: 4|X: y\nTransfer-Encoding: chunked||0||GET /smuggled HTTP/1.1|Host: h||", &[400]),
    ("TE.0", b"OPTIONS /health HTTP/1.1|Host: h|Transfer-Encoding: x||0||GET /smuggled HTTP/1.1|Host: h||", &[501]),
    ("a length that does not count", b"GET {} HTTP/1.1|Host: h|Content-Length: 3x||GET /smuggled HTTP/1.1|Host: h||", &[400]),
    ("a request in an extension", b"GET {} HTTP/1.1|Host: h|Transfer-Encoding: chunked||5;\nGET /smuggled HTTP/1.1|Host: h||", &[400]),
    ("a request behind a body that no length announces", b"GET /health HTTP/1.1|Host: h||xGET /smuggled HTTP/1.1|Host: h||", &[200, 404]),
    ("a request behind a close", b"GET {} HTTP/1.1|Host: h|Connection: close||GET /smuggled HTTP/1.1|Host: h||", &[200]),
    ("a request behind HTTP/1.0", b"GET {} HTTP/1.0||GET /smuggled HTTP/1.1|Host: h||", &[200]),
    ("a request behind one to keep open, in HTTP/1.0", b"GET {} HTTP/1.0|Connection: keep-alive||GET /smuggled HTTP/1.1|Host: h||", &[200, 404]),
    ("a request behind an expectation", b"GET {} HTTP/1.1|Host: h|Expect: 100-continue|Content-Length: 5||helloGET /health HTTP/1.1|Host: h||", &[200, 200]),
    ("a length that a Connection would drop", b"GET {} HTTP/1.1|Host: h|Connection: content-length|Content-Length: 38||GET /smuggled HTTP/1.1|Host: hhhh||", &[200]),
    ("HEAD and a request", b"HEAD {} HTTP/1.1|Host: h||GET /health HTTP/1.1|Host: h||", &[200, 200]),
];

/// Parts that are longer than they may be, but have an end.
fn oversized(path: &str) -> Vec<Case> {
    let long = |length: usize| "a".repeat(length);
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n");
    let chunked = format!("{request}Transfer-Encoding: chunked\r\n\r\n");
    let rows = [
        ("a method", long(9000), 414),
        ("a target", format!("GET /{} HTTP/1.1\r\n", long(9000)), 414),
        (
            "a query",
            format!("GET {path}?{} HTTP/1.1\r\n", long(9000)),
            414,
        ),
        ("a version", format!("GET {path} HTTP/{}", long(9000)), 414),
        (
            "the name of a header",
            format!("{request}{}: y\r\n\r\n", long(40_000)),
            431,
        ),
        (
            "the value of a header",
            format!("{request}X: {}\r\n\r\n", long(40_000)),
            431,
        ),
        (
            "101 headers",
            format!("{request}{}\r\n", "X: y\r\n".repeat(100)),
            431,
        ),
        (
            "a thousand headers",
            format!("{request}{}\r\n", "X: y\r\n".repeat(1000)),
            431,
        ),
        (
            "all headers together",
            request.clone() + &format!("X: {}\r\n", long(700)).repeat(50),
            431,
        ),
        (
            "an extension",
            format!("{chunked}5;{}\r\nhello\r\n0\r\n\r\n", long(1100)),
            400,
        ),
        (
            "trailers",
            format!("{chunked}0\r\n{}\r\n", "X: yyyyyyyyyyyy\r\n".repeat(1000)),
            400,
        ),
        (
            "a chunk",
            format!("{chunked}100001\r\n{}", long(0x10_0001)),
            413,
        ),
        (
            "chunks together",
            format!(
                "{chunked}{}0\r\n\r\n",
                format!("400\r\n{}\r\n", long(1024)).repeat(1025)
            ),
            413,
        ),
    ];
    rows.into_iter()
        .map(|(name, text, status)| Case {
            name: format!("too long: {name}"),
            bytes: text.into_bytes(),
            expected: vec![status],
        })
        .chain([Case {
            name: "as long as it may be: all headers".to_owned(),
            bytes: format!("{request}{}\r\n", "X: y\r\n".repeat(99)).into_bytes(),
            expected: vec![200],
        }])
        .collect()
}

/// Valid requests that are truncated.
fn cut_off(path: &str) -> Vec<Case> {
    let by_length = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
    let in_chunks = format!(
        "PUT {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nX: y\r\n\r\n"
    );
    let mut cases = Vec::new();
    for (name, whole) in [
        ("a body by length", by_length),
        ("a body in chunks", in_chunks),
    ] {
        for at in (3..whole.len()).step_by(5) {
            cases.push(Case {
                name: format!("cut off: {name}, behind {at} bytes"),
                bytes: whole.as_bytes()[..at].to_vec(),
                expected: Vec::new(),
            });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_are_many_cases_and_each_has_a_name_and_bytes_of_its_own() {
        let cases = cases("/a");

        let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
        let bytes: HashSet<_> = cases.iter().map(|case| &case.bytes).collect();
        assert_eq!((names.len(), bytes.len()), (cases.len(), cases.len()));
        assert!(cases.len() >= 150, "{}", cases.len());
    }

    #[test]
    fn a_bar_is_a_line_end_and_a_pair_of_braces_the_path() {
        let bytes = expanded(b"GET {}?a{ HTTP/1.1||", "/b");

        assert_eq!(bytes, b"GET /b?a{ HTTP/1.1\r\n\r\n");
    }
}
