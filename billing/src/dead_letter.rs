//! A dead letter as operators read it.

use base64_of_postgres::Engine as _;
use base64_of_postgres::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// A row of `dead_letters` without its message.
#[derive(Debug, Serialize)]
pub(crate) struct DeadLetter {
    pub(crate) id: i64,
    pub(crate) message_id: Option<String>,
    pub(crate) request_id: Option<String>,
    /// One word.
    pub(crate) reason: String,
    pub(crate) detail: String,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// The length of the body as it was sent.
    pub(crate) body_bytes: i64,
    /// Whether only the start of the body is kept.
    pub(crate) cut: bool,
    /// RFC 3339, UTC.
    pub(crate) received_at: String,
    #[serde(skip)]
    pub(crate) age_seconds: i64,
    /// The start of the body, for one line of a list.
    #[serde(skip)]
    pub(crate) start: Vec<u8>,
}

/// A dead letter with its message.
#[derive(Debug, Serialize)]
pub(crate) struct WholeDeadLetter {
    #[serde(flatten)]
    pub(crate) letter: DeadLetter,
    /// The AMQP properties, each header with its type.
    pub(crate) properties: Box<RawValue>,
    /// A text as it is, anything else as `{"base64": …}`.
    #[serde(serialize_with = "text_or_base64")]
    pub(crate) body: Vec<u8>,
}

/// The number of dead letters, and their size.
#[derive(Debug, Serialize)]
pub(crate) struct DeadLetterCounts {
    pub(crate) count: i64,
    /// On disk, with the indexes of the table.
    pub(crate) bytes: i64,
}

fn text_or_base64<S: Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(body) {
        Ok(text) => text.serialize(serializer),
        Err(_) => serde_json::json!({ "base64": STANDARD.encode(body) }).serialize(serializer),
    }
}
