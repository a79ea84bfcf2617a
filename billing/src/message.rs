//! A message, and what it contains: an order that can be recorded, or the reason why there is none.

use std::mem;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, AmqpValue, Delivery, FieldTable};
use common::http::is_request_id;
use common::order::NewOrder;
use serde_json::{Map, Value, json};

use crate::dead_letter::WholeDeadLetter;

/// The longest message id that is recorded, in bytes: AMQP's own limit.
const MESSAGE_ID_BYTES_MAX: usize = 255;

/// A dead letter keeps so many bytes of a body: as many as a gateway accepts.
pub(crate) const BODY_BYTES_KEPT: usize = 1024 * 1024;

/// The reasons why a message cannot be recorded, as metrics and filters name them: the body as a whole, a field
/// of it, a property of the message, another order with its message id, or a character that the database does
/// not have.
pub(crate) const REASONS: [&str; 9] = [
    "body",
    "user_id",
    "number_of_items",
    "total_amount",
    "message_id",
    "exchange",
    "routing_key",
    "conflict",
    "database",
];

/// Why a message can never be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    /// One of [`REASONS`].
    pub(crate) word: &'static str,
    /// The reason in full.
    pub(crate) text: String,
}

impl Reason {
    pub(crate) fn new(word: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { word, text }
    }
}

/// Where a message comes from.
#[expect(clippy::large_enum_variant, reason = "nearly all are deliveries")]
pub(crate) enum MessageSource {
    /// A delivery that has to be acknowledged; the [`Message`] has its body.
    Queue(Delivery),
    /// The row of `dead_letters` with this id, which is replayed.
    DeadLetter(i64),
}

/// A message from the queue, or a dead letter that is replayed.
pub(crate) struct Message {
    pub(crate) source: MessageSource,
    /// The message id as its publisher wrote it, valid or not; None if it is empty.
    pub(crate) id: Option<String>,
    /// The id of the request that placed the order, if a gateway published the message.
    pub(crate) request_id: Option<String>,
    /// At most [`BODY_BYTES_KEPT`] of the body.
    pub(crate) body: Vec<u8>,
    /// The length of the whole body.
    pub(crate) body_bytes: usize,
    pub(crate) content: Result<NewOrder, Reason>,
    /// When a message that PostgreSQL refused may be tried again; None if it was not refused. A message without
    /// a time that is held is due at once.
    pub(crate) held: Option<Instant>,
    /// Whether it was refused when it was tried again together with others.
    pub(crate) suspect: bool,
    placed_at: Option<u64>,
}

impl Message {
    /// Reads a delivery by the current rules.
    pub(crate) fn from_queue(mut delivery: Delivery) -> Self {
        let request_id = header_text(&delivery, "x-request-id").filter(|id| is_request_id(id));
        let request_id = request_id.map(str::to_owned);
        // Many other programs write 0 into the timestamp, so only that of a gateway counts.
        let placed_at = delivery
            .properties
            .timestamp()
            .filter(|at| *at > 0 && request_id.is_some());
        let id = delivery.properties.message_id().clone();
        let body = mem::take(&mut delivery.body);
        let names = [
            ("exchange", &delivery.exchange),
            ("routing_key", &delivery.routing_key),
        ];
        let invalid = names.into_iter().find(|(_, name)| name.contains('\0'));
        let invalid = invalid
            .map(|(word, _)| Reason::new(word, format!("the {word} contains NUL or is not UTF-8")));
        let message = Self::read(MessageSource::Queue(delivery), id, body);
        Self {
            content: message
                .content
                .and_then(|order| invalid.map_or(Ok(order), Err)),
            request_id,
            placed_at,
            ..message
        }
    }

    /// Reads a dead letter by the current rules.
    pub(crate) fn from_dead_letter(dead_letter: WholeDeadLetter) -> Self {
        let WholeDeadLetter {
            letter,
            properties,
            body,
        } = dead_letter;
        // The column `message_id` has the id with its NULs replaced.
        let properties: Value = serde_json::from_str(properties.get()).unwrap_or_default();
        let id = properties["message_id"].as_str().map(str::to_owned);
        let mut message = Self::read(MessageSource::DeadLetter(letter.id), id, body);
        if letter.cut {
            message.content = Err(Reason::new("body", "only the start of the body is kept"));
        }
        message
    }

