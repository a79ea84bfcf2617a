//! The operator's program for the dead queue.

use std::process::ExitCode;

use billing::dead_queue;

fn main() -> ExitCode {
    common::process::run_command(dead_queue::PROGRAM, dead_queue::USAGE, dead_queue::run)
}
