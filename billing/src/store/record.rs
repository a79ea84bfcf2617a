//! What comes from the queue, written in one transaction: orders into `orders`, what can never be
//! recorded into `dead_letters`.

use std::sync::Arc;

use common::db::{Connection, Database, DbError};
use common::order::NewOrder;
use postgres::types::Type;
use postgres::{Client, Error, IsolationLevel, Statement, Transaction};

use crate::message::{BODY_BYTES_KEPT, Message, Reason, properties_json};

/// A batch waits for a lock no longer than another consumer may hold one, which is for one commit; for
/// its own commit it waits as long as that takes. What was acknowledged must be on disk, whatever a
/// role has by default.
const SESSION: &str = "SET lock_timeout = '250ms'; SET statement_timeout = 0; \
     SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') = 'off'";

/// Consumers take turns, so that rows become visible in the order of their ids. The table's own
/// number is the lock's, so other schemas have other locks.
const TURN: &str = "SELECT pg_advisory_xact_lock('orders'::regclass::oid::bigint)";

/// How much of a body is kept while there are too many dead letters: all of an order.
const BODY_BYTES_KEPT_WHEN_FULL: i32 = 16 * 1024;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is the order with this id.
    Recorded(i64),
    /// Its message id is recorded already, with an equal order.
    Duplicate,
    /// It is a dead letter for this reason.
    Dead {
        reason: Reason,
        /// Rather than one that was there already.
        new: bool,
    },
    /// It could not be decided now, for this cause.
    Held(String),
}

/// How long a batch waits for the locks of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as a commit of another consumer may take.
    Usual,
    /// Only for its turn; then no longer than it takes to see that somebody else holds a lock.
    Short,
}

/// The connection of whoever records.
pub(crate) struct RecordStore {
    connection: Connection<Statements>,
    dead_letters_bytes_max: i64,
}

struct Statements {
    check: Statement,
    record: Statement,
    compare: Statement,
}

fn prepare(client: &mut Client) -> Result<Statements, Error> {
    client.batch_execute(SESSION)?;
    // The turn is taken before the first id is drawn: the sort reads all of its input first.
    let record = format!(
        "WITH turn AS MATERIALIZED ({TURN}) \
         INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
         SELECT new.message_id, new.user_id, new.number_of_items, new.total_amount::numeric \
         FROM turn, unnest($1::text[], $2::text[], $3::integer[], $4::text[]) WITH ORDINALITY \
              AS new (message_id, user_id, number_of_items, total_amount, place) \
         ORDER BY new.place \
         ON CONFLICT (message_id) DO NOTHING RETURNING id::bigint AS id, message_id"
    );
    Ok(Statements {
        check: client.prepare(
            "INSERT INTO orders (user_id, number_of_items, total_amount) \
             SELECT '', 0, 0 WHERE false",
        )?,
        record: client.prepare(&record)?,
        compare: client.prepare(
            "SELECT new.place, (orders.user_id, orders.number_of_items, orders.total_amount) \
                             = (new.user_id, new.number_of_items, new.total_amount::numeric) AS same \
             FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[]) WITH ORDINALITY \
                  AS new (message_id, user_id, number_of_items, total_amount, place) \
             JOIN orders USING (message_id)",
        )?,
    })
}

impl RecordStore {
    /// Where dead letters take more than `dead_letters_bytes_max` on disk, little is kept of a further
    /// one: they must not take the room that orders need.
    pub(crate) fn new(database: &Arc<Database>, dead_letters_bytes_max: i64) -> Self {
        Self {
            connection: Connection::new(database, prepare),
            dead_letters_bytes_max,
        }
    }

    /// Finds out, by writing nothing, whether orders can be written.
    pub(crate) fn check(&mut self) -> Result<(), DbError> {
        self.connection.run(|client, statements| {
            let mut transaction = patient(client)?;
            transaction.execute(&statements.check, &[])?;
            transaction.rollback()
        })
    }

    /// Writes a good order and takes it back, but for the id that is drawn: where that fails, what is
    /// wrong is the database. A good order is one like the last.
    pub(crate) fn dry_run(&mut self) -> Result<(), DbError> {
        let written = self.connection.run(|client, _| {
            let mut transaction = patient(client)?;
            transaction.batch_execute(TURN)?;
            let written = transaction.execute(
                "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
                 SELECT 'dry run ' || pg_backend_pid(), user_id, number_of_items, total_amount \
                 FROM ((SELECT user_id, number_of_items, total_amount FROM orders \
                        ORDER BY id DESC LIMIT 1) \
                       UNION ALL SELECT '1', 1, 1) AS good LIMIT 1",
                &[],
            )?;
            // What would only be said at the commit.
            transaction.batch_execute("SET CONSTRAINTS ALL IMMEDIATE")?;
            transaction.rollback()?;
            Ok(written)
        })?;
        if written == 0 {
            return Err(DbError::Refused("orders are passed over".to_owned()));
        }
        Ok(())
    }

