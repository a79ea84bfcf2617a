//! The program that reads recorded orders out.

use std::process::ExitCode;

use billing::{ApiConfig, start_api};

fn main() -> ExitCode {
    common::process::run("billing-api", |vars, shutdown| {
        start_api(&ApiConfig::from_vars(vars)?, shutdown)
    })
}
