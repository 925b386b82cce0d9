//! `/proc/PID` as this crate needs it. A process that ends while it is read is no error: it is not there.

use super::mountinfo::number;
pub use crate::sys::process::Stat;
use crate::sys::{Errno, io_errno, process::ProcessId};
use rustix::fs::{Mode, OFlags, RawDir, openat};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::{ffi::OsStringExt, fs::FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

/// A directory of `/proc` that stands for one task; what is read below it is of that task alone, even when its
/// number is given to another one meanwhile.
#[derive(Debug)]
pub struct TaskDir {
    dir: OwnedFd,
    /// Its number.
    pub id: i32,
}

impl TaskDir {
    /// `/proc` itself, for what is below `self` and `thread-self`.
    pub fn proc() -> Result<Self, Errno> {
        Self::open(rustix::fs::CWD, "/proc", 0)
    }

    /// `/proc/PID`; ENOENT when there is none.
    pub fn process(pid: i32) -> Result<Self, Errno> {
        Self::open(rustix::fs::CWD, &format!("/proc/{pid}"), pid)
    }

    fn open(at: impl AsFd, path: &str, id: i32) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(at, path, flags, Mode::empty())?;
        Ok(Self { dir, id })
    }

    /// Every thread, opened when it is its turn: a process may have more threads than we may have descriptors.
    pub fn tasks(&self) -> Result<impl Iterator<Item = TaskDir>, Errno> {
        let list = self.open_file("task")?;
        let numbers = numbers(&list)?;
        Ok(numbers.into_iter().filter_map(move |tid| Self::open(&list, &tid.to_string(), tid).ok()))
    }

    /// A file below, for reading. ENOENT or ESRCH when the task has ended, EACCES when we may not look at it; so with all
    /// that read such files.
    pub fn open_file(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat(&self.dir, name, flags, Mode::empty())
    }

    /// A file's content.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Errno> {
        // Room for most of them at once; without `take` the kernel would be asked for their sizes, which it does not know.
        let mut content = Vec::with_capacity(4096);
        let file = std::fs::File::from(self.open_file(name)?);
        file.take(u64::MAX).read_to_end(&mut content).map_err(io_errno)?;
        Ok(content)
    }

    /// A symbolic link's target.
    pub fn read_link(&self, name: &str) -> Result<PathBuf, Errno> {
        let target = rustix::fs::readlinkat(&self.dir, name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// Open descriptors whose links are `wanted`: number and link.
    pub fn descriptors(&self, wanted: impl Fn(&Path) -> bool) -> Result<Vec<(i32, PathBuf)>, Errno> {
        let link = |fd| Some((fd, self.read_link(&format!("fd/{fd}")).ok().filter(|link| wanted(link))?));
        Ok(self.open_file("fd").and_then(numbers)?.into_iter().filter_map(link).collect())
    }

    /// A NUL-ended string at an address of the task.
    pub fn string(&self, address: u64) -> Option<OsString> {
        let memory = std::fs::File::from(self.open_file("mem").ok()?);
        let mut bytes = vec![0; 4096];
        // ends early where the mapping does
        let got = memory.read_at(&mut bytes, address).ok()?;
        let end = bytes[..got].iter().position(|&byte| byte == 0)?;
        bytes.truncate(end);
        Some(OsString::from_vec(bytes))
    }

    /// Name, state, group, start time.
    pub fn stat(&self) -> Option<Stat> {
        Stat::parse(&self.read("stat").ok()?)
    }

    /// The inode of its namespace `kind` (`mnt`, `pid`).
    pub fn namespace(&self, kind: &str) -> Option<u64> {
        let link = self.read_link(&format!("ns/{kind}")).ok()?;
        bracketed(link.as_os_str().as_encoded_bytes(), format!("{kind}:").as_bytes())
    }

    /// Its identity, given its stat.
    pub fn identity(&self, stat: &Stat) -> ProcessId {
        ProcessId { pid: self.id, start_time: stat.start_time }
    }
}

/// The number in `pipe:[12345]`, for the prefix `pipe:`.
pub fn bracketed(link: &[u8], prefix: &[u8]) -> Option<u64> {
    number(link.strip_prefix(prefix)?.strip_prefix(b"[")?.strip_suffix(b"]")?)
}

/// Every process that this `/proc` shows.
pub fn pids() -> Result<Vec<i32>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    numbers(&rustix::fs::open("/proc", flags, Mode::empty())?)
}

/// A process and all that descend from it, but for those whose parents have ended.
pub fn tree(root: i32) -> Result<HashSet<i32>, Errno> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in pids()? {
        if let Some(stat) = TaskDir::process(pid).ok().and_then(|process| process.stat()) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut tree = HashSet::from([root]);
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        next.extend(children.get(&pid).into_iter().flatten().filter(|&&child| tree.insert(child)));
    }
    Ok(tree)
}

/// The entries of a directory that are numbers. `dir` was not read yet.
pub fn numbers(dir: impl AsFd) -> Result<Vec<i32>, Errno> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut numbers = Vec::new();
    while let Some(entry) = entries.next() {
        numbers.extend(number::<i32>(entry?.file_name().to_bytes()));
    }
    Ok(numbers)
}

/// A thread of ours that may come to wait for ever, for the one who waits for it.
///
/// That nothing has come from it does not mean that it waits: on a busy machine it may want a processor.
#[derive(Debug, Default)]
pub struct Worker(AtomicI32);

impl Worker {
    /// To be called by that thread, first of all.
    pub fn begin(&self) {
        self.0.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
    }

    /// Does it sleep? (Or it has ended.)
    pub fn sleeps(&self) -> bool {
        let stat = |tid| TaskDir::process(tid).ok().and_then(|task| task.stat());
        match self.0.load(Ordering::Relaxed) {
            0 => false,
            tid => stat(tid).is_none_or(|stat| stat.state != b'R'),
        }
    }
}

/// The inode of a namespace file.
pub fn inode(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let us = i32::try_from(std::process::id()).unwrap();
        let found = tree(us).unwrap();
        child.kill().unwrap();
        assert!(found.contains(&us) && found.contains(&i32::try_from(child.id()).unwrap()));
        assert!(!found.contains(&1) || us == 1);
        child.wait().unwrap();
    }

    #[test]
    fn this_process_is_there() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(pids().unwrap().contains(&pid));
        let dir = TaskDir::process(pid).unwrap();
        assert!(dir.tasks().unwrap().next().is_some());
        assert_eq!(dir.namespace("mnt"), inode(Path::new("/proc/self/ns/mnt")).ok());
        assert!(dir.stat().unwrap().start_time > 0);
    }
}
