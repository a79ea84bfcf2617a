//! API keys and the rate limit. Without `API_KEYS_FILE` every client may do everything; without
//! `RATE_LIMIT_PER_SECOND` no client has a limit.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use common::env::{ConfigError, Vars};
use common::http::{Head, Method, Problem, network};
use common::process::StartError;
use common::watched::Watched;
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use crate::rate_limit::{Rate, RateLimit};

/// The longest name of a caller. The name and an `Idempotency-Key` make a message id, which AMQP limits to 255
/// bytes.
const NAME_BYTES_MAX: usize = 128;

/// The variable that names the file of keys.
const FILE: &str = "API_KEYS_FILE";

/// The keys in force, and the rate limit.
pub(crate) struct Access {
    keys: Option<Arc<RwLock<Vec<Key>>>>,
    limit: Option<RateLimit<Caller>>,
}

/// The settings of API keys and the rate limit.
#[derive(Clone, Default)]
pub struct AccessConfig {
    keys: Option<KeysFile>,
    rate: Option<Rate>,
}

/// The file of keys, with the keys that were read from it.
#[derive(Clone)]
struct KeysFile {
    path: PathBuf,
    watched: Watched,
    keys: Vec<Key>,
}

/// One caller's key, of which the gateway has only the hash.
#[derive(Debug, Clone)]
struct Key {
    name: String,
    sha256: [u8; 32],
    role: Role,
}

/// What a key allows; each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Read,
    Write,
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

/// Which requests count towards the rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RateCounted {
    Always,
    /// Only requests without a valid key, where keys are in force.
    Unauthenticated,
}

/// A client whose requests are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Caller {
    Key(String),
    Address(IpAddr),
}

impl AccessConfig {
    /// Reads `API_KEYS_FILE`, `RATE_LIMIT_PER_SECOND` and `RATE_LIMIT_BURST`; all are optional.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        let keys = vars.guarding(FILE)?.map(KeysFile::read).transpose()?;
        Ok(Self {
            keys,
            rate: rate(vars)?,
        })
    }
}

impl KeysFile {
    fn read(path: &str) -> Result<Self, ConfigError> {
        let path = PathBuf::from(path);
        Ok(Self {
            watched: Watched::new(vec![path.clone()]),
            keys: keys_in(&path)?,
            path,
        })
    }

    /// Returns the keys in force, and reads the file again whenever it changes. A file that cannot be used
    /// leaves the keys unchanged.
    fn watch(self) -> io::Result<Arc<RwLock<Vec<Key>>>> {
        let in_force = Arc::new(RwLock::new(self.keys));
        let (changed, path) = (Arc::clone(&in_force), self.path);
        self.watched.watch(move || match keys_in(&path) {
            Ok(keys) => {
                log::info!(keys = keys.len(); "the keys were read again");
                *changed.write().unwrap_or_else(PoisonError::into_inner) = keys;
            }
            Err(error) => {
                let cause = error.to_string();
                log::error!(cause = cause.as_str(); "the keys stay as they were");
            }
        })?;
        Ok(in_force)
    }
}

fn keys_in(file: &Path) -> Result<Vec<Key>, ConfigError> {
    let malformed = |problem: String| ConfigError {
        key: FILE.to_owned(),
        problem: format!("names {}, {problem}", file.display()),
    };
    let text = std::fs::read_to_string(file).map_err(|error| {
        malformed(format!(
            "which cannot be read: {error}; the file must exist, and this user must be able to read it"
        ))
    })?;
    read_keys(&text).map_err(|(line, problem)| {
        malformed(format!(
            "where line {line} {problem}; each line is name:sha256-hex:role, with a name of its own \
             and the hash that \"printf %s KEY | sha256sum\" prints"
        ))
    })
}

