//! What the gateway says about itself: `docs/openapi.yaml`, as it was when this was built. Open to
//! all, keys or none: whoever has to learn how to call cannot call yet.

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
