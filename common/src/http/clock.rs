//! The clock of the schedules, which only tests move.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

thread_local! {
    static SINCE_BASE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

pub(crate) fn now() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    *BASE.get_or_init(Instant::now) + SINCE_BASE.get()
}

pub(crate) fn advance(time: Duration) {
    SINCE_BASE.set(SINCE_BASE.get() + time);
}

pub(crate) fn reset() {
    SINCE_BASE.set(Duration::ZERO);
}
