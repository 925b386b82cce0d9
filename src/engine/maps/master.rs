//! The master map: which map is served where, and how.
//!
//! [`parse`] reads one text; [`read`] follows its includes through a [`Loader`].

mod name;
mod options;
mod read;

pub use name::{Format, MapKind, MapName, NameError};
pub use options::{MapOptions, Propagation};
pub use read::{Files, Loader, Master, read};

use super::text::{Lines, Position, Text, Warning, Words, show};
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A line of the master map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Mount point of an indirect map; `None` for a direct map (`/-`).
    pub mount_point: Option<PathBuf>,
    /// The map.
    pub map: MapName,
    /// How it is served.
    pub options: MapOptions,
    /// Keys of a direct map that are hidden by `-null` lines above the entry.
    pub hidden: HashSet<PathBuf>,
    /// The file where it stands; empty when it comes from elsewhere.
    pub origin: PathBuf,
    /// Where it stands there.
    pub at: Position,
    /// Map and options as they are written: from these [`entry`] makes the same entry again.
    pub written: (Vec<u8>, Vec<u8>),
}

/// What a line of a master map says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Serve a map.
    Entry(Box<Entry>),
    /// `MOUNTPOINT -null`: entries for it that follow do not count. `None`: all direct maps.
    Null(Option<PathBuf>, Position),
    /// `+map`: the lines of another master map belong here.
    Include(MapName, Position),
}

/// Why a line does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A quote is not closed.
    #[error("unmatched \"")]
    UnmatchedQuote,
    /// A mount point must be absolute.
    #[error("mount point {0} is not an absolute path")]
    NotAbsolute(String),
    /// Nothing after the mount point.
    #[error("mount point {0} has no map")]
    NoMap(String),
    /// `..` would lead out of a `--root`.
    #[error("mount point {0} has a . or .. component")]
    Dots(String),
    /// The map's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An option.
    #[error(transparent)]
    Option(#[from] options::OptionError),
}

/// The lines of one master map. A line with an error becomes a warning and does not count.
pub fn parse(bytes: &[u8], warnings: &mut Vec<Warning>) -> Vec<Item> {
    let mut items = Vec::new();
    for line in Lines::new(bytes) {
        match item(&line.text, warnings) {
            Ok(item) => items.push(item),
            Err((at, error)) => {
                warnings.push(Warning::error(at, format!("this line does not count: {error}")))
            }
        }
    }
    items
}

/// An entry from its three fields, as a checkpoint keeps them or a submount gets them.
pub fn entry(mount_point: Option<PathBuf>, map: &[u8], options: &[u8]) -> Result<Entry, LineError> {
    let text = Text::at([map, b" ", options].concat(), Position::START);
    fields(mount_point, &text, &mut Vec::new()).map_err(|(_, error)| error)
}

type Failed = (Position, LineError);

fn item(line: &Text, warnings: &mut Vec<Warning>) -> Result<Item, Failed> {
    let mut words = Words::new(line);
    let start = line.position(0);
    let Some(first) = words.next() else {
        return Err((start, LineError::NoMap(String::new())));
    };
    let first = first.map_err(|quote| (quote.0, LineError::UnmatchedQuote))?.bytes();
    if let Some(included) = first.strip_prefix(b"+") {
        let name = MapName::parse(included).map_err(|error| (start, error.into()))?;
        return Ok(Item::Include(name, start));
    }
    let mount_point = mount_point(&first).map_err(|error| (start, error))?;
    if line.bytes().starts_with(b"\"") || first.contains(&b' ') {
        warnings.push(Warning::differs(start, "automount does not take a mount point with quotes or blanks"));
    }
    let rest = words.remaining();
    if rest.bytes().is_empty() || rest.bytes()[0] == b'#' {
        return Err((start, LineError::NoMap(show(&first).into())));
    }
    let mut entry = fields(mount_point, &rest, warnings)?;
    entry.at = start;
    Ok(match entry.map.kind {
        MapKind::Null => Item::Null(entry.mount_point, start),
        _ => Item::Entry(Box::new(entry)),
    })
}

/// `None` for `/-`. A slash at the end goes, slashes elsewhere stay.
fn mount_point(bytes: &[u8]) -> Result<Option<PathBuf>, LineError> {
    let shown = || show(bytes).into_owned();
    if bytes.first() != Some(&b'/') {
        return Err(LineError::NotAbsolute(shown()));
    }
    let end = bytes.iter().rposition(|b| *b != b'/').map_or(1, |i| i + 1);
    let path = &bytes[..end];
    if path.split(|b| *b == b'/').any(|part| part == b"." || part == b"..") {
        return Err(LineError::Dots(shown()));
    }
    Ok((path != b"/-").then(|| PathBuf::from(OsString::from_vec(path.to_vec()))))
}

/// Without the blanks around it: not one that is escaped, and not a backslash that escapes nothing.
fn without_blanks(written: &[u8]) -> &[u8] {
    let start = written.trim_ascii_start();
    let trimmed = start.trim_ascii_end().len();
    let backslashes = start[..trimmed].iter().rev().take_while(|b| **b == b'\\').count();
    match (backslashes % 2, start.len() > trimmed) {
        (0, _) => &start[..trimmed],
        (_, true) => &start[..trimmed + 1],
        (_, false) => &start[..trimmed - 1],
    }
}

/// Map and options.
fn fields(mount_point: Option<PathBuf>, text: &Text, warnings: &mut Vec<Warning>) -> Result<Entry, Failed> {
    let mut words = Words::new(text);
    let at = text.position(0);
    let map = words.next().and_then(Result::ok).ok_or((at, LineError::UnmatchedQuote))?;
    let rest = words.remaining();
    let (name, _) = text.bytes().split_at(text.bytes().len() - rest.bytes().len());
    let written = (without_blanks(name).to_vec(), rest.bytes().to_vec());
    let (map, options) = name::with_options(&map.bytes(), at, &rest, warnings)?;
    Ok(Entry { mount_point, map, options, hidden: HashSet::new(), origin: PathBuf::new(), at, written })
}
