//! A container that has the mounts of the host's real automount, and moves to another host: to one where automount serves the
//! same maps, or to one where nobody does. What is mounted is the host's own directories, or a server's: that is in a
//! network namespace of host 1, and both reach it.

use super::container::{Container, Criu};
use super::foreign;
use crate::check::{Checks, wait_until};
use crate::cli;
use crate::engine::nfs::{self, Server};
use crate::host::master_of;
use crate::peers::{Automount, autofs_dev, is_autofs, is_mounted};
use crate::process::{Process, run, run_ok};
use crate::runtimes::runtime::Runtime;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = crate::check::HANG_LIMIT;

/// Programs whose working directories are inside, and one that reads all the time.
const SITTERS: &str = "for dir in /ind/a /ind/multi/x /direct/one /direct/tree; do (cd $dir && exec sleep 100000) & done; \
    setsid scenarios walk /ind/a/a /direct/one/one </dev/null >/tmp/walked 2>&1 & echo $! >/tmp/walker; exec sleep 100000";

/// Such a container, its host's automounter and its server.
#[derive(Default)]
pub struct Hosted {
    container: Option<Container>,
    automount: Option<Automount>,
    server: Option<Server>,
}

impl Hosted {
    /// On host 1.
    pub fn start(from_server: bool) -> Result<Self> {
        let mut hosted = Self::default();
        if from_server {
            hosted.server = Some(Server::start(foreign::EXPORTS)?);
            nfs::route()?;
        } else {
            foreign::exports()?;
        }
        hosted.serve(from_server)?;
        super::program()?;
        let command = ["catatonit", "--", "sh", "-c", SITTERS];
        let container = Container::start_with_host(foreign::DIRS, &command)?;
        let sit = wait_until(|| foreign::sitting(&container) == foreign::BUSY);
        if !sit {
            let log = std::fs::read_to_string("/tmp/logs/automount.log").unwrap_or_default();
            bail!("programs sit in {:?}: {log}", foreign::sitting(&container));
        }
        hosted.container = Some(container);
        Ok(hosted)
    }

    /// On host 2; `serves`: does automount?
    pub fn prepare(from_server: bool, serves: bool) -> Result<Self> {
        let mut hosted = Self::default();
        super::program()?;
        foreign::exports()?;
        if from_server {
            run_ok(LIMIT, "modprobe", &["nfsv4"])?;
            run_ok(LIMIT, "ip", &["route", "replace", "10.1.0.0/24", "via", "10.0.0.1"])?;
        }
        if serves {
            hosted.serve(from_server)?;
        } else {
            let no_maps = "rm -f /etc/auto.master /etc/auto.direct /etc/auto.ind /etc/auto.short";
            run_ok(LIMIT, "sh", &["-c", &format!("{no_maps}; mkdir -p /direct")])?;
        }
        Ok(hosted)
    }

    fn serve(&mut self, from_server: bool) -> Result<()> {
        let from = if from_server { nfs::SOURCE } else { foreign::BIND };
        self.automount = Some(foreign::start_host(from)?);
        Ok(())
    }

    fn container(&self) -> Result<&Container> {
        self.container.as_ref().context("no container")
    }
}

impl Runtime for Hosted {
    fn exec(&self, command: &[&str]) -> Result<String> {
        self.container()?.enter(command)
    }

    /// Everything is the host's, and goes on.
    fn own_checks(&self, checks: &mut Checks, name: &str) -> Result<()> {
        let container = self.container()?;
        let sit = foreign::sitting(container) == foreign::BUSY;
        checks.that(&format!("{name}: programs are where they were"), sit);
        let master = if self.automount.is_some() { "automount" } else { "autofs-cr" };
        for path in foreign::DIRECT.iter().chain(&["/ind", "/short"]) {
            let here = container.autofs(path).map(|mount| mount.dev);
            checks.that(&format!("{name}: {path} is the host's"), here.is_some() && here == autofs_dev(path));
            checks.equal(&format!("{name}: {path} is served by"), master_of(path)?.as_str(), master);
        }
        for path in ["/ind/d/d", "/ind/multi/y/y", "/direct/two/two", "/short/b/b"] {
            let text = container.enter_within(LIMIT, &["cat", path]);
            checks.equal(
                &format!("{name}: {path}"),
                text.ok().as_deref().map(str::trim),
                path.rsplit('/').next(),
            );
        }
        checks.that(&format!("{name}: a new key is the host's, too"), is_mounted("/ind/d"));
        checks.that(&format!("{name}: an unknown key fails"), container.lacks("/ind/none/."));
        Ok(())
    }

    fn leave_running(&self) -> Result<()> {
        Criu::as_installed("left")?
            .dump_with(self.container()?, &[foreign::DUMP, &["--leave-running"]].concat())
    }

    fn pre_checkpoint(&self) -> Result<()> {
        bail!("not here")
    }

    fn checkpoint(&mut self, way: &str) -> Result<()> {
        Criu::as_installed(way)?.dump_with(self.container()?, foreign::DUMP)?;
        self.container = None;
        Ok(())
    }

    fn restore(&mut self, way: &str) -> Result<()> {
        let criu = Criu::as_installed(way)?;
        let restored = criu.restore_with(foreign::RESTORE)?;
        self.container = Some(restored);
        Ok(())
    }

    fn moved(&self, way: &str) -> Vec<PathBuf> {
        vec![Criu::images_of(way)]
    }

    fn logs(&self, way: &str) -> Option<PathBuf> {
        Some(Criu::images_of(way))
    }
}

impl Drop for Hosted {
    /// The container, then who serves it, then the server, so that nothing is left for the next move.
    fn drop(&mut self) {
        if let Some(container) = self.container.take() {
            let _ = run(LIMIT, "kill", &["-9", &container.pid().to_string()]);
            wait_until(|| container.ended());
        }
        let ended = match self.automount.take() {
            Some(mut automount) => foreign::end_host(&mut automount),
            None => end_engine(),
        };
        if let Err(error) = ended {
            println!("  left behind: {error:#}");
        }
    }
}

/// The engine that the plugin started, if it did.
fn end_engine() -> Result<()> {
    if !is_autofs("/ind") {
        return Ok(());
    }
    let mounts = cli::list()?;
    let pid = &cli::mount_at(&mounts, "/ind").context("no /ind")?["master"]["process"]["pid"];
    Process::signal_pid(i32::try_from(pid.as_i64().context("no master")?)?, Signal::SIGTERM)?;
    ensure!(wait_until(|| !is_autofs("/ind")), "the engine does not end");
    Ok(())
}
