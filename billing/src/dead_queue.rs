//! What an operator does about the dead queue: `billing-dead-letters`. A queue can only be read
//! by taking messages off it. Up to [`HELD_MAX`] dead letters are looked at without being
//! acknowledged, and return to their places when the program ends. Of a longer queue each one
//! that stays is published again behind the others, and acknowledged when that is confirmed:
//! neither this program nor the broker then holds more than a few of them, and after the whole
//! pass they stand in their order again. A pass that is cut off loses none, and may leave a few
//! twice; two that are the same have the same id, so both together are recorded once.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, AmqpValue, Confirm, ConsumerOptions, Delivery, FieldTable, Publish};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::env::Vars;
use common::process::CommandError;
use common::queue::{Confirming, LimitFromDrop, Link, LinkError, QueueConfig, Unconfirmed};
use common::shutdown::Shutdown;
use crossbeam_channel::{never, select};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::consumer::delivery;
use crate::dead_letters::{DEAD_ID, PREFIX, REASON, TIME};

/// Its name, also on the management page.
pub const PROGRAM: &str = "billing-dead-letters";

/// How the program is called.
pub const USAGE: &str = "\
Usage: billing-dead-letters list [COUNT]     the oldest dead letters: age, id, reason, content
       billing-dead-letters replay [ID…]     puts them, or all, back on the queue of orders
       billing-dead-letters drop ID…         throws them away
       billing-dead-letters export FILE      writes all to FILE, as JSON lines
       billing-dead-letters --help | --version";

/// Dead letters that the broker is made to remember as taken and not acknowledged.
const HELD_MAX: u64 = 10_000;

/// How many are listed where nothing else is asked for.
const LISTED: u64 = 1000;

/// Messages that are published and not confirmed, and the same in bytes.
const WINDOW_MAX: usize = 500;
const WINDOW_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Deliveries on their way here beyond those that are held.
const PREFETCH: u64 = 1000;

/// How long the broker may take to deliver what it has, or to confirm what it got.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How much of a text is shown on one line.
const SHOWN_CHARS: usize = 60;

/// Does what the arguments say. What they ask for is written to `out`, what became of it to
/// standard error.
pub fn run(
    vars: &Vars,
    arguments: &[String],
    shutdown: &Shutdown,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let wrong = |text: &str| Err(CommandError::Usage(format!("{text}\n\n{USAGE}")));
    let pass = Pass {
        config: QueueConfig::from_vars(vars)?,
        shutdown,
    };
    match arguments[..] {
        ["list"] => list(&pass, LISTED, out),
        ["list", count] => match count.parse() {
            Ok(count @ 1..=HELD_MAX) => list(&pass, count, out),
            _ => wrong("list takes a number from 1 to 10000; export writes all"),
        },
        ["replay"] => replay_all(&pass, out),
        ["replay", ref ids @ ..] => settle(&pass, ids, Fate::Replay, out),
        ["drop"] => wrong("drop needs to be told which; replay takes all where none is given"),
        ["drop", ref ids @ ..] => settle(&pass, ids, Fate::Drop, out),
        ["export", file] => export(&pass, Path::new(file), out),
        _ => wrong("list, replay, drop or export?"),
    }
}

fn list(pass: &Pass<'_>, count: u64, out: &mut dyn Write) -> Result<(), CommandError> {
    let passed = pass.walk(count, |letter| {
        writeln!(
            out,
            "{:>4}  {:<36}  {}  {}",
            letter.age(),
            letter.id(),
            shown(letter.reason().as_bytes()),
            shown(&letter.delivery.body)
        )?;
        Ok(Fate::Keep)
    })?;
    writeln!(out, "{} of {} dead letters", passed.seen, passed.total)?;
    Ok(())
}

fn replay_all(pass: &Pass<'_>, out: &mut dyn Write) -> Result<(), CommandError> {
    let passed = pass.walk(u64::MAX, |_| Ok(Fate::Replay))?;
    writeln!(out, "{} of {} replayed", passed.seen, passed.total)?;
    Ok(())
}

