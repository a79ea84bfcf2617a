//! Where a request begins and ends, strictly by RFC 9112: if two readers disagree on this, one client's bytes
//! become another's request. These are pure functions over bytes. After a refusal the connection is closed,
//! since nobody knows where the next request would begin.

use std::net::Ipv6Addr;

use httparse::Header;

use super::problem::Problem;

/// The most bytes of a line with a chunk's size and extensions, and of all trailer lines together.
const CHUNK_LINE_BYTES_MAX: usize = 1024;
const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// The most headers that can be allowed.
pub(crate) const HEADERS_MAX: usize = 128;

/// How large the parts of a request may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FramingLimits {
    pub(crate) request_line_bytes: usize,
    pub(crate) head_bytes: usize,
    pub(crate) headers: usize,
    pub(crate) body_bytes: usize,
}

/// The answer to a malformed request.
pub(super) fn malformed<T>(detail: &'static str) -> Result<T, Problem> {
    Err(Problem::bad_request(detail))
}

/// Finds the end of a head in bytes that arrive piece by piece; it looks at each byte once.
#[derive(Debug, Default, Clone)]
pub(crate) struct HeadScan {
    scanned: usize,
    first_line_ended: bool,
}

impl HeadScan {
    /// `head` is all that has arrived of the request. Returns the length of the head, with its empty line, when
    /// all of it has arrived.
    pub(crate) fn scan(
        &mut self,
        head: &[u8],
        limits: &FramingLimits,
    ) -> Result<Option<usize>, Problem> {
        while let Some(&byte) = head.get(self.scanned) {
            let after_cr = head[..self.scanned].ends_with(b"\r");
            self.scanned += 1;
            match byte {
                0 => return malformed("the head contains NUL"),
                b'\n' if !after_cr => return malformed("a line of the head ends in LF without CR"),
                b'\n' if head[..self.scanned].ends_with(b"\r\n\r\n") => {
                    return Ok(Some(self.scanned));
                }
                b'\n' => self.first_line_ended = true,
                _ if after_cr => return malformed("the head contains CR without LF"),
                _ => {}
            }
            if !self.first_line_ended && self.scanned > limits.request_line_bytes {
                return Err(Problem::new(414, "the request line is too long"));
            }
            if self.scanned > limits.head_bytes {
                return Err(Problem::new(431, "the headers are too long"));
            }
        }
        Ok(None)
    }
}

/// How the body of a request is delimited, and what of it is still to come.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum BodyFraming {
    /// No body.
    None,
    /// `Content-Length`, less what was read.
    Length(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked(Chunked),
}

