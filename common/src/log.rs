//! One line per event on standard error, in logfmt: `time=… level=info program=… msg="…"` and
//! whatever pairs the event carries. Control characters are escaped, so that nothing a client
//! sends can forge a line.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::SystemTime;

use log::kv::{Key, Value, VisitSource};

use crate::env::Vars;

/// Quiet where the libraries are chatty: PostgreSQL's notices at each reconnect, amiquip's
/// frames.
const LIBRARIES: &str =
    "postgres=warn,tokio_postgres=warn,amiquip=off,mio=warn,ureq=warn,ureq_proto=warn";

/// Starts logging for `program`, filtered by `RUST_LOG` (`info` when unset). A second call, as
/// from the next test in one process, changes nothing.
pub fn init(program: &'static str, vars: &Vars) {
    let filter = vars.optional("RUST_LOG").unwrap_or("info");
    let _ = env_logger::Builder::new()
        .parse_filters(LIBRARIES)
        .parse_filters(filter)
        .format(move |out, record| {
            let mut line = format!(
                "time={} level={} program={program}",
                humantime::format_rfc3339_millis(SystemTime::now()),
                record.level().as_str().to_ascii_lowercase()
            );
            let mut pairs = Pairs { line: &mut line };
            pairs.push("msg", &record.args().to_string());
            let _ = record.key_values().visit(&mut pairs);
            line.push('\n');
            // One write: lines of several threads and processes do not mix.
            out.write_all(line.as_bytes())
        })
        .try_init();
}

struct Pairs<'a> {
    line: &'a mut String,
}

impl Pairs<'_> {
    fn push(&mut self, key: &str, value: &str) {
        let plain = |c: char| !c.is_control() && !c.is_whitespace() && c != '"' && c != '=';
        let _ = if !value.is_empty() && value.chars().all(plain) {
            write!(self.line, " {key}={value}")
        } else {
            // Rust's escapes are close to JSON's and never leave a control character as it is.
            write!(self.line, " {key}={value:?}")
        };
    }
}

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        self.push(key.as_str(), &value.to_string());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(value: &str) -> String {
        let mut line = String::new();
        Pairs { line: &mut line }.push("path", value);
        line
    }

    #[test]
    fn plain_values_stand_as_they_are() {
        assert_eq!(pair("/api/movies/1"), " path=/api/movies/1");
    }

    #[test]
    fn values_that_could_forge_a_line_are_quoted_and_escaped() {
        assert_eq!(pair("a\nlevel=error"), r#" path="a\nlevel=error""#);
        assert_eq!(pair("two words"), r#" path="two words""#);
        assert_eq!(pair(""), r#" path="""#);
    }
}
