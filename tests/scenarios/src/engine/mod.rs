//! Scenarios of `autofs-cr automount`.

pub mod amd;
pub mod answers;
pub mod control;
pub mod diary;
pub mod mounts;
pub mod nfs;
pub mod reload;
pub mod soak;
pub mod sources;
pub mod swap;
pub mod upgrade;

use crate::check::{HANG_LIMIT, wait_until};
use crate::cli;
use crate::files::script;
use crate::process::{Process, run_ok};
use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Stdio};

const LOG: &str = "/tmp/logs/engine.log";

/// A network on which nobody answers (10.9.9.2 and on), and a mount.nfs that connects to its server and waits. (The real
/// one gives up at once where the kernel has no NFS.)
pub fn dead_server() -> Result<()> {
    for command in ["tuntap add dead mode tun", "addr add 10.9.9.1/24 dev dead", "link set dead up"] {
        run_ok(HANG_LIMIT, "ip", &command.split(' ').collect::<Vec<_>>())?;
    }
    script("/sbin/mount.nfs", "#!/bin/bash\nexec 3<>/dev/tcp/${1%%:*}/2049\n")
}

/// `autofs-cr automount` on `/etc/auto.master`, as a service manager would start it.
pub struct Daemon(Process);

impl Daemon {
    /// Start it with more arguments and wait until it is the master of every path of `mounts`.
    pub fn start(arguments: &[&str], mounts: &[&str]) -> Result<Self> {
        fs::create_dir_all("/tmp/logs")?;
        let log = fs::OpenOptions::new().create(true).append(true).open(LOG)?;
        let mut command = Command::new("autofs-cr");
        command.arg("automount").args(arguments);
        let mut daemon =
            Self(Process::start(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?);
        let up = wait_until(|| daemon.0.ended() || daemon.serves(mounts));
        if !up || daemon.0.ended() {
            bail!("autofs-cr automount did not come up: {}", fs::read_to_string(LOG)?);
        }
        Ok(daemon)
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Is it the master of all these mounts?
    pub fn serves(&self, mounts: &[&str]) -> bool {
        let Ok(list) = cli::list() else { return false };
        let own = |path: &&str| {
            let mount = cli::mount_at(&list, path);
            mount.is_some_and(|mount| mount["master"]["process"]["pid"] == self.0.pid())
        };
        mounts.iter().all(own)
    }

    /// Send it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.0.signal(signal)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        self.0.kill9()
    }

    /// TERM, and wait for its end. False: it hangs.
    pub fn stop(&mut self) -> Result<bool> {
        self.signal(Signal::SIGTERM)?;
        Ok(wait_until(|| self.0.ended()))
    }
}
