//! A restore: superblocks in the root task, masters when every task is whole again.

use super::cgroups;
use super::limits::{self, Limit};
use super::maker::{AskError, Maker};
use super::owner::{self, Eyes, Owner};
use super::parked::{self, Descriptor};
use super::relay::{self, Table};
use super::renumber::{self, RenumberError};
use super::tree::Tree;
use crate::discover::facts::{AutofsMount, End, Master, PipeEnd};
use crate::faults;
use crate::image::checkpoint::DumpedMount;
use crate::image::{Checkpoint, ImageError, criu};
use crate::sys::control::Control;
use crate::sys::mount::{Change, MountError, MountFlags};
use crate::sys::process::reopen_write_end;
use crate::sys::tracee::{Held, TraceeError};
use crate::sys::{DevNum, Errno};
use rustix::fs::fstat;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A mount cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// CRIU cannot restore that many here.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// Stopped by a test.
    #[error(transparent)]
    Fault(#[from] faults::Fault),
    /// The maker.
    #[error("{}: {error}", path.display())]
    Make {
        /// The mount.
        path: PathBuf,
        /// Its answer.
        error: AskError,
    },
    /// Attaching the superblock.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A directory or symlink inside, or another call.
    #[error("{}: cannot {what}: {errno}", path.display())]
    Call {
        /// The mount, or what is inside it.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Cgroups of the container.
    #[error("cgroups without processes could not be made: {0}; watches of them cannot be restored")]
    Cgroups(Errno),
    /// No maker at all.
    #[error("there is no process that makes autofs mounts: {0}")]
    NoMaker(AskError),
    /// The master's process could not be used.
    #[error("process {pid}: {error}; its mounts stay catatonic")]
    Master {
        /// The process.
        pid: i32,
        /// What failed.
        error: TraceeError,
    },
    /// systemd ignores the requests of mounts whose numbers it does not know.
    #[error(
        "systemd (process {pid}) does not know the new device numbers of its mounts: {error}; restart its automount units"
    )]
    Renumber {
        /// Its process.
        pid: i32,
        /// What failed.
        error: RenumberError,
    },
    /// One mount could not be given to its master.
    #[error("{}: {what}; the mount stays catatonic", path.display())]
    NoMaster {
        /// The mount.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

/// The autofs mounts of a container that is restored.
#[derive(Debug)]
pub struct Restore {
    /// The first place of each superblock, in the order of the images.
    images: Checkpoint,
    by_dev: BTreeMap<DevNum, u32>,
    /// Descriptors on covered roots.
    parked: Vec<Descriptor>,
    /// Numbers that mounts had, and have now, where these differ.
    new: HashMap<DevNum, DevNum>,
    /// By which inodes masters know mounts.
    inodes: HashMap<DevNum, u64>,
    maker: Maker,
    /// Below the root of the container's cgroup namespace; made with the first mount.
    cgroups: Vec<PathBuf>,
    /// The cgroup namespace of CRIU's main process.
    outside: Option<u64>,
}

impl Restore {
    /// Read the images and claim the device numbers; `None` when there are none of ours. Also returns what
    /// could not be claimed. `renumber`: also systemd's mounts get another number where theirs is taken.
    pub fn open(dir: BorrowedFd<'_>, renumber: bool) -> Result<Option<(Self, Vec<String>)>, RestoreError> {
        let files = criu::Mounts::read(dir)?;
        if files.is_empty() {
            return Ok(None);
        }
        // It takes the numbers while everything is decoded here.
        let maker = Maker::start(&files, renumber).map_err(RestoreError::NoMaker)?;
        let images = match Self::decode(&files) {
            Ok(images) => images,
            Err(error) => {
                maker.end();
                return Err(error);
            }
        };
        let by_dev = (0..).zip(&images.mounts).map(|(index, image)| (image.facts.dev, index)).collect();
        let unclaimed = maker.claimed().map_err(RestoreError::NoMaker)?;
        faults::point("container.claimed")?;
        let parked = criu::read_parked(dir)?.into_iter();
        let parked = parked
            .map(|(inner, fd, minor, cloexec)| Descriptor {
                inner,
                fd,
                dev: DevNum::anonymous(minor),
                cloexec,
            })
            .collect();
        let inodes = criu::read_roots(dir)?;
        let (cgroups, outside) = (criu::read_cgroups(dir)?, cgroups::namespace("self"));
        let new = HashMap::new();
        let restore = Self { images, by_dev, parked, new, inodes, maker, cgroups, outside };
        Ok(Some((restore, unclaimed)))
    }

    /// Every superblock, if CRIU can restore them here.
    fn decode(files: &criu::Mounts) -> Result<Checkpoint, RestoreError> {
        let images = each_once(files.decode()?);
        let pipes = limits::pipes(images.mounts.iter().map(|image| &image.facts));
        limits::buffer().map_or(Ok(()), |buffer| limits::of_restore(&pipes, buffer))?;
        Ok(images)
    }

    /// How many superblocks.
    pub fn len(&self) -> usize {
        self.images.mounts.len()
    }

    /// Never: there is a restore only where there are images.
    pub fn is_empty(&self) -> bool {
        self.images.mounts.is_empty()
    }

    /// Is there an image of ours of this superblock?
    pub fn has(&self, dev: DevNum) -> bool {
        self.by_dev.contains_key(&dev)
    }

    /// In the root task, which is in the container's cgroups now, and nobody has watches yet: make those that nobody is in.
    pub fn make_cgroups(&self) -> Result<(), RestoreError> {
        // Told not to manage cgroups, CRIU leaves the task in its own namespace.
        if self.cgroups.is_empty() || cgroups::namespace("self") == self.outside {
            return Ok(());
        }
        cgroups::make(&self.cgroups).map_err(RestoreError::Cgroups)
    }

    /// In the root task: mount superblock `dev` at `path`, catatonic, with its directories.
    pub fn mount(&mut self, dev: DevNum, path: &Path, flags: MountFlags) -> Result<(), RestoreError> {
        let Some(&index) = self.by_dev.get(&dev) else { return Ok(()) };
        let image = &self.images.mounts[index as usize];
        let failed = |error| RestoreError::Make { path: image.facts.path.clone(), error };
        let made = self.maker.fetch(index).map_err(failed)?;
        faults::point("container.made")?;
        let change = Change { set: flags, clear: MountFlags::empty(), propagation: None, recursive: false };
        if !flags.is_empty() {
            change.apply(&made, Path::new(""))?;
        }
        rustix::mount::move_mount(
            &made,
            "",
            rustix::fs::CWD,
            path,
            rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|errno| RestoreError::Call { path: path.into(), what: "attach the mount", errno })
    }

    /// In CRIU's main process, when all tasks below `root` are whole and stopped (we trace them): give every
    /// mount to its master. A mount that could not be given stays catatonic: lookups fail, none hangs.
    pub fn attach(mut self, root: i32) -> Vec<RestoreError> {
        let errors = self.attach_all(root);
        // The maker ends. The rest ends with this process, soon: to take thousands of descriptions apart takes longer than all else that
        // tasks wait for.
        let Self { maker, images, .. } = self;
        drop(maker);
        std::mem::forget(images);
        errors
    }

    fn attach_all(&mut self, root: i32) -> Vec<RestoreError> {
        let tree = Tree::of(root);
        let mut errors = Vec::new();
        let inodes = match self.take_what_was_made() {
            Ok(inodes) => inodes,
            Err(error) => {
                let what = error.to_string();
                let lost = |image: &DumpedMount| no_master(&image.facts, what.clone());
                return self.images.mounts.iter().map(lost).collect();
            }
        };
        // One stop for each owner, however many mounts it has.
        let mut by_owner: BTreeMap<i32, Vec<Superblock<'_>>> = BTreeMap::new();
        for (index, mount) in (0..).zip(&self.images.mounts) {
            let facts = &mount.facts;
            let Some(&inode) = inodes.get(index as usize) else {
                errors.push(no_master(facts, "CRIU did not mount it".to_owned()));
                continue;
            };
            match owner::of(&tree, facts) {
                Some(owner) => {
                    by_owner.entry(owner.pid).or_default().push(Superblock { index, facts, inode })
                }
                // Nobody answered it before, and nobody will.
                None if facts.catatonic || facts.master == Master::Dead => {}
                None => {
                    let group = facts.options.pgrp;
                    errors.push(no_master(
                        facts,
                        format!("no restored process is of its owner's group {group}"),
                    ));
                }
            }
        }
        for (pid, mounts) in by_owner {
            let mut owned = Owned { restore: self, tree: &tree, pid, errors: &mut errors };
            if let Err(error) = owned.attach(&mounts) {
                errors.push(RestoreError::Master { pid, error });
            }
        }
        errors
    }

    /// From now on every mount has the number that it really got. Returns the inodes of root directories, of as many as were made.
    fn take_what_was_made(&mut self) -> Result<Vec<u64>, AskError> {
        let made = self.maker.made()?;
        for (image, made) in self.images.mounts.iter_mut().zip(&made) {
            let old = std::mem::replace(&mut image.facts.dev, made.dev);
            if old != made.dev {
                self.new.insert(old, made.dev);
            }
        }
        for descriptor in &mut self.parked {
            descriptor.dev = self.new.get(&descriptor.dev).copied().unwrap_or(descriptor.dev);
        }
        Ok(made.iter().map(|made| made.ino).collect())
    }
}

/// Each superblock at its first place.
pub(super) fn each_once(mut images: Checkpoint) -> Checkpoint {
    let mut seen = HashSet::new();
    images.mounts.retain(|image| seen.insert(image.facts.dev));
    images
}

fn no_master(mount: &AutofsMount, what: String) -> RestoreError {
    RestoreError::NoMaster { path: mount.path.clone(), what }
}

/// A mount that was made.
#[derive(Clone, Copy)]
struct Superblock<'a> {
    /// The maker's number.
    index: u32,
    facts: &'a AutofsMount,
    /// Of its root directory, now.
    inode: u64,
}

