//! All facts about the autofs mounts of one mount namespace: mountinfo is read once, `/proc` is passed over once,
//! and everything is linear in the number of mounts, tasks and descriptors.

use super::escaped::escape;
use super::facts::{AutofsMount, AutofsOptions, Blind, CoveringMount, Master, Pipe, Survey};
use super::master::Masters;
use super::mountinfo::{self, Entry, MountinfoError};
use super::pipes::PipeScan;
use super::place::place;
use super::proc::{self, TaskDir};
use super::waiters::WaiterScan;
use crate::sys::{Errno, io_errno, mountns::Space};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Which mount namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Target {
    /// That of the calling thread.
    #[default]
    Own,
    /// That of a process, seen from its root directory.
    Process(i32),
    /// A namespace file: `/proc/PID/ns/mnt`, or one that was bound somewhere.
    Namespace(PathBuf),
}

/// The facts could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// It has ended, or this `/proc` does not show it.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// The file is no mount namespace (EINVAL), or not without privilege (EPERM).
    #[error("the mount namespace {} cannot be entered: {errno}; is it one, and are you root?", path.display())]
    Enter {
        /// Its file.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Not without privilege.
    #[error("the mounts of process {0} may not be read: run as root")]
    Refused(i32),
    /// Reading failed.
    #[error("{} cannot be read: {errno}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel printed what was not expected.
    #[error(transparent)]
    Mountinfo(#[from] MountinfoError),
}

/// Everything that `/proc` tells. Nothing is triggered or changed, and nothing waits.
pub fn survey(target: &Target) -> Result<Survey, DiscoverError> {
    gather(target, || proc::pids().map_err(|errno| unreadable("/proc", errno)))
}

/// As [`survey`], as far as these processes know.
pub fn survey_among(target: &Target, pids: Vec<i32>) -> Result<Survey, DiscoverError> {
    gather(target, || Ok(pids))
}

/// `pids` is asked only where there is an autofs mount.
fn gather(
    target: &Target,
    pids: impl FnOnce() -> Result<Vec<i32>, DiscoverError>,
) -> Result<Survey, DiscoverError> {
    let (mount_namespace, file) = read(target)?;
    let mut mounts = assemble(&mountinfo::parse(&file)?);
    if mounts.is_empty() {
        return Ok(Survey { mount_namespace, ..Survey::default() });
    }

    let mut pipes = PipeScan::new(mounts.iter().filter_map(|mount| mount.options.pipe_ino).collect());
    let mut waiters = WaiterScan::default();
    for pid in pids()? {
        // ended since
        let Ok(process) = TaskDir::process(pid) else { continue };
        pipes.visit(&process);
        waiters.visit(&process);
    }

    let mut masters = Masters::new(mount_namespace);
    for mount in &mut mounts {
        mount.pipe_ends =
            mount.options.pipe_ino.and_then(|ino| pipes.ends.get(&ino)).cloned().unwrap_or_default();
        mount.master = masters
            .choose(mount.dev, &mount.path, mount.options.pgrp, &mount.pipe_ends)
            .unwrap_or_else(|| nobody(&mount.options, pipes.unreadable));
    }
    let blind = Blind { descriptors: pipes.unreadable, sleepers: waiters.unknown };
    let unplaced_waiters = place(waiters.found, mount_namespace, &mut mounts);
    Ok(Survey { mount_namespace, mounts, unplaced_waiters, blind })
}

/// The namespace's inode and its mountinfo, as [`mountinfo::parse`] takes it.
pub fn read(target: &Target) -> Result<(u64, Vec<u8>), DiscoverError> {
    match target {
        Target::Own => read_task("/proc/thread-self"),
        Target::Process(pid) => read_task(&format!("/proc/{pid}")).map_err(|error| match error {
            DiscoverError::Read { errno: Errno::NOENT | Errno::SRCH | Errno::INVAL, .. } => {
                DiscoverError::NoProcess(*pid)
            }
            DiscoverError::Read { errno: Errno::ACCESS | Errno::PERM, .. } => DiscoverError::Refused(*pid),
            other => other,
        }),
        Target::Namespace(file) => read_inside(file),
    }
}

fn read_task(task: &str) -> Result<(u64, Vec<u8>), DiscoverError> {
    let mountinfo = format!("{task}/mountinfo");
    let namespace = format!("{task}/ns/mnt");
    let file = std::fs::read(&mountinfo).map_err(|error| failed(mountinfo.as_str(), &error))?;
    let inode = proc::inode(namespace.as_ref()).map_err(|error| failed(namespace.as_str(), &error))?;
    Ok((inode, file))
}

/// A namespace may have no process, and its `/proc`, if there is one, may be of another pid namespace: a thread goes
/// there and reads through our `/proc`.
fn read_inside(file: &Path) -> Result<(u64, Vec<u8>), DiscoverError> {
    let space = Space::of_file(file).map_err(|errno| unreadable(file, errno))?;
    let inode = proc::inode(file).map_err(|error| failed(file, &error))?;
    let proc = TaskDir::proc().map_err(|errno| unreadable("/proc", errno))?;
    let mountinfo = space
        .run(|| proc.read("thread-self/mountinfo"))
        .map_err(|errno| DiscoverError::Enter { path: file.into(), errno })?
        .map_err(|errno| unreadable(file, errno))?;
    Ok((inode, mountinfo))
}

fn failed(path: impl Into<PathBuf>, error: &std::io::Error) -> DiscoverError {
    unreadable(path, io_errno(error))
}

fn unreadable(path: impl Into<PathBuf>, errno: Errno) -> DiscoverError {
    DiscoverError::Read { path: path.into(), errno }
}

/// No process was found that reads the pipe: is there none, or was it not seen?
fn nobody(options: &AutofsOptions, unreadable: usize) -> Master {
    match options.pipe() {
        Pipe::Catatonic => Master::Dead,
        Pipe::Inode(_) if unreadable == 0 && options.pgrp != 0 => Master::Dead,
        Pipe::Inode(_) | Pipe::NotShown => Master::NotVisible,
    }
}

/// Mountinfo as a tree.
struct Tree<'a> {
    entries: &'a [Entry<'a>],
    index: HashMap<u64, usize>,
    children: HashMap<u64, Vec<usize>>,
}

