//! A program started as a process of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::eventually_some;

/// A running program; dropping it kills it.
pub struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts the program at `path` with these variables and no others, in a directory where no
    /// `.env` is.
    ///
    /// # Panics
    /// When there is no such program.
    pub fn start<K: AsRef<str>, V: AsRef<str>>(
        path: &str,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let vars = vars
            .into_iter()
            .map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().to_owned()));
        let mut child = Command::new(path)
            .env_clear()
            .envs(vars)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect(path);
        let stderr = child.stderr.take().expect("it was asked for");
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = written.lock().expect("the reader does not panic");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self {
            child,
            log,
            reader: Some(reader),
        }
    }

    /// What it has written so far.
    ///
    /// # Panics
    /// Never: the reader does not.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().expect("the reader does not panic").clone()
    }

    /// Waits until it says where it listens.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        eventually_some("the program listens", || {
            let log = self.log();
            let (_, rest) = log.split_once("msg=listening address=")?;
            rest.split_whitespace().next()?.parse().ok()
        })
    }

    /// Sends a signal by its name: `INT`, `TERM`.
    ///
    /// # Panics
    /// When the program has ended already.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill");
        assert!(sent.success(), "the program runs");
    }

    /// Waits until it ends; its exit status, and all that it wrote.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = eventually_some("the program ends", || {
            self.child.try_wait().expect("a child can be waited for")
        });
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        (status, self.log())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
