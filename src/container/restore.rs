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
use crate::image::{Checkpoint, ImageError, criu};
use crate::sys::control::{Control, MountFd};
use crate::sys::mount::{Change, MountError, MountFlags};
use crate::sys::process::reopen_write_end;
use crate::sys::tracee::{Held, TraceeError};
use crate::sys::{DevNum, Errno};
use rustix::fs::fstat;
use std::collections::{BTreeMap, HashMap};
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
    #[error("the process that makes autofs mounts could not be started: {0}")]
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
        let mut images = criu::read(dir)?;
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
        let mut by_dev = BTreeMap::new();
        images.mounts.retain(|image| {
            !by_dev.contains_key(&image.facts.dev) && {
                by_dev.insert(image.facts.dev, by_dev.len() as u32);
                true
            }
        });
        if images.mounts.is_empty() {
            return Ok(None);
        }
        let pipes = limits::pipes(images.mounts.iter().map(|image| &image.facts));
        limits::buffer().map_or(Ok(()), |buffer| limits::of_restore(&pipes, buffer))?;
        let (maker, unclaimed) = Maker::start(&images, renumber).map_err(RestoreError::NoMaker)?;
        faults::point("container.claimed")?;
        let (cgroups, outside) = (criu::read_cgroups(dir)?, cgroups::namespace("self"));
        let new = HashMap::new();
        let restore = Self { images, by_dev, parked, new, inodes, maker, cgroups, outside };
        Ok(Some((restore, unclaimed)))
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
    pub fn attach(&mut self, root: i32) -> Vec<RestoreError> {
        let tree = Tree::of(root);
        let mut errors = Vec::new();
        self.take_their_numbers();
        // One stop for each owner, however many mounts it has.
        let mut by_owner: BTreeMap<i32, Vec<&AutofsMount>> = BTreeMap::new();
        for image in self.images.mounts.iter().map(|mount| &mount.facts) {
            match owner::of(&tree, image) {
                Some(owner) => by_owner.entry(owner.pid).or_default().push(image),
                // Nobody answered it before, and nobody will.
                None if image.catatonic || image.master == Master::Dead => {}
                None => errors.push(RestoreError::NoMaster {
                    path: image.path.clone(),
                    what: format!("no restored process is of its owner's group {}", image.options.pgrp),
                }),
            }
        }
        for (pid, mounts) in by_owner {
            let mut owned = Owned {
                tree: &tree,
                pid,
                parked: &self.parked,
                new: &self.new,
                inodes: &self.inodes,
                errors: &mut errors,
            };
            if let Err(error) = owned.attach(&mounts) {
                errors.push(RestoreError::Master { pid, error });
            }
        }
        errors
    }
}

impl Restore {
    /// From now on every mount has the number that it really got: the maker has them all, still.
    fn take_their_numbers(&mut self) {
        let numbers = self.maker.numbers(self.images.mounts.len()).unwrap_or_default();
        for (image, number) in self.images.mounts.iter_mut().zip(numbers) {
            let old = std::mem::replace(&mut image.facts.dev, number);
            if old != number {
                self.new.insert(old, number);
            }
        }
        for descriptor in &mut self.parked {
            descriptor.dev = self.new.get(&descriptor.dev).copied().unwrap_or(descriptor.dev);
        }
    }
}

/// The mounts of one owner.
struct Owned<'a> {
    tree: &'a Tree,
    /// The owner.
    pid: i32,
    /// Of all processes.
    parked: &'a [Descriptor],
    /// Of all mounts.
    new: &'a HashMap<DevNum, DevNum>,
    /// Of all mounts: by which inodes masters know them.
    inodes: &'a HashMap<DevNum, u64>,
    errors: &'a mut Vec<RestoreError>,
}

impl<'a> Owned<'a> {
    fn attach(&mut self, mounts: &[&AutofsMount]) -> Result<(), TraceeError> {
        let control = match Control::open() {
            Ok(control) => control,
            Err(error) => {
                self.fail(mounts, |_| error.to_string());
                return Ok(());
            }
        };
        let mut held = Held::adopt(self.pid);
        let owner = Owner::new(&mut held, &control)?;
        let mut by_pipe: BTreeMap<Option<u64>, Vec<&AutofsMount>> = BTreeMap::new();
        for mount in mounts {
            by_pipe.entry(mount.options.pipe_ino).or_default().push(mount);
        }
        for mounts in by_pipe.into_values() {
            self.attach_pipe(&control, &owner, &mounts)?;
        }
        drop(owner);
        self.place_descriptors(&control, &mut held, mounts)?;
        let its: Vec<_> =
            mounts.iter().filter(|mount| matches!(mount.master, Master::Systemd { .. })).collect();
        if its.iter().any(|mount| self.new.values().any(|new| *new == mount.dev)) {
            let renumbered = renumber::renumber(&mut held, self.new);
            self.errors.extend(renumbered.err().map(|error| RestoreError::Renumber { pid: self.pid, error }));
        } else if !its.is_empty() {
            owner::delay_timers(&mut held)?;
        }
        held.release()
    }

