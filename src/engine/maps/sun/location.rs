//! Locations: `HOST:/PATH`, `HOST1,HOST2(WEIGHT):/PATH`, `:/LOCAL`, or a bare name.

use super::super::local::Machine;
use super::super::options::{for_bind, join};
use super::super::text::{Char, Warning, Word, show};
use super::super::{Replica, What};
use super::{Error, ErrorKind};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// How to read the locations of one mount.
pub(super) struct Locations {
    pub fstype: String,
    pub options: Vec<Vec<u8>>,
    pub bind: bool,
    pub symlink: bool,
    pub use_weight_only: bool,
    pub slashify: bool,
}

impl Locations {
    /// What the locations stand for; there is at least one.
    pub(super) fn resolve(
        self,
        words: &[Word],
        machine: &dyn Machine,
        warnings: &mut Vec<Warning>,
    ) -> Result<What, Error> {
        let is_nfs = matches!(self.fstype.as_str(), "nfs" | "nfs4");
        let words = if is_nfs { words.to_vec() } else { join_words(words, warnings) };
        let words: Vec<Word> = words.iter().map(|word| self.slashify(word)).collect();
        for word in &words {
            validate(word, words.len() > 1)?;
        }
        let mut options = join(&self.options);
        let mut fstype = self.fstype;
        let mut sources = Vec::new();
        if is_nfs {
            for word in &words {
                sources.extend(replicas(word)?);
            }
            // A path without a host is on this machine, and there is nothing nearer.
            if let Some(here) = sources.iter().find(|source| source.host.is_none()) {
                if !self.bind {
                    return Err(ErrorKind::NoColon(here.source.to_string_lossy().into()).at(words[0].at));
                }
                sources = vec![Replica { local: None, ..here.clone() }];
                fstype = "bind".into();
                options = for_bind(&options);
                if !options.is_empty() {
                    let text = format!("automount binds it without the options {}", options.display());
                    warnings.push(Warning::differs(words[0].at, text));
                }
            }
            for source in &mut sources {
                if source.host.as_deref().is_some_and(|host| !self.bind || !machine.is_local(host)) {
                    source.local = None;
                }
            }
        } else {
            if let Some(second) = words.get(1) {
                let text = "automount gives all locations to mount(8) as one word";
                warnings.push(Warning::differs(second.at, text));
            }
            sources.extend(words.iter().map(|word| Replica::plain(without_colon(word))));
        }
        if self.symlink {
            let here = sources.iter().find_map(|source| source.local.clone());
            let bound =
                sources.first().filter(|_| fstype == "bind").map(|first| PathBuf::from(&first.source));
            if let Some(target) = here.or(bound) {
                return Ok(What::Symlink(target));
            }
        }
        // The whole of AFS is mounted somewhere already.
        if fstype == "afs" {
            let target = sources.pop().map(|source| PathBuf::from(source.source)).unwrap_or_default();
            return Ok(What::Symlink(target));
        }
        Ok(What::Mount { fstype, options, sources, use_weight_only: self.use_weight_only })
    }

    /// Colons after the first `:/` become slashes.
    fn slashify(&self, word: &Word) -> Word {
        let mut word = word.clone();
        let mut seen = !self.slashify;
        if seen {
            return word;
        }
        for i in 0..word.chars.len() {
            if !word.chars[i].is(b':') {
                continue;
            }
            if seen {
                word.chars[i].byte = b'/';
            }
            seen |= word.chars.get(i + 1).is_some_and(|next| next.byte == b'/');
        }
        word
    }
}

/// `://server/two words` is one location, though its blank should be quoted: words without a colon belong to the one before.
fn join_words(words: &[Word], warnings: &mut Vec<Warning>) -> Vec<Word> {
    let mut joined: Vec<Word> = Vec::new();
    for word in words {
        match joined.last_mut().filter(|_| !word.chars.iter().any(|c| c.is(b':'))) {
            Some(last) => {
                warnings.push(Warning::new(word.at, "a blank in a location: put it in quotes"));
                last.chars.push(Char { byte: b' ', literal: true });
                last.chars.extend(&word.chars);
            }
            None => joined.push(word.clone()),
        }
    }
    joined
}

/// A location of a file system that is not NFS: the colon in front only says that it is no offset.
fn without_colon(word: &Word) -> OsString {
    let mut bytes = word.bytes();
    OsString::from_vec(if word.starts(b':') { bytes.split_off(1) } else { bytes })
}

/// Where the path begins: behind the first `:/`.
fn colon(chars: &[Char]) -> Option<usize> {
    chars.windows(2).position(|pair| pair[0].byte == b':' && pair[1].byte == b'/')
}

fn validate(word: &Word, several: bool) -> Result<(), Error> {
    let bytes = word.bytes();
    let fail = |kind: ErrorKind| Err(kind.at(word.at));
    if word.starts(b':') {
        return Ok(());
    }
    let has_colon = word.chars.iter().any(|c| c.is(b':'));
    match colon(&word.chars) {
        Some(end) => {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || !b.is_ascii() || b"-_.,()[]%:#@/".contains(&b);
            match bytes[..end].iter().find(|b| !allowed(**b)) {
                Some(byte) => fail(ErrorKind::InvalidCharacter(char::from(*byte), show(&bytes).into())),
                None => Ok(()),
            }
        }
        None if several => fail(ErrorKind::InvalidCharacter(' ', show(&bytes).into())),
        None if has_colon => fail(ErrorKind::NoColon(show(&bytes).into())),
        // One word without a colon: its file system knows what it is.
        None => Ok(()),
    }
}

/// The servers of an NFS location.
fn replicas(word: &Word) -> Result<Vec<Replica>, Error> {
    let bytes = word.bytes();
    let end =
        if word.starts(b':') { bytes.get(1).filter(|b| **b == b'/').map(|_| 0) } else { colon(&word.chars) };
    let Some(end) = end else {
        return Err(ErrorKind::NoColon(show(&bytes).into()).at(word.at));
    };
    let path = &bytes[end + 1..];
    let local = PathBuf::from(OsString::from_vec(path.to_vec()));
    if end == 0 {
        let source = local.clone().into_os_string();
        return Ok(vec![Replica { host: None, weight: 0, source, local: Some(local) }]);
    }
    let mut all = Vec::new();
    for part in bytes[..end].split(|b| *b == b',').filter(|part| !part.is_empty()) {
        let bad = || ErrorKind::BadWeight(show(part).into()).at(word.at);
        let text = std::str::from_utf8(part).map_err(|_| bad())?;
        let (host, weight) = match text.split_once('(') {
            None => (text, 0),
            Some((host, rest)) => {
                let number = rest.strip_suffix(')').and_then(|number| number.parse().ok());
                (host, number.ok_or_else(bad)?)
            }
        };
        if host.is_empty() || host.contains(')') {
            return Err(bad());
        }
        let source = OsString::from_vec([host.as_bytes(), b":", path].concat());
        all.push(Replica { host: Some(host.to_owned()), weight, source, local: Some(local.clone()) });
    }
    if all.is_empty() {
        return Err(ErrorKind::NoColon(show(&bytes).into()).at(word.at));
    }
    Ok(all)
}
