//! An entry in amd format: locations of the form `SELECTOR;...;OPTION:=VALUE;...`.
//!
//! [`parse`] reads the text, [`select`] chooses locations, [`expand`] puts variables in, [`resolve`] says what the chosen
//! locations mount. Locations that were chosen are tried in order.

mod check;
mod expand;
mod parse;
mod place;
mod select;

use super::Resolved;
use super::local::Machine;
use super::master::MapName;
use super::options::split_bytes;
use super::sun::Defaults;
use super::text::{Char, Located, Position, Text, UnmatchedQuote, Warning};
use super::vars::Variables;
pub use check::check;
use expand::Values;
use parse::Location;
use std::cell::Cell;

/// What an entry is read with.
pub struct Context<'a> {
    /// The key that was asked for, without the prefix.
    pub key: &'a [u8],
    /// Where it will be: the mount point and the key.
    pub path: &'a [u8],
    /// The map.
    pub map: &'a MapName,
    /// For `${name}`.
    pub variables: Variables<'a>,
    /// Of the master-map entry.
    pub defaults: &'a Defaults,
    /// Of `autofs.conf`.
    pub settings: &'a Settings,
    /// For selectors.
    pub machine: &'a dyn Machine,
}

/// What `autofs.conf` says about amd maps, for one mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Make bind mounts for type `link` (`autofs_use_lofs`); else symbolic links.
    pub bind: bool,
    /// Collapse slashes (`normalize_slashes`).
    pub normalize_slashes: bool,
    /// Servers have their canonical names (`normalize_hostnames`).
    pub normalize_hostnames: bool,
    /// Servers of our own domain are named without it (`domain_strip`).
    pub domain_strip: bool,
    /// `/defaults` may have selectors (`selectors_in_defaults`).
    pub selectors_in_defaults: bool,
    /// Takes the place of `/defaults` (`map_defaults`).
    pub map_defaults: Option<String>,
    /// Type of maps of type `auto` (`map_type`).
    pub map_type: Option<String>,
    /// What type `ufs` is (`linux_ufs_mount_type`).
    pub ufs: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bind: true,
            normalize_slashes: true,
            normalize_hostnames: false,
            domain_strip: true,
            selectors_in_defaults: false,
            map_defaults: None,
            map_type: None,
            ufs: "ext3".into(),
        }
    }
}

/// An entry, or a location of it, that stands for nothing.
pub type Error = Located<ErrorKind>;

/// Why an entry stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// A quote is not closed.
    #[error("unmatched \"")]
    UnmatchedQuote,
    /// Neither a selector nor an option.
    #[error(
        "{0} is neither a selector (NAME==VALUE, NAME!=VALUE, NAME(ARGUMENT)) nor an option (NAME:=VALUE)"
    )]
    Part(String),
    /// No such option.
    #[error("unknown option {0}")]
    Option(String),
    /// No such selector.
    #[error("unknown selector {0}")]
    Selector(String),
    /// `${` without `}`.
    #[error("a variable that begins with ${{ has no }} at its end")]
    UnclosedVariable,
    /// Variables that need each other.
    #[error("option {0} needs its own value")]
    Circle(String),
    /// An option that the type needs.
    #[error("a location of type {fstype} needs the option {option}")]
    Missing {
        /// The type.
        fstype: String,
        /// The option.
        option: &'static str,
    },
    /// No type.
    #[error("the location has no type")]
    NoType,
    /// Type `host`, and nothing to be had there.
    #[error("{0} exports nothing, or does not say what")]
    NoExports(String),
    /// Type `host`, and exports that cannot be mounted.
    #[error("exports of {host}: {error}")]
    Exports {
        /// The server.
        host: String,
        /// What is wrong with them.
        error: super::sun::ErrorKind,
    },
    /// Not a type that can be served.
    #[error("locations of type {0} are not supported")]
    Type(String),
    /// A place that cannot be mounted on.
    #[error("fs:={0} is not an absolute path without . and ..")]
    Place(String),
    /// Type `linkx` and nothing there.
    #[error("{0} does not exist")]
    NoTarget(String),
    /// No location is for this machine.
    #[error("the selectors choose no location")]
    NothingSelected,
    /// Longer than automount takes.
    #[error("the entry has more than {max} bytes, or grows too much by its variables", max = super::text::ENTRY_MAX)]
    TooLong,
}

impl ErrorKind {
    fn at(self, at: Position) -> Error {
        Error { at, kind: self }
    }
}

impl From<UnmatchedQuote> for Error {
    fn from(quote: UnmatchedQuote) -> Self {
        ErrorKind::UnmatchedQuote.at(quote.0)
    }
}

