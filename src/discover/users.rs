//! Who uses mounts: what keeps them from being unmounted.
//!
//! Everything is read from `/proc`; nothing is opened in the mounts, so that no server is asked for anything, and nothing
//! is triggered. Users of the kernel itself are found as far as it tells of them: loop devices and swap files.

use super::escaped::escape;
use super::mountinfo::{self, MountinfoError};
use super::proc::{self, TaskDir};
use super::survey::DiscoverError;
use crate::sys::Errno;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What uses a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Users {
    /// The directory that was asked for.
    #[serde(with = "super::escaped")]
    pub path: PathBuf,
    /// Is something mounted there that is no trigger?
    pub mounted: bool,
    /// Programs.
    pub programs: Vec<Program>,
    /// Other mounts below, which do not go with it.
    pub mounts: Vec<Below>,
    /// The kernel itself: loop devices and swap files whose file is there.
    pub kernel: Vec<KernelUse>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Its number.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub comm: String,
    /// It lives in another mount namespace; paths are as seen there.
    pub elsewhere: bool,
    /// What it has there, each once.
    pub uses: Vec<Use>,
}

/// What a process has in a mount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Use {
    /// How.
    pub how: How,
    /// What.
    #[serde(with = "super::escaped")]
    pub path: PathBuf,
}

/// How a process uses a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Its working directory.
    Cwd,
    /// Its root directory.
    Root,
    /// Its program.
    Exe,
    /// An open file, by its descriptor.
    Fd(i32),
    /// Mapped into its memory.
    Map,
}

impl std::fmt::Display for How {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cwd => to.write_str("cwd"),
            Self::Root => to.write_str("root"),
            Self::Exe => to.write_str("program"),
            Self::Fd(number) => write!(to, "open {number}"),
            Self::Map => to.write_str("mapped"),
        }
    }
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Below {
    /// Where.
    #[serde(with = "super::escaped")]
    pub path: PathBuf,
    /// Its type.
    pub fstype: String,
}

/// A use that is no process's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelUse {
    /// `loop0`, `swap`.
    pub by: String,
    /// The file.
    #[serde(with = "super::escaped")]
    pub path: PathBuf,
}

/// Who uses each of these directories, which are seen from the calling thread.
pub fn users(paths: &[PathBuf]) -> Result<Vec<Users>, DiscoverError> {
    let read = |errno| DiscoverError::Read { path: "/proc".into(), errno };
    let own = TaskDir::proc().map_err(read)?;
    let table = own.read("thread-self/mountinfo").map_err(read)?;
    let mut scan = Scan::new(paths, &table)?;
    scan.namespace = proc::inode(Path::new("/proc/thread-self/ns/mnt")).ok();
    for pid in proc::pids().map_err(read)? {
        // One that has ended since uses nothing.
        if let Ok(process) = TaskDir::process(pid) {
            scan.process(&process);
        }
    }
    scan.kernel();
    Ok(scan.users)
}

struct Scan {
    users: Vec<Users>,
    /// From a directory to its place in `users`.
    places: BTreeMap<PathBuf, usize>,
    /// Mounts at and below each place, by their ids.
    ids: HashMap<u64, usize>,
    /// Places that are mount points: what is open below them on another mount is covered, and no use of these.
    points: BTreeSet<usize>,
    namespace: Option<u64>,
}

impl Scan {
    fn new(paths: &[PathBuf], table: &[u8]) -> Result<Self, MountinfoError> {
        let users = |path: &PathBuf| Users {
            path: path.clone(),
            mounted: false,
            programs: Vec::new(),
            mounts: Vec::new(),
            kernel: Vec::new(),
        };
        let mut scan = Self {
            users: paths.iter().map(users).collect(),
            places: paths.iter().enumerate().map(|(at, path)| (path.clone(), at)).collect(),
            ids: HashMap::new(),
            points: BTreeSet::new(),
            namespace: None,
        };
        for entry in mountinfo::parse(table)? {
            let path = mountinfo::path(entry.mount_point);
            let Some(at) = scan.place(&path) else { continue };
            scan.ids.insert(entry.id, at);
            let user = &mut scan.users[at];
            let here = path == user.path;
            if here {
                scan.points.insert(at);
            }
            match (entry.is_autofs(), here) {
                (true, _) => {}
                (false, true) => user.mounted = true,
                (false, false) => user.mounts.push(Below { path, fstype: escape(entry.fstype) }),
            }
        }
        Ok(scan)
    }

    /// The directory that a path is in: the nearest, where one is below another.
    fn place(&self, path: &Path) -> Option<usize> {
        path.ancestors().find_map(|dir| self.places.get(dir)).copied()
    }

