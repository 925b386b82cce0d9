//! The real peers.

use crate::check::wait_until;
use crate::process::Process;
use anyhow::{Result, bail};
use std::fs;
use std::process::{Command, Stdio};

/// Real automount(8) in the foreground.
pub struct Automount {
    process: Process,
}

impl Automount {
    /// Start it on `/etc/auto.master` and wait until every path of `mounts` is an autofs mount.
    pub fn start(mounts: &[&str]) -> Result<Self> {
        fs::create_dir_all("/tmp/logs")?;
        let log = fs::OpenOptions::new().create(true).append(true).open("/tmp/logs/automount.log")?;
        let process = Process::start(
            Command::new("automount")
                .args(["--foreground", "--verbose", "--dont-check-daemon"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        if !wait_until(|| mounts.iter().all(|path| is_autofs(path))) {
            bail!("automount did not mount {mounts:?}: {}", fs::read_to_string("/tmp/logs/automount.log")?);
        }
        Ok(Self { process })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// Send it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Has it ended?
    pub fn ended(&mut self) -> bool {
        self.process.ended()
    }
}

/// `(mount point, type, st_dev)` of every mount here, in order.
pub fn mount_table() -> Vec<(String, String, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            Some((left.get(4)?.to_string(), right.split(' ').next()?.to_string(), left.get(2)?.to_string()))
        })
        .collect()
}

/// Is there an autofs mount at `path`?
pub fn is_autofs(path: &str) -> bool {
    mount_table().iter().any(|(at, fstype, _)| at == path && fstype == "autofs")
}

/// Is anything but autofs mounted at `path`?
pub fn is_mounted(path: &str) -> bool {
    mount_table().iter().any(|(at, fstype, _)| at == path && fstype != "autofs")
}

/// The device number of the autofs mount at `path`.
pub fn autofs_dev(path: &str) -> Option<String> {
    mount_table().into_iter().find(|(at, fstype, _)| at == path && fstype == "autofs").map(|(_, _, dev)| dev)
}
