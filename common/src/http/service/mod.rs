//! What a program registers: routes and the bulkheads behind them.

#[cfg_attr(
    feature = "tiny_http",
    allow(dead_code, reason = "its workers are others")
)]
pub(crate) mod workers;

pub(crate) mod router;

mod queue;

pub(crate) mod bulkhead;
pub(crate) mod operations;

pub(crate) mod access_log;
