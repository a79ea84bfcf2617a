//! What tests share: real servers, a client, and waiting for conditions. Each test has a schema and queues of its own
//! on the servers that `TEST_ENV_FILE` names, so tests run at the same time and in any order.

pub mod attack;
mod authority;
mod client;
mod database;
mod eventually;
mod folder;
mod pooler;
mod private_postgres;
mod program;
mod queue;
mod raw;
mod relay;
mod service;
mod upstream;

pub use authority::{Authority, Signed};
pub use client::{Client, Reply, exchange};
pub use database::TestDatabase;
pub use eventually::{eventually, eventually_some};
pub use folder::Folder;
pub use pooler::Pooler;
pub use private_postgres::PrivatePostgres;
pub use program::{Pairs, ProcessStats, Program, with};
pub use queue::{QueuedMessage, TestQueue};
pub use raw::RawReply;
pub use relay::Relay;
pub use service::Service;
pub use upstream::{RecordedRequest, ScriptedReply, ScriptedUpstream};

use std::path::Path;
use std::sync::LazyLock;

use common::env::Vars;

/// The addresses of the test servers.
static SETTINGS: LazyLock<Vars> = LazyLock::new(|| {
    let path = std::env::var_os("TEST_ENV_FILE").expect(
        "TEST_ENV_FILE names no servers: run `setup/test.sh run cargo test …`, which starts them",
    );
    Vars::from_file(Path::new(&path)).expect("TEST_ENV_FILE names a file of KEY=VALUE lines")
});

/// A name that no other test has.
fn unique_name(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}
