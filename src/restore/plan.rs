//! What a restore will do: a pure function of the image, the namespace as it is now, and the wishes.

use crate::discover::facts::{AutofsMount, Master, MountType};
use crate::discover::mountinfo::{self, Entry};
use crate::image::checkpoint::{ActiveKey, DumpedMount};
use crate::image::{Checkpoint, Command};
use crate::sys::DevNum;
use crate::sys::control::Requester;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The target namespace as it is.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// Its autofs mounts.
    pub mounts: &'a [AutofsMount],
    /// All its mounts.
    pub table: &'a [Entry<'a>],
    /// Is the image of this boot? Device numbers, pids and descriptors mean nothing on another.
    pub same_boot: bool,
}

/// What the user wants.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Absolute; all paths of the image are taken below it.
    pub root: PathBuf,
    /// Refuse rather than give a mount a new device number.
    pub require_devid: bool,
    /// Who shall answer.
    pub master: NewMaster,
    /// Mount again what was mounted when the image was made.
    pub remount_active: bool,
    /// Programs that the image names as maps, and that nobody has vouched for.
    pub untrusted: Vec<Command>,
}

/// Who shall answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewMaster {
    /// Nobody: mounts that are made stay catatonic, others are left as they are.
    Nobody,
    /// Our engine.
    Engine,
    /// The program that was the master, with its descriptors as they were.
    Process,
}

/// What to do, parents first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RestorePlan {
    /// One step for each mount of the image.
    pub steps: Vec<Step>,
    /// Indexes of the services that the engine shall serve.
    pub services: BTreeSet<usize>,
    /// Lookups to make in the end, so that the new master mounts again what was mounted.
    pub visits: Vec<Visit>,
}

/// What to do with one mount of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index into [`Checkpoint::mounts`].
    pub mount: usize,
    /// Where, in the target namespace.
    pub path: PathBuf,
    /// What.
    pub action: Action,
    /// Who gets it.
    pub attach: Attach,
}

impl Step {
    /// The number of a mount that gets another master.
    pub fn adopted(&self) -> Option<DevNum> {
        match self.action {
            Action::Adopt { dev, .. } if self.attach != Attach::Nobody => Some(dev),
            _ => None,
        }
    }
}

/// How a mount comes to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Create {
        /// Its device number.
        number: Number,
        /// It lies in the directories of another autofs mount: no directory there, no mount.
        in_tree: bool,
    },
    /// The superblock of step `of` is attached here, too.
    Bind {
        /// Index into [`RestorePlan::steps`].
        of: usize,
    },
    /// It is there.
    Adopt {
        /// Its number now.
        dev: DevNum,
        /// Does it have a pipe?
        live: bool,
    },
    /// Nothing is done.
    Skip(Why),
}

/// The device number of a mount that is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Number {
    /// The old one; without it the mount would be of no use to its master, or the user insists.
    Must(DevNum),
    /// The old one if it can be had.
    May(DevNum),
    /// A new one.
    New {
        /// What has the old one.
        taken_by: String,
    },
}

impl Number {
    /// The old one, where that is wanted.
    pub fn wanted(&self) -> Option<DevNum> {
        match self {
            Self::Must(dev) | Self::May(dev) => Some(*dev),
            Self::New { .. } => None,
        }
    }
}

/// Why nothing is done for a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It belongs to an active key, and comes back when the key is mounted again.
    MadeOnDemand,
    /// Nothing in the image tells how to serve it, so it is left as it is.
    NotServed,
    /// The image knows only a part of its superblock (a bind mount of a directory inside).
    OnlyAPart,
    /// It is a copy (bind mount) of another mount and is there already.
    CopyIsThere,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MadeOnDemand => "comes back when its key is mounted",
            Self::NotServed => "left as it is: the image does not tell how to serve it",
            Self::OnlyAPart => "not made: the image knows only a part of it",
            Self::CopyIsThere => "is there (bind mount)",
        })
    }
}

/// Who gets a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Nobody.
    Nobody,
    /// The engine.
    Engine,
    /// The master process, requests to be read from this descriptor of it.
    Process {
        /// Its read end.
        read_fd: i32,
    },
}

/// A lookup to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Of what.
    pub path: PathBuf,
    /// By whom.
    pub who: Requester,
}

/// The image cannot be restored here as wanted. Nothing was touched.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", lines(.0))]
pub struct PlanError(pub Vec<Conflict>);

