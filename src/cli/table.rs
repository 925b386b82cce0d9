//! Plain tables: aligned columns, two spaces between them, cut to the terminal where it is narrow.

use super::output::Output;
use autofs_cr::discover::escaped::printable;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How a cell looks where there are colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Style {
    /// As it is.
    #[default]
    Plain,
    /// Of less interest.
    Dim,
    /// Good.
    Good,
    /// Look at it.
    Warning,
    /// Something is wrong.
    Bad,
}

/// Ends a style.
const RESET: &str = "\x1b[0m";

impl Style {
    /// All codes that [`Style::paint`] puts in.
    pub const CODES: [&str; 5] = [RESET, "\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[31m"];

    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => Self::CODES[1],
            Self::Good => Self::CODES[2],
            Self::Warning => Self::CODES[3],
            Self::Bad => Self::CODES[4],
        }
    }

    /// The text in this style.
    pub fn paint(self, text: &str, output: &Output) -> String {
        if output.colours && self != Self::Plain {
            format!("{}{text}{RESET}", self.code())
        } else {
            text.to_owned()
        }
    }
}

/// One cell. What a terminal would not show as a character is octal.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// With a style.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: printable(&text.into()).into_owned(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::Plain)
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// Numbers stand to the right.
    pub right: bool,
    /// May be cut down to this many characters where the terminal is narrow.
    pub cut_to: Option<usize>,
    /// Left out, rather than that anything is cut.
    pub optional: bool,
}

impl Column {
    /// A column of text that is never cut.
    pub const fn new(name: &'static str) -> Self {
        Self { name, right: false, cut_to: None, optional: false }
    }
    /// A column of numbers.
    pub const fn right(name: &'static str) -> Self {
        Self { right: true, ..Self::new(name) }
    }
    /// A column of long texts.
    pub const fn long(name: &'static str, cut_to: usize) -> Self {
        Self { cut_to: Some(cut_to), ..Self::new(name) }
    }
    /// A column that narrow terminals do not show.
    pub const fn optional(name: &'static str) -> Self {
        Self { optional: true, ..Self::new(name) }
    }
}

/// Rows under headings, and lines between them.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    Row(Vec<Cell>),
    Note(String),
}

const GAP: &str = "  ";

impl Table {
    /// Empty.
    pub fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), lines: Vec::new() }
    }

    /// A row with a cell for every column.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.lines.push(Line::Row(cells));
    }

    /// A line that belongs to the row above, indented.
    pub fn note(&mut self, text: impl Into<String>) {
        self.lines.push(Line::Note(printable(&text.into()).into_owned()));
    }

    /// Rows and notes, without the heading.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// No more than so many lines; the last one, if there is any, tells how many are left out.
    pub fn shorten(&mut self, most: usize) {
        if self.lines.len() > most {
            let left_out = self.lines.drain(most.saturating_sub(1)..).count();
            if most > 0 {
                self.note(format!("and {left_out} more"));
            }
        }
    }

    /// The whole, for `output`.
    pub fn render(&self, output: &Output) -> String {
        let widths = self.widths(output.width.unwrap_or(usize::MAX));
        let heading = self.columns.iter().map(|column| Cell::styled(column.name, Style::Dim)).collect();
        let mut text = self.render_row(&heading, &widths, output);
        for line in &self.lines {
            text += &match line {
                Line::Row(cells) => self.render_row(cells, &widths, output),
                Line::Note(note) => format!("    {}\n", Style::Dim.paint(note, output)),
            };
        }
        text
    }

    fn render_row(&self, cells: &Vec<Cell>, widths: &[usize], output: &Output) -> String {
        let mut line = String::new();
        let shown = self.columns.iter().zip(cells).zip(widths).filter(|&(_, &width)| width > 0);
        for ((column, cell), &width) in shown {
            let text = cut(&cell.text, width);
            let padding = " ".repeat(width.saturating_sub(text.width()));
            let (before, after) =
                if column.right { (padding, String::new()) } else { (String::new(), padding) };
            line += &[&before, &cell.style.paint(&text, output), &after, GAP].concat();
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    }

    /// As wide as the widest cell. Where that is too much for the terminal, the optional columns go (width 0), the last
    /// one first; then the long ones are cut, the widest first.
    fn widths(&self, limit: usize) -> Vec<usize> {
        let mut widths: Vec<_> = self.columns.iter().map(|column| column.name.width()).collect();
        for line in &self.lines {
            let Line::Row(cells) = line else { continue };
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.text.width());
            }
        }
        let total = |widths: &[usize]| {
            let shown = widths.iter().filter(|&&width| width > 0);
            shown.map(|width| width + GAP.len()).sum::<usize>().saturating_sub(GAP.len())
        };
        while total(&widths) > limit {
            let optional = |&index: &usize| self.columns[index].optional && widths[index] > 0;
            if let Some(last) = (0..widths.len()).rev().find(optional) {
                widths[last] = 0;
                continue;
            }
            let spare =
                |&index: &usize| self.columns[index].cut_to.is_some_and(|least| widths[index] > least);
            let Some(widest) = (0..widths.len()).filter(spare).max_by_key(|&index| widths[index]) else {
                break;
            };
            widths[widest] -= 1;
        }
        widths
    }
}

