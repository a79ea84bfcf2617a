//! Where a request begins and ends, by RFC 9112 and nothing looser: two readers that disagree on
//! this are how one client's bytes become another's request. Pure functions over bytes; what is
//! refused here is answered, and the connection closed, since nobody knows where the next
//! request would begin.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

use httparse::Header;

/// The most that a line of chunk extensions, and all trailer lines together, may have.
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

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) detail: Cow<'static, str>,
}

impl Refusal {
    pub(crate) fn new(status: u16, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            detail: detail.into(),
        }
    }

    fn malformed(detail: &'static str) -> Self {
        Self::new(400, detail)
    }
}

/// Looks for the end of a head in bytes that arrive piece by piece, each looked at once.
#[derive(Debug, Default, Clone)]
pub(crate) struct HeadScan {
    scanned: usize,
    line_start: usize,
    first_line_ended: bool,
}

impl HeadScan {
    /// `head` is all that has arrived of the request. Returns the length of the head, empty
    /// line included, once it is there.
    pub(crate) fn scan(
        &mut self,
        head: &[u8],
        limits: &FramingLimits,
    ) -> Result<Option<usize>, Refusal> {
        while let Some(&byte) = head.get(self.scanned) {
            let at = self.scanned;
            let after_cr = at > 0 && head[at - 1] == b'\r';
            self.scanned += 1;
            match byte {
                0 => return Err(Refusal::malformed("the head contains NUL")),
                b'\n' if !after_cr => {
                    return Err(Refusal::malformed(
                        "a line of the head ends in LF without CR",
                    ));
                }
                b'\n' if at == self.line_start + 1 && self.first_line_ended => {
                    return Ok(Some(self.scanned));
                }
                b'\n' => {
                    self.first_line_ended = true;
                    self.line_start = self.scanned;
                }
                _ if after_cr => {
                    return Err(Refusal::malformed("the head contains CR without LF"));
                }
                _ => {}
            }
            if !self.first_line_ended && self.scanned > limits.request_line_bytes {
                return Err(Refusal::new(414, "the request line is too long"));
            }
            if self.scanned > limits.head_bytes {
                return Err(Refusal::new(431, "the headers are too long"));
            }
        }
        Ok(None)
    }
}

/// How the body of a request is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// No body.
    None,
    /// `Content-Length`.
    Length(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A head that can be trusted.
#[derive(Debug)]
pub(crate) struct Head<'h, 'b> {
    pub(crate) method: &'b str,
    /// In origin-form, or the asterisk of `OPTIONS *`.
    pub(crate) target: &'b str,
    /// The host that an absolute-form target names, in place of that in `Host`.
    pub(crate) authority: Option<&'b str>,
    pub(crate) headers: &'h [Header<'b>],
    pub(crate) framing: BodyFraming,
    pub(crate) http_10: bool,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
}

impl<'b> Head<'_, 'b> {
    /// The first header of that name, in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&'b [u8]> {
        values(self.headers, name).next()
    }
}

/// Room for the headers of a head, not written before it is needed.
pub(crate) type HeaderStorage<'b> = [MaybeUninit<Header<'b>>; HEADERS_MAX];

/// Room with nothing in it.
pub(crate) const fn header_storage<'b>() -> HeaderStorage<'b> {
    [const { MaybeUninit::uninit() }; HEADERS_MAX]
}

/// A minor version of HTTP/1 that is not known counts as the highest that is (RFC 9110 §2.5).
pub(crate) fn settle_version(head: &mut [u8]) {
    let line = head.iter().position(|byte| *byte == b'\r').unwrap_or(0);
    if let Some(version) = head[..line].last_chunk_mut::<9>()
        && version.starts_with(b" HTTP/1.")
        && (b'2'..=b'9').contains(&version[8])
    {
        version[8] = b'1';
    }
}

/// Reads a complete head, as [`HeadScan`] found it.
pub(crate) fn parse_head<'h, 'b>(
    head: &'b [u8],
    storage: &'h mut HeaderStorage<'b>,
    limits: &FramingLimits,
) -> Result<Head<'h, 'b>, Refusal> {
    let (method, target, version, headers) = {
        let storage = &mut storage[..limits.headers.min(HEADERS_MAX)];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(head, storage) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Ok(_) => return Err(Refusal::malformed("the head is malformed")),
            Err(error) => return Err(refusal_of(error, head)),
        }
        let parsed = (request.method, request.path, request.version);
        let (Some(method), Some(target), Some(version)) = parsed else {
            return Err(Refusal::malformed("the request line is malformed"));
        };
        (method, target, version, request.headers)
    };
    let http_10 = version == 0;
    let (target, authority) = target_of(method, target)?;
    let host = host_of(headers, http_10)?;
    if let Some(host) = authority.or(host) {
        check_authority(host)?;
    }
    let framing = body_framing(headers, http_10, limits)?;
    let connection = || values(headers, "connection").flat_map(tokens);
    let has = |wanted: &[u8]| connection().any(|token| token.eq_ignore_ascii_case(wanted));
    Ok(Head {
        method,
        target,
        authority: authority.and_then(|authority| std::str::from_utf8(authority).ok()),
        headers,
        framing,
        http_10,
        keep_alive: !has(b"close") && (!http_10 || has(b"keep-alive")),
        expects_continue: expects_continue(headers, http_10)?,
    })
}