    fn process(&mut self, process: &TaskDir) {
        let namespace = process.namespace("mnt");
        let elsewhere = namespace.is_some() && namespace != self.namespace;
        let mut found: BTreeMap<usize, BTreeSet<Use>> = BTreeMap::new();
        let mut add =
            |at: usize, how, path: PathBuf| _ = found.entry(at).or_default().insert(Use { how, path });
        for (how, name) in [(How::Cwd, "cwd"), (How::Root, "root"), (How::Exe, "exe")] {
            let link = process.read_link(name).ok();
            if let Some((at, path)) = link.and_then(|path| Some((self.place(&path)?, path))) {
                add(at, how, path);
            }
        }
        for (number, path, mount) in descriptors(process, |path| self.place(path).is_some()) {
            // Mount ids are those of our namespace only for who lives in it.
            let known = mount.filter(|_| !elsewhere).map(|mount| self.ids.get(&mount).copied());
            let by_path = || self.place(&path).filter(|at| elsewhere || !self.points.contains(at));
            if let Some(at) = known.flatten().or_else(by_path) {
                add(at, How::Fd(number), path);
            }
        }
        for path in mapped(process) {
            if let Some(at) = self.place(&path) {
                add(at, How::Map, path);
            }
        }
        for (at, uses) in found {
            // A program is mapped as well; once is enough.
            let exe = uses.iter().find(|used| used.how == How::Exe).map(|used| used.path.clone());
            let uses =
                uses.into_iter().filter(|used| used.how != How::Map || Some(&used.path) != exe.as_ref());
            let uid = std::fs::metadata(format!("/proc/{}", process.id)).map_or(0, |meta| meta.uid());
            let comm = process.stat().map_or("?".into(), |stat| escape(&stat.name));
            let program = Program { pid: process.id, uid, comm, elsewhere, uses: uses.collect() };
            self.users[at].programs.push(program);
        }
    }

    fn kernel(&mut self) {
        let loops = std::fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(|entry| {
            let file = std::fs::read(entry.path().join("loop/backing_file")).ok()?;
            Some((escape(entry.file_name().as_bytes()), path_of(file.trim_ascii_end())))
        });
        let swaps = std::fs::read("/proc/swaps").unwrap_or_default();
        let swaps = swaps.split(|byte| *byte == b'\n').skip(1).filter_map(|line| {
            let field = line.split(|byte| byte.is_ascii_whitespace()).next()?;
            Some(("swap".to_owned(), mountinfo::path(field)))
        });
        for (by, path) in loops.chain(swaps) {
            if let Some(at) = self.place(&path) {
                self.users[at].kernel.push(KernelUse { by, path });
            }
        }
    }
}

fn path_of(bytes: &[u8]) -> PathBuf {
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// Open files whose path is `wanted`: number, path, id of the mount.
fn descriptors(process: &TaskDir, wanted: impl Fn(&Path) -> bool) -> Vec<(i32, PathBuf, Option<u64>)> {
    let open = |(number, path): (i32, PathBuf)| {
        let info = process.read(&format!("fdinfo/{number}")).unwrap_or_default();
        let mut lines = info.split(|byte| *byte == b'\n');
        let mount = lines.find_map(|line| mountinfo::number(line.strip_prefix(b"mnt_id:\t")?));
        (number, path, mount)
    };
    process.descriptors(wanted).unwrap_or_default().into_iter().map(open).collect()
}

/// Files that are mapped, each once.
fn mapped(process: &TaskDir) -> BTreeSet<PathBuf> {
    let maps: Vec<u8> = process.read("maps").or(Err(Errno::SRCH)).unwrap_or_default();
    let lines = maps.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| line.iter().position(|byte| *byte == b'/').map(|at| path_of(&line[at..])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
20 1 0:20 / / rw - ext4 /dev/x rw
30 20 0:30 / /net rw - autofs m rw,indirect
31 30 0:31 / /net/a rw - nfs s:/a rw
32 31 0:32 / /net/a/inner rw - tmpfs t rw
33 31 0:33 / /net/a/off rw - autofs m rw,offset
34 30 0:34 / /net/ab rw - nfs s:/ab rw
";

    #[test]
    fn mounts_below_are_told() {
        let scan = Scan::new(&["/net/a".into(), "/net/b".into()], TABLE).unwrap();
        let below = Below { path: "/net/a/inner".into(), fstype: "tmpfs".into() };
        assert_eq!((scan.users[0].mounted, &scan.users[0].mounts[..]), (true, &[below][..]));
        assert!(!scan.users[1].mounted && scan.users[1].mounts.is_empty());
        let ids: BTreeSet<u64> = scan.ids.keys().copied().collect();
        assert_eq!(ids, BTreeSet::from([31, 32, 33]));
    }

    #[test]
    fn the_nearest_directory_counts() {
        let scan = Scan::new(&["/net/a".into(), "/net/a/inner".into()], TABLE).unwrap();
        let place = |path: &str| scan.place(Path::new(path));
        assert_eq!(
            [place("/net/a"), place("/net/a/x"), place("/net/a/inner/y")],
            [Some(0), Some(0), Some(1)]
        );
        assert_eq!([place("/net/ab"), place("/"), place("socket:[1]")], [None; 3]);
    }

    #[test]
    fn a_program_is_found_with_all_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (program, file) = (dir.join("program"), dir.join("file"));
        std::fs::copy("/bin/sleep", &program).unwrap();
        let open = std::fs::File::create(&file).unwrap();
        let mut child =
            std::process::Command::new(&program).arg("60").current_dir(&dir).stdin(open).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = users(std::slice::from_ref(&dir));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = found.unwrap();
        let user = found[0].programs.iter().find(|user| user.pid == pid).unwrap();
        let used = |how, path: &Path| Use { how, path: path.into() };
        assert_eq!(user.uses, [used(How::Cwd, &dir), used(How::Exe, &program), used(How::Fd(0), &file)]);
        assert_eq!((user.comm.as_str(), user.elsewhere), ("program", false));
    }
}
