//! Restore: what an image holds becomes mounts with a master again.
//!
//! | module | what it does |
//! |---|---|
//! | [`plan`] | decides: a pure function of the image, the namespace as it is, and the wishes |
//! | [`helper`] | the process in the target's namespaces that makes the mounts, and may become their engine |
//! | [`create`], [`claim`] | the mounts, with their device numbers |
//! | [`crate::attach`] | gives them a master |
//! | [`resume`] | waiters go on, the holder ends, active keys are mounted again |
//! | [`verify`] | compares what is there with the image |
//! | [`rollback`] | takes everything back after an error |
//! | [`trust`] | which programs that the image names may run |
//! | [`serve`], [`supervise`] | the helper becomes the engine; the command stays in the foreground |

pub mod claim;
pub mod create;
mod foreground;
pub mod helper;
pub mod plan;
pub mod resume;
pub mod rollback;
mod serve;
mod trust;
pub mod verify;

pub use foreground::supervise;

use crate::attach::{self, AttachError, Share};
use crate::discover::facts::Survey;
use crate::discover::{self, DiscoverError, mountinfo, proc::TaskDir};
use crate::faults::{self, Fault};
use crate::image::{self, Checkpoint, ImageError};
use crate::sys::fork::Child;
use crate::sys::{DevNum, Errno};
use helper::{Helper, HelperError, Job};
use plan::{Action, Attach, NewMaster, Now, PlanError, RestorePlan, Wishes};
use rollback::RollbackError;
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use verify::Outcome;

/// What to restore, where and for whom.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image directory.
    pub image: PathBuf,
    /// The mount namespace.
    pub target: discover::Target,
    /// A directory there, absolute: all paths of the image are taken below it.
    pub root: PathBuf,
    /// Only the mounts at these paths, and below them; none: all.
    pub paths: Vec<PathBuf>,
    /// Who shall answer.
    pub master: Master,
    /// Mount again what was mounted when the image was made.
    pub remount_active: bool,
    /// Refuse rather than give a mount a new device number.
    pub require_devid: bool,
    /// Run the programs that the image names as maps.
    pub trust_programs: bool,
}

/// Who shall answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Master {
    /// Nobody.
    Nobody,
    /// Our engine, in a process of its own.
    Engine {
        /// It keeps our stdin, stdout and stderr.
        foreground: bool,
    },
    /// This process, with its descriptors as they were.
    Process(i32),
}

impl Master {
    fn is_engine(self) -> bool {
        matches!(self, Self::Engine { .. })
    }
}

/// A restore that is done.
#[derive(Debug)]
pub struct Restored {
    /// For each mount of the image, in its order.
    pub mounts: Vec<Outcome>,
    /// The new master.
    pub master: Option<i32>,
    /// Visitors who waited for the old master and wait for the new one now.
    pub waiters: usize,
    /// What else was done, and what could not be.
    pub resumed: resume::Resumed,
    /// The engine's process; it goes on when this is left.
    pub engine: Option<Child>,
}

/// The restore failed. Everything is as it was, but for what the message says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image has no mount at a path that was named, nor below it.
    #[error("no autofs mount at {} in the image {}; autofs-cr show tells what it holds", path.display(), image.display())]
    NotInImage {
        /// As it was named.
        path: PathBuf,
        /// The image's directory.
        image: PathBuf,
    },
    /// The namespace cannot be looked at.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// It is not possible here.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The namespace cannot be entered.
    #[error("the mount namespace cannot be entered: {0}")]
    Namespace(Errno),
    /// The mounts could not be made, or the engine does not start.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The mounts could not be given to the new master.
    #[error(transparent)]
    Attach(RollbackError<Box<AttachError>>),
    /// Stopped by a test.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Restore. This process must have no other threads: it forks.
