//! Locks, atomics and the clock of the server: std's, or shuttle's where its schedules
//! are explored.

#[cfg(feature = "shuttle")]
use shuttle as threads;
#[cfg(not(feature = "shuttle"))]
use std as threads;

pub(crate) use threads::sync::{Mutex, MutexGuard, atomic};
pub(crate) use threads::thread_local;

#[cfg(feature = "shuttle")]
pub(crate) use super::clock::now;
#[cfg(not(feature = "shuttle"))]
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// The value of `Date`.
pub(crate) fn date() -> String {
    httpdate::fmt_http_date(std::time::SystemTime::now())
}

/// Nothing that happens under a lock can panic half way.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    let locked = mutex.lock();
    locked.unwrap_or_else(std::sync::PoisonError::into_inner)
}
