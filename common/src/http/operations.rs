//! What an operator asks of every program. Whether the process lives, and its metrics, are
//! answered by the edge without a worker, so under any load; whether its dependencies are there
//! is found out at a place of its own.

use serde::Serialize;
use serde_json::{Value, json};

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

/// Asks for the state of all dependencies of a service.
pub(super) type Dependencies = Box<dyn FnMut() -> Vec<Dependency> + Send>;

pub(super) const ROUTES: &[Route<Dependencies>] =
    &[(Verb::Get, "/ready", Handler::One(get_readiness))];

/// The answer to `/health` and `/metrics`; None for any other path.
pub(super) fn answer(
    edge: &Edge,
    method: &str,
    path: &str,
) -> Option<Result<Response<'static>, Problem>> {
    let response = match path.strip_suffix('/').unwrap_or(path) {
        "/health" => (|_| health()) as fn(&Edge) -> Response<'static>,
        "/metrics" => metrics,
        _ => return None,
    };
    Some(match method {
        "GET" | "HEAD" => Ok(response(edge)),
        "OPTIONS" => Ok(Response::empty(204).with_header("allow", ALLOW)),
        _ => Err(Problem::method_not_allowed(ALLOW.to_owned())),
    })
}

/// The answer that says that the process lives.
#[must_use]
pub fn health() -> Response<'static> {
    Response::json(200, &json!({ "status": "ok" }))
}

fn metrics(edge: &Edge) -> Response<'static> {
    Response::text(
        200,
        "text/plain; version=0.0.4; charset=utf-8",
        edge.metrics.text(),
    )
}

#[derive(Serialize)]
struct Ready<'a> {
    status: &'static str,
    dependencies: &'a Value,
}

fn get_readiness<'a>(dependencies: &'a mut Dependencies, _: &Request) -> HandlerResult<'a> {
    let dependencies = dependencies();
    let states: Value = dependencies
        .iter()
        .map(|dependency| (dependency.name.to_owned(), json!(dependency.state)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let complaints = complaints(&dependencies);
    if complaints.is_empty() {
        return Ok(Response::json(
            200,
            &Ready {
                status: "ready",
                dependencies: &states,
            },
        ));
    }
    Err(
        Problem::unavailable(format!("not ready: {complaints}"), complaints)
            .with_dependencies(states),
    )
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