/// The mounts of one owner.
struct Owned<'a> {
    restore: &'a Restore,
    tree: &'a Tree,
    /// The owner.
    pid: i32,
    errors: &'a mut Vec<RestoreError>,
}

impl Owned<'_> {
    fn attach(&mut self, mounts: &[Superblock<'_>]) -> Result<(), TraceeError> {
        let control = match Control::open() {
            Ok(control) => control,
            Err(error) => {
                self.fail(mounts, &error.to_string());
                return Ok(());
            }
        };
        let mut held = Held::adopt(self.pid);
        let owner = Owner::new(&mut held, &control)?;
        let mut by_pipe: BTreeMap<Option<u64>, Vec<Superblock<'_>>> = BTreeMap::new();
        for mount in mounts {
            by_pipe.entry(mount.facts.options.pipe_ino).or_default().push(*mount);
        }
        for mounts in by_pipe.into_values() {
            self.attach_pipe(&owner, &mounts)?;
        }
        drop(owner);
        self.place_descriptors(&control, &mut held, mounts)?;
        let new = &self.restore.new;
        let its: Vec<_> =
            mounts.iter().filter(|mount| matches!(mount.facts.master, Master::Systemd { .. })).collect();
        if its.iter().any(|mount| new.values().any(|new| *new == mount.facts.dev)) {
            let renumbered = renumber::renumber(&mut held, new);
            self.errors.extend(renumbered.err().map(|error| RestoreError::Renumber { pid: self.pid, error }));
        } else if !its.is_empty() {
            owner::delay_timers(&mut held)?;
        }
        held.release()
    }

    /// Its descriptors on covered roots: by its own eyes, as what the maker has is not the mount in its namespace, but one that CRIU has
    /// made that from.
    fn place_descriptors(
        &mut self,
        control: &Control,
        held: &mut Held,
        mounts: &[Superblock<'_>],
    ) -> Result<(), TraceeError> {
        let inner = self.tree.by_pid(self.pid).map(|member| member.inner);
        let mut its =
            self.restore.parked.iter().filter(|descriptor| Some(descriptor.inner) == inner).peekable();
        if its.peek().is_none() {
            return Ok(());
        }
        let what = "using the root directory";
        let eyes = Eyes::of(self.pid, control, self.tree).map_err(|errno| TraceeError::Call {
            tid: self.pid,
            what,
            errno,
        })?;
        for descriptor in its {
            let Some(mount) = mounts.iter().find(|mount| mount.facts.dev == descriptor.dev) else { continue };
            match eyes.open(mount.facts) {
                Ok(root) => parked::place(held, root.as_fd(), descriptor.fd, descriptor.cloexec)?,
                Err(error) => self.fail(&[*mount], &error.to_string()),
            }
        }
        Ok(())
    }

    /// The mounts of one pipe; those without one only learn who owns them.
    fn attach_pipe(&mut self, owner: &Owner<'_>, mounts: &[Superblock<'_>]) -> Result<(), TraceeError> {
        let Some(first) = mounts.first() else { return Ok(()) };
        let catatonic = first.facts.options.pipe_ino.is_none();
        let pipe = match catatonic {
            true => rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map(|(_, write)| write).ok(),
            false => self.write_end(first.facts),
        };
        let Some(pipe) = pipe else {
            self.fail(mounts, "no restored process reads its pipe");
            return Ok(());
        };
        let pipe = match self.through_relay(pipe, mounts) {
            Ok(pipe) => pipe,
            Err(errno) => {
                self.fail(mounts, &format!("no process can stand between the kernel and automount: {errno}"));
                return Ok(());
            }
        };
        let roots = match self.restore.maker.roots(mounts.iter().map(|mount| mount.index).collect()) {
            Ok(roots) => roots,
            Err(error) => {
                self.fail(mounts, &error.to_string());
                return Ok(());
            }
        };
        let mut results = Vec::with_capacity(mounts.len());
        let done = owner.set_pipe_of(&roots, mounts.len(), pipe.as_fd(), catatonic, &mut results);
        for (mount, result) in mounts.iter().zip(&results) {
            if let Err(error) = result {
                self.fail(&[*mount], &error.to_string());
            }
        }
        if let Err(error) = done {
            self.fail(&mounts[results.len()..], &error.to_string());
        }
        Ok(())
    }

    /// The pipe for the kernel: the master's own, or one to a relay, where the master knows mounts by other inodes.
    fn through_relay(&self, pipe: OwnedFd, mounts: &[Superblock<'_>]) -> Result<OwnedFd, Errno> {
        let mut inodes = HashMap::new();
        for mount in mounts.iter().filter(|mount| mount.facts.known_by_inode()) {
            let known = self.restore.inodes.get(&mount.facts.dev);
            if let Some(known) = known.filter(|known| **known != mount.inode) {
                inodes.insert(mount.facts.dev.minor, *known);
            }
        }
        if inodes.is_empty() || mounts.iter().all(|mount| mount.facts.catatonic) {
            return Ok(pipe);
        }
        let table = Table { pipe: fstat(&pipe)?.st_ino, inodes };
        relay::start(&pipe, &table)
    }

    /// A write end of the mount's pipe, by way of whoever holds an end of it.
    fn write_end(&self, mount: &AutofsMount) -> Option<OwnedFd> {
        let reopen = |end: &PipeEnd| reopen_write_end(self.tree.by_inner(end.process.pid)?.pid, end.fd).ok();
        mount.pipe_ends.iter().filter(|end| end.end == End::Read).find_map(reopen)
    }

    fn fail(&mut self, mounts: &[Superblock<'_>], why: &str) {
        self.errors.extend(mounts.iter().map(|mount| no_master(mount.facts, why.to_owned())));
    }
}
