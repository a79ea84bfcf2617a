//! The settings of a program, which it reads once, at its start. A variable of the process environment overrides
//! one of the file `.env`. No error shows a value, since it may be a password.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The variable that names the file to read instead of those in the working directory.
const ENV_FILE: &str = "ENV_FILE";

/// The variables with which a program was started.
#[derive(Clone, Default)]
pub struct Vars {
    values: HashMap<String, String>,
}

impl Vars {
    /// Reads the file that `ENV_FILE` names, or those of the working directory. The process environment overrides
    /// them.
    pub fn load() -> Result<Self, ConfigError> {
        let environment: Vars = Vars {
            values: std::env::vars_os()
                .filter_map(|(key, value)| {
                    Some((key.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
        };
        let file = match environment.values.get(ENV_FILE) {
            Some(path) => Vars::from_file(Path::new(path))?,
            None => Vars::from_folder(Path::new("."))?,
        };
        Ok(environment.over(file))
    }

    /// Reads `.env` and `.env.local`, the settings of this installation, which override `.env`; either file may be
    /// missing.
    pub fn from_folder(folder: &Path) -> Result<Self, ConfigError> {
        [".env.local", ".env"]
            .map(|name| folder.join(name))
            .iter()
            .filter(|path| path.exists())
            .try_fold(Vars::default(), |vars, path| {
                let found = Vars::read(path).map_err(|problem| ConfigError {
                    key: path.display().to_string(),
                    problem,
                })?;
                Ok(vars.over(found))
            })
    }

    /// Reads a file of `KEY=VALUE` lines and nothing else.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path).map_err(|problem| ConfigError {
            key: ENV_FILE.to_owned(),
            problem: format!("names {}, which {problem}", path.display()),
        })
    }

    fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path)
            .map_err(|error| format!("cannot be read: {error}; the file must exist, and this user must be able to read it"))?;
        Ok(Self {
            values: pairs_in(&bytes)?,
        })
    }

    /// Only the given variables, for tests.
    #[must_use]
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self {
            values: pairs
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        }
    }

    /// These variables, and those of `others` that are not among them.
    #[must_use]
    pub fn over(self, others: Vars) -> Self {
        let mut values = others.values;
        values.extend(self.values);
        Self { values }
    }

    /// The text of a variable that must be set and not empty.
    pub fn text(&self, key: &str) -> Result<String, ConfigError> {
        self.optional(key)
            .map(str::to_owned)
            .ok_or_else(|| ConfigError {
                key: key.to_owned(),
                problem: "is missing: set it in .env or in the environment".to_owned(),
            })
    }

    /// The text of a variable that may be left out; an empty variable counts as left out.
    #[must_use]
    pub fn optional(&self, key: &str) -> Option<&str> {
        self.values
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The text of a variable that protects something where it is set. An empty variable is an error, since its
    /// value was lost before it arrived.
    pub fn guarding(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        match self.values.get(key).map(String::as_str) {
            Some("") => Err(ConfigError {
                key: key.to_owned(),
                problem: "is set and empty: give it a value, or leave it out".to_owned(),
            }),
            value => Ok(value),
        }
    }

    /// A variable that must be set, as a value of its type; `expected` describes a valid value in the error, as in
    /// "a port number from 0 to 65535".
    pub fn parsed<T: FromStr>(&self, key: &str, expected: &str) -> Result<T, ConfigError> {
        parse(key, &self.text(key)?, expected)
    }

    /// A variable as a value of its type, or `default` if it is not set; `expected` describes a valid value in the
    /// error.
    pub fn parsed_or<T: FromStr>(
        &self,
        key: &str,
        expected: &str,
        default: T,
    ) -> Result<T, ConfigError> {
        self.optional(key)
            .map_or(Ok(default), |text| parse(key, text, expected))
    }

    /// A TCP port; 0 lets the system choose one.
    pub fn port(&self, key: &str) -> Result<u16, ConfigError> {
        self.parsed(key, "a port number from 0 to 65535")
    }
}

