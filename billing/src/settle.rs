//! What becomes of a message is decided here and nowhere else: by what PostgreSQL says when a batch
//! is written. A message that PostgreSQL refuses for its own sake is a dead letter; a message that
//! waits for somebody else is held; and where no order can be written all of them wait.

use common::db::DbError;

use crate::message::{Message, Reason};
use crate::store::{Fate, RecordStore};

/// The constraints of `migrations/`. A constraint that somebody else made says nothing of an order.
const OWN_CONSTRAINTS: [&str; 4] = [
    "orders_message_id_check",
    "orders_user_id_check",
    "orders_number_of_items_check",
    "orders_total_amount_check",
];

/// Messages with their fates.
pub(crate) type Settled = Vec<(Message, Fate)>;

/// Writes a batch, and adds each message with its fate to `settled`. An error means that no order
/// can be written now; the messages that are not in `settled` then have no fate.
pub(crate) fn settle(
    store: &mut RecordStore,
    mut batch: Vec<Message>,
    settled: &mut Settled,
) -> Result<(), DbError> {
    let error = match store.record(&batch) {
        Ok(fates) => {
            settled.extend(batch.into_iter().zip(fates));
            return Ok(());
        }
        Err(error @ DbError::Unavailable(_)) => return Err(error),
        Err(error) => error,
    };
    // Orders do not wait for dead letters.
    if batch.iter().any(|message| message.content.is_ok()) {
        let dead: Vec<_> = batch
            .extract_if(.., |message| message.content.is_err())
            .collect();
        if !dead.is_empty() {
            settle(store, batch, settled)?;
            return settle(store, dead, settled);
        }
        store.dry_run()?;
    } else if matches!(error, DbError::Refused(_) | DbError::Locked(_)) {
        settled.extend(batch.into_iter().map(|message| (message, Fate::Held)));
        return Ok(());
    }
    if batch.len() > 1 {
        let second = batch.split_off(batch.len() / 2);
        settle(store, batch, settled)?;
        return settle(store, second, settled);
    }
    for mut message in batch {
        if message.content.is_err() || !is_at_fault(&error) {
            settled.push((message, Fate::Held));
            continue;
        }
        message.content = Err(Reason {
            word: "database",
            text: format!("the database refused it: {error}"),
        });
        settle(store, vec![message], settled)?;
    }
    Ok(())
}

/// Whether PostgreSQL refuses the values of an order for their own sake.
fn is_at_fault(error: &DbError) -> bool {
    match error {
        DbError::BadData(_) => true,
        DbError::Violated { constraint, .. } => OWN_CONSTRAINTS.contains(&constraint.as_str()),
        DbError::Unavailable(_) | DbError::Locked(_) | DbError::Refused(_) => false,
    }
}
