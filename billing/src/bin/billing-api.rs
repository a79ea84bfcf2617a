//! The program that answers requests for recorded orders and dead letters.

use std::process::ExitCode;

use billing::{ApiConfig, start_api};

fn main() -> ExitCode {
    common::process::run(
        "billing-api",
        "Reads recorded orders out over HTTP.",
        |vars, shutdown| start_api(&ApiConfig::from_vars(vars)?, shutdown),
    )
}
