//! Decides which deliveries are acknowledged. The broker numbers the deliveries of a channel from 1, and one
//! acknowledgement may stand for all up to a number (AMQP 0-9-1 §1.8.3.13). The ledger allows that only if all
//! deliveries up to that number are settled. A ledger belongs to one channel and is dropped with it.

use std::collections::BTreeMap;
use std::time::Instant;

/// The unacknowledged deliveries, in the order of their tags, with the time at which each arrived.
#[derive(Default)]
pub(crate) struct Ledger {
    open: BTreeMap<u64, Instant>,
}

/// What to acknowledge.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgements<T> {
    /// One acknowledgement for this delivery and all before it.
    pub(crate) up_to: Option<T>,
    /// An acknowledgement for each of these deliveries, since an older one is not settled.
    pub(crate) alone: Vec<T>,
}

impl Ledger {
    /// Adds a delivery.
    pub(crate) fn open(&mut self, tag: u64, at: Instant) {
        self.open.insert(tag, at);
    }

    /// Removes the settled deliveries; a tag that is not open is ignored.
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

    /// The number of open deliveries.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// When the oldest open delivery arrived.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.open.first_key_value().map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A model of a broker with a queue: messages that are delivered and not acknowledged are delivered again on
    /// another channel.
    #[derive(Default)]
    struct BrokerModel {
        ready: BTreeSet<u32>,
        unacknowledged: BTreeMap<u64, u32>,
        last_tag: u64,
    }

    impl BrokerModel {
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
        /// Settles the unacknowledged messages whose bit is set.
        Settle(u64),
        LoseChannel,
        /// Settles messages whose bit is set, and loses the channel before the acknowledgement.
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

    /// A model of a consumer, with the messages that it has settled.
    #[derive(Default)]
    struct ConsumerModel {
        broker: BrokerModel,
        ledger: Ledger,
        deliveries: Vec<(u64, u32)>,
        settled: BTreeSet<u32>,
        gone: BTreeSet<u32>,
    }

    impl ConsumerModel {
        fn take(&mut self, count: usize) {
            for _ in 0..count {
                let Some((tag, message)) = self.broker.deliver() else {
                    return;
                };
                self.ledger.open(tag, Instant::now());
                self.deliveries.push((tag, message));
            }
        }

        fn settle(&mut self, bits: u64) -> Acknowledgements<u64> {
            let mut place = 0;
            let chosen = self.deliveries.extract_if(.., |_| {
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
            self.deliveries.clear();
            self.ledger = Ledger::default();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn nothing_is_acknowledged_that_is_not_settled_and_all_that_is_settled_in_the_end(
            steps in steps()
        ) {
            let mut consumer = ConsumerModel::default();
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
                let deliveries: BTreeSet<_> = consumer.deliveries.iter().map(|(tag, _)| tag).collect();
                prop_assert_eq!(unacknowledged.collect::<BTreeSet<_>>(), deliveries);
                prop_assert_eq!(consumer.ledger.len(), consumer.deliveries.len());
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