fn refusal_of(error: httparse::Error, head: &[u8]) -> Refusal {
    match error {
        httparse::Error::Version if names_a_version(head) => {
            Refusal::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        }
        httparse::Error::TooManyHeaders => Refusal::new(431, "there are too many headers"),
        httparse::Error::HeaderName => Refusal::malformed("the name of a header is malformed"),
        httparse::Error::HeaderValue => Refusal::malformed("the value of a header is malformed"),
        _ => Refusal::malformed("the request line is malformed"),
    }
}

/// Whether the third and last word of the request line is `HTTP/` and two digits: a version,
/// though none of ours.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    let (version, more) = (words.next().unwrap_or_default(), words.next());
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit() && more.is_none())
}

/// The target in origin-form, and the authority of an absolute-form (RFC 9112 §3.2), without the
/// characters that no URI may have and that some reader takes for its end.
fn target_of<'b>(method: &str, target: &'b str) -> Result<(&'b str, Option<&'b [u8]>), Refusal> {
    let well_formed = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>`".contains(&byte);
    if !target.bytes().all(well_formed) {
        return Err(Refusal::malformed(
            "the request target has characters that must be percent-encoded",
        ));
    }
    if target.starts_with('/') || target == "*" && method == "OPTIONS" {
        return Ok((target, None));
    }
    let scheme = target.find("://").map(|end| &target[..end]);
    let known = |scheme: &str| {
        ["http", "https"]
            .iter()
            .any(|s| s.eq_ignore_ascii_case(scheme))
    };
    let Some(scheme) = scheme.filter(|scheme| known(scheme)) else {
        return Err(Refusal::malformed(
            "the request target must begin with a slash",
        ));
    };
    let rest = &target[scheme.len() + 3..];
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.is_empty() {
        return Err(Refusal::malformed("the request target names no host"));
    }
    match path {
        // A URI without a path names the root (RFC 9110 §4.2.3).
        "" if method == "OPTIONS" => Ok(("*", Some(authority.as_bytes()))),
        "" => Ok(("/", Some(authority.as_bytes()))),
        path if path.starts_with('/') => Ok((path, Some(authority.as_bytes()))),
        _ => Err(Refusal::malformed(
            "the request target has a query without a path",
        )),
    }
}

/// One Host in HTTP/1.1, at most one in HTTP/1.0 (RFC 9112 §3.2).
fn host_of<'b>(headers: &[Header<'b>], http_10: bool) -> Result<Option<&'b [u8]>, Refusal> {
    let mut hosts = values(headers, "host");
    match (hosts.next(), hosts.next()) {
        (None, _) if http_10 => Ok(None),
        (Some(host), None) => {
            // An empty one is allowed where the target has no authority.
            if !host.is_empty() {
                check_authority(host)?;
            }
            Ok(Some(host).filter(|host| !host.is_empty()))
        }
        _ => Err(Refusal::malformed("there must be exactly one Host header")),
    }
}

/// `uri-host [ ":" port ]` of RFC 9110 §7.2 and RFC 3986 §3.2.
fn check_authority(authority: &[u8]) -> Result<(), Refusal> {
    let malformed = || Refusal::malformed("Host is malformed");
    let text = std::str::from_utf8(authority).map_err(|_| malformed())?;
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let future = address.starts_with(['v', 'V']) && address.contains('.');
            let known = address.parse::<Ipv6Addr>().is_ok();
            if !(known || future && is_reg_name(&address.replace(':', ""))) {
                return Err(malformed());
            }
            ("ip", port)
        }
        None => text
            .find(':')
            .map_or((text, ""), |colon| text.split_at(colon)),
    };
    let port_is_digits = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => port.is_empty(),
    };
    if port_is_digits && !host.is_empty() && is_reg_name(host) {
        Ok(())
    } else {
        Err(malformed())
    }
}

/// Unreserved characters, sub-delims, and octets that are percent-encoded.
fn is_reg_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        let well_formed = match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit())),
            byte => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte),
        };
        if !well_formed {
            return false;
        }
    }
    true
}

/// RFC 9112 §6: one length of digits, or `chunked` and nothing else, never both.
fn body_framing(
    headers: &[Header<'_>],
    http_10: bool,
    limits: &FramingLimits,
) -> Result<BodyFraming, Refusal> {
    let mut lengths = values(headers, "content-length");
    let mut encodings = values(headers, "transfer-encoding");
    match (lengths.next(), encodings.next()) {
        (None, None) => Ok(BodyFraming::None),
        (Some(_), Some(_)) => Err(Refusal::malformed(
            "Content-Length and Transfer-Encoding exclude each other",
        )),
        (Some(length), None) => {
            if lengths.next().is_some() {
                return Err(Refusal::malformed("there must be one Content-Length"));
            }
            content_length(length, limits)
        }
        (None, Some(_)) if http_10 => Err(Refusal::malformed("HTTP/1.0 has no Transfer-Encoding")),
        (None, Some(encoding)) => {
            if encodings.next().is_some() || !encoding.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::new(
                    501,
                    "the only Transfer-Encoding known here is chunked",
                ));
            }
            Ok(BodyFraming::Chunked)
        }
    }
}

fn content_length(value: &[u8], limits: &FramingLimits) -> Result<BodyFraming, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::malformed("Content-Length must be a number"));
    }
    // A number that does not fit is over every limit.
    let length = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse::<usize>().ok());
    match length {
        Some(length) if length <= limits.body_bytes => Ok(BodyFraming::Length(length)),
        _ => Err(too_large(limits.body_bytes)),
    }
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(413, format!("a body may have at most {limit} bytes"))
}

/// RFC 9110 §10.1.1: in HTTP/1.0 the header is ignored.
fn expects_continue(headers: &[Header<'_>], http_10: bool) -> Result<bool, Refusal> {
    let mut expected = false;
    for value in values(headers, "expect") {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Refusal::new(
                417,
                "the only expectation known here is 100-continue",
            ));
        }
        expected = true;
    }
    Ok(expected && !http_10)
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
#[derive(Debug, Clone)]
pub(crate) struct Chunked {
    state: ChunkState,
    /// Bytes of data in the chunk at hand that are still to come.
    remaining: usize,
    /// Bytes of the line at hand, or of all trailer lines.
    line_bytes: usize,
    /// Bytes of data that have come.
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
    DataCr,
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
    /// A chunk that is too large is refused when its size is here.
    pub(crate) fn read(
        &mut self,
        input: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> Result<usize, Refusal> {
        use ChunkState::{
            Data, DataCr, DataLf, Done, EndLf, Extension, Size, SizeLf, SizeSpace, SizeStart,
            Trailer, TrailerLf, TrailerName, TrailerStart,
        };
        let mut at = 0;
        while at < input.len() && self.state != Done {
            if self.state == Data {
                let data = &input[at..];
                let data = &data[..data.len().min(self.remaining)];
                take(data);
                at += data.len();
                self.body_bytes += data.len();
                self.remaining -= data.len();
                if self.remaining == 0 {
                    self.state = DataCr;
                }
                continue;
            }
            let byte = input[at];
            at += 1;
            self.state = match (self.state, byte) {
                (SizeStart | Size, digit) if digit.is_ascii_hexdigit() => {
                    self.push_size_digit(digit)?;
                    Size
                }
                (Size | SizeSpace, b' ' | b'\t') => {
                    self.count(CHUNK_LINE_BYTES_MAX, "a chunk extension is too long")?;
                    SizeSpace
                }
                (Size | SizeSpace, b';') | (Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                    self.count(CHUNK_LINE_BYTES_MAX, "a chunk extension is too long")?;
                    Extension
                }
                (Size | Extension, b'\r') => SizeLf,
                (SizeLf, b'\n') => {
                    self.line_bytes = 0;
                    if self.remaining > self.body_bytes_max - self.body_bytes {
                        return Err(too_large(self.body_bytes_max));
                    }
                    if self.remaining == 0 {
                        TrailerStart
                    } else {
                        Data
                    }
                }
                (DataCr, b'\r') => DataLf,
                (DataLf, b'\n') => SizeStart,
                (TrailerStart, b'\r') => EndLf,
                (TrailerStart | TrailerName, byte) if is_token_byte(byte) => {
                    self.count(TRAILER_BYTES_MAX, "the trailers are too long")?;
                    TrailerName
                }
                (TrailerName, b':') | (Trailer, b'\t' | b' '..=b'~' | 0x80..) => {
                    self.count(TRAILER_BYTES_MAX, "the trailers are too long")?;
                    Trailer
                }
                (Trailer, b'\r') => TrailerLf,
                (TrailerLf, b'\n') => TrailerStart,
                (EndLf, b'\n') => Done,
                _ => return Err(Refusal::malformed("the chunked body is malformed")),
            };
        }
        Ok(at)
    }

    fn push_size_digit(&mut self, digit: u8) -> Result<(), Refusal> {
        let digit = (digit as char).to_digit(16).unwrap_or_default() as usize;
        self.count(16, "a chunk size has too many digits")?;
        self.remaining = self
            .remaining
            .checked_mul(16)
            .and_then(|size| size.checked_add(digit))
            .ok_or(Refusal::malformed("a chunk size is too large"))?;
        Ok(())
    }

    fn count(&mut self, limit: usize, detail: &'static str) -> Result<(), Refusal> {
        self.line_bytes += 1;
        if self.line_bytes > limit {
            Err(Refusal::malformed(detail))
        } else {
            Ok(())
        }
    }
}

/// What a token is made of (RFC 9110 §5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
