//! What a command writes: results to stdout, remarks and progress to stderr. Colour and progress only where a person
//! looks; nothing else in `cli` writes anywhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use console::{Style, Term, measure_text_width};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::sync::mpsc;

use super::report::Error;
use crate::daemon::service::Order;

/// The width of what is not a terminal, such as a pipe or a file.
const WIDTH_ELSEWHERE: usize = 100;
/// No table is squeezed below this.
const WIDTH_MIN: usize = 40;
const SPINNER_PERIOD: Duration = Duration::from_millis(120);

/// Where and how a command writes.
#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    pub json: bool,
    pub quiet: bool,
}

impl Terminal {
    /// Prints `object` with `--json`, and otherwise what `text` makes.
    pub fn result(self, object: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<(), Error> {
        if self.json { print_object(&object()) } else { line(text().trim_end()) }
    }

    /// A remark for whoever sits there. Lost with `--quiet`, and when stderr is closed.
    pub fn note(self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// An error: on stdout with `--json`, else on stderr.
    pub fn error(self, error: &Error) {
        // With nowhere left to write, the exit code is all there is to say it.
        if self.json {
            let _ = error.json_line().map(|text| line(&text));
        } else if let Some(text) = error.text(console::colors_enabled_stderr()) {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Something that turns while we wait; invisible unless a person looks at stderr.
    pub fn spinner(self, message: impl Into<String>) -> ProgressBar {
        let bar = self.bar(ProgressBar::new_spinner());
        bar.set_message(message.into());
        bar.enable_steady_tick(SPINNER_PERIOD);
        bar
    }

    /// A bar from 0 to `length`; invisible unless a person looks at stderr.
    pub fn progress(self, length: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}  {elapsed}");
        let bar = self.bar(ProgressBar::new(length));
        bar.set_style(style.expect("the template is a constant that a test draws"));
        bar
    }

    fn bar(self, bar: ProgressBar) -> ProgressBar {
        let looked_at = !self.quiet && std::io::stderr().is_terminal();
        let target = if looked_at { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        bar.set_draw_target(target);
        bar
    }
}

/// Prints a line, or several, of text on stdout.
pub fn line(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::io("writing to standard output", &error))
}

/// Prints an object on a line of its own.
pub fn print_object(object: &Value) -> Result<(), Error> {
    line(&object.to_string())
}

/// Columns that a table may use.
pub fn width() -> usize {
    match Term::stdout().size_checked() {
        Some((_, columns)) => usize::from(columns).max(WIDTH_MIN),
        None => WIDTH_ELSEWHERE,
    }
}

/// How a page for people is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub width: usize,
    pub coloured: bool,
}

impl Look {
    /// As stdout is: colour only on a terminal that wants it.
    pub fn of_stdout() -> Self {
        Self { width: width(), coloured: console::colors_enabled() }
    }

    pub fn styled(self, style: &Style, text: &str) -> String {
        style.clone().force_styling(self.coloured).apply_to(text).to_string()
    }

    /// `text` in lines that fit, all but the first behind `indent` spaces. A longer word stays whole, and so does what
    /// stands in backticks: a command can be pasted.
    pub fn wrapped(self, text: &str, indent: usize) -> String {
        let mut lines = vec![String::new()];
        for word in words(text) {
            let line = lines.last_mut().expect("there is always one");
            let taken = measure_text_width(line);
            if taken > indent && taken + 1 + measure_text_width(&word) > self.width {
                lines.push(format!("{:indent$}{word}", ""));
            } else if line.trim().is_empty() {
                line.push_str(&word);
            } else {
                line.push(' ');
                line.push_str(&word);
            }
        }
        lines.join("\n")
    }

    /// `text` behind `lead`, which stays as it is, all lines but the first below where the text begins.
    pub fn hanging(self, lead: &str, text: &str) -> String {
        let indent = measure_text_width(lead);
        let beside = Self { width: self.width.saturating_sub(indent), ..self };
        format!("{lead}{}", beside.wrapped(text, 0).replace('\n', &format!("\n{:indent$}", "")))
    }
}

/// What may not be torn apart: words, and what two backticks enclose with what sticks to them.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut left = text.matches('`').count();
    let mut open = false;
    for word in text.split_whitespace() {
        match words.last_mut().filter(|_| open) {
            Some(last) => {
                last.push(' ');
                last.push_str(word);
            }
            None => words.push(word.to_owned()),
        }
        let ticks = word.matches('`').count();
        left -= ticks;
        // One that nothing closes is a character like others.
        open = (open != (ticks % 2 == 1)) && left > 0;
    }
    words
}

/// Resolves when the process is asked to end: by Ctrl-C, or by SIGTERM as systemd sends it.
pub async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            // Then the signal itself ends the process.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        interrupted = tokio::signal::ctrl_c() => {
            if interrupted.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What the process is told by signals, from now on: to stop, or by SIGHUP to read its settings again.
pub fn orders() -> mpsc::Receiver<Order> {
    use tokio::signal::unix::{SignalKind, signal};
    let (tell, orders) = mpsc::channel(1);
    let hangups = signal(SignalKind::hangup());
    tokio::spawn(async move {
        let reload = async {
            let Ok(mut hangups) = hangups else { return std::future::pending().await };
            while hangups.recv().await.is_some() {
                // One that is not yet obeyed stands for this one too.
                let _ = tell.try_send(Order::Reload);
            }
        };
        tokio::select! {
            () = told_to_stop() => {}
            () = reload => {}
        }
        // A daemon that has ended needs no order.
        let _ = tell.send(Order::Stop).await;
    });
    orders
}

#[cfg(test)]
pub mod looks {
    use super::*;

