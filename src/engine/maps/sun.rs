//! An entry in sun format: `[-options] location...`, or offsets with options and locations of their own.
//!
//! Reading is three steps: [`expand`] puts `&` and `$variables` in, [`Words`] takes quotes and backslashes
//! away, and [`resolve`] sorts words into offsets, options and locations.

mod differs;
mod location;

use super::local::Machine;
use super::options::merge;
use super::text::{Char, Located, Position, Text, Warning, Word, Words, show};
use super::vars::{Definition, Variables, define, definition};
use super::{MountSpec, Resolved, What};
use location::Locations;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// What an entry is read with.
pub struct Context<'a> {
    /// The key that was asked for, not the `*` that matched it; for a direct map the whole path.
    pub key: &'a [u8],
    /// For `$name`.
    pub variables: Variables<'a>,
    /// What the map's master-map entry says for all its entries.
    pub defaults: &'a Defaults,
    /// Asked whether hosts of NFS mounts are this machine.
    pub machine: &'a dyn Machine,
}

/// What a master-map entry says for all the entries of its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Mount options.
    pub options: Vec<Vec<u8>>,
    /// `-D` options of the master-map entry: submounts inherit them.
    pub definitions: Vec<Definition>,
    /// Add an entry's options to these instead of replacing them (`append_options`).
    pub append: bool,
    /// Make a colon after the first `:/` of a location a slash.
    pub slashify: bool,
    /// Bind-mount file systems of this machine instead of mounting them over the network.
    pub bind: bool,
    /// Make symbolic links instead of bind mounts.
    pub symlink: bool,
    /// Is it a direct map? It has no symbolic links.
    pub direct: bool,
    /// One mount of a multi-mount that fails makes all fail.
    pub strict: bool,
    /// Choose replicas by weight alone.
    pub use_weight_only: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            options: Vec::new(),
            definitions: Vec::new(),
            append: true,
            slashify: true,
            bind: true,
            symlink: false,
            direct: false,
            strict: false,
            use_weight_only: false,
        }
    }
}

/// An entry that stands for nothing.
pub type Error = Located<ErrorKind>;

/// Why an entry stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// A quote is not closed.
    #[error("unmatched \"")]
    UnmatchedQuote,
    /// `${` without `}`.
    #[error("a variable that begins with ${{ has no }} at its end")]
    UnclosedVariable,
    /// There is nothing to mount.
    #[error("the entry has no location")]
    NoLocation,
    /// An offset without a location.
    #[error("offset {0} has no location")]
    NoLocationAt(String),
    /// Options where they cannot be.
    #[error("options {0} follow a location; they must stand before it")]
    OptionsAfterLocation(String),
    /// An offset that is no path below the key.
    #[error("offset {0} is not a path below the key: it has a . or .. component")]
    BadOffset(String),
    /// A character that no host has.
    #[error("invalid character \"{0}\" in location {1}; a location is HOST:/PATH or :/PATH")]
    InvalidCharacter(char, String),
    /// A colon with no path after it.
    #[error("expected colon delimiter not found in location {0}: it is HOST:/PATH or :/PATH")]
    NoColon(String),
    /// A weight that is no number.
    #[error("host {0}: a weight is a number in parentheses right after the host")]
    BadWeight(String),
    /// A file system type that is not text.
    #[error("the file system type {0} is not a name")]
    BadType(String),
    /// A submount takes one map.
    #[error("a submount (fstype=autofs) has one map, not {0}")]
    ManyMaps(usize),
    /// Longer than automount takes.
    #[error("the entry has more than {max} bytes, or grows too much by its variables", max = super::text::ENTRY_MAX)]
    TooLong,
}

impl ErrorKind {
    pub(super) fn at(self, at: Position) -> Error {
        Error { at, kind: self }
    }
}

