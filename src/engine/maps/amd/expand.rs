//! Values of options, with variables put in.

use super::super::text::{Char, show};
use super::{Context, Error, ErrorKind};
use crate::engine::maps::text::{ENTRY_MAX, Position};
use std::borrow::Cow;
use std::cell::Cell;
use std::os::unix::ffi::OsStrExt;

/// How deep variables may stand in values of variables.
const DEPTH_MAX: usize = 16;
/// How many variables may be put in for one entry, and how many bytes by them: options that name each other many times would
/// grow without end.
pub(super) const BUDGET: usize = 16 * ENTRY_MAX;

/// Takes a part of a value; `None`: it has none.
type Part = fn(&[u8]) -> Option<&[u8]>;

/// The options of a location and of what stands behind it.
pub(super) struct Values<'a> {
    /// The first layer that has an option counts.
    layers: Vec<&'a [(String, Vec<Char>)]>,
    context: &'a Context<'a>,
    /// What is left of [`BUDGET`].
    left: &'a Cell<usize>,
}

impl<'a> Values<'a> {
    pub(super) fn new<const N: usize>(
        layers: [&'a [(String, Vec<Char>)]; N],
        context: &'a Context<'a>,
        left: &'a Cell<usize>,
    ) -> Self {
        Self { layers: layers.to_vec(), context, left }
    }

    fn raw(&self, name: &str) -> Option<&'a [Char]> {
        self.layers.iter().find_map(|layer| {
            layer.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|value| !value.is_empty())
    }

    /// The value of an option; empty when it has none. Of `rhost` that is this host, of `rfs` the path of the key.
    pub(super) fn option(&self, name: &str, at: Position) -> Result<Vec<u8>, Error> {
        self.option_at(name, at, 0)
    }

    fn option_at(&self, name: &str, at: Position, depth: usize) -> Result<Vec<u8>, Error> {
        match self.raw(name).filter(|raw| !raw.is_empty()) {
            // Commands cannot be written without quotes, which do not stand in the way of variables here.
            Some(raw) if matches!(name, "mount" | "unmount" | "umount") => {
                let raw: Vec<Char> = raw.iter().map(|c| Char { literal: false, ..*c }).collect();
                Ok(self.expand_chars(&raw, at, depth)?.iter().map(|c| c.byte).collect())
            }
            Some(raw) => {
                let value = self.expand_chars(raw, at, depth)?.iter().map(|c| c.byte).collect();
                Ok(if name == "rhost" { self.without_domain(self.normal(value)) } else { value })
            }
            None => Ok(match name {
                "rhost" => self.context.variables.get(b"host").unwrap_or_default().into_owned(),
                "rfs" => self.context.path.to_vec(),
                _ => Vec::new(),
            }),
        }
    }

    /// A host by its canonical name, where that is wanted and known.
    fn normal(&self, host: Vec<u8>) -> Vec<u8> {
        let wanted = self.context.settings.normalize_hostnames;
        let name = wanted.then(|| self.context.machine.canonical(&show(&host))).flatten();
        name.map_or(host, String::into_bytes)
    }

    /// A host of our own domain without it.
    fn without_domain(&self, mut host: Vec<u8>) -> Vec<u8> {
        let domain = self.context.variables.get(b"domain").unwrap_or_default();
        let dot = host.iter().position(|b| *b == b'.');
        if let Some(dot) = dot.filter(|_| self.context.settings.domain_strip && !domain.is_empty())
            && host[dot + 1..].eq_ignore_ascii_case(&domain)
        {
            host.truncate(dot);
        }
        host
    }

    /// Text with variables put in.
    pub(super) fn expand(&self, value: &[Char], at: Position) -> Result<Vec<u8>, Error> {
        Ok(self.expand_chars(value, at, 0)?.iter().map(|c| c.byte).collect())
    }

    fn expand_chars(&self, value: &[Char], at: Position, depth: usize) -> Result<Vec<Char>, Error> {
        let mut out = Vec::new();
        let mut rest = value;
        while let Some((first, tail)) = rest.split_first() {
            if !(first.is(b'$') && tail.first().is_some_and(|c| c.is(b'{'))) {
                out.push(*first);
                rest = tail;
                continue;
            }
            let end = tail.iter().position(|c| c.byte == b'}');
            let end = end.ok_or_else(|| ErrorKind::UnclosedVariable.at(at))?;
            let name: Vec<u8> = tail[1..end].iter().map(|c| c.byte).collect();
            match self.variable(&name, at, depth)? {
                Some(value) => out.extend(value.iter().map(|byte| Char { byte: *byte, literal: false })),
                // As it is written: that is what automount makes of variables it does not know.
                None => out.extend_from_slice(&rest[..end + 2]),
            }
            rest = &tail[end + 1..];
        }
        Ok(out)
    }

    /// `${name}`, or a part of it: `${/name}`, `${name/}` of a path, `${.name}`, `${name.}` of a host.
    fn variable(&self, name: &[u8], at: Position, depth: usize) -> Result<Option<Vec<u8>>, Error> {
        let (name, part): (&[u8], Part) = match name {
            [b'/', name @ ..] => (name, |path| path.rsplit(|b| *b == b'/').next()),
            [name @ .., b'/'] => {
                (name, |path| path.iter().rposition(|b| *b == b'/').map(|slash| &path[..slash]))
            }
            [b'.', name @ ..] => {
                (name, |host| host.iter().position(|b| *b == b'.').map(|dot| &host[dot + 1..]))
            }
            [name @ .., b'.'] => (name, |host| host.split(|b| *b == b'.').next()),
            name => (name, |value| Some(value)),
        };
        let value = self.value(name, at, depth)?;
        let cost = 1 + value.as_ref().map_or(0, Vec::len);
        self.left.set(self.left.get().checked_sub(cost).ok_or_else(|| ErrorKind::TooLong.at(at))?);
        Ok(value.map(|value| part(&value).unwrap_or_default().to_vec()))
    }

    fn value(&self, name: &[u8], at: Position, depth: usize) -> Result<Option<Vec<u8>>, Error> {
        if depth > DEPTH_MAX {
            return Err(ErrorKind::Circle(show(name).into()).at(at));
        }
        match name {
            b"fs" | b"dev" | b"opts" | b"sublink" | b"pref" | b"type" => {
                let name = show(name).into_owned();
                if self.has(&name) { self.option_at(&name, at, depth + 1).map(Some) } else { Ok(None) }
            }
            b"rhost" | b"rfs" => self.option_at(&show(name), at, depth + 1).map(Some),
            _ => Ok(self.builtin(name).map(Cow::into_owned)),
        }
    }

    /// What does not depend on the location.
    pub(super) fn builtin(&self, name: &[u8]) -> Option<Cow<'a, [u8]>> {
        match name {
            b"key" => Some(Cow::Borrowed(self.context.key)),
            b"path" => Some(Cow::Borrowed(self.context.path)),
            b"map" => Some(Cow::Borrowed(self.context.map.name.as_bytes())),
            _ => self.context.variables.get(name),
        }
    }
}
