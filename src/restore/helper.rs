//! The helper: a process in the target's namespaces that makes the mounts, and may become their engine.
//!
//! It is forked from this single-threaded program, so the plan needs no copying to it. What it reports comes
//! through a socket. Until it is told to go on it takes everything back when its parent ends.

use super::claim::Claims;
use super::create::{self, CreateError, Made, Root, StepError};
use super::plan::{Action, RestorePlan};
use super::rollback::{RollbackError, UndoStack};
use crate::engine::background;
use crate::image::Checkpoint;
use crate::sys::DevNum;
use crate::sys::fork::{self, Child};
use crate::sys::mountns::{self, Space};
use crate::sys::packet::{PacketPipe, packet_pipe};
use rustix::fs::Mode;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// What the helper shall do.
#[derive(Debug)]
pub struct Job<'a> {
    /// What the plan was made from.
    pub image: &'a Checkpoint,
    /// What to make.
    pub plan: &'a RestorePlan,
    /// The mount namespace.
    pub space: Space,
    /// Another pid namespace, so that the mounts get an owner in it.
    pub pid_namespace: Option<OwnedFd>,
    /// In the target's namespace; all paths of the plan begin with it.
    pub root: PathBuf,
    /// The engine that it becomes; `None`: it ends.
    pub serve: Option<Serve>,
    /// The engine gives up our terminal and our pipes.
    pub background: bool,
}

/// Serves the mounts of a job through a pipe; reports when it does.
pub type Serve = fn(&Job<'_>, PacketPipe, &mut dyn FnMut(usize)) -> Result<(), String>;

/// What the parent tells it.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Mounts are about to change hands: from now on go on serving, even if the parent dies.
    Attaching,
    /// Go on: serve, or end.
    GoOn,
    /// Take everything back and end.
    Undo,
}

/// What it reports.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Ready(Ready),
    /// How many waiters were handed on.
    Serving(usize),
    Failed(HelperError),
}

/// The mounts exist, catatonic.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ready {
    /// Those that were made.
    pub made: Vec<Made>,
    /// The read end of the engine's pipe, in the helper.
    pub read_fd: i32,
    /// Does `/proc` there show this very process by its own number?
    pub sees_proc: bool,
}

impl Ready {
    /// The numbers of the mounts that were made, by the index of their step.
    pub fn by_step(&self) -> HashMap<usize, DevNum> {
        self.made.iter().map(|made| (made.step, made.dev)).collect()
    }
}

/// The helper failed, and has taken everything back as far as it could.
pub type HelperError = RollbackError<String>;

fn failed(causal: impl ToString) -> HelperError {
    RollbackError { causal: causal.to_string(), rollback: Vec::new() }
}

/// The parent's side. Dropping it makes the helper take everything back.
#[derive(Debug)]
pub struct Helper {
    /// `None` once it is on its own.
    child: Option<Child>,
    channel: Channel,
    /// Do its pids mean other processes than ours?
    foreign: bool,
    /// What it has made.
    pub ready: Ready,
}

impl Helper {
    /// Start it, and wait until the mounts exist.
    pub fn start(job: &Job<'_>) -> Result<Self, HelperError> {
        let (ours, its) = UnixStream::pair().map_err(failed)?;
        let mut ours = Some(ours);
        let body = || {
            // In its copy of our descriptors, where this end would hide our death.
            ours = None;
            u8::from(!run(job, Channel(its)))
        };
        let child = match &job.pid_namespace {
            None => fork::fork(body),
            Some(namespace) => fork::fork_into(namespace, body),
        };
        let child = child.map_err(|errno| failed(format!("cannot start the helper: {errno}")))?;
        let channel = Channel(ours.ok_or_else(|| failed("the helper's channel is gone"))?);
        let foreign = job.pid_namespace.is_some();
        let mut helper = Self { child: Some(child), channel, foreign, ready: Ready::default() };
        match helper.report()? {
            Report::Ready(ready) => helper.ready = ready,
            _ => return Err(failed("the helper is out of step")),
        }
        Ok(helper)
    }