/// The ends of a text that is too long: both tell more than its middle.
pub fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let head = take(text.chars(), room - room / 2);
    let tail = take(text.chars().rev(), room / 2);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

/// As many characters as fit.
fn take(chars: impl Iterator<Item = char>, width: usize) -> Vec<char> {
    let mut used = 0;
    chars
        .take_while(|char| {
            used += char.width().unwrap_or(0);
            used <= width
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Output = Output { width: None, colours: false };

    fn sample() -> Table {
        let mut table = Table::new(&[
            Column::long("PATH", 6),
            Column::new("TYPE"),
            Column::optional("MORE"),
            Column::right("PID"),
        ]);
        table.row(vec!["/mnt/a".into(), "direct".into(), "x".into(), "7".into()]);
        table.note("a note");
        table.row(vec![
            "/a/rather/long/päth".into(),
            Cell::styled("bad", Style::Bad),
            "y".into(),
            "1234".into(),
        ]);
        table
    }

    #[test]
    fn columns_are_aligned() {
        let expected = "\
PATH                 TYPE    MORE   PID
/mnt/a               direct  x        7
    a note
/a/rather/long/päth  bad     y     1234
";
        assert_eq!(sample().render(&PLAIN), expected);
    }

    #[test]
    fn where_it_is_narrow_columns_go_and_long_cells_are_cut() {
        let narrow = |width| sample().render(&Output { width: Some(width), ..PLAIN });
        assert!(narrow(39).contains("\n/a/rather/long/päth  bad     y     1234\n"));
        assert!(narrow(38).contains("\n/a/rather/long/päth  bad     1234\n"), "{}", narrow(38));
        assert!(narrow(24).contains("\n/a/ra…päth  bad     1234\n"), "{}", narrow(24));
        assert!(narrow(24).lines().all(|line| line.width() <= 24));
        assert!(narrow(1).contains("\n/mnt/a  direct     7\n"), "{}", narrow(1));
    }

    #[test]
    fn short_tables_tell_what_is_left_out() {
        let shortened = |most| {
            let mut table = sample();
            table.shorten(most);
            table.render(&PLAIN).lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(shortened(3).len(), 3);
        assert_eq!(shortened(2)[1], "    and 2 more");
        assert_eq!(shortened(1), ["    and 3 more"]);
        assert!(shortened(0).is_empty());
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let mut table = Table::new(&[Column::long("P", 3), Column::new("X")]);
        table.row(vec!["漢字漢字".into(), "x".into()]);
        assert_eq!(table.render(&PLAIN), "P         X\n漢字漢字  x\n");
        assert_eq!(cut("漢字漢字", 6), "漢…字");
    }

    #[test]
    fn cells_do_not_steer_the_terminal() {
        let mut table = Table::new(&[Column::new("P")]);
        table.row(vec!["a\x1b[2J\nb\\c".into()]);
        table.note("\x07");
        assert_eq!(table.render(&PLAIN), "P\na\\033[2J\\012b\\c\n    \\007\n");
    }

    #[test]
    fn colours_do_not_disturb_the_columns() {
        let text = sample().render(&Output { colours: true, ..PLAIN });
        assert!(text.contains("\x1b[31mbad\x1b[0m     y     1234\n"), "{text:?}");
    }
}