fn lines(conflicts: &[Conflict]) -> String {
    let lines: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// One reason.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// A path of the image that may not be used.
    #[error("{}: not an absolute path without `..`", .0.display())]
    Path(PathBuf),
    /// Something else is mounted there.
    #[error("{}: {fstype} ({}) is mounted there; unmount it first", path.display(), device.display())]
    Occupied {
        /// Where.
        path: PathBuf,
        /// Its type.
        fstype: String,
        /// Its source.
        device: PathBuf,
    },
    /// An autofs mount of another type.
    #[error("{}: the autofs mount there is {here}, in the image it is {image}", path.display())]
    Type {
        /// Where.
        path: PathBuf,
        /// Type there.
        here: MountType,
        /// Type in the image.
        image: MountType,
    },
    /// Another autofs mount that somebody serves.
    #[error("{}: another autofs mount ({dev}) is there, served by {by}; end it first", path.display())]
    Served {
        /// Where.
        path: PathBuf,
        /// Its number.
        dev: DevNum,
        /// Its master.
        by: String,
    },
    /// The device number is taken.
    #[error("{}: its device number {dev} is taken by {by}{}", path.display(), needs(*wanted))]
    NumberTaken {
        /// Where.
        path: PathBuf,
        /// The number.
        dev: DevNum,
        /// What has it.
        by: String,
        /// Who insists.
        wanted: Insists,
    },
    /// automount(8) would not know the mount again.
    #[error(
        "{}: automount knows its direct and offset mounts by inode, and a mount that is made anew has \
         another; restart automount, or use --serve", .0.display()
    )]
    InodeLost(PathBuf),
    /// A program map of the image.
    #[error(
        "{}: the image wants the program {} as its map, which the master map here does not name; if that \
         is right, give --trust-programs", .0.mount_point.display(), .0.program.display()
    )]
    Program(Command),
    /// With --serve there is nothing that could be served.
    #[error("the image does not tell how to serve any of its mounts; restore without --serve")]
    NothingToServe,
    /// --remount-active without a master.
    #[error("--remount-active needs a master that mounts: --serve or --master")]
    NobodyMounts,
}

/// Why a number must be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insists {
    /// `--require-devid`.
    User,
    /// systemd ignores requests of a mount with another number.
    Systemd,
}

fn needs(wanted: Insists) -> &'static str {
    match wanted {
        Insists::User => "",
        Insists::Systemd => ", and systemd knows the mount by it; free it, or use --serve",
    }
}

/// Where a mount lies in relation to the other autofs mounts of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nest {
    /// In none.
    Top,
    /// In the directories of this one itself.
    InTree(usize),
    /// In what was mounted on a trigger of this one.
    InActive(usize),
}

/// Make the plan, or tell every reason why there is none.
pub fn plan(image: &Checkpoint, now: &Now<'_>, wishes: &Wishes) -> Result<RestorePlan, PlanError> {
    let mut planner = Planner::new(image, now, wishes);
    for mount in 0..image.mounts.len() {
        planner.step(mount);
    }
    planner.finish()
}

struct Planner<'a> {
    image: &'a Checkpoint,
    now: &'a Now<'a>,
    wishes: &'a Wishes,
    /// Autofs mounts here by path, bottom first.
    here: HashMap<&'a Path, Vec<&'a AutofsMount>>,
    /// Other mounts here by path.
    others: HashMap<PathBuf, &'a Entry<'a>>,
    /// Who has an anonymous number here.
    numbers: HashMap<DevNum, &'a Entry<'a>>,
    /// Mount ids of the image: autofs mounts, and what covers their triggers.
    autofs_ids: HashMap<u64, usize>,
    covering_ids: HashMap<u64, usize>,
    paths: HashMap<&'a Path, usize>,
    /// The step that has the whole of a superblock of the image.
    whole: HashMap<DevNum, usize>,
    plan: RestorePlan,
    conflicts: Vec<Conflict>,
}

impl<'a> Planner<'a> {
    fn new(image: &'a Checkpoint, now: &'a Now<'a>, wishes: &'a Wishes) -> Self {
        let mut here: HashMap<_, Vec<_>> = HashMap::new();
        for mount in now.mounts {
            here.entry(mount.path.as_path()).or_default().push(mount);
        }
        let others = now.table.iter().filter(|entry| !entry.is_autofs());
        let facts = || image.mounts.iter().enumerate();
        Self {
            image,
            now,
            wishes,
            here,
            others: others.map(|entry| (mountinfo::path(entry.mount_point), entry)).collect(),
            numbers: now.table.iter().map(|entry| (entry.dev, entry)).collect(),
            autofs_ids: facts().map(|(i, m)| (m.facts.mount_id, i)).collect(),
            covering_ids: facts()
                .flat_map(|(i, m)| m.facts.covering.iter().map(move |c| (c.mount_id, i)))
                .collect(),
            paths: facts().map(|(i, m)| (m.facts.path.as_path(), i)).collect(),
            whole: HashMap::new(),
            plan: RestorePlan::default(),
            conflicts: Vec::new(),
        }
    }

