//! A map in a file.
//!
//! The file's bytes are kept as they are, and an index of hashes says where each key stands: 12 bytes for each entry. A lookup
//! cuts its line out of the bytes anew, which costs less than to keep every entry as a string.

use super::{Pair, RawEntry, Source, SourceError};
use crate::engine::maps::master::{MapKind, MapName};
use crate::engine::maps::text::{ENTRY_MAX, KEY_MAX, Line, Lines, Position, Text, Warning, Words, show};
use crate::engine::maps::vars::Variables;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Includes deeper than this are left out.
const DEPTH_MAX: usize = 16;

/// What keys look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// One component: of an indirect map in sun format.
    Names,
    /// Absolute paths: of a direct map.
    Paths,
    /// Paths of any kind, `*` at their ends included: in amd format. The wildcard is a key like any other.
    Any,
}

/// A map in a file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    keys: Keys,
    read: RwLock<Arc<Contents>>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// A file as it was read.
#[derive(Debug)]
struct Contents {
    path: PathBuf,
    keys: Keys,
    stamp: Option<Stamp>,
    bytes: Vec<u8>,
    /// Sorted by hash, then by place in the file.
    index: Vec<Slot>,
    wildcard: Option<Slot>,
    /// What is included, with the place of the line.
    includes: Vec<(u32, Included)>,
    warnings: Vec<Warning>,
}

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    hash: u32,
    offset: u32,
    line: u32,
}

#[derive(Debug)]
enum Included {
    Contents(Arc<Contents>),
    /// It could not be read: looked for again when the file is read again.
    Missing(PathBuf),
}

fn hash(key: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() as u32
}

/// What a line of a map says.
enum Meaning {
    Entry(Vec<u8>, Text),
    Wildcard(Text),
    Include(MapName),
}

/// Key and entry of a line; a warning when it has none.
fn meaning(line: &Line, keys: Keys) -> Result<Meaning, Warning> {
    let at = line.text.position(0);
    let warn = |at, message: String| Err(Warning::new(at, message));
    let mut words = Words::new(&line.text);
    let key = match words.next() {
        Some(Ok(key)) => key,
        Some(Err(quote)) => return warn(quote.0, format!("{quote}: the line is left out")),
        None => return warn(at, "the line has no key".into()),
    };
    let bytes = key.bytes();
    if key.starts(b'+') {
        let name = MapName::parse(&bytes[1..]);
        return name.map(Meaning::Include).map_err(|error| Warning::new(at, error.to_string()));
    }
    let entry = words.remaining();
    let shown = show(&bytes);
    if entry.bytes().is_empty() || entry.bytes()[0] == b'#' {
        return warn(at, format!("key {shown} has no entry"));
    }
    if bytes.len() > KEY_MAX {
        return warn(at, format!("the key has {} bytes; {KEY_MAX} are the most", bytes.len()));
    }
    if entry.bytes().len() > ENTRY_MAX {
        return warn(
            at,
            format!("the entry of key {shown} has {} bytes; {ENTRY_MAX} are the most", entry.bytes().len()),
        );
    }
    if entry.bytes().contains(&b'"')
        && let Some(Err(quote)) = Words::new(&entry).find(Result::is_err)
    {
        return warn(quote.0, format!("{quote}: key {shown} is left out"));
    }
    if key.starts(b'*') && keys != Keys::Any {
        return match (bytes.as_slice(), keys) {
            (b"*", Keys::Names) => Ok(Meaning::Wildcard(entry)),
            (b"*", _) => warn(at, "a direct map has no wildcard".into()),
            _ => {
                warn(at, format!("{shown} is neither a key nor the wildcard; write \\* for a star in a key"))
            }
        };
    }
    match keys {
        Keys::Paths if bytes.first() != Some(&b'/') => {
            warn(at, format!("key {shown} of a direct map is not an absolute path"))
        }
        Keys::Names if bytes.contains(&b'/') => {
            warn(at, format!("key {shown} of an indirect map has a slash"))
        }
        Keys::Paths => Ok(Meaning::Entry(without_slash(bytes), entry)),
        _ => Ok(Meaning::Entry(bytes, entry)),
    }
}

/// A slash at the end of a direct key means nothing.
fn without_slash(mut key: Vec<u8>) -> Vec<u8> {
    while key.len() > 1 && key.ends_with(b"/") {
        key.pop();
    }
    key
}

