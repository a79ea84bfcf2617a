//! What becomes of a message is decided here and nowhere else: by what PostgreSQL says when a batch
//! is written. A message that PostgreSQL cannot hold is a dead letter; a message that it does not take
//! now is held; and where no order can be written all of them wait.
//!
//! An order that keeps its rules fits into the tables of `migrations/`. If PostgreSQL refuses it for
//! its length, for its range or for a constraint, somebody else has changed the tables.

use common::db::DbError;

use crate::message::{Message, Reason};
use crate::store::{Fate, Patience, RecordStore};

/// Messages with their fates.
pub(crate) type Settled = Vec<(Message, Fate)>;

/// Writes a batch, and adds each message with its fate to `settled`. An error means that no order
/// can be written now; the messages that are not in `settled` then have no fate.
pub(crate) fn settle(
    store: &mut RecordStore,
    mut batch: Vec<Message>,
    patience: Patience,
    settled: &mut Settled,
) -> Result<(), DbError> {
    let error = match store.record(&batch, patience) {
        Ok(fates) => {
            settled.extend(batch.into_iter().zip(fates));
            return Ok(());
        }
        Err(error) => error,
    };
    // Orders do not wait for dead letters.
    let orders = batch.iter().any(|message| message.content.is_ok());
    let dead = batch.extract_if(.., |message| orders && message.content.is_err());
    let dead: Vec<_> = dead.collect();
    if !dead.is_empty() {
        settle(store, batch, Patience::Short, settled)?;
        return settle(store, dead, Patience::Short, settled);
    }
    let divisible = if orders {
        // Where this fails too, it is for no single order.
        store.dry_run(&batch)?;
        true
    } else {
        matches!(
            error,
            DbError::BadData(_) | DbError::Unencodable(_) | DbError::Violated(_)
        )
    };
    if divisible && batch.len() > 1 {
        let second = batch.split_off(batch.len() / 2);
        settle(store, batch, Patience::Short, settled)?;
        return settle(store, second, Patience::Short, settled);
    }
    for mut message in batch {
        if store.has_characters_for(&message)? {
            settled.push((message, Fate::Held(error.to_string())));
        } else {
            message.content = Err(Reason {
                word: "database",
                text: format!("the database refused it: {error}"),
            });
            settle(store, vec![message], Patience::Short, settled)?;
        }
    }
    Ok(())
}
