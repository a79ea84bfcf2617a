//! The steps of every `main`: settings, log, signals, start, wait, exit. A program with a wrong setting names it
//! on standard error and exits with 2 before it listens.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::env::{ConfigError, Vars};
use crate::log as logging;
use crate::shutdown::{self, Shutdown};

/// How long accepted requests and messages may take after the request for the shutdown.
const EXIT_LIMIT: Duration = Duration::from_secs(9);

/// Why a program did not start.
#[derive(Debug)]
pub enum StartError {
    /// A variable is missing or malformed.
    Config(ConfigError),
    /// The system refused an operation, which the text names.
    System(String, io::Error),
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::System(tried, error) => write!(f, "{tried}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Starts a thread of a program.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))
}

/// A program that has started.
pub trait Running {
    /// Waits for the shutdown, and until everything that was accepted before it is done.
    fn join(self);
}

/// Runs a program to its end; `about` describes it in its help. The exit code is 0 after a shutdown that left
/// nothing undone, 2 for a wrong setting or argument, and 1 for any other failure.
pub fn run<R: Running + Send + 'static>(
    program: &'static str,
    about: &str,
    start: impl FnOnce(&Vars, &Shutdown) -> Result<R, StartError>,
) -> ExitCode {
    if let Some(exit_code) = answer_arguments(program, about) {
        return exit_code;
    }
    let vars = match Vars::load() {
        Ok(vars) => vars,
        Err(error) => return refuse(program, &error.into()),
    };
    if let Err(error) = logging::init(program, &vars) {
        return refuse(program, &error.into());
    }
    logging::log_panics();
    raise_descriptor_limit();
    let (trigger, shutdown) = shutdown::channel();
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
    let started = signals
        .map_err(|error| StartError::System("cannot listen for signals".to_owned(), error))
        .and_then(|signals| Ok((signals, start(&vars, &shutdown)?)));
    let (mut signals, running) = match started {
        Ok(started) => started,
        Err(error) => return refuse(program, &error),
    };

    thread::spawn(move || {
        // SIGHUP means that a file has changed, which the threads that watch the files notice.
        if let Some(signal) = signals.forever().find(|signal| *signal != SIGHUP) {
            let name = if signal == SIGINT {
                "SIGINT"
            } else {
                "SIGTERM"
            };
            log::info!(signal = name; "shutting down");
            trigger.request();
        }
    });
    let (ended, end) = crossbeam_channel::bounded(1);
    thread::spawn(move || {
        running.join();
        let _ = ended.send(());
    });
    shutdown.wait();
    let ended = end.recv_timeout(EXIT_LIMIT);
    let exit_code = if ended.is_err() {
        log::error!(limit_seconds = EXIT_LIMIT.as_secs(); "requests or messages were not done in time");
        ExitCode::FAILURE
    } else {
        log::info!("ended");
        ExitCode::SUCCESS
    };
    logging::end();
    exit_code
}

/// Why a command failed.
#[derive(Debug)]
pub enum CommandError {
    /// The arguments are wrong; the text says how to call the command.
    Usage(String),
    /// A variable is missing or malformed.
    Config(ConfigError),
    /// Any other failure, as a text.
    Failed(String),
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Failed(text) => f.write_str(text),
            Self::Config(error) => error.fmt(f),
        }
    }
}

/// Carries out a command with these settings and arguments, until it is done or the shutdown is requested. The
/// last parameter takes its output.
pub type Command = fn(&Vars, &[String], &Shutdown, &mut dyn Write) -> Result<(), CommandError>;

/// Runs a program that carries out the command in its arguments and ends. The exit code is 0 after a success, 2
/// for a wrong setting or argument, and 1 for any other failure.
#[expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program answers its user on these streams"
)]
pub fn run_command(program: &'static str, usage: &str, command: Command) -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match arguments.first().map(String::as_str) {
        Some("--version" | "-V") => println!("{program} {}", env!("CARGO_PKG_VERSION")),
        Some("--help" | "-h") => {
            println!(
                "{program} {}\n\n{SETTINGS}\n\n{usage}",
                env!("CARGO_PKG_VERSION")
            );
        }
        _ => {
            let done = Vars::load().map_err(Into::into).and_then(|vars| {
                logging::init(program, &vars)?;
                let (trigger, shutdown) = shutdown::channel();
                let mut signals = Signals::new([SIGINT, SIGTERM])?;
                thread::spawn(move || {
                    let _ = signals.forever().next();
                    trigger.request();
                });
                command(&vars, &arguments, &shutdown, &mut io::stdout().lock())
            });
            logging::end();
            if let Err(error) = done {
                eprintln!("{program}: {error}");
                return match error {
                    CommandError::Failed(_) => ExitCode::FAILURE,
                    CommandError::Usage(_) | CommandError::Config(_) => ExitCode::from(2),
                };
            }
        }
    }
    ExitCode::SUCCESS
}

/// Raises the limit of descriptors as far as the system allows: each connection needs one, and the usual limit
/// of 1024 is meant for programs that use `select`.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!(cause = error.to_string().as_str(); "cannot raise the limit of open files");
    }
}

/// The part of `--help` that all programs share.
const SETTINGS: &str = "\
The program reads its settings from the environment and from the files .env.local and .env in
the working directory, or from the file that ENV_FILE names; .env describes each setting. The
program names a setting that is missing or malformed. It shuts down on SIGINT and SIGTERM.";

/// Answers `--version` and `--help`; a program takes no other argument.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program answers its user on these streams"
)]
fn answer_arguments(program: &str, about: &str) -> Option<ExitCode> {
    let argument = std::env::args_os().nth(1)?;
    let usage = format!("Usage: {program} [--help | --version]");
    match argument.to_str() {
        Some("--version" | "-V") => println!("{program} {}", env!("CARGO_PKG_VERSION")),
        Some("--help" | "-h") => println!(
            "{program} {}\n{about}\n\n{SETTINGS}\n\n{usage}",
            env!("CARGO_PKG_VERSION")
        ),
        _ => {
            eprintln!(
                "{program}: takes no argument but --help and --version; settings come from .env\n\n\
                 {usage}"
            );
            return Some(ExitCode::from(2));
        }
    }
    Some(ExitCode::SUCCESS)
}

#[expect(
    clippy::print_stderr,
    reason = "a log filter must not hide why a program did not start"
)]
fn refuse(program: &str, error: &StartError) -> ExitCode {
    eprintln!("{program}: {error}");
    match error {
        StartError::Config(_) => ExitCode::from(2),
        StartError::System(..) => ExitCode::FAILURE,
    }
}
