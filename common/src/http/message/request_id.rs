//! The id that a request has in answers, log lines and messages.

/// The most bytes of a request id that is taken from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The client's request id if it is well-formed, else a new one.
pub(crate) fn request_id(given: Option<&[u8]>) -> String {
    match given.and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) if is_request_id(id) => id.to_owned(),
        // The id is no secret, so a fast source of randomness suffices.
        _ => uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes())
            .into_uuid()
            .to_string(),
    }
}

/// Whether an id from elsewhere may be used: it has only characters that need no quotes in a log line.
#[must_use]
pub fn is_request_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/+@".contains(&b);
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(plain)
}
