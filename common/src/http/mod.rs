//! HTTP for the services: a handler is a plain function from a request and the state of
//! its place to a [`Response`] or a [`Problem`]; everything around it is done here, once.

mod conditional;
mod edge;
mod exchange;
mod hall;
mod operations;
mod page;
mod problem;
mod refusals;
mod request;
mod response;
mod router;
mod server;

pub use conditional::{
    entity_tag_of, if_changed, is_conditional, json_if_changed, require_no_tag, require_unchanged,
};
pub use edge::{EdgeLimits, Tls};
pub use exchange::{Exchange, is_request_id};
pub use hall::Hall;
pub use operations::{Dependency, DependencyState, OperationsKey, health};
pub use page::{Page, whole_list};
pub use problem::Problem;
pub use request::{Method, Request};
pub use response::{Body, Fill, Response, Stream, TakeOver};
pub use router::{AnsweredTogether, Answers, Handler, HandlerResult, Route, Verb};
pub use server::{HttpConfig, Server};
