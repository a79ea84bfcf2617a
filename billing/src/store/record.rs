//! Writes a batch of messages in one transaction: orders into `orders`, and messages that can never be recorded
//! into `dead_letters`.

use std::sync::Arc;

use common::db::{Database, DatabaseConnection, DbError};
use common::order::NewOrder;
use postgres::types::Type;
use postgres::{Client, Error, IsolationLevel, Row, Statement, Transaction};

use crate::message::{Message, Reason, properties_json};

/// Preparing a statement does not wait long for a lock.
const SESSION: &str = "SET lock_timeout = '1ms'; SET statement_timeout = '5s'";

/// Consumers take turns, so that rows become visible in the order of their ids. The number of the advisory lock
/// is that of the table, so other schemas have other locks. A consumer waits for its turn as long as the commits
/// of the others take. A lock of the whole table stops the transaction here, so a lock that stops it later is on
/// a single row. A program that is suspended within the transaction does not keep its locks. The commit waits until
/// it is on disk, even if the role or the database has another default; this is set in the transaction, since a
/// pooler may give the next one another session.
const BEGIN: &str = "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; \
     SET LOCAL idle_in_transaction_session_timeout = '5s'; \
     SELECT set_config('synchronous_commit', 'on', true) \
     WHERE current_setting('synchronous_commit') = 'off'; \
     SELECT pg_advisory_xact_lock('orders'::regclass::oid::bigint); \
     SET LOCAL lock_timeout = '2s'; LOCK TABLE orders IN ROW EXCLUSIVE MODE; \
     SET LOCAL lock_timeout = '1ms'; SET LOCAL statement_timeout = '5s'";

/// A commit has no time limit: a commit that is cancelled is not undone. Locks that it takes at its end, such as
/// that of NOTIFY, are held for moments.
const BEFORE_COMMIT: &str = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = 0";

/// Compares orders with the recorded orders that have their message ids. Because of the LIMIT PostgreSQL looks
/// each up by its key, even with a plan that it made while there were few orders. The collation "C" is named
/// because another one may take `K` and `k` for equal.
const COMPARE: &str = "SELECT new.place, coalesce(there.sent COLLATE \"C\" \
             = concat_ws(' ', new.number_of_items, new.total_amount, new.user_id), \
         (there.user_id COLLATE \"C\", there.number_of_items, there.total_amount) \
         IS NOT DISTINCT FROM (new.user_id, new.number_of_items, new.total_amount::numeric)) AS same \
     FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[]) WITH ORDINALITY \
          AS new (message_id, user_id, number_of_items, total_amount, place) \
     CROSS JOIN LATERAL (SELECT user_id, number_of_items, total_amount, sent FROM orders \
                         WHERE orders.message_id = new.message_id \
                           AND orders.message_id = new.message_id COLLATE \"C\" LIMIT 1) AS there";

/// While there are too many dead letters, only 16 KiB of a body are kept, which is a whole order.
const PUT_ASIDE: &str = "INSERT INTO dead_letters (message_id, request_id, reason, detail, exchange, \
                               routing_key, properties, body, body_bytes) \
     SELECT message_id, request_id, reason, detail, exchange, routing_key, properties::json, \
            CASE WHEN (SELECT pg_total_relation_size('dead_letters')) < $10 THEN body \
                 ELSE substring(body FROM 1 FOR 16384) END, body_bytes \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], \
                 $8::bytea[], $9::bigint[]) WITH ORDINALITY \
          AS new (message_id, request_id, reason, detail, exchange, routing_key, properties, \
                  body, body_bytes, place) \
     ORDER BY place \
     ON CONFLICT (message_id, sha256(body), body_bytes) WHERE message_id IS NOT NULL DO NOTHING \
     RETURNING message_id";

/// Finds the dead letters with a message id that exist already, with as much of the body as [`PUT_ASIDE`] has
/// kept.
const FIND: &str = "SELECT FROM unnest($1::text[], $2::bytea[], $3::bigint[]) \
          AS new (message_id, body, body_bytes) \
     CROSS JOIN LATERAL (SELECT FROM dead_letters AS there \
                         WHERE there.message_id = new.message_id AND there.body_bytes = new.body_bytes \
                           AND there.message_id = new.message_id COLLATE \"C\" \
                           AND sha256(there.body) = sha256(new.body) \
                         UNION ALL \
                         SELECT FROM dead_letters AS there \
                         WHERE there.message_id = new.message_id AND there.body_bytes = new.body_bytes \
                           AND there.message_id = new.message_id COLLATE \"C\" \
                           AND sha256(there.body) = sha256(substring(new.body FROM 1 FOR 16384)) \
                         LIMIT 1) AS there";