/// Put the key for `&` and values for `$name` and `${name}`. Quoted parts and escaped characters stay as they are.
///
/// The key stands for itself: a blank in it does not end a word. A value does not: `-DX="-ro srv:/x"` gives two words.
pub fn expand(
    text: &Text<'_>,
    context: &Context<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Text<'static>, Error> {
    let bytes = text.bytes();
    let mut out = Text::default();
    // From here on nothing has been copied yet.
    let mut start = 0;
    let mut i = 0;
    while let Some(length) = bytes[i..].iter().position(|b| matches!(b, b'\\' | b'"' | b'&' | b'$')) {
        i += length;
        let at = text.position(i);
        let rest = &bytes[i + 1..];
        let taken = match bytes[i] {
            b'\\' => {
                i += 1 + rest.len().min(1);
                continue;
            }
            b'"' => {
                let length = rest.iter().position(|b| *b == b'"');
                i += length.ok_or_else(|| ErrorKind::UnmatchedQuote.at(at))? + 2;
                continue;
            }
            b'$' if rest.is_empty() => break,
            b'$' => {
                let Some((name, length)) = variable(rest) else {
                    warnings.push(Warning::differs(at, "automount mounts what stands before this"));
                    return Err(ErrorKind::UnclosedVariable.at(at));
                };
                out.push_part(text, start..i);
                match context.variables.get(name) {
                    Some(value) => out.push(&value, at),
                    None if name.is_empty() => {
                        warnings.push(Warning::new(
                            at,
                            "a $ without a name vanishes; write \\$ for a dollar sign",
                        ));
                    }
                    None => {
                        let name = show(name);
                        warnings
                            .push(Warning::new(at, format!("variable {name} is not defined: it is empty")));
                    }
                }
                length
            }
            _ => {
                out.push_part(text, start..i);
                let literal: Vec<u8> = context.key.iter().flat_map(|byte| [b'\\', *byte]).collect();
                out.push(&literal, at);
                0
            }
        };
        i += 1 + taken;
        start = i;
        if out.bytes().len() > EXPANDED_MAX {
            return Err(ErrorKind::TooLong.at(at));
        }
    }
    out.push_part(text, start..bytes.len());
    Ok(out)
}

/// Name of the variable after a `$`, and the length of all that belongs to it; `None` when a brace is missing.
fn variable(rest: &[u8]) -> Option<(&[u8], usize)> {
    if let Some(inner) = rest.strip_prefix(b"{") {
        let length = inner.iter().position(|b| *b == b'}')?;
        return Some((&inner[..length], length + 2));
    }
    let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
    Some((&rest[..length], length))
}

/// Options and locations of one offset, as written.
struct Part {
    at: Position,
    offset: PathBuf,
    options: Vec<Vec<u8>>,
    locations: Vec<Word>,
}

/// The longest entry with variables and keys put in.
const EXPANDED_MAX: usize = 8 * super::text::ENTRY_MAX;

