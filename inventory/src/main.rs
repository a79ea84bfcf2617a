//! The inventory: movies over HTTP.

use std::process::ExitCode;

use inventory::{Config, start};

fn main() -> ExitCode {
    common::process::run(
        "inventory-api",
        "Movies over HTTP, in PostgreSQL.",
        |vars, shutdown| start(&Config::from_vars(vars)?, shutdown),
    )
}
