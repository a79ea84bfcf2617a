//! What an operator asks of every program: whether the process lives, whether its dependencies
//! are there, and its metrics. Where there is an `OPERATIONS_KEY`, nobody without it sees more than
//! whether the process lives and is ready.

use std::fmt;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::bulkhead::{Bulkhead, Handler, Route};
use super::router::{AnyBulkhead, Verb};
use crate::env::{ConfigError, Vars};
use crate::http::limits::Limits;
use crate::http::message::head::Head;
use crate::http::message::problem::Problem;
use crate::http::message::request::Request;
use crate::http::message::response::{HandlerResult, Response};
use crate::metrics::Metrics;

/// The key that a client sends as `Authorization: Bearer KEY` to see the metrics and the dependencies.
#[derive(Clone)]
pub struct OperationsKey(String);

impl OperationsKey {
    const VARIABLE: &str = "OPERATIONS_KEY";

    /// The key in `OPERATIONS_KEY`; if there is none, everybody may see them.
    pub fn from_vars(vars: &Vars) -> Result<Option<Self>, ConfigError> {
        match vars.guarding(Self::VARIABLE)? {
            Some(key) if !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                let expected = "visible ASCII characters without blanks";
                Err(ConfigError::malformed(Self::VARIABLE, expected))
            }
            key => Ok(key.map(|key| Self(key.to_owned()))),
        }
    }

    /// The value of `Authorization` that another program sends.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Compares in a time that depends neither on how much of a guess is right nor on the key's length.
    fn is_sent_with(&self, request: &Head) -> bool {
        let hash = |text: &str| digest(&SHA256, text.as_bytes());
        request
            .bearer()
            .is_some_and(|given| hash(given).as_ref().ct_eq(hash(&self.0).as_ref()).into())
    }
}

/// The key must not appear in a log.
impl fmt::Debug for OperationsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperationsKey")
    }
}

/// Something that a service cannot work without.
#[derive(Debug)]
pub struct Dependency {
    /// The name that `/ready` shows, as in `postgresql`.
    pub name: &'static str,
    /// Its state.
    pub state: DependencyState,
}

/// The state of a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DependencyState {
    /// It works.
    Up,
    /// It cannot be reached.
    Down,
    /// It takes no work because of an alarm of its own.
    Blocked,
    /// It can be reached, and refuses what is sent to it.
    Refusing,
}

impl Dependency {
    /// A dependency as it is now.
    pub fn new(name: &'static str, state: impl Into<DependencyState>) -> Self {
        let state = state.into();
        Self { name, state }
    }
}

impl From<bool> for DependencyState {
    fn from(up: bool) -> Self {
        if up { Self::Up } else { Self::Down }
    }
}

/// The state of the slot that answers `/ready`.
struct Readiness {
    /// The key for more than the status; if there is none, everybody sees all.
    key: Option<OperationsKey>,
    dependencies: Dependencies,
}

/// Asks for the state of all dependencies of a service.
pub(crate) type Dependencies = Box<dyn FnMut() -> Vec<Dependency> + Send>;

const OPERATIONS: &[Route<Readiness>] = &[
    (Verb::Get, "/health", Handler::Direct(health)),
    (Verb::Get, "/ready", Handler::One(get_readiness)),
];

const METRICS: &[Route<Metrics>] = &[(
    Verb::Get,
    "/metrics",
    Handler::One(|metrics, _| {
        let media_type = "text/plain; version=0.0.4; charset=utf-8";
        Ok(Response::text(200, media_type, metrics.text()))
    }),
)];

/// The bulkheads that come last. The metrics have one of their own, so that they are shown while `/ready` waits
/// for a dependency.
pub(crate) fn operations(
    metrics: &Metrics,
    limits: &Limits,
    key: Option<OperationsKey>,
    dependencies: impl Fn() -> Dependencies + Send + Sync + 'static,
) -> [Arc<dyn AnyBulkhead>; 2] {
    let (metrics, shown_to) = (metrics.clone(), key.clone());
    let metrics = Bulkhead::new("/metrics", 1, METRICS, limits, move || metrics.clone())
        .with_guard(move |head| {
            let wanted = "send the key of operations, as Authorization: Bearer KEY";
            let may = may_see(shown_to.as_ref(), head);
            may.then_some(())
                .ok_or_else(|| Problem::unauthorized(wanted))
        });
    let readiness = move || Readiness {
        key: key.clone(),
        dependencies: dependencies(),
    };
    let others = Bulkhead::new("", 1, OPERATIONS, limits, readiness);
    [Arc::new(metrics), Arc::new(others)]
}

/// The answer that says that the process lives.
pub fn health() -> Response<'static> {
    Response::json(200, &json!({ "status": "ok" }))
}

fn may_see(key: Option<&OperationsKey>, request: &Head) -> bool {
    key.is_none_or(|key| key.is_sent_with(request))
}

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dependencies: Option<Value>,
}

fn get_readiness<'a>(readiness: &'a mut Readiness, request: &Request) -> HandlerResult<'a> {
    let dependencies = (readiness.dependencies)();
    let complaints = complaints(&dependencies);
    let states = may_see(readiness.key.as_ref(), request).then(|| states(&dependencies));
    if complaints.is_empty() {
        let ready = Ready {
            status: "ready",
            dependencies: states,
        };
        return Ok(Response::json(200, &ready));
    }
    Err(match states {
        Some(states) => Problem::unavailable(format!("not ready: {complaints}"), complaints)
            .with_dependencies(states),
        None => Problem::unavailable("not ready", complaints),
    })
}

fn states(dependencies: &[Dependency]) -> Value {
    dependencies
        .iter()
        .map(|dependency| (dependency.name.to_owned(), json!(dependency.state)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// What is wrong, in words, with the dependencies of one state together; empty if all are up.
fn complaints(dependencies: &[Dependency]) -> String {
    use DependencyState::{Blocked, Down, Refusing};
    let states = [
        (Down, "cannot be reached"),
        (Blocked, "is blocked by an alarm"),
        (Refusing, "refuses what it is sent"),
    ];
    let said = states.into_iter().filter_map(|(state, complaint)| {
        let names = dependencies.iter().filter(|d| d.state == state);
        let names: Vec<_> = names.map(|dependency| dependency.name).collect();
        (!names.is_empty()).then(|| format!("{} {complaint}", names.join(" and ")))
    });
    said.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_up_is_told_by_what_is_wrong_with_it() {
        use DependencyState::{Blocked, Down, Up};
        let told = |states: [DependencyState; 3]| {
            let named = ["a", "b", "c"].into_iter().zip(states);
            let dependencies: Vec<_> = named
                .map(|(name, state)| Dependency { name, state })
                .collect();
            complaints(&dependencies)
        };

        assert_eq!(told([Up; 3]), "");
        assert_eq!(told([Down, Up, Down]), "a and c cannot be reached");
        assert_eq!(
            told([Blocked, Down, Up]),
            "b cannot be reached; a is blocked by an alarm"
        );
    }
}
