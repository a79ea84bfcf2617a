//! The key by which an operator sees more than whether a program lives and is ready.

use std::fmt;

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use crate::env::{ConfigError, Vars};
use crate::http::message::head::Head;

/// What whoever may see the metrics and the dependencies sends as `Authorization: Bearer KEY`.
#[derive(Clone)]
pub struct OperationsKey(String);

impl OperationsKey {
    const VARIABLE: &str = "OPERATIONS_KEY";

    /// From `OPERATIONS_KEY`; without it all may see them.
    pub fn from_vars(vars: &Vars) -> Result<Option<Self>, ConfigError> {
        match vars.guarding(Self::VARIABLE)? {
            Some(key) if !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                let expected = "visible ASCII characters without blanks";
                Err(ConfigError::malformed(Self::VARIABLE, expected))
            }
            key => Ok(key.map(|key| Self(key.to_owned()))),
        }
    }

    /// The value of `Authorization` by which another program sees them.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The time that this takes tells nothing about how near a guess was, nor of the key's length.
    pub(super) fn is_sent_with(&self, request: &Head) -> bool {
        let hash = |text: &str| digest(&SHA256, text.as_bytes());
        request
            .bearer()
            .is_some_and(|given| hash(given).as_ref().ct_eq(hash(&self.0).as_ref()).into())
    }
}

/// The key is for no log.
impl fmt::Debug for OperationsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperationsKey")
    }
}
