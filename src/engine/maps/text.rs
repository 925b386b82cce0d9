//! Bytes with their places in a file: what all the map parsers read from.
//!
//! A map file is cut into logical lines: a backslash at the end of a line joins the next one to it without
//! a blank. [`Lines`] cuts, and keeps escapes and quotes; [`Words`] then takes a line apart.

use std::borrow::Cow;
use std::ops::Range;

/// The longest key, in bytes.
pub const KEY_MAX: usize = 255;
/// The longest entry, in bytes.
pub const ENTRY_MAX: usize = 16384;

/// A place in a file; both numbers begin at 1, columns count bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

impl Default for Position {
    fn default() -> Self {
        Self::START
    }
}

impl Position {
    /// The beginning of a file.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The line, the entry or the setting does not count.
    Error,
    /// It counts, but is hardly meant so.
    Warning,
    /// It means something else to automount 5.1.9.
    Differs,
}

/// Something that deserves a look, though reading goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where.
    pub at: Position,
    /// How much it matters.
    pub severity: Severity,
    /// What, beginning in lower case.
    pub message: String,
}

impl Warning {
    /// A warning.
    pub fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at, severity: Severity::Warning, message: message.into() }
    }

    /// Something that does not count.
    pub fn error(at: Position, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, ..Self::new(at, message) }
    }

    /// What automount makes of it, when that is not what is made of it here.
    pub fn differs(at: Position, message: impl Into<String>) -> Self {
        Self { severity: Severity::Differs, ..Self::new(at, message) }
    }
}

/// Why something does not count, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {kind}")]
pub struct Located<K: std::fmt::Display> {
    /// Where in the map.
    pub at: Position,
    /// Why.
    pub kind: K,
}

/// Text that may have been put together from several places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a> {
    bytes: Cow<'a, [u8]>,
    start: Position,
    /// Where the bytes from an offset on come from, if not from behind those before them; sorted.
    joins: Vec<(usize, Position)>,
}

impl<'a> Text<'a> {
    /// Text that begins at a place.
    pub fn at(bytes: impl Into<Cow<'a, [u8]>>, start: Position) -> Self {
        Self { bytes: bytes.into(), start, joins: Vec::new() }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the byte at an offset comes from.
    pub fn position(&self, offset: usize) -> Position {
        let next = self.joins.partition_point(|(start, _)| *start <= offset);
        let (start, at) = next.checked_sub(1).map_or((0, self.start), |last| self.joins[last]);
        Position { line: at.line, column: at.column + (offset - start) as u32 }
    }

    /// Add bytes that stood side by side at a place.
    pub fn push(&mut self, bytes: &[u8], at: Position) {
        if self.bytes.is_empty() {
            (self.start, self.joins) = (at, Vec::new());
        } else if self.position(self.bytes.len()) != at {
            self.joins.push((self.bytes.len(), at));
        }
        self.bytes.to_mut().extend_from_slice(bytes);
    }

    /// Add a part of another text.
    pub fn push_part(&mut self, other: &Text<'_>, part: Range<usize>) {
        let mut start = part.start;
        while start < part.end {
            let next = other.joins.partition_point(|(join, _)| *join <= start);
            let end = other.joins.get(next).map_or(part.end, |(join, _)| part.end.min(*join));
            self.push(&other.bytes[start..end], other.position(start));
            start = end;
        }
    }

    /// What follows an offset.
    pub fn tail(&self, offset: usize) -> Text<'_> {
        let later = self.joins.iter().filter(|(start, _)| *start > offset);
        Text {
            bytes: Cow::Borrowed(&self.bytes[offset..]),
            start: self.position(offset),
            joins: later.map(|(start, at)| (start - offset, *at)).collect(),
        }
    }

    /// With bytes of its own.
    pub fn into_owned(self) -> Text<'static> {
        Text { bytes: Cow::Owned(self.bytes.into_owned()), start: self.start, joins: self.joins }
    }

    fn trim_end(&mut self) {
        let blanks = self.bytes.iter().rev().take_while(|b| is_blank(**b)).count();
        if blanks == 0 {
            return;
        }
        // An escaped blank at the end belongs to the text.
        let kept = self.bytes.len() - blanks;
        let slashes = self.bytes[..kept].iter().rev().take_while(|b| **b == b'\\').count();
        let kept = kept + slashes % 2;
        match &mut self.bytes {
            Cow::Borrowed(bytes) => *bytes = &bytes[..kept],
            Cow::Owned(bytes) => bytes.truncate(kept),
        }
    }
}

impl<'a> From<&'a [u8]> for Text<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::at(bytes, Position::START)
    }
}

/// Blanks separate words; a carriage return is one, so that files with DOS line ends work.
pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\x0b' | b'\x0c' | b'\n')
}

/// Bytes for a message.
pub fn show(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// A logical line of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Offset of its first byte that is not a blank.
    pub offset: usize,
    /// Number of the line where it begins.
    pub line: u32,
    /// Without continuation backslashes, and blanks around it; never empty.
    pub text: Text<'a>,
    /// Blanks stood before it.
    pub indented: bool,
}

/// The logical lines of a map file, without empty lines and comments.
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    bytes: &'a [u8],
    offset: usize,
    /// Number of the line on which `offset` is.
    line: u32,
}

