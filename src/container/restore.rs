//! A restore: superblocks in the root task, masters when every task is whole again.

use super::maker::{AskError, Maker};
use super::tree::{Member, Tree};
use crate::discover::facts::{AutofsMount, End, PipeEnd};
use crate::image::{Checkpoint, ImageError, criu};
use crate::sys::control::{Control, ControlError};
use crate::sys::mount::{Change, MountError, MountFlags};
use crate::sys::process::reopen_write_end;
use crate::sys::tracee::{Held, Injected, TraceeError};
use crate::sys::{DevNum, Errno};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A mount cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The images.
    #[error(transparent)]
    Image(#[from] ImageError),
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
    /// No maker at all.
    #[error("the process that makes autofs mounts could not be started: {0}")]
    NoMaker(AskError),
    /// The master.
    #[error("{}: {error}", path.display())]
    Master {
        /// The mount.
        path: PathBuf,
        /// What failed.
        error: TraceeError,
    },
    /// A command in the master's context.
    #[error("{}: {error}", path.display())]
    Control {
        /// The mount.
        path: PathBuf,
        /// What failed.
        error: ControlError,
    },
    /// Nobody of the owner's group, or nobody with the pipe.
    #[error("{}: no restored process {what}; the mount stays catatonic", path.display())]
    NoMaster {
        /// The mount.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
}

/// The autofs mounts of a container that is restored.
#[derive(Debug)]
pub struct Restore {
    /// The first place of each superblock, in the order of the images.
    images: Checkpoint,
    by_dev: BTreeMap<DevNum, u32>,
    maker: Maker,
}

impl Restore {
    /// Read the images and claim the device numbers; `None` when there are none of ours. Also returns what
    /// could not be claimed.
    pub fn open(dir: BorrowedFd<'_>) -> Result<Option<(Self, Vec<String>)>, RestoreError> {
        let mut images = criu::read(dir)?;
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
        let (maker, unclaimed) = Maker::start(&images).map_err(RestoreError::NoMaker)?;
        Ok(Some((Self { images, by_dev, maker }, unclaimed)))
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

    /// In the root task: mount superblock `dev` at `path`, catatonic, with its directories.
    pub fn mount(&self, dev: DevNum, path: &Path, flags: MountFlags) -> Result<(), RestoreError> {
        let Some(&index) = self.by_dev.get(&dev) else { return Ok(()) };
        let image = &self.images.mounts[index as usize];
        let failed = |error| RestoreError::Make { path: image.facts.path.clone(), error };
        let made = self.maker.fetch(index).map_err(failed)?;
        let change = Change { set: flags, clear: MountFlags::empty(), propagation: None, recursive: false };
        change.apply(&made, Path::new(""))?;
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
    /// mount to its master. Each mount that could not be given stays catatonic: lookups fail, none hangs.
    pub fn attach(&self, root: i32) -> Vec<RestoreError> {
        let tree = Tree::of(root);
        let mut errors = Vec::new();
        // One stop for each owner, however many mounts it has.
        let mut by_owner: BTreeMap<i32, Vec<&AutofsMount>> = BTreeMap::new();
        for image in self.images.mounts.iter().map(|image| &image.facts) {
            if image.catatonic {
                continue;
            }
            match owner(&tree, image) {
                Some(owner) => by_owner.entry(owner.pid).or_default().push(image),
                None => errors.push(RestoreError::NoMaster {
                    path: image.path.clone(),
                    what: format!("is of its owner's process group {}", image.options.pgrp),
                }),
            }
        }
        for (owner, mounts) in by_owner {
            if let Err(error) = attach_all(&tree, owner, &mounts, &mut errors) {
                errors.push(error);
            }
        }
        errors
    }
}

/// Who makes the call: a process of the owner group, the one that reads the pipe if possible.
fn owner<'a>(tree: &'a Tree, mount: &AutofsMount) -> Option<&'a Member> {
    let group = mount.options.pgrp;
    let readers = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
    let mut readers = readers.filter_map(|end| tree.by_inner(end.process.pid));
    readers
        .find(|member| member.inner_group == group)
        .or_else(|| tree.members.iter().find(|member| member.inner_group == group))
}

fn attach_all(
    tree: &Tree,
    owner: i32,
    mounts: &[&AutofsMount],
    errors: &mut Vec<RestoreError>,
) -> Result<(), RestoreError> {
    let Some(first) = mounts.first() else { return Ok(()) };
    let control =
        Control::open().map_err(|error| RestoreError::Control { path: first.path.clone(), error })?;
    let device: OwnedFd = control.as_fd().try_clone_to_owned().map_err(|error| RestoreError::Call {
        path: first.path.clone(),
        what: "copy a descriptor",
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    let mut held = Held::adopt(owner);
    for mount in mounts {
        if let Err(error) = attach_one(tree, &mut held, &control, &device, mount) {
            errors.push(error);
        }
    }
    let first = first.path.clone();
    held.release().map_err(|error| RestoreError::Master { path: first, error })?;
    Ok(())
}

fn attach_one(
    tree: &Tree,
    held: &mut Held,
    control: &Control,
    device: &OwnedFd,
    mount: &AutofsMount,
) -> Result<(), RestoreError> {
    let path = || mount.path.clone();
    let master = |error| RestoreError::Master { path: path(), error };
    let pipe = write_end(tree, mount)?;
    // From here, by the namespace of the process: it need not see the path itself.
    let at = PathBuf::from(format!("/proc/{}/root", held.tid()));
    let at = at.join(mount.path.strip_prefix("/").unwrap_or(&mount.path));
    let failed = |error| RestoreError::Control { path: path(), error };
    let root = control.open_mount(&at, mount.dev).map_err(failed)?;
    let root = held.send_fd(root.as_fd()).map_err(master)?;
    let end = held.send_fd(pipe.as_fd()).map_err(master)?;
    let result = {
        let injected = Injected::new(held, device).map_err(master)?;
        Control::with_caller(injected).set_pipe(root, end).map_err(failed)
    };
    held.close_fd(end).map_err(master)?;
    held.close_fd(root).map_err(master)?;
    result
}

/// A write end of the mount's pipe, by way of whoever holds an end of it.
fn write_end(tree: &Tree, mount: &AutofsMount) -> Result<OwnedFd, RestoreError> {
    let reopen = |end: &PipeEnd| reopen_write_end(tree.by_inner(end.process.pid)?.pid, end.fd).ok();
    mount
        .pipe_ends
        .iter()
        .filter(|end| end.end == End::Read)
        .find_map(reopen)
        .ok_or_else(|| RestoreError::NoMaster { path: mount.path.clone(), what: "reads its pipe".to_owned() })
}