    /// A page on narrow and wide terminals, with and without colour, each against its snapshot. Returns it narrow and
    /// plain.
    #[track_caller]
    pub fn all(page: &str, of: impl Fn(Look) -> String) -> String {
        for (look, width) in [("narrow", 80), ("wide", 200)] {
            let plain = of(Look { width, coloured: false });
            let coloured = of(Look { width, coloured: true });
            assert_eq!(console::strip_ansi_codes(&coloured), plain, "colour says nothing of its own");
            // Commands are not broken; everything else fits.
            let is_command = |line: &str| line.trim_start().starts_with("next: ") || line.contains('`');
            for line in plain.lines().filter(|line| !is_command(line)) {
                assert!(measure_text_width(line) <= width, "{page}, {look}: {line}");
            }
            insta::assert_snapshot!(format!("{page}_{look}"), plain);
            insta::assert_snapshot!(format!("{page}_{look}_coloured"), coloured.replace('\u{1b}', "\\e"));
        }
        of(Look { width: 80, coloured: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_too_long_are_wrapped_between_words() {
        let look = Look { width: 12, coloured: false };
        for (text, expected) in [
            ("", ""),
            ("- one two", "- one two"),
            ("- one two three four", "- one two\n  three four"),
            ("- incomprehensibilities x", "- incomprehensibilities\n  x"),
            ("see `ls -l /a/b`, then", "see\n  `ls -l /a/b`,\n  then"),
            ("it`s not one two", "it`s not one\n  two"),
            ("`a b` or `c` `d", "`a b` or `c`\n  `d"),
        ] {
            assert_eq!(look.wrapped(text, 2), expected);
        }
        let red = Look { coloured: true, ..look }.styled(&Style::new().red(), "one");
        assert_eq!(look.wrapped(&format!("- {red} two"), 2), format!("- {red} two"), "colours take no room");
        assert_eq!(look.hanging("a:  ", "one two three"), "a:  one two\n    three");
    }

    #[test]
    fn progress_can_be_drawn() {
        let terminal = Terminal { json: false, quiet: true };
        let bar = terminal.progress(10);
        assert!(bar.is_hidden());
        bar.inc(3);
        assert_eq!(bar.position(), 3);
    }
}