fn settle(
    pass: &Pass<'_>,
    ids: &[&str],
    fate: Fate,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut missing: BTreeSet<&str> = ids.iter().copied().collect();
    let mut settled = 0;
    let passed = pass.walk(u64::MAX, |letter| {
        let mut chosen = false;
        for id in ids.iter().filter(|id| letter.is_called(id)) {
            chosen = true;
            missing.remove(id);
        }
        settled += u64::from(chosen);
        Ok(if chosen { fate } else { Fate::Keep })
    })?;
    let done = if fate == Fate::Drop {
        "dropped"
    } else {
        "replayed"
    };
    writeln!(out, "{settled} {done}")?;
    if missing.is_empty() {
        return Ok(());
    }
    if passed.seen < passed.total {
        return Err(CommandError::Failed("stopped before the end".to_owned()));
    }
    let missing: Vec<_> = missing.into_iter().map(|id| shown(id.as_bytes())).collect();
    Err(CommandError::Failed(format!(
        "no dead letter is called {}",
        missing.join(", ")
    )))
}

/// Under another name until it is whole.
fn export(pass: &Pass<'_>, file: &Path, out: &mut dyn Write) -> Result<(), CommandError> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = file.with_file_name(name);
    let passed = write_letters(pass, &partial).and_then(|passed| {
        if passed.seen < passed.total {
            return Err(CommandError::Failed("the export was stopped".to_owned()));
        }
        fs::rename(&partial, file)?;
        Ok(passed)
    });
    if passed.is_err() {
        let _ = fs::remove_file(&partial);
    }
    writeln!(out, "{} dead letters exported", passed?.seen)?;
    Ok(())
}

fn write_letters(pass: &Pass<'_>, partial: &Path) -> Result<Passed, CommandError> {
    let mut lines = BufWriter::new(File::create(partial)?);
    let passed = pass.walk(u64::MAX, |letter| {
        serde_json::to_writer(&mut lines, &letter.to_json()).map_err(io::Error::from)?;
        lines.write_all(b"\n")?;
        Ok(Fate::Keep)
    })?;
    let file = lines.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(passed)
}

/// A message on the dead queue.
struct Letter {
    delivery: Delivery,
}

