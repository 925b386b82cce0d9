//! Scenarios of `autofs-cr automount`.

pub mod amd;
pub mod control;
pub mod mounts;
pub mod reload;
pub mod sources;
pub mod swap;

use crate::check::wait_until;
use crate::cli;
use crate::process::Process;
use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Stdio};

const LOG: &str = "/tmp/logs/engine.log";

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

    /// Is it the master of all these mounts?
    fn serves(&self, mounts: &[&str]) -> bool {
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
