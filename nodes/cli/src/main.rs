//! The `callboard` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    callboard_cli::main()
}
