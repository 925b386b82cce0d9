//! The process that owns mounts. Some commands work in its context only: the kernel looks at the process group.

use super::tree::{Member, Tree};
use crate::discover::facts::{AutofsMount, End, MountType, TreeEntry};
use crate::discover::proc::TaskDir;
use crate::image::checkpoint::DumpedMount;
use crate::sys::Errno;
use crate::sys::control::{Control, ControlError, MountFd, Requester};
use crate::sys::process::copy_fd;
use crate::sys::tracee::{FDS_AT_ONCE, Held, Injected, RemoteFd, TraceeError};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// How many roots are in its descriptor table at a time: that may be small.
pub const ROOTS_AT_ONCE: usize = 100;
const _: () = assert!(ROOTS_AT_ONCE <= FDS_AT_ONCE);

/// The sub-version of the protocol that has timeouts for single keys.
const KEY_TIMEOUTS: u32 = 6;

/// A process of the owner group: the one that reads the pipe if possible. The facts have the container's numbers.
pub fn of<'a>(tree: &'a Tree, mount: &AutofsMount) -> Option<&'a Member> {
    let group = mount.options.pgrp;
    let readers = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
    readers
        .filter_map(|end| tree.by_inner(end.process.pid))
        .find(|member| member.inner_group == group)
        .or_else(|| tree.members.iter().find(|member| group != 0 && member.inner_group == group))
}

/// Is there anything that only its owner can be asked? That is who triggered what is mounted there (of an idle mount nobody wants to
/// know), and timeouts of keys.
pub fn knows_more(mount: &DumpedMount) -> bool {
    let facts = &mount.facts;
    match facts.options.mount_type {
        MountType::Indirect => mount.tree.iter().any(is_key),
        MountType::Direct | MountType::Offset => {
            !facts.covering.is_empty() || !facts.autofs_children.is_empty()
        }
    }
}

fn is_key(entry: &TreeEntry) -> bool {
    entry.symlink.is_none() && entry.path.components().count() == 1
}

/// Opens roots of mounts from here, covered or not: by the eyes of a process, or of another that sees them. Our working
/// directory is its root meanwhile: to go through `/proc` for each takes longer than everything else.
#[derive(Debug)]
pub struct Eyes<'a> {
    control: &'a Control,
    tree: &'a Tree,
    /// Where we were.
    before: OwnedFd,
}

impl<'a> Eyes<'a> {
    /// Those of process `pid`. Errors are of its root directory.
    pub fn of(pid: i32, control: &'a Control, tree: &'a Tree) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let before = rustix::fs::open(".", flags, Mode::empty())?;
        rustix::process::chdir(format!("/proc/{pid}/root"))?;
        Ok(Self { control, tree, before })
    }

    /// The root of a mount.
    pub fn open(&self, mount: &AutofsMount) -> Result<MountFd, ControlError> {
        let path = mount.path.strip_prefix("/").unwrap_or(&mount.path);
        let open = |root: &Path| self.control.open_mount(&root.join(path), mount.dev);
        // Its root may be another, or its namespace.
        let others = || self.tree.mount_namespaces().into_iter();
        let seen = || others().find_map(|other| open(format!("/proc/{}/root", other.pid).as_ref()).ok());
        open(".".as_ref()).or_else(|error| seen().ok_or(error))
    }
}

impl Drop for Eyes<'_> {
    fn drop(&mut self) {
        // It was ours a moment ago.
        let _ = rustix::process::fchdir(&self.before);
    }
}

/// A process that is stopped and traced by us, so that commands can be given in its place.
#[derive(Debug)]
pub struct Owner<'a> {
    control: Control<Injected<'a>>,
}

impl<'a> Owner<'a> {
    /// Use `held`; `control` is ours.
    pub fn new(held: &'a mut Held, control: &Control) -> Result<Self, TraceeError> {
        Ok(Self { control: Control::with_caller(Injected::new(held, control)?) })
    }