/// The autofs mounts with all that mountinfo tells of them.
pub(crate) fn assemble(entries: &[Entry<'_>]) -> Vec<AutofsMount> {
    let mut children: HashMap<u64, Vec<usize>> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        children.entry(entry.parent).or_default().push(index);
    }
    let index = entries.iter().enumerate().map(|(index, entry)| (entry.id, index)).collect();
    let tree = Tree { entries, index, children };
    let mut hiding = Hiding::new(entries);
    let mut mounts = Vec::new();
    for entry in tree.parents_first().into_iter().map(|index| &entries[index]) {
        let hidden_by = hiding.of(&tree, entry);
        if entry.is_autofs() {
            mounts
                .push(AutofsMount { hidden_by: hidden_by.map(mountinfo::path), ..tree.autofs_mount(entry) });
        }
    }
    mounts
}

/// Which mounts no path walk reaches.
struct Hiding<'a> {
    /// By parent and mount point.
    at: HashMap<(u64, &'a [u8]), u64>,
    /// What hides a mount, by id; those that nothing hides are not in here.
    by: HashMap<u64, &'a [u8]>,
}

impl<'a> Hiding<'a> {
    fn new(entries: &[Entry<'a>]) -> Self {
        let at = entries.iter().map(|entry| ((entry.parent, entry.mount_point), entry.id)).collect();
        Self { at, by: HashMap::new() }
    }

    /// The mount point of what hides this mount, if anything does. Parents have been asked about before.
    fn of(&mut self, tree: &Tree<'_>, entry: &Entry<'a>) -> Option<&'a [u8]> {
        let by = match self.by.get(&entry.parent) {
            Some(by) => Some(*by),
            None => self.beside(&tree.entries[*tree.index.get(&entry.parent)?], entry),
        };
        self.by.extend(by.map(|by| (entry.id, by)));
        by
    }

    /// What is mounted on the same parent, on the way from its root to this mount.
    fn beside(&self, parent: &Entry<'_>, entry: &Entry<'a>) -> Option<&'a [u8]> {
        let below = |place: &&[u8]| match parent.is_autofs() {
            // what is on its root can be passed
            true => place.len() > parent.mount_point.len(),
            false => place.len() >= parent.mount_point.len(),
        };
        let mut way = places(entry.mount_point).take_while(below);
        way.find(|place| self.at.get(&(parent.id, *place)).is_some_and(|&id| id != entry.id))
    }
}

/// A path and its ancestors, as mountinfo escapes them.
fn places(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(path), |path| match path.iter().rposition(|&byte| byte == b'/')? {
        0 if path.len() == 1 => None,
        0 => Some(&path[..1]),
        slash => Some(&path[..slash]),
    })
}

