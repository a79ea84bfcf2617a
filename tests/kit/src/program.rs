//! A program that runs as a process of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::eventually_some;

/// A running program; dropping it kills it.
pub struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
    /// The file of its log, if it has one.
    log_file: Option<PathBuf>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts the program at `path` with only these variables, in a directory without `.env`.
    ///
    /// # Panics
    /// If there is no such program.
    pub fn start<K: AsRef<str>, V: AsRef<str>>(
        path: &str,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self::spawn(Command::new(path), None, vars)
    }

    /// Starts the program with its log in a file, which it writes itself, as under a supervisor.
    ///
    /// # Panics
    /// If there is no such program, or the file cannot be made.
    pub fn start_with_log<K: AsRef<str>, V: AsRef<str>>(
        path: &str,
        log: &Path,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self::spawn(Command::new(path), Some(log), vars)
    }

    /// Starts the program with a limit of descriptors.
    ///
    /// # Panics
    /// If there is no such program.
    pub fn start_with_descriptors<K: AsRef<str>, V: AsRef<str>>(
        path: &str,
        descriptors: usize,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let mut command = Command::new("/bin/sh");
        // The shell executes the program in its own process.
        command.args(["-c", "ulimit -n \"$1\" && exec \"$0\"", path]);
        command.arg(descriptors.to_string());
        Self::spawn(command, None, vars)
    }

    fn spawn<K: AsRef<str>, V: AsRef<str>>(
        mut command: Command,
        log_file: Option<&Path>,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let vars = vars
            .into_iter()
            .map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().to_owned()));
        let mut child = command
            .env_clear()
            .envs(vars)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file.map_or_else(Stdio::piped, |file| {
                fs::File::create(file).expect("a place for the log").into()
            }))
            .spawn()
            .expect("a program");
        let log = Arc::new(Mutex::new(String::new()));
        let reader = child.stderr.take().map(|stderr| {
            let written = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = written.lock().expect("the reader does not panic");
                    log.push_str(&line);
                    log.push('\n');
                }
            })
        });
        Self {
            child,
            log,
            log_file: log_file.map(Path::to_owned),
            reader,
        }
    }

    /// The log so far.
    ///
    /// # Panics
    /// If the file of its log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        if let Some(file) = &self.log_file {
            return fs::read_to_string(file).expect("the file of the log");
        }
        self.log.lock().expect("the reader does not panic").clone()
    }

    /// Waits until the program logs its address.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        eventually_some("the program listens", || {
            let log = self.log();
            let logfmt = ("msg=listening address=", ' ');
            let json = (r#""msg":"listening","address":""#, '"');
            let (rest, end) = [logfmt, json]
                .iter()
                .find_map(|(begin, end)| Some((log.split_once(begin)?.1, *end)))?;
            rest.split(end).next()?.parse().ok()
        })
    }

    /// The statistics of the process.
    ///
    /// # Panics
    /// If it has ended.
    #[must_use]
    pub fn stats(&self) -> ProcessStats {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(process.join("status")).expect("the program runs");
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let word = line.and_then(|line| line.split_whitespace().next());
            let number = word.and_then(|word| word.parse().ok());
            number.expect("the program runs")
        };
        ProcessStats {
            threads: number("Threads:"),
            resident_kib: number("VmRSS:"),
            most_resident_kib: number("VmHWM:"),
            descriptors: fs::read_dir(process.join("fd"))
                .expect("the program runs")
                .count(),
        }
    }

    /// Sets the limit of descriptors; returns the former limit.
    ///
    /// # Panics
    /// If it has ended.
    pub fn limit_descriptors(&self, most: u64) -> u64 {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // The program inherited the hard limit of the tests.
        let limit = Rlimit {
            current: Some(most),
            ..getrlimit(Resource::Nofile)
        };
        let before = prlimit(pid, Resource::Nofile, limit);
        before
            .expect("the program runs")
            .current
            .unwrap_or(u64::MAX)
    }

    /// Sends a signal by its name: `INT`, `TERM`.
    ///
    /// # Panics
    /// If the program has ended already.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill");
        assert!(sent.success(), "the program runs");
    }

    /// Waits until the program ends; returns its exit status and its output.
    ///
    /// # Panics
    /// If it does not end.
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

/// Statistics of a process, from `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStats {
    /// The number of threads.
    pub threads: usize,
    /// The number of open files and sockets.
    pub descriptors: usize,
    /// The resident memory.
    pub resident_kib: usize,
    /// The greatest resident memory so far.
    pub most_resident_kib: usize,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Variables of a program, by name.
pub type Pairs = Vec<(String, String)>;

/// Variables in which some have other values, or are added.
#[must_use]
pub fn with(mut vars: Pairs, changes: &[(&str, &str)]) -> Pairs {
    for (key, value) in changes {
        vars.retain(|(present, _)| present != key);
        vars.push(((*key).to_owned(), (*value).to_owned()));
    }
    vars
}
