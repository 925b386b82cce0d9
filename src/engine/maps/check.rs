//! What is wrong in a file: a master map, a map, or the configuration. Nothing runs and nothing is mounted.

use super::conf::Conf;
use super::master::{self, Entry, Files, Format, MapKind, MapName, MapOptions};
use super::source::read_file;
use super::text::{Lines, Position, Warning, Words};
use super::{Map, Site};
use std::collections::HashSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A master map.
    Master,
    /// An indirect map in sun format.
    Indirect,
    /// A direct map in sun format.
    Direct,
    /// A map in amd format.
    Amd,
    /// `autofs.conf`.
    Conf,
}

/// What was found, and the file where it stands.
pub type Found = (PathBuf, Warning);

/// Check a file; of a master map all maps that are files on this machine as well.
/// An error when the file itself cannot be read; those of a master map that cannot are among what is found.
pub fn check(path: &Path, kind: FileKind, site: &Arc<Site>) -> io::Result<Vec<Found>> {
    match kind {
        FileKind::Conf => {
            let mut warnings = Vec::new();
            Conf::default().apply(&read_file(path)?, &mut warnings);
            Ok(warnings.into_iter().map(|warning| (path.to_owned(), warning)).collect())
        }
        FileKind::Master => check_master(path, site),
        FileKind::Indirect | FileKind::Direct | FileKind::Amd => {
            std::fs::File::open(path)?;
            let format = (kind == FileKind::Amd).then_some(Format::Amd);
            let entry = Entry {
                mount_point: (kind != FileKind::Direct).then(|| "/".into()),
                map: MapName { format, ..MapName::file(path) },
                options: MapOptions::default(),
                hidden: HashSet::new(),
                origin: path.to_owned(),
                at: Position::START,
                written: Default::default(),
            };
            Ok(check_map(entry, site))
        }
    }
}

fn check_master(path: &Path, site: &Arc<Site>) -> io::Result<Vec<Found>> {
    let master = master::read(&MapName::file(path), &Files::default())?;
    let mut found = master.warnings;
    for entry in master.entries {
        found.extend(check_map(entry, site));
    }
    Ok(by_file(path, found))
}

fn check_map(entry: Entry, site: &Arc<Site>) -> Vec<Found> {
    if !is_local(&entry.map) {
        return Vec::new();
    }
    let (origin, at) = (entry.origin.clone(), entry.at);
    let mut found: Vec<Found> =
        programs(&entry.map).into_iter().map(|text| (origin.clone(), Warning::error(at, text))).collect();
    match Map::open(entry, site.clone()).and_then(|map| map.check()) {
        Ok(own) => found.extend(own),
        Err(error) => found.push((origin, Warning::error(at, error.to_string()))),
    }
    found
}

/// Is the map a file or a program of this machine, or none at all?
fn is_local(map: &MapName) -> bool {
    match &map.kind {
        MapKind::Path | MapKind::Named | MapKind::File | MapKind::Program => true,
        // It is refused at once.
        MapKind::Nisplus => true,
        MapKind::Multi(maps) => maps.iter().all(is_local),
        _ => false,
    }
}

/// Program maps that cannot be run.
fn programs(map: &MapName) -> Vec<String> {
    match &map.kind {
        MapKind::Program => {
            let path = Path::new(&map.name);
            match std::fs::metadata(path) {
                Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => Vec::new(),
                Ok(_) => vec![format!("program map {}: it may not be executed", path.display())],
                Err(error) => vec![format!("program map {}: {error}", path.display())],
            }
        }
        MapKind::Multi(maps) => maps.iter().flat_map(programs).collect(),
        _ => Vec::new(),
    }
}

/// One file after the other, `first` and then as they come; each thing once.
fn by_file(first: &Path, found: Vec<Found>) -> Vec<Found> {
    let mut files = vec![first.to_owned()];
    for (path, _) in &found {
        if !files.contains(path) {
            files.push(path.clone());
        }
    }
    let mut sorted: Vec<_> = found
        .into_iter()
        .map(|(path, warning)| (files.iter().position(|file| *file == path), (path, warning)))
        .collect();
    sorted.sort_by_key(|(file, (_, warning))| (*file, warning.at, warning.severity));
    let mut sorted: Vec<Found> = sorted.into_iter().map(|(_, one)| one).collect();
    sorted.dedup();
    sorted
}

/// What a file is, by its name and its first lines.
pub fn guess(path: &Path, bytes: &[u8]) -> FileKind {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with("autofs.conf") {
        return FileKind::Conf;
    }
    if name.ends_with(".autofs") || name.contains("master") {
        return FileKind::Master;
    }
    for line in Lines::new(bytes) {
        let mut words = Words::new(&line.text).map_while(Result::ok);
        let Some(first) = words.next() else { continue };
        let rest: Vec<Vec<u8>> = words.map(|word| word.bytes()).collect();
        let first = first.bytes();
        match first.as_slice() {
            [b'[', ..] => return FileKind::Conf,
            [b'+', ..] => continue,
            b"/defaults" => return FileKind::Amd,
            _ => {}
        }
        let has = |part: &[u8]| rest.iter().any(|word| word.windows(part.len()).any(|found| found == part));
        return match first.first() {
            _ if has(b":=") => FileKind::Amd,
            Some(b'/') if has(b":/") && !rest.first().is_some_and(|map| is_typed(map)) => FileKind::Direct,
            Some(b'/') if rest.iter().any(|word| word.starts_with(b":")) => FileKind::Direct,
            Some(b'/') => FileKind::Master,
            _ => FileKind::Indirect,
        };
    }
    FileKind::Indirect
}

fn is_typed(map: &[u8]) -> bool {
    map.starts_with(b"multi") || MapName::parse(map).is_ok_and(|name| name.kind.word().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_names_and_lines() {
        let kind = |name: &str, text: &str| guess(Path::new(name), text.as_bytes());
        assert_eq!(kind("/etc/autofs.conf", ""), FileKind::Conf);
        assert_eq!(kind("/etc/auto.master", "x"), FileKind::Master);
        assert_eq!(kind("/etc/auto.master.d/x.autofs", ""), FileKind::Master);
        assert_eq!(kind("m", "# c\n[ amd ]\n"), FileKind::Conf);
        assert_eq!(kind("m", "/ind /etc/auto.ind ro\n"), FileKind::Master);
        assert_eq!(kind("m", "+auto.x\n/net -hosts\n"), FileKind::Master);
        assert_eq!(kind("m", "/x program:/etc/p --timeout=3\n"), FileKind::Master);
        assert_eq!(kind("m", "/x multi file:/etc/a -- file:/etc/b\n"), FileKind::Master);
        assert_eq!(kind("m", "/d/one -ro srv:/x\n"), FileKind::Direct);
        assert_eq!(kind("m", "/d/one / srv:/x /b srv:/y\n"), FileKind::Direct);
        assert_eq!(kind("m", "/d/one -fstype=ext4 :LABEL\n"), FileKind::Direct);
        assert_eq!(kind("m", "key -ro srv:/x\n"), FileKind::Indirect);
        assert_eq!(kind("m", "* srv:/&\n"), FileKind::Indirect);
        assert_eq!(kind("m", "/defaults type:=nfs\n"), FileKind::Amd);
        assert_eq!(kind("m", "key type:=link;fs:=/usr\n"), FileKind::Amd);
        assert_eq!(kind("m", ""), FileKind::Indirect);
    }
}
