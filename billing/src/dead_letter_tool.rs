//! What an operator does about dead letters: `billing-dead-letters`. A replay settles a dead letter
//! as if it had just come from the queue; RabbitMQ is only needed for the import of an old queue.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use amiquip::AmqpValue;
use common::amqp::{AmqpConnection, AmqpError, Purpose, QueueConfig};
use common::db::{Database, DatabaseConfig, DatabaseRole};
use common::env::Vars;
use common::http::Page;
use common::process::CommandError;
use common::shutdown::Shutdown;
use serde_json::Value;

use crate::config::dead_letters_bytes_max;
use crate::dead_letter::DeadLetter;
use crate::message::{Message, MessageSource, REASONS, Reason};
use crate::settle::{Settled, settle};
use crate::store::{COUNT_MAX, DeadLetterStore, Fate, Filter, MIGRATIONS, RecordStore};

/// Its name, also on RabbitMQ's management page.
pub const PROGRAM: &str = "billing-dead-letters";

/// How the program is called.
pub const USAGE: &str = "\
Usage: billing-dead-letters list [FILTER]…          the oldest first: id, age, reason, message id, content
       billing-dead-letters show ID                 one, with everything that is kept of it, as JSON
       billing-dead-letters replay [FILTER]…        records those that can be recorded by now
       billing-dead-letters drop FILTER…            deletes them
       billing-dead-letters export FILE [FILTER]…   writes them to FILE, as JSON lines
       billing-dead-letters import                  takes over what an older version left in RabbitMQ
       billing-dead-letters --help | --version

FILTER: ID                    this one; several are several
        --reason WORD         body, user_id, number_of_items, total_amount, message_id, exchange,
                              routing_key, conflict, database
        --message-id ID       with this message id
        --older-than AGE      AGE as in 90s, 15m, 12h, 7d
        --newer-than AGE
        --after ID            behind this one
        --limit COUNT         no more than so many; of list 1000, where it is not given
Several filters are all to fit.";

/// How many dead letters are read at once.
const PAGE: u16 = 100;

/// How many are listed without `--limit`.
const LISTED: u64 = 1000;

/// How much of a text is shown on one line.
const SHOWN_CHARS: usize = 60;

/// Does what the arguments say. What they ask for is written to `out`.
pub fn run(
    vars: &Vars,
    arguments: &[String],
    shutdown: &Shutdown,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let database = Database::new(
        &DatabaseConfig::from_vars(vars, DatabaseRole::Owner, "BILLING_DB_NAME")?,
        MIGRATIONS,
    );
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let start = |words: &[&str]| Cursor::start(words, &database, shutdown);
    match arguments[..] {
        ["list", ref words @ ..] => list(start(words)?, out),
        ["show", id] => show(start(&[id])?, out),
        ["show", ..] => Err(wrong("show takes the ID of one")),
        ["replay", ref words @ ..] => replay(start(words)?, &database, out),
        ["drop"] => Err(wrong(
            "drop needs to be told which; --older-than 0s is all of them",
        )),
        ["drop", ref words @ ..] => drop_them(start(words)?, out),
        ["export", file, ref words @ ..] => export(start(words)?, Path::new(file), out),
        ["import"] => {
            let store = RecordStore::new(&database, dead_letters_bytes_max(vars)?);
            import(
                store,
                &QueueConfig::from_vars(vars, Purpose::Consume)?,
                shutdown,
                out,
            )
        }
        _ => Err(wrong("list, show, replay, drop, export or import?")),
    }
}

fn wrong(text: &str) -> CommandError {
    CommandError::Usage(format!("{text}\n\n{USAGE}"))
}

/// Reads dead letters page by page, the oldest first.
struct Cursor<'a> {
    store: DeadLetterStore,
    filter: Filter,
    after: i64,
    left: Option<u64>,
    shutdown: &'a Shutdown,
}

impl<'a> Cursor<'a> {
    fn start(
        mut words: &[&str],
        database: &Arc<Database>,
        shutdown: &'a Shutdown,
    ) -> Result<Self, CommandError> {
        let mut cursor = Self {
            store: DeadLetterStore::new(database),
            filter: Filter::default(),
            after: 0,
            left: None,
            shutdown,
        };
        while let [word, rest @ ..] = words {
            let value = rest.first().copied().unwrap_or_default();
            let text = |fits: bool| fits.then(|| value.to_owned());
            let understood = match *word {
                "--reason" => set(&mut cursor.filter.reason, text(REASONS.contains(&value))),
                "--message-id" => set(&mut cursor.filter.message_id, text(!value.is_empty())),
                "--older-than" => set(&mut cursor.filter.older_than, seconds(value)),
                "--newer-than" => set(&mut cursor.filter.newer_than, seconds(value)),
                "--after" => value.parse().map(|id| cursor.after = id).is_ok(),
                "--limit" => set(
                    &mut cursor.left,
                    value.parse().ok().filter(|count| *count > 0),
                ),
                id => {
                    let id = id
                        .parse()
                        .map(|id| cursor.filter.ids.get_or_insert_default().push(id));
                    words = rest;
                    id.map_err(|_| wrong(&format!("{word} is no id and no filter")))?;
                    continue;
                }
            };
            if !understood {
                return Err(wrong(&format!("{word} does not take {value:?}")));
            }
            words = &rest[1..];
        }
        Ok(cursor)
    }

