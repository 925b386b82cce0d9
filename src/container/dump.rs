//! A dump, seen from CRIU's main process: every task of the container is stopped.

use super::tree::{Member, Tree};
use crate::discover::facts::{AutofsMount, End, Master, PipeEnd, Survey, TreeEntry};
use crate::discover::{DiscoverError, Target, survey};
use crate::image::checkpoint::DumpedMount;
use crate::image::{File, criu};
use crate::sys::control::{Control, ControlError};
use crate::sys::process::{ProcessId, copy_fd};
use crate::sys::{DevNum, Errno};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// A mount cannot be dumped, and so neither can the container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The mount tables could not be read.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The control device.
    #[error("{}: {error}", path.display())]
    Control {
        /// The mount.
        path: PathBuf,
        /// What failed.
        error: ControlError,
    },
    /// Another call.
    #[error("{}: cannot {what}: {errno}", path.display())]
    Call {
        /// The mount.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The facts have no such mount: CRIU's table and ours differ.
    #[error("no autofs mount {0} in the container's mount tables")]
    Unknown(DevNum),
    /// A request that the master has not read.
    #[error("{}: {bytes} bytes of requests wait in the pipe; try again when they are answered", path.display())]
    Unread {
        /// The mount.
        path: PathBuf,
        /// How many.
        bytes: u64,
    },
    /// The master is outside the container.
    #[error("{}: its master is not in the container: {who}", path.display())]
    Foreign {
        /// The mount.
        path: PathBuf,
        /// What is known of it.
        who: String,
    },
}

/// What is known of the container's autofs mounts.
#[derive(Debug)]
pub struct Dump {
    tree: Tree,
    /// One for each mount namespace, with the root directory of a member of it.
    surveys: Vec<(PathBuf, Survey)>,
}

impl Dump {
    /// The facts of the container whose root process is `root`; `None` when it has no autofs mounts.
    pub fn begin(root: i32) -> Result<Option<Self>, DumpError> {
        let tree = Tree::of(root);
        let look = |member: &Member| -> Result<_, DumpError> {
            let survey = survey(&Target::Process(member.pid))?;
            Ok((PathBuf::from(format!("/proc/{}/root", member.pid)), survey))
        };
        let surveys = tree.mount_namespaces().into_iter().map(look).collect::<Result<Vec<_>, _>>()?;
        let empty = surveys.iter().all(|(_, survey)| survey.mounts.is_empty());
        Ok((!empty).then_some(Self { tree, surveys }))
    }

    /// How many places have an autofs mount.
    pub fn places(&self) -> usize {
        self.surveys.iter().map(|(_, survey)| survey.mounts.len()).sum()
    }

    /// The image of the superblock `dev`.
    pub fn image(&self, dev: DevNum) -> Result<File, DumpError> {
        // A copy of the namespace has copies of its mounts: the first is enough.
        let mut position = 0;
        for (root, survey) in &self.surveys {
            let places = survey.mounts.iter().enumerate().filter(|(_, mount)| mount.dev == dev);
            let dumped = places
                .map(|(index, mount)| Ok((position + index, self.dump(root, survey, mount)?)))
                .collect::<Result<Vec<_>, DumpError>>()?;
            if let Some(file) = criu::encode(dumped.iter().map(|(position, mount)| (*position, mount))) {
                return Ok(file);
            }
            position += survey.mounts.len();
        }
        Err(DumpError::Unknown(dev))
    }

    fn dump(&self, root: &Path, survey: &Survey, mount: &AutofsMount) -> Result<DumpedMount, DumpError> {
        let call = |what| move |errno| DumpError::Call { path: mount.path.clone(), what, errno };
        let facts = self.inner(mount);
        if !mount.catatonic {
            self.master_is_inside(mount)?;
            unread(mount)?;
        }
        let at = root.join(mount.path.strip_prefix("/").unwrap_or(&mount.path));
        let failed = |error| DumpError::Control { path: mount.path.clone(), error };
        let fd = Control::open().and_then(|control| control.open_mount(&at, mount.dev)).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(call("look at its root"))?;
        Ok(DumpedMount {
            facts,
            root_mode: stat.st_mode & 0o7777,
            root_uid: stat.st_uid,
            root_gid: stat.st_gid,
            root_requester: None,
            tree: mount_points(mount, &survey.mounts),
            in_flight: Vec::new(),
            served_by: None,
            active: Vec::new(),
        })
    }

