//! The gateway: the one door.

use std::process::ExitCode;

use gateway::{Config, start};

fn main() -> ExitCode {
    common::process::run("api-gateway", |vars, shutdown| {
        start(&Config::from_vars(vars)?, shutdown)
    })
}
