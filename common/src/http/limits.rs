//! The limits of the server: each a setting with a default, its unit in its name.

use std::net::IpAddr;
use std::time::Duration;

use super::message::framing::{FramingLimits, HEADERS_MAX};
use crate::env::{ConfigError, Vars};

/// How many connections are reserved for clients on this machine and on the operator's.
const OPERATORS: usize = 8;

/// What a client may use of a listener, and for how long.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at the same time. Beyond that, idle ones are closed, or the next one is answered 503.
    pub connections: usize,
    /// Connections at the same time from one address.
    pub connections_per_client: usize,
    /// The address of the operator's programs; the last connections are reserved for it and for this machine.
    pub operator: Option<IpAddr>,
    /// The limits on the parts of a request.
    pub(crate) framing: FramingLimits,
    /// Bytes of requests and answers that all connections together hold in memory.
    pub buffer_bytes: usize,
    /// The time from the first byte of a head to its last.
    pub head_time: Duration,
    /// The time from the end of the head to the last byte of the body.
    pub body_time: Duration,
    /// The time between two requests, and before the first.
    pub idle_time: Duration,
    /// How long a client may take for a piece of its answer (32 KiB at most).
    pub send_time: Duration,
    /// Requests that wait for a slot of one bulkhead.
    pub queue: usize,
    /// How long a request may wait for a slot.
    pub queue_time: Duration,
    /// How long a handler may take for an answer, or for a piece of a stream. It may wait longer, for example for a
    /// database server that is suspended; the client does not.
    pub answer_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self::from_vars(&Vars::default()).expect("each default is within its range")
    }
}

impl Limits {
    /// The limits in the `HTTP_…` variables, each of which is optional.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        let count = |key, default| number(vars, key, default, 1_000_000_000);
        let seconds = |key, default| {
            number(vars, key, default, 86_400).map(|seconds| Duration::from_secs(seconds as u64))
        };
        Ok(Self {
            connections: count("HTTP_CONNECTIONS_MAX", 4096)?,
            connections_per_client: count("HTTP_CONNECTIONS_PER_CLIENT_MAX", 2048)?,
            operator: operator(vars)?,
            framing: FramingLimits {
                request_line_bytes: count("HTTP_REQUEST_LINE_BYTES_MAX", 8 * 1024)?,
                head_bytes: count("HTTP_HEAD_BYTES_MAX", 32 * 1024)?,
                headers: number(vars, "HTTP_HEADERS_MAX", 100, HEADERS_MAX)?,
                body_bytes: count("HTTP_BODY_BYTES_MAX", 1024 * 1024)?,
            },
            buffer_bytes: count("HTTP_BUFFER_BYTES_MAX", 128 * 1024 * 1024)?,
            head_time: seconds("HTTP_HEAD_SECONDS", 10)?,
            body_time: seconds("HTTP_BODY_SECONDS", 30)?,
            idle_time: seconds("HTTP_IDLE_SECONDS", 60)?,
            send_time: seconds("HTTP_SEND_SECONDS", 20)?,
            queue: count("HTTP_QUEUE_MAX", 1024)?,
            queue_time: number(vars, "HTTP_QUEUE_MILLISECONDS", 2000, 60_000)
                .map(|millis| Duration::from_millis(millis as u64))?,
            answer_time: seconds("HTTP_ANSWER_SECONDS", 30)?,
        })
    }

    /// How many connections there may be before a new one of that client needs room. The last connections are
    /// reserved for operators.
    pub(crate) fn connections_before(&self, client: IpAddr) -> usize {
        if client.is_loopback() || self.operator == Some(client) {
            self.connections
        } else {
            self.connections - OPERATORS.min(self.connections / 16)
        }
    }
}

fn operator(vars: &Vars) -> Result<Option<IpAddr>, ConfigError> {
    let key = "MONITORING_IP";
    let address = vars.optional(key).map(str::parse).transpose();
    address.map_err(|_| ConfigError::malformed(key, "an IP address such as 192.168.56.1"))
}

/// The value of a variable, which is a number from 1 to `max`.
pub(crate) fn number(
    vars: &Vars,
    key: &str,
    default: usize,
    max: usize,
) -> Result<usize, ConfigError> {
    let expected = format!("a whole number from 1 to {max}");
    let number = vars.parsed_or(key, &expected, default)?;
    if (1..=max).contains(&number) {
        Ok(number)
    } else {
        Err(ConfigError::malformed(key, &expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_places_are_for_this_machine_and_the_operator() {
        let vars = |address: &str| {
            let pairs = [("MONITORING_IP", address), ("HTTP_CONNECTIONS_MAX", "160")];
            Limits::from_vars(&Vars::from_pairs(pairs))
        };
        let limits = vars("192.0.2.7").expect("limits");
        let places = |client: &str| limits.connections_before(client.parse().expect("an address"));

        assert_eq!(["127.0.0.1", "::1", "192.0.2.7"].map(places), [160; 3]);
        assert_eq!(["192.0.2.8", "2001:db8::1"].map(places), [152; 2]);
        assert_eq!(vars("").expect("limits").operator, None);
        let error = vars("here").expect_err("no address").to_string();
        assert!(error.contains("MONITORING_IP"), "{error}");
    }
}