/// The outcome of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The order is recorded with this id.
    Recorded(i64),
    /// The order was recorded before.
    Duplicate,
    /// The message is a dead letter.
    Dead {
        reason: Reason,
        /// Whether the dead letter did not exist before.
        new: bool,
    },
    /// The message waits to be tried again, for this cause.
    Held(String),
}

/// Records orders and dead letters.
pub(crate) struct RecordStore {
    connection: DatabaseConnection<Statements>,
    dead_letters_bytes_max: i64,
}

struct Statements {
    record: Statement,
    compare: Statement,
    encoding: Encoding,
}

/// The characters that the encoding of the database has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// All characters but NUL.
    AllCharacters,
    /// At least the characters of ASCII.
    Ascii,
}

impl Encoding {
    /// The text with all other characters escaped. JSON keeps its value, since it contains no NUL.
    fn fit(self, text: &str) -> String {
        let text = text.replace('\0', "\u{fffd}");
        if self == Self::AllCharacters || text.is_ascii() {
            return text;
        }
        let fit = text.encode_utf16().map(|unit| match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => char::from(byte).to_string(),
            _ => format!("\\u{unit:04x}"),
        });
        fit.collect()
    }
}

fn prepare(client: &mut Client) -> Result<Statements, Error> {
    client.batch_execute(SESSION)?;
    let server_encoding = client.query_one("SHOW server_encoding", &[])?;
    let encoding = match server_encoding.get(0) {
        "UTF8" | "SQL_ASCII" => Encoding::AllCharacters,
        _ => Encoding::Ascii,
    };
    Ok(Statements {
        encoding,
        record: client.prepare(
            "INSERT INTO orders (message_id, user_id, number_of_items, total_amount, sent) \
             SELECT message_id, user_id, number_of_items, total_amount::numeric, \
                    concat_ws(' ', number_of_items, total_amount, user_id) \
             FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[]) WITH ORDINALITY \
                  AS new (message_id, user_id, number_of_items, total_amount, place) \
             ORDER BY place \
             ON CONFLICT (message_id) DO NOTHING RETURNING id::bigint AS id, message_id, sent",
        )?,
        compare: client.prepare(COMPARE)?,
    })
}

impl RecordStore {
    /// When dead letters take `dead_letters_bytes_max` on disk, little is kept of a further one, so that orders
    /// have room.
    pub(crate) fn new(database: &Arc<Database>, dead_letters_bytes_max: i64) -> Self {
        Self {
            connection: DatabaseConnection::new(database, prepare),
            dead_letters_bytes_max,
        }
    }

    /// Checks whether orders can be recorded, as far as the beginning of a transaction shows.
    pub(crate) fn check(&mut self) -> Result<(), DbError> {
        self.connection.run(|client, _| begin(client)?.rollback())
    }

    /// Whether the encoding of the database does not have a character of an order. A trigger may fail with the
    /// same SQLSTATE although the encoding has all characters.
    pub(crate) fn lacks_characters_for(&mut self, message: &Message) -> bool {
        let Ok(order) = &message.content else {
            return false;
        };
        let texts = message.id.clone().unwrap_or_default() + &order.user_id;
        let asked = self
            .connection
            .run(|client, _| client.query_typed("SELECT $1", &[(&texts, Type::TEXT)]));
        matches!(asked, Err(DbError::Unencodable(_)))
    }