pub fn restore(request: &Request) -> Result<Restored, RestoreError> {
    let mut image = image::read(&request.image)?;
    if let Some(path) = request.paths.iter().find(|path| !holds(&image, path)) {
        return Err(RestoreError::NotInImage { path: path.clone(), image: request.image.clone() });
    }
    if !request.paths.is_empty() {
        let wanted = |path: &Path| request.paths.iter().any(|wanted| path.starts_with(wanted));
        image.mounts.retain(|mount| wanted(&mount.facts.path));
    }
    faults::point("restore.image-read")?;
    allow_many_descriptors();
    let same_boot = image.origin.boot_id == boot_id();
    let before = discover::survey(&request.target)?;
    let plan = make_plan(&image, &before, request, same_boot)?;
    faults::point("restore.planned")?;

    let helper = start_helper(&image, &plan, &before, request)?;
    let made = helper.as_ref().map(|helper| helper.ready.by_step()).unwrap_or_default();
    let (engine, waiters) = give_master(&plan, &before, request, helper)?;
    let master = match request.master {
        Master::Nobody => None,
        Master::Engine { .. } => engine.as_ref().map(Child::pid),
        Master::Process(pid) => Some(pid),
    };

    let resumed = resume::resume(&image, &plan, &request.target, same_boot);
    let now = discover::survey(&request.target)?;
    let mounts = verify::compare(&image, &plan, &made, &now.mounts, master);
    Ok(Restored { mounts, master, waiters, resumed, engine })
}

/// A mount at this path, or below it?
fn holds(image: &Checkpoint, path: &Path) -> bool {
    image.mounts.iter().any(|mount| mount.facts.path.starts_with(path))
}

fn make_plan(
    image: &Checkpoint,
    before: &Survey,
    request: &Request,
    same_boot: bool,
) -> Result<RestorePlan, RestoreError> {
    let (_, file) = discover::survey::read(&request.target)?;
    let table = mountinfo::parse(&file).map_err(DiscoverError::from)?;
    let untrusted = match request.trust_programs || !request.master.is_engine() {
        true => Vec::new(),
        false => attach::space_of(&request.target)
            .and_then(|space| space.run(|| trust::untrusted(image, &request.root)))
            .map_err(RestoreError::Namespace)?,
    };
    let wishes = Wishes {
        root: request.root.clone(),
        require_devid: request.require_devid,
        master: match request.master {
            Master::Nobody => NewMaster::Nobody,
            Master::Engine { .. } => NewMaster::Engine,
            Master::Process(_) => NewMaster::Process,
        },
        remount_active: request.remount_active,
        untrusted,
    };
    let now = Now { mounts: &before.mounts, table: &table, same_boot };
    Ok(plan::plan(image, &now, &wishes)?)
}

/// A helper, if there is something to make or to serve.
fn start_helper(
    image: &Checkpoint,
    plan: &RestorePlan,
    before: &Survey,
    request: &Request,
) -> Result<Option<Helper>, RestoreError> {
    let makes =
        plan.steps.iter().any(|step| matches!(step.action, Action::Create { .. } | Action::Bind { .. }));
    if !makes && !request.master.is_engine() {
        return Ok(None);
    }
    let job = Job {
        image,
        plan,
        space: attach::space_of(&request.target).map_err(RestoreError::Namespace)?,
        pid_namespace: pid_namespace(plan, before, request)?,
        root: request.root.clone(),
        serve: request.master.is_engine().then_some(serve::serve as helper::Serve),
        background: request.master == Master::Engine { foreground: false },
    };
    Ok(Some(Helper::start(&job)?))
}

/// The pid namespace in which the owner of the mounts must live, when it is not ours: that of the process
/// that shall be the master, or of the owner that the adopted mounts have.
fn pid_namespace(
    plan: &RestorePlan,
    before: &Survey,
    request: &Request,
) -> Result<Option<OwnedFd>, RestoreError> {
    let process = match request.master {
        Master::Process(pid) => Some(pid),
        Master::Nobody => None,
        Master::Engine { .. } => {
            let adopted = plan.steps.iter().filter_map(|step| step.adopted());
            adopted.filter_map(|dev| owner(before, dev)).next()
        }
    };
    let inode = |pid: i32| TaskDir::process(pid).ok()?.namespace("pid");
    let own = inode(rustix::process::getpid().as_raw_pid());
    let Some(process) = process.filter(|&process| inode(process) != own) else { return Ok(None) };
    let path = format!("/proc/{process}/ns/pid");
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    opened.map(Some).map_err(RestoreError::Namespace)
}

/// A process of the owner group of a mount, or its master.
fn owner(survey: &Survey, dev: DevNum) -> Option<i32> {
    let mount = survey.mounts.iter().find(|mount| mount.dev == dev)?;
    let group = mount.options.pgrp;
    let leader = (group > 0).then(|| TaskDir::process(group).ok().map(|_| group)).flatten();
    leader.or_else(|| mount.master.process().map(|process| process.pid))
}