    /// Add the step for one mount of the image. Steps have the indexes of their mounts.
    fn step(&mut self, mount: usize) {
        let dumped = &self.image.mounts[mount];
        let facts = &dumped.facts;
        let (path, action) = match below(&self.wishes.root, &facts.path) {
            None => {
                self.conflicts.push(Conflict::Path(facts.path.clone()));
                (facts.path.clone(), Action::Skip(Why::NotServed))
            }
            Some(path) => {
                let action = self.action(mount, &path).unwrap_or_else(|conflict| {
                    self.conflicts.push(conflict);
                    Action::Skip(Why::NotServed)
                });
                (path, action)
            }
        };
        let mut step = Step { mount, path, action, attach: Attach::Nobody };
        if matches!(step.action, Action::Create { .. } | Action::Adopt { .. }) {
            self.whole.entry(facts.dev).or_insert(mount);
            self.give(dumped, &mut step);
        }
        let comes_back =
            step.action == Action::Skip(Why::MadeOnDemand) && self.wishes.master != NewMaster::Nobody;
        if self.wishes.remount_active && (step.attach != Attach::Nobody || comes_back) {
            self.visit(dumped, &step);
        }
        self.plan.steps.push(step);
    }

    fn action(&self, mount: usize, path: &Path) -> Result<Action, Conflict> {
        let facts = &self.image.mounts[mount].facts;
        let found = self.find(facts, path)?;
        if let Some(&of) = self.whole.get(&facts.dev) {
            return Ok(match found {
                Some(_) => Action::Skip(Why::CopyIsThere),
                None => Action::Bind { of },
            });
        }
        if facts.root != Path::new("/") {
            return Ok(Action::Skip(Why::OnlyAPart));
        }
        if let Some(found) = found {
            return Ok(Action::Adopt { dev: found.dev, live: !found.catatonic });
        }
        let in_tree = match self.nest(mount) {
            Nest::Top => false,
            Nest::InActive(_) => return Ok(Action::Skip(Why::MadeOnDemand)),
            Nest::InTree(parent) => match self.plan.steps[parent].action {
                // A walk into these waits for nobody; into a live one it might.
                Action::Create { .. } | Action::Adopt { live: false, .. } => true,
                _ => return Ok(Action::Skip(Why::MadeOnDemand)),
            },
        };
        Ok(Action::Create { number: self.number(facts, path)?, in_tree })
    }