impl Contents {
    /// Read a file. `above` are the files that include it.
    fn read(path: &Path, keys: Keys, above: &mut Vec<PathBuf>) -> Result<Self, SourceError> {
        // The stamp comes first: a change in between is seen as one later.
        let stamp = Stamp::of(path);
        let bytes = std::fs::read(path).map_err(SourceError::read(path))?;
        let mut contents = Self {
            path: path.to_owned(),
            keys,
            stamp,
            bytes: Vec::new(),
            index: Vec::new(),
            wildcard: None,
            includes: Vec::new(),
            warnings: Vec::new(),
        };
        above.push(path.to_owned());
        for line in Lines::new(&bytes) {
            contents.add(&line, above);
        }
        above.pop();
        contents.index.sort_unstable();
        contents.index.shrink_to_fit();
        contents.bytes = bytes;
        contents.warn_of_duplicates();
        Ok(contents)
    }

    fn warn_of_duplicates(&mut self) {
        let mut found = Vec::new();
        for same in self.index.chunk_by(|a, b| a.hash == b.hash).filter(|same| same.len() > 1) {
            let mut keys = HashSet::new();
            for line in same.iter().filter_map(|slot| self.line(*slot)) {
                if let Ok(Meaning::Entry(key, _)) = meaning(&line, self.keys)
                    && !keys.insert(key.clone())
                {
                    let text = format!("key {} is there already: the first entry counts", show(&key));
                    found.push(Warning::new(line.text.position(0), text));
                }
            }
        }
        self.warnings.extend(found);
        self.warnings.sort_by_key(|warning| warning.at);
    }

    fn add(&mut self, line: &Line, above: &mut Vec<PathBuf>) {
        let at = line.text.position(0);
        let Ok(offset) = u32::try_from(line.offset) else {
            return self.warnings.push(Warning::new(at, "lines after 4 GiB are left out"));
        };
        if line.indented {
            let text = "the line is indented: automount ignores it, and the entry before it as well";
            self.warnings.push(Warning::new(at, text));
        }
        match meaning(line, self.keys) {
            Err(warning) => self.warnings.push(warning),
            Ok(Meaning::Wildcard(_)) => {
                self.wildcard.get_or_insert(Slot { hash: 0, offset, line: line.line });
            }
            Ok(Meaning::Entry(key, _)) => self.index.push(Slot { hash: hash(&key), offset, line: line.line }),
            Ok(Meaning::Include(name)) => match self.include(&name, above) {
                Ok(included) => self.includes.push((offset, included)),
                Err(message) => self.warnings.push(Warning::new(at, message)),
            },
        }
    }

    fn include(&self, name: &MapName, above: &mut Vec<PathBuf>) -> Result<Included, String> {
        let path = match name.kind {
            MapKind::Path | MapKind::File => PathBuf::from(&name.name),
            MapKind::Named => self.path.parent().unwrap_or(Path::new("/etc")).join(&name.name),
            _ => return Err(format!("+{name} is left out: only files can be included")),
        };
        if above.len() >= DEPTH_MAX {
            return Err(format!("+{name} is left out: includes are {DEPTH_MAX} deep"));
        }
        if above.contains(&path) {
            return Err(format!("+{name} is left out: the file includes itself"));
        }
        Ok(match Self::read(&path, self.keys, above) {
            Ok(contents) => Included::Contents(Arc::new(contents)),
            Err(_) => Included::Missing(path),
        })
    }

    fn fresh(&self) -> bool {
        self.stamp.is_some()
            && self.stamp == Stamp::of(&self.path)
            && self.includes.iter().all(|(_, included)| match included {
                Included::Contents(contents) => contents.fresh(),
                Included::Missing(path) => !path.exists(),
            })
    }

    fn line(&self, slot: Slot) -> Option<Line> {
        Lines::from(&self.bytes, slot.offset as usize, slot.line).next()
    }

    /// What a key stands for. A map that is included is asked at its place, and answers with its wildcard, too; the file's
    /// own wildcard comes last.
    fn find(&self, key: &[u8]) -> Option<RawEntry> {
        let (limit, own) = match self.exact(key) {
            Some((offset, text)) => (offset, Some(text)),
            None => (u32::MAX, None),
        };
        let before = self.contents().take_while(|(offset, _)| *offset < limit);
        let included = before.map(|(_, contents)| contents).find_map(|contents| contents.find(key));
        included.or_else(|| own.or_else(|| self.wildcard()).map(|text| self.entry(text)))
    }

