//! What goes to the terminal: results to stdout, everything else to stderr.

use super::table::Style;
use anyhow::Result;
use autofs_cr::discover::escaped::printable;
use serde::Serialize;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

/// Stdout, and what it can show.
#[derive(Debug)]
pub struct Output {
    /// Columns of the terminal; `None` when stdout is none, and nothing is to be cut.
    pub width: Option<usize>,
    /// May there be colours?
    pub colours: bool,
}

impl Output {
    /// As stdout is.
    pub fn new() -> Self {
        let stdout = io::stdout();
        Self { width: width(&stdout), colours: colours(&stdout) }
    }

    /// Print as it is; to a terminal only what cannot steer it.
    pub fn print(&mut self, text: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        let text = if stdout.is_terminal() { harmless(text) } else { Cow::Borrowed(text) };
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Print as indented JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        // stdout alone would write line by line
        let mut stdout = io::BufWriter::new(io::stdout().lock());
        serde_json::to_writer_pretty(&mut stdout, value)?;
        stdout.write_all(b"\n")?;
        Ok(stdout.flush()?)
    }
}

/// Columns of a terminal; `None` where it is none.
pub fn width(stream: &(impl IsTerminal + AsFd)) -> Option<usize> {
    if !stream.is_terminal() {
        return None;
    }
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let has = || rustix::termios::tcgetwinsize(stream).ok().map(|size| size.ws_col.into());
    asked.or_else(has).filter(|&columns: &usize| columns > 0)
}

/// Only on a terminal that can, and not where `NO_COLOR` is set (to anything but nothing).
pub fn colours(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

/// Text for a terminal: of control characters only line ends, tabs and our own colours are left.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let ours =
        |text: &str| Style::CODES.iter().find(|code| text.starts_with(**code)).map_or(0, |code| code.len());
    if text.chars().all(|char| char == '\n' || !char.is_control()) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(at) = rest.find(char::is_control) {
        let (before, found) = rest.split_at(at);
        let kept = if found.starts_with(['\n', '\t']) { 1 } else { ours(found) };
        let end = if kept > 0 { kept } else { found.chars().next().map_or(1, char::len_utf8) };
        shown += before;
        shown += &if kept > 0 { Cow::Borrowed(&found[..end]) } else { printable(&found[..end]) };
        rest = &found[end..];
    }
    Cow::Owned(shown + rest)
}

/// One line on stderr, or several; that nobody reads it is no failure.
pub fn note(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{}", harmless(&text.to_string()));
}

/// What may make the result incomplete.
pub fn warn(text: impl std::fmt::Display) {
    note(format_args!("warning: {text}"));
}

/// An error and its causes.
pub fn error(error: &anyhow::Error) {
    note(format_args!("error: {error:#}"));
}

/// Did the reader of our stdout (`head`) have enough?
pub fn reader_has_left(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn what_others_wrote_does_not_steer_the_terminal() {
        let own = "PATH\n\x1b[31mbad\x1b[0m\tä";
        assert_eq!(harmless(own), own);
        assert_eq!(
            harmless("a\x1b[2Jb\x1b]0;c\x07\r\u{9b}d\n"),
            "a\\033[2Jb\\033]0;c\\007\\015\\302\\233d\n"
        );
    }
}
