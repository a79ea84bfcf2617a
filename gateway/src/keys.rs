//! Which order each `Idempotency-Key` stood for lately, so that the same key with another order is
//! refused while the client is there to hear it. What is forgotten here is found by the consumer,
//! which compares with what is recorded.

use std::collections::{HashMap, VecDeque};

use common::order::NewOrder;

/// So many keys are remembered; the oldest is forgotten first. Some 4 MB where all of them, and the
/// users, are as long as they may be.
const KEYS_MAX: usize = 10_000;

/// Orders by the message id that their key became.
#[derive(Default)]
pub(crate) struct Keys {
    orders: HashMap<String, NewOrder>,
    /// In the order in which they came.
    ids: VecDeque<String>,
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It was not there, and is from now.
    New,
    /// It stood for an equal order.
    Same,
    /// It stands for another order.
    Other,
}

impl Keys {
    /// Compares the orders as they are read, so that `1` and `"1"` are equal.
    pub(crate) fn remember(&mut self, message_id: &str, order: NewOrder) -> Known {
        if let Some(known) = self.orders.get(message_id) {
            return if *known == order {
                Known::Same
            } else {
                Known::Other
            };
        }
        if self.ids.len() >= KEYS_MAX
            && let Some(oldest) = self.ids.pop_front()
        {
            self.orders.remove(&oldest);
        }
        self.orders.insert(message_id.to_owned(), order);
        self.ids.push_back(message_id.to_owned());
        Known::New
    }

    /// The order was refused: its key is free for another.
    pub(crate) fn forget(&mut self, message_id: &str) {
        if self.orders.remove(message_id).is_some() {
            // It is most likely among the latest.
            let place = self.ids.iter().rposition(|id| id == message_id);
            place.and_then(|place| self.ids.remove(place));
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
        let mut keys = Keys::default();

        let known = [
            ("a", "1"),
            ("a", r#""1""#),
            ("a", "2"),
            ("b", "2"),
            ("a", "1"),
        ]
        .map(|(key, items)| keys.remember(key, order(items)));

        let expected = [
            Known::New,
            Known::Same,
            Known::Other,
            Known::New,
            Known::Same,
        ];
        assert_eq!(known, expected);
    }

    #[test]
    fn a_key_whose_order_was_refused_is_free_again() {
        let mut keys = Keys::default();
        keys.remember("a", order("1"));

        keys.forget("a");

        assert_eq!(keys.remember("a", order("2")), Known::New);
        assert_eq!((keys.orders.len(), keys.ids.len()), (1, 1));
    }

    #[test]
    fn of_too_many_keys_the_oldest_is_forgotten() {
        let mut keys = Keys::default();
        for number in 0..=KEYS_MAX {
            keys.remember(&number.to_string(), order("1"));
        }

        assert_eq!((keys.orders.len(), keys.ids.len()), (KEYS_MAX, KEYS_MAX));
        assert_eq!(keys.remember("1", order("2")), Known::Other);
        assert_eq!(keys.remember("0", order("2")), Known::New);
    }
}
