//! The log: one line for each event on standard error, with the time, the level, the program and its part, the
//! message, and the pairs of the event. A line is logfmt (`time=… level=info program=… msg="…"`) or a JSON object;
//! both have equal keys. Characters that could end a value, a key or a line are escaped, so that no client can
//! forge one.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::kv::{Error, Key, Value, VisitSource, VisitValue};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::env::{ConfigError, Vars};

/// The filter for libraries, without PostgreSQL's notices at each reconnect and amiquip's frames.
const LIBRARIES: &str =
    "postgres=warn,tokio_postgres=warn,amiquip=off,mio=warn,ureq=warn,ureq_proto=warn";

/// Lines of requests are buffered until there are this many bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// How many bytes of lines that cannot be written are buffered; further lines are lost.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// The size of a write that does not block on a pipe that is ready, and is not divided (`PIPE_BUF`).
const WRITE_BYTES: usize = 4096;

/// How long the program waits at its end for the last lines to be written.
const END_LIMIT: Duration = Duration::from_secs(1);

/// The lines of all threads that are written next.
static BUFFER: Mutex<Buffer> = Mutex::new(Buffer {
    lines: String::new(),
    lost: 0,
    form: (Format::Logfmt, ""),
});

struct Buffer {
    lines: String,
    /// How many lines were lost because the buffer was full.
    lost: usize,
    /// The form of the lines, and the name of the program.
    form: (Format, &'static str),
}

/// Whether a thread calls [`flush`] regularly.
static IS_FLUSHED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The lines of this thread that are buffered by [`buffer`].
    static THREAD_LINES: Cell<Option<String>> = const { Cell::new(None) };
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Logfmt,
    Json,
}

impl Format {
    fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        const VARIABLE: &str = "LOG_FORMAT";
        match vars.optional(VARIABLE) {
            None | Some("logfmt") => Ok(Self::Logfmt),
            Some("json") => Ok(Self::Json),
            Some(_) => Err(ConfigError::malformed(VARIABLE, "logfmt or json")),
        }
    }
}

/// Starts the log of `program`, filtered by `RUST_LOG` (`info` if it is not set) and in the form that `LOG_FORMAT`
/// names. A second call in one process, as tests make it, changes nothing.
pub fn init(program: &'static str, vars: &Vars) -> Result<(), ConfigError> {
    let format = Format::from_vars(vars)?;
    let filter = vars.optional("RUST_LOG").unwrap_or("info");
    let begun = env_logger::Builder::new()
        .parse_filters(LIBRARIES)
        .parse_filters(filter)
        .format(move |_, record| {
            if let Some(mut lines) = THREAD_LINES.take() {
                write_line(&mut lines, format, program, record);
                THREAD_LINES.set(Some(lines));
                return Ok(());
            }
            let mut buffer = lock(&BUFFER);
            buffer.add(1, |lines| write_line(lines, format, program, record));
            let waits = record.level() >= log::Level::Info
                && record.target() == "access"
                && buffer.lines.len() < BUFFER_BYTES
                && IS_FLUSHED.load(Ordering::Relaxed);
            if !waits {
                buffer.write(Duration::ZERO);
            }
            Ok(())
        })
        .try_init();
    if begun.is_ok() {
        lock(&BUFFER).form = (format, program);
    }
    Ok(())
}

/// Logs every panic as an event.
pub(crate) fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let cause = panic.payload_as_str().unwrap_or("unknown");
        log::error!(place = place.as_deref(), cause = cause; "panicked");
    }));
}

/// A duration in milliseconds, rounded to hundredths, as log lines have it.
#[must_use]
pub fn logged_millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

/// Writes the buffered lines as far as this takes no wait. A caller must call it several times a second from then
/// on: a write for each line of a request would cost more than the line.
pub(crate) fn flush() {
    IS_FLUSHED.store(true, Ordering::Relaxed);
    write(Duration::ZERO);
}

