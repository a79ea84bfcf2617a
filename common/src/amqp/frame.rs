//! Frames of AMQP 0-9-1, as bytes.

/// Type, channel and length; the payload and one byte of end mark follow.
pub(super) const FRAME_HEAD_BYTES: usize = 7;

/// Frame types.
pub(super) const METHOD: u8 = 1;
pub(super) const CONTENT_HEADER: u8 = 2;
pub(super) const CONTENT_BODY: u8 = 3;

/// A number in network byte order.
pub(super) fn big_endian(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}
