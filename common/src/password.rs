//! A password, from a variable or from a file. The file is read at each new connection, so that a password
//! that was changed on both sides needs no restart.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::env::{ConfigError, Vars};

/// A file with more bytes is no password and no key.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The permissions of those who are neither the owner of a file nor of its group.
const OTHERS: u32 = 0o007;

/// A password, or the file that has it.
#[derive(Clone)]
pub struct Password(Source);

#[derive(Clone)]
enum Source {
    Text(String),
    /// The variable that names the file, and the file.
    File(String, PathBuf),
}

impl Password {
    /// Reads the variable `key`, or the name of a file from `key` with `_FILE` after it.
    pub fn from_vars(vars: &Vars, key: &str) -> Result<Self, ConfigError> {
        let file_key = format!("{key}_FILE");
        let source = match (vars.optional(&file_key), vars.optional(key)) {
            (None, _) => Source::Text(vars.text(key)?),
            (Some(file), None) => Source::File(file_key, PathBuf::from(file)),
            (Some(_), Some(_)) => {
                return Err(ConfigError {
                    key: file_key,
                    problem: format!("and {key} are both set: leave one of them empty"),
                });
            }
        };
        Ok(Self(source))
    }

    /// Returns the password; one in a file is read now.
    pub fn read(&self) -> Result<String, ConfigError> {
        match &self.0 {
            Source::Text(text) => Ok(text.clone()),
            Source::File(key, file) => {
                let text = read_secret(key, file)?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                let text = text.strip_suffix('\r').unwrap_or(text);
                if text.is_empty() {
                    return Err(unusable(key, file, "is empty"));
                }
                Ok(text.to_owned())
            }
        }
    }
}

impl<T: Into<String>> From<T> for Password {
    fn from(text: T) -> Self {
        Self(Source::Text(text.into()))
    }
}

/// Reads a file that only its owner and its group may read; `key` is the variable that names it.
pub(crate) fn read_secret(key: &str, file: &Path) -> Result<String, ConfigError> {
    require_file(key, file, FILE_BYTES_MAX)?;
    let cannot = |error| unusable(key, file, &format!("cannot be read: {error}"));
    let opened = File::open(file).map_err(cannot)?;
    let metadata = opened.metadata().map_err(cannot)?;
    if metadata.permissions().mode() & OTHERS != 0 {
        return Err(unusable(
            key,
            file,
            "is open to all users: chmod o= closes it",
        ));
    }
    let mut text = String::new();
    let mut limited = opened.take(FILE_BYTES_MAX);
    limited.read_to_string(&mut text).map_err(cannot)?;
    Ok(text)
}

/// Checks that a file can be read to its end: a pipe or a device may have none.
pub(crate) fn require_file(key: &str, file: &Path, bytes_max: u64) -> Result<(), ConfigError> {
    let metadata = fs::metadata(file)
        .map_err(|error| unusable(key, file, &format!("cannot be read: {error}")))?;
    if !metadata.is_file() {
        return Err(unusable(key, file, "is no file"));
    }
    if metadata.len() > bytes_max {
        let problem = format!("has more than {bytes_max} bytes");
        return Err(unusable(key, file, &problem));
    }
    Ok(())
}

fn unusable(key: &str, file: &Path, problem: &str) -> ConfigError {
    ConfigError {
        key: key.to_owned(),
        problem: format!("names {}, which {problem}", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const KEY: &str = "POSTGRES_PASSWORD";
    const FILE_KEY: &str = "POSTGRES_PASSWORD_FILE";

    /// A file of this content and mode, for one test.
    struct SecretFile(PathBuf);

    impl SecretFile {
        fn create(content: &[u8], mode: u32) -> Self {
            let name = format!("crud-master-{}", uuid::Uuid::new_v4().simple());
            let file = Self(std::env::temp_dir().join(name));
            fs::write(&file.0, content).expect("a file");
            fs::set_permissions(&file.0, fs::Permissions::from_mode(mode)).expect("a mode");
            file
        }

        fn password(&self) -> Password {
            let path = self.0.to_str().expect("UTF-8");
            Password::from_vars(&Vars::from_pairs([(FILE_KEY, path)]), KEY).expect("a file")
        }
    }

    impl Drop for SecretFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_password_is_read_from_its_file_each_time_without_the_end_of_its_line() {
        for (content, expected) in [
            (&b"hunter2"[..], "hunter2"),
            (b"hunter2\n", "hunter2"),
            (b"hunter2\r\n", "hunter2"),
            (b" two\nlines \n\n", " two\nlines \n"),
        ] {
            let file = SecretFile::create(content, 0o640);

            let password = file.password().read();

            assert_eq!(password.as_deref(), Ok(expected));
        }
        let file = SecretFile::create(b"before", 0o600);
        let password = file.password();
        assert_eq!(password.read().as_deref(), Ok("before"));

        fs::write(&file.0, "after").expect("a file");

        assert_eq!(password.read().as_deref(), Ok("after"));
    }

    #[test]
    fn a_file_without_a_password_for_us_alone_is_named_and_never_shown() {
        for (content, mode, problem) in [
            (
                &b"hunter2"[..],
                0o644,
                "is open to all users: chmod o= closes it",
            ),
            (
                b"hunter2",
                0o602,
                "is open to all users: chmod o= closes it",
            ),
            (b"", 0o600, "is empty"),
            (b"\n", 0o600, "is empty"),
            (
                b"hunter\xff",
                0o600,
                "cannot be read: stream did not contain valid UTF-8",
            ),
        ] {
            let file = SecretFile::create(content, mode);

            let error = file.password().read().expect_err(problem);

            let expected = format!("{FILE_KEY} names {}, which {problem}", file.0.display());
            assert_eq!(error.to_string(), expected);
        }
        for file in ["/dev/zero", "/"] {
            let vars = Vars::from_pairs([(FILE_KEY, file)]);
            let password = Password::from_vars(&vars, KEY).expect("a name");
            let error = password.read().expect_err("no file").to_string();
            assert_eq!(error, format!("{FILE_KEY} names {file}, which is no file"));
        }
        let large = SecretFile::create(&vec![b'a'; 64 * 1024 + 1], 0o600);
        let error = large.password().read().expect_err("too large").to_string();
        assert!(
            error.ends_with("which has more than 65536 bytes"),
            "{error}"
        );
        let gone = SecretFile::create(b"", 0o600);
        let password = gone.password();
        drop(gone);
        let error = password.read().expect_err("no file").to_string();
        assert!(
            error.ends_with("No such file or directory (os error 2)"),
            "{error}"
        );
    }

    #[test]
    fn a_password_and_a_file_with_one_are_refused_together() {
        let both = Vars::from_pairs([(KEY, "hunter2"), (FILE_KEY, "/nowhere")]);

        let error = Password::from_vars(&both, KEY).err().expect("an error");

        assert_eq!(
            error.to_string(),
            "POSTGRES_PASSWORD_FILE and POSTGRES_PASSWORD are both set: leave one of them empty"
        );
        let of = |pairs: &[(&str, &str)]| {
            let found = Password::from_vars(&Vars::from_pairs(pairs.iter().copied()), KEY);
            found.err().map(|error| error.key)
        };
        assert_eq!(of(&[(KEY, ""), (FILE_KEY, "/nowhere")]), None);
        assert_eq!(of(&[(KEY, "hunter2"), (FILE_KEY, "")]), None);
        assert_eq!(of(&[]).as_deref(), Some(KEY));
    }
}