/// Writes the last lines of the program; waits up to [`END_LIMIT`] for a slow reader.
pub(crate) fn end() {
    write(END_LIMIT);
}

fn write(patience: Duration) {
    let mut buffer = lock(&BUFFER);
    buffer.write(patience);
    buffer.add(0, |_| {});
    buffer.write(patience);
}

impl Buffer {
    /// Adds `many` lines if there is room for them, and before them a line about the lines that were lost.
    fn add(&mut self, many: usize, add: impl FnOnce(&mut String)) {
        if self.lines.len() >= BUFFER_BYTES_MAX {
            self.lost += many;
            return;
        }
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            let (format, program) = self.form;
            write_line(
                &mut self.lines,
                format,
                program,
                &log::Record::builder()
                    .level(log::Level::Warn)
                    .target(module_path!())
                    .args(format_args!("the log was not read, so lines were lost"))
                    .key_values(&[("lines", lost)])
                    .build(),
            );
        }
        add(&mut self.lines);
    }

    /// Writes as many lines as it can, and waits no longer than `patience`. Each write has whole lines, so that
    /// the lines of several processes do not mix.
    fn write(&mut self, patience: Duration) {
        let (deadline, mut written) = (Instant::now() + patience, 0);
        while let rest @ [_, ..] = &self.lines.as_bytes()[written..]
            && is_read(deadline.saturating_duration_since(Instant::now()))
        {
            let piece = &rest[..rest.len().min(WRITE_BYTES)];
            let end = piece.iter().rposition(|byte| *byte == b'\n');
            let piece = end.map_or(piece, |end| &piece[..=end]);
            // A failure to write to standard error cannot be reported anywhere.
            written += io::stderr().write(piece).unwrap_or(rest.len());
        }
        self.lines.drain(..written);
    }
}

/// Whether standard error can take the next piece within `patience`.
fn is_read(patience: Duration) -> bool {
    let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    let (stderr, mut ready) = (io::stderr(), Err(Errno::INTR));
    while ready == Err(Errno::INTR) {
        ready = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], patience);
    }
    ready != Ok(0)
}

fn lock(buffer: &Mutex<Buffer>) -> MutexGuard<'_, Buffer> {
    buffer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Buffers the lines of this thread until the returned value is dropped, which writes them together: a write for
/// each of hundreds of lines would cost more than the lines.
#[must_use]
pub fn buffer() -> LogBuffer {
    THREAD_LINES.set(Some(String::new()));
    LogBuffer(())
}

/// Writes the lines when it is dropped.
pub struct LogBuffer(());

impl Drop for LogBuffer {
    fn drop(&mut self) {
        if let Some(lines_of_thread) = THREAD_LINES.take() {
            let mut buffer = lock(&BUFFER);
            let many = lines_of_thread.matches('\n').count();
            buffer.add(many, |lines| lines.push_str(&lines_of_thread));
            buffer.write(Duration::ZERO);
        }
    }
}

fn write_line(lines: &mut String, format: Format, program: &str, record: &log::Record<'_>) {
    let level = match record.level() {
        log::Level::Error => "error",
        log::Level::Warn => "warn",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    };
    let mut line = Line::begin(lines, format);
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    line.display("time", &now);
    line.text("level", level);
    line.text("program", program);
    line.text("target", record.target());
    match record.args().as_str() {
        Some(message) => line.text("msg", message),
        None => line.display("msg", record.args()),
    }
    let _ = record.key_values().visit(&mut line);
    line.end();
}

/// A line that is being written.
struct Line<'a> {
    out: &'a mut String,
    format: Format,
    first: bool,
}

impl<'a> Line<'a> {
    fn begin(out: &'a mut String, format: Format) -> Self {
        if format == Format::Json {
            out.push('{');
        }
        Self {
            out,
            format,
            first: true,
        }
    }

    fn end(self) {
        if self.format == Format::Json {
            self.out.push('}');
        }
        self.out.push('\n');
    }

