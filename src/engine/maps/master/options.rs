//! Options of a master-map entry.

use super::super::options::split_bytes;
use super::super::text::{Position, Text, Warning, is_blank, show};
use super::super::vars::{Definition, definition};
use super::{Failed, LineError};
use std::time::Duration;

/// How a map is served. `None`: the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapOptions {
    /// Options of every mount, in order, no empty ones.
    pub mount: Vec<Vec<u8>>,
    /// `-D`.
    pub definitions: Vec<Definition>,
    /// Idle time after which a mount is taken away; zero: never.
    pub timeout: Option<Duration>,
    /// How long a failed lookup is answered from memory.
    pub negative_timeout: Option<Duration>,
    /// Make the directories of all keys beforehand.
    pub browse: Option<bool>,
    /// Mount file systems of this machine over the network, too.
    pub nobind: bool,
    /// Symbolic links instead of bind mounts.
    pub symlink: bool,
    /// Path walks do not count as use.
    pub strict_expire: bool,
    /// Propagation of bind mounts.
    pub propagation: Propagation,
    /// Permissions of the mount point.
    pub mode: Option<u32>,
    /// Choose replicas at random.
    pub random_replica: bool,
    /// Choose replicas by weight alone.
    pub use_weight_only: bool,
    /// One mount of a multi-mount that fails makes all fail.
    pub strict: bool,
    /// What stands before each key in an amd map (`--prefix`, not known to automount).
    pub prefix: Vec<u8>,
    /// Leave colons in locations alone.
    pub keep_colons: bool,
    /// Log more about this map.
    pub verbose: bool,
    /// Log everything about this map.
    pub debug: bool,
}

/// Propagation of bind mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Mounts of other namespaces come in, ours do not go out.
    #[default]
    Slave,
    /// Nothing comes in or goes out.
    Private,
    /// As the place where it is mounted.
    Shared,
}

/// An option that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nothing between two commas.
    #[error("there is an empty option; options are separated by one comma")]
    Empty,
    /// `--` without `multi`.
    #[error("-- separates the maps of a map of type multi")]
    Separator,
    /// The value is missing or wrong.
    #[error("option {0} needs a value: {1}")]
    Value(String, &'static str),
    /// A mount option that cannot be one.
    #[error("{0} is not a mount option")]
    Bogus(String),
}

