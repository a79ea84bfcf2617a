//! The limits of the server: each a setting with a default, its unit in its name.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use crate::env::{ConfigError, Vars};
use crate::http::connection::ConnectionLimits;
use crate::http::message::framing::{FramingLimits, HEADERS_MAX};

/// What a client may do to a listener, and for how long.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at the same time; the next one is answered 503.
    pub connections: usize,
    /// Connections at the same time from one address.
    pub connections_per_client: usize,
    /// Bytes of a request line.
    pub request_line_bytes: usize,
    /// Bytes of a head, request line included.
    pub head_bytes: usize,
    /// How many headers a request may have.
    pub headers: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Bytes of requests that are held in memory over all connections.
    pub buffer_bytes: usize,
    /// From the first byte of a head to its last.
    pub head_time: Duration,
    /// From the end of the head to the last byte of the body.
    pub body_time: Duration,
    /// Between two requests, and before the first.
    pub idle_time: Duration,
    /// How long a client may take for a piece of its answer (32 KiB at most).
    pub send_time: Duration,
    /// Requests that wait for a slot of one bulkhead.
    pub queue: usize,
    /// How long one may wait for a slot.
    pub queue_time: Duration,
    /// How long a handler may be silent over an answer. It is beyond every limit of its own, so
    /// it is for what has none: a database server that is stopped, but not gone.
    pub answer_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_client: 2048,
            request_line_bytes: 8 * 1024,
            head_bytes: 32 * 1024,
            headers: 100,
            body_bytes: 1024 * 1024,
            buffer_bytes: 128 * 1024 * 1024,
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            idle_time: Duration::from_mins(1),
            send_time: Duration::from_secs(20),
            queue: 1024,
            queue_time: Duration::from_secs(2),
            answer_time: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// From the `HTTP_…` variables; each is optional.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        let default = Self::default();
        let count = |key, default| number(vars, key, default, 1_000_000_000);
        let seconds = |key, default: Duration| {
            number(vars, key, default.as_secs(), 86_400).map(Duration::from_secs)
        };
        let millis = |key, default: Duration| {
            let default = u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
            number(vars, key, default, 60_000).map(Duration::from_millis)
        };
        Ok(Self {
            connections: count("HTTP_CONNECTIONS_MAX", default.connections)?,
            connections_per_client: count(
                "HTTP_CONNECTIONS_PER_CLIENT_MAX",
                default.connections_per_client,
            )?,
            request_line_bytes: count("HTTP_REQUEST_LINE_BYTES_MAX", default.request_line_bytes)?,
            head_bytes: count("HTTP_HEAD_BYTES_MAX", default.head_bytes)?,
            headers: number(vars, "HTTP_HEADERS_MAX", default.headers, HEADERS_MAX)?,
            body_bytes: count("HTTP_BODY_BYTES_MAX", default.body_bytes)?,
            buffer_bytes: count("HTTP_BUFFER_BYTES_MAX", default.buffer_bytes)?,
            head_time: seconds("HTTP_HEAD_SECONDS", default.head_time)?,
            body_time: seconds("HTTP_BODY_SECONDS", default.body_time)?,
            idle_time: seconds("HTTP_IDLE_SECONDS", default.idle_time)?,
            send_time: seconds("HTTP_SEND_SECONDS", default.send_time)?,
            queue: count("HTTP_QUEUE_MAX", default.queue)?,
            queue_time: millis("HTTP_QUEUE_MILLISECONDS", default.queue_time)?,
            answer_time: seconds("HTTP_ANSWER_SECONDS", default.answer_time)?,
        })
    }

    pub(crate) fn of_a_connection(&self, secure: bool) -> ConnectionLimits {
        ConnectionLimits {
            framing: FramingLimits {
                request_line_bytes: self.request_line_bytes,
                head_bytes: self.head_bytes,
                headers: self.headers,
                body_bytes: self.body_bytes,
            },
            idle: self.idle_time,
            head: self.head_time,
            body: self.body_time,
            queue: self.queue_time,
            answer: self.answer_time,
            send: self.send_time,
            secure,
        }
    }
}

/// A variable from 1 to `max`.
pub(crate) fn number<T>(vars: &Vars, key: &str, default: T, max: T) -> Result<T, ConfigError>
where
    T: FromStr + Display + PartialOrd + From<u8>,
{
    let expected = format!("a whole number from 1 to {max}");
    let number: T = vars.parsed_or(key, &expected, default)?;
    if (T::from(1)..=max).contains(&number) {
        Ok(number)
    } else {
        Err(ConfigError::malformed(key, &expected))
    }
}
