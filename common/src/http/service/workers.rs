//! How many workers there are: one for each core, and one more for each that waits for somebody
//! else, as they are needed. So whatever is waited for, requests are read on.

use std::cell::RefCell;
use std::sync::Arc;

use crate::http::sync::atomic::{AtomicUsize, Ordering};
use crate::http::sync::thread_local;

thread_local! {
    /// Those that this thread belongs to.
    static OWN: RefCell<Option<Arc<Workers>>> = const { RefCell::new(None) };
}

pub(crate) struct Workers {
    live: AtomicUsize,
    waiting: AtomicUsize,
    spare: usize,
    max: usize,
    start: Box<dyn Fn() -> bool + Send + Sync>,
    call: Box<dyn Fn() + Send + Sync>,
}

impl Workers {
    /// `spare` workers that do not wait, and `waiting_max` that do; `start` starts a thread that
    /// calls [`Workers::work`], and `call` has one of them look for what waits in the bulkheads.
    pub(crate) fn new(
        spare: usize,
        waiting_max: usize,
        start: impl Fn() -> bool + Send + Sync + 'static,
        call: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            live: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            spare,
            max: spare + waiting_max,
            start: Box::new(start),
            call: Box::new(call),
        }
    }

    /// Starts those that are missing; false where the system refuses.
    pub(crate) fn start_missing(&self) -> bool {
        loop {
            let wanted = (self.spare + self.waiting.load(Ordering::SeqCst)).min(self.max);
            let more = |live| (live < wanted).then_some(live + 1);
            if self
                .live
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
                .is_err()
            {
                return true;
            }
            if !(self.start)() {
                self.live.fetch_sub(1, Ordering::SeqCst);
                return false;
            }
        }
    }

    /// Makes the calling thread a worker for as long as `work` lasts.
    #[cfg_attr(
        feature = "tiny_http",
        expect(dead_code, reason = "its workers are others")
    )]
    pub(crate) fn work(self: &Arc<Self>, work: impl FnOnce()) {
        OWN.with(|own| *own.borrow_mut() = Some(Arc::clone(self)));
        work();
        OWN.with(|own| *own.borrow_mut() = None);
        self.live.fetch_sub(1, Ordering::SeqCst);
    }

    #[cfg_attr(
        feature = "tiny_http",
        expect(dead_code, reason = "its workers are others")
    )]
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

/// Has another worker look for what waits in the bulkheads.
pub(crate) fn call_another() {
    OWN.with(|own| {
        if let Some(workers) = &*own.borrow() {
            (workers.call)();
        }
    });
}

/// Runs what may wait for somebody else: PostgreSQL, or a slow client.
pub(crate) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    struct Waiting(Option<Arc<Workers>>);
    impl Drop for Waiting {
        fn drop(&mut self) {
            let Some(workers) = self.0.take() else { return };
            workers.waiting.fetch_sub(1, Ordering::SeqCst);
            OWN.with(|own| *own.borrow_mut() = Some(workers));
        }
    }
    // Taken, so that waiting within waiting counts once.
    let waiting = Waiting(OWN.with(|own| own.borrow_mut().take()));
    if let Some(workers) = &waiting.0 {
        workers.waiting.fetch_add(1, Ordering::SeqCst);
        workers.start_missing();
    }
    wait()
}
