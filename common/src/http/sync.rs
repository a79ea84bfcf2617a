//! The locks, atomics and clock of the server: those of std, or those of shuttle if its schedules are explored.

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

/// The value of the header `Date`.
pub(crate) fn date() -> String {
    httpdate::fmt_http_date(std::time::SystemTime::now())
}

/// Locks a mutex, also after a panic: nothing that runs under a lock leaves its value inconsistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    let locked = mutex.lock();
    locked.unwrap_or_else(std::sync::PoisonError::into_inner)
}
