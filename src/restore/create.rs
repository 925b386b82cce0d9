//! Makes mounts, catatonic, with everything inside.
//!
//! A mount is complete before anybody can see it: superblock, options, directories, timeouts, requesters
//! and CATATONIC all work while it is attached nowhere. Attaching is one call for each in the end. So what
//! is killed on the way leaves nothing behind, or complete mounts that a second restore adopts.

mod place;
mod requesters;
mod superblocks;
mod tree;

pub use place::Root;

use super::claim::{Claims, NoClaim};
use super::plan::{Action, RestorePlan, Step};
use super::rollback::UndoStack;
use crate::discover::facts::Propagation;
use crate::faults;
use crate::image::Checkpoint;
use crate::image::checkpoint::DumpedMount;
use crate::sys::control::{Control, ControlError, MountFd};
use crate::sys::mount::{self, Change, DetachedMount, MountError};
use crate::sys::packet::{PacketError, PacketPipe, packet_pipe};
use crate::sys::{DevNum, Errno};
use rustix::fs::{Mode, OFlags};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use superblocks::{Fresh, Pending};

/// A mount could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// A step for one mount failed.
    #[error("{}: {source}", path.display())]
    Step {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: StepError,
    },
    /// A step for all failed.
    #[error(transparent)]
    Common(#[from] StepError),
    /// It must have its number and cannot.
    #[error("{}: its device number {dev} cannot be had: {why}", path.display())]
    Number {
        /// Where it should be.
        path: PathBuf,
        /// The number.
        dev: DevNum,
        /// Why.
        why: NoClaim,
    },
    /// A symbolic link on the way to a mount point.
    #[error("{}: a symbolic link is on the way, which no mount point of an image has", .0.display())]
    Link(PathBuf),
    /// A file on the way.
    #[error("{}: a file on the way is no directory", .0.display())]
    NotADirectory(PathBuf),
    /// Stopped by a test.
    #[error(transparent)]
    Fault(#[from] faults::Fault),
}

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The mount API refused.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An autofs command.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A request that is none.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// Another call.
    #[error("cannot {what}: {errno}")]
    Call {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

impl StepError {
    /// For `map_err`: an errno of a call that was to do `what`.
    pub(super) fn call(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Call { what, errno }
    }

    /// For `map_err`: with the mount's path.
    fn at(path: &Path) -> impl FnOnce(Self) -> CreateError {
        move |source| CreateError::Step { path: path.to_owned(), source }
    }
}

/// A mount that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Made {
    /// Index into [`RestorePlan::steps`].
    pub step: usize,
    /// Its number.
    pub dev: DevNum,
}

/// A mount in the making.
#[derive(Debug)]
struct Item<'a> {
    index: usize,
    step: &'a Step,
    dumped: &'a DumpedMount,
    mount: DetachedMount,
    dev: DevNum,
}

/// Complete mounts that are attached nowhere, parents first.
#[derive(Debug)]
pub struct Prepared<'a> {
    image: &'a Checkpoint,
    plan: &'a RestorePlan,
    items: Vec<Item<'a>>,
}

/// Every mount of the plan that is missing, with its options. None has a superblock yet.
#[derive(Debug)]
pub struct Configured<'a> {
    image: &'a Checkpoint,
    plan: &'a RestorePlan,
    pipe: PacketPipe,
    pending: Vec<Pending<'a>>,
}

/// Their superblocks, with nothing inside.
#[derive(Debug)]
pub struct Created<'a> {
    image: &'a Checkpoint,
    plan: &'a RestorePlan,
    pipe: PacketPipe,
    fresh: Vec<Fresh<'a>>,
}

/// Make every mount of the plan that is missing, in three steps. The caller is the only thread of its process and lives in a mount
/// namespace that nobody else sees.
pub fn prepare<'a>(
    image: &'a Checkpoint,
    plan: &'a RestorePlan,
    claims: &mut Claims,
) -> Result<Prepared<'a>, CreateError> {
    configure(image, plan)?.create(claims)?.finish(claims)
}

/// The first step, which may be taken in another process than the second.
pub fn configure<'a>(image: &'a Checkpoint, plan: &'a RestorePlan) -> Result<Configured<'a>, CreateError> {
    let pipe = packet_pipe().map_err(StepError::call("make a pipe"))?;
    let pending = superblocks::configure(image, plan, &pipe)?;
    Ok(Configured { image, plan, pipe, pending })
}

impl<'a> Configured<'a> {
    /// The second, in which numbers of `claims` are free for a moment: nobody else should make superblocks. This process's group and
    /// pid namespace become the owner's.
    pub fn create(self, claims: &mut Claims) -> Result<Created<'a>, CreateError> {
        let Self { image, plan, pipe, pending } = self;
        let fresh = superblocks::make(pending, claims, &pipe)?;
        Ok(Created { image, plan, pipe, fresh })
    }
}

