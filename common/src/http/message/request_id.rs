//! The id that a request has in answers, log lines and messages.

/// The most that a request id taken from a client may have.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The client's request id where it is well-formed, else one made here.
pub(crate) fn request_id(given: Option<&[u8]>) -> String {
    match given.and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) if is_request_id(id) => id.to_owned(),
        // It keeps no secret, so the system need not be asked for its randomness.
        _ => uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes())
            .into_uuid()
            .to_string(),
    }
}

/// Whether an id from elsewhere is taken: only characters that stand unquoted in a log line are.
#[must_use]
pub fn is_request_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/+@".contains(&b);
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(plain)
}
