//! A plain table: aligned columns, no lines, cut to the width of the terminal. Cells are one line of text, which may hold
//! colours.

use console::{Alignment, measure_text_width, pad_str, truncate_str};

const GAP: &str = "  ";
/// A column is not cut below this many characters.
const COLUMN_MIN: usize = 8;

/// A column's heading, and to which side its cells go.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub heading: &'static str,
    pub alignment: Alignment,
}

pub const fn left(heading: &'static str) -> Column {
    Column { heading, alignment: Alignment::Left }
}

pub const fn right(heading: &'static str) -> Column {
    Column { heading, alignment: Alignment::Right }
}

/// The table as text, a heading first. Where it is wider than `width`, the widest columns are cut.
pub fn table(columns: &[Column], rows: &[Vec<String>], width: usize) -> String {
    let headings: Vec<String> = columns.iter().map(|column| column.heading.to_owned()).collect();
    let widths = fit(natural(columns.len(), rows, &headings), width);
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .zip(columns)
            .map(|((cell, &width), column)| {
                let cut = truncate_str(cell, width, "…");
                pad_str(&cut, width, column.alignment, None).into_owned()
            })
            .collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    text
}

/// How wide each column would like to be.
fn natural(columns: usize, rows: &[Vec<String>], headings: &[String]) -> Vec<usize> {
    let width = |index: usize| {
        let cells = rows.iter().filter_map(|row| row.get(index)).chain(headings.get(index));
        cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
    };
    (0..columns).map(width).collect()
}

/// Takes from the widest column again and again, until the table fits or nothing can be taken.
fn fit(mut widths: Vec<usize>, width: usize) -> Vec<usize> {
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        match widths.iter_mut().max() {
            Some(widest) if *widest > COLUMN_MIN => *widest -= 1,
            _ => break,
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        vec![vec!["acmé".into(), "12".into()], vec!["a-much-longer-name".into(), "3".into()]]
    }

    #[test]
    fn columns_are_aligned() {
        let text = table(&[left("NAME"), right("ROWS")], &rows(), 80);
        assert_eq!(text, "NAME                ROWS\nacmé                  12\na-much-longer-name     3\n");
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        let text = table(&[left("NAME"), right("ROWS")], &rows(), 16);
        assert_eq!(text, "NAME        ROWS\nacmé          12\na-much-lo…     3\n");
        assert!(table(&[left("NAME"), right("ROWS")], &rows(), 1).contains("a-much-…"));
    }

    #[test]
    fn colours_take_no_room() {
        let red = console::Style::new().red().force_styling(true).apply_to("x").to_string();
        let text = table(&[left("A"), left("B")], &[vec![red, "y".into()]], 80);
        assert_eq!(console::strip_ansi_codes(&text), "A  B\nx  y\n");
    }
}
