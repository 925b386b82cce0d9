//! `autofs-cr automount`.

use super::explain::master_map;
use super::output::{self, Output};
use anyhow::{Context, Result, ensure};
use autofs_cr::engine::config::Given;
use autofs_cr::engine::{self, config};
use autofs_cr::sys::packet::packet_pipe;
use clap::Args;
use sd_notify::NotifyState;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  autofs-cr automount                        serve /etc/auto.master until TERM
  autofs-cr automount /etc/auto.test -v      another master map, told in detail

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
        engine::serve(wanted, pipe, &mut |_| {
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                output::warn(format_args!("the service manager could not be told: {error}"));
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
