//! Why the broker cannot be reached or does not go on.

use std::fmt;
use std::io;

/// Reply codes of AMQP 0-9-1.
pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// Why there is no link, or no more.
#[derive(Debug)]
pub enum LinkError {
    /// The broker's socket cannot be had.
    Connect(io::Error),
    /// The broker, or the link to it, ended the conversation.
    Amqp(amiquip::Error),
    /// The broker did something that leaves no way on; the text says what.
    Broken(&'static str),
}

impl LinkError {
    /// Error where it does not pass by itself: only an operator can mend a password or a right.
    #[must_use]
    pub fn level(&self) -> log::Level {
        match self {
            Self::Amqp(
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
            _ => log::Level::Warn,
        }
    }
}

impl From<amiquip::Error> for LinkError {
    fn from(error: amiquip::Error) -> Self {
        Self::Amqp(error)
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        Self::Connect(error)
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect to RabbitMQ: {error}"),
            Self::Amqp(error) => write!(f, "lost RabbitMQ: {error}"),
            Self::Broken(text) => write!(f, "gave RabbitMQ up: {text}"),
        }
    }
}

impl std::error::Error for LinkError {}
