//! `billing-dead-letters`: an operator lists, shows, replays, deletes and exports dead letters. A replay settles a
//! dead letter as the consumer settles a message. Only the import of an old queue needs RabbitMQ.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use amiquip::Delivery;
use common::amqp::{AmqpConnection, AmqpError, QueueConfig};
use common::db::Database;
use common::env::Vars;
use common::http::Page;
use common::process::CommandError;
use common::shutdown::Shutdown;

use crate::config::ToolConfig;
use crate::dead_letter::WholeDeadLetter;
use crate::message::{Message, REASONS, Reason, header_text};
use crate::settle::settle_one;
use crate::store::{COUNT_MAX, DeadLetterStore, Fate, Filter, MIGRATIONS, RecordStore};

/// The name of the program, which RabbitMQ's management page shows.
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

FILTER: ID                    the one with this id; several ids select several
        --reason WORD         body, user_id, number_of_items, total_amount, message_id, exchange,
                              routing_key, conflict, database
        --message-id ID       those with this message id
        --older-than AGE      AGE as in 90s, 15m, 12h, 7d
        --newer-than AGE
        --after ID            those with greater ids
        --limit COUNT         at most so many; list has a limit of 1000 by default
Several filters select the dead letters that match all of them.";

/// The number of dead letters that one statement reads or deletes.
const PAGE: usize = 100;

/// The limit of `list` without `--limit`.
const LISTED: i64 = 1000;

/// The number of characters of a text that one line shows.
const SHOWN_CHARS: usize = 60;

/// The units of an age, and their seconds.
const UNITS: [(&str, i64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];

/// Runs the command in the arguments, and writes its result to `out`.
pub fn run(
    vars: &Vars,
    arguments: &[String],
    shutdown: &Shutdown,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let config = ToolConfig::from_vars(vars)?;
    let database = Database::new(&config.database, MIGRATIONS);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let select = |words: &[&str], limit| Selection::new(words, limit, &database, shutdown);
    match arguments[..] {
        ["list", ref words @ ..] => list(select(words, Some(LISTED))?, out),
        ["show", id] => show(select(&[id], None)?, out),
        ["show", ..] => Err(wrong("show takes the ID of one")),
        ["replay", ref words @ ..] => replay(select(words, None)?, &database, out),
        ["drop"] => Err(wrong(
            "drop needs a filter; --older-than 0s selects all dead letters",
        )),
        ["drop", ref words @ ..] => delete(&mut select(words, None)?, out),
        ["export", file, ref words @ ..] => export(select(words, None)?, Path::new(file), out),
        ["import"] => {
            let store = RecordStore::new(&database, config.dead_letters_bytes_max?);
            import(store, &config.queue?, shutdown, out)
        }
        _ => Err(wrong("list, show, replay, drop, export or import?")),
    }
}

fn wrong(text: &str) -> CommandError {
    CommandError::Usage(format!("{text}\n\n{USAGE}"))
}

/// The dead letters to which a command applies.
struct Selection<'a> {
    store: DeadLetterStore,
    filter: Filter,
    /// The smallest id first.
    ids: Vec<i64>,
    shutdown: &'a Shutdown,
}

impl<'a> Selection<'a> {
    /// Selects dead letters by filters; `limit` is their greatest number if no filter sets it.
    fn new(
        mut words: &[&str],
        mut limit: Option<i64>,
        database: &Arc<Database>,
        shutdown: &'a Shutdown,
    ) -> Result<Self, CommandError> {
        let (mut filter, mut after) = (Filter::default(), None);
        while let [word, rest @ ..] = words {
            if let Ok(id) = word.parse() {
                filter.ids.get_or_insert_default().push(id);
                words = rest;
                continue;
            }
            let value = rest.first().copied().unwrap_or_default();
            let text = |valid: bool| valid.then(|| value.to_owned());
            let valid = match *word {
                "--reason" => set(&mut filter.reason, text(REASONS.contains(&value))),
                "--message-id" => set(&mut filter.message_id, text(!value.is_empty())),
                "--older-than" => set(&mut filter.older_than, seconds(value)),
                "--newer-than" => set(&mut filter.newer_than, seconds(value)),
                "--after" => set(&mut after, value.parse().ok()),
                "--limit" => set(&mut limit, value.parse().ok().filter(|limit| *limit > 0)),
                _ => return Err(wrong(&format!("{word} is no id and no filter"))),
            };
            if !valid {
                return Err(wrong(&format!("{word} does not take {value:?}")));
            }
            words = &rest[1..];
        }
        let mut store = DeadLetterStore::new(database);
        Ok(Self {
            ids: store.ids(&filter, after.unwrap_or_default(), limit)?,
            store,
            filter,
            shutdown,
        })
    }

    /// Reads the dead letters one by one. Those that were deleted meanwhile are left out.
    fn letters(self) -> impl Iterator<Item = Result<WholeDeadLetter, CommandError>> {
        let Self {
            mut store,
            ids,
            shutdown,
            ..
        } = self;
        ids.into_iter().filter_map(move |id| {
            let found = refuse_shutdown(shutdown).and_then(|()| Ok(store.find(id)?));
            found.transpose()
        })
    }
}

fn set<T>(filter: &mut Option<T>, value: Option<T>) -> bool {
    *filter = value;
    filter.is_some()
}

/// The seconds of an age such as `15m`.
fn seconds(age: &str) -> Option<i64> {
    let (number, unit) = age.split_at_checked(age.len().checked_sub(1)?)?;
    let (_, seconds) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    Some(i64::from(number.parse::<u32>().ok()?) * seconds)
}

