//! Sanitizes the frames of the broker before amiquip reads them. amiquip ends the connection at a text that is not
//! UTF-8, and reads nested headers by recursion without a limit. RabbitMQ passes both on from any publisher: in
//! properties, in header values, and in the exchange and routing key of the method before a message. Each
//! redelivery of such a message would end the consumer's connection again. A frame is therefore sanitized in place:
//! in a text that is not UTF-8, each byte that is not ASCII becomes NUL, by which the consumer recognizes it, since
//! no order has a NUL.

use std::io::{self, Read, Write};

use amiquip::IoStream;
use mio::{Evented, Poll, PollOpt, Ready, Registration, Token};

use super::frame::{CONTENT_HEADER, FRAME_HEAD_BYTES, METHOD, big_endian};
use super::inbound_limit::{FrameAction, FrameFilter};

/// The size of class, weight and body length, which precede the flags of a content header.
const CONTENT_HEAD_BYTES: usize = 12;

/// The class and method of each method with short strings that the broker sends, and how many bytes are between
/// each string and the one before it (AMQP 0-9-1 §1, and RabbitMQ's extension `connection.blocked`). Other methods
/// have no short strings, except those of the handshake, whose texts only the broker writes.
const SHORT_STRINGS: &[([u8; 4], &[usize])] = &[
    // connection.close and connection.blocked: a reply text, a reason.
    ([0, 10, 0, 50], &[2]),
    ([0, 10, 0, 60], &[0]),
    // channel.close: a reply text, which quotes names and arguments.
    ([0, 20, 0, 40], &[2]),
    // queue.declare-ok: the queue.
    ([0, 50, 0, 11], &[0]),
    // basic.consume-ok, basic.cancel and basic.cancel-ok: the consumer tag.
    ([0, 60, 0, 21], &[0]),
    ([0, 60, 0, 30], &[0]),
    ([0, 60, 0, 31], &[0]),
    // basic.return: reply text, exchange, routing key.
    ([0, 60, 0, 50], &[2, 0, 0]),
    // basic.deliver: consumer tag; delivery tag, redelivered, exchange; routing key.
    ([0, 60, 0, 60], &[0, 9, 0]),
    // basic.get-ok: delivery tag, redelivered, exchange; routing key.
    ([0, 60, 0, 71], &[9, 0]),
    // basic.get-empty: a reserved string.
    ([0, 60, 0, 72], &[0]),
];

/// The greatest depth of nested tables and arrays.
const DEPTH_MAX: usize = 16;

/// How many bytes one call reads.
const READ_BYTES: usize = 64 * 1024;

/// The broker's socket, or TLS on it, whose frames amiquip can read.
pub(super) struct SanitizingStream {
    stream: Box<dyn IoStream>,
    buffer: Vec<u8>,
    /// How many bytes of the buffer amiquip has read.
    taken: usize,
    /// How many bytes of the buffer amiquip may read, which are whole frames.
    ready: usize,
    scratch: Box<[u8]>,
    filter: FrameFilter,
    /// Wakes the poll of the stream when a delivery that has to wait may pass.
    wakened: Registration,
}

impl SanitizingStream {
    pub(super) fn new(
        stream: Box<dyn IoStream>,
        filter: FrameFilter,
        wakened: Registration,
    ) -> Self {
        Self {
            stream,
            filter,
            wakened,
            buffer: Vec::new(),
            taken: 0,
            ready: 0,
            scratch: vec![0; READ_BYTES].into_boxed_slice(),
        }
    }

    /// Passes on the whole frames that have arrived; false if one has to wait.
    fn advance(&mut self) -> bool {
        while let Some(length) = frame_length(&self.buffer[self.ready..]) {
            let Some(frame) = self.buffer.get_mut(self.ready..self.ready + length) else {
                break;
            };
            match self.filter.decide(frame) {
                FrameAction::Wait => return false,
                FrameAction::Drop => {
                    self.buffer.drain(self.ready..self.ready + length);
                }
                FrameAction::Pass => {
                    let kind = frame[0];
                    let payload = &mut frame[FRAME_HEAD_BYTES..length - 1];
                    match kind {
                        METHOD => sanitize_method(payload),
                        CONTENT_HEADER => sanitize_content_header(payload),
                        _ => {}
                    }
                    self.ready += length;
                }
            }
        }
        true
    }
}