impl Tree<'_> {
    /// Mountinfo's order, but a mount that was moved below a younger one comes after it.
    fn parents_first(&self) -> Vec<usize> {
        let mut seen = vec![false; self.entries.len()];
        let mut order = Vec::with_capacity(self.entries.len());
        for start in 0..self.entries.len() {
            let mut chain = Vec::new();
            let mut next = Some(start);
            while let Some(index) = next.filter(|&index| !std::mem::replace(&mut seen[index], true)) {
                chain.push(index);
                next = self.index.get(&self.entries[index].parent).copied();
            }
            order.extend(chain.into_iter().rev());
        }
        order
    }

    fn autofs_mount(&self, entry: &Entry<'_>) -> AutofsMount {
        let options = AutofsOptions::parse(entry.super_options);
        let (covering, autofs_children) = self.below(entry);
        AutofsMount {
            mount_id: entry.id,
            parent_id: entry.parent,
            dev: entry.dev,
            path: mountinfo::path(entry.mount_point),
            root: mountinfo::path(entry.root),
            source: mountinfo::path(entry.source),
            mount_flags: texts(entry.flags),
            propagation: entry.propagation,
            catatonic: options.pipe() == Pipe::Catatonic,
            options,
            pipe_ends: Vec::new(),
            master: Master::Dead,
            covering,
            autofs_children,
            waiters: Vec::new(),
            hidden_by: None,
        }
    }

    /// What is mounted on the triggers of an autofs mount and stacked there, and the autofs mounts nearest below.
    ///
    /// Every other mount has one nearest autofs mount above it, so that all calls together are linear.
    fn below(&self, autofs: &Entry<'_>) -> (Vec<CoveringMount>, Vec<u64>) {
        let mut covering = Vec::new();
        let mut autofs_children = Vec::new();
        // children in reverse, so that they are taken from the stack in their order
        let children =
            |id| self.children.get(&id).into_iter().flatten().rev().map(|&index| &self.entries[index]);
        let mut stack: Vec<_> = children(autofs.id).map(|entry| (entry, true)).collect();
        while let Some((entry, on_trigger)) = stack.pop() {
            if entry.is_autofs() {
                autofs_children.extend((entry.id != autofs.id).then_some(entry.id));
                continue;
            }
            if on_trigger {
                covering.push(covering_mount(entry));
            }
            let stacked = |child: &Entry<'_>| on_trigger && child.mount_point == entry.mount_point;
            stack.extend(children(entry.id).map(|child| (child, stacked(child))));
        }
        (covering, autofs_children)
    }
}

fn covering_mount(entry: &Entry<'_>) -> CoveringMount {
    CoveringMount {
        mount_id: entry.id,
        path: mountinfo::path(entry.mount_point),
        dev: entry.dev,
        root: mountinfo::path(entry.root),
        fstype: escape(entry.fstype),
        source: mountinfo::path(entry.source),
        mount_flags: texts(entry.flags),
        super_options: mountinfo::items(entry.super_options).collect(),
        propagation: entry.propagation,
    }
}