impl<'a> Created<'a> {
    /// The third: all that is inside. (And mounts that get any number, or whose number somebody else had for a moment.)
    pub fn finish(self, claims: &mut Claims) -> Result<Prepared<'a>, CreateError> {
        let Self { image, plan, pipe, fresh } = self;
        let mut items = superblocks::mount_all(fresh, claims, &pipe)?;
        faults::point("restore.superblocks-made")?;
        // Modes of the image are meant as they are.
        rustix::process::umask(Mode::empty());
        let control = Control::open().map_err(StepError::from)?;
        requesters::replay(&mut items, &control, &pipe)?;
        faults::point("restore.requesters-replayed")?;
        for item in &items {
            finish(item, &control).map_err(StepError::at(&item.step.path))?;
        }
        faults::point("restore.mounts-prepared")?;
        Ok(Prepared { image, plan, items })
    }
}

/// Everything inside, and then CATATONIC, after which nothing inside can be made.
fn finish(item: &Item<'_>, control: &Control) -> Result<(), StepError> {
    let root = open_root(&item.mount).map_err(StepError::call("open the root of the new mount"))?;
    control.set_timeout(root.as_fd(), item.dumped.facts.options.timeout)?;
    tree::fill(item.dumped, root.as_fd(), control)?;
    control.make_catatonic(root.as_fd())?;
    Ok(())
}

/// The root directory of a mount, for autofs commands and paths inside. It triggers nothing, wherever the mount is attached, and whatever
/// is mounted on it.
pub fn open_root(mount: impl AsFd) -> Result<MountFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(mount, ".", flags, Mode::empty())?.into())
}

impl Prepared<'_> {
    /// The mounts themselves, in the order of the plan, for somebody else to attach.
    pub fn into_mounts(self) -> impl Iterator<Item = DetachedMount> {
        self.items.into_iter().map(|item| item.mount)
    }

    /// Attach everything, beneath `root`, in the namespace in which the caller lives now.
    ///
    /// A mount whose directory inside another autofs mount is missing is left out.
    pub fn attach(self, root: &Root, undo: &mut UndoStack<'_>) -> Result<Vec<Made>, CreateError> {
        let mut made: Vec<Option<Rc<DetachedMount>>> = vec![None; self.plan.steps.len()];
        let mut report = Vec::new();
        let mut items = self.items.into_iter().peekable();
        for (index, step) in self.plan.steps.iter().enumerate() {
            let in_tree = matches!(step.action, Action::Create { in_tree: true, .. });
            let facts = &self.image.mounts[step.mount].facts;
            let mount = match step.action {
                Action::Create { .. } => match items.next_if(|item| item.index == index) {
                    Some(item) => item.mount,
                    None => continue,
                },
                Action::Bind { of } => match made.get(of).and_then(Option::as_ref) {
                    Some(whole) => copy(whole, &facts.root).map_err(StepError::at(&step.path))?,
                    None => continue,
                },
                Action::Adopt { .. } | Action::Skip(_) => continue,
            };
            let Some(place) = root.directory(&step.path, !in_tree, undo)? else { continue };
            let dev = attach(&mount, &place, facts.propagation).map_err(StepError::at(&step.path))?;
            let mount = Rc::new(mount);
            made[index] = Some(mount.clone());
            undo.push("unmount", step.path.clone(), move || mount.detach());
            report.push(Made { step: index, dev });
            if report.len() == 1 {
                faults::point("restore.first-attached")?;
            }
        }
        faults::point("restore.all-attached")?;
        Ok(report)
    }
}

fn copy(whole: &DetachedMount, part: &Path) -> Result<DetachedMount, StepError> {
    let part = part.strip_prefix("/").unwrap_or(part);
    if part.as_os_str().is_empty() {
        return Ok(mount::bind(whole, part, false)?);
    }
    let directory = place::resolve(whole, part).map_err(StepError::call("find the part to bind"))?;
    Ok(mount::bind(directory, Path::new(""), false)?)
}

fn attach(mount: &DetachedMount, place: impl AsFd, wanted: Propagation) -> Result<DevNum, StepError> {
    mount.attach(place, Path::new(""))?;
    // What is attached to a shared mount is shared at first.
    let to = match wanted {
        Propagation { unbindable: true, .. } => mount::Propagation::Unbindable,
        Propagation { shared: Some(_), .. } => mount::Propagation::Shared,
        Propagation { slave_of: Some(_), .. } => mount::Propagation::Slave,
        _ => mount::Propagation::Private,
    };
    Change::propagation(to, false).apply(mount, Path::new(""))?;
    mount.dev().map_err(StepError::call("stat the mount"))
}