    /// Somebody in the container reads the pipe.
    fn master_is_inside(&self, mount: &AutofsMount) -> Result<(), DumpError> {
        let inside = |end: &PipeEnd| self.tree.by_pid(end.process.pid).is_some();
        let mut readers = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
        let who = match &mount.master {
            _ if readers.any(inside) => return Ok(()),
            // Nobody will ever read it: the restored mount is catatonic.
            Master::Dead => return Ok(()),
            Master::Automount { process }
            | Master::Systemd { process, .. }
            | Master::AutofsCr { process }
            | Master::Unknown { process, .. } => format!("it is process {}", process.pid),
            Master::NotVisible => "no process is seen to read its pipe".to_owned(),
        };
        Err(DumpError::Foreign { path: mount.path.clone(), who })
    }

    /// The facts with the numbers that the container uses for its processes.
    fn inner(&self, mount: &AutofsMount) -> AutofsMount {
        let translate = |id: ProcessId| Some(ProcessId { pid: self.tree.by_pid(id.pid)?.inner, ..id });
        let ends = mount.pipe_ends.iter();
        let ends = ends.filter_map(|end| Some(PipeEnd { process: translate(end.process)?, ..end.clone() }));
        let mut facts = mount.clone();
        facts.pipe_ends = ends.collect();
        facts.options.pgrp = self.inner_group(mount.options.pgrp);
        facts.waiters.clear();
        facts.master = match &mount.master {
            Master::Automount { process } => translate(*process).map(|process| Master::Automount { process }),
            Master::AutofsCr { process } => translate(*process).map(|process| Master::AutofsCr { process }),
            Master::Systemd { process, unit } => {
                translate(*process).map(|process| Master::Systemd { process, unit: unit.clone() })
            }
            Master::Unknown { process, comm } => {
                translate(*process).map(|process| Master::Unknown { process, comm: comm.clone() })
            }
            Master::Dead | Master::NotVisible => None,
        }
        .unwrap_or(Master::Dead);
        facts
    }

    /// The owner group's number in the container; 0 when nobody of it lives there.
    fn inner_group(&self, group: i32) -> i32 {
        let in_group = |member: &&Member| {
            ProcessId::of(member.pid).and_then(ProcessId::group).is_ok_and(|its| its == group)
        };
        match self.tree.by_pid(group) {
            Some(leader) if leader.inner_group == leader.inner => leader.inner,
            _ => self.tree.members.iter().find(in_group).map_or(0, |member| member.inner_group),
        }
    }
}

/// The directories of an autofs mount that others are mounted on, and those above them.
fn mount_points(mount: &AutofsMount, all: &[AutofsMount]) -> Vec<TreeEntry> {
    let children = all.iter().filter(|child| child.parent_id == mount.mount_id).map(|child| &child.path);
    let covering = mount.covering.iter().map(|covering| &covering.path);
    let mut paths = BTreeSet::new();
    for below in children.chain(covering).filter_map(|path| path.strip_prefix(&mount.path).ok()) {
        paths.extend(below.ancestors().filter(|path| !path.as_os_str().is_empty()));
    }
    let entry = |path: &Path| TreeEntry {
        path: path.into(),
        mode: 0o555,
        uid: 0,
        gid: 0,
        symlink: None,
        timeout: None,
        requester: None,
    };
    paths.into_iter().map(entry).collect()
}

/// A request in the pipe would be lost.
fn unread(mount: &AutofsMount) -> Result<(), DumpError> {
    let mut seen = HashSet::new();
    let readers = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
    for end in readers.filter(|end| seen.insert(end.process)) {
        let failed = |errno| DumpError::Call { path: mount.path.clone(), what: "look into its pipe", errno };
        let pipe = copy_fd(end.process.pid, end.fd).map_err(failed)?;
        let bytes = rustix::io::ioctl_fionread(&pipe).map_err(failed)?;
        if bytes > 0 {
            return Err(DumpError::Unread { path: mount.path.clone(), bytes });
        }
    }
    Ok(())
}
