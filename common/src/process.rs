//! What every `main` does: settings, log, signals, start, wait, exit. A wrong setting is named
//! on standard error and ends the program with 2 before it listens.

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

/// How long the work that was accepted may take after the shutdown was requested.
const DRAIN_LIMIT: Duration = Duration::from_secs(9);

/// Why a program did not start.
#[derive(Debug)]
pub enum StartError {
    /// A variable is missing or malformed.
    Config(ConfigError),
    /// The system refused something; the text says what was tried.
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

/// A started program, to be waited for.
pub trait Running {
    /// Waits for the shutdown and for the end of what was accepted before it.
    fn join(self);
}

/// Runs a program to its end; `about` is what its help says of it. 0 after a shutdown that left nothing behind, 2 for a wrong
/// setting or argument, 1 for anything else.
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
    logging::tell_of_panics();
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
        // SIGHUP means that a file has changed, which whoever reads it sees for themselves.
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
    let ended = end.recv_timeout(DRAIN_LIMIT);
    let exit_code = if ended.is_err() {
        log::error!(limit_seconds = DRAIN_LIMIT.as_secs(); "some work did not end in time");
        ExitCode::FAILURE
    } else {
        log::info!("ended");
        ExitCode::SUCCESS
    };
    logging::end();
    exit_code
}

/// Why a command was not done.
#[derive(Debug)]
pub enum CommandError {
    /// It was called in another way than it can be; the text says how it is to be called.
    Usage(String),
    /// A variable is missing or malformed.
    Config(ConfigError),
    /// Anything else, in words.
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

/// What a command does: from its settings and its arguments, until it is done or the shutdown is
/// requested, and with its output last.
pub type Command = fn(&Vars, &[String], &Shutdown, &mut dyn Write) -> Result<(), CommandError>;

/// Runs a program that does what its arguments say and ends. 0 when it is done, 2 for a wrong
/// setting or argument, 1 for anything else.
#[expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command line answers there"
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

/// As many descriptors as the system allows: a connection needs one, and the usual 1024 are
/// meant for programs that use `select`.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!(cause = error.to_string().as_str(); "cannot raise the limit of open files");
    }
}

/// What every program's `--help` says.
const SETTINGS: &str = "\
Takes its settings from the environment and from the files .env.local and .env in the
working directory, or the one that ENV_FILE names; .env has a line on each. One that is missing
or malformed is named. Ends in good order on SIGINT and SIGTERM.";

/// `--version` and `--help`; a program takes no other argument.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line answers there"
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
