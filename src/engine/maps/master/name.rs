//! Names of maps: `/etc/auto.home`, `program:/etc/auto.sh`, `file,amd:/etc/amd.map`, `-hosts`, `auto.home` ...

use super::super::text::{Position, Text, Warning, show};
use super::options::MapOptions;
use super::{Failed, LineError};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Which map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapName {
    /// Its type.
    pub kind: MapKind,
    /// How its entries are written; `None`: as usual for the type.
    pub format: Option<Format>,
    /// Path, name or address, without the type.
    pub name: OsString,
}

/// Types of maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// A path without a type: a file, or a program when it can be executed.
    Path,
    /// A name without a type: the name service switch says where it is.
    Named,
    /// A file.
    File,
    /// A program that is run for each key.
    Program,
    /// Several maps, asked in this order.
    Multi(Vec<MapName>),
    /// A directory of `*.autofs` files; only to be included into the master map.
    Dir,
    /// The exports of the host that is the key.
    Hosts,
    /// No map: hides later entries.
    Null,
    /// NIS.
    Yp,
    /// NIS+.
    Nisplus,
    /// LDAP; `ldaps` with TLS.
    Ldap,
    /// LDAP with TLS.
    Ldaps,
    /// Hesiod.
    Hesiod,
    /// SSSD.
    Sss,
    /// Links to home directories.
    Userdir,
}

/// How entries are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Of Sun's automounter: the default.
    Sun,
    /// Of amd.
    Amd,
    /// Of hesiod.
    Hesiod,
}

/// A map name that says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The type is unknown.
    #[error(
        "unknown map type {0}; known are file, program, exec, multi, yp, nis, ldap, ldaps, sss, hesiod, hosts, userhome, dir"
    )]
    Type(String),
    /// The format is unknown.
    #[error("unknown map format {0}; known are sun, amd, hesiod")]
    Format(String),
    /// The name is missing.
    #[error("the map has no name")]
    Empty,
    /// Built in, but not known or not supported.
    #[error("there is no built-in map {0}; there are -hosts and -null")]
    Builtin(String),
    /// A file or program map is found by its path.
    #[error("map {0}: a map of type file, program or dir is named by its absolute path")]
    NotAbsolute(String),
}

const KINDS: &[(&str, MapKind)] = &[
    ("file", MapKind::File),
    ("files", MapKind::File),
    ("program", MapKind::Program),
    ("exec", MapKind::Program),
    ("dir", MapKind::Dir),
    ("yp", MapKind::Yp),
    ("nis", MapKind::Yp),
    ("nisplus", MapKind::Nisplus),
    ("ldap", MapKind::Ldap),
    ("ldaps", MapKind::Ldaps),
    ("hesiod", MapKind::Hesiod),
    ("sss", MapKind::Sss),
    ("hosts", MapKind::Hosts),
    ("userdir", MapKind::Userdir),
    ("userhome", MapKind::Userdir),
];

impl MapKind {
    /// Its name in a master map; `None` for those that are not written as `TYPE:NAME`.
    pub fn word(&self) -> Option<&'static str> {
        KINDS.iter().find(|(_, kind)| kind == self).map(|(word, _)| *word)
    }
}

impl Format {
    fn parse(word: &str) -> Result<Self, NameError> {
        match word {
            "sun" => Ok(Self::Sun),
            "amd" => Ok(Self::Amd),
            "hesiod" => Ok(Self::Hesiod),
            _ => Err(NameError::Format(word.into())),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Sun => "sun",
            Self::Amd => "amd",
            Self::Hesiod => "hesiod",
        }
    }
}

impl MapName {
    /// A file, whatever its mode says.
    pub fn file(path: impl Into<OsString>) -> Self {
        Self { kind: MapKind::File, format: None, name: path.into() }
    }

