//! What amiquip reads from the broker, made safe for it. It takes a property that is not UTF-8
//! for a broken frame and ends the connection, and it follows nested headers by recursion,
//! without a limit; RabbitMQ passes both on from whoever published them. Each time the message
//! is delivered again the consumer would fall over it again. So a content header is mended, in
//! its place, before amiquip sees it.

use std::io::{self, Read, Write};

use amiquip::IoStream;
use mio::net::TcpStream;
use mio::{Evented, Poll, PollOpt, Ready, Registration, Token};

use crate::inflow::{Door, Passage};

/// Type, channel and length; the payload and one byte of end mark follow.
pub(crate) const FRAME_HEAD_BYTES: usize = 7;

/// Class, weight and body length, in front of a content header's flags.
const CONTENT_HEAD_BYTES: usize = 12;

/// The frame type of a content header.
const CONTENT_HEADER: u8 = 2;

/// Tables and arrays in each other, more than anyone needs.
const DEPTH_MAX: usize = 16;

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// The broker's socket, whose content headers amiquip can read.
pub(crate) struct Legible {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Of the buffer, what amiquip has taken.
    taken: usize,
    /// Of the buffer, what amiquip may take: whole frames.
    ready: usize,
    scratch: Box<[u8]>,
    door: Door,
    /// Wakes the poll of the stream when the door opens.
    wakened: Registration,
}

impl Legible {
    pub(crate) fn new(stream: TcpStream, door: Door, wakened: Registration) -> Self {
        Self {
            stream,
            door,
            wakened,
            buffer: Vec::new(),
            taken: 0,
            ready: 0,
            scratch: vec![0; READ_BYTES].into_boxed_slice(),
        }
    }

    /// Lets through the whole frames that have arrived; false where one has to wait.
    fn advance(&mut self) -> bool {
        while let Some(length) = frame_length(&self.buffer[self.ready..]) {
            let Some(frame) = self.buffer.get_mut(self.ready..self.ready + length) else {
                break;
            };
            match self.door.judge(frame) {
                Passage::Wait => return false,
                Passage::Drop => {
                    self.buffer.drain(self.ready..self.ready + length);
                }
                Passage::Pass => {
                    if frame[0] == CONTENT_HEADER {
                        mend(&mut frame[FRAME_HEAD_BYTES..length - 1]);
                    }
                    self.ready += length;
                }
            }
        }
        true
    }
}

impl Read for Legible {
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

impl Write for Legible {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Evented for Legible {
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

impl IoStream for Legible {}

/// The length of the frame that begins there, where enough of it is there to tell.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(3..FRAME_HEAD_BYTES)?;
    Some(FRAME_HEAD_BYTES + big_endian(length) + 1)
}

pub(crate) fn big_endian(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Makes the properties of a content header ones that amiquip reads: a string that is not UTF-8
/// gets NUL for each byte that is not ASCII, and a table nested too deep is emptied.
fn mend(payload: &mut [u8]) {
    let Some((flags, mut rest)) = payload
        .get_mut(CONTENT_HEAD_BYTES..)
        .and_then(|properties| properties.split_at_mut_checked(2))
    else {
        return;
    };
    let flags = big_endian(flags);
    // In the order of their flags, from the highest bit: AMQP 0-9-1 §4.2.6.1.
    for bit in (2..16).rev().filter(|bit| flags & 1 << bit != 0) {
        let (length_bytes, length) = match bit {
            // Headers.
            13 => (4, None),
            // Delivery mode and priority.
            12 | 11 => (0, Some(1)),
            // Timestamp.
            6 => (0, Some(8)),
            _ => (1, None),
        };
        let Some((head, tail)) = rest.split_at_mut_checked(length_bytes) else {
            return;
        };
        let length = length.unwrap_or_else(|| big_endian(head));
        let Some((value, tail)) = tail.split_at_mut_checked(length) else {
            return;
        };
        match length_bytes {
            1 if std::str::from_utf8(value).is_err() => {
                for byte in value.iter_mut().filter(|byte| !byte.is_ascii()) {
                    *byte = 0;
                }
            }
            4 if depth(value, true, DEPTH_MAX).is_none() => value.fill(0),
            _ => {}
        }
        rest = tail;
    }
}

/// None where a table (with names) or an array (without) is deeper than `limit`, or no table.
fn depth(mut rest: &[u8], named: bool, limit: usize) -> Option<()> {
    let limit = limit.checked_sub(1)?;
    while !rest.is_empty() {
        if named {
            let (length, tail) = rest.split_first()?;
            rest = tail.get(usize::from(*length)..)?;
        }
        let (kind, tail) = rest.split_first()?;
        let (length_bytes, length) = match kind {
            b'V' => (0, 0),
            b't' | b'b' | b'B' => (0, 1),
            b'U' | b's' | b'u' => (0, 2),
            b'I' | b'i' | b'f' => (0, 4),
            b'D' => (0, 5),
            b'L' | b'l' | b'd' | b'T' => (0, 8),
            b'S' | b'x' | b'A' | b'F' => (4, big_endian(tail.get(..4)?)),
            _ => return None,
        };
        let value = tail.get(length_bytes..length_bytes + length)?;
        if matches!(kind, b'A' | b'F') {
            depth(value, *kind == b'F', limit)?;
        }
        rest = &tail[length_bytes + length..];
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(flags: u16, properties: &[u8]) -> Vec<u8> {
        let mut payload = vec![0; CONTENT_HEAD_BYTES];
        payload.extend_from_slice(&flags.to_be_bytes());
        payload.extend_from_slice(properties);
        mend(&mut payload);
        payload.split_off(CONTENT_HEAD_BYTES + 2)
    }

    #[test]
    fn strings_that_are_not_utf_8_are_mended_and_others_left() {
        // Content type, delivery mode, message id.
        let flags = 1 << 15 | 1 << 12 | 1 << 7;

        assert_eq!(
            mended(flags, b"\x03a\xffb\x02\x02\xc3\xbc"),
            b"\x03a\0b\x02\x02\xc3\xbc"
        );
        assert_eq!(mended(flags, b"\x01a\x02\x01\xff"), b"\x01a\x02\x01\0");
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

        assert_eq!(mended(flags, &table(DEPTH_MAX - 1)), table(DEPTH_MAX - 1));
        let deep = mended(flags, &table(10_000));
        assert!(deep.starts_with(&table(10_000)[..4]) && deep.ends_with(b"\0\0\x01m"));
        assert!(deep[4..deep.len() - 2].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_payload_cut_short_is_left_alone() {
        let whole = b"\x03abc\x02\x05m-123";
        for end in 0..whole.len() {
            assert_eq!(
                mended(1 << 15 | 1 << 12 | 1 << 7, &whole[..end]),
                &whole[..end]
            );
        }
    }
}
