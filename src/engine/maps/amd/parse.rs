//! The text of an entry as locations with selectors and options.

use super::super::text::{Char, Position, Text, Word, Words, show};
use super::{Error, ErrorKind};

/// A location.
#[derive(Clone, Debug, Default)]
pub(super) struct Location {
    pub at: Position,
    /// It began with a dash: its options are defaults for the locations after it.
    pub is_default: bool,
    pub selectors: Vec<Selector>,
    /// Names and values, in order; of several with one name the last counts.
    pub options: Vec<(String, Vec<Char>)>,
}

/// A condition of a location.
#[derive(Clone, Debug)]
pub(super) struct Selector {
    pub at: Position,
    pub name: String,
    pub test: Test,
}

#[derive(Clone, Debug)]
pub(super) enum Test {
    /// `name==value`; `name!=value` when not `equal`.
    Value { equal: bool, value: Vec<Char> },
    /// `name(arguments)`; `!name(arguments)` when not `expected`.
    Call { expected: bool, arguments: Vec<Char> },
}

/// Options that mean something.
const OPTIONS: &[&str] = &[
    "type", "maptype", "fs", "rhost", "rfs", "dev", "sublink", "pref", "opts", "addopts", "remopts", "mount",
    "unmount", "umount",
];
/// Those of them that are paths.
const PATHS: &[&str] = &["fs", "rfs", "dev", "sublink"];
/// Options that amd knows and that change nothing here.
const WITHOUT_MEANING: &[&str] = &["cache", "cachedir", "delay"];

/// The locations of an entry, in groups between `||`.
///
/// With `normalize`, slashes in paths are collapsed: not escaped ones, nor the two at the beginning.
pub(super) fn groups(text: &Text, normalize: bool) -> Result<Vec<Vec<Location>>, Error> {
    let mut groups = vec![Vec::new()];
    for word in Words::new(text) {
        let word = word?;
        match word.chars.as_slice() {
            [a, b] if a.is(b'|') && b.is(b'|') => groups.push(Vec::new()),
            _ => {
                let location = location(&word, normalize)?;
                groups.last_mut().into_iter().for_each(|group| group.push(location.clone()));
            }
        }
    }
    Ok(groups)
}

fn location(word: &Word, normalize: bool) -> Result<Location, Error> {
    let is_default = word.starts(b'-');
    let mut location = Location { at: word.at, is_default, ..Location::default() };
    let chars = &word.chars[usize::from(is_default)..];
    for part in chars.split(|c| c.is(b';')).filter(|part| !part.is_empty()) {
        part_of(part, &mut location)?;
    }
    if normalize {
        let paths = location.options.iter_mut().filter(|(name, _)| PATHS.contains(&name.as_str()));
        paths.for_each(|(_, value)| collapse(value));
    }
    Ok(location)
}

fn collapse(value: &mut Vec<Char>) {
    let doubled = |pair: &[Char]| pair[0].is(b'/') && pair[1].is(b'/');
    let again: Vec<usize> =
        value.windows(2).enumerate().filter(|(_, pair)| doubled(pair)).map(|(i, _)| i + 1).collect();
    for i in again.into_iter().rev().filter(|i| *i > 1) {
        value.remove(i);
    }
}

fn part_of(part: &[Char], location: &mut Location) -> Result<(), Error> {
    let text = |chars: &[Char]| show(&chars.iter().map(|c| c.byte).collect::<Vec<u8>>()).into_owned();
    let at = location.at;
    let name_end =
        part.iter().position(|c| !c.byte.is_ascii_alphanumeric() && c.byte != b'_' && c.byte != b'!');
    let (name, rest) = part.split_at(name_end.unwrap_or(part.len()));
    let (not, name) = match text(name).strip_prefix('!') {
        Some(name) => (true, name.to_owned()),
        None => (false, text(name)),
    };
    let bad = || Err(ErrorKind::Part(text(part)).at(at));
    if name.is_empty() || name.contains('!') {
        // `name!=value`: the mark of the operator was taken for part of the name.
        return match name.split_once('!') {
            Some((name, "")) if !not && rest.first().is_some_and(|c| c.is(b'=')) => {
                let test = Test::Value { equal: false, value: rest[1..].to_vec() };
                location.selectors.push(Selector { at, name: name.to_owned(), test });
                Ok(())
            }
            _ => bad(),
        };
    }
    match rest {
        [colon, equals, value @ ..] if colon.is(b':') && equals.is(b'=') && !not => {
            if OPTIONS.contains(&name.as_str()) {
                location.options.push((name, value.to_vec()));
            } else if !WITHOUT_MEANING.contains(&name.as_str()) {
                return Err(ErrorKind::Option(name).at(at));
            }
        }
        [a, b, value @ ..] if a.is(b'=') && b.is(b'=') && !not => {
            let test = Test::Value { equal: true, value: value.to_vec() };
            location.selectors.push(Selector { at, name, test });
        }
        [open, arguments @ .., close] if open.is(b'(') && close.is(b')') => {
            let test = Test::Call { expected: !not, arguments: arguments.to_vec() };
            location.selectors.push(Selector { at, name, test });
        }
        _ => return bad(),
    }
    Ok(())
}
