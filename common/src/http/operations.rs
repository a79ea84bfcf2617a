//! What an operator asks of every program. Whether the process lives, and its metrics, are
//! answered by the edge without a worker, so under any load; whether its dependencies are there
//! is found out at a place of its own. Where there is an `OPERATIONS_KEY`, nobody without it sees more
//! than whether the process lives and is ready.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::env::{ConfigError, Vars};

use super::edge::Edge;
use super::problem::Problem;
use super::request::Request;
use super::response::Response;
use super::router::{Handler, HandlerResult, Route, Verb};

const ALLOW: &str = "GET, HEAD, OPTIONS";

/// Something that a service cannot work without.
#[derive(Debug)]
pub struct Dependency {
    /// As `/ready` shows it: `postgresql`.
    pub name: &'static str,
    /// How it is.
    pub state: DependencyState,
}

/// How something is that a service cannot work without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DependencyState {
    /// It serves.
    Up,
    /// It cannot be reached.
    Down,
    /// An alarm of its own keeps work out.
    Blocked,
    /// It is there, and takes nothing of what it is sent.
    Refusing,
}

impl From<bool> for DependencyState {
    fn from(up: bool) -> Self {
        if up { Self::Up } else { Self::Down }
    }
}

impl DependencyState {
    /// What is said of those that are not up, behind their names.
    fn complaint(self) -> &'static str {
        match self {
            Self::Up => "is up",
            Self::Down => "cannot be reached",
            Self::Blocked => "is blocked by an alarm",
            Self::Refusing => "refuses what it is sent",
        }
    }
}

/// What whoever may see the metrics and the dependencies sends as `Authorization: Bearer KEY`.
#[derive(Clone)]
pub struct OperationsKey(String);

impl OperationsKey {
    const VARIABLE: &str = "OPERATIONS_KEY";

    /// From `OPERATIONS_KEY`; without it all may see them.
    pub fn from_vars(vars: &Vars) -> Result<Option<Self>, ConfigError> {
        match vars.guarding(Self::VARIABLE)? {
            Some(key) if !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                let expected = "visible ASCII characters without blanks";
                Err(ConfigError::malformed(Self::VARIABLE, expected))
            }
            key => Ok(key.map(|key| Self(key.to_owned()))),
        }
    }

    /// The value of `Authorization` by which another program sees them.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The time that this takes tells nothing about how near a guess was, nor of the key's length.
    fn is_sent_with(&self, request: &Request) -> bool {
        let hash = |text: &str| Sha256::digest(text.as_bytes());
        request
            .bearer()
            .is_some_and(|given| hash(given).ct_eq(&hash(&self.0)).into())
    }
}

/// The key is for no log.
impl fmt::Debug for OperationsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperationsKey")
    }
}

fn may_see(key: Option<&OperationsKey>, request: &Request) -> bool {
    key.is_none_or(|key| key.is_sent_with(request))
}

/// What `/ready` goes by.
pub(super) struct Readiness {
    /// Who may see more than the status.
    pub(super) key: Option<OperationsKey>,
    /// Asks for the state of all dependencies of a service.
    pub(super) dependencies: Box<dyn FnMut() -> Vec<Dependency> + Send>,
}

pub(super) const ROUTES: &[Route<Readiness>] =
    &[(Verb::Get, "/ready", Handler::One(get_readiness))];

/// The answer to `/health` and `/metrics`; None for any other path.
pub(super) fn answer(edge: &Edge, request: &Request) -> Option<Result<Response<'static>, Problem>> {
    type Answer = fn(&Edge, &Request) -> Result<Response<'static>, Problem>;
    let path = request.path();
    let response = match path.strip_suffix('/').unwrap_or(path) {
        "/health" => (|_, _| Ok(health())) as Answer,
        "/metrics" => metrics,
        _ => return None,
    };
    Some(match request.method.as_str() {
        "GET" | "HEAD" => response(edge, request),
        "OPTIONS" => Ok(Response::empty(204).with_header("allow", ALLOW)),
        _ => Err(Problem::method_not_allowed(ALLOW.to_owned())),
    })
}

/// The answer that says that the process lives.
#[must_use]
pub fn health() -> Response<'static> {
    Response::json(200, &json!({ "status": "ok" }))
}

fn metrics(edge: &Edge, request: &Request) -> Result<Response<'static>, Problem> {
    if !may_see(edge.operations_key.as_ref(), request) {
        let detail = "send the key of operations, as Authorization: Bearer KEY";
        return Err(Problem::unauthorized(detail));
    }
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    Ok(Response::text(200, content_type, edge.metrics.text()))
}

#[derive(Serialize)]
struct Ready<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dependencies: Option<&'a Value>,
}

fn get_readiness<'a>(readiness: &'a mut Readiness, request: &Request) -> HandlerResult<'a> {
    let dependencies = (readiness.dependencies)();
    let complaints = complaints(&dependencies);
    let states = may_see(readiness.key.as_ref(), request).then(|| states(&dependencies));
    if complaints.is_empty() {
        return Ok(Response::json(
            200,
            &Ready {
                status: "ready",
                dependencies: states.as_ref(),
            },
        ));
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

/// In words, those of one state together; empty where all are up.
fn complaints(dependencies: &[Dependency]) -> String {
    use DependencyState::{Blocked, Down, Refusing};
    let of_state = |state: DependencyState| {
        let names = dependencies.iter().filter(|d| d.state == state);
        let names: Vec<_> = names.map(|dependency| dependency.name).collect();
        let said = format!("{} {}", names.join(" and "), state.complaint());
        (!names.is_empty()).then_some(said)
    };
    let complaints = [Down, Blocked, Refusing].into_iter().filter_map(of_state);
    complaints.collect::<Vec<_>>().join("; ")
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
