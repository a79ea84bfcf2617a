//! Gives each message its fate. A message that breaks a rule becomes a dead letter; the tables show which messages
//! are duplicates and which conflict with another order. An order that keeps its rules fits into the tables of `migrations/`, so
//! whatever PostgreSQL reports about it, the cause is not in the order: it is held until somebody has removed
//! the cause. The exception is a character that the encoding of the database does not have: such an order can
//! never be recorded.

use std::mem;
use std::time::Instant;

use common::db::DbError;

use crate::message::{Message, Reason};
use crate::store::{Fate, RecordStore};

/// Messages with their fates.
pub(crate) type Fates = Vec<(Message, Fate)>;

/// Writes a batch, and moves each message with its fate to `fates`. A batch that is refused is divided
/// until each refused message is alone; after the deadline all messages of a refused part are held. An error
/// means that no order can be written now; the messages that remain in `batch` then have no fate.
pub(crate) fn settle(
    store: &mut RecordStore,
    batch: &mut Vec<Message>,
    deadline: Instant,
    fates: &mut Fates,
) -> Result<(), DbError> {
    let mut parts = vec![mem::take(batch)];
    while let Some(mut part) = parts.pop() {
        let refusal = match store.record(&part) {
            Ok(Ok(written)) => {
                fates.extend(part.into_iter().zip(written));
                continue;
            }
            Ok(Err(refusal)) => refusal,
            Err(error) => {
                parts.push(part);
                batch.extend(parts.into_iter().rev().flatten());
                return Err(error);
            }
        };
        let rest = divide(&mut part, &refusal, deadline);
        if !rest.is_empty() {
            parts.extend([rest, part]);
            continue;
        }
        for mut message in part {
            if matches!(refusal, DbError::Unencodable(_)) && store.lacks_characters_for(&message) {
                let text = format!("the database refused it: {refusal}");
                message.content = Err(Reason::new("database", text));
                parts.push(vec![message]);
            } else {
                fates.push((message, Fate::Held(refusal.to_string())));
            }
        }
    }
    Ok(())
}

/// Settles one message.
pub(crate) fn settle_one(store: &mut RecordStore, message: Message) -> Result<Fate, DbError> {
    let mut fates = Fates::new();
    // No time is needed to divide a single message.
    settle(store, &mut vec![message], Instant::now(), &mut fates)?;
    let (_, fate) = fates.pop().expect("every message of a batch has a fate");
    Ok(fate)
}

/// Removes a part of the refused messages, to be tried separately; nothing if all of them are held.
fn divide(refused: &mut Vec<Message>, refusal: &DbError, deadline: Instant) -> Vec<Message> {
    let orders = refused.iter().filter(|message| message.content.is_ok());
    let orders = orders.count();
    if Instant::now() >= deadline {
        Vec::new()
    } else if 0 < orders && orders < refused.len() {
        // Orders do not wait for dead letters.
        refused
            .extract_if(.., |message| message.content.is_err())
            .collect()
    } else if orders == 0 && matches!(refusal, DbError::Locked(_)) {
        // The only lock that new rows can wait for is that of their whole table.
        Vec::new()
    } else {
        refused.split_off(refused.len().div_ceil(2))
    }
}
