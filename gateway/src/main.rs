//! The API gateway.

use std::process::ExitCode;

use gateway::{Config, start};

fn main() -> ExitCode {
    common::process::run(
        "api-gateway",
        "Forwards requests for movies to the inventory and publishes orders to the queue.",
        |vars, shutdown| start(&Config::from_vars(vars)?, shutdown),
    )
}
