//! Scenarios of `autofs-cr dump/restore` on a host.

pub mod adopt;
pub mod automount;
pub mod demo;
pub mod in_flight;
pub mod reboot;
pub mod systemd;

use crate::check::wait_until;
use crate::cli;
use crate::files::export_all;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;

/// Directories to be mounted, below `/srv/data`.
const NAMES: &[&str] = &[
    "one", "two", "tree", "sub1", "sub2", "x", "y", "idle", "busy", "new", "late", "k0", "k1", "k2", "k3",
    "k4", "k5", "k6", "k7",
];

/// The autofs mounts that automount makes from the maps below.
const TRIGGERS: &[&str] = &["/direct/one", "/direct/two", "/direct/tree", "/ind", "/short"];

/// Write exports and maps: direct, indirect with a wildcard, multi-mounts with and without a root,
/// and an indirect map whose mounts are idle after three seconds.
fn write_maps() -> Result<()> {
    export_all(NAMES)?;
    for sub in ["sub1", "sub2"] {
        fs::create_dir_all(format!("/srv/data/tree/{sub}"))?;
    }
    fs::write(
        "/etc/auto.master",
        "/- /etc/auto.direct --timeout=600\n/ind /etc/auto.ind --timeout=600\n/short /etc/auto.short --timeout=3\n",
    )?;
    fs::write(
        "/etc/auto.direct",
        "/direct/one :/srv/data/one\n/direct/two -ro :/srv/data/two\n/direct/tree / :/srv/data/tree /sub1 :/srv/data/sub1 /sub2 :/srv/data/sub2\n",
    )?;
    fs::write("/etc/auto.ind", "multi /x :/srv/data/x /y :/srv/data/y\n* :/srv/data/&\n")?;
    fs::write("/etc/auto.short", "* :/srv/data/&\n")?;
    Ok(())
}

/// An engine that a restore left in the background, ended with the scenario.
pub struct Engine(i32);

impl Engine {
    /// Find it as the master of the autofs mount at `path`.
    pub fn serving(path: &str) -> Result<Self> {
        let mounts = cli::list()?;
        Self::of(cli::mount_at(&mounts, path).with_context(|| format!("no autofs mount at {path}"))?)
    }

    /// The master of a listed mount.
    fn of(mount: &serde_json::Value) -> Result<Self> {
        let master = &mount["master"];
        anyhow::ensure!(master["program"] == "autofs-cr", "{} is served by {master}", mount["path"]);
        let pid = master["process"]["pid"].as_i64().context("no pid")?;
        Ok(Self(i32::try_from(pid)?))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.0), signal).with_context(|| format!("{signal} to engine {}", self.0))
    }

    fn kill9(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        anyhow::ensure!(wait_until(|| self.ended()), "engine {} did not end", self.0);
        Ok(())
    }

    fn ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        stat.is_empty() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.kill9();
    }
}

/// Which program is the master of the autofs mount at `path`, for messages and comparison.
pub fn master_of(path: &str) -> Result<String> {
    let mounts = cli::list()?;
    let mount = cli::mount_at(&mounts, path).with_context(|| format!("no autofs mount at {path}"))?;
    Ok(mount["master"]["program"].as_str().unwrap_or("?").to_owned())
}