fn rate(vars: &Vars) -> Result<Option<Rate>, ConfigError> {
    const EXPECTED: &str = "a whole number from 1 to 4294967295";
    let burst = vars.guarding("RATE_LIMIT_BURST")?;
    if vars.guarding("RATE_LIMIT_PER_SECOND")?.is_none() {
        return match burst {
            None => Ok(None),
            Some(_) => Err(ConfigError {
                key: "RATE_LIMIT_BURST".to_owned(),
                problem: "is set without RATE_LIMIT_PER_SECOND, and has no effect".to_owned(),
            }),
        };
    }
    let per_second: NonZeroU32 = vars.parsed("RATE_LIMIT_PER_SECOND", EXPECTED)?;
    let burst: NonZeroU32 = vars.parsed_or("RATE_LIMIT_BURST", EXPECTED, per_second)?;
    Ok(Some(Rate::new(per_second, burst)))
}

/// Reads lines of `name:sha256-hex:read|write|admin`; ignores empty lines and comments. The error is the number
/// of the line and what is wrong with it, without its text.
fn read_keys(text: &str) -> Result<Vec<Key>, (usize, &'static str)> {
    let mut keys: Vec<Key> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = read_key(line).map_err(|problem| (number, problem))?;
        if keys.iter().any(|other| other.name == key.name) {
            return Err((number, "repeats a name"));
        }
        keys.push(key);
    }
    if keys.is_empty() {
        Err((1, "has no key, nor has any other line"))
    } else {
        Ok(keys)
    }
}

fn read_key(line: &str) -> Result<Key, &'static str> {
    let mut parts = line.split(':');
    let (Some(name), Some(hash), Some(role), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("is not name:sha256-hex:read|write|admin");
    };
    if name.is_empty() {
        return Err("has no name");
    }
    if name.len() > NAME_BYTES_MAX || name.contains(char::is_control) {
        return Err("has a name of more than 128 bytes, or with a control character");
    }
    let sha256 = from_hexadecimal(hash).ok_or("has no SHA-256 of 64 hexadecimal digits")?;
    let role = match role {
        "read" => Role::Read,
        "write" => Role::Write,
        "admin" => Role::Admin,
        _ => return Err("has a role that is not read, write or admin"),
    };
    Ok(Key {
        name: name.to_owned(),
        sha256,
        role,
    })
}

/// The 32 bytes of 64 hexadecimal digits, in letters of any case.
fn from_hexadecimal(digits: &str) -> Option<[u8; 32]> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok();
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

impl Access {
    /// Starts to watch the file of keys.
    pub(crate) fn new(config: &AccessConfig) -> Result<Self, StartError> {
        if config.keys.is_none() {
            log::warn!("API_KEYS_FILE is not set: every client of this gateway may do everything");
        }
        let keys = config.keys.clone().map(KeysFile::watch).transpose();
        let keys =
            keys.map_err(|error| StartError::System("cannot start a thread".to_owned(), error))?;
        let limit = config.rate.map(RateLimit::new);
        Ok(Self { keys, limit })
    }

    /// Checks the key and the rate limit of a request, and notes the name of its caller where keys are in force.
    pub(crate) fn check(&self, request: &Head) -> Result<(), Problem> {
        self.check_for(needed_role(&request.method), RateCounted::Always, request)
    }

    /// Checks a request that only an administrator may send, whatever its method.
    pub(crate) fn check_administrator(&self, request: &Head) -> Result<(), Problem> {
        self.check_for(Role::Admin, RateCounted::Always, request)
    }

    /// Checks a request for the status. The console sends one every second, which the gateway answers from
    /// memory. Such a request counts towards the rate limit only if it has no valid key.
    pub(crate) fn check_status(&self, request: &Head) -> Result<(), Problem> {
        self.check_for(
            needed_role(&request.method),
            RateCounted::Unauthenticated,
            request,
        )
    }

