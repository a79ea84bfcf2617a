//! The published messages that the broker has neither confirmed nor refused.

use std::collections::BTreeMap;

use amiquip::Confirm;

/// Messages that were published on a [`ConfirmChannel`](super::ConfirmChannel) and are not confirmed yet, in the
/// order of their delivery tags.
#[derive(Debug)]
pub struct OutstandingConfirms<T> {
    last_tag: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for OutstandingConfirms<T> {
    fn default() -> Self {
        Self {
            last_tag: 0,
            waiting: BTreeMap::new(),
        }
    }
}

impl<T> OutstandingConfirms<T> {
    /// Adds a message after it was published; delivery tags count from 1.
    pub fn push(&mut self, message: T) {
        self.last_tag += 1;
        self.waiting.insert(self.last_tag, message);
    }

    /// Removes and returns the messages that a confirm settles; true for an ack, false for a nack.
    pub fn settle(&mut self, confirm: Confirm) -> (bool, BTreeMap<u64, T>) {
        let (taken, payload) = match confirm {
            Confirm::Ack(payload) => (true, payload),
            Confirm::Nack(payload) => (false, payload),
        };
        let later = self.waiting.split_off(&(payload.delivery_tag + 1));
        let mut settled = std::mem::replace(&mut self.waiting, later);
        if !payload.multiple {
            let others = settled.split_off(&payload.delivery_tag);
            let mut earlier = std::mem::replace(&mut settled, others);
            self.waiting.append(&mut earlier);
        }
        (taken, settled)
    }

    /// The messages that wait, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.values()
    }

    /// The messages that wait, oldest first, as mutable references.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.waiting.values_mut()
    }

    /// The number of messages that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use amiquip::ConfirmPayload;

    use super::*;

    fn published(count: usize) -> OutstandingConfirms<usize> {
        let mut outstanding = OutstandingConfirms::default();
        (1..=count).for_each(|message| outstanding.push(message));
        outstanding
    }

    fn messages(settled: (bool, BTreeMap<u64, usize>)) -> (bool, Vec<usize>) {
        (settled.0, settled.1.into_values().collect())
    }

    fn payload(delivery_tag: u64, multiple: bool) -> ConfirmPayload {
        ConfirmPayload {
            delivery_tag,
            multiple,
        }
    }

    #[test]
    fn a_refused_message_is_not_taken_by_a_later_confirm_of_several() {
        let mut outstanding = published(5);

        assert_eq!(
            messages(outstanding.settle(Confirm::Nack(payload(3, false)))),
            (false, vec![3])
        );
        assert_eq!(
            messages(outstanding.settle(Confirm::Ack(payload(5, true)))),
            (true, vec![1, 2, 4, 5])
        );
        assert!(outstanding.is_empty());
    }

    #[test]
    fn a_confirm_of_one_leaves_those_before_and_behind_it() {
        let mut outstanding = published(3);

        assert_eq!(
            messages(outstanding.settle(Confirm::Ack(payload(2, false)))),
            (true, vec![2])
        );
        assert_eq!(
            messages(outstanding.settle(Confirm::Ack(payload(2, false)))),
            (true, vec![])
        );
        assert_eq!(outstanding.len(), 2);
    }
}
