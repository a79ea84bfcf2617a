//! Remembers the order of each recent `Idempotency-Key`, so that the gateway can refuse a key with another
//! order while the client waits. For older keys the consumer compares the message with the recorded order.

use std::collections::{HashMap, VecDeque};

use common::order::NewOrder;

/// How many keys are remembered; the oldest is forgotten first. They take some 4 MB if all keys and user ids
/// have their greatest length.
const KEYS_MAX: usize = 10_000;

/// The orders, by the message id that is made of their key.
#[derive(Default)]
pub(crate) struct IdempotencyKeys {
    orders: HashMap<String, NewOrder>,
    /// The message ids, oldest first.
    ids: VecDeque<String>,
}

/// How an order compares with the one that is remembered for its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyMatch {
    /// The key is now remembered, and was not before.
    New,
    /// The remembered order is equal.
    Same,
    /// The remembered order differs.
    Other,
}

impl IdempotencyKeys {
    /// Remembers the order of a key, or compares it with the remembered one. Parsed orders are compared, so
    /// `1` and `"1"` are equal.
    pub(crate) fn remember(&mut self, message_id: &str, order: NewOrder) -> KeyMatch {
        if let Some(remembered) = self.orders.get(message_id) {
            return if *remembered == order {
                KeyMatch::Same
            } else {
                KeyMatch::Other
            };
        }
        if self.ids.len() >= KEYS_MAX
            && let Some(oldest) = self.ids.pop_front()
        {
            self.orders.remove(&oldest);
        }
        self.orders.insert(message_id.to_owned(), order);
        self.ids.push_back(message_id.to_owned());
        KeyMatch::New
    }

    /// Forgets a key whose order was refused, so that it can be used for another order.
    pub(crate) fn forget(&mut self, message_id: &str) {
        if self.orders.remove(message_id).is_some() {
            // It is most likely one of the last.
            let index = self.ids.iter().rposition(|id| id == message_id);
            index.and_then(|index| self.ids.remove(index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(number_of_items: &str) -> NewOrder {
        let json = format!(
            r#"{{"total_amount":"1.50","user_id":"20","number_of_items":{number_of_items}}}"#
        );
        NewOrder::from_json(json.as_bytes()).expect("an order")
    }

    #[test]
    fn a_key_stands_for_the_order_that_it_came_with_first() {
        let mut keys = IdempotencyKeys::default();

        let matches = [
            ("a", "1"),
            ("a", r#""1""#),
            ("a", "2"),
            ("b", "2"),
            ("a", "1"),
        ]
        .map(|(key, items)| keys.remember(key, order(items)));

        let expected = [
            KeyMatch::New,
            KeyMatch::Same,
            KeyMatch::Other,
            KeyMatch::New,
            KeyMatch::Same,
        ];
        assert_eq!(matches, expected);
    }

    #[test]
    fn a_key_whose_order_was_refused_is_free_again() {
        let mut keys = IdempotencyKeys::default();
        keys.remember("a", order("1"));

        keys.forget("a");

        assert_eq!(keys.remember("a", order("2")), KeyMatch::New);
        assert_eq!((keys.orders.len(), keys.ids.len()), (1, 1));
    }

    #[test]
    fn of_too_many_keys_the_oldest_is_forgotten() {
        let mut keys = IdempotencyKeys::default();
        for number in 0..=KEYS_MAX {
            keys.remember(&number.to_string(), order("1"));
        }

        assert_eq!((keys.orders.len(), keys.ids.len()), (KEYS_MAX, KEYS_MAX));
        assert_eq!(keys.remember("1", order("2")), KeyMatch::Other);
        assert_eq!(keys.remember("0", order("2")), KeyMatch::New);
    }
}