/// What an entry stands for.
pub fn resolve(
    entry: &Text<'_>,
    context: &Context<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Resolved, Error> {
    if entry.bytes().len() > super::text::ENTRY_MAX {
        return Err(ErrorKind::TooLong.at(entry.position(0)));
    }
    let expanded = expand(entry, context, warnings)?;
    let words = Words::new(&expanded).collect::<Result<Vec<Word>, _>>();
    let words = words.map_err(|quote| ErrorKind::UnmatchedQuote.at(quote.0))?;
    let split = words.iter().position(|word| !word.starts(b'-')).unwrap_or(words.len());
    let (leading, body) = words.split_at(split);
    let leading: Vec<Vec<u8>> = leading.iter().flat_map(options).collect();
    let common = merge(&context.defaults.options, &leading, context.defaults.append);
    differs::entry(&expanded, &words, context, warnings);

    let mut strict = false;
    let mut mounts = BTreeMap::new();
    let alone = !body.iter().any(is_offset);
    for part in parts(body, expanded.position(expanded.bytes().len()))? {
        let own = Own::of(&merge(&common, &part.options, context.defaults.append), context.defaults);
        strict |= own.strict;
        let (at, offset) = (part.at, part.offset.clone());
        let what = own.what(part, context, alone, warnings)?;
        if mounts.contains_key(&offset) {
            let text = format!("offset /{} stands here again: the last one counts", offset.display());
            warnings.push(Warning::new(at, text));
        }
        mounts.insert(offset, what);
    }
    let mounts = mounts.into_iter().map(|(offset, what)| MountSpec { offset, what }).collect();
    Ok(Resolved { strict, mounts, ..Resolved::default() })
}

fn is_offset(word: &Word) -> bool {
    word.chars.first().is_some_and(|c| c.byte == b'/')
}

/// The offsets of an entry; of one without offsets its root. `end` is the place behind the last word.
fn parts(words: &[Word], end: Position) -> Result<Vec<Part>, Error> {
    let part = |at, offset| Part { at, offset, options: Vec::new(), locations: Vec::new() };
    let mut parts = Vec::new();
    if !words.first().is_some_and(is_offset) {
        // `key server:/a /b server:/b`: the root's "/" may be left out.
        parts.push(part(words.first().map_or(end, |word| word.at), PathBuf::new()));
    }
    for word in words {
        if is_offset(word) {
            parts.push(part(word.at, offset(word)?));
        } else if let Some(part) = parts.last_mut() {
            match word.starts(b'-') {
                true if part.locations.is_empty() => part.options.extend(options(word)),
                true => return Err(ErrorKind::OptionsAfterLocation(show(&word.bytes()).into()).at(word.at)),
                false => part.locations.push(word.clone()),
            }
        }
    }
    Ok(parts)
}

/// The options of a word that begins with a dash. Quotes around a comma are kept, as mount(8) needs them.
fn options(word: &Word) -> Vec<Vec<u8>> {
    let list = word.chars.get(1..).unwrap_or_default();
    list.split(|c| c.is(b',')).map(option_text).filter(|option| !option.is_empty()).collect()
}

/// One option. A comma that is quoted must stay quoted for those who read the options after us.
fn option_text(chars: &[Char]) -> Vec<u8> {
    let bytes: Vec<u8> = chars.iter().map(|c| c.byte).collect();
    if !bytes.contains(&b',') {
        return bytes;
    }
    let value = bytes.iter().position(|b| *b == b'=').map_or(0, |equals| equals + 1);
    [&bytes[..value], b"\"", &bytes[value..], b"\""].concat()
}

/// An offset as a relative path.
fn offset(word: &Word) -> Result<PathBuf, Error> {
    let bytes = word.bytes();
    let mut path = PathBuf::new();
    for component in bytes.split(|b| *b == b'/') {
        match component {
            b"" => {}
            b"." | b".." => return Err(ErrorKind::BadOffset(show(&bytes).into()).at(word.at)),
            _ => path.push(OsString::from_vec(component.to_vec())),
        }
    }
    Ok(path)
}

/// Options of one mount, automount's own words taken out.
struct Own {
    fstype: Vec<u8>,
    options: Vec<Vec<u8>>,
    /// Options that mean something to a submount only.
    submount: Vec<Vec<u8>>,
    definitions: Vec<Definition>,
    hosts: bool,
    strict: bool,
    bind: bool,
    symlink: bool,
    use_weight_only: bool,
}

impl Own {
    fn of(all: &[Vec<u8>], defaults: &Defaults) -> Self {
        let mut own = Self {
            fstype: b"nfs".to_vec(),
            options: Vec::new(),
            submount: Vec::new(),
            definitions: defaults.definitions.clone(),
            hosts: false,
            strict: defaults.strict,
            bind: defaults.bind,
            symlink: defaults.symlink,
            use_weight_only: defaults.use_weight_only,
        };
        for option in all {
            own.take(option);
        }
        own
    }

    fn take(&mut self, option: &[u8]) {
        let defined = option.strip_prefix(b"-D").or_else(|| option.strip_prefix(b"D")).and_then(definition);
        match option {
            b"strict" => self.strict = true,
            b"nonstrict" => self.strict = false,
            b"nobind" => self.bind = false,
            b"symlink" => self.symlink = true,
            b"nosymlink" => self.symlink = false,
            b"use-weight-only" => self.use_weight_only = true,
            b"no-use-weight-only" => self.use_weight_only = false,
            b"browse" | b"nobrowse" => self.submount.push(option.to_vec()),
            // The daemon waits for mounts in its own way: they must not go to the background.
            b"bg" | b"nofg" => {}
            b"hosts" => self.hosts = true,
            _ if option.starts_with(b"timeout=") => self.submount.push(option.to_vec()),
            _ if option.starts_with(b"fstype=") => self.fstype = option[b"fstype=".len()..].to_vec(),
            _ if defined.is_some() => self.definitions.extend(defined),
            _ => self.options.push(option.to_vec()),
        }
    }

    fn what(
        self,
        part: Part,
        context: &Context<'_>,
        alone: bool,
        warnings: &mut Vec<Warning>,
    ) -> Result<What, Error> {
        let at = part.at;
        if self.fstype == b"autofs" {
            return self.submount(part, at);
        }
        if part.locations.is_empty() {
            let shown = format!("/{}", part.offset.display());
            let kind = if alone { ErrorKind::NoLocation } else { ErrorKind::NoLocationAt(shown) };
            return Err(kind.at(at));
        }
        let fstype = String::from_utf8(self.fstype)
            .map_err(|bad| ErrorKind::BadType(show(bad.as_bytes()).into()).at(at))?;
        let locations = Locations {
            fstype,
            options: self.options,
            bind: self.bind,
            symlink: self.symlink && alone && !context.defaults.direct,
            use_weight_only: self.use_weight_only,
            slashify: context.defaults.slashify,
        };
        locations.resolve(&part.locations, context.machine, warnings)
    }

    fn submount(self, part: Part, at: Position) -> Result<What, Error> {
        let map = match part.locations.as_slice() {
            _ if self.hosts => b"-hosts".to_vec(),
            [] => return Err(ErrorKind::NoLocation.at(at)),
            [map] if map.starts(b':') => map.bytes().split_off(1),
            [map] => map.bytes(),
            maps => return Err(ErrorKind::ManyMaps(maps.len()).at(maps[1].at)),
        };
        let definitions = self.definitions.iter().map(define);
        let all = self.options.into_iter().chain(self.submount).chain(definitions);
        Ok(What::Submount { map: OsString::from_vec(map), options: super::options::join(all) })
    }
}

#[cfg(test)]
mod tests;