    /// Its descriptors on covered roots.
    fn place_descriptors(
        &mut self,
        control: &Control,
        held: &mut Held,
        mounts: &[&AutofsMount],
    ) -> Result<(), TraceeError> {
        let inner = self.tree.by_pid(self.pid).map(|member| member.inner);
        let eyes = self.eyes(control)?;
        for descriptor in self.parked.iter().filter(|descriptor| Some(descriptor.inner) == inner) {
            let Some(mount) = mounts.iter().find(|mount| mount.dev == descriptor.dev) else { continue };
            match eyes.open(mount) {
                Ok(root) => parked::place(held, root.as_fd(), descriptor.fd, descriptor.cloexec)?,
                Err(error) => self.fail(&[mount], |_| error.to_string()),
            }
        }
        Ok(())
    }

    /// The mounts of one pipe; those without one only learn who owns them.
    fn attach_pipe(
        &mut self,
        control: &Control,
        owner: &Owner<'_>,
        mounts: &[&AutofsMount],
    ) -> Result<(), TraceeError> {
        let Some(first) = mounts.first() else { return Ok(()) };
        let catatonic = first.options.pipe_ino.is_none();
        let pipe = match catatonic {
            true => rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map(|(_, write)| write).ok(),
            false => self.write_end(first),
        };
        let Some(pipe) = pipe else {
            self.fail(mounts, |_| "no restored process reads its pipe".to_owned());
            return Ok(());
        };
        let mut opened = Vec::with_capacity(mounts.len());
        let mut roots = Vec::with_capacity(mounts.len());
        let eyes = self.eyes(control)?;
        for mount in mounts {
            match eyes.open(mount) {
                Ok(root) => {
                    opened.push(*mount);
                    roots.push(root);
                }
                Err(error) => self.fail(&[mount], |_| error.to_string()),
            }
        }
        drop(eyes);
        let pipe = match self.through_relay(pipe, &opened, &roots) {
            Ok(pipe) => pipe,
            Err(errno) => {
                self.fail(mounts, |_| {
                    format!("no process can stand between the kernel and automount: {errno}")
                });
                return Ok(());
            }
        };
        let results = owner.set_pipe(&roots, pipe.as_fd())?;
        for ((mount, root), result) in opened.into_iter().zip(&roots).zip(results) {
            let result = result.and_then(|()| match catatonic {
                true => control.make_catatonic(root.as_fd()),
                false => Ok(()),
            });
            if let Err(error) = result {
                self.fail(&[mount], |_| error.to_string());
            }
        }
        Ok(())
    }

    /// The pipe for the kernel: the master's own, or one to a relay, where the master knows mounts by other inodes.
    fn through_relay(
        &self,
        pipe: OwnedFd,
        mounts: &[&AutofsMount],
        roots: &[MountFd],
    ) -> Result<OwnedFd, Errno> {
        let mut inodes = HashMap::new();
        for (mount, root) in mounts.iter().zip(roots).filter(|(mount, _)| mount.known_by_inode()) {
            let Some(&known) = self.inodes.get(&mount.dev) else { continue };
            if fstat(root.as_fd())?.st_ino != known {
                inodes.insert(mount.dev.minor, known);
            }
        }
        if inodes.is_empty() || mounts.iter().all(|mount| mount.catatonic) {
            return Ok(pipe);
        }
        let table = Table { pipe: fstat(&pipe)?.st_ino, inodes };
        relay::start(&pipe, &table)
    }

    fn eyes<'b>(&self, control: &'b Control) -> Result<Eyes<'b>, TraceeError>
    where
        'a: 'b,
    {
        let what = "using the root directory";
        Eyes::of(self.pid, control, self.tree).map_err(|errno| TraceeError::Call {
            tid: self.pid,
            what,
            errno,
        })
    }

    /// A write end of the mount's pipe, by way of whoever holds an end of it.
    fn write_end(&self, mount: &AutofsMount) -> Option<OwnedFd> {
        let reopen = |end: &PipeEnd| reopen_write_end(self.tree.by_inner(end.process.pid)?.pid, end.fd).ok();
        mount.pipe_ends.iter().filter(|end| end.end == End::Read).find_map(reopen)
    }

    fn fail(&mut self, mounts: &[&AutofsMount], why: impl Fn(&AutofsMount) -> String) {
        let error =
            |mount: &&AutofsMount| RestoreError::NoMaster { path: mount.path.clone(), what: why(mount) };
        self.errors.extend(mounts.iter().map(error));
    }
}