    /// One name without blanks; `multi` is for [`with_options`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        let untyped = |kind| Self { kind, format: None, name: OsString::from_vec(bytes.to_vec()) };
        match bytes {
            b"" => return Err(NameError::Empty),
            b"-hosts" => return Ok(untyped(MapKind::Hosts)),
            b"-null" => return Ok(untyped(MapKind::Null)),
            // `//server/dn` is an old way to write an LDAP map.
            [b'/', b'/', ..] => return Ok(untyped(MapKind::Ldap)),
            [b'/', ..] => return Ok(untyped(MapKind::Path)),
            [b'-', ..] => return Err(NameError::Builtin(show(bytes).into())),
            _ => {}
        }
        let Some(colon) = bytes.iter().position(|b| *b == b':') else {
            return Ok(untyped(MapKind::Named));
        };
        let prefix = show(&bytes[..colon]);
        let (word, format) = match prefix.split_once(',') {
            Some((word, format)) => (word, Some(Format::parse(format)?)),
            None => (prefix.as_ref(), None),
        };
        let kind = KINDS.iter().find(|(known, _)| *known == word).map(|(_, kind)| kind.clone());
        let kind = kind.ok_or_else(|| NameError::Type(word.into()))?;
        let name = &bytes[colon + 1..];
        let absolute = name.first() == Some(&b'/');
        match kind {
            _ if name.is_empty() => return Err(NameError::Empty),
            MapKind::Program | MapKind::Dir if !absolute => {
                return Err(NameError::NotAbsolute(show(bytes).into()));
            }
            _ => {}
        }
        Ok(Self { kind, format, name: OsString::from_vec(name.to_vec()) })
    }

    /// The format its entries are in.
    pub fn format(&self) -> Format {
        let usual = if self.kind == MapKind::Hesiod { Format::Hesiod } else { Format::Sun };
        self.format.unwrap_or(usual)
    }
}

/// As in a master map.
impl std::fmt::Display for MapName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let format = self.format.map_or(String::new(), |format| format!(",{}", format.word()));
        let name = show(self.name.as_bytes());
        match (&self.kind, self.kind.word()) {
            (MapKind::Multi(maps), _) => {
                write!(f, "multi{format}")?;
                for (i, map) in maps.iter().enumerate() {
                    write!(f, "{} {map}", if i > 0 { " --" } else { "" })?;
                }
                Ok(())
            }
            (MapKind::Path | MapKind::Named, _) | (_, None) => f.write_str(&name),
            // Others are written as `hosts:NAME`.
            (MapKind::Hosts, _) if name == "-hosts" && self.format.is_none() => f.write_str(&name),
            // `//server/dn`
            (MapKind::Ldap, _) if name.starts_with("//") && self.format.is_none() => f.write_str(&name),
            (_, Some(word)) => write!(f, "{word}{format}:{name}"),
        }
    }
}

/// A map, which begins at `at`, and what follows it on the line. For `multi` that are several maps between `--`, each with options;
/// the options of all count for the whole.
pub(super) fn with_options(
    first: &[u8],
    at: Position,
    rest: &Text,
    warnings: &mut Vec<Warning>,
) -> Result<(MapName, MapOptions), Failed> {
    let fail = |error: NameError| (at, LineError::from(error));
    let multi = match first.strip_prefix(b"multi") {
        Some(b"") => Some((None, None)),
        Some([b':', map @ ..]) => Some((None, Some(map))),
        Some([b',', tail @ ..]) => {
            let colon = tail.iter().position(|b| *b == b':').unwrap_or(tail.len());
            let format = Format::parse(&show(&tail[..colon])).map_err(fail)?;
            Some((Some(format), tail.get(colon + 1..)))
        }
        _ => None,
    };
    let words = MapOptions::words(rest);
    let Some((format, map)) = multi else {
        let name = MapName::parse(first).map_err(fail)?;
        return Ok((name, MapOptions::parse(words, warnings)?));
    };

    let map = map.filter(|map| !map.is_empty()).map(|map| (map.to_vec(), at));
    let words: Vec<(Vec<u8>, Position)> = map.into_iter().chain(words).collect();
    let mut maps = Vec::new();
    let mut options = Vec::new();
    for part in words.split(|(word, _)| word == b"--") {
        let Some(((name, at), own)) = part.split_first() else {
            return Err((at, NameError::Empty.into()));
        };
        let mut name = MapName::parse(name).map_err(|error| (*at, error.into()))?;
        name.format = name.format.or(format);
        maps.push(name);
        options.extend_from_slice(own);
    }
    let options = MapOptions::parse(options, warnings)?;
    let name = OsStr::from_bytes(first).to_owned();
    Ok((MapName { kind: MapKind::Multi(maps), format, name }, options))
}