/// The pairs in a file of settings. `docs/SETTINGS.md` has its grammar, which the scripts and the Vagrantfile
/// follow too. An error names the line and never quotes it, since it may contain a password.
fn pairs_in(bytes: &[u8]) -> Result<HashMap<String, String>, String> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") || bytes.contains(&0) {
        return Err("is UTF-16: save it as UTF-8".to_owned());
    }
    (1..)
        .zip(bytes.split(|&byte| byte == b'\n'))
        .filter_map(|(number, line)| {
            let Ok(line) = std::str::from_utf8(line) else {
                return Some(Err(format!(
                    "is not UTF-8 in line {number}: save it as UTF-8"
                )));
            };
            let line = line.strip_suffix('\r').unwrap_or(line);
            let mark = if number == 1 { "\u{feff}" } else { "" };
            pair_in(line.strip_prefix(mark).unwrap_or(line), number).transpose()
        })
        .collect()
}

const BLANKS: [char; 2] = [' ', '\t'];

/// The pair in a line; None for an empty line or a comment.
fn pair_in(line: &str, number: usize) -> Result<Option<(String, String)>, String> {
    if line.contains(|c: char| c.is_ascii_control() && c != '\t') {
        return Err(format!(
            "has a control character in line {number}: remove it"
        ));
    }
    let line = line.trim_matches(BLANKS);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (key, text) = line
        .split_once('=')
        .map(|(key, text)| (without_export(key.trim_end_matches(BLANKS)), text))
        .filter(|(key, _)| is_key(key))
        .ok_or_else(|| format!("has no KEY=VALUE in line {number}; a comment begins with #"))?;
    let value = value_in(text).ok_or_else(|| {
        format!(
            "must have the value of {key} in line {number} between single quotes, \
             where '\\'' stands for one"
        )
    })?;
    Ok(Some((key.to_owned(), value)))
}

fn without_export(key: &str) -> &str {
    key.strip_prefix("export")
        .filter(|rest| rest.starts_with(BLANKS))
        .map_or(key, |rest| rest.trim_start_matches(BLANKS))
}

fn is_key(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The value of the text after `KEY=`; None for a text that other readers of such files understand differently:
/// escapes, substitutions, and a `#` directly after the `=`.
fn value_in(text: &str) -> Option<String> {
    if is_comment(text) {
        return Some(String::new());
    }
    let text = text.trim_start_matches(BLANKS);
    let (value, rest) = if let Some(quoted) = text.strip_prefix('\'') {
        single_quoted(quoted)?
    } else if let Some(quoted) = text.strip_prefix('"') {
        plain(quoted.split_once('"')?, &['\\', '$'])?
    } else if text.starts_with('#') {
        return None;
    } else {
        let end = text.find(BLANKS).unwrap_or(text.len());
        plain(text.split_at(end), &['\'', '"', '\\', '$'])?
    };
    is_comment(rest).then_some(value)
}

/// A value and the text after it; None if the value has one of these characters.
fn plain<'a>((value, rest): (&str, &'a str), without: &[char]) -> Option<(String, &'a str)> {
    (!value.contains(without)).then(|| (value.to_owned(), rest))
}

/// The value in single quotes and the text after it; `text` begins after the first quote.
fn single_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let (mut part, mut rest) = text.split_once('\'')?;
    while let Some(more) = rest.strip_prefix("\\''") {
        value.push_str(part);
        value.push('\'');
        (part, rest) = more.split_once('\'')?;
    }
    value.push_str(part);
    Some((value, rest))
}

/// Whether a text has only blanks, or is a comment with a blank before it.
fn is_comment(text: &str) -> bool {
    let trimmed = text.trim_start_matches(BLANKS);
    trimmed.is_empty() || (text.starts_with(BLANKS) && trimmed.starts_with('#'))
}

fn parse<T: FromStr>(key: &str, text: &str, expected: &str) -> Result<T, ConfigError> {
    text.parse()
        .map_err(|_| ConfigError::malformed(key, expected))
}

/// The name of a wrong variable, and what is wrong with it; never its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The name of the variable.
    pub key: String,
    /// What is wrong with it, as a text that follows the name.
    pub problem: String,
}

