//! Probes one component of the platform on a thread of its own, so that a component that does not answer
//! delays neither the other probes nor the request for the status.

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::process::{self, StartError};
use crossbeam_channel::{Receiver, Sender};

/// Runs probes whose result is an `A`. The thread ends after this value is dropped.
pub(crate) struct ProbeThread<A> {
    requests: Sender<Sender<A>>,
}

impl<A: Send + 'static> ProbeThread<A> {
    /// Starts the thread. `work` answers requests until the channel is closed. After a panic it is started
    /// again; otherwise the component would seem to be down for ever.
    pub(crate) fn start(
        name: &str,
        work: impl Fn(&Receiver<Sender<A>>) + Send + 'static,
    ) -> Result<Self, StartError> {
        let (requests, received) = crossbeam_channel::bounded(1);
        process::spawn(name, move || {
            while catch_unwind(AssertUnwindSafe(|| work(&received))).is_err() {}
        })?;
        Ok(Self { requests })
    }

    /// Requests a probe; its result comes over the returned channel. While the thread waits in an earlier
    /// probe, one request is queued and further ones are dropped.
    pub(crate) fn request(&self) -> Receiver<A> {
        let (reply, result) = crossbeam_channel::bounded(1);
        let _ = self.requests.try_send(reply);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_that_is_silent_is_not_probed_again_and_one_whose_probe_panicked_is() {
        let (tell, heard) = crossbeam_channel::unbounded();
        let (release, released) = crossbeam_channel::unbounded::<bool>();
        let thread = ProbeThread::start("a test", move |received| {
            while let Ok(reply) = received.recv() {
                tell.send(()).expect("the test goes on");
                let panics = released.recv().expect("the test goes on");
                assert!(!panics, "the probe panics");
                let _ = reply.send(());
            }
        })
        .expect("a thread");

        let silent = thread.request();
        heard.recv().expect("the component is probed");
        // One request is queued behind the silent one; the next is dropped.
        let waiting = thread.request();
        let refused = thread.request();
        assert_eq!(refused.recv(), Err(crossbeam_channel::RecvError));
        release.send(true).expect("the probe waits");
        release.send(false).expect("the probe waits");

        assert_eq!(silent.recv(), Err(crossbeam_channel::RecvError));
        assert_eq!(waiting.recv(), Ok(()));
    }
}