    /// Writes all of a batch, and removes the dead letters that were replayed, or on an error does
    /// neither. The fates are in the order of the batch.
    pub(crate) fn record(
        &mut self,
        batch: &[Message],
        patience: Patience,
    ) -> Result<Vec<Fate>, DbError> {
        let bytes_max = self.dead_letters_bytes_max;
        let fates = self.connection.run(|client, statements| {
            // A role or a database may have another level by default.
            let mut transaction = client
                .build_transaction()
                .isolation_level(IsolationLevel::ReadCommitted)
                .start()?;
            if patience == Patience::Short {
                transaction.batch_execute(&format!("{TURN}; SET LOCAL lock_timeout = '10ms'"))?;
            }
            if replayed_meanwhile(&mut transaction, batch)? {
                return Ok(Some(vec![Fate::Duplicate; batch.len()]));
            }
            let Some(mut fates) = record_orders(&mut transaction, statements, batch)? else {
                return Ok(None);
            };
            put_aside(&mut transaction, batch, &mut fates, bytes_max)?;
            end_replays(&mut transaction, batch, &fates)?;
            transaction.commit()?;
            Ok(Some(fates))
        })?;
        fates.ok_or_else(|| {
            let text = "an order is neither recorded nor was it there already";
            DbError::Refused(text.to_owned())
        })
    }
}