/// Give the mounts their master. Returns the engine, if that is it, and how many waiters were handed on.
fn give_master(
    plan: &RestorePlan,
    before: &Survey,
    request: &Request,
    helper: Option<Helper>,
) -> Result<(Option<Child>, usize), RestoreError> {
    let undo = |causal, helper: Option<Helper>| {
        let rollback = helper.map(Helper::undo).unwrap_or_default();
        RestoreError::Attach(RollbackError { causal: Box::new(causal), rollback })
    };
    let Some(mut helper) = helper else {
        return match request.master {
            Master::Process(pid) => attach::attach_to(pid, &request.target, &shares(plan, None))
                .map(|waiters| (None, waiters))
                .map_err(|error| undo(error, None)),
            Master::Nobody | Master::Engine { .. } => Ok((None, 0)),
        };
    };
    let shares = shares(plan, Some(&helper.ready));
    match request.master {
        Master::Nobody => {
            helper.end()?;
            Ok((None, 0))
        }
        Master::Process(pid) => {
            let waiters = match attach::attach_to(pid, &request.target, &shares) {
                Ok(waiters) => waiters,
                Err(error) => return Err(undo(error, Some(helper))),
            };
            helper.end()?;
            Ok((None, waiters))
        }
        // It attaches its mounts itself, unless it cannot see the processes that have to be held.
        Master::Engine { .. } if helper.sees_everybody() => {
            helper.attaching();
            let (engine, waiters) = helper.serve()?;
            Ok((Some(engine), waiters))
        }
        Master::Engine { .. } => {
            helper.attaching();
            let waiters = match attach::attach_to(helper.pid(), &request.target, &shares) {
                Ok(waiters) => waiters,
                Err(error) => return Err(undo(error, Some(helper))),
            };
            match helper.serve() {
                Ok((engine, more)) => Ok((Some(engine), waiters + more)),
                Err(mut error) => {
                    error.rollback.extend(give_back(plan, before, request));
                    Err(error.into())
                }
            }
        }
    }
}

/// What a master gets, by the descriptors from which it reads.
fn shares(plan: &RestorePlan, ready: Option<&helper::Ready>) -> Vec<Share> {
    let made = ready.map(helper::Ready::by_step).unwrap_or_default();
    let mut shares: BTreeMap<i32, Vec<attach::Target>> = BTreeMap::new();
    for (index, step) in plan.steps.iter().enumerate() {
        let dev = match step.action {
            Action::Adopt { dev, .. } => Some(dev),
            _ => made.get(&index).copied(),
        };
        let read_fd = match step.attach {
            Attach::Nobody => continue,
            Attach::Process { read_fd } => read_fd,
            Attach::Engine => ready.map_or(-1, |ready| ready.read_fd),
        };
        let target = dev.map(|dev| attach::Target { path: step.path.clone(), dev });
        shares.entry(read_fd).or_default().extend(target);
    }
    shares.into_iter().map(|(read_fd, targets)| Share { read_fd, targets }).collect()
}

/// The engine has taken the adopted mounts and does not start: give them to the masters that they had, or
/// nobody, so that nobody waits for ever.
fn give_back(plan: &RestorePlan, before: &Survey, request: &Request) -> Vec<String> {
    let adopted: HashSet<_> = plan.steps.iter().filter_map(|step| step.adopted()).collect();
    let mut masters: BTreeMap<i32, BTreeMap<i32, Vec<attach::Target>>> = BTreeMap::new();
    let mut orphans = Vec::new();
    for mount in before.mounts.iter().filter(|mount| adopted.contains(&mount.dev)) {
        let target = attach::Target { path: mount.path.clone(), dev: mount.dev };
        match (mount.master.process(), mount.read_end()) {
            (Some(master), Some(fd)) => {
                masters.entry(master.pid).or_default().entry(fd).or_default().push(target);
            }
            _ => orphans.push(target),
        }
    }
    let mut errors = Vec::new();
    for (master, shares) in masters {
        let shares: Vec<_> =
            shares.into_iter().map(|(read_fd, targets)| Share { read_fd, targets }).collect();
        if let Err(error) = attach::attach_to(master, &request.target, &shares) {
            errors.push(error.to_string());
            orphans.extend(shares.into_iter().flat_map(|share| share.targets));
        }
    }
    errors.extend(attach::abandon(&request.target, &orphans).err().map(|error| error.to_string()));
    errors
}

/// As many descriptors as we may have: every mount needs one for a moment.
fn allow_many_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With fewer it may still do.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
