//! Maps in memory, and what may happen to them.

use super::*;

pub(super) type Entries = BTreeMap<Vec<u8>, Resolved>;

/// A map in memory.
#[derive(Debug)]
pub(super) struct Table(pub Mutex<Entries>);

impl Source for Arc<Table> {
    fn lookup(&self, key: &[u8], _who: Credentials) -> Result<Option<Resolved>, Errno> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }
    fn keys(&self) -> Result<Option<Vec<Vec<u8>>>, Errno> {
        Ok(Some(self.0.lock().unwrap().keys().cloned().collect()))
    }
}

/// A master map in memory: all maps, and which of them it has.
#[derive(Debug)]
pub(super) struct Masters(pub Vec<Arc<Served>>, pub Mutex<Vec<bool>>);

/// The usual ones, and one that is not there at first.
pub(super) const USUAL: [bool; 4] = [true, true, true, false];

impl Master for Masters {
    fn read(&self, _: &[Arc<Served>]) -> Result<Vec<Arc<Served>>, Errno> {
        let on = self.1.lock().unwrap();
        Ok(self.0.iter().zip(on.iter()).filter(|(_, on)| **on).map(|(served, _)| served.clone()).collect())
    }
}

#[derive(Debug)]
pub(super) struct Submounts;

impl Opener for Submounts {
    fn submount(&self, parent: &Served, target: &Path, _: &OsStr, _: &OsStr) -> Result<Served, Errno> {
        let table = table(&[("in", entry(&["", "x"]))]);
        Ok(served(Some(target), &table, parent.options.clone()))
    }
}

pub(super) fn tmpfs() -> What {
    What::Mount {
        fstype: "tmpfs".into(),
        options: OsString::new(),
        sources: vec![Replica::plain("x")],
        use_weight_only: false,
    }
}

pub(super) fn entry(offsets: &[&str]) -> Resolved {
    let spec = |offset: &&str| MountSpec { offset: offset.into(), what: tmpfs() };
    Resolved { mounts: offsets.iter().map(spec).collect(), ..Resolved::default() }
}

pub(super) fn single(what: What) -> Resolved {
    Resolved { mounts: vec![MountSpec { offset: PathBuf::new(), what }], ..Resolved::default() }
}

pub(super) fn table(entries: &[(&str, Resolved)]) -> Arc<Table> {
    let entries = entries.iter().map(|(key, entry)| (key.as_bytes().to_vec(), entry.clone()));
    Arc::new(Table(Mutex::new(entries.collect())))
}

pub(super) fn served(point: Option<&Path>, table: &Arc<Table>, options: ServeOptions) -> Served {
    Served {
        point: point.map(Path::to_path_buf),
        name: "map".into(),
        source: Box::new(table.clone()),
        options,
        opener: Arc::new(Submounts),
    }
}

pub(super) fn indirect_map() -> Vec<(&'static str, Resolved)> {
    let strict = Resolved { strict: true, otherwise: Some(Box::new(entry(&[""]))), ..entry(&["a", "c"]) };
    vec![
        ("plain", entry(&[""])),
        ("link", single(What::Symlink("/usr".into()))),
        ("multi", entry(&["a", "a/b", "c"])),
        ("rooted", entry(&["", "s"])),
        ("strict", strict),
        ("sub", single(What::Submount { map: "m".into(), options: OsString::new() })),
    ]
}

pub(super) fn direct_map() -> Vec<(&'static str, Resolved)> {
    vec![("/d/one", entry(&[""])), ("/d/two", entry(&["x"]))]
}

pub(super) fn browse_map() -> Vec<(&'static str, Resolved)> {
    vec![("dir", entry(&[""])), ("link", single(What::Symlink("/usr".into())))]
}

/// What somebody may do to the maps.
pub(super) const CHANGES: [fn(&mut Entries, &mut Entries, &mut Entries); 7] = [
    |indirect, _, _| _ = indirect.remove(&b"plain"[..]),
    |indirect, _, _| _ = indirect.insert(b"multi".to_vec(), entry(&["a/b", "d"])),
    |indirect, _, _| _ = indirect.insert(b"rooted".to_vec(), single(What::Symlink("/usr".into()))),
    |_, direct, _| _ = direct.remove(&b"/d/one"[..]),
    |_, direct, _| _ = direct.insert(b"/d/new".to_vec(), entry(&[""])),
    |_, _, browse| _ = browse.remove(&b"dir"[..]),
    |_, _, browse| _ = browse.insert(b"link".to_vec(), entry(&[""])),
];

pub(super) const PATHS: [&str; 22] = [
    "/d/other",
    "/i/plain",
    "/i/absent",
    "/i/link",
    "/i/multi",
    "/i/multi/a",
    "/i/multi/a/b",
    "/i/multi/c",
    "/i/rooted",
    "/i/rooted/s/deep",
    "/i/strict/a",
    "/i/strict/c",
    "/i/sub",
    "/i/sub/in",
    "/i/sub/in/x",
    "/i/sub/none",
    "/d/one",
    "/d/two",
    "/d/two/x",
    "/d/new",
    "/b/dir",
    "/b/link",
];