/// Fails if the shutdown is requested.
fn refuse_shutdown(shutdown: &Shutdown) -> Result<(), CommandError> {
    if shutdown.is_requested() {
        return Err(CommandError::Failed("stopped before the end".to_owned()));
    }
    Ok(())
}

fn list(mut selection: Selection<'_>, out: &mut dyn Write) -> Result<(), CommandError> {
    let mut listed = 0;
    for ids in selection.ids.chunks(PAGE) {
        refuse_shutdown(selection.shutdown)?;
        let page = Filter {
            ids: Some(ids.to_vec()),
            ..Filter::default()
        };
        for letter in selection.store.list(&page, Page::default())? {
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
        }
    }
    let all = selection.store.counts(&selection.filter)?.count;
    let or_more = if all == COUNT_MAX { " or more" } else { "" };
    writeln!(out, "{listed} of {all}{or_more} dead letters")?;
    Ok(())
}

fn show(selection: Selection<'_>, out: &mut dyn Write) -> Result<(), CommandError> {
    let Some(letter) = selection.letters().next() else {
        let text = "there is no such dead letter".to_owned();
        return Err(CommandError::Failed(text));
    };
    serde_json::to_writer_pretty(&mut *out, &letter?).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

fn replay(
    selection: Selection<'_>,
    database: &Arc<Database>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    // A replay adds no dead letter, so the limit on their size has no effect.
    let mut records = RecordStore::new(database, 0);
    let (mut recorded, mut remain) = (0, 0);
    for letter in selection.letters() {
        let letter = letter?;
        let id = letter.letter.id;
        let cause = match settle_one(&mut records, Message::from_dead_letter(letter))? {
            Fate::Recorded(_) | Fate::Duplicate => {
                recorded += 1;
                continue;
            }
            Fate::Dead { reason, .. } => reason.text,
            Fate::Held(cause) => format!("not now: {cause}"),
        };
        remain += 1;
        writeln!(out, "{id}: {cause}")?;
    }
    writeln!(out, "{recorded} replayed, {remain} remain")?;
    Ok(())
}

fn delete(selection: &mut Selection<'_>, out: &mut dyn Write) -> Result<(), CommandError> {
    let mut dropped = 0;
    for ids in selection.ids.chunks(PAGE) {
        refuse_shutdown(selection.shutdown)?;
        // A dead letter that was changed meanwhile may not fit the filter any longer.
        let page = Filter {
            ids: Some(ids.to_vec()),
            ..selection.filter.clone()
        };
        dropped += selection.store.delete(&page)?;
    }
    writeln!(out, "{dropped} dropped")?;
    Ok(())
}

/// Writes another file and renames it when it is complete.
fn export(selection: Selection<'_>, file: &Path, out: &mut dyn Write) -> Result<(), CommandError> {
    if file.exists() && !file.is_file() {
        let text = format!("{} is no file", file.display());
        return Err(CommandError::Failed(text));
    }
    // The target of a symbolic link is replaced, and not the link.
    let file = &fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = file.with_file_name(name);
    let written = write_lines(selection, &partial).and_then(|count| {
        fs::rename(&partial, file)?;
        Ok(count)
    });
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    writeln!(out, "{} dead letters exported", written?)?;
    Ok(())
}

fn write_lines(selection: Selection<'_>, file: &Path) -> Result<usize, CommandError> {
    let mut lines = BufWriter::new(File::create(file)?);
    let mut count = 0;
    for letter in selection.letters() {
        serde_json::to_writer(&mut lines, &letter?).map_err(io::Error::from)?;
        lines.write_all(b"\n")?;
        count += 1;
    }
    let file = lines.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(count)
}

fn import(
    mut records: RecordStore,
    config: &QueueConfig,
    shutdown: &Shutdown,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let queue = config.dead_queue();
    let mut connection = AmqpConnection::open(config, PROGRAM)?;
    let mut imported = 0;
    if connection.count(&queue)?.is_some() {
        let channel = connection.open_channel()?;
        let _deadline = connection.deadline_on_drop();
        loop {
            if shutdown.is_requested() {
                let text = format!("stopped before the end; {imported} dead letters imported");
                return Err(CommandError::Failed(text));
            }
            let deadline = connection.deadline();
            let got = channel.basic_get(queue.as_str(), false);
            drop(deadline);
            let Some(got) = got.map_err(AmqpError::from)? else {
                break;
            };
            let mut message = Message::from_queue(got.delivery.clone());
            message.content = Err(reason_of(&got.delivery));
            if let Fate::Held(cause) = settle_one(&mut records, message)? {
                return Err(CommandError::Failed(cause));
            }
            got.delivery.ack(&channel).map_err(AmqpError::from)?;
            imported += 1;
        }
    }
    writeln!(out, "{imported} dead letters imported")?;
    Ok(())
}

/// The reason that an older version wrote into a header. The text begins with what it is about, as in
/// `the message id is too long` or `user_id is required`.
fn reason_of(delivery: &Delivery) -> Reason {
    let text = header_text(delivery, "x-dead-reason").unwrap_or("unknown");
    let subject = text
        .trim_start_matches("the ")
        .replace("message id", "message_id");
    let word = REASONS.into_iter().find(|word| subject.starts_with(word));
    Reason::new(word.unwrap_or("body"), text)
}

/// An age in the greatest unit that fits.
fn coarse(seconds: i64) -> String {
    let greatest = UNITS.into_iter().rfind(|(_, unit)| seconds >= *unit);
    let (name, unit) = greatest.unwrap_or(UNITS[0]);
    format!("{}{name}", seconds / unit)
}

/// The start of a text on one line. Characters that a terminal would interpret are escaped.
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
