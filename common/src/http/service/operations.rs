//! What an operator asks of every program: whether the process lives, whether its dependencies
//! are there, and its metrics. Where there is an `OPERATIONS_KEY`, nobody without it sees more than
//! whether the process lives and is ready.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::bulkhead::{Bulkhead, Handler, Route};
use super::limits::Limits;
use super::operations_key::OperationsKey;
use super::router::{self, Submit, Verb};
use crate::http::connection::Decided;
use crate::http::message::head::Head;
use crate::http::message::problem::Problem;
use crate::http::message::request::Request;
use crate::http::message::response::{HandlerResult, Response};
use crate::metrics::Metrics;

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

/// What `/ready` goes by.
struct Readiness {
    /// Who may see more than the status; all, where there is none.
    key: Option<OperationsKey>,
    dependencies: Dependencies,
}

/// Asks for the state of all dependencies of a service.
pub(crate) type Dependencies = Box<dyn FnMut() -> Vec<Dependency> + Send>;

const ROUTES: [(Verb, &str); 3] = [
    (Verb::Get, "/health"),
    (Verb::Get, "/metrics"),
    (Verb::Get, READY[0].1),
];

const READY: &[Route<Readiness>] = &[(Verb::Get, "/ready", Handler::One(get_readiness))];

/// Takes what nothing else does.
pub(crate) struct Operations {
    metrics: Metrics,
    key: Option<OperationsKey>,
    ready: Arc<Bulkhead<Readiness>>,
}

impl Operations {
    pub(crate) fn new(
        metrics: &Metrics,
        limits: &Limits,
        key: Option<OperationsKey>,
        dependencies: impl Fn() -> Dependencies + Send + Sync + 'static,
    ) -> Self {
        let readiness = {
            let key = key.clone();
            move || Readiness {
                key: key.clone(),
                dependencies: dependencies(),
            }
        };
        Self {
            metrics: metrics.clone(),
            key,
            ready: Arc::new(Bulkhead::new("", 1, READY, limits, readiness)),
        }
    }
}

impl Submit for Operations {
    fn prefix(&self) -> &'static str {
        ""
    }

    fn admit(&self, head: &mut Head) -> Option<Decided> {
        if let Some(decided) = router::find(ROUTES.into_iter(), head) {
            return Some(decided);
        }
        match head.matched.pattern {
            "/ready" => self.ready.admit(head),
            "/metrics" if !may_see(self.key.as_ref(), head) => Some(Err(Problem::unauthorized(
                "send the key of operations, as Authorization: Bearer KEY",
            ))),
            _ => None,
        }
    }

    /// Neither whether the process lives nor its metrics need a slot, so they are answered under
    /// any load.
    fn submit(self: Arc<Self>, request: Request) {
        match request.matched.pattern {
            "/health" => request.respond(Ok(health())),
            "/metrics" => {
                let text = self.metrics.text();
                let media_type = "text/plain; version=0.0.4; charset=utf-8";
                request.respond(Ok(Response::text(200, media_type, text)));
            }
            _ => Arc::clone(&self.ready).submit(request),
        }
    }

    fn slots(&self) -> usize {
        self.ready.slots()
    }

    fn sweep(&self, now: Instant) {
        self.ready.sweep(now);
    }

    fn drain(self: Arc<Self>) {
        Arc::clone(&self.ready).drain();
    }

    #[cfg(feature = "shuttle")]
    fn is_at_rest(&self) -> bool {
        self.ready.is_at_rest()
    }
}

/// The answer that says that the process lives.
pub fn health() -> Response<'static> {
    Response::json(200, &json!({ "status": "ok" }))
}

fn may_see(key: Option<&OperationsKey>, request: &Head) -> bool {
    key.is_none_or(|key| key.is_sent_with(request))
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