    /// The first line with a key, and where it is.
    fn exact(&self, key: &[u8]) -> Option<(u32, Text)> {
        let hash = hash(key);
        let start = self.index.partition_point(|slot| slot.hash < hash);
        let same = self.index[start..].iter().take_while(|slot| slot.hash == hash);
        let mut found = same.filter_map(|slot| match meaning(&self.line(*slot)?, self.keys) {
            Ok(Meaning::Entry(found, text)) if found == key => Some((slot.offset, text)),
            _ => None,
        });
        found.next()
    }

    fn wildcard(&self) -> Option<Text> {
        match meaning(&self.line(self.wildcard?)?, self.keys) {
            Ok(Meaning::Wildcard(text)) => Some(text),
            _ => None,
        }
    }

    fn contents(&self) -> impl Iterator<Item = (u32, &Self)> {
        self.includes.iter().filter_map(|(offset, included)| match included {
            Included::Contents(contents) => Some((*offset, contents.as_ref())),
            Included::Missing(_) => None,
        })
    }

    fn entry(&self, text: Text) -> RawEntry {
        RawEntry { text, origin: self.path.clone() }
    }

    /// All entries in the order of the text.
    fn list(&self, seen: &mut HashSet<Vec<u8>>, pairs: &mut Vec<Pair>) {
        let mut includes = self.contents().peekable();
        for line in Lines::new(&self.bytes) {
            while let Some((_, contents)) = includes.next_if(|(offset, _)| (*offset as usize) < line.offset) {
                contents.list(seen, pairs);
            }
            let (key, text) = match meaning(&line, self.keys) {
                Ok(Meaning::Entry(key, text)) => (key, text),
                Ok(Meaning::Wildcard(text)) => (b"*".to_vec(), text),
                _ => continue,
            };
            if seen.insert(key.clone()) {
                pairs.push((key, self.entry(text)));
            }
        }
        includes.for_each(|(_, contents)| contents.list(seen, pairs));
    }

    fn warnings(&self, all: &mut Vec<(PathBuf, Warning)>) {
        all.extend(self.warnings.iter().map(|warning| (self.path.clone(), warning.clone())));
        for (offset, included) in &self.includes {
            match included {
                Included::Contents(contents) => contents.warnings(all),
                Included::Missing(path) => {
                    let line = self.bytes[..*offset as usize].iter().filter(|b| **b == b'\n').count();
                    let at = Position { line: line as u32 + 1, column: 1 };
                    let text = format!("included map {} cannot be read", path.display());
                    all.push((self.path.clone(), Warning::new(at, text)));
                }
            }
        }
    }
}

impl FileSource {
    /// Read a file.
    pub fn open(path: &Path, keys: Keys) -> Result<Self, SourceError> {
        let contents = Contents::read(path, keys, &mut Vec::new())?;
        Ok(Self { path: path.to_owned(), keys, read: RwLock::new(Arc::new(contents)) })
    }

    fn contents(&self) -> Arc<Contents> {
        self.read.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source for FileSource {
    fn lookup(&self, key: &[u8], _: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        // The keys of a direct map are triggers: they change when the map is read again as a whole.
        if self.keys != Keys::Paths {
            self.refresh()?;
        }
        Ok(self.contents().find(key))
    }

    fn entries(&self) -> Result<Option<Vec<Pair>>, SourceError> {
        self.refresh()?;
        let mut pairs = Vec::new();
        self.contents().list(&mut HashSet::new(), &mut pairs);
        Ok(Some(pairs))
    }

    fn fresh(&self) -> bool {
        self.contents().fresh()
    }

    fn refresh(&self) -> Result<(), SourceError> {
        if !self.fresh() {
            let contents = Contents::read(&self.path, self.keys, &mut Vec::new())?;
            *self.read.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(contents);
        }
        Ok(())
    }

    fn warnings(&self) -> Vec<(PathBuf, Warning)> {
        let mut all = Vec::new();
        self.contents().warnings(&mut all);
        all
    }
}
