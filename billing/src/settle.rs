//! What becomes of a message is decided here and nowhere else. An order that keeps its rules fits into
//! the tables of `migrations/`, so whatever PostgreSQL says of it is no reason to give it up: it is held
//! until somebody has mended what is in its way. Only what the database has no characters for can never
//! be recorded.

use std::time::Instant;

use common::db::DbError;

use crate::message::{Message, Reason};
use crate::store::{Fate, RecordStore};

/// Messages with their fates.
pub(crate) type Settled = Vec<(Message, Fate)>;

/// Writes a batch, and adds each message with its fate to `settled`. A batch that is refused is divided
/// until each message that is refused stands alone; after the deadline all of it is held, to be tried
/// again. An error means that no order can be written now; the messages that are not in `settled` then
/// have no fate.
pub(crate) fn settle(
    store: &mut RecordStore,
    mut batch: Vec<Message>,
    deadline: Instant,
    settled: &mut Settled,
) -> Result<(), DbError> {
    let refusal = match store.record(&batch)? {
        Ok(fates) => {
            settled.extend(batch.into_iter().zip(fates));
            return Ok(());
        }
        Err(refusal) => refusal,
    };
    let orders = batch.iter().filter(|message| message.content.is_ok());
    let orders = orders.count();
    let rest = if Instant::now() >= deadline {
        Vec::new()
    } else if 0 < orders && orders < batch.len() {
        // Orders do not wait for dead letters.
        batch
            .extract_if(.., |message| message.content.is_err())
            .collect()
    } else if orders == 0 && matches!(refusal, DbError::Locked(_)) {
        // New rows meet no lock but that of their whole table.
        Vec::new()
    } else {
        batch.split_off(batch.len().div_ceil(2))
    };
    if !rest.is_empty() {
        settle(store, batch, deadline, settled)?;
        return settle(store, rest, deadline, settled);
    }
    for mut message in batch {
        if matches!(refusal, DbError::Unencodable(_)) && !store.has_characters_for(&message)? {
            message.content = Err(Reason {
                word: "database",
                text: format!("the database refused it: {refusal}"),
            });
            settle(store, vec![message], deadline, settled)?;
        } else {
            settled.push((message, Fate::Held(refusal.to_string())));
        }
    }
    Ok(())
}
