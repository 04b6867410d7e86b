//! The `callboard` program.

use std::process::ExitCode;

/// Gives back what is freed, also between what lives on: a node must not grow with the kernels that came
/// and went on it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    callboard_cli::main()
}