impl Read for SanitizingStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready {
            self.buffer.drain(..self.taken);
            (self.taken, self.ready) = (0, 0);
            let all_in = self.advance();
            if self.ready > 0 {
                break;
            }
            if !all_in {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let read = self.stream.read(&mut self.scratch)?;
            if read == 0 {
                return Ok(0);
            }
            self.buffer.extend_from_slice(&self.scratch[..read]);
        }
        let length = out.len().min(self.ready - self.taken);
        out[..length].copy_from_slice(&self.buffer[self.taken..self.taken + length]);
        self.taken += length;
        Ok(length)
    }
}

impl Write for SanitizingStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Evented for SanitizingStream {
    fn register(&self, poll: &Poll, token: Token, ready: Ready, opt: PollOpt) -> io::Result<()> {
        self.wakened
            .register(poll, token, Ready::readable(), PollOpt::edge())?;
        self.stream.register(poll, token, ready, opt)
    }

    fn reregister(&self, poll: &Poll, token: Token, ready: Ready, opt: PollOpt) -> io::Result<()> {
        self.stream.reregister(poll, token, ready, opt)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        Evented::deregister(&self.wakened, poll)?;
        self.stream.deregister(poll)
    }
}

impl IoStream for SanitizingStream {}

/// The length of the frame that begins at the first byte; None if too few bytes of it have arrived.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(3..FRAME_HEAD_BYTES)?;
    Some(FRAME_HEAD_BYTES + big_endian(length) + 1)
}

/// Sanitizes the short strings of a method.
fn sanitize_method(payload: &mut [u8]) {
    let Some((method, mut rest)) = payload.split_at_mut_checked(4) else {
        return;
    };
    let listed = SHORT_STRINGS.iter().find(|(listed, _)| listed == method);
    for before in listed.map_or(&[][..], |(_, gaps)| gaps) {
        let Some((text, tail)) = rest.get_mut(*before..).and_then(|text| counted(text, 1)) else {
            return;
        };
        sanitize_text(text);
        rest = tail;
    }
}

/// Sanitizes the properties of a content header; headers that are malformed or nested too deep are zeroed.
fn sanitize_content_header(payload: &mut [u8]) {
    let Some((flags, mut rest)) = payload
        .get_mut(CONTENT_HEAD_BYTES..)
        .and_then(|properties| properties.split_at_mut_checked(2))
    else {
        return;
    };
    let flags = big_endian(flags);
    // Properties have the order of their flags, from the highest bit (AMQP 0-9-1 §4.2.6.1).
    for bit in (2..16).rev().filter(|bit| flags & 1 << bit != 0) {
        let value = match bit {
            // Headers.
            13 => counted(rest, 4),
            // Delivery mode and priority.
            12 | 11 => rest.split_at_mut_checked(1),
            // Timestamp.
            6 => rest.split_at_mut_checked(8),
            _ => counted(rest, 1),
        };
        let Some((value, tail)) = value else { return };
        match bit {
            13 => {
                if sanitize_table(value, true, DEPTH_MAX).is_none() {
                    value.fill(0);
                }
            }
            12 | 11 | 6 => {}
            _ => sanitize_text(value),
        }
        rest = tail;
    }
}

/// The bytes after a length of `length_bytes` bytes that counts them, and the bytes after those.
fn counted(bytes: &mut [u8], length_bytes: usize) -> Option<(&mut [u8], &mut [u8])> {
    let (length, rest) = bytes.split_at_mut_checked(length_bytes)?;
    rest.split_at_mut_checked(big_endian(length))
}

fn sanitize_text(text: &mut [u8]) {
    if std::str::from_utf8(text).is_err() {
        for byte in text.iter_mut().filter(|byte| !byte.is_ascii()) {
            *byte = 0;
        }
    }
}

