//! The gateway: the one door.

use std::process::ExitCode;

use gateway::{Config, start};

fn main() -> ExitCode {
    common::process::run(
        "api-gateway",
        "The one door: forwards movies to the inventory and puts orders on the queue.",
        |vars, shutdown| start(&Config::from_vars(vars)?, shutdown),
    )
}
