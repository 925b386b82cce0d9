//! Records of hesiod: `NFS /export server w /where`, `AFS /afs/cell/user r /where`, `ext4 /dev/sda1 w /where`, `ERR why`.
//!
//! They become entries in sun format. The mode is `r`, `w` or mount options; what follows it (where to mount it says the
//! key, and the preference counts before) does not count.

use super::text::{Located, Text, is_blank, show};
use std::ops::Range;

/// A record makes no sense.
pub type Error = Located<ErrorKind>;

/// Why a record makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// It is of type ERR.
    #[error("the record is an error: {0}")]
    Told(String),
    /// A word is missing.
    #[error("the record has no {0}; a record is TYPE PATH MODE WHERE, or NFS PATH HOST MODE WHERE")]
    Missing(&'static str),
    /// Of a server only an absolute path is exported.
    #[error("the path {0} of an NFS record is not absolute")]
    NotAbsolute(String),
}

/// The entry in sun format that a record stands for, with the places of its words.
pub fn entry(record: &Text<'_>) -> Result<Text<'static>, Error> {
    let bytes = record.bytes();
    let words = words(bytes);
    let word = |index: usize, name| {
        let missing = || Error { at: record.position(bytes.len()), kind: ErrorKind::Missing(name) };
        words.get(index).cloned().ok_or_else(missing)
    };
    let first = word(0, "type")?;
    let at = record.position(first.start);
    let fstype = bytes[first.clone()].to_ascii_lowercase();
    let (host, mode) = match fstype.as_slice() {
        b"err" => {
            let told = show(bytes[first.end..].trim_ascii()).into();
            return Err(Error { at, kind: ErrorKind::Told(told) });
        }
        b"nfs" => (Some(word(2, "host")?), word(3, "mode").ok()),
        _ => (None, word(2, "mode").ok()),
    };
    let mut entry = Text::default();
    entry.push(b"-fstype=", at);
    quoted(&mut entry, &Text::at(fstype, at), None);
    if let Some(mode) = mode {
        let at = record.position(mode.start);
        entry.push(b",", at);
        match &bytes[mode.clone()] {
            b"r" => entry.push(b"ro", at),
            b"w" => entry.push(b"rw", at),
            _ => quoted(&mut entry, record, Some(mode)),
        }
    }
    let path = word(1, "path")?;
    if host.is_some() && !bytes[path.clone()].starts_with(b"/") {
        let kind = ErrorKind::NotAbsolute(show(&bytes[path.clone()]).into());
        return Err(Located { at: record.position(path.start), kind });
    }
    entry.push(b" ", record.position(path.start));
    if let Some(host) = host {
        quoted(&mut entry, record, Some(host));
    }
    entry.push(b":", record.position(path.start));
    quoted(&mut entry, record, Some(path));
    Ok(entry.into_owned())
}

fn words(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    for (offset, _) in bytes.iter().enumerate().filter(|(_, byte)| !is_blank(**byte)) {
        match words.last_mut().filter(|word| word.end == offset) {
            Some(word) => word.end = offset + 1,
            None => words.push(offset..offset + 1),
        }
    }
    words
}

/// Add a part of a text, or all of it, so that nothing in it has a meaning.
fn quoted(entry: &mut Text<'_>, from: &Text<'_>, part: Option<Range<usize>>) {
    for offset in part.unwrap_or(0..from.bytes().len()) {
        if b"&$\\\"#:".contains(&from.bytes()[offset]) {
            entry.push(b"\\", from.position(offset));
        }
        entry.push_part(from, offset..offset + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::Position;
    use super::*;

    fn of(record: &str) -> String {
        match entry(&Text::from(record.as_bytes())) {
            Ok(entry) => String::from_utf8_lossy(entry.bytes()).into_owned(),
            Err(error) => format!("error {error}"),
        }
    }

    #[test]
    fn records_become_entries() {
        for (record, expected) in [
            ("NFS /u1/joe orange.mit.edu w /mit/joe 1", "-fstype=nfs,rw orange.mit.edu:/u1/joe"),
            ("  AFS /afs/athena.mit.edu/joe r /mit/joe", "-fstype=afs,ro :/afs/athena.mit.edu/joe"),
            ("ext4 /dev/sda1 nosuid,ro /x", "-fstype=ext4,nosuid,ro :/dev/sda1"),
            ("tmpfs none", "-fstype=tmpfs :none"),
            ("NFS /a$b/&\\ h w /x", "-fstype=nfs,rw h:/a\\$b/\\&\\\\"),
            ("NFS a h w /x", "error 1:5: the path a of an NFS record is not absolute"),
            ("ERR  no such user ", "error 1:1: the record is an error: no such user"),
            (
                "nfs /a",
                "error 1:7: the record has no host; a record is TYPE PATH MODE WHERE, or NFS PATH HOST MODE WHERE",
            ),
            (
                " ",
                "error 1:2: the record has no type; a record is TYPE PATH MODE WHERE, or NFS PATH HOST MODE WHERE",
            ),
            (
                "x",
                "error 1:2: the record has no path; a record is TYPE PATH MODE WHERE, or NFS PATH HOST MODE WHERE",
            ),
        ] {
            assert_eq!(of(record), expected, "{record}");
        }
    }

    #[test]
    fn words_keep_their_places() {
        let entry =
            entry(&Text::at(b"NFS /u1 orange w".as_slice(), Position { line: 3, column: 5 })).unwrap();
        let host = entry.bytes().iter().position(|byte| *byte == b'o').unwrap();
        assert_eq!(entry.position(host), Position { line: 3, column: 13 });
    }
}
