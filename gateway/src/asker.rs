//! Asks one part of the platform on a thread of its own: a part that is silent holds up no other,
//! nor whoever asks.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crossbeam_channel::{Receiver, Sender};

/// Takes questions whose answer is an `A`. The thread ends by itself after the last handle.
pub(crate) struct Asker<A> {
    questions: Sender<Sender<A>>,
}

impl<A: Send + 'static> Asker<A> {
    /// `work` answers questions until there can be no more. It is begun anew after a panic: the part
    /// would seem to be down for ever after.
    pub(crate) fn start(
        name: &str,
        work: impl Fn(&Receiver<Sender<A>>) + Send + 'static,
    ) -> io::Result<Self> {
        let (questions, asked) = crossbeam_channel::bounded(1);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(
                move || {
                    while catch_unwind(AssertUnwindSafe(|| work(&asked))).is_err() {}
                },
            )?;
        Ok(Self { questions })
    }

    /// Where the answer will come, if it comes. While the thread is stuck at an earlier question
    /// nothing more is asked.
    pub(crate) fn ask(&self) -> Receiver<A> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let _ = self.questions.try_send(reply);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_silent_is_not_asked_again_and_one_that_panicked_is() {
        let (tell, heard) = crossbeam_channel::unbounded();
        let (release, released) = crossbeam_channel::unbounded::<bool>();
        let part = Asker::start("a test", move |asked| {
            while let Ok(reply) = asked.recv() {
                tell.send(()).expect("the test goes on");
                let panics = released.recv().expect("the test goes on");
                assert!(!panics, "as the test wants it");
                let _ = reply.send(());
            }
        })
        .expect("a thread");

        let silent = part.ask();
        heard.recv().expect("the part is asked");
        // One question waits behind the silent one; the next is not put.
        let waiting = part.ask();
        let refused = part.ask();
        assert_eq!(refused.recv(), Err(crossbeam_channel::RecvError));
        release.send(true).expect("the part waits");
        release.send(false).expect("the part waits");

        assert_eq!(silent.recv(), Err(crossbeam_channel::RecvError));
        assert_eq!(waiting.recv(), Ok(()));
    }
}
