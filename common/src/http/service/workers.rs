//! How many workers there are: one for each core, and one more for each that waits for somebody
//! else, as they are needed. So whatever is waited for, requests are read on.

use std::cell::RefCell;
use std::sync::Arc;

use crate::http::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use crate::http::sync::thread_local;

thread_local! {
    /// Those that this thread belongs to.
    static OWN: RefCell<Option<Arc<Workers>>> = const { RefCell::new(None) };
}

pub(crate) struct Workers {
    live: AtomicUsize,
    waiting: AtomicUsize,
    spare: usize,
    start: Box<dyn Fn() -> bool + Send + Sync>,
    call: Box<dyn Fn() + Send + Sync>,
}

impl Workers {
    /// `spare` workers that do not wait, and as many more as do; `start` starts a thread that
    /// calls [`Workers::work`], and `call` has one of them look for what waits in the bulkheads.
    pub(crate) fn new(
        spare: usize,
        start: impl Fn() -> bool + Send + Sync + 'static,
        call: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            live: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            spare,
            start: Box::new(start),
            call: Box::new(call),
        }
    }

    /// Starts those that are missing; false where the system refuses.
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

/// Has another worker look for what waits in the bulkheads.
pub(crate) fn call_another() {
    OWN.with(|own| own.borrow().iter().for_each(|workers| (workers.call)()));
}

/// Runs what may wait for somebody else: PostgreSQL, or a slow client.
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
    // Taken, so that waiting within waiting counts once.
    let waiting = WaitGuard(OWN.with(RefCell::take));
    if let Some(workers) = &waiting.0 {
        workers.waiting.fetch_add(1, SeqCst);
        workers.start_missing();
    }
    wait()
}