    fn key(&mut self, key: &str) {
        let first = std::mem::replace(&mut self.first, false);
        match self.format {
            Format::Logfmt => {
                if !first {
                    self.out.push(' ');
                }
                // A library may take any text for a key.
                let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
                if key.bytes().all(plain) {
                    self.out.push_str(key);
                } else {
                    let bytes = key.bytes().map(|b| if plain(b) { b } else { b'_' });
                    self.out.extend(bytes.map(char::from));
                }
                self.out.push('=');
            }
            Format::Json => {
                if !first {
                    self.out.push(',');
                }
                push_quoted(self.out, key);
                self.out.push(':');
            }
        }
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'=');
        if self.format == Format::Logfmt && !value.is_empty() && value.bytes().all(plain) {
            self.out.push_str(value);
        } else {
            push_quoted(self.out, value);
        }
    }

    fn display(&mut self, key: &str, value: &impl ToString) {
        self.text(key, &value.to_string());
    }

    /// A value that both forms write without quotes: a number, true or false.
    fn literal(&mut self, key: &str, value: impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }
}

/// Writes a JSON string. Besides the characters that JSON requires, it escapes every character that is neither
/// printable ASCII nor a letter or a digit, since it may be invisible, break the line or reverse its direction.
fn push_quoted(out: &mut String, text: &str) {
    let stands = |c: char| match c {
        '"' | '\\' => false,
        ' '..='~' => true,
        _ => !c.is_ascii() && c.is_alphanumeric(),
    };
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|c| !stands(c)) {
        let (plain, tail) = rest.split_at(at);
        out.push_str(plain);
        let mut tail = tail.chars();
        match tail.next() {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            other => {
                for unit in other.unwrap_or_default().encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
        rest = tail.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

impl<'kvs> VisitSource<'kvs> for Line<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        value.visit(Pair {
            line: self,
            key: key.as_str(),
        })
    }
}

/// A pair whose value has a type.
struct Pair<'a, 'b> {
    line: &'a mut Line<'b>,
    key: &'a str,
}

impl VisitValue<'_> for Pair<'_, '_> {
    fn visit_any(&mut self, value: Value) -> Result<(), Error> {
        self.line.display(self.key, &value);
        Ok(())
    }

    /// A pair without a value is left out.
    fn visit_null(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), Error> {
        self.line.text(self.key, value);
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), Error> {
        self.line.literal(self.key, value);
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        self.line.literal(self.key, value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), Error> {
        self.line.literal(self.key, value);
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), Error> {
        // JSON has no number for infinity and NaN.
        if value.is_finite() {
            self.line.literal(self.key, value);
        } else {
            self.line.display(self.key, &value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn line(format: Format, message: &str, pairs: &[(&str, Value<'_>)]) -> String {
        let mut line = String::new();
        let record = log::Record::builder()
            .level(log::Level::Info)
            .target("access")
            .key_values(&pairs)
            .build();
        // The arguments of a record live no longer than the statement that makes them.
        write_line(
            &mut line,
            format,
            "api-gateway",
            &record.to_builder().args(format_args!("{message}")).build(),
        );
        line
    }

    /// The pairs of a line of logfmt; a malformed line fails the test.
    fn read_logfmt(line: &str) -> Vec<(String, String)> {
        let mut rest = line.strip_suffix('\n').expect("a line");
        let mut pairs = Vec::new();
        loop {
            let (key, tail) = rest.split_once('=').expect("a key and its value");
            let end = if tail.starts_with('"') {
                let quote = tail.match_indices('"').skip(1).find(|(at, _)| {
                    let before = tail[..*at].bytes().rev();
                    before.take_while(|b| *b == b'\\').count() % 2 == 0
                });
                quote.expect("the end of the value").0 + 1
            } else {
                tail.find(' ').unwrap_or(tail.len())
            };
            let (value, tail) = tail.split_at(end);
            let value = match value.strip_prefix('"') {
                Some(_) => serde_json::from_str(value).expect("a JSON string"),
                None => value.to_owned(),
            };
            pairs.push((key.to_owned(), value));
            match tail.strip_prefix(' ') {
                Some(tail) => rest = tail,
                None => return pairs,
            }
        }
    }

    /// Texts of characters that might forge a line.
    fn any_text() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "\n",
            "\r",
            "\"",
            "\\",
            "\\\"",
            "=",
            " ",
            "\0",
            "\u{1b}[2K",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "\u{202e}",
            "level=error",
            "\",\"level\":\"error",
            "ü",
            "🎬",
            "a",
        ]);
        let built = prop::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat());
        prop_oneof![any::<String>(), built]
    }

    proptest! {
        #[test]
        fn a_line_of_logfmt_says_what_was_logged_and_nothing_else(
            message in any_text(), path in any_text(), client in any_text(),
        ) {
            let pairs = [("path", Value::from(&*path)), ("client", Value::from(&*client))];

            let line = line(Format::Logfmt, &message, &pairs);

            let printable = |c: char| c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
            prop_assert!(line[..line.len() - 1].chars().all(printable), "{line:?}");
            let read = read_logfmt(&line);
            let read: Vec<_> = read.iter().map(|(key, value)| (&**key, &**value)).skip(1).collect();
            let expected = [
                ("level", "info"), ("program", "api-gateway"), ("target", "access"),
                ("msg", &*message), ("path", &*path), ("client", &*client),
            ];
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn a_line_of_json_says_the_same(
            message in any_text(), path in any_text(), client in any_text(),
        ) {
            let pairs = [("path", Value::from(&*path)), ("client", Value::from(&*client))];

            let line = line(Format::Json, &message, &pairs);

            let printable = |c: char| c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
            prop_assert!(line[..line.len() - 1].chars().all(printable), "{line:?}");
            let mut read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let time = read["time"].take();
            let expected = json!({
                "time": null, "level": "info", "program": "api-gateway", "target": "access",
                "msg": message, "path": path, "client": client,
            });
            prop_assert_eq!(read, expected);
            let time = time.as_str().expect("a time");
            prop_assert!(time.ends_with('Z') && humantime::parse_rfc3339(time).is_ok());
        }
    }

    #[test]
    fn plain_values_stand_as_they_are() {
        let pairs = [("path", Value::from("/api/movies/1"))];

        let line = line(Format::Logfmt, "request", &pairs);

        let (_, rest) = line.split_once(' ').expect("a time first");
        let expected =
            "level=info program=api-gateway target=access msg=request path=/api/movies/1\n";
        assert_eq!(rest, expected);
    }

    #[test]
    fn numbers_are_numbers_and_what_there_is_not_is_left_out() {
        let pairs = [
            ("status", Value::from(200)),
            ("ms", Value::from(0.25)),
            ("rate", Value::from(f64::NAN)),
            ("truncated", Value::from(false)),
            ("cause", Value::null()),
        ];

        let logfmt = line(Format::Logfmt, "request", &pairs);
        let json: serde_json::Value =
            serde_json::from_str(&line(Format::Json, "request", &pairs)).expect("JSON");

        assert!(
            logfmt.ends_with("msg=request status=200 ms=0.25 rate=NaN truncated=false\n"),
            "{logfmt}"
        );
        assert_eq!(
            (
                &json["status"],
                &json["ms"],
                &json["rate"],
                json.get("cause")
            ),
            (&json!(200), &json!(0.25), &json!("NaN"), None)
        );
        assert_eq!(json["truncated"], json!(false));
    }

    #[test]
    fn a_format_that_is_none_is_named() {
        let of = |value| Format::from_vars(&Vars::from_pairs([("LOG_FORMAT", value)]));

        assert_eq!((of(""), of("json")), (Ok(Format::Logfmt), Ok(Format::Json)));
        assert_eq!(
            of("JSON").unwrap_err().to_string(),
            "LOG_FORMAT is malformed: it must be logfmt or json"
        );
    }
}
