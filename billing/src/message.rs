//! A message and what it holds: an order that can be recorded, or the reason why there is none.

use amiquip::{AmqpProperties, AmqpValue, Delivery};
use common::http::is_request_id;
use common::order::NewOrder;
use serde_json::{Map, Value, json};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The longest message id that is recorded, in bytes: AMQP's own limit.
const MESSAGE_ID_BYTES_MAX: usize = 255;

/// How much of a body a dead letter keeps: as much as a gateway would have taken.
pub(crate) const BODY_BYTES_KEPT: usize = 1024 * 1024;

/// What can be wrong with a message, as the metrics and the filters name it: the body as a whole, a
/// field, something around the body, another order with the same message id, or what PostgreSQL
/// says of a value.
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

/// Where a message was taken from.
#[expect(clippy::large_enum_variant, reason = "nearly all are deliveries")]
pub(crate) enum MessageSource {
    /// A delivery that is to be acknowledged, without the parts that [`Message`] has.
    Queue(Delivery),
    /// The row of `dead_letters` with this id, which is replayed.
    DeadLetter(i64),
}

/// A message from the queue, or a dead letter that is replayed.
pub(crate) struct Message {
    pub(crate) source: MessageSource,
    /// The message id as its publisher gave it, unfit as it may be; None where it was left out or empty.
    pub(crate) id: Option<String>,
    /// Of the request that placed the order, where one of our gateways did.
    pub(crate) request_id: Option<String>,
    /// No more than [`BODY_BYTES_KEPT`] of it.
    pub(crate) body: Vec<u8>,
    /// How long the body was.
    pub(crate) body_bytes: usize,
    pub(crate) content: Result<NewOrder, Reason>,
    /// Where it was held before, when it may be tried again.
    pub(crate) held: Option<Instant>,
    /// Whether it was tried again together with others, and in vain.
    pub(crate) suspect: bool,
    placed_at: Option<u64>,
}

impl Message {
    /// Reads a delivery by today's rules.
    pub(crate) fn from_queue(mut delivery: Delivery) -> Self {
        let properties = &delivery.properties;
        let request_id = properties.headers().as_ref().and_then(|headers| {
            match headers.get("x-request-id")? {
                AmqpValue::LongString(id) if is_request_id(id) => Some(id.clone()),
                _ => None,
            }
        });
        let (message_id, timestamp) = (properties.message_id().clone(), *properties.timestamp());
        let unfit = [
            ("exchange", &delivery.exchange),
            ("routing_key", &delivery.routing_key),
        ];
        let unfit = unfit.iter().find(|(_, name)| name.contains('\0'));
        let unfit = unfit
            .map(|(word, _)| Reason::new(word, format!("the {word} contains NUL or is not UTF-8")));
        let body = std::mem::take(&mut delivery.body);
        let mut message = Self::read(MessageSource::Queue(delivery), message_id, body);
        if let (Ok(_), Some(reason)) = (&message.content, unfit) {
            message.content = Err(reason);
        }
        // A stranger's timestamp is believed by nobody: many write 0.
        message.placed_at = timestamp.filter(|at| *at > 0 && request_id.is_some());
        message.request_id = request_id;
        message
    }

    /// Reads a message by today's rules.
    pub(crate) fn read(source: MessageSource, id: Option<String>, mut body: Vec<u8>) -> Self {
        let id = id.filter(|id| !id.is_empty());
        let content = NewOrder::from_json(&body)
            .map_err(|error| Reason::new(error.at_fault().unwrap_or("body"), error.to_string()));
        let problem = match &id {
            Some(id) if id.contains('\0') => Some("the message id contains NUL or is not UTF-8"),
            Some(id) if id.len() > MESSAGE_ID_BYTES_MAX => Some("the message id is too long"),
            _ => None,
        };
        let content = content.and_then(|order| match problem {
            Some(problem) => Err(Reason::new("message_id", problem)),
            None => Ok(order),
        });
        let body_bytes = body.len();
        // An order has been read, and needs its body no more unless it becomes a dead letter.
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

    /// How long ago one of our gateways placed it, in seconds.
    pub(crate) fn age(&self) -> Option<u64> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Some(now.as_secs().saturating_sub(self.placed_at?))
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

/// All properties that a message has, as JSON, each header with its AMQP type.
pub(crate) fn properties_json(properties: &AmqpProperties) -> String {
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message_id", properties.message_id()),
        ("type", properties.type_()),
        ("user_id", properties.user_id()),
        ("app_id", properties.app_id()),
        ("cluster_id", properties.cluster_id()),
    ];
    let texts = texts
        .into_iter()
        .filter_map(|(name, value)| Some((name, json!(value.as_ref()?))));
    let numbers = [
        ("delivery_mode", properties.delivery_mode().map(u64::from)),
        ("priority", properties.priority().map(u64::from)),
        ("timestamp", *properties.timestamp()),
    ];
    let numbers = numbers
        .into_iter()
        .filter_map(|(name, value)| Some((name, json!(value?))));
    let mut kept: Map<String, Value> = texts
        .chain(numbers)
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    if let Some(headers) = properties.headers() {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), header_json(value)));
        kept.insert("headers".to_owned(), Value::Object(headers.collect()));
    }
    Value::Object(kept).to_string()
}

/// A header as `{"type": …, "value": …}`. JSON has no number that is none: `NaN` is a string.
fn header_json(value: &AmqpValue) -> Value {
    let inner = match value {
        AmqpValue::Float(number) if !number.is_finite() => json!(number.to_string()),
        AmqpValue::Double(number) if !number.is_finite() => json!(number.to_string()),
        AmqpValue::FieldArray(values) => values.iter().map(header_json).collect(),
        AmqpValue::FieldTable(table) => table
            .iter()
            .map(|(name, value)| (name.clone(), header_json(value)))
            .collect::<Map<_, _>>()
            .into(),
        AmqpValue::Void => Value::Null,
        // Every other value is an object with its type as the only name.
        value => match json!(value) {
            Value::Object(typed) => typed
                .into_iter()
                .next()
                .map_or(Value::Null, |(_, inner)| inner),
            other => other,
        },
    };
    json!({ "type": format!("{:?}", value.get_type()), "value": inner })
}

#[cfg(test)]
mod tests {
    use amiquip::FieldTable;

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
