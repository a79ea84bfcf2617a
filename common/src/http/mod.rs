//! HTTP for the services: a handler is a plain function from a request and the state of its slot to a
//! [`Response`] or a [`Problem`]. Each folder uses only the folders declared before it.

#[cfg(feature = "shuttle")]
#[allow(dead_code, reason = "the tests alone move it")]
mod clock;
mod sync;

mod message;

mod connection;
mod limits;

mod service;

mod server;

pub use ::http::Method;
pub use limits::Limits;
pub use message::conditional::{
    entity_tag_of, if_changed, is_conditional, json_if_changed, require_no_tag, require_unchanged,
};
pub use message::head::{Head, network};
pub use message::headers::Headers;
pub use message::page::{Page, whole_list};
pub use message::problem::Problem;
pub use message::request::Request;
pub use message::request_id::is_request_id;
pub use message::response::{Body, BodySource, HandlerResult, Response, Stream};
pub use server::{HttpConfig, Interest, Server, Socket, Tls, connect, wait_for, watch};
pub use service::bulkhead::{Answers, Batch, Bulkhead, Handler, Lease, One, Route};
pub use service::operations::{Dependency, DependencyState, OperationsKey, health};
pub use service::router::{Admission, AnyBulkhead, Verb};
