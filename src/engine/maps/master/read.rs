//! A whole master map: its text with everything that it includes.

use super::{Entry, Item, MapKind, MapName, entry, parse};
use crate::engine::maps::conf::Conf;
use crate::engine::maps::source::{DIRECTORY, read_file};
use crate::engine::maps::text::{Position, Warning};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Includes deeper than this are left out.
const DEPTH_MAX: usize = 16;
/// Nor are more texts read in all than this.
const TEXTS_MAX: usize = 1024;

/// The master map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Master {
    /// What is served, in order; mount points occur once, direct maps (`mount_point: None`) as often as they are written.
    pub entries: Vec<Entry>,
    /// What is wrong, with the file where it stands.
    pub warnings: Vec<(PathBuf, Warning)>,
}

impl Master {
    /// Add the mount points that only `autofs.conf` names: its amd sections with a `map_name`. Says which cannot be.
    pub fn add_amd_sections(&mut self, conf: &Conf) -> Vec<String> {
        let mut wrong = Vec::new();
        for (point, _) in conf.amd.iter().filter(|(name, _)| name.starts_with('/')) {
            let there = |entry: &Entry| entry.mount_point.as_deref() == Some(Path::new(point));
            let Some(name) = conf.amd_value(point, "map_name").filter(|_| !self.entries.iter().any(there))
            else {
                continue;
            };
            let kind = conf.amd_value(point, "map_type").unwrap_or("file");
            match entry(Some(point.into()), format!("{kind},amd:{name}").as_bytes(), b"") {
                Ok(mut entry) => {
                    let interval =
                        conf.amd_value(point, "dismount_interval").and_then(|value| value.parse().ok());
                    entry.options.timeout = interval.map(Duration::from_secs);
                    entry.options.browse = conf.amd_value(point, "browsable_dirs").map(|value| value != "no");
                    self.entries.push(entry);
                }
                Err(error) => wrong.push(format!("section {point}: {error}")),
            }
        }
        wrong
    }
}

/// Where texts come from.
pub trait Loader {
    /// The texts of a master map, each with the path it is shown by. Of a directory: its `*.autofs` files by name.
    ///
    /// `above` are the texts that include it, each the one after it; those are not meant again when the map has no type.
    fn load(&self, map: &MapName, above: &[PathBuf]) -> io::Result<Vec<(PathBuf, Vec<u8>)>>;
}

/// Reads files. A name without a path is looked for in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `/etc`.
    pub directory: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self { directory: DIRECTORY.into() }
    }
}

impl Loader for Files {
    fn load(&self, map: &MapName, _: &[PathBuf]) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        match &map.kind {
            MapKind::Dir => drop_ins(Path::new(&map.name)),
            MapKind::Path | MapKind::File | MapKind::Named => {
                let path = self.directory.join(&map.name);
                let text = match read_file(&path) {
                    // Solaris writes auto_master for auto.master.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && map.kind == MapKind::Named => {
                        let name = map.name.as_bytes().iter().map(|b| if *b == b'.' { b'_' } else { *b });
                        let other = OsString::from_vec(name.collect());
                        read_file(&self.directory.join(other)).map_err(|_| error)?
                    }
                    read => read?,
                };
                Ok(vec![(path, text)])
            }
            _ => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a master map is read from a file or a directory of files",
            )),
        }
    }
}

/// The `*.autofs` files of a directory that are not hidden, by name.
fn drop_ins(directory: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let file = file?;
        let name = file.file_name();
        let name = name.as_bytes();
        if name.ends_with(b".autofs") && !name.starts_with(b".") && file.path().is_file() {
            paths.push(file.path());
        }
    }
    paths.sort();
    paths.into_iter().map(|path| read_file(&path).map(|text| (path, text))).collect()
}

/// Read a master map and all that it includes. Only the map itself must be there.
pub fn read(map: &MapName, loader: &dyn Loader) -> io::Result<Master> {
    let mut reader = Reader {
        loader,
        master: Master::default(),
        open: Vec::new(),
        texts: 0,
        nulled: HashSet::new(),
        served: HashSet::new(),
    };
    for (path, text) in loader.load(map, &[])? {
        reader.text(path, &text);
    }
    Ok(reader.master)
}

struct Reader<'a> {
    loader: &'a dyn Loader,
    master: Master,
    /// The files that are being read, each included by the one before it.
    open: Vec<PathBuf>,
    /// How many were read.
    texts: usize,
    /// Mount points of `-null` lines.
    nulled: HashSet<Option<PathBuf>>,
    /// Mount points of the entries.
    served: HashSet<Option<PathBuf>>,
}

impl Reader<'_> {
    fn warn(&mut self, warning: Warning) {
        let path = self.open.last().cloned().unwrap_or_default();
        self.master.warnings.push((path, warning));
    }

    fn text(&mut self, path: PathBuf, text: &[u8]) {
        self.texts += 1;
        self.open.push(path);
        let mut warnings = Vec::new();
        let items = parse(text, &mut warnings);
        warnings.into_iter().for_each(|warning| self.warn(warning));
        for item in items {
            match item {
                Item::Entry(entry) => self.entry(*entry),
                Item::Null(point, _) => {
                    self.nulled.insert(point);
                }
                Item::Include(map, at) => self.include(&map, at),
            }
        }
        self.open.pop();
    }

    fn entry(&mut self, mut entry: Entry) {
        let point = &entry.mount_point;
        let shown = point.as_deref().unwrap_or(Path::new("/-")).display().to_string();
        if self.nulled.contains(point) {
            let text = format!(
                "{shown} is not served: a -null line above hides every later entry (the manual says: one)"
            );
            self.warn(Warning::new(entry.at, text));
        } else if point.is_some() && !self.served.insert(point.clone()) {
            self.warn(Warning::new(entry.at, format!("{shown} is there already: the first entry counts")));
        } else {
            entry.origin = self.open.last().cloned().unwrap_or_default();
            if point.is_none() {
                entry.hidden = self.nulled.iter().flatten().cloned().collect();
            }
            self.master.entries.push(entry);
        }
    }

    fn include(&mut self, map: &MapName, at: Position) {
        if self.open.len() >= DEPTH_MAX {
            return self.warn(Warning::new(at, format!("+{map} is left out: includes are {DEPTH_MAX} deep")));
        }
        if self.texts >= TEXTS_MAX {
            return self.warn(Warning::new(at, format!("+{map} is left out: {TEXTS_MAX} files were read")));
        }
        match self.loader.load(map, &self.open) {
            Err(error) => self.warn(Warning::new(at, format!("+{map} cannot be read: {error}"))),
            Ok(texts) => {
                for (path, text) in texts {
                    // `+auto.master` at the end of auto.master itself: for maps of services, where there are some.
                    if map.kind == MapKind::Named && self.open.last() == Some(&path) {
                        continue;
                    }
                    if self.open.contains(&path) {
                        self.warn(Warning::new(at, format!("+{map} is left out: the file includes itself")));
                    } else {
                        self.text(path, &text);
                    }
                }
            }
        }
    }
}
