//! The program: the command line, and its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    fieldmirror::cli::run(std::env::args_os()).into()
}
