//! A map in a file.
//!
//! The file's bytes are kept as they are, and an index of hashes says where each key stands: 12 bytes for each entry. A lookup
//! cuts its line out of the bytes anew, which costs less than to keep every entry as a string.

use super::{DIRECTORY, RawEntry, Source, SourceError, read_file};
use crate::engine::maps::master::{MapKind, MapName};
use crate::engine::maps::open::Opener;
use crate::engine::maps::text::{ENTRY_MAX, KEY_MAX, Line, Lines, Position, Text, Warning, Words, show};
use crate::engine::maps::vars::Variables;
use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Includes deeper than this are left out.
const DEPTH_MAX: usize = 16;
/// More in one file, and in what it includes, are left out: files that include each other several times would never end.
const INCLUDES_MAX: usize = 1024;

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

impl Keys {
    /// A key as it is looked for, or why it cannot be one. The wildcard is not asked about.
    pub fn check(self, key: &[u8]) -> Result<Cow<'_, [u8]>, String> {
        let shown = || show(key);
        let dots = key.split(|b| *b == b'/').any(|part| part == b"." || part == b"..");
        match self {
            _ if key.is_empty() || dots => Err(format!("{} cannot be a key", shown())),
            _ if key.len() > KEY_MAX => {
                Err(format!("the key has {} bytes; {KEY_MAX} are the most", key.len()))
            }
            Self::Paths if key.first() != Some(&b'/') => {
                Err(format!("key {} of a direct map is not an absolute path", shown()))
            }
            Self::Names if key.contains(&b'/') => {
                Err(format!("key {} of an indirect map has a slash", shown()))
            }
            Self::Paths => Ok(without_slash(Cow::Borrowed(key))),
            _ => Ok(Cow::Borrowed(key)),
        }
    }
}

/// A map in a file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    keys: Keys,
    /// Files that include this one: they are not included again.
    above: Vec<PathBuf>,
    opener: Arc<Opener>,
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

/// Where reading is.
struct Above {
    /// The files that include this one, each the one after it.
    files: Vec<PathBuf>,
    /// How many more may be read.
    left: usize,
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

/// Keys of files before; `None`: there is one file only.
type Seen = Option<HashSet<Vec<u8>>>;

#[derive(Debug)]
enum Included {
    Contents(Arc<Contents>),
    /// Anything but a file.
    Source(Arc<dyn Source>),
    /// It could not be read: looked for again when the file is read again.
    Missing(PathBuf),
}

fn hash(key: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish() as u32
}

/// What a line of a map says.
enum Meaning<'a> {
    Entry(Cow<'a, [u8]>, Text<'a>),
    Wildcard(Text<'a>),
    Include(MapName),
}

/// Key and entry of a line; a warning when it has none.
fn meaning<'a>(line: &'a Line<'_>, keys: Keys) -> Result<Meaning<'a>, Warning> {
    let at = line.text.position(0);
    let warn = |at, message: String| Err(Warning::error(at, message));
    let mut words = Words::new(&line.text);
    // The first byte has a special meaning only where it is not quoted.
    let (bytes, first) = match words.plain() {
        Some(key) => (Cow::Borrowed(key), key.first().copied()),
        None => match words.next() {
            Some(Ok(key)) => {
                (Cow::Owned(key.bytes()), key.chars.first().filter(|c| !c.literal).map(|c| c.byte))
            }
            Some(Err(quote)) => return warn(quote.0, format!("{quote}: the line is left out")),
            None => return warn(at, "the line has no key".into()),
        },
    };
    if first == Some(b'+') {
        let name = MapName::parse(&bytes[1..]);
        return name.map(Meaning::Include).map_err(|error| Warning::error(at, error.to_string()));
    }
    let entry = words.remaining();
    let shown = || show(&bytes);
    if entry.bytes().is_empty() || entry.bytes()[0] == b'#' {
        return warn(at, format!("key {} has no entry", shown()));
    }
    if entry.bytes().len() > ENTRY_MAX {
        return warn(
            at,
            format!(
                "the entry of key {} has {} bytes; {ENTRY_MAX} are the most",
                shown(),
                entry.bytes().len()
            ),
        );
    }
    if entry.bytes().contains(&b'"')
        && let Some(Err(quote)) = Words::new(&entry).find(Result::is_err)
    {
        return warn(quote.0, format!("{quote}: key {} is left out", shown()));
    }
    if first == Some(b'*') && keys != Keys::Any {
        return match (bytes.as_ref(), keys) {
            (b"*", Keys::Names) => Ok(Meaning::Wildcard(entry)),
            (b"*", _) => warn(at, "a direct map has no wildcard".into()),
            _ => warn(
                at,
                format!("{} is neither a key nor the wildcard; write \\* for a star in a key", shown()),
            ),
        };
    }
    let clean = match keys.check(&bytes) {
        Ok(clean) if clean.len() == bytes.len() => None,
        Ok(clean) => Some(clean.into_owned()),
        Err(message) => return warn(at, message),
    };
    Ok(Meaning::Entry(clean.map_or(bytes, Cow::Owned), entry))
}

/// A slash at the end of a direct key means nothing.
fn without_slash(key: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    match key.iter().rposition(|b| *b != b'/') {
        Some(last) if last + 1 < key.len() => Cow::Owned(key[..=last].to_vec()),
        _ => key,
    }
}

impl Contents {
    /// Read a file. `above` are the files that include it, `old` is what was read before.
    fn read(
        path: &Path,
        keys: Keys,
        opener: &Opener,
        above: &mut Above,
        old: Option<&Self>,
    ) -> Result<Self, SourceError> {
        // The stamp comes first: a change in between is seen as one later.
        let stamp = Stamp::of(path);
        let bytes = read_file(path).map_err(SourceError::read(path))?;
        let mut contents = Self { stamp, ..Self::empty(path, keys) };
        if let Some(old) = old.filter(|old| old.bytes == bytes && old.includes.is_empty()) {
            // Written again, but not changed.
            contents.index.clone_from(&old.index);
            contents.warnings.clone_from(&old.warnings);
            contents.wildcard = old.wildcard;
            contents.bytes = bytes;
            return Ok(contents);
        }
        above.files.push(path.to_owned());
        for line in Lines::new(&bytes) {
            contents.add(&line, opener, above);
        }
        above.files.pop();
        contents.bytes = bytes;
        contents.index.sort_unstable();
        contents.drop_duplicates();
        contents.index.shrink_to_fit();
        Ok(contents)
    }

