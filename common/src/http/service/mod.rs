//! What a program registers: routes, the bulkheads behind them, and limits.

pub(crate) mod limits;
pub(crate) mod workers;

pub(crate) mod router;

pub(crate) mod queues;

pub(crate) mod bulkhead;
pub(crate) mod operations;
pub(crate) mod operations_key;

pub(crate) mod access_log;
mod refusals;
