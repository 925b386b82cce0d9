//! Cgroups without processes. systemd watches those of its slices, and CRIU makes only cgroups that somebody is in: on a
//! machine where the container never was the others must be there before CRIU opens the watches.
//!
//! The hierarchy is mounted for us alone, in the container's own cgroup namespace: so its root is the container's, wherever
//! the host has it.

use crate::sys::mount::{DetachedMount, MountFlags, new_superblock};
use crate::sys::{Errno, nix_errno};
use nix::sched::{CloneFlags, setns};
use rustix::fs::{Dir, FileType, Mode, OFlags, mkdirat, openat};
use std::ffi::OsStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The cgroup namespace of a process: a pid, or `self`, which is right in every pid namespace.
pub fn namespace(process: impl Display) -> Option<u64> {
    Some(rustix::fs::stat(format!("/proc/{process}/ns/cgroup")).ok()?.st_ino)
}

/// All cgroups below the root of `pid`'s cgroup namespace, relative to it, parents first; none when it has no namespace of its own.
/// This process is in that namespace afterwards. ENOENT when there is no such process, ENODEV when the kernel has no cgroups of
/// version 2.
pub fn read(pid: i32) -> Result<Vec<PathBuf>, Errno> {
    if namespace(pid) == namespace("self") {
        return Ok(Vec::new());
    }
    let space = rustix::fs::open(format!("/proc/{pid}/ns/cgroup"), OFlags::CLOEXEC, Mode::empty())?;
    setns(&space, CloneFlags::CLONE_NEWCGROUP).map_err(nix_errno)?;
    walk()
}

/// Make those that are not there, below the root of this process's cgroup namespace. Those made before an
/// error stay. ENODEV when the kernel has no cgroups of version 2.
pub fn make(paths: &[PathBuf]) -> Result<(), Errno> {
    let root = hierarchy()?;
    for path in paths {
        match mkdirat(&root, path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Version 2, as this process's cgroup namespace has it.
fn hierarchy() -> Result<DetachedMount, Errno> {
    let mounted = new_superblock::<&OsStr>("cgroup2", Path::new("cgroup2"), &[], MountFlags::empty());
    mounted.map_err(|_| Errno::NODEV)
}

fn walk() -> Result<Vec<PathBuf>, Errno> {
    let root = hierarchy()?;
    let (mut found, mut at) = (vec![PathBuf::from(".")], 0);
    while let Some(path) = found.get(at).cloned() {
        let dir = openat(&root, &path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
                let below = path.strip_prefix(".").unwrap_or(&path);
                found.push(below.join(OsStr::from_bytes(name)));
            }
        }
        at += 1;
    }
    found.remove(0);
    Ok(found)
}
