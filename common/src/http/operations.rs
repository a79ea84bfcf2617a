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
    /// Whether it answers.
    pub up: bool,
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
    let state = |up| json!(if up { "up" } else { "down" });
    let states: Value = dependencies
        .iter()
        .map(|dependency| (dependency.name.to_owned(), state(dependency.up)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let down = dependencies.iter().filter(|dependency| !dependency.up);
    let down = down
        .map(|dependency| dependency.name)
        .collect::<Vec<_>>()
        .join(" and ");
    if down.is_empty() {
        return Ok(Response::json(
            200,
            &Ready {
                status: "ready",
                dependencies: &states,
            },
        ));
    }
    Err(Problem::unavailable(
        format!("not ready: {down} cannot be reached"),
        format!("{down} down"),
    )
    .with_dependencies(states))
}
