//! The program that records orders from the queue.

use std::process::ExitCode;

use billing::{ConsumerConfig, start_consumer};

fn main() -> ExitCode {
    common::process::run(
        "billing-consumer",
        "Records orders from the queue in PostgreSQL.",
        |vars, shutdown| start_consumer(&ConsumerConfig::from_vars(vars)?, shutdown),
    )
}
