//! What becomes of a message is decided here and nowhere else. An order that keeps its rules fits into
//! the tables of `migrations/`, so whatever PostgreSQL says of it is no reason to give it up: it is held
//! until somebody has mended what is in its way. Only what the database has no characters for can never
//! be recorded.

use std::mem;
use std::time::Instant;

use common::db::DbError;

use crate::message::{Message, Reason};
use crate::store::{Fate, RecordStore};

/// Messages with their fates.
pub(crate) type Settled = Vec<(Message, Fate)>;

/// Writes a batch, and moves each message with its fate to `settled`. A batch that is refused is divided
/// until each message that is refused stands alone; after the deadline all of it is held, to be tried
/// again. An error means that no order can be written now; the messages that remain in `batch` then have
/// no fate.
pub(crate) fn settle(
    store: &mut RecordStore,
    batch: &mut Vec<Message>,
    deadline: Instant,
    settled: &mut Settled,
) -> Result<(), DbError> {
    let mut parts = vec![mem::take(batch)];
    while let Some(mut part) = parts.pop() {
        let refusal = match store.record(&part) {
            Ok(Ok(fates)) => {
                settled.extend(part.into_iter().zip(fates));
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
                settled.push((message, Fate::Held(refusal.to_string())));
            }
        }
    }
    Ok(())
}

/// Takes a part of what was refused out of it, to be tried apart; nothing where all of it is held.
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
        // New rows meet no lock but that of their whole table.
        Vec::new()
    } else {
        refused.split_off(refused.len().div_ceil(2))
    }
}
