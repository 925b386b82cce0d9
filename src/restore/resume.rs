//! After the mounts have their master: waiters that a dump stopped go on, the holder ends, active keys are
//! mounted again. Nothing here makes a restore fail; what could not be done is reported.

use super::plan::{Action, Attach, RestorePlan, Visit, Why};
use crate::attach;
use crate::discover::master::HOLDER_COMM;
use crate::discover::{self, proc::TaskDir};
use crate::image::Checkpoint;
use crate::image::checkpoint::Left;
use crate::sys::control::Requester;
use crate::sys::fork;
use crate::sys::mountns::Space;
use crate::sys::process::ProcessId;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How long one key may take to be mounted.
const VISIT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resumed {
    /// Processes that the dump had stopped.
    pub continued: usize,
    /// The holder of the pipes has been ended.
    pub holder_ended: bool,
    /// Keys that were mounted again.
    pub remounted: usize,
    /// What could not be done.
    pub problems: Vec<String>,
}

/// Do all of it.
pub(super) fn resume(
    image: &Checkpoint,
    plan: &RestorePlan,
    target: &discover::Target,
    same_boot: bool,
) -> Resumed {
    let mut done = Resumed::default();
    let attached = plan.steps.iter().any(|step| step.attach != Attach::Nobody);
    if same_boot && attached {
        match &image.origin.left {
            Left::Running => {}
            Left::Catatonic => continue_waiters(image, plan, &mut done),
            Left::Held { holder } => end_holder(*holder, plan, &mut done),
        }
    }
    if !plan.visits.is_empty() {
        remount(&plan.visits, target, &mut done);
    }
    done
}

/// Those of mounts that have a master now, unless their user had stopped them before.
fn continue_waiters(image: &Checkpoint, plan: &RestorePlan, done: &mut Resumed) {
    let attached = plan.steps.iter().filter(|step| step.attach != Attach::Nobody);
    let requests = attached.flat_map(|step| &image.mounts[step.mount].in_flight);
    let waiters = requests.filter(|request| !request.was_stopped).filter_map(|r| r.waiter.as_ref());
    let processes: BTreeSet<_> = waiters.map(|w| (w.process.pid, w.process.start_time)).collect();
    for (pid, start_time) in processes {
        // Pid and start time name one process of this boot. One that has ended needs nothing.
        match (ProcessId { pid, start_time }).signal(Signal::CONT) {
            Ok(()) => done.continued += 1,
            Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => done.problems.push(format!("process {pid} cannot be continued: {errno}")),
        }
    }
}

/// It keeps requests for mounts whose master died; when all have a new one it is not needed.
fn end_holder(holder: ProcessId, plan: &RestorePlan, done: &mut Resumed) {
    let left_alone = |action: &Action| matches!(action, Action::Skip(Why::NotServed));
    let is_holder = TaskDir::process(holder.pid)
        .ok()
        .and_then(|process| process.stat())
        .is_some_and(|stat| stat.name == HOLDER_COMM.as_bytes() && stat.start_time == holder.start_time);
    if !is_holder {
        return;
    }
    if plan.steps.iter().any(|step| left_alone(&step.action)) {
        done.problems
            .push(format!("the holder, process {}, stays for mounts that got no master", holder.pid));
        return;
    }
    match holder.signal(Signal::TERM) {
        Ok(()) => done.holder_ended = true,
        Err(errno) => {
            done.problems.push(format!("the holder, process {}, cannot be ended: {errno}", holder.pid))
        }
    }
}

/// Look the keys up, as who wanted them, so that the master mounts them.
fn remount(visits: &[Visit], target: &discover::Target, done: &mut Resumed) {
    let mut by_who: BTreeMap<(u32, u32), Vec<&Path>> = BTreeMap::new();
    for visit in visits {
        by_who.entry((visit.who.uid, visit.who.gid)).or_default().push(&visit.path);
    }
    let space = match attach::space_of(target) {
        Ok(space) => space,
        Err(errno) => return done.problems.push(format!("active keys are not mounted again: {errno}")),
    };
    for ((uid, gid), paths) in by_who {
        let mut rest = &paths[..];
        // A key that hangs costs its child, and the next one goes on behind it.
        while !rest.is_empty() {
            match visit(&space, Requester { uid, gid }, rest, done) {
                Ok(visited) => rest = &rest[visited.min(rest.len())..],
                Err(errno) => {
                    done.problems.push(format!("active keys are not mounted again: {errno}"));
                    break;
                }
            }
        }
    }
}

/// One child looks the keys up in turn; returns how many are dealt with.
fn visit(
    space: &Space,
    who: Requester,
    paths: &[&Path],
    done: &mut Resumed,
) -> Result<usize, rustix::io::Errno> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = fork::fork(|| {
        let ready = space.enter().is_ok() && take_ids(who);
        for path in paths {
            let mounted = ready && std::fs::metadata(path.join(".")).is_ok();
            if rustix::io::write(&write, &[u8::from(mounted)]).is_err() {
                break;
            }
        }
        0
    })?;
    drop(write);
    for (index, path) in paths.iter().enumerate() {
        let mut byte = [0];
        let mut fds = [PollFd::new(&read, PollFlags::IN)];
        let answered = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&VISIT)))? > 0
            && rustix::io::read(&read, &mut byte)? == 1;
        match byte {
            [1] => done.remounted += 1,
            _ => done.problems.push(format!("{}: not mounted again", path.display())),
        }
        if !answered {
            // Dropping the child kills it, and ends its wait.
            return Ok(index + 1);
        }
    }
    child.wait()?;
    Ok(paths.len())
}

/// Become a visitor in the eyes of the kernel, which notes the real ids only; the effective ones pass any
/// mode.
pub(super) fn take_ids(who: Requester) -> bool {
    use nix::unistd::{Gid, Pid, Uid, setpgid, setresgid, setresuid};
    let keep = u32::MAX;
    setpgid(Pid::from_raw(0), Pid::from_raw(0))
        .and_then(|()| setresgid(Gid::from_raw(who.gid), Gid::from_raw(keep), Gid::from_raw(keep)))
        .and_then(|()| setresuid(Uid::from_raw(who.uid), Uid::from_raw(keep), Uid::from_raw(keep)))
        .is_ok()
}
