//! What a program registers: routes, the bulkheads behind them, and limits.

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