/// Options that take a value, with the ways to write them. Those that begin with one dash may have the value attached.
const WITH_VALUE: &[(Valued, &[&str])] = &[
    (Valued::Timeout, &["--timeout", "-timeout", "timeout", "-t"]),
    (Valued::NegativeTimeout, &["--negative-timeout", "-negative-timeout", "negative-timeout", "-n"]),
    (Valued::Mode, &["--mode"]),
    (Valued::Prefix, &["--prefix"]),
    (Valued::Define, &["--define", "-D"]),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Valued {
    Timeout,
    NegativeTimeout,
    Mode,
    Prefix,
    Define,
}

/// An option that takes a value, and the value where it is attached.
fn valued(word: &[u8]) -> Option<(Valued, &'static str, Option<&[u8]>)> {
    for (what, spellings) in WITH_VALUE {
        for spelling in *spellings {
            let Some(rest) = word.strip_prefix(spelling.as_bytes()) else { continue };
            let attached = spelling.len() == 2 && !rest.is_empty();
            match rest {
                [b'=', value @ ..] => return Some((*what, spelling, Some(value))),
                // Without a dash only `timeout=N` is the option.
                b"" if spelling.starts_with('-') => return Some((*what, spelling, None)),
                _ if attached && (*what == Valued::Define || rest.iter().all(u8::is_ascii_digit)) => {
                    return Some((*what, spelling, Some(rest)));
                }
                _ => {}
            }
        }
    }
    None
}

impl MapOptions {
    /// The words after the map, with quotes as written; a `#` at the beginning of a word ends them.
    pub(super) fn words(text: &Text) -> Vec<(Vec<u8>, Position)> {
        let bytes = text.bytes();
        let mut words = Vec::new();
        let mut i = 0;
        while i < bytes.len() {
            if is_blank(bytes[i]) {
                i += 1;
                continue;
            }
            let (start, mut quoted, mut word) = (i, false, Vec::new());
            while i < bytes.len() && (quoted || !is_blank(bytes[i])) {
                quoted ^= bytes[i] == b'"';
                if bytes[i] == b'\\' && !quoted && i + 1 < bytes.len() {
                    i += 1;
                }
                word.push(bytes[i]);
                i += 1;
            }
            words.push((word, text.position(start)));
        }
        words
    }

    /// The options that words stand for.
    pub(super) fn parse(
        words: Vec<(Vec<u8>, Position)>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, Failed> {
        let mut options = Self::default();
        let mut words = words.into_iter();
        while let Some((word, at)) = words.next() {
            if word.starts_with(b"#") {
                warnings.push(Warning::differs(
                    at,
                    "the rest of the line is a comment here; automount reads it as mount options",
                ));
                break;
            }
            let fail = |error: OptionError| (at, LineError::from(error));
            if word == b"--" {
                return Err(fail(OptionError::Separator));
            }
            if word.starts_with(b",") || word.ends_with(b",") || word.windows(2).any(|pair| pair == b",,") {
                return Err(fail(OptionError::Empty));
            }
            let list: Vec<&[u8]> = split_bytes(&word).collect();
            for (i, option) in list.iter().enumerate() {
                if let Some(text) = unlike_automount(option) {
                    warnings.push(Warning::differs(at, text));
                }
                match valued(option) {
                    Some((what, name, Some(value))) => options.set(what, name, value).map_err(fail)?,
                    Some((what, name, None)) => {
                        let next = if i + 1 == list.len() { words.next() } else { None };
                        let value = next.map(|(value, _)| value).unwrap_or_default();
                        // `-D X=a,ro`: what follows a comma are options again.
                        let mut parts = split_bytes(&value);
                        options.set(what, name, parts.next().unwrap_or_default()).map_err(fail)?;
                        for part in parts {
                            options.take(part, at, warnings).map_err(fail)?;
                        }
                    }
                    None => options.take(option, at, warnings).map_err(fail)?,
                }
            }
        }
        Ok(options)
    }

    fn set(&mut self, what: Valued, name: &str, value: &[u8]) -> Result<(), OptionError> {
        let text = show(value);
        let seconds = || match text.parse() {
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
            Err(_) => Err(OptionError::Value(name.into(), "a number of seconds")),
        };
        match what {
            Valued::Timeout => self.timeout = seconds()?,
            Valued::NegativeTimeout => self.negative_timeout = seconds()?,
            Valued::Mode => match u32::from_str_radix(&text, 8) {
                Ok(mode) if mode <= 0o7777 => self.mode = Some(mode),
                _ => return Err(OptionError::Value(name.into(), "permissions as an octal number")),
            },
            Valued::Prefix => self.prefix = unquoted(value),
            Valued::Define => match definition(&unquoted(value)) {
                Some(defined) => self.definitions.push(defined),
                None => return Err(OptionError::Value(name.into(), "VARIABLE=VALUE")),
            },
        }
        Ok(())
    }

    fn take(&mut self, option: &[u8], at: Position, warnings: &mut Vec<Warning>) -> Result<(), OptionError> {
        let dashes = option.iter().take_while(|b| **b == b'-').count();
        let bare = &option[dashes.min(2)..];
        match bare {
            b"browse" | b"ghost" if dashes > 0 || bare == b"browse" => self.browse = Some(true),
            b"g" if dashes == 1 => self.browse = Some(true),
            b"nobrowse" => self.browse = Some(false),
            b"nobind" => self.nobind = true,
            b"symlink" => self.symlink = true,
            b"strictexpire" => self.strict_expire = true,
            b"slave" => self.propagation = Propagation::Slave,
            b"private" => self.propagation = Propagation::Private,
            b"shared" => self.propagation = Propagation::Shared,
            b"random-multimount-selection" => self.random_replica = true,
            b"r" if dashes == 1 => self.random_replica = true,
            b"use-weight-only" => self.use_weight_only = true,
            b"no-use-weight-only" => self.use_weight_only = false,
            b"w" if dashes == 1 => self.use_weight_only = true,
            b"strict" => self.strict = true,
            b"nonstrict" => self.strict = false,
            b"slashify-colons" if dashes == 2 => self.keep_colons = false,
            b"no-slashify-colons" if dashes == 2 => self.keep_colons = true,
            b"verbose" if dashes == 2 => self.verbose = true,
            b"v" if dashes == 1 => self.verbose = true,
            b"debug" if dashes == 2 => self.debug = true,
            b"d" if dashes == 1 => self.debug = true,
            [first, ..] if first.is_ascii_alphabetic() || *first == b'_' => {
                if dashes == 2 {
                    let name = show(option);
                    warnings.push(Warning::new(
                        at,
                        format!("{name} is no option of a map: it is read as a mount option"),
                    ));
                }
                self.mount.push(bare.to_vec());
            }
            _ => return Err(OptionError::Bogus(show(option).into())),
        }
        Ok(())
    }

    /// What a submount takes over from the map above it and says otherwise only where it wants to.
    pub fn inherit(&mut self, above: &Self) {
        self.timeout = self.timeout.or(above.timeout);
        self.negative_timeout = self.negative_timeout.or(above.negative_timeout);
        self.nobind |= above.nobind;
        self.symlink |= above.symlink;
        self.strict_expire |= above.strict_expire;
        self.propagation = above.propagation;
        self.random_replica |= above.random_replica;
        self.use_weight_only |= above.use_weight_only;
        self.strict |= above.strict;
        self.keep_colons |= above.keep_colons;
        self.verbose |= above.verbose;
        self.debug |= above.debug;
    }
}

/// What automount makes of an option that it reads otherwise.
fn unlike_automount(option: &[u8]) -> Option<&'static str> {
    match option {
        b"random-multimount-selection" | b"use-weight-only" | b"no-use-weight-only" => {
            Some("automount takes this for a mount option; with two dashes both read it alike")
        }
        _ if option.starts_with(b"timeout=") => {
            Some("automount does not read this as the timeout of the map; --timeout= both do")
        }
        _ if option.starts_with(b"-") => None,
        _ if option.contains(&b'/') && !option.contains(&b'"') => {
            Some("automount rejects a line with a slash in an option, and mis-reads those after it")
        }
        _ => None,
    }
}

fn unquoted(value: &[u8]) -> Vec<u8> {
    value.iter().copied().filter(|b| *b != b'"').collect()
}