    /// Open a mount by its own path: an owner never waits for it. `pid`: its process.
    pub fn open(&self, pid: i32, mount: &AutofsMount) -> Result<Option<MountFd>, TraceeError> {
        let Ok(root) = self.control.open_mount(&mount.path, mount.dev) else { return Ok(None) };
        let copy = copy_fd(pid, root.0);
        self.held(|held| held.close_fd(root))?;
        Ok(copy.ok().map(MountFd::from))
    }

    /// SETPIPEFD of every mount to one pipe. Results in the order of `roots`.
    pub fn set_pipe(
        &self,
        roots: &[MountFd],
        pipe: BorrowedFd<'_>,
    ) -> Result<Vec<Result<(), ControlError>>, TraceeError> {
        self.with_fds(&[pipe], roots, |_, remote| match remote {
            [pipe, roots @ ..] => self.control.set_pipe_all(roots, *pipe),
            [] => Vec::new(),
        })
    }

    /// [`Self::set_pipe`] of `count` mounts, and CATATONIC afterwards where wanted. Their root directories come through the socket
    /// `roots`, [`ROOTS_AT_ONCE`] in a message; `results` are in their order, and fewer where this fails.
    pub fn set_pipe_of(
        &self,
        roots: &OwnedFd,
        count: usize,
        pipe: BorrowedFd<'_>,
        catatonic: bool,
        results: &mut Vec<Result<(), ControlError>>,
    ) -> Result<(), TraceeError> {
        let tid = self.held(|held| held.tid());
        let both = self.held(|held| held.send_fds(&[pipe, roots.as_fd()]))?;
        let [pipe, socket] = both[..] else { return Err(TraceeError::Gone(tid)) };
        let mut some_more = || {
            // We wait here, not it there: for a message, or the end.
            let wait = || rustix::event::poll(&mut [PollFd::new(roots, PollFlags::IN)], None);
            let what = "waiting for root directories";
            rustix::io::retry_on_intr(wait).map_err(|errno| TraceeError::Call { tid, what, errno })?;
            let next = ROOTS_AT_ONCE.min(count - results.len());
            let some = self.held(|held| held.receive_fds(socket, next))?;
            let mut done = self.control.set_pipe_all(&some, pipe);
            if catatonic {
                let again =
                    |(root, done): (_, Result<(), _>)| done.and_then(|()| self.control.make_catatonic(root));
                done = some.iter().copied().zip(done).map(again).collect();
            }
            results.extend(done);
            self.held(|held| held.close_fds(&some))?;
            Ok(results.len() < count)
        };
        let done = loop {
            match some_more() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // Always: with a write end of its own it would not see the end of the pipe.
        done.and(self.held(|held| held.close_fds(&both)))
    }

    /// What only the owner is told: who triggered the mounts last, and the timeouts of single keys.
    pub fn ask(&self, roots: &[MountFd], mounts: &mut [&mut DumpedMount]) -> Result<(), TraceeError> {
        self.with_fds(&[], roots, |first, remote| {
            let mounts = &mut mounts[first..first + remote.len()];
            self.requesters(remote, mounts);
            for (root, mount) in remote.iter().zip(mounts) {
                self.key_timeouts(*root, mount);
            }
            vec![(); remote.len()]
        })?;
        Ok(())
    }

    /// The kernel tells it of roots only: not of the keys of an indirect mount.
    fn requesters(&self, roots: &[RemoteFd], mounts: &mut [&mut DumpedMount]) {
        let nobody = Requester { uid: u32::MAX, gid: u32::MAX };
        let indirect = |mount: &DumpedMount| mount.facts.options.mount_type == MountType::Indirect;
        let (asked, mut mounts): (Vec<&RemoteFd>, Vec<_>) =
            roots.iter().zip(mounts).filter(|(_, mount)| !indirect(mount)).unzip();
        let questions: Vec<_> =
            asked.into_iter().zip(&mounts).map(|(root, mount)| (*root, mount.facts.path.as_path())).collect();
        let answers = self.control.requester_all(&questions);
        for (mount, answer) in mounts.iter_mut().zip(answers) {
            mount.root_requester = answer.ok().filter(|who| *who != nobody);
        }
    }

    fn key_timeouts(&self, root: RemoteFd, mount: &mut DumpedMount) {
        let of_mount = mount.facts.options.timeout;
        let mut keys = mount.tree.iter_mut().filter(|entry| is_key(entry)).peekable();
        let indirect = mount.facts.options.mount_type == MountType::Indirect;
        if !indirect || keys.peek().is_none() {
            return;
        }
        if self.control.protocol(root).is_ok_and(|(_, sub)| sub >= KEY_TIMEOUTS) {
            keys.for_each(|key| key.timeout = self.key_timeout(root, &key.path, of_mount));
        }
    }

    /// There is no way to read it but to set it; so it is set back. One that never expires (0) cannot be told from one without
    /// a timeout of its own, and has the mount's afterwards.
    fn key_timeout(&self, root: RemoteFd, key: &Path, of_mount: u64) -> Option<u64> {
        let key = key.as_os_str().as_encoded_bytes();
        let own = self.control.set_dentry_timeout(root, key, None).ok().filter(|own| *own != of_mount)?;
        self.control.set_dentry_timeout(root, key, Some(own)).ok()?;
        Some(own)
    }

    /// Roots go into its table in batches, after `first`, and out again. `act` gets the index of the batch's first root.
    fn with_fds<T>(
        &self,
        first: &[BorrowedFd<'_>],
        roots: &[MountFd],
        mut act: impl FnMut(usize, &[RemoteFd]) -> Vec<T>,
    ) -> Result<Vec<T>, TraceeError> {
        let mut results = Vec::with_capacity(roots.len());
        for batch in roots.chunks(ROOTS_AT_ONCE) {
            let fds: Vec<_> = first.iter().copied().chain(batch.iter().map(AsFd::as_fd)).collect();
            let remote = self.held(|held| held.send_fds(&fds))?;
            results.extend(act(results.len(), &remote));
            self.held(|held| held.close_fds(&remote))?;
        }
        Ok(results)
    }

    fn held<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        self.control.caller().with_held(act)
    }
}

/// CRIU 4.1 restores timers up to a second early. systemd, woken before its time, does not arm its timer again,
/// and never expires an idle unit. So every such timer fires a second later.
pub fn delay_timers(held: &mut Held) -> Result<(), TraceeError> {
    let Ok(process) = TaskDir::process(held.tid()) else { return Ok(()) };
    let timers = process.descriptors(|link| link == Path::new("anon_inode:[timerfd]"));
    for (fd, _) in timers.unwrap_or_default() {
        let info = process.read(&format!("fdinfo/{fd}")).unwrap_or_default();
        if let Some(left) = time_left(&String::from_utf8_lossy(&info)) {
            held.arm_timer(RemoteFd(fd), left + Duration::from_secs(1))?;
        }
    }
    Ok(())
}

/// Of an armed one-shot timer that does not follow the wall clock.
fn time_left(info: &str) -> Option<Duration> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let clock: i32 = field("clockid:")?.parse().ok()?;
    let pair = |name: &str| {
        let (seconds, nanoseconds) = field(name)?.strip_prefix('(')?.strip_suffix(')')?.split_once(", ")?;
        Some(Duration::new(seconds.parse().ok()?, nanoseconds.parse().ok()?))
    };
    let once = pair("it_interval:")?.is_zero();
    let steady = matches!(clock, libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME);
    pair("it_value:").filter(|left| once && steady && !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn armed_timers_are_told_from_others() {
        let info = |clock: i32, value: &str, interval: &str| {
            format!(
                "pos:\t0\nflags:\t02\nclockid: {clock}\nticks: 0\nsettime flags: 01\nit_value: {value}\nit_interval: {interval}\n"
            )
        };
        let left = |text: String| time_left(&text);
        assert_eq!(left(info(1, "(3, 500)", "(0, 0)")), Some(Duration::new(3, 500)));
        assert_eq!(left(info(7, "(3, 500)", "(0, 0)")), Some(Duration::new(3, 500)));
        assert_eq!(left(info(0, "(3, 500)", "(0, 0)")), None);
        assert_eq!(left(info(1, "(0, 0)", "(0, 0)")), None);
        assert_eq!(left(info(1, "(1, 0)", "(1, 0)")), None);
        assert_eq!(time_left("pos:\t0\n"), None);
    }
}
