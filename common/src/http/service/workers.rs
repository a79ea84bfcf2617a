//! The number of workers: one for each core, and one more for each worker that waits for PostgreSQL or for a
//! client. They are started as they are needed, so there is always a worker that reads requests.

use std::cell::RefCell;
use std::sync::Arc;

use crate::http::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use crate::http::sync::thread_local;

thread_local! {
    /// The workers that this thread belongs to.
    static OWN: RefCell<Option<Arc<Workers>>> = const { RefCell::new(None) };
}

pub(crate) struct Workers {
    live: AtomicUsize,
    waiting: AtomicUsize,
    spare: usize,
    start: Box<dyn Fn() -> bool + Send + Sync>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Workers {
    /// There are `spare` workers that do not wait. `start` starts a thread that calls [`Workers::work`], and
    /// `wake` wakes a worker that looks for requests in the bulkheads.
    pub(crate) fn new(
        spare: usize,
        start: impl Fn() -> bool + Send + Sync + 'static,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            live: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            spare,
            start: Box::new(start),
            wake: Box::new(wake),
        }
    }

    /// Starts the workers that are missing; false if the system refuses a thread.
    pub(crate) fn start_missing(&self) -> bool {
        let is_missing = |live| {
            let wanted = self.spare + self.waiting.load(SeqCst);
            (live < wanted).then_some(live + 1)
        };
        while self.live.fetch_update(SeqCst, SeqCst, is_missing).is_ok() {
            if !(self.start)() {
                self.live.fetch_sub(1, SeqCst);
                return false;
            }
        }
        true
    }

    /// Makes the calling thread a worker for as long as `work` lasts.
    pub(crate) fn work(self: &Arc<Self>, work: impl FnOnce()) {
        OWN.with(|own| own.replace(Some(Arc::clone(self))));
        work();
        OWN.with(RefCell::take);
        self.live.fetch_sub(1, SeqCst);
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(SeqCst)
    }
}

/// Wakes another worker, which looks for requests in the bulkheads.
pub(crate) fn wake_another() {
    OWN.with(|own| own.borrow().iter().for_each(|workers| (workers.wake)()));
}

/// Runs a function that may wait for PostgreSQL or for a slow client.
pub(crate) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    struct WaitGuard(Option<Arc<Workers>>);
    impl Drop for WaitGuard {
        fn drop(&mut self) {
            if let Some(workers) = self.0.take() {
                workers.waiting.fetch_sub(1, SeqCst);
                OWN.with(|own| own.replace(Some(workers)));
            }
        }
    }
    // The value is taken out, so that nested calls count once.
    let waiting = WaitGuard(OWN.with(RefCell::take));
    if let Some(workers) = &waiting.0 {
        workers.waiting.fetch_add(1, SeqCst);
        workers.start_missing();
    }
    wait()
}