    fn read(source: MessageSource, id: Option<String>, mut body: Vec<u8>) -> Self {
        let id = id.filter(|id| !id.is_empty());
        let problem = match &id {
            Some(id) if id.contains('\0') => Some("the message id contains NUL or is not UTF-8"),
            Some(id) if id.len() > MESSAGE_ID_BYTES_MAX => Some("the message id is too long"),
            _ => None,
        };
        let invalid = problem.map(|problem| Reason::new("message_id", problem));
        let content = NewOrder::from_json(&body)
            .map_err(|error| Reason::new(error.at_fault().unwrap_or("body"), error.to_string()))
            .and_then(|order| invalid.map_or(Ok(order), Err));
        let body_bytes = body.len();
        if body_bytes > BODY_BYTES_KEPT {
            body.truncate(BODY_BYTES_KEPT);
            body.shrink_to_fit();
        }
        Self {
            source,
            id,
            request_id: None,
            body,
            body_bytes,
            content,
            held: None,
            suspect: false,
            placed_at: None,
        }
    }

    /// How many seconds ago a gateway placed it.
    pub(crate) fn age(&self) -> Option<u64> {
        Some(unix_seconds().saturating_sub(self.placed_at?))
    }

    /// The delivery that brought it.
    pub(crate) fn delivery(&self) -> Option<&Delivery> {
        match &self.source {
            MessageSource::Queue(delivery) => Some(delivery),
            MessageSource::DeadLetter(_) => None,
        }
    }

    /// The row that it is replayed from.
    pub(crate) fn dead_letter_id(&self) -> Option<i64> {
        match self.source {
            MessageSource::DeadLetter(id) => Some(id),
            MessageSource::Queue(_) => None,
        }
    }
}

/// The seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// A header of a delivery, if it is a text.
pub(crate) fn header_text<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a str> {
    match delivery.properties.headers().as_ref()?.get(name)? {
        AmqpValue::LongString(text) => Some(text),
        _ => None,
    }
}

/// The properties of a message as JSON, each header with its AMQP type.
pub(crate) fn properties_json(properties: &AmqpProperties) -> String {
    let mut json = json!({
        "content_type": properties.content_type(),
        "content_encoding": properties.content_encoding(),
        "headers": properties.headers().as_ref().map(headers_json),
        "delivery_mode": properties.delivery_mode(),
        "priority": properties.priority(),
        "correlation_id": properties.correlation_id(),
        "reply_to": properties.reply_to(),
        "expiration": properties.expiration(),
        "message_id": properties.message_id(),
        "timestamp": properties.timestamp(),
        "type": properties.type_(),
        "user_id": properties.user_id(),
        "app_id": properties.app_id(),
        "cluster_id": properties.cluster_id(),
    });
    if let Some(properties) = json.as_object_mut() {
        properties.retain(|_, value| !value.is_null());
    }
    json.to_string()
}

fn headers_json(headers: &FieldTable) -> Value {
    headers
        .iter()
        .map(|(name, value)| (name.clone(), header_json(value)))
        .collect::<Map<_, _>>()
        .into()
}

/// A header as `{"type": …, "value": …}`. JSON has no number for NaN and infinities, so they are strings.
fn header_json(value: &AmqpValue) -> Value {
    let inner = match value {
        AmqpValue::Float(number) if !number.is_finite() => json!(number.to_string()),
        AmqpValue::Double(number) if !number.is_finite() => json!(number.to_string()),
        AmqpValue::FieldArray(values) => values.iter().map(header_json).collect(),
        AmqpValue::FieldTable(table) => headers_json(table),
        // amiquip serializes other values as an object whose only key is the type, and Void as a string.
        value => match json!(value) {
            Value::Object(typed) => typed.into_values().next().unwrap_or_default(),
            _ => Value::Null,
        },
    };
    json!({ "type": format!("{:?}", value.get_type()), "value": inner })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_kept_with_their_types_whatever_they_hold() {
        let headers: FieldTable = [
            ("a\0b", AmqpValue::LongString("x\0y".to_owned())),
            ("i", AmqpValue::ShortShortInt(-3)),
            ("d", AmqpValue::Double(f64::NAN)),
            ("bytes", AmqpValue::ByteArray(vec![1, 255])),
            ("v", AmqpValue::Void),
            ("l", AmqpValue::FieldArray(vec![AmqpValue::Boolean(true)])),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let properties = AmqpProperties::default()
            .with_app_id("app".to_owned())
            .with_priority(3)
            .with_headers(headers);

        let kept: Value = serde_json::from_str(&properties_json(&properties)).expect("JSON");

        let typed = |kind: &str, value: Value| json!({ "type": kind, "value": value });
        let expected = json!({
            "app_id": "app",
            "priority": 3,
            "headers": {
                "a\0b": typed("LongString", json!("x\0y")),
                "i": typed("ShortShortInt", json!(-3)),
                "d": typed("Double", json!("NaN")),
                "bytes": typed("ByteArray", json!([1, 255])),
                "v": typed("Void", Value::Null),
                "l": typed("FieldArray", json!([typed("Boolean", json!(true))])),
            },
        });
        assert_eq!(kept, expected);
    }
}