/// What an entry stands for. `defaults` is the map's entry `/defaults`.
pub fn resolve(
    entry: &Text,
    defaults: Option<&Text>,
    context: &Context<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Resolved, Error> {
    if entry.bytes().len() > super::text::ENTRY_MAX {
        return Err(ErrorKind::TooLong.at(entry.position(0)));
    }
    let left = Cell::new(expand::BUDGET);
    let own = context.settings.map_defaults.as_ref().map(|text| Text::from(text.as_bytes()));
    let base = match own.as_ref().or(defaults) {
        Some(text) => base(text, context, &left)?,
        None => Vec::new(),
    };

    let mut failed = None;
    for group in parse::groups(entry, context.settings.normalize_slashes)? {
        let mut chosen = Vec::new();
        let mut common = Location::default();
        for location in group {
            if location.is_default {
                common.options.extend(location.options);
                continue;
            }
            let layers = [location.options.as_slice(), &common.options, &base];
            let values = Values::new(layers, context, &left);
            if select::all(&location.selectors, &values, context)? {
                chosen.push((location.at, place::resolve(location.at, &values, context, warnings)));
            }
        }
        // `-type:=link;fs:=/usr` alone: the defaults are all there is.
        if chosen.is_empty() && !common.options.is_empty() && failed.is_none() {
            let layers = [common.options.as_slice(), &base];
            let values = Values::new(layers, context, &left);
            let at = entry.position(0);
            chosen.push((at, place::resolve(at, &values, context, warnings)));
        }
        let any = !chosen.is_empty();
        let mut alternatives = None;
        for (at, resolved) in chosen.into_iter().rev() {
            match resolved {
                Ok(resolved) => {
                    alternatives = Some(Resolved { otherwise: alternatives.map(Box::new), ..resolved });
                }
                Err(error) => {
                    warnings.push(Warning::new(at, format!("the location is left out: {}", error.kind)));
                    failed = Some(error);
                }
            }
        }
        // Groups after `||` count only when nothing was chosen to the left.
        match alternatives {
            Some(resolved) => return Ok(resolved),
            None if any => break,
            None => {}
        }
    }
    Err(failed.unwrap_or_else(|| ErrorKind::NothingSelected.at(entry.position(0))))
}

/// The options of `/defaults`. Without `selectors_in_defaults` its selectors do not count.
fn base(text: &Text, context: &Context<'_>, left: &Cell<usize>) -> Result<Vec<(String, Vec<Char>)>, Error> {
    let locations: Vec<Location> =
        parse::groups(text, context.settings.normalize_slashes)?.into_iter().flatten().collect();
    for location in &locations {
        let values = Values::new([location.options.as_slice()], context, left);
        if !context.settings.selectors_in_defaults || select::all(&location.selectors, &values, context)? {
            return Ok(location.options.clone());
        }
    }
    Ok(Vec::new())
}

/// The keys under which a key is looked for: itself, then with its last components replaced by `*`.
pub fn candidates(key: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut end = Some(key.len());
    let mut exact = true;
    std::iter::from_fn(move || {
        let at = end?;
        if std::mem::take(&mut exact) {
            return Some(key.to_vec());
        }
        let slash = key[..at].iter().rposition(|b| *b == b'/');
        end = slash;
        Some(slash.map_or(b"*".to_vec(), |slash| [&key[..=slash], b"*"].concat()))
    })
}

/// Options with others added: those that the others contradict are left out.
fn merge(options: &[u8], added: &[u8]) -> Vec<Vec<u8>> {
    let added: Vec<Vec<u8>> = split_bytes(added).map(<[u8]>::to_vec).collect();
    let kept = split_bytes(options).filter(|option| !added.iter().any(|new| conflict(option, new)));
    kept.map(<[u8]>::to_vec).chain(added.iter().cloned()).collect()
}

fn conflict(a: &[u8], b: &[u8]) -> bool {
    const OPPOSITE: [[&[u8]; 2]; 3] = [[b"ro", b"rw"], [b"hard", b"soft"], [b"fg", b"bg"]];
    let name = |option: &[u8]| option.split(|b| *b == b'=').next().unwrap_or_default().to_vec();
    let positive = |name: Vec<u8>| match name.strip_prefix(b"no") {
        Some(rest) => rest.to_vec(),
        None => name,
    };
    let (a, b) = (name(a), name(b));
    a == b
        || OPPOSITE.iter().any(|pair| pair.contains(&a.as_slice()) && pair.contains(&b.as_slice()))
        || positive(a) == positive(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_to_look_for() {
        let all = |key: &[u8]| -> Vec<String> {
            candidates(key).map(|key| String::from_utf8(key).unwrap()).collect()
        };
        assert_eq!(all(b"a/b/c"), ["a/b/c", "a/b/*", "a/*", "*"]);
        assert_eq!(all(b"a"), ["a", "*"]);
    }

    #[test]
    fn options_are_merged() {
        let merged = |a: &[u8], b: &[u8]| String::from_utf8(merge(a, b).join(&b","[..])).unwrap();
        assert_eq!(merged(b"rw,hard", b"nosuid,soft"), "rw,nosuid,soft");
        assert_eq!(merged(b"suid,retry=1,ro", b"nosuid,retry=2"), "ro,nosuid,retry=2");
        assert_eq!(merged(b"", b"ro"), "ro");
    }
}
