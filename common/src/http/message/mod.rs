//! The messages of HTTP, without sockets and threads.

pub(crate) mod framing;

pub(crate) mod problem;
pub(crate) mod response;

pub(crate) mod head;
pub(crate) mod headers;
pub(crate) mod request;
pub(crate) mod request_id;

pub(crate) mod conditional;
pub(crate) mod page;