    /// Its number in our pid namespace.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().map_or(0, Child::pid)
    }

    /// Can it find the processes that have to be held while mounts change hands?
    pub fn sees_everybody(&self) -> bool {
        self.ready.sees_proc && !self.foreign
    }

    /// Tell it that mounts are about to change hands: if we die now it serves them.
    pub fn attaching(&mut self) {
        // If it has died, the next step says so.
        let _ = self.channel.send(&Order::Attaching);
    }

    /// Everything is done: without an engine it ends.
    pub fn end(mut self) -> Result<(), HelperError> {
        self.channel.send(&Order::GoOn).map_err(failed)?;
        match self.child.take().map(Child::wait) {
            Some(Ok(0)) => Ok(()),
            _ => Err(failed("the helper did not end well")),
        }
    }

    /// Let it serve. Returns it, as a process that lives on, and how many waiters were handed on to it.
    pub fn serve(mut self) -> Result<(Child, usize), HelperError> {
        self.channel.send(&Order::GoOn).map_err(failed)?;
        match (self.report()?, self.child.take()) {
            (Report::Serving(waiters), Some(child)) => Ok((child, waiters)),
            _ => Err(failed("the helper is out of step")),
        }
    }

    /// Have everything taken back; what could not be.
    pub fn undo(mut self) -> Vec<String> {
        self.take_back()
    }

    fn take_back(&mut self) -> Vec<String> {
        let Some(child) = self.child.take() else { return Vec::new() };
        let _ = self.channel.send(&Order::Undo);
        let remains = match self.channel.receive() {
            Ok(Some(Report::Failed(error))) => error.rollback,
            _ => vec!["the helper died and may have left mounts behind".to_owned()],
        };
        let _ = child.wait();
        remains
    }

    /// A report that is none of failure. After a failure it has ended.
    fn report(&mut self) -> Result<Report, HelperError> {
        let error = match self.channel.receive() {
            Ok(Some(Report::Failed(error))) => error,
            Ok(Some(report)) => return Ok(report),
            Ok(None) => failed("the helper died"),
            Err(error) => failed(error),
        };
        if let Some(child) = self.child.take() {
            let _ = child.wait();
        }
        Err(error)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        for error in self.take_back() {
            tracing::error!("{error}");
        }
    }
}

/// In the helper. Did it go well?
fn run(job: &Job<'_>, mut channel: Channel) -> bool {
    let mut undo = UndoStack::new();
    let result = make(job, &mut undo);
    let (ready, pipe) = match result {
        Ok(made) => made,
        Err(error) => {
            channel.tell(&Report::Failed(undo.fail(error.to_string())));
            return false;
        }
    };
    channel.tell(&Report::Ready(ready));
    if !wait_for_go(&mut channel) {
        channel.tell(&Report::Failed(undo.fail("taken back, as told".to_owned())));
        return false;
    }
    let (Some(serve), Some(pipe)) = (job.serve, pipe) else { return true };
    let mut undo = Some(undo);
    let served = serve(job, pipe, &mut |waiters| {
        undo = None;
        if job.background {
            background::leave_stdio();
        }
        channel.tell(&Report::Serving(waiters));
    });
    let Err(causal) = served else { return true };
    match undo {
        Some(undo) => channel.tell(&Report::Failed(undo.fail(causal))),
        None => tracing::error!("{causal}"),
    }
    false
}

/// Make the mounts, and the engine's pipe.
fn make(job: &Job<'_>, undo: &mut UndoStack<'_>) -> Result<(Ready, Option<PacketPipe>), CreateError> {
    // A process group of its own, which becomes the owner.
    rustix::process::setsid().map_err(StepError::call("start a session"))?;
    let creates = job.plan.steps.iter().any(|step| matches!(step.action, Action::Create { .. }));
    let prepared = match creates {
        true => {
            mountns::unshare_private().map_err(StepError::call("make a mount namespace"))?;
            let mut claims = Claims::new();
            Some(create::prepare(job.image, job.plan, &mut claims)?)
        }
        false => None,
    };
    job.space.enter().map_err(StepError::call("enter the target's mount namespace"))?;
    let root = Root::open(&job.root)?;
    let made = prepared.map_or(Ok(Vec::new()), |prepared| prepared.attach(&root, undo))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let pipe = match job.serve {
        Some(_) => Some(packet_pipe().map_err(StepError::call("make a pipe"))?),
        None => None,
    };
    let read_fd = pipe.as_ref().map_or(-1, |pipe| pipe.read.as_raw_fd());
    let own = std::fs::read_link("/proc/self").ok();
    let sees_proc = own.is_some_and(|link| link.as_os_str() == &*std::process::id().to_string());
    Ok((Ready { made, read_fd, sees_proc }, pipe))
}

/// Wait for the parent's word. When it dies while mounts change hands, they need a master all the same.
fn wait_for_go(channel: &mut Channel) -> bool {
    let mut attaching = false;
    loop {
        match channel.receive() {
            Ok(Some(Order::Attaching)) => attaching = true,
            Ok(Some(Order::GoOn)) => return true,
            Ok(Some(Order::Undo)) => return false,
            Ok(None) | Err(_) => return attaching,
        }
    }
}

/// Messages with their length before them.
#[derive(Debug)]
struct Channel(UnixStream);

impl Channel {
    fn send(&mut self, message: &impl Serialize) -> std::io::Result<()> {
        let bytes = postcard::to_allocvec(message).map_err(std::io::Error::other)?;
        let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
        self.0.write_all(&[&length.to_ne_bytes(), &bytes[..]].concat())
    }

    /// To a parent who may have died.
    fn tell(&mut self, report: &Report) {
        if let Err(error) = self.send(report) {
            tracing::debug!("nobody hears that {report:?}: {error}");
        }
    }

    /// `None`: the other one has ended.
    fn receive<T: DeserializeOwned>(&mut self) -> std::io::Result<Option<T>> {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        let mut bytes = vec![0; u32::from_ne_bytes(length) as usize];
        self.0.read_exact(&mut bytes)?;
        postcard::from_bytes(&bytes).map(Some).map_err(std::io::Error::other)
    }
}
