//! Text from outside, and what in it is not to be seen.

/// Whether a character shows nothing itself and changes how others are shown: breaks of lines that are no control
/// characters, directions, joiners.
pub fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}')
}
