//! Records each answered request: one line in the log, one count in the metrics. Refused requests get one
//! line a second for each client, so that nobody can fill the disk with them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::http::message::head::{Head, network};
use crate::http::message::response::{HandlerResult, Response};
use crate::log::logged_millis;
use crate::metrics::Metrics;

/// How many bytes of a target a line of the log has.
const LOGGED_TARGET_BYTES_MAX: usize = 256;

/// How much of a method, which is ASCII, stands in a line of the log.
const LOGGED_METHOD_BYTES_MAX: usize = 32;

/// For how long further refusals of a client that has a line are counted only.
const SECOND: Duration = Duration::from_secs(1);

/// How many clients get a line of their own in a second.
const CLIENTS_MAX: usize = 100;

/// The outcome of a request.
pub(crate) struct Outcome {
    head: Arc<Head>,
    status: u16,
    /// Whether the client got only a part of the answer.
    truncated: bool,
    /// The cause, for the log.
    cause: Option<String>,
}

impl Outcome {
    /// The response for the client, and the outcome for the log, of what a handler returned.
    pub(crate) fn of(result: HandlerResult<'_>, head: Arc<Head>) -> (Response<'_>, Self) {
        let cause = result.as_ref().err().and_then(|error| error.cause.clone());
        let response = result.unwrap_or_else(|p| Response::of_problem(p, &head.request_id));
        let outcome = Self {
            head,
            status: response.status,
            truncated: false,
            cause,
        };
        (response, outcome)
    }

    pub(crate) fn truncate(&mut self, cause: impl Into<String>) {
        self.truncated = true;
        self.cause = Some(cause.into());
    }
}

/// Logs and counts a request that was answered.
pub(crate) fn record(metrics: &Metrics, outcome: &Outcome, now: Instant) {
    let head = &outcome.head;
    let elapsed = now.saturating_duration_since(head.arrived);
    let method = match head.method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS") => known,
        // An invented method must not make a new time series.
        _ => "other",
    };
    let (route, status) = (head.matched.pattern, outcome.status.to_string());
    metrics
        .http_requests
        .with_label_values(&[route, method, &status])
        .inc();
    metrics
        .http_seconds
        .with_label_values(&[route])
        .observe(elapsed.as_secs_f64());
    if (400..500).contains(&outcome.status) && !refusals().gets_line(network(head.client)) {
        return;
    }
    let level = match outcome.status {
        500 => log::Level::Error,
        502..=504 => log::Level::Warn,
        _ if outcome.truncated => log::Level::Warn,
        _ => log::Level::Info,
    };
    let logged_method = head.method.as_str();
    let logged_method = &logged_method[..logged_method.len().min(LOGGED_METHOD_BYTES_MAX)];
    log::log!(
        target: "access", level,
        request_id = head.request_id.as_str(),
        client = head.client.to_string().as_str(),
        method = logged_method,
        path = &head.target[..head.target.floor_char_boundary(LOGGED_TARGET_BYTES_MAX)],
        route = route,
        status = outcome.status,
        ms = logged_millis(elapsed),
        message_id = head.message_id.get().map(String::as_str),
        caller = head.caller.get().map(String::as_str),
        truncated = outcome.truncated,
        cause = outcome.cause.as_deref();
        "request"
    );
}

/// The refusals of this process.
fn refusals() -> MutexGuard<'static, Refusals> {
    static REFUSALS: LazyLock<Mutex<Refusals>> =
        LazyLock::new(|| Mutex::new(Refusals::new(Instant::now())));
    REFUSALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs, once a second, the number of refusals that got no line.
pub(crate) fn log_refusals(now: Instant) {
    for (client, count) in refusals().end_second(now) {
        let of_others = client.map_or(", of other clients", |_| "");
        let client = client.map(|client| client.to_string());
        log::info!(
            target: "access", client = client.as_deref(), count = count;
            "more requests refused{of_others}"
        );
    }
}

/// The refusals of a second.
struct Refusals {
    since: Instant,
    /// For each client that has a line, the number of its refusals without one; under None those of all others.
    unlogged: HashMap<Option<IpAddr>, u64>,
}

impl Refusals {
    fn new(since: Instant) -> Self {
        Self {
            since,
            unlogged: HashMap::new(),
        }
    }

    /// Whether a refusal gets a line; counts it if not.
    fn gets_line(&mut self, client: IpAddr) -> bool {
        let is_new = !self.unlogged.contains_key(&Some(client));
        if is_new && self.unlogged.len() < CLIENTS_MAX {
            self.unlogged.insert(Some(client), 0);
            return true;
        }
        let counted = Some(client).filter(|_| !is_new);
        *self.unlogged.entry(counted).or_default() += 1;
        false
    }

    /// The counts of a second that is over; nothing while it lasts.
    fn end_second(&mut self, now: Instant) -> Vec<(Option<IpAddr>, u64)> {
        if now.saturating_duration_since(self.since) < SECOND {
            return Vec::new();
        }
        let Self { unlogged, .. } = std::mem::replace(self, Self::new(now));
        unlogged
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_line_a_second_and_the_rest_is_counted() {
        let begin = Instant::now();
        let client = |n: u32| IpAddr::from(n.to_be_bytes());
        let mut refusals = Refusals::new(begin);

        let lines: Vec<_> = (0..300)
            .map(|n| refusals.gets_line(client(n % 150)))
            .collect();

        assert_eq!(lines.iter().filter(|line| **line).count(), CLIENTS_MAX);
        assert_eq!(refusals.end_second(begin + SECOND / 2), []);
        let ended: HashMap<_, _> = refusals.end_second(begin + SECOND).into_iter().collect();
        let of_clients = (0..100).filter(|n| ended.get(&Some(client(*n))) == Some(&1));
        assert_eq!(
            (ended.len(), of_clients.count(), ended.get(&None)),
            (101, 100, Some(&100))
        );
        assert!(refusals.gets_line(client(149)));
        assert_eq!(refusals.end_second(begin + 2 * SECOND), []);
    }
}
