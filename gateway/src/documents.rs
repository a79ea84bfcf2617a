//! Serves `docs/openapi.yaml`, which is built into the program. No key is needed for it, since a client reads it
//! to learn how to send one.

use common::http::{Handler, HandlerResult, Request, Response, Route, Verb, if_changed};

const OPENAPI: &str = include_str!("../../docs/openapi.yaml");

/// RFC 9512.
const YAML: &str = "application/yaml";

pub(crate) const OPENAPI_PATH: &str = "/openapi.yaml";

pub(crate) const OPENAPI_ROUTES: &[Route<()>] =
    &[(Verb::Get, OPENAPI_PATH, Handler::One(get_openapi))];

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn get_openapi<'a>(_: &'a mut (), request: &Request) -> HandlerResult<'a> {
    let document = Response::text(200, YAML, OPENAPI.to_owned());
    Ok(if_changed(request, document))
}
