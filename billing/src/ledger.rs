//! Which messages may be acknowledged. The broker numbers deliveries on a channel from 1, and one
//! acknowledgement may stand for all up to a number (AMQP 0-9-1 §1.8.3.13); the ledger grants that
//! only where nothing before it is undecided. A ledger belongs to one channel, and ends with it.

use std::collections::BTreeMap;
use std::time::Instant;

/// The deliveries that are not acknowledged, in their order, and when each came.
#[derive(Default)]
pub(crate) struct Ledger {
    open: BTreeMap<u64, Instant>,
}

/// What to acknowledge.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgements<T> {
    /// This delivery and all before it.
    pub(crate) up_to: Option<T>,
    /// Each of these alone: an older delivery is undecided.
    pub(crate) alone: Vec<T>,
}

impl Ledger {
    /// Notes a delivery.
    pub(crate) fn open(&mut self, tag: u64, at: Instant) {
        self.open.insert(tag, at);
    }

    /// Takes out what is settled; a tag that is not open is passed over.
    pub(crate) fn settle<T>(&mut self, settled: Vec<(u64, T)>) -> Acknowledgements<T> {
        let mut settled: BTreeMap<u64, T> = settled
            .into_iter()
            .filter(|(tag, _)| self.open.remove(tag).is_some())
            .collect();
        let alone = match self.open.first_key_value() {
            Some((oldest, _)) => settled.split_off(oldest),
            None => BTreeMap::new(),
        };
        Acknowledgements {
            up_to: settled.pop_last().map(|(_, delivery)| delivery),
            alone: alone.into_values().collect(),
        }
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// When the oldest of them came.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.open.first_key_value().map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A broker with messages on its queue, as AMQP has it: what is delivered and not acknowledged
    /// comes again on another channel.
    #[derive(Default)]
    struct Broker {
        ready: BTreeSet<u32>,
        unacknowledged: BTreeMap<u64, u32>,
        last_tag: u64,
    }

    impl Broker {
        fn deliver(&mut self) -> Option<(u64, u32)> {
            let message = self.ready.pop_first()?;
            self.last_tag += 1;
            self.unacknowledged.insert(self.last_tag, message);
            Some((self.last_tag, message))
        }

        /// The messages that are gone. A tag that is not known closes the channel.
        fn acknowledge(&mut self, tag: u64, multiple: bool) -> Vec<u32> {
            assert!(self.unacknowledged.contains_key(&tag), "unknown tag {tag}");
            if !multiple {
                return self.unacknowledged.remove(&tag).into_iter().collect();
            }
            let later = self.unacknowledged.split_off(&(tag + 1));
            let gone = std::mem::replace(&mut self.unacknowledged, later);
            gone.into_values().collect()
        }

        fn lose_channel(&mut self) {
            let back = std::mem::take(&mut self.unacknowledged);
            self.ready.extend(back.into_values());
            self.last_tag = 0;
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Deliver(usize),
        /// Settles those in hand whose bit is set.
        Settle(u64),
        LoseChannel,
        /// Settles likewise, and the channel is lost before the broker hears of it.
        SettleInVain(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1..20_usize).prop_map(Step::Deliver),
            5 => any::<u64>().prop_map(Step::Settle),
            1 => Just(Step::LoseChannel),
            1 => any::<u64>().prop_map(Step::SettleInVain),
        ];
        proptest::collection::vec(step, 1..60)
    }

    /// A consumer, and what it has settled.
    #[derive(Default)]
    struct Consumer {
        broker: Broker,
        ledger: Ledger,
        hand: Vec<(u64, u32)>,
        settled: BTreeSet<u32>,
        gone: BTreeSet<u32>,
    }

    impl Consumer {
        fn take(&mut self, count: usize) {
            for _ in 0..count {
                let Some((tag, message)) = self.broker.deliver() else {
                    return;
                };
                self.ledger.open(tag, Instant::now());
                self.hand.push((tag, message));
            }
        }

        fn settle(&mut self, bits: u64) -> Acknowledgements<u64> {
            let mut place = 0;
            let chosen = self.hand.extract_if(.., |_| {
                place += 1;
                bits >> (place % 64) & 1 == 1
            });
            let chosen: Vec<_> = chosen.collect();
            self.settled
                .extend(chosen.iter().map(|(_, message)| *message));
            let tagged = chosen.into_iter().map(|(tag, _)| (tag, tag));
            self.ledger.settle(tagged.collect())
        }

        fn acknowledge(&mut self, acknowledgements: Acknowledgements<u64>) {
            let Acknowledgements { up_to, alone } = acknowledgements;
            let up_to = up_to.map(|tag| (tag, true));
            for (tag, multiple) in up_to
                .into_iter()
                .chain(alone.into_iter().map(|tag| (tag, false)))
            {
                for message in self.broker.acknowledge(tag, multiple) {
                    assert!(self.settled.contains(&message), "{message} is lost");
                    assert!(self.gone.insert(message), "{message} is gone twice");
                }
            }
        }

        fn lose_channel(&mut self) {
            self.broker.lose_channel();
            self.hand.clear();
            self.ledger = Ledger::default();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn nothing_is_acknowledged_that_is_not_settled_and_all_that_is_settled_in_the_end(
            steps in steps()
        ) {
            let mut consumer = Consumer::default();
            consumer.broker.ready = (0..200).collect();

            for step in steps {
                match step {
                    Step::Deliver(count) => consumer.take(count),
                    Step::Settle(bits) => {
                        let acknowledgements = consumer.settle(bits);
                        consumer.acknowledge(acknowledgements);
                    }
                    Step::SettleInVain(bits) => {
                        let _ = consumer.settle(bits);
                        consumer.lose_channel();
                    }
                    Step::LoseChannel => consumer.lose_channel(),
                }
                let unacknowledged = consumer.broker.unacknowledged.keys();
                let hand: BTreeSet<_> = consumer.hand.iter().map(|(tag, _)| tag).collect();
                prop_assert_eq!(unacknowledged.collect::<BTreeSet<_>>(), hand);
                prop_assert_eq!(consumer.ledger.len(), consumer.hand.len());
            }
            consumer.take(200);
            let acknowledgements = consumer.settle(u64::MAX);
            consumer.acknowledge(acknowledgements);

            prop_assert!(consumer.broker.unacknowledged.is_empty());
            prop_assert!(consumer.ledger.oldest().is_none());
            prop_assert_eq!(consumer.gone, (0..200).collect::<BTreeSet<_>>());
        }
    }
}