    /// Calls `work` for each dead letter.
    fn each(
        mut self,
        mut work: impl FnMut(&mut DeadLetterStore, DeadLetter) -> Result<(), CommandError>,
    ) -> Result<Self, CommandError> {
        loop {
            if self.shutdown.is_requested() {
                return Err(CommandError::Failed("stopped before the end".to_owned()));
            }
            let left = self.left.map(u16::try_from).and_then(Result::ok);
            let most = left.unwrap_or(PAGE).min(PAGE);
            let page = Page {
                limit: Some(most),
                after: self.after,
                newest_first: false,
            };
            let mut letters = self.store.list(&self.filter, page)?;
            letters.truncate(most.into());
            let Some(last) = letters.last() else {
                return Ok(self);
            };
            self.after = last.id;
            self.left = self.left.map(|left| left - letters.len() as u64);
            for letter in letters {
                work(&mut self.store, letter)?;
            }
        }
    }
}

fn set<T>(filter: &mut Option<T>, value: Option<T>) -> bool {
    *filter = value;
    filter.is_some()
}

/// An age such as `15m`.
fn seconds(age: &str) -> Option<i64> {
    let (number, unit) = age.split_at_checked(age.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number
        .parse::<u32>()
        .ok()
        .map(|number| i64::from(number) * seconds)
}

fn list(mut cursor: Cursor<'_>, out: &mut dyn Write) -> Result<(), CommandError> {
    cursor.left.get_or_insert(LISTED);
    let mut listed = 0;
    let mut cursor = cursor.each(|_, letter| {
        listed += 1;
        let message_id = letter.message_id.as_deref().unwrap_or("-");
        writeln!(
            out,
            "{:>8}  {:>4}  {:<15}  {:<36}  {}  {}",
            letter.id,
            coarse(letter.age_seconds),
            letter.reason,
            shown(message_id.as_bytes()),
            shown(letter.detail.as_bytes()),
            shown(&letter.start)
        )?;
        Ok(())
    })?;
    let all = cursor.store.counts(&cursor.filter)?.count;
    let or_more = if all == COUNT_MAX { " or more" } else { "" };
    writeln!(out, "{listed} of {all}{or_more} dead letters")?;
    Ok(())
}

fn show(cursor: Cursor<'_>, out: &mut dyn Write) -> Result<(), CommandError> {
    let mut shown = false;
    cursor.each(|store, letter| {
        let Some(letter) = store.find(letter.id)? else {
            return Ok(());
        };
        shown = true;
        serde_json::to_writer_pretty(&mut *out, &letter).map_err(io::Error::from)?;
        Ok(writeln!(out)?)
    })?;
    if shown {
        return Ok(());
    }
    Err(CommandError::Failed(
        "there is no such dead letter".to_owned(),
    ))
}

fn replay(
    cursor: Cursor<'_>,
    database: &Arc<Database>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    // What is replayed is no new dead letter.
    let mut records = RecordStore::new(database, 0);
    let (mut recorded, mut remain) = (0, 0);
    cursor.each(|store, letter| {
        let Some((message_id, body)) = store.find(letter.id)?.and_then(parts) else {
            return Ok(());
        };
        let mut message = Message::read(MessageSource::DeadLetter(letter.id), message_id, body);
        if letter.cut {
            message.content = Err(Reason::new("body", "only the start of the body is kept"));
        }
        let mut settled = Settled::new();
        settle(
            &mut records,
            &mut vec![message],
            Instant::now(),
            &mut settled,
        )?;
        for (_, fate) in settled {
            let cause = match fate {
                Fate::Recorded(_) | Fate::Duplicate => {
                    recorded += 1;
                    continue;
                }
                Fate::Dead { reason, .. } => reason.text,
                Fate::Held(cause) => format!("not now: {cause}"),
            };
            remain += 1;
            writeln!(out, "{}: {cause}", letter.id)?;
        }
        Ok(())
    })?;
    writeln!(out, "{recorded} replayed, {remain} remain")?;
    Ok(())
}

/// The message id as its publisher gave it, and the body.
fn parts(letter: DeadLetter) -> Option<(Option<String>, Vec<u8>)> {
    let content = letter.content?;
    let properties: Value = serde_json::from_str(content.properties.get()).unwrap_or_default();
    let message_id = properties["message_id"].as_str().map(str::to_owned);
    Some((message_id, content.body))
}

fn drop_them(cursor: Cursor<'_>, out: &mut dyn Write) -> Result<(), CommandError> {
    let mut dropped = 0;
    cursor.each(|store, letter| {
        let filter = Filter {
            ids: Some(vec![letter.id]),
            ..Filter::default()
        };
        dropped += store.delete(&filter)?;
        Ok(())
    })?;
    writeln!(out, "{dropped} dropped")?;
    Ok(())
}

/// Under another name until it is whole.
fn export(cursor: Cursor<'_>, file: &Path, out: &mut dyn Write) -> Result<(), CommandError> {
    if file.exists() && !file.is_file() {
        let text = format!("{} is no file", file.display());
        return Err(CommandError::Failed(text));
    }
    // The target of a symbolic link is replaced, and not the link.
    let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = file.with_file_name(name);
    let written = write_letters(cursor, &partial).and_then(|count| {
        fs::rename(&partial, file)?;
        Ok(count)
    });
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    writeln!(out, "{} dead letters exported", written?)?;
    Ok(())
}

fn write_letters(cursor: Cursor<'_>, partial: &Path) -> Result<usize, CommandError> {
    let mut lines = BufWriter::new(File::create(partial)?);
    let mut count = 0;
    cursor.each(|store, letter| {
        let Some(letter) = store.find(letter.id)? else {
            return Ok(());
        };
        count += 1;
        serde_json::to_writer(&mut lines, &letter).map_err(io::Error::from)?;
        Ok(lines.write_all(b"\n")?)
    })?;
    let file = lines.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(count)
}

fn import(
    mut store: RecordStore,
    config: &QueueConfig,
    shutdown: &Shutdown,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut connection = AmqpConnection::open(config, PROGRAM)?;
    let mut imported = 0;
    if connection.count(&config.dead_queue())?.is_some() {
        let channel = connection.open_channel()?;
        let _limit = connection.deadline_on_drop();
        loop {
            if shutdown.is_requested() {
                let text = format!("stopped before the end; {imported} dead letters imported");
                return Err(CommandError::Failed(text));
            }
            let limit = connection.deadline();
            let got = channel.basic_get(config.dead_queue(), false);
            drop(limit);
            let Some(got) = got.map_err(AmqpError::from)? else {
                break;
            };
            let mut message = Message::from_queue(got.delivery.clone());
            message.content = Err(reason_of(&message));
            let mut settled = Settled::new();
            settle(&mut store, &mut vec![message], Instant::now(), &mut settled)?;
            if let Some((_, Fate::Held(cause))) = settled.pop() {
                return Err(CommandError::Failed(cause));
            }
            got.delivery.ack(&channel).map_err(AmqpError::from)?;
            imported += 1;
        }
    }
    writeln!(out, "{imported} dead letters imported")?;
    Ok(())
}

/// Why a message is on the old dead queue, by what was written into its headers.
fn reason_of(message: &Message) -> Reason {
    let headers = message
        .delivery()
        .and_then(|delivery| delivery.properties.headers().as_ref());
    let text = match headers.and_then(|headers| headers.get("x-dead-reason")) {
        Some(AmqpValue::LongString(text)) => text.clone(),
        _ => "unknown".to_owned(),
    };
    let begins = |beginning: &str| text.starts_with(beginning);
    let word = match REASONS.into_iter().find(|word| begins(&format!("{word} "))) {
        Some(field) => field,
        None if begins("the message id ") => "message_id",
        None if begins("the database ") => "database",
        None => "body",
    };
    Reason { word, text }
}

fn coarse(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The start of a text, on one line, with nothing in it that a terminal would obey.
fn shown(text: &[u8]) -> String {
    let start = String::from_utf8_lossy(&text[..text.len().min(4 * SHOWN_CHARS)]);
    let mut shown = String::new();
    for c in start.chars().take(SHOWN_CHARS) {
        match c {
            '"' | '\'' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    if text.len() > 4 * SHOWN_CHARS || start.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_not_done() {
        assert_eq!(shown(b"{\"a\": 'b'}"), "{\"a\": 'b'}");
        assert_eq!(
            shown("\u{1b}[2J\r\n\u{202e}ü\0".as_bytes()),
            "\\u{1b}[2J\\r\\n\\u{202e}ü\\0"
        );
        assert_eq!(shown(b"\xff"), "\u{fffd}");
    }

    #[test]
    fn only_the_start_of_a_long_text_is_shown() {
        let long = "ü".repeat(SHOWN_CHARS + 1);

        assert_eq!(shown(&long.as_bytes()[2..]), "ü".repeat(SHOWN_CHARS));
        assert_eq!(shown(long.as_bytes()), "ü".repeat(SHOWN_CHARS) + "…");
        assert_eq!(shown(&[b'x'; 10_000]), "x".repeat(SHOWN_CHARS) + "…");
    }

    #[test]
    fn ages_are_told_as_one_would() {
        assert_eq!(
            [59, 60, 7200, 200_000].map(coarse),
            ["59s", "1m", "2h", "2d"]
        );
        assert_eq!(
            ["90s", "15m", "12h", "7d", "7", "d", "", "-1d", "ü"].map(seconds),
            [
                Some(90),
                Some(900),
                Some(43_200),
                Some(604_800),
                None,
                None,
                None,
                None,
                None
            ]
        );
    }
}