impl BodyFraming {
    /// Reads from `input` and hands data to `take`; returns how many bytes belong to the body, and whether
    /// the body ends there.
    pub(crate) fn read(
        &mut self,
        input: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> Result<(usize, bool), Problem> {
        match self {
            Self::None => Ok((0, true)),
            Self::Length(left) => {
                let used = input.len().min(*left);
                take(&input[..used]);
                *left -= used;
                Ok((used, *left == 0))
            }
            Self::Chunked(chunked) => Ok((chunked.read(input, take)?, chunked.is_done())),
        }
    }
}

/// Replaces a minor version of HTTP/1 that is not known by the highest one that is (RFC 9110 §2.5).
pub(crate) fn settle_version(head: &mut [u8]) {
    let line = head.iter().position(|byte| *byte == b'\r').unwrap_or(0);
    if let Some(version) = head[..line].last_chunk_mut::<9>()
        && version.starts_with(b" HTTP/1.")
        && (b'2'..=b'9').contains(&version[8])
    {
        version[8] = b'1';
    }
}

/// The answer to a head that httparse refuses.
pub(super) fn problem_of(error: httparse::Error, head: &[u8]) -> Problem {
    Problem::bad_request(match error {
        httparse::Error::Version if names_a_version(head) => {
            return Problem::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
        }
        httparse::Error::TooManyHeaders => return Problem::new(431, "there are too many headers"),
        httparse::Error::HeaderName => "the name of a header is malformed",
        httparse::Error::HeaderValue => "the value of a header is malformed",
        _ => "the request line is malformed",
    })
}

/// Whether the third and last word of the request line is a well-formed version of HTTP.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    matches!(words[..], [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]]
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// The target in origin-form, and the authority of an absolute-form (RFC 9112 §3.2). Characters that no URI may
/// have are refused: some readers take them for its end.
pub(super) fn target_of<'b>(
    method: &str,
    target: &'b str,
) -> Result<(&'b str, Option<&'b str>), Problem> {
    let may_stand = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>`".contains(&byte);
    if !target.bytes().all(may_stand) {
        return malformed("the request target has characters that must be percent-encoded");
    }
    if target.starts_with('/') || target == "*" && method == "OPTIONS" {
        return Ok((target, None));
    }
    let (scheme, rest) = target.split_once("://").unwrap_or_default();
    if !["http", "https"].contains(&&*scheme.to_ascii_lowercase()) {
        return malformed("the request target must begin with a slash");
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = match path {
        _ if authority.is_empty() => return malformed("the request target names no host"),
        // A URI without a path names the root (RFC 9110 §4.2.3).
        "" if method == "OPTIONS" => "*",
        "" => "/",
        path if path.starts_with('/') => path,
        _ => return malformed("the request target has a query without a path"),
    };
    Ok((path, Some(authority)))
}

/// Checks that there is one Host in HTTP/1.1, and at most one in HTTP/1.0 (RFC 9112 §3.2), which may be empty,
/// and that the authority of an absolute-form target follows the grammar of Host.
pub(super) fn check_hosts(
    headers: &[Header<'_>],
    authority: Option<&str>,
    http_10: bool,
) -> Result<(), Problem> {
    let mut hosts = values(headers, "host");
    let is_well_formed = match (hosts.next(), hosts.next()) {
        (None, _) if http_10 => true,
        (Some(host), None) => host.is_empty() || std::str::from_utf8(host).is_ok_and(is_authority),
        _ => return malformed("there must be exactly one Host header"),
    };
    if is_well_formed && authority.is_none_or(is_authority) {
        return Ok(());
    }
    malformed("Host is malformed")
}

/// Whether the text is `uri-host [ ":" port ]` of RFC 9110 §7.2 and RFC 3986 §3.2.
fn is_authority(text: &str) -> bool {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (is_host, port) = if let Some((address, port)) = bracketed {
        let is_future = address.starts_with(['v', 'V'])
            && address.contains('.')
            && is_reg_name(&address.replace(':', ""));
        (is_future || address.parse::<Ipv6Addr>().is_ok(), port)
    } else {
        let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        (!name.is_empty() && is_reg_name(name), port)
    };
    let is_number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_number))
}

/// Whether the text has only unreserved characters, sub-delims, and percent-encoded octets.
fn is_reg_name(name: &str) -> bool {
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"%-._~!$&'()*+,;=".contains(&byte);
    let is_encoded = |octet: &str| octet.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    name.bytes().all(may_stand) && name.split('%').skip(1).all(is_encoded)
}

/// The framing of the body (RFC 9112 §6): one length in digits, or `chunked` and nothing else, never both.
pub(super) fn body_framing(
    headers: &[Header<'_>],
    http_10: bool,
    limits: &FramingLimits,
) -> Result<BodyFraming, Problem> {
    let mut lengths = values(headers, "content-length");
    let mut encodings = values(headers, "transfer-encoding");
    match (lengths.next(), encodings.next()) {
        (None, None) => Ok(BodyFraming::None),
        (Some(_), Some(_)) => malformed("Content-Length and Transfer-Encoding exclude each other"),
        (Some(_), None) if lengths.next().is_some() => {
            malformed("there must be one Content-Length")
        }
        (Some(length), None) => content_length(length, limits),
        (None, Some(_)) if http_10 => malformed("HTTP/1.0 has no Transfer-Encoding"),
        (None, Some(encoding)) => {
            let is_chunked =
                encoding.eq_ignore_ascii_case(b"chunked") && encodings.next().is_none();
            let unknown = || Problem::new(501, "the only Transfer-Encoding known here is chunked");
            let chunked = || BodyFraming::Chunked(Chunked::new(limits));
            is_chunked.then(chunked).ok_or_else(unknown)
        }
    }
}

fn content_length(value: &[u8], limits: &FramingLimits) -> Result<BodyFraming, Problem> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return malformed("Content-Length must be a number");
    }
    // A number that does not fit into `usize` exceeds every limit.
    let length = String::from_utf8_lossy(value).parse().unwrap_or(usize::MAX);
    if length > limits.body_bytes {
        return Err(Problem::content_too_large(limits.body_bytes));
    }
    Ok(BodyFraming::Length(length))
}

/// The values of all headers of that name, in any case.
pub(crate) fn values<'h, 'b>(
    headers: &'h [Header<'b>],
    name: &'h str,
) -> impl Iterator<Item = &'b [u8]> + 'h {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value)
}

/// The elements of a comma-separated list.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Reads a chunked body (RFC 9112 §7.1) from bytes that arrive piece by piece.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunked {
    state: ChunkState,
    /// Bytes of data of the current chunk that are still to come.
    remaining: usize,
    /// Bytes of the current line, or of all trailer lines.
    line_bytes: usize,
    /// Bytes of data in all chunks so far.
    body_bytes: usize,
    body_bytes_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ChunkState {
    SizeStart,
    Size,
    /// White space between the size and the semicolon of an extension.
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataLf,
    TrailerStart,
    TrailerName,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

impl Chunked {
    pub(crate) fn new(limits: &FramingLimits) -> Self {
        Self {
            state: ChunkState::SizeStart,
            remaining: 0,
            line_bytes: 0,
            body_bytes: 0,
            body_bytes_max: limits.body_bytes,
        }
    }

    /// Whether the last chunk and the trailers have been read.
    pub(crate) fn is_done(&self) -> bool {
        self.state == ChunkState::Done
    }

    /// Reads from `input`, hands data to `take`, and returns how many bytes belong to the body.
    /// A chunk that is too large is refused when its size has arrived.
    pub(crate) fn read(
        &mut self,
        input: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> Result<usize, Problem> {
        use ChunkState::{
            Data, DataLf, Done, EndLf, Extension, Size, SizeLf, SizeSpace, SizeStart, Trailer,
            TrailerLf, TrailerName, TrailerStart,
        };
        let mut at = 0;
        while at < input.len() && self.state != Done {
            if self.state == Data && self.remaining > 0 {
                let data = &input[at..];
                let data = &data[..data.len().min(self.remaining)];
                take(data);
                self.remaining -= data.len();
                at += data.len();
                continue;
            }
            self.state = match (self.state, input[at]) {
                (SizeStart | Size, digit) if digit.is_ascii_hexdigit() => {
                    let digit = char::from(digit).to_digit(16).unwrap_or_default() as usize;
                    self.remaining = self.remaining.saturating_mul(16).saturating_add(digit);
                    Size
                }
                (Size | SizeSpace, b' ' | b'\t') => SizeSpace,
                (Size | SizeSpace, b';') | (Extension, b'\t' | b' '..=b'~' | 0x80..) => Extension,
                (Size | Extension, b'\r') => SizeLf,
                (SizeLf, b'\n') => {
                    self.line_bytes = 0;
                    self.body_bytes = self.body_bytes.saturating_add(self.remaining);
                    if self.body_bytes > self.body_bytes_max {
                        return Err(Problem::content_too_large(self.body_bytes_max));
                    }
                    if self.remaining == 0 {
                        TrailerStart
                    } else {
                        Data
                    }
                }
                (Data, b'\r') => DataLf,
                (DataLf, b'\n') => SizeStart,
                (TrailerStart, b'\r') => EndLf,
                (TrailerStart | TrailerName, byte) if is_token_byte(byte) => TrailerName,
                (TrailerName, b':') | (Trailer, b'\t' | b' '..=b'~' | 0x80..) => Trailer,
                (Trailer, b'\r') => TrailerLf,
                (TrailerLf, b'\n') => TrailerStart,
                (EndLf, b'\n') => Done,
                _ => return malformed("the chunked body is malformed"),
            };
            at += 1;
            let (limit, detail) = match self.state {
                Size => (16, "a chunk size has too many digits"),
                SizeSpace | Extension => (CHUNK_LINE_BYTES_MAX, "a chunk extension is too long"),
                TrailerName | Trailer => (TRAILER_BYTES_MAX, "the trailers are too long"),
                _ => continue,
            };
            self.line_bytes += 1;
            if self.line_bytes > limit {
                return malformed(detail);
            }
        }
        Ok(at)
    }
}

/// Whether a byte may be in a token (RFC 9110 §5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
