//! `autofs-cr automount`.

use super::explain::master_map;
use super::output::{self, Output};
use anyhow::{Context, Result, ensure};
use autofs_cr::engine::config::Given;
use autofs_cr::engine::{self, config, takeover};
use autofs_cr::sys::packet::packet_pipe;
use clap::Args;
use sd_notify::NotifyState;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  autofs-cr automount                        serve /etc/auto.master until TERM
  autofs-cr automount /etc/auto.test -v      another master map, told in detail
  autofs-cr automount --replace              the same while automount(8) runs: take its mounts, then end it

Signals: TERM and INT end it (idle mounts go, busy ones stay for the next engine), HUP reads the maps again,
USR1 unmounts what is idle. Mounts that exist at its mount points, left by automount(8) or by another engine, are
attached where they are, with whatever is mounted in them.";

/// Serve the maps of a master map, in the foreground
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Automount {
    /// The master map: a path, or a name in /etc
    #[arg(value_name = "MASTER_MAP")]
    master: Option<String>,

    /// Take the mounts from the automounter that serves them now, and end it; no lookup fails meanwhile
    #[arg(long)]
    replace: bool,
}

impl Automount {
    fn given(&self) -> Result<Given> {
        let master = self.master.as_deref().map(master_map).transpose()?;
        Ok(Given { master, ..Given::default() })
    }

    pub fn run(self, _: &mut Output) -> Result<ExitCode> {
        // A program of our own group would be taken for us: it would never trigger a mount.
        if rustix::process::getpgrp() != rustix::process::getpid() {
            rustix::process::setpgid(None, None).context("no process group of our own")?;
        }
        let wanted = config::of_master_map(&self.given()?)?;
        ensure!(!wanted.is_empty(), "the master map has no map that can be served");
        let pipe = packet_pipe().context("no pipe")?;
        // Let go again if the engine does not come as far as to serve.
        let mut old = if self.replace { Some(takeover::stop(&wanted)?) } else { None };
        engine::serve(wanted, pipe, &mut |_| {
            let ended = old.take().map_or(0, takeover::OldMasters::end);
            if ended > 0 {
                output::note("the automounter that served before was ended; its mounts are served from here");
            }
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                output::warn(format_args!("the service manager could not be told: {error}"));
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
