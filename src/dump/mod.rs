//! Writing down what there is: from a running system to an image directory.
//!
//! | module | what it does |
//! |---|---|
//! | [`mod@plan`] | what will be done, decided from the facts alone |
//! | [`tree`] | what is inside the mounts |
//! | [`requests`] | what is in flight |
//! | [`owner`] | what only a mount's owner may ask |
//! | [`maps`] | which map serves a mount |
//! | [`record`] | all of that together, as the image wants it |
//! | [`hold`] | a process that keeps the read ends of pipes |
//! | [`undo`] | what a killed dump leaves to be undone |

pub mod hold;
pub mod maps;
pub mod owner;
pub mod plan;
pub mod record;
pub mod requests;
pub mod tree;
pub mod undo;

use crate::attach::{AttachError, take::Taken};
use crate::discover::facts::{End, Survey};
use crate::discover::master::HOLDER_COMM;
use crate::discover::{self, DiscoverError, proc, survey};
use crate::faults::{self, Fault};
use crate::image::checkpoint::{Checkpoint, Left, Origin};
use crate::image::{Draft, Existing, ImageError};
use crate::quiesce::Waiting;
use crate::sys::control::{Control, ControlError};
use crate::sys::process::{ProcessId, own_group};
use hold::{HoldError, Holder};
use plan::{DumpPlan, Mode, PlanError, Who, Wishes, plan};
use record::{RecordError, Recorded, Recorder};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use undo::{Notes, Undo, UndoError};

/// What to dump, where to, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image directory.
    pub dir: PathBuf,
    /// What to do where it exists.
    pub existing: Existing,
    /// Whose mount namespace.
    pub target: discover::Target,
    /// Which of its mounts, and what becomes of them.
    pub wishes: Wishes,
    /// This program: the holder is another run of it.
    pub program: PathBuf,
}

/// What was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What is in the image.
    pub checkpoint: Checkpoint,
    /// Mounts that were left out, because their masters are outside the tree.
    pub foreign: Vec<PathBuf>,
    /// Waiters that are stopped until a restore.
    pub stopped: Vec<Waiting>,
    /// What could not be found out, and what else one should know.
    pub warnings: Vec<String>,
}

/// A dump failed. The mounts are as they were, and there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The facts.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The wishes.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The control device.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A mount.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The holder.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// Taking mounts from their masters.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The notes for undoing.
    #[error(transparent)]
    Undo(#[from] UndoError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Stopped by a test.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It failed, and the mounts could not all be given back.
    #[error("{causal}\nand the mounts could not all be given back: {rollback}")]
    NotGivenBack {
        /// Why it failed.
        causal: Box<DumpError>,
        /// Why it was not taken back.
        rollback: AttachError,
    },
}

/// Dump.
pub fn dump(request: &Request) -> Result<Report, DumpError> {
    let mut warnings = undo::repair();
    let control = Arc::new(Control::open()?);
    let survey = survey(&request.target)?;
    faults::point("dump.surveyed")?;
    let plan = plan(&survey, &request.wishes, &who_is_who(&request.target)?)?;
    // claimed before anything is changed: a place that cannot be written to is known by now
    let draft = Draft::begin(&request.dir, request.existing)?;
    faults::point("dump.planned")?;
    warnings.extend(gaps(&survey));
    let hidden = |(path, by): &(PathBuf, PathBuf)| {
        format!("{} is left out: hidden by what is mounted on {}", path.display(), by.display())
    };
    warnings.extend(plan.hidden.iter().map(hidden));
    let recorder = Recorder { control: &control, target: &request.target, plan: &plan };
    let recorded = recorder.record()?;
    faults::point("dump.recorded")?;
    let run = Run { request, control: &control, survey: &survey, plan: &plan, recorder: &recorder };
    let mut report = match request.wishes.mode {
        Mode::LeaveRunning => run.leave_running(draft, recorded)?,
        Mode::Hold(limit) => run.hold(draft, recorded, limit)?,
        Mode::Catatonic => run.take_away(draft, recorded)?,
    };
    report.warnings.splice(..0, warnings);
    Ok(report)
}

fn who_is_who(target: &discover::Target) -> Result<Who, DiscoverError> {
    let our_group = own_group();
    let tree = match target {
        discover::Target::Process(root) => {
            let unreadable = |errno| DiscoverError::Read { path: "/proc".into(), errno };
            Some(proc::tree(*root).map_err(unreadable)?)
        }
        discover::Target::Own | discover::Target::Namespace(_) => None,
    };
    Ok(Who { our_group, tree })
}