impl ConfigError {
    /// The error of a variable whose value is not `expected`.
    #[must_use]
    pub fn malformed(key: &str, expected: &str) -> Self {
        Self {
            key: key.to_owned(),
            problem: format!("is malformed: it must be {expected}"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.problem)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_variable_is_named() {
        let error = Vars::default().port("API_GATEWAY_PORT").unwrap_err();

        assert_eq!(
            error.to_string(),
            "API_GATEWAY_PORT is missing: set it in .env or in the environment"
        );
    }

    #[test]
    fn an_empty_variable_counts_as_missing() {
        let vars = Vars::from_pairs([("POSTGRES_PASSWORD", "")]);

        assert_eq!(
            vars.text("POSTGRES_PASSWORD").unwrap_err().key,
            "POSTGRES_PASSWORD"
        );
        assert_eq!(vars.parsed_or("POSTGRES_PASSWORD", "a number", 7), Ok(7));
    }

    #[test]
    fn a_malformed_variable_is_named_without_its_value() {
        let vars = Vars::from_pairs([("POSTGRES_PORT", "hunter2")]);

        let error = vars.port("POSTGRES_PORT").unwrap_err().to_string();

        assert_eq!(
            error,
            "POSTGRES_PORT is malformed: it must be a port number from 0 to 65535"
        );
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let file = Vars::from_pairs([("RUST_LOG", "info"), ("RABBITMQ_QUEUE", "billing_queue")]);
        let environment = Vars::from_pairs([("RUST_LOG", "debug")]);

        let vars = environment.over(file);

        assert_eq!(vars.optional("RUST_LOG"), Some("debug"));
        assert_eq!(vars.optional("RABBITMQ_QUEUE"), Some("billing_queue"));
    }

    #[test]
    fn the_local_file_wins_over_the_shared_one() {
        let folder = std::env::temp_dir().join(format!("crud-master-env-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(
            folder.join(".env"),
            "POSTGRES_PORT=5432\nPOSTGRES_PASSWORD=a",
        )
        .unwrap();
        std::fs::write(folder.join(".env.local"), "POSTGRES_PASSWORD=b").unwrap();

        let vars = Vars::from_folder(&folder).unwrap();

        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(vars.optional("POSTGRES_PASSWORD"), Some("b"));
        assert_eq!(vars.optional("POSTGRES_PORT"), Some("5432"));
    }

    #[test]
    fn a_file_with_another_line_is_named_and_the_line_is_not_shown() {
        let folder = std::env::temp_dir().join(format!("crud-master-line-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(".env");
        std::fs::write(&file, "POSTGRES_PASSWORD=two words").unwrap();

        let error = Vars::from_folder(&folder).err().unwrap().to_string();

        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            error,
            format!(
                "{} must have the value of POSTGRES_PASSWORD in line 1 between single quotes, \
                 where '\\'' stands for one",
                file.display()
            )
        );
    }

    #[test]
    fn a_value_is_what_stands_between_single_quotes_whatever_it_is() {
        for value in [
            "", "\\", "a\\'", "'", "''", "$HOME #1", "\"", "`", "\té", "#", " a ",
        ] {
            let line = format!("KEY='{}' # note", value.replace('\'', "'\\''"));

            let pairs = pairs_in(line.as_bytes()).unwrap();

            assert_eq!(pairs["KEY"], value, "{line}");
        }
    }

    #[test]
    fn what_other_readers_take_otherwise_is_refused() {
        for text in [
            "#a",
            "a b",
            "a'b'",
            "$a",
            "a\\",
            "'a",
            "'a'b",
            "'a'#b",
            "\"a",
            "\"$a\"",
            "\"a\\\"\"",
            "\"a\" b",
        ] {
            assert_eq!(value_in(text), None, "{text}");
        }
    }

    #[test]
    fn a_byte_order_mark_windows_line_ends_and_comments_are_no_part_of_a_value() {
        let file = "\u{feff}export A = 1\r\n# ü\r\nB=a#b # c\r\nC= # none\nD=\"#\"";

        let pairs = pairs_in(file.as_bytes()).unwrap();

        let expected = [("A", "1"), ("B", "a#b"), ("C", ""), ("D", "#")];
        assert_eq!(
            pairs,
            expected
                .map(|(key, value)| (key.into(), value.into()))
                .into()
        );
    }

    #[test]
    fn a_file_in_another_encoding_is_told() {
        for (file, problem) in [
            (&b"\xff\xfeA\0"[..], "is UTF-16: save it as UTF-8"),
            (b"A\0=\0", "is UTF-16: save it as UTF-8"),
            (b"A=1\n# \xfc", "is not UTF-8 in line 2: save it as UTF-8"),
            (
                b"A=1\nB=\x1b",
                "has a control character in line 2: remove it",
            ),
        ] {
            assert_eq!(pairs_in(file).unwrap_err(), problem);
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error_that_names_it() {
        let error = Vars::from_file(Path::new("/nowhere/settings"))
            .err()
            .unwrap()
            .to_string();

        assert!(
            error.starts_with("ENV_FILE names /nowhere/settings, which cannot be read"),
            "{error}"
        );
    }
}