    fn empty(path: &Path, keys: Keys) -> Self {
        Self {
            path: path.to_owned(),
            keys,
            stamp: None,
            bytes: Vec::new(),
            index: Vec::new(),
            wildcard: None,
            includes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Only the first line of each key stays in the index.
    fn drop_duplicates(&mut self) {
        let mut dropped = Vec::new();
        for same in self.index.chunk_by(|a, b| a.hash == b.hash).filter(|same| same.len() > 1) {
            let mut keys = HashSet::new();
            for slot in same {
                let Some(line) = self.line(*slot) else { continue };
                if let Ok(Meaning::Entry(key, _)) = meaning(&line, self.keys)
                    && !keys.insert(key.to_vec())
                {
                    let text = format!("key {} is there already: the first entry counts", show(&key));
                    dropped.push((*slot, Warning::new(line.text.position(0), text)));
                }
            }
        }
        self.index.retain(|slot| dropped.binary_search_by_key(slot, |(slot, _)| *slot).is_err());
        self.warnings.extend(dropped.into_iter().map(|(_, warning)| warning));
        self.warnings.sort_by_key(|warning| warning.at);
    }

    fn add(&mut self, line: &Line<'_>, opener: &Opener, above: &mut Above) {
        let at = line.text.position(0);
        // No file is longer ([`super::FILE_MAX`]).
        let offset = line.offset as u32;
        if line.indented {
            let text = "the line is indented: automount ignores it, and the entry before it as well";
            self.warnings.push(Warning::differs(at, text));
        }
        if line.text.bytes().starts_with(b"\\*") {
            self.warnings.push(Warning::differs(at, "automount does not find a key that begins with \\*"));
        }
        match meaning(line, self.keys) {
            Err(warning) => self.warnings.push(warning),
            Ok(Meaning::Wildcard(_)) => {
                self.wildcard.get_or_insert(Slot { hash: 0, offset, line: line.line });
            }
            Ok(Meaning::Entry(key, _)) => self.index.push(Slot { hash: hash(&key), offset, line: line.line }),
            Ok(Meaning::Include(name)) => match self.include(&name, opener, above) {
                Ok(included) => self.includes.push((offset, included)),
                Err(message) => self.warnings.push(Warning::new(at, message)),
            },
        }
    }

    fn include(&self, name: &MapName, opener: &Opener, above: &mut Above) -> Result<Included, String> {
        if above.files.len() >= DEPTH_MAX {
            return Err(format!("+{name} is left out: includes are {DEPTH_MAX} deep"));
        }
        let left = above.left.checked_sub(1);
        above.left = left.ok_or_else(|| format!("+{name} is left out: {INCLUDES_MAX} were read"))?;
        let path = match name.kind {
            MapKind::Path | MapKind::File => PathBuf::from(&name.name),
            MapKind::Named if opener.names_files() => Path::new(DIRECTORY).join(&name.name),
            _ => {
                let opened = opener.included(name, &above.files);
                let source = opened.map_err(|error| format!("+{name} is left out: {error}"))?;
                return Ok(Included::Source(source.into()));
            }
        };
        if above.files.contains(&path) {
            return Err(format!("+{name} is left out: the file includes itself"));
        }
        Ok(match Self::read(&path, self.keys, opener, above, None) {
            Ok(contents) => Included::Contents(Arc::new(contents)),
            Err(_) => Included::Missing(path),
        })
    }

    fn fresh(&self) -> bool {
        self.stamp.is_some()
            && self.stamp == Stamp::of(&self.path)
            && self.includes.iter().all(|(_, included)| match included {
                Included::Contents(contents) => contents.fresh(),
                // It looks after itself when it is asked.
                Included::Source(_) => true,
                Included::Missing(path) => !path.exists(),
            })
    }

    fn line(&self, slot: Slot) -> Option<Line<'_>> {
        Lines::from(&self.bytes, slot.offset as usize, slot.line).next()
    }

    /// What a key stands for. A map that is included is asked at its place, and answers with its wildcard, too; the file's
    /// own wildcard comes last. One that cannot be asked hides nothing.
    fn find(&self, key: &[u8], variables: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        let own = self.exact(key);
        let limit = own.map_or(u32::MAX, |slot| slot.offset);
        let mut failed = None;
        for (_, included) in self.includes.iter().take_while(|(offset, _)| *offset < limit) {
            let found = match included {
                Included::Contents(contents) => contents.find(key, variables),
                Included::Source(source) => source.lookup(key, variables),
                Included::Missing(_) => Ok(None),
            };
            match found {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match (own.or(self.wildcard).and_then(|slot| self.entry(slot)), failed) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found),
        }
    }

    fn wildcard(&self) -> Result<Option<RawEntry>, SourceError> {
        for (_, included) in &self.includes {
            let found = match included {
                Included::Contents(contents) => contents.wildcard()?,
                Included::Source(source) => source.wildcard()?,
                Included::Missing(_) => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(self.exact(b"*").or(self.wildcard).and_then(|slot| self.entry(slot)))
    }

    /// Where a key stands.
    fn exact(&self, key: &[u8]) -> Option<Slot> {
        let hash = hash(key);
        let start = self.index.partition_point(|slot| slot.hash < hash);
        let same = self.index[start..].iter().take_while(|slot| slot.hash == hash);
        same.copied().find(|slot| {
            let line = self.line(*slot);
            let found = line.as_ref().map(|line| meaning(line, self.keys));
            matches!(found, Some(Ok(Meaning::Entry(found, _))) if *found == *key)
        })
    }

    fn entry(&self, slot: Slot) -> Option<RawEntry> {
        let line = self.line(slot)?;
        match meaning(&line, self.keys) {
            Ok(Meaning::Entry(_, text) | Meaning::Wildcard(text)) => {
                Some(RawEntry { text: text.into_owned(), origin: self.path.clone() })
            }
            _ => None,
        }
    }

    /// All entries in the order of the text; keys in `seen` are left out. The index has each key of this file once.
    fn visit(
        &self,
        seen: &mut Seen,
        each: &mut dyn FnMut(&[u8], &Text<'_>, &Path),
    ) -> Result<(), SourceError> {
        let mut slots: Vec<Slot> = self.index.iter().chain(&self.wildcard).copied().collect();
        slots.sort_unstable_by_key(|slot| slot.offset);
        let mut includes = self.includes.iter().peekable();
        for slot in slots {
            while let Some((_, included)) = includes.next_if(|(offset, _)| *offset < slot.offset) {
                included.visit(seen, each)?;
            }
            let Some(line) = self.line(slot) else { continue };
            let (key, text) = match meaning(&line, self.keys) {
                Ok(Meaning::Entry(key, text)) => (key, text),
                Ok(Meaning::Wildcard(text)) => (Cow::Borrowed(b"*".as_slice()), text),
                _ => continue,
            };
            if is_first(seen, &key) {
                each(&key, &text, &self.path);
            }
        }
        includes.try_for_each(|(_, included)| included.visit(seen, each))
    }

    fn warnings(&self, all: &mut Vec<(PathBuf, Warning)>) {
        all.extend(self.warnings.iter().map(|warning| (self.path.clone(), warning.clone())));
        for (offset, included) in &self.includes {
            match included {
                Included::Contents(contents) => contents.warnings(all),
                Included::Source(source) => all.extend(source.warnings()),
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

fn is_first(seen: &mut Seen, key: &[u8]) -> bool {
    seen.as_mut().is_none_or(|seen| seen.insert(key.to_vec()))
}

impl Included {
    fn refresh(&self) -> Result<(), SourceError> {
        match self {
            Self::Contents(contents) => {
                contents.includes.iter().try_for_each(|(_, included)| included.refresh())
            }
            Self::Source(source) => source.refresh(),
            Self::Missing(_) => Ok(()),
        }
    }

    fn is_fresh(&self) -> bool {
        match self {
            Self::Contents(contents) => contents.includes.iter().all(|(_, included)| included.is_fresh()),
            Self::Source(source) => source.fresh(),
            Self::Missing(_) => true,
        }
    }

    fn visit(
        &self,
        seen: &mut Seen,
        each: &mut dyn FnMut(&[u8], &Text<'_>, &Path),
    ) -> Result<(), SourceError> {
        match self {
            Self::Contents(contents) => contents.visit(seen, each),
            Self::Missing(_) => Ok(()),
            Self::Source(source) => {
                let listed = source.visit(&mut |key, text, origin| {
                    if is_first(seen, key) {
                        each(key, text, origin);
                    }
                });
                listed.map(drop)
            }
        }
    }
}

impl FileSource {
    /// Read a file, which may include what `opener` opens.
    pub fn open(path: &Path, keys: Keys, opener: Arc<Opener>) -> Result<Self, SourceError> {
        let source = Self::later(path, keys, opener, &[]);
        source.reread()?;
        Ok(source)
    }

    /// A file that is read when it is needed, and need not be there yet. `above` are the files that include it.
    pub fn later(path: &Path, keys: Keys, opener: Arc<Opener>, above: &[PathBuf]) -> Self {
        let read = RwLock::new(Arc::new(Contents::empty(path, keys)));
        Self { path: path.to_owned(), keys, above: above.to_vec(), opener, read }
    }

    fn contents(&self) -> Arc<Contents> {
        self.read.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Read again what changed; true when something did.
    fn reread(&self) -> Result<bool, SourceError> {
        let old = self.contents();
        if old.fresh() {
            return Ok(false);
        }
        let mut above = Above { files: self.above.clone(), left: INCLUDES_MAX };
        let new = Contents::read(&self.path, self.keys, &self.opener, &mut above, Some(&old))?;
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(true)
    }
}

impl Source for FileSource {
    fn lookup(&self, key: &[u8], variables: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        // The keys of a direct map are triggers: they change when the map is read again as a whole.
        if self.keys != Keys::Paths {
            self.reread()?;
        }
        self.contents().find(key, variables)
    }

    fn visit(&self, each: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
        self.reread()?;
        let contents = self.contents();
        let mut seen = (!contents.includes.is_empty()).then(HashSet::new);
        contents.visit(&mut seen, each)?;
        Ok(true)
    }

    fn wildcard(&self) -> Result<Option<RawEntry>, SourceError> {
        self.reread()?;
        self.contents().wildcard()
    }

    fn fresh(&self) -> bool {
        let contents = self.contents();
        contents.fresh() && contents.includes.iter().all(|(_, included)| included.is_fresh())
    }

    fn refresh(&self) -> Result<(), SourceError> {
        if self.reread()? {
            return Ok(());
        }
        // What is included may have changed all the same, and not be able to tell.
        self.contents().includes.iter().try_for_each(|(_, included)| included.refresh())
    }

    fn warnings(&self) -> Vec<(PathBuf, Warning)> {
        let mut all = Vec::new();
        self.contents().warnings(&mut all);
        all
    }
}