/// What the survey could not see.
fn gaps(survey: &Survey) -> Vec<String> {
    let mut gaps = Vec::new();
    if survey.blind.descriptors > 0 {
        let count = survey.blind.descriptors;
        gaps.push(format!("the descriptors of {count} processes could not be read: masters may be missing"));
    }
    if !survey.unplaced_waiters.is_empty() {
        let count = survey.unplaced_waiters.len();
        gaps.push(format!("{count} tasks wait, but it is not known on which mount"));
    }
    gaps
}

struct Run<'a> {
    request: &'a Request,
    control: &'a Control,
    survey: &'a Survey,
    plan: &'a DumpPlan,
    recorder: &'a Recorder<'a>,
}

impl Run<'_> {
    fn leave_running(&self, draft: Draft, recorded: Recorded) -> Result<Report, DumpError> {
        self.commit(draft, recorded, Left::Running, Vec::new())
    }

    /// A holder of our own first, then those go that earlier runs left for the same pipes.
    fn hold(&self, draft: Draft, recorded: Recorded, limit: Duration) -> Result<Report, DumpError> {
        let old = self.old_holders();
        let holder = Holder::start(&self.request.program, &self.plan.pipes, limit)?;
        faults::point("dump.holder-started")?;
        let report = self.commit(draft, recorded, Left::Held { holder: holder.process() }, Vec::new())?;
        holder.leave();
        for process in old {
            if let Err(errno) = hold::end(process) {
                tracing::warn!("process {}, a holder, cannot be ended: {errno}", process.pid);
            }
        }
        Ok(report)
    }

    fn old_holders(&self) -> HashSet<ProcessId> {
        let ends = self.plan.mounts.iter().flat_map(|mount| &mount.pipe_ends);
        let holders = ends.filter(|end| end.end == End::Read && end.comm == HOLDER_COMM);
        holders.map(|end| end.process).collect()
    }

    fn take_away(&self, draft: Draft, mut recorded: Recorded) -> Result<Report, DumpError> {
        let targets = self.plan.live();
        let mut taken = Taken::prepare(self.control, &self.request.target, &targets)?;
        let mut notes = self.notes();
        let mut undo = Undo::begin(&notes)?;
        let outcome = self.take_and_write(&mut taken, &mut undo, &mut notes, draft, &mut recorded);
        match outcome {
            Ok(report) => {
                taken.keep();
                Ok(report)
            }
            Err(causal) => match taken.give_back() {
                Ok(()) => Err(causal),
                Err(rollback) => Err(DumpError::NotGivenBack { causal: Box::new(causal), rollback }),
            },
        }
    }

    fn take_and_write(
        &self,
        taken: &mut Taken<'_>,
        undo: &mut Undo,
        notes: &mut Notes,
        draft: Draft,
        recorded: &mut Recorded,
    ) -> Result<Report, DumpError> {
        // print nothing from here until they are let go
        notes.stopped = taken.take()?;
        undo.update(notes)?;
        let stopped = taken.let_go()?.to_vec();
        notes.stopped.clone_from(&stopped);
        undo.update(notes)?;
        faults::point("dump.waiters-stopped")?;
        self.recorder.complete(recorded, &stopped);
        self.commit(draft, std::mem::take(recorded), Left::Catatonic, stopped)
    }

    fn notes(&self) -> Notes {
        let mut taken = BTreeMap::<u64, undo::Taken>::new();
        for mount in self.plan.superblocks().filter(|mount| !mount.catatonic) {
            let Some(ino) = mount.options.pipe_ino else { continue };
            let Some(end) = self.plan.pipes.get(&ino) else { continue };
            let fresh = || undo::Taken { master: end.process, read_fd: end.fd, mounts: Vec::new() };
            taken.entry(ino).or_insert_with(fresh).mounts.push(mount.dev);
        }
        Notes {
            mount_namespace: self.survey.mount_namespace,
            taken: taken.into_values().collect(),
            stopped: Vec::new(),
        }
    }

    fn commit(
        &self,
        draft: Draft,
        recorded: Recorded,
        left: Left,
        stopped: Vec<Waiting>,
    ) -> Result<Report, DumpError> {
        let Recorded { mounts, services, warnings, .. } = recorded;
        let checkpoint = Checkpoint { origin: origin(self.survey, left), mounts, services };
        faults::point("dump.unwritten")?;
        draft.commit(&checkpoint)?;
        // nothing can fail any more, but a test may kill us here
        let _ = faults::point("dump.written");
        Ok(Report { checkpoint, foreign: self.plan.foreign.clone(), stopped, warnings })
    }
}

fn origin(survey: &Survey, left: Left) -> Origin {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Origin {
        created: now.map_or(0, |since| since.as_secs()),
        tool: env!("CARGO_PKG_VERSION").into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        boot_id: boot_id.trim().to_owned(),
        mount_namespace: survey.mount_namespace,
        left,
    }
}
