//! Command lines that cannot be understood, and those that ask for help. Clap ends both in ways of its own; the contract
//! says exit code 1, and an object with `--json`. What looks like a value that might be a secret is not printed back.

use std::ffi::OsString;
use std::io::Write as _;

use clap::error::ErrorKind;

use super::report::{Error, Exit};
use super::terminal::Terminal;

const MASK: &str = "[…]";

/// Prints clap's answer to `args`, and says how that ends the program.
pub fn refuse(error: &clap::Error, args: &[OsString]) -> Exit {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked {
        // Whoever closed the pipe has read enough.
        let _ = error.print();
        return Exit::Done;
    }
    let text = masked(&error.render().to_string(), args);
    let json = args.iter().any(|arg| arg == "--json");
    if json {
        Terminal { json, quiet: false }.error(&as_error(&text));
    } else {
        let _ = write!(std::io::stderr(), "{text}");
    }
    Exit::Wrong
}

/// Hides values of `K=V` arguments, such as a secret given to a flag with a slip in its name, and of whole URLs.
fn masked(text: &str, args: &[OsString]) -> String {
    let mut text = text.to_owned();
    for arg in args.iter().filter_map(|arg| arg.to_str()) {
        let pair =
            if arg.starts_with("--") { arg.split_once('=').map_or("", |(_, value)| value) } else { arg };
        let value = pair.split_once('=').map_or("", |(_, value)| value);
        if !value.is_empty() {
            text = text.replace(&format!("={value}"), &format!("={MASK}"));
        }
    }
    text
}

/// The first paragraph without its label; tips and usage stay out.
fn as_error(text: &str) -> Error {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let message = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    Error::bad_request(message).hint("see `fieldmirror --help`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_printed_back() {
        let check = |args: &[&str], text: &str, expected: &str| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            assert_eq!(masked(text, &args), expected, "{args:?}");
        };
        check(
            &["a", "api_key=hunter2"],
            "unexpected 'api_key=hunter2' found",
            "unexpected 'api_key=[…]' found",
        );
        check(&["--secret=k=hunter2"], "'--secret=k=hunter2'", "'--secret=k=[…]'");
        check(&["--since=monday"], "invalid 'monday'", "invalid 'monday'");
        check(&["http://h/?code=C&state=S"], "'http://h/?code=C&state=S'", "'http://h/?code=[…]'");
        check(&["k="], "'k='", "'k='");
    }

    #[test]
    fn the_first_paragraph_is_the_message() {
        let error = as_error("error: a thing\n  is missing\n\nUsage: x\n");
        assert_eq!(error.message, "a thing is missing");
    }
}
