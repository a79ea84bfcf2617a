//! The operator's program for dead letters.

use std::process::ExitCode;

use billing::dead_letter_tool;

fn main() -> ExitCode {
    common::process::run_command(
        dead_letter_tool::PROGRAM,
        dead_letter_tool::USAGE,
        dead_letter_tool::run,
    )
}