/// Sanitizes the texts of a table (with names) or of an array (without); None if it is malformed or deeper than
/// `limit`.
fn sanitize_table(mut rest: &mut [u8], named: bool, limit: usize) -> Option<()> {
    let limit = limit.checked_sub(1)?;
    while !rest.is_empty() {
        if named {
            let (name, tail) = counted(rest, 1)?;
            sanitize_text(name);
            rest = tail;
        }
        let (kind, tail) = rest.split_first_mut()?;
        let (value, tail) = match *kind {
            b'V' => tail.split_at_mut_checked(0),
            b't' | b'b' | b'B' => tail.split_at_mut_checked(1),
            b'U' | b's' | b'u' => tail.split_at_mut_checked(2),
            b'I' | b'i' | b'f' => tail.split_at_mut_checked(4),
            b'D' => tail.split_at_mut_checked(5),
            b'L' | b'l' | b'd' | b'T' => tail.split_at_mut_checked(8),
            b'S' | b'x' | b'A' | b'F' => counted(tail, 4),
            _ => None,
        }?;
        match *kind {
            b'S' => sanitize_text(value),
            b'A' => sanitize_table(value, false, limit)?,
            b'F' => sanitize_table(value, true, limit)?,
            _ => {}
        }
        rest = tail;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sanitized(flags: u16, properties: &[u8]) -> Vec<u8> {
        let mut payload = vec![0; CONTENT_HEAD_BYTES];
        payload.extend_from_slice(&flags.to_be_bytes());
        payload.extend_from_slice(properties);
        sanitize_content_header(&mut payload);
        payload.split_off(CONTENT_HEAD_BYTES + 2)
    }

    #[test]
    fn strings_that_are_not_utf_8_are_sanitized_and_others_left() {
        // Content type, delivery mode, message id.
        let flags = 1 << 15 | 1 << 12 | 1 << 7;

        assert_eq!(
            sanitized(flags, b"\x03a\xffb\x02\x02\xc3\xbc"),
            b"\x03a\0b\x02\x02\xc3\xbc"
        );
        assert_eq!(sanitized(flags, b"\x01a\x02\x01\xff"), b"\x01a\x02\x01\0");
    }

    #[test]
    fn headers_nested_too_deep_are_emptied_and_others_left() {
        let nested = |levels: usize| {
            (0..levels).fold(Vec::new(), |inner: Vec<u8>, _| {
                let length = u32::try_from(inner.len())
                    .expect("a short one")
                    .to_be_bytes();
                [b"A", &length[..], &inner].concat()
            })
        };
        let table = |levels| {
            let entry = [b"\x01h", &nested(levels)[..]].concat();
            let length = u32::try_from(entry.len())
                .expect("a short one")
                .to_be_bytes();
            [&length[..], &entry, b"\x01m"].concat()
        };
        let flags = 1 << 13 | 1 << 7;

        assert_eq!(
            sanitized(flags, &table(DEPTH_MAX - 1)),
            table(DEPTH_MAX - 1)
        );
        let deep = sanitized(flags, &table(10_000));
        assert!(deep.starts_with(&table(10_000)[..4]) && deep.ends_with(b"\0\0\x01m"));
        assert!(deep[4..deep.len() - 2].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn texts_in_headers_that_are_not_utf_8_are_sanitized_and_the_headers_behind_them_kept() {
        let table = |name: &[u8], text: &[u8]| {
            let entry = [name, b"S\0\0\0\x02", text, b"\x01ct\x01"].concat();
            [&[0, 0, 0, 13], &entry[..]].concat()
        };

        assert_eq!(
            sanitized(1 << 13, &table(b"\x01\xe9", b"a\xff")),
            table(b"\x01\0", b"a\0")
        );
        let whole = table(b"\x01n", "ü".as_bytes());
        assert_eq!(sanitized(1 << 13, &whole), whole);
    }

    #[test]
    fn the_exchange_and_the_routing_key_of_every_method_with_a_message_are_sanitized() {
        let sanitized = |payload: &[u8]| {
            let mut payload = payload.to_vec();
            sanitize_method(&mut payload);
            payload
        };
        // Numbers before and after the texts do not change.
        let deliver =
            |tag: &[u8], texts: &[u8]| [&[0, 60, 0, 60][..], tag, &[0xff; 8], &[1], texts].concat();
        let returned = |texts: &[u8]| [&[0, 60, 0, 50, 1, 0xc8][..], texts].concat();
        let got = |texts: &[u8]| {
            [
                &[0, 60, 0, 71][..],
                &[0xff; 8],
                &[1],
                texts,
                &[0, 0, 0, 0xff],
            ]
            .concat()
        };

        assert_eq!(
            sanitized(&deliver(b"\x02c\xe9", b"\x01\xff\x03k\xe9y")),
            deliver(b"\x02c\0", b"\x01\0\x03k\0y")
        );
        assert_eq!(
            sanitized(&returned(b"\x02no\x01\xff\x01\xff")),
            returned(b"\x02no\x01\0\x01\0")
        );
        assert_eq!(sanitized(&got(b"\0\x01\xff")), got(b"\0\x01\0"));
        let whole = deliver(b"\x01c", "\u{2}ü\u{2}é".as_bytes());
        assert_eq!(sanitized(&whole), whole);
        for end in 0..whole.len() {
            assert_eq!(sanitized(&whole[..end]), &whole[..end]);
        }
    }

    #[test]
    fn a_payload_cut_short_is_left_alone() {
        let whole = b"\x03abc\x02\x05m-123";
        for end in 0..whole.len() {
            assert_eq!(
                sanitized(1 << 15 | 1 << 12 | 1 << 7, &whole[..end]),
                &whole[..end]
            );
        }
    }
}