/// Whether a dead letter that is to be replayed is gone.
fn replayed_meanwhile(transaction: &mut Transaction<'_>, batch: &[Message]) -> Result<bool, Error> {
    for id in batch.iter().filter_map(Message::dead_letter_id) {
        let lock = "SELECT FROM dead_letters WHERE id = $1 FOR UPDATE";
        if transaction.query_opt(lock, &[&id])?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A transaction that waits longer for locks than those which record.
fn patient(client: &mut Client) -> Result<Transaction<'_>, Error> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute("SET LOCAL lock_timeout = '2s'")?;
    Ok(transaction)
}

/// None where an order is neither recorded nor was it there already: it was deleted in between, or
/// a trigger of somebody else passes it over.
fn record_orders(
    transaction: &mut Transaction<'_>,
    statements: &Statements,
    batch: &[Message],
) -> Result<Option<Vec<Fate>>, Error> {
    let (mut fates, mut orders) = (Vec::with_capacity(batch.len()), Vec::new());
    for (place, message) in batch.iter().enumerate() {
        fates.push(match &message.content {
            // Unless it is recorded now.
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
    let rows = Columns::of(&orders).query(transaction, &statements.record)?;
    // They are inserted and returned in the order of the batch.
    let all = rows.len() == orders.len();
    let mut rows = rows.iter().peekable();
    orders.retain(|(place, message_id, _)| {
        let row =
            rows.next_if(|row| all || row.get::<_, Option<&str>>("message_id") == *message_id);
        if let Some(row) = row {
            fates[*place] = Fate::Recorded(row.get("id"));
        }
        row.is_none()
    });
    if orders.is_empty() {
        return Ok(Some(fates));
    }
    // Those that were passed over, in a statement of its own, which sees what the first one met.
    let there = Columns::of(&orders).query(transaction, &statements.compare)?;
    for row in there.iter().filter(|row| !row.get::<_, bool>("same")) {
        let nth: i64 = row.get("place");
        let (place, _, _) = orders[usize::try_from(nth - 1).unwrap_or_default()];
        fates[place] = Fate::Dead {
            reason: Reason {
                word: "conflict",
                text: "another order is recorded with this message id".to_owned(),
            },
            new: false,
        };
    }
    Ok((there.len() == orders.len()).then_some(fates))
}

/// Orders as the arrays that a statement takes.
#[derive(Default)]
struct Columns<'a> {
    message_ids: Vec<Option<&'a str>>,
    user_ids: Vec<&'a str>,
    numbers: Vec<i32>,
    amounts: Vec<String>,
}

impl<'a> Columns<'a> {
    fn of(orders: &[(usize, Option<&'a str>, &'a NewOrder)]) -> Self {
        let mut columns = Self::default();
        for (_, message_id, order) in orders {
            columns.message_ids.push(*message_id);
            columns.user_ids.push(&order.user_id);
            columns.numbers.push(order.number_of_items);
            columns.amounts.push(order.total_amount.to_string());
        }
        columns
    }

    fn query(
        &self,
        transaction: &mut Transaction<'_>,
        statement: &Statement,
    ) -> Result<Vec<postgres::Row>, Error> {
        transaction.query(
            statement,
            &[
                &self.message_ids,
                &self.user_ids,
                &self.numbers,
                &self.amounts,
            ],
        )
    }
}

/// Writes the dead letters of a batch that are not there yet. The statement is not prepared: to
/// prepare it waits for whoever has locked the table, and so would every new connection.
fn put_aside(
    transaction: &mut Transaction<'_>,
    batch: &[Message],
    fates: &mut [Fate],
    bytes_max: i64,
) -> Result<(), Error> {
    let dead = batch.iter().zip(&mut *fates);
    let (mut letters, mut is_new) = (Vec::new(), Vec::new());
    for (message, fate) in dead {
        if let (Some(delivery), Fate::Dead { reason, new }) = (message.delivery(), fate) {
            letters.push((message, delivery, reason.clone()));
            is_new.push(new);
        }
    }
    if letters.is_empty() {
        return Ok(());
    }
    let message_ids: Vec<_> = column(&letters, |(message, ..)| message.id.as_deref().map(text));
    let request_ids: Vec<_> = column(&letters, |(message, ..)| message.request_id.as_deref());
    let reasons: Vec<_> = column(&letters, |(.., reason)| reason.word);
    let details: Vec<_> = column(&letters, |(.., reason)| text(&reason.text));
    let exchanges: Vec<_> = column(&letters, |(_, delivery, _)| text(&delivery.exchange));
    let routing_keys: Vec<_> = column(&letters, |(_, delivery, _)| text(&delivery.routing_key));
    let properties: Vec<_> = column(&letters, |(_, delivery, _)| {
        properties_json(&delivery.properties)
    });
    let bodies: Vec<_> = column(&letters, |(message, ..)| {
        &message.body[..message.body.len().min(BODY_BYTES_KEPT)]
    });
    let lengths: Vec<_> = column(&letters, |(message, ..)| {
        i64::try_from(message.body.len()).unwrap_or(i64::MAX)
    });
    let rows = transaction.query_typed(
        "INSERT INTO dead_letters (message_id, request_id, reason, detail, exchange, routing_key, \
                                   properties, body, body_bytes) \
         SELECT message_id, request_id, reason, detail, exchange, routing_key, properties::json, \
                CASE WHEN pg_total_relation_size('dead_letters') < $10 THEN body \
                     ELSE substring(body FROM 1 FOR $11) END, body_bytes \
         FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9) WITH ORDINALITY \
              AS new (message_id, request_id, reason, detail, exchange, routing_key, properties, \
                      body, body_bytes, place) \
         ORDER BY place ON CONFLICT DO NOTHING RETURNING message_id",
        &[
            (&message_ids, Type::TEXT_ARRAY),
            (&request_ids, Type::TEXT_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
            (&details, Type::TEXT_ARRAY),
            (&exchanges, Type::TEXT_ARRAY),
            (&routing_keys, Type::TEXT_ARRAY),
            (&properties, Type::TEXT_ARRAY),
            (&bodies, Type::BYTEA_ARRAY),
            (&lengths, Type::INT8_ARRAY),
            (&bytes_max, Type::INT8),
            (&BODY_BYTES_KEPT_WHEN_FULL, Type::INT4),
        ],
    )?;
    let mut rows = rows.iter().peekable();
    for (new, message_id) in is_new.into_iter().zip(&message_ids) {
        let row = rows.next_if(|row| row.get::<_, Option<&str>>(0) == message_id.as_deref());
        *new = row.is_some();
    }
    Ok(())
}

fn column<'a, L, T>(letters: &'a [L], of: impl Fn(&'a L) -> T) -> Vec<T> {
    letters.iter().map(of).collect()
}

/// As PostgreSQL can hold it.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Removes the dead letters that are orders now, and writes down why the others are none.
fn end_replays(
    transaction: &mut Transaction<'_>,
    batch: &[Message],
    fates: &[Fate],
) -> Result<(), Error> {
    for (message, fate) in batch.iter().zip(fates) {
        let Some(id) = message.dead_letter_id() else {
            continue;
        };
        match fate {
            Fate::Recorded(_) | Fate::Duplicate => {
                transaction.execute("DELETE FROM dead_letters WHERE id = $1", &[&id])?;
            }
            Fate::Dead { reason, .. } => {
                let because = "UPDATE dead_letters SET reason = $2, detail = $3 WHERE id = $1";
                transaction.execute(because, &[&id, &reason.word, &text(&reason.text)])?;
            }
            Fate::Held(_) => {}
        }
    }
    Ok(())
}
