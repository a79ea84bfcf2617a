//! The program that records orders from the queue.

use std::process::ExitCode;

use billing::{ConsumerConfig, start_consumer};

fn main() -> ExitCode {
    common::process::run("billing-consumer", |vars, shutdown| {
        start_consumer(&ConsumerConfig::from_vars(vars)?, shutdown)
    })
}