impl Letter {
    fn header(&self, name: &str) -> Option<&AmqpValue> {
        self.delivery.properties.headers().as_ref()?.get(name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        match self.header(name)? {
            AmqpValue::LongString(text) => Some(text),
            _ => None,
        }
    }

    fn message_id(&self) -> Option<&str> {
        let id = self.delivery.properties.message_id().as_deref();
        id.filter(|id| !id.is_empty())
    }

    /// What it is called: its message id where that can be typed, else the id that it got when
    /// it was buried; one that somebody else put here is known by its content.
    fn id(&self) -> String {
        let typeable = |id: &&str| id.bytes().all(|b| b.is_ascii_graphic());
        let id = self.message_id().filter(typeable);
        if let Some(id) = id.or_else(|| self.text(DEAD_ID).filter(typeable)) {
            return id.to_owned();
        }
        let digest = Sha256::digest(&self.delivery.body);
        format!("sha256-{}", hex::encode(&digest[..12]))
    }

    fn is_called(&self, id: &str) -> bool {
        self.message_id() == Some(id) || self.text(DEAD_ID) == Some(id) || self.id() == id
    }

    fn reason(&self) -> &str {
        self.text(REASON).unwrap_or("unknown")
    }

    fn time(&self) -> Option<SystemTime> {
        let AmqpValue::Timestamp(seconds) = self.header(TIME)? else {
            return None;
        };
        UNIX_EPOCH.checked_add(Duration::from_secs((*seconds).min(YEAR_9999)))
    }

    fn age(&self) -> String {
        let age = self.time().and_then(|time| time.elapsed().ok());
        age.map_or_else(|| "-".to_owned(), |age| coarse(age.as_secs()))
    }

    fn to_json(&self) -> serde_json::Value {
        let rfc_3339 = |time| humantime::format_rfc3339_seconds(time).to_string();
        let properties = &self.delivery.properties;
        let mut json = json!({
            "id": self.id(),
            "message_id": properties.message_id(),
            "reason": self.reason(),
            "time": self.time().map(rfc_3339),
            "timestamp": properties.timestamp(),
            "content_type": properties.content_type(),
        });
        match std::str::from_utf8(&self.delivery.body) {
            Ok(text) => json["body"] = json!(text),
            Err(_) => json["body_base64"] = json!(STANDARD.encode(&self.delivery.body)),
        }
        json
    }

    /// As it was before it died. One without a message id gets the id of the dead letter, so
    /// that a replay that is repeated records it once.
    fn replayed(&self) -> AmqpProperties {
        let original = &self.delivery.properties;
        let mut properties = AmqpProperties::default().with_delivery_mode(2);
        if let Some(id) = self.message_id().or_else(|| self.text(DEAD_ID)) {
            properties = properties.with_message_id(id.to_owned());
        }
        if let Some(content_type) = original.content_type() {
            properties = properties.with_content_type(content_type.clone());
        }
        if let Some(timestamp) = original.timestamp() {
            properties = properties.with_timestamp(*timestamp);
        }
        let mut headers = without_copies(original);
        headers.retain(|name, _| !name.starts_with(PREFIX));
        properties.with_headers(headers)
    }

    fn rotated(&self) -> AmqpProperties {
        let properties = self.delivery.properties.clone();
        properties.with_headers(without_copies(&self.delivery.properties))
    }
}

/// The last second that RFC 3339 can write.
const YEAR_9999: u64 = 253_402_300_799;

/// The headers, without those that would make the broker put copies on other queues.
fn without_copies(properties: &AmqpProperties) -> FieldTable {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.retain(|name, _| name != "CC" && name != "BCC");
    headers
}

fn coarse(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
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

/// What becomes of a dead letter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Drop,
    Replay,
}

/// How many dead letters there were, and how many of them were looked at.
struct Passed {
    total: u64,
    seen: u64,
}

/// Passes over the dead queue.
struct Pass<'a> {
    config: QueueConfig,
    shutdown: &'a Shutdown,
}

impl Pass<'_> {
    /// Lets `decide` see each of the dead letters that are there now, the oldest first, and at
    /// most `most`. Ends early, and in good order, at the shutdown.
    fn walk(
        &self,
        most: u64,
        decide: impl FnMut(&Letter) -> io::Result<Fate>,
    ) -> Result<Passed, CommandError> {
        self.try_walk(most, decide)
            .map_err(|failure| CommandError::Failed(failure.to_string()))
    }

    fn try_walk(
        &self,
        most: u64,
        mut decide: impl FnMut(&Letter) -> io::Result<Fate>,
    ) -> Result<Passed, Failure> {
        let dead_queue = self.config.dead_queue();
        let mut outbox = Outbox::open(&self.config)?;
        let mut link = Link::open(&self.config, PROGRAM)?;
        let channel = link.open_channel()?;
        link.declare(&dead_queue)?;
        let limit = link.limit();
        let queue = channel.queue_declare_passive(dead_queue.as_str())?;
        let total = queue.declared_message_count().map_or(0, u64::from);
        let due = total.min(most);
        let rotates = due > HELD_MAX;
        let prefetch = if rotates { PREFETCH } else { due + PREFETCH };
        channel.qos(0, u16::try_from(prefetch).unwrap_or(u16::MAX), false)?;
        // A second receiver, dropped after the consumer: amiquip's thread ends the connection
        // when it has a delivery for one that is gone.
        let deliveries;
        // Two passes at once would each see half.
        let options = ConsumerOptions {
            exclusive: true,
            ..ConsumerOptions::default()
        };
        let consumer = channel.basic_consume(dead_queue.as_str(), options)?;
        drop(limit);
        deliveries = consumer.receiver().clone();
        // Last, so that it is dropped first: the farewells above get a limit.
        let _limit = link.limit_from_drop();

        let (mut seen, nothing) = (0, never());
        while (seen < due && !self.shutdown.is_requested()) || !outbox.unconfirmed.is_empty() {
            let takes = seen < due && !self.shutdown.is_requested() && outbox.has_room();
            select! {
                recv(if takes { &deliveries } else { &nothing }) -> message => {
                    let ended = LinkError::Broken("it ended the deliveries");
                    let letter = Letter { delivery: delivery(message.map_err(|_| ended)?)? };
                    let tag = letter.delivery.delivery_tag();
                    seen += 1;
                    match decide(&letter)? {
                        Fate::Drop => letter.delivery.ack(&channel)?,
                        Fate::Replay => outbox.publish(&self.config.queue, letter.replayed(), letter)?,
                        Fate::Keep if rotates => outbox.publish(&dead_queue, letter.rotated(), letter)?,
                        Fate::Keep => {}
                    }
                    link.release([tag]);
                }
                recv(outbox.confirming.confirms) -> confirm => {
                    let ended = LinkError::Broken("it ended the link");
                    for delivery in outbox.settle(confirm.map_err(|_| ended)?)? {
                        delivery.ack(&channel)?;
                    }
                }
                default(ANSWER_LIMIT) => {
                    return Err(LinkError::Broken("it does not answer, or its alarm is on").into());
                }
            }
        }
        Ok(Passed { total, seen })
    }
}

