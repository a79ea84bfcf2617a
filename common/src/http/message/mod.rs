//! What HTTP says: no sockets and no threads.

pub(crate) mod framing;

pub(crate) mod problem;
pub(crate) mod response;

pub(crate) mod head;
pub(crate) mod request;

pub(crate) mod conditional;
pub(crate) mod page;
