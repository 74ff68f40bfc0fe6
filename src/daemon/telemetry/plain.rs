//! Log lines as text: each event is one line, whatever is quoted in it. What a provider says must neither look like a line
//! of ours nor move the cursor of a terminal.

use std::io;

use crate::domain::text::is_invisible;

/// Hands lines on, one for each event: the layer writes an event as a whole.
pub(super) struct Lines<W> {
    pub to: W,
    /// Escape sequences are ours then: the layer has taken out those of others.
    pub coloured: bool,
}

impl<W: io::Write> io::Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = one_line(&String::from_utf8_lossy(event), self.coloured);
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The event with its last line break, and every other one, and what is like it, as its escape.
fn one_line(event: &str, coloured: bool) -> String {
    let (text, end) = event.strip_suffix('\n').map_or((event, ""), |text| (text, "\n"));
    let mut line = String::with_capacity(event.len());
    for c in text.chars() {
        match c {
            '\u{1b}' if coloured => line.push(c),
            hidden if hidden.is_control() || is_invisible(hidden) => line.extend(hidden.escape_default()),
            plain => line.push(plain),
        }
    }
    line + end
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn an_event_is_one_line() {
        for (event, coloured, expected) in [
            ("INFO all is well\n", false, "INFO all is well\n"),
            ("a\nINFO b\r\n", false, "a\\nINFO b\\r\n"),
            ("a\u{1b}[2Kb\u{9b}1A\tc\0\n", false, "a\\u{1b}[2Kb\\u{9b}1A\\tc\\u{0}\n"),
            ("\u{1b}[32m INFO\u{1b}[0m a\nb\n", true, "\u{1b}[32m INFO\u{1b}[0m a\\nb\n"),
            ("a\u{2028}b\u{202e}c Söhne\n", false, "a\\u{2028}b\\u{202e}c Söhne\n"),
            ("no end", false, "no end"),
        ] {
            let mut lines = Lines { to: Vec::new(), coloured };
            lines.write_all(event.as_bytes()).expect("memory takes it");
            assert_eq!(String::from_utf8(lines.to).expect("text"), expected);
        }
    }
}