/// What is published and not confirmed, over a link of its own.
struct Outbox {
    unconfirmed: Unconfirmed<(usize, Delivery)>,
    bytes: usize,
    /// First of the three, so that the farewells of the others get a limit.
    _limit: LimitFromDrop,
    /// Before its link, so that it is dropped first.
    confirming: Confirming,
    _link: Link,
}

impl Outbox {
    fn open(config: &QueueConfig) -> Result<Self, LinkError> {
        let mut link = Link::open(config, PROGRAM)?;
        Ok(Self {
            unconfirmed: Unconfirmed::default(),
            bytes: 0,
            confirming: link.open_confirming(&config.queue)?,
            _limit: link.limit_from_drop(),
            _link: link,
        })
    }

    fn has_room(&self) -> bool {
        self.unconfirmed.len() < WINDOW_MAX && self.bytes < WINDOW_BYTES_MAX
    }

    fn publish(
        &mut self,
        queue: &str,
        properties: AmqpProperties,
        letter: Letter,
    ) -> Result<(), LinkError> {
        let mut delivery = letter.delivery;
        let publish = Publish {
            body: &delivery.body,
            routing_key: queue.to_owned(),
            mandatory: true,
            immediate: false,
            properties,
        };
        self.confirming.channel.basic_publish("", publish)?;
        let bytes = std::mem::take(&mut delivery.body).len();
        self.bytes += bytes;
        self.unconfirmed.push((bytes, delivery));
        Ok(())
    }

    /// The dead letters that a confirm is about: they may go now.
    fn settle(&mut self, confirm: Confirm) -> Result<Vec<Delivery>, LinkError> {
        let (taken, settled) = self.unconfirmed.settle(confirm);
        if !taken || !self.confirming.returns.is_empty() {
            return Err(LinkError::Broken("a queue takes no messages"));
        }
        let settled = settled.into_values();
        let settled = settled.map(|(bytes, delivery)| {
            self.bytes -= bytes;
            delivery
        });
        Ok(settled.collect())
    }
}

/// Why a pass was not made to its end.
enum Failure {
    Broker(LinkError),
    /// What `decide` was about.
    Output(io::Error),
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Broker(error)
    }
}

impl From<amiquip::Error> for Failure {
    fn from(error: amiquip::Error) -> Self {
        Self::Broker(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(error) => error.fmt(f),
            Self::Output(error) => error.fmt(f),
        }
    }
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
    }
}
