//! The process apart of a dump. It is forked off CRIU in the beginning, knows nothing, and waits. Then it holds the
//! tasks of a container ([`lull`]); and it reads what is in their mounts while CRIU dumps the processes, which takes longer.

use super::apart::{self, receive_value, send_value};
use super::inside::{self, Inside};
use super::{cgroups, lull};
use crate::attach::Target;
use crate::sys::Errno;
use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// It, seen from CRIU. When this is dropped it wakes whom it holds, and ends.
#[derive(Debug)]
pub struct Attendant {
    socket: OwnedFd,
    pid: Pid,
}

/// What it is to do.
#[derive(Serialize, Deserialize)]
pub enum Request {
    /// Hold all tasks below a process: [`lull::serve`].
    Lull(i32),
    /// Read. Everybody is stopped meanwhile.
    Look {
        /// The container's first process.
        root: i32,
        /// For each mount namespace a process that sees it, and mounts there.
        mounts: Vec<(i32, Vec<Target>)>,
    },
}

/// What was read.
#[derive(Debug, Serialize, Deserialize)]
pub struct Found {
    /// In the order of the question.
    pub mounts: Vec<Vec<Result<Inside, String>>>,
    /// Cgroups of the container, as [`cgroups::read`] tells.
    pub cgroups: Result<Vec<OsString>, String>,
}

impl Attendant {
    /// Start one. Errors are those of [`apart::start`].
    pub fn start() -> Result<Self, Errno> {
        let (socket, pid) = apart::start(|socket| {
            // Whoever asks has ended when it cannot be told.
            let _ = attend(socket);
        })?;
        Ok(Self { socket, pid })
    }

    /// It is not needed any more, and holds nobody. A CRIU to which orphans go (the first process of a pid namespace, as in a
    /// container) must not find it among its own children: it is waited for.
    pub fn end(self) {
        drop(self.socket);
        // ECHILD: somebody else's, as mostly.
        let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
    }

    /// Have it hold the tasks below `root`; what it says. EPIPE when it has died, here and below.
    pub(super) fn lull<T: for<'a> Deserialize<'a>>(&self, root: i32) -> Result<T, Errno> {
        send_value(&self.socket, &Request::Lull(root))?;
        receive_value(&self.socket)
    }

    /// In the middle of a lull.
    pub(super) fn tell(&self, value: &impl Serialize) -> Result<(), Errno> {
        send_value(&self.socket, value)
    }

    /// Have it read.
    pub(super) fn ask(&self, look: &Request) -> Result<(), Errno> {
        send_value(&self.socket, look)
    }

    /// What it has read; waits for it.
    pub(super) fn answer(self) -> Result<Found, Errno> {
        let found = receive_value(&self.socket);
        self.end();
        found
    }
}

/// Its life.
fn attend(socket: &OwnedFd) -> Result<(), Errno> {
    apart::hurry();
    loop {
        match receive_value(socket)? {
            Request::Lull(root) => lull::serve(root, socket)?,
            Request::Look { root, mounts } => send_value(socket, &look(root, &mounts))?,
        }
    }
}

fn look(root: i32, mounts: &[(i32, Vec<Target>)]) -> Found {
    let mounts = mounts.iter().map(|(pid, mounts)| inside::read(*pid, mounts)).collect();
    let cgroups = cgroups::read(root).map_err(|errno| errno.to_string());
    let cgroups = cgroups.map(|paths| paths.into_iter().map(PathBuf::into_os_string).collect());
    Found { mounts, cgroups }
}