/// Flags: words of the kernel's.
fn texts(field: &[u8]) -> Vec<String> {
    field.split(|&byte| byte == b',').map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::super::facts::MountType;
    use super::*;

    fn mounts(file: &str) -> Vec<AutofsMount> {
        assemble(&mountinfo::parse(file.as_bytes()).unwrap())
    }

    fn covering(mount: &AutofsMount) -> Vec<u64> {
        mount.covering.iter().map(|covering| covering.mount_id).collect()
    }

    /// An indirect mount with a plain key (30, and 31 stacked on it), a multi-mount key with a root (32) and two
    /// offsets below it (33 idle, 34 covered by 35), a rootless one (36); and what is no trigger (37).
    const INDIRECT: &str = "\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:40 / /mnt/a rw,nosuid shared:4 - autofs /etc/auto.a rw,fd=5,pgrp=9,timeout=60,minproto=5,maxproto=5,indirect,pipe_ino=77
30 21 0:50 / /mnt/a/key rw - nfs4 srv:/export rw,vers=4.2
31 30 0:51 / /mnt/a/key ro - tmpfs none rw
32 21 0:52 /sub /mnt/a/multi rw - ext4 /dev/sdb rw
33 32 0:53 / /mnt/a/multi/x rw - autofs /etc/auto.a rw,fd=5,pgrp=9,timeout=60,minproto=5,maxproto=5,offset,pipe_ino=77
34 32 0:54 / /mnt/a/multi/y rw - autofs /etc/auto.a rw,fd=5,pgrp=9,timeout=60,minproto=5,maxproto=5,offset,pipe_ino=77
35 34 0:55 / /mnt/a/multi/y rw - tmpfs y rw
36 21 0:56 / /mnt/a/rootless/z rw - autofs /etc/auto.a rw,fd=5,pgrp=9,timeout=60,minproto=5,maxproto=5,offset,pipe_ino=77
37 30 0:57 / /mnt/a/key/inner rw - tmpfs inner rw
";

    #[test]
    fn covering_mounts_and_children_of_an_indirect_mount() {
        let mounts = mounts(INDIRECT);
        assert_eq!(mounts.iter().map(|mount| mount.mount_id).collect::<Vec<_>>(), [21, 33, 34, 36]);
        let top = &mounts[0];
        assert_eq!(top.options.mount_type, MountType::Indirect);
        assert_eq!(top.mount_flags, ["rw", "nosuid"]);
        assert_eq!(top.propagation.shared, Some(4));
        assert_eq!(covering(top), [30, 31, 32]);
        assert_eq!(top.covering[2].root, PathBuf::from("/sub"));
        assert_eq!(top.autofs_children, [33, 34, 36]);
        assert_eq!(covering(&mounts[2]), [35]);
        assert!(covering(&mounts[1]).is_empty());
    }

    #[test]
    fn what_came_later_above_hides_but_not_on_an_autofs_root() {
        let mounts = mounts(
            "\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:40 / /mnt rw - tmpfs old rw
30 21 0:50 / /mnt/a rw - autofs a rw,fd=3,direct,pipe_ino=5
31 30 0:51 / /mnt/a rw - tmpfs active rw
32 31 0:52 / /mnt/a/x rw - autofs a rw,fd=3,offset,pipe_ino=5
22 21 0:41 / /mnt rw - tmpfs new rw
40 22 0:60 / /mnt/a rw - autofs a rw,fd=3,direct,pipe_ino=6
50 20 0:70 / /ind rw - autofs i rw,fd=3,indirect,pipe_ino=7
51 50 0:71 / /ind/key/off rw - autofs i rw,fd=3,offset,pipe_ino=7
52 50 0:72 / /ind rw - tmpfs over rw
53 50 0:73 / /ind/far rw - tmpfs far rw
54 50 0:74 / /ind/far/off rw - autofs i rw,fd=3,offset,pipe_ino=7
60 20 0:80 / /ind2 rw - autofs i rw,fd=3,indirect,pipe_ino=8
",
        );
        let hidden: Vec<_> =
            mounts.iter().map(|mount| (mount.mount_id, mount.hidden_by.as_deref())).collect();
        let by = |path| Some(Path::new(path));
        assert_eq!(
            hidden,
            [
                (30, by("/mnt")),
                (32, by("/mnt")),
                (40, None),
                (50, None),
                (51, None),
                (54, by("/ind/far")),
                (60, None)
            ]
        );
    }

    #[test]
    fn parents_come_first_though_the_kernel_prints_them_later() {
        let mounts = mounts(
            "\
25 30 0:50 / /mnt/b/c rw - autofs inner rw,fd=-1,direct,pipe_ino=-1
20 1 8:1 / / rw - ext4 /dev/sda1 rw
30 20 0:51 / /mnt/b rw - autofs outer rw,fd=3,indirect,pipe_ino=5
",
        );
        assert_eq!(mounts.iter().map(|mount| mount.mount_id).collect::<Vec<_>>(), [30, 25]);
        assert_eq!((mounts[0].catatonic, mounts[1].catatonic), (false, true));
    }

    #[test]
    fn no_tree_that_mountinfo_can_state_loops() {
        let mounts = mounts(
            "\
1 1 0:1 / / rw - autofs self rw,direct
2 3 0:2 / /a rw - tmpfs a rw
3 2 0:3 / /a rw - tmpfs b rw
4 5 0:4 / /a rw - tmpfs b rw
5 4 0:5 / /a rw - autofs c rw,direct
",
        );
        assert_eq!(mounts.len(), 2);
        assert!(mounts[0].autofs_children.is_empty());
        assert_eq!(covering(&mounts[1]), [4]);
    }

    #[test]
    fn nobody_is_dead_only_when_everybody_was_seen() {
        let nobody = |text: &str, unreadable| nobody(&AutofsOptions::parse(text.as_bytes()), unreadable);
        let open = "fd=3,pgrp=9,direct,pipe_ino=5";
        assert_eq!(nobody(open, 0), Master::Dead);
        assert_eq!(nobody(open, 1), Master::NotVisible);
        assert_eq!(nobody("fd=3,pgrp=0,direct,pipe_ino=5", 0), Master::NotVisible);
        assert_eq!(nobody("fd=3,pgrp=9,direct", 0), Master::NotVisible);
        assert_eq!(nobody("fd=-1,pgrp=0,direct,pipe_ino=-1", 1), Master::Dead);
    }
}
