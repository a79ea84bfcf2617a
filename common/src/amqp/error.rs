//! Why a connection to the broker could not be opened, or has ended, and the reply codes of the causes.

use std::fmt;
use std::io;

use crate::env::ConfigError;
use crate::process::CommandError;

/// Reply codes of AMQP 0-9-1.
pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// Why a connection to the broker could not be opened, or has ended.
#[derive(Debug)]
pub enum AmqpError {
    /// No socket to the broker could be opened.
    Connect(io::Error),
    /// A setting, or a file that it names, cannot be used; or the broker's TLS does not suit it.
    Unusable(String),
    /// No node of several could be connected to; each with its name.
    Nodes(Vec<(String, Self)>),
    /// The broker closed the connection or a channel, or the socket failed.
    Ended(amiquip::Error),
    /// The connection cannot be used any longer; the text has the reason.
    Broken(&'static str),
}

impl AmqpError {
    /// The level at which the error is logged: error for a failure that only an operator can correct, such as a wrong
    /// password or a missing right.
    #[must_use]
    pub fn level(&self) -> log::Level {
        match self {
            Self::Unusable(_)
            | Self::Ended(
                amiquip::Error::InvalidCredentials
                | amiquip::Error::ServerClosedChannel {
                    code: ACCESS_REFUSED,
                    ..
                }
                | amiquip::Error::ServerClosedConnection {
                    code: ACCESS_REFUSED,
                    ..
                },
            ) => log::Level::Error,
            Self::Nodes(nodes) => {
                let levels = nodes.iter().map(|(_, error)| error.level());
                levels.min().unwrap_or(log::Level::Warn)
            }
            _ => log::Level::Warn,
        }
    }
}

impl From<amiquip::Error> for AmqpError {
    fn from(error: amiquip::Error) -> Self {
        Self::Ended(error)
    }
}

impl From<io::Error> for AmqpError {
    fn from(error: io::Error) -> Self {
        Self::Connect(error)
    }
}

impl From<ConfigError> for AmqpError {
    fn from(error: ConfigError) -> Self {
        Self::Unusable(error.to_string())
    }
}

impl From<AmqpError> for CommandError {
    fn from(error: AmqpError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect to RabbitMQ: {error}"),
            Self::Unusable(text) => write!(f, "cannot connect to RabbitMQ: {text}"),
            Self::Nodes(nodes) => {
                let texts = nodes.iter().map(|(node, error)| format!("{node}: {error}"));
                f.write_str(&texts.collect::<Vec<_>>().join("; "))
            }
            Self::Ended(error) => write!(f, "lost the connection to RabbitMQ: {error}"),
            Self::Broken(text) => write!(f, "abandoned the connection to RabbitMQ: {text}"),
        }
    }
}

impl std::error::Error for AmqpError {}