    fn check_for(&self, needed: Role, counted: RateCounted, request: &Head) -> Result<(), Problem> {
        let keys = self.keys.as_ref();
        let keys = keys.map(|keys| keys.read().unwrap_or_else(PoisonError::into_inner));
        let key = keys.as_ref().map(|keys| authenticated(keys, request));
        let is_unauthenticated = matches!(key, Some(Err(_)));
        if let Some(limit) = &self.limit
            && (counted == RateCounted::Always || is_unauthenticated)
        {
            // Requests without a valid key are counted by address.
            let caller = match &key {
                Some(Ok(key)) => Caller::Key(key.name.clone()),
                _ => Caller::Address(network(request.client)),
            };
            limit
                .count(caller, Instant::now())
                .map_err(|wait| Problem::too_many_requests(wait.max(Duration::from_secs(1))))?;
        }
        let Some(key) = key.transpose()? else {
            return Ok(());
        };
        let _ = request.caller.set(key.name.clone());
        if key.role < needed {
            return Err(Problem::new(
                403,
                format!("this key may not do that: it needs the role {needed}"),
            ));
        }
        Ok(())
    }
}

/// The key that the request carries.
fn authenticated<'k>(keys: &'k [Key], request: &Head) -> Result<&'k Key, Problem> {
    let unauthorized =
        || Problem::unauthorized("send a valid API key, as Authorization: Bearer KEY");
    let given = request.bearer().ok_or_else(unauthorized)?;
    let hash = digest(&SHA256, given.as_bytes());
    // Every key is compared in full, so that the time reveals nothing about how near a guess was.
    let mut found = None;
    for key in keys {
        if bool::from(key.sha256.as_slice().ct_eq(hash.as_ref())) {
            found = Some(key);
        }
    }
    found.ok_or_else(unauthorized)
}

fn needed_role(method: &Method) -> Role {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => Role::Read,
        Method::POST | Method::PUT => Role::Write,
        _ => Role::Admin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn refused(text: &str) -> (usize, &'static str) {
        read_keys(text).expect_err("a malformed file")
    }

    #[test]
    fn keys_are_read_line_by_line() {
        let text = format!(
            "# keys\n\nalice:{HASH}:admin\n  bob:{}:read\n",
            HASH.to_uppercase()
        );

        let keys = read_keys(&text).expect("a well-formed file");

        let read: Vec<_> = keys
            .iter()
            .map(|key| (key.name.as_str(), key.role))
            .collect();
        assert_eq!(read, [("alice", Role::Admin), ("bob", Role::Read)]);
        assert_eq!(keys[0].sha256, keys[1].sha256);
    }

    #[test]
    fn a_malformed_line_is_named_by_its_number() {
        let hash = "has no SHA-256 of 64 hexadecimal digits";
        assert_eq!(refused("alice:x:admin"), (1, hash));
        for other in ["+", "g", "é"] {
            let first = &HASH[other.len()..];
            assert_eq!(refused(&format!("a:{other}{first}:read")), (1, hash));
        }
        assert_eq!(refused(&format!("a:{HASH}00:read")), (1, hash));
        assert_eq!(
            refused(&format!("\nbob:{HASH}:root")),
            (2, "has a role that is not read, write or admin")
        );
        assert_eq!(
            refused(&format!("bob:{HASH}")),
            (1, "is not name:sha256-hex:read|write|admin")
        );
        assert_eq!(refused(&format!(":{HASH}:read")), (1, "has no name"));
        assert_eq!(
            refused(&format!("a:{HASH}:read\na:{HASH}:admin")),
            (2, "repeats a name")
        );
        let name = "has a name of more than 128 bytes, or with a control character";
        assert_eq!(
            refused(&format!("{}:{HASH}:read", "n".repeat(129))),
            (1, name)
        );
        assert_eq!(refused(&format!("a\0b:{HASH}:read")), (1, name));
        assert_eq!(
            refused("# nobody\n"),
            (1, "has no key, nor has any other line")
        );
    }
}