impl<'a> Lines<'a> {
    /// All lines of a file.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::from(bytes, 0, 1)
    }

    /// The lines from the offset of a [`Line`] on, which is on line number `line`.
    pub fn from(bytes: &'a [u8], offset: usize, line: u32) -> Self {
        Self { bytes, offset: offset.min(bytes.len()), line }
    }

    fn at(&self, offset: usize) -> Position {
        let start = self.bytes[..offset].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        Position { line: self.line, column: (offset - start) as u32 + 1 }
    }

    /// The rest of a logical line; steps over its end.
    fn rest(&mut self) -> Text<'a> {
        let mut text = Text::default();
        loop {
            let rest = &self.bytes[self.offset..];
            let at = self.at(self.offset);
            let length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
            let physical = &rest[..length];
            self.offset = (self.offset + length + 1).min(self.bytes.len());
            self.line += 1;
            let bare = physical.strip_suffix(b"\r").unwrap_or(physical);
            let backslashes = bare.iter().rev().take_while(|b| **b == b'\\').count();
            // An even number of backslashes are escaped backslashes.
            if backslashes % 2 == 0 || length == rest.len() {
                if text.bytes.is_empty() {
                    return Text::at(physical, at);
                }
                text.push(physical, at);
                return text;
            }
            text.push(&bare[..bare.len() - 1], at);
        }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        while self.offset < self.bytes.len() {
            let start = self.offset;
            let line = self.line;
            let blanks = self.bytes[start..].iter().take_while(|b| is_blank(**b) && **b != b'\n').count();
            self.offset += blanks;
            let offset = self.offset;
            // A comment, too, goes on over a continuation.
            let comment = self.bytes.get(offset) == Some(&b'#');
            let mut text = self.rest();
            text.trim_end();
            if !comment && !text.bytes.is_empty() {
                return Some(Line { offset, line, text, indented: blanks > 0 });
            }
        }
        None
    }
}

/// A byte of a word, and whether a quote or a backslash took its special meaning away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Char {
    /// The byte.
    pub byte: u8,
    /// It stands for itself.
    pub literal: bool,
}

impl Char {
    /// Is it this byte with its special meaning?
    pub fn is(self, byte: u8) -> bool {
        self.byte == byte && !self.literal
    }
}

/// A word of a line, without the quotes and backslashes that were around its characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where it begins.
    pub at: Position,
    /// Its characters.
    pub chars: Vec<Char>,
}

impl Word {
    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.chars.iter().map(|c| c.byte).collect()
    }

    /// Does it begin with this byte, unquoted?
    pub fn starts(&self, byte: u8) -> bool {
        self.chars.first().is_some_and(|c| c.is(byte))
    }
}

/// Cuts a [`Text`] into words at unquoted blanks.
///
/// A backslash makes the next byte literal. Double quotes make what is between them literal, backslashes
/// included. A `#` at the beginning of a word ends the text.
pub struct Words<'a> {
    text: &'a Text<'a>,
    offset: usize,
}

/// A quote without its counterpart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unmatched \"")]
pub struct UnmatchedQuote(pub Position);

impl<'a> Words<'a> {
    /// From the beginning.
    pub fn new(text: &'a Text<'a>) -> Self {
        Self { text, offset: 0 }
    }

    /// What has not been taken yet, without the blanks before it.
    pub fn remaining(mut self) -> Text<'a> {
        self.skip_blanks();
        self.text.tail(self.offset)
    }

    /// The next word as it stands there, if it has neither quotes nor backslashes: the quick way.
    pub fn plain(&mut self) -> Option<&'a [u8]> {
        self.skip_blanks();
        let rest = &self.text.bytes[self.offset..];
        let length =
            rest.iter().position(|b| is_blank(*b) || matches!(b, b'"' | b'\\')).unwrap_or(rest.len());
        if length == 0 || rest[0] == b'#' || rest.get(length).is_some_and(|b| !is_blank(*b)) {
            return None;
        }
        self.offset += length;
        Some(&rest[..length])
    }

    fn skip_blanks(&mut self) {
        while self.text.bytes.get(self.offset).is_some_and(|b| is_blank(*b)) {
            self.offset += 1;
        }
    }

    /// The next character with its place; `None` at the end or where the text ends a word.
    fn char(&mut self, quote: &mut Option<usize>) -> Option<Char> {
        loop {
            let byte = *self.text.bytes.get(self.offset)?;
            if quote.is_none() && is_blank(byte) {
                return None;
            }
            self.offset += 1;
            match byte {
                b'"' => *quote = if quote.is_some() { None } else { Some(self.offset - 1) },
                b'\\' if quote.is_none() => {
                    let byte = *self.text.bytes.get(self.offset)?;
                    self.offset += 1;
                    return Some(Char { byte, literal: true });
                }
                _ => return Some(Char { byte, literal: quote.is_some() }),
            }
        }
    }
}

impl Iterator for Words<'_> {
    type Item = Result<Word, UnmatchedQuote>;

    fn next(&mut self) -> Option<Self::Item> {
        self.skip_blanks();
        let at = self.text.position(self.offset);
        if matches!(self.text.bytes.get(self.offset), None | Some(b'#')) {
            self.offset = self.text.bytes.len();
            return None;
        }
        let mut quote = None;
        let chars = std::iter::from_fn(|| self.char(&mut quote)).collect();
        Some(match quote {
            Some(start) => Err(UnmatchedQuote(self.text.position(start))),
            None => Ok(Word { at, chars }),
        })
    }
}