    /// The mount of the image, if it is there.
    fn find(&self, image: &AutofsMount, path: &Path) -> Result<Option<&'a AutofsMount>, Conflict> {
        let none = Vec::new();
        let here = self.here.get(path).unwrap_or(&none);
        let ours = here.iter().find(|mount| self.now.same_boot && mount.dev == image.dev);
        let Some(found) = ours.or(here.last()) else {
            return match self.others.get(path) {
                // Below a root of its own the root itself is a mount point, of course.
                Some(other) if path != self.wishes.root => Err(Conflict::Occupied {
                    path: path.to_owned(),
                    fstype: String::from_utf8_lossy(other.fstype).into_owned(),
                    device: mountinfo::path(other.source),
                }),
                _ => Ok(None),
            };
        };
        let (here, image) = (found.options.mount_type, image.options.mount_type);
        if here != image {
            return Err(Conflict::Type { path: path.to_owned(), here, image });
        }
        match (ours, &found.master) {
            (Some(_), _) | (None, Master::Dead) => Ok(Some(found)),
            (None, master) => {
                Err(Conflict::Served { path: path.to_owned(), dev: found.dev, by: name(master) })
            }
        }
    }

    fn nest(&self, mount: usize) -> Nest {
        let facts = &self.image.mounts[mount].facts;
        // An image may say anything: only what comes before counts as a parent.
        let earlier = |index: &&usize| **index < mount;
        if let Some(&parent) = self.autofs_ids.get(&facts.parent_id).filter(earlier) {
            return Nest::InTree(parent);
        }
        if let Some(&parent) = self.covering_ids.get(&facts.parent_id).filter(earlier) {
            return Nest::InActive(parent);
        }
        let mut above = facts.path.ancestors().skip(1);
        match above.find_map(|path| self.paths.get(path).filter(earlier)) {
            Some(&parent) => Nest::InActive(parent),
            None => Nest::Top,
        }
    }

    /// Which number a mount that is made gets, as far as this namespace can tell.
    fn number(&self, facts: &AutofsMount, path: &Path) -> Result<Number, Conflict> {
        let by_inode = facts.options.mount_type != MountType::Indirect;
        let insists = match (&facts.master, self.wishes.master) {
            (Master::Automount { .. }, NewMaster::Process) if by_inode => {
                return Err(Conflict::InodeLost(path.to_owned()));
            }
            (Master::Systemd { .. }, NewMaster::Process) => Some(Insists::Systemd),
            _ => self.wishes.require_devid.then_some(Insists::User),
        };
        match (insists, self.numbers.get(&facts.dev)) {
            (Some(_), None) => Ok(Number::Must(facts.dev)),
            (None, None) => Ok(Number::May(facts.dev)),
            (None, Some(entry)) => Ok(Number::New { taken_by: describe(entry) }),
            (Some(wanted), Some(entry)) => Err(Conflict::NumberTaken {
                path: path.to_owned(),
                dev: facts.dev,
                by: describe(entry),
                wanted,
            }),
        }
    }

    /// Who gets a mount.
    fn give(&mut self, dumped: &DumpedMount, step: &mut Step) {
        step.attach = match self.wishes.master {
            NewMaster::Nobody => Attach::Nobody,
            NewMaster::Process => match dumped.facts.read_end() {
                Some(read_fd) => Attach::Process { read_fd },
                None => Attach::Nobody,
            },
            NewMaster::Engine => match dumped.served_by.filter(|&s| s < self.image.services.len()) {
                Some(service) => {
                    self.plan.services.insert(service);
                    Attach::Engine
                }
                None => Attach::Nobody,
            },
        };
        let left_alone = step.attach == Attach::Nobody && self.wishes.master != NewMaster::Nobody;
        if left_alone && matches!(step.action, Action::Adopt { .. }) {
            step.action = Action::Skip(Why::NotServed);
        }
    }

    /// The active keys of a mount that are not mounted now. An offset has no keys: it is active itself.
    fn visit(&mut self, dumped: &DumpedMount, step: &Step) {
        let here = self.here.get(step.path.as_path()).and_then(|mounts| mounts.last());
        let covered = |path: &Path| here.is_some_and(|here| here.covering.iter().any(|c| c.path == path));
        let key = |active: &ActiveKey| {
            let key = Path::new(OsStr::from_bytes(&active.key));
            let entry = dumped.tree.iter().find(|entry| entry.path == key);
            (step.path.join(key), entry.and_then(|entry| entry.requester))
        };
        let root = || (step.path.clone(), dumped.root_requester);
        let active: Vec<_> = match dumped.facts.options.mount_type {
            MountType::Indirect => dumped.active.iter().map(key).collect(),
            MountType::Direct => dumped.active.iter().map(|_| root()).collect(),
            MountType::Offset => dumped.facts.covering.iter().take(1).map(|_| root()).collect(),
        };
        for (path, who) in active.into_iter().filter(|(path, _)| !covered(path)) {
            let who = who.unwrap_or(Requester { uid: 0, gid: 0 });
            self.plan.visits.push(Visit { path, who });
        }
    }

    fn finish(mut self) -> Result<RestorePlan, PlanError> {
        let nobody = self.wishes.master == NewMaster::Nobody;
        if self.wishes.remount_active && nobody {
            self.conflicts.push(Conflict::NobodyMounts);
        }
        if self.wishes.master == NewMaster::Engine {
            self.conflicts.extend(self.wishes.untrusted.iter().cloned().map(Conflict::Program));
        }
        let attached = self.plan.steps.iter().any(|step| step.attach != Attach::Nobody);
        if self.wishes.master == NewMaster::Engine && !attached && self.conflicts.is_empty() {
            self.conflicts.push(Conflict::NothingToServe);
        }
        match self.conflicts.is_empty() {
            true => Ok(self.plan),
            false => Err(PlanError(self.conflicts)),
        }
    }
}

/// `path` of the image below `root`.
fn below(root: &Path, path: &Path) -> Option<PathBuf> {
    let inside = path.strip_prefix("/").ok()?;
    let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !inside.as_os_str().is_empty()).then(|| root.join(inside))
}

fn name(master: &Master) -> String {
    match (master, master.process()) {
        (Master::Systemd { unit, .. }, _) => format!("systemd ({unit})"),
        (Master::Automount { .. }, Some(process)) => format!("automount, process {}", process.pid),
        (Master::AutofsCr { .. }, Some(process)) => format!("autofs-cr, process {}", process.pid),
        (Master::Unknown { comm, .. }, Some(process)) => format!("{comm}, process {}", process.pid),
        _ => "somebody who cannot be seen".to_owned(),
    }
}

fn describe(entry: &Entry<'_>) -> String {
    let fstype = String::from_utf8_lossy(entry.fstype);
    format!("{fstype} at {}", mountinfo::path(entry.mount_point).display())
}

#[cfg(test)]
mod tests;