    /// Writes a whole batch and deletes the dead letters that were replayed, or changes nothing. Returns the fate
    /// of each message, or the error with which PostgreSQL refused one of them or the connection broke. The outer
    /// error means that no order can be written now.
    pub(crate) fn record(
        &mut self,
        batch: &[Message],
    ) -> Result<Result<Vec<Fate>, DbError>, DbError> {
        let bytes_max = self.dead_letters_bytes_max;
        let mut begun = false;
        let recorded = self.connection.run(|client, statements| {
            // The statements may run a second time, with plans that are prepared again.
            begun = false;
            let mut transaction = begin(client)?;
            begun = true;
            let fates = write(&mut transaction, statements, batch, bytes_max)?;
            if fates.is_some() {
                transaction.batch_execute(BEFORE_COMMIT)?;
                transaction.commit()?;
            }
            Ok(fates)
        });
        match recorded {
            Ok(Some(fates)) => Ok(Ok(fates)),
            Ok(None) => {
                let text = "a trigger or a policy of somebody else has passed a message over";
                Ok(Err(DbError::Violated(text.to_owned())))
            }
            Err(error) if begun => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }
}

/// Writes a batch; None if PostgreSQL has not written one of its messages, without an error.
fn write(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    batch: &[Message],
    bytes_max: i64,
) -> Result<Option<Vec<Fate>>, Error> {
    if replayed_meanwhile(transaction, batch)? {
        return Ok(Some(vec![Fate::Duplicate; batch.len()]));
    }
    let Some(mut fates) = record_orders(transaction, statements, batch)? else {
        return Ok(None);
    };
    let encoding = statements.encoding;
    let written = put_aside(transaction, encoding, batch, &mut fates, bytes_max)?
        && end_replays(transaction, encoding, batch, &fates)?;
    Ok(written.then_some(fates))
}

/// Whether a dead letter that is replayed does not exist any more; otherwise it is locked.
fn replayed_meanwhile(transaction: &mut Transaction<'_>, batch: &[Message]) -> Result<bool, Error> {
    for id in batch.iter().filter_map(Message::dead_letter_id) {
        let lock = "SELECT FROM dead_letters WHERE id = $1 FOR UPDATE";
        if transaction.query_opt(lock, &[&id])?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Begins a transaction and waits for its turn, before it draws an id.
fn begin(client: &mut Client) -> Result<Transaction<'_>, Error> {
    // The role or the database may have another default.
    let mut transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::ReadCommitted)
        .start()?;
    transaction.batch_execute(BEGIN)?;
    Ok(transaction)
}

/// Inserts the orders of a batch; returns the fate of each message. None if an order is not in the table
/// afterwards: it was deleted meanwhile, or a trigger skipped it.
fn record_orders(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    batch: &[Message],
) -> Result<Option<Vec<Fate>>, Error> {
    let (mut fates, mut orders) = (Vec::with_capacity(batch.len()), Vec::new());
    for (place, message) in batch.iter().enumerate() {
        fates.push(match &message.content {
            // The statements below change this if the order is not a duplicate.
            Ok(order) => {
                orders.push((place, message.id.as_deref(), order));
                Fate::Duplicate
            }
            Err(reason) => Fate::Dead {
                reason: reason.clone(),
                new: false,
            },
        });
    }
    if orders.is_empty() {
        return Ok(Some(fates));
    }
    let rows = query_orders(transaction, &statements.record, &orders)?;
    // PostgreSQL inserts and returns them in the order of the batch.
    let all = rows.len() == orders.len();
    let mut rows = rows.iter().peekable();
    orders.retain(|(place, message_id, order)| {
        let row = rows.next_if(|row| {
            all || row.get::<_, Option<&str>>("message_id") == *message_id
                && row.get::<_, Option<String>>("sent") == Some(sent(order))
        });
        if let Some(row) = row {
            fates[*place] = Fate::Recorded(row.get("id"));
        }
        row.is_none()
    });
    if orders.is_empty() {
        return Ok(Some(fates));
    }
    // A second statement sees the rows with which the first one had conflicts.
    let there = query_orders(transaction, &statements.compare, &orders)?;
    for row in there.iter().filter(|row| !row.get::<_, bool>("same")) {
        let nth: i64 = row.get("place");
        let (place, _, _) = orders[usize::try_from(nth - 1).unwrap_or_default()];
        fates[place] = Fate::Dead {
            reason: Reason::new("conflict", "another order is recorded with this message id"),
            new: false,
        };
    }
    Ok((there.len() == orders.len()).then_some(fates))
}

/// The value of the column `sent`.
fn sent(order: &NewOrder) -> String {
    format!(
        "{} {} {}",
        order.number_of_items, order.total_amount, order.user_id
    )
}

/// Runs a statement whose parameters are orders, as an array for each column.
fn query_orders(
    transaction: &mut Transaction<'_>,
    statement: &Statement,
    orders: &[(usize, Option<&str>, &NewOrder)],
) -> Result<Vec<Row>, Error> {
    let message_ids = column(orders, |(_, message_id, _)| *message_id);
    let user_ids = column(orders, |(.., order)| order.user_id.as_str());
    let numbers = column(orders, |(.., order)| order.number_of_items);
    let amounts = column(orders, |(.., order)| order.total_amount.to_string());
    transaction.query(statement, &[&message_ids, &user_ids, &numbers, &amounts])
}

/// Inserts the dead letters of a batch that do not exist yet; false if one does not exist afterwards, because a
/// trigger skipped it.
fn put_aside(
    transaction: &mut Transaction<'_>,
    encoding: Encoding,
    batch: &[Message],
    fates: &mut [Fate],
    bytes_max: i64,
) -> Result<bool, Error> {
    let (mut letters, mut is_new) = (Vec::new(), Vec::new());
    for (message, fate) in batch.iter().zip(fates) {
        if let (Some(delivery), Fate::Dead { reason, new }) = (message.delivery(), fate) {
            letters.push((message, delivery, reason.clone()));
            is_new.push(new);
        }
    }
    if letters.is_empty() {
        return Ok(true);
    }
    let text = |text: &str| encoding.fit(text);
    let message_ids = column(&letters, |(message, ..)| message.id.as_deref().map(text));
    let bodies = column(&letters, |(message, ..)| message.body.as_slice());
    let lengths = column(&letters, |(message, ..)| {
        i64::try_from(message.body_bytes).ok()
    });
    // This statement is not prepared with the others: preparing it waits for a lock of the table, and a batch
    // without dead letters must not.
    let rows = transaction.query(
        PUT_ASIDE,
        &[
            &message_ids,
            &column(&letters, |(message, ..)| message.request_id.as_deref()),
            &column(&letters, |(.., reason)| reason.word),
            &column(&letters, |(.., reason)| text(&reason.text)),
            &column(&letters, |(_, delivery, _)| text(&delivery.exchange)),
            &column(&letters, |(_, delivery, _)| text(&delivery.routing_key)),
            &column(&letters, |(_, delivery, _)| {
                text(&properties_json(&delivery.properties))
            }),
            &bodies,
            &lengths,
            &bytes_max,
        ],
    )?;
    if rows.len() < letters.len() {
        // A second statement sees the rows with which the first one had conflicts.
        let there = transaction.query(FIND, &[&message_ids, &bodies, &lengths])?;
        let nameless = rows
            .iter()
            .filter(|row| row.get::<_, Option<&str>>(0).is_none());
        if there.len() + nameless.count() < letters.len() {
            return Ok(false);
        }
    }
    let mut rows = rows.iter().peekable();
    for (new, message_id) in is_new.into_iter().zip(&message_ids) {
        let row = rows.next_if(|row| row.get::<_, Option<&str>>(0) == message_id.as_deref());
        *new = row.is_some();
    }
    Ok(true)
}

fn column<'a, L, T>(letters: &'a [L], of: impl Fn(&'a L) -> T) -> Vec<T> {
    letters.iter().map(of).collect()
}

/// Deletes the replayed dead letters whose orders are recorded, and updates the reason of the others; false if
/// one was not changed, because a trigger or a policy skipped it.
fn end_replays(
    transaction: &mut Transaction<'_>,
    encoding: Encoding,
    batch: &[Message],
    fates: &[Fate],
) -> Result<bool, Error> {
    for (message, fate) in batch.iter().zip(fates) {
        let Some(id) = message.dead_letter_id() else {
            continue;
        };
        let changed = match fate {
            Fate::Recorded(_) | Fate::Duplicate => {
                transaction.execute("DELETE FROM dead_letters WHERE id = $1", &[&id])?
            }
            Fate::Dead { reason, .. } => {
                let because = "UPDATE dead_letters SET reason = $2, detail = $3 WHERE id = $1";
                transaction.execute(because, &[&id, &reason.word, &encoding.fit(&reason.text)])?
            }
            Fate::Held(_) => continue,
        };
        if changed == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use testkit::TestDatabase;

    use super::*;
    use crate::store::MIGRATIONS;

    #[test]
    fn repeats_are_found_by_their_key_also_with_a_plan_of_the_first_minute() {
        let database = TestDatabase::create();
        for (_, sql) in MIGRATIONS {
            database.execute(sql);
        }
        let mut client = database.connect();

        for (types, sql, index) in [
            (
                "text[], text[], integer[], text[]",
                COMPARE,
                "orders_message_id_key on",
            ),
            (
                "text[], bytea[], bigint[]",
                FIND,
                "((message_id = new.message_id) AND (sha256(body) = sha256(new.body))",
            ),
        ] {
            let prepare = format!(
                "SET plan_cache_mode = force_generic_plan; DEALLOCATE ALL; \
                 PREPARE repeats ({types}) AS {sql}"
            );
            client.batch_execute(&prepare).expect(&prepare);
            let nothing = types.split(',').map(|_| "'{}'").collect::<Vec<_>>();
            let explain = format!(
                "EXPLAIN (COSTS OFF) EXECUTE repeats ({})",
                nothing.join(", ")
            );
            let lines = client.query(&explain, &[]).expect(&explain);

            let lines: Vec<String> = lines.iter().map(|line| line.get(0)).collect();
            let plan = lines.join("\n");
            assert!(plan.contains(index), "{plan}");
        }
    }
}
