//! `autofs-cr criu`: CRIU with the plugin, for a tree of processes.

use super::ExitCode;
use super::human;
use super::output::{self, Output};
use super::progress::Progress;
use anyhow::{Context, Result};
use autofs_cr::container::command::{Criu, Summary};
use autofs_cr::sys::mount;
use autofs_cr::sys::mountns;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  autofs-cr criu dump -t 812 -D box                  processes, files and mounts
  autofs-cr criu dump -t 812 -D box --leave-running  the tree goes on
  autofs-cr criu restore -D box --root /srv/box      it goes on there
  autofs-cr criu dump -t 812 -D box -- --tcp-established

The last one hands an option to criu. All are for a tree with a mount namespace of its own, its automounter \
inside. Mounts of this system itself are the business of `autofs-cr dump` and `autofs-cr restore`; containers that \
of their runtimes, which find the plugin themselves. CRIU's logs are in the image directory.";

/// Checkpoint and restore a tree of processes with CRIU, its autofs mounts included
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct CriuCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Dump(Dump),
    Restore(Restore),
}

/// Write a process and all its descendants down, and end them
#[derive(Args)]
struct Dump {
    /// The root of the tree
    #[arg(short, long, value_name = "PID")]
    tree: i32,

    /// Let the tree run on
    #[arg(long)]
    leave_running: bool,

    #[command(flatten)]
    common: Common,
}

/// Start what was dumped
#[derive(Args)]
struct Restore {
    /// The directory with the tree's root file system
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Where a device number is taken systemd's mounts get another one, and systemd is told by executing itself anew
    #[arg(long)]
    renumber: bool,

    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// The directory of the images
    #[arg(short = 'D', long = "dir", value_name = "DIR")]
    dir: PathBuf,

    /// The criu program
    #[arg(long, value_name = "FILE", default_value = "criu")]
    criu: PathBuf,

    /// Where the plugin is
    #[arg(long, value_name = "DIR")]
    libdir: Option<PathBuf>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Options for criu
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    /// Rises when a field goes or changes its meaning, not when one is added.
    format: u32,
    dir: String,
    /// Root of the tree, now.
    pid: i32,
    #[serde(flatten)]
    summary: &'a Summary,
    seconds: f64,
}

impl CriuCommand {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        match self.action {
            Action::Dump(dump) => dump.run(output),
            Action::Restore(restore) => restore.run(output),
        }
    }
}

impl Dump {
    fn run(self, output: &mut Output) -> Result<ExitCode> {
        let dir = &self.common.dir;
        // It holds memory of the processes.
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir).with_context(|| dir.display().to_string())?;
        let mut options: Vec<OsString> = vec!["--tree".into(), self.tree.to_string().into()];
        options.extend(self.leave_running.then(|| "--leave-running".into()));
        let (summary, seconds) = self.common.criu("dump", options, false)?;
        self.common.report(output, self.tree, &summary, seconds, |mounts, dir| {
            format!("process {} dumped to {dir}: {mounts}, {seconds:.2} s\n", self.tree)
        })
    }
}

impl Restore {
    fn run(self, output: &mut Output) -> Result<ExitCode> {
        let pidfile = std::path::absolute(&self.common.dir)?.join("autofs-cr.pid");
        let mut options: Vec<OsString> =
            vec!["--restore-detached".into(), "--pidfile".into(), pidfile.clone().into()];
        if let Some(root) = &self.root {
            stand_alone(root).with_context(|| format!("{}: cannot be made a mount", root.display()))?;
            options.extend(["--root".into(), root.into()]);
        }
        // CRIU does not replace it.
        let _ = std::fs::remove_file(&pidfile);
        let (summary, seconds) = self.common.criu("restore", options, self.renumber)?;
        let pid = std::fs::read_to_string(&pidfile).context("criu wrote no pid")?;
        let pid = pid.trim().parse().context("criu wrote no pid")?;
        self.common.report(output, pid, &summary, seconds, |mounts, dir| {
            format!("restored from {dir} as process {pid}: {mounts}, {seconds:.2} s\n")
        })
    }
}

/// CRIU wants the root to be a mount of its own, in a namespace where mounts stay where they are made.
fn stand_alone(root: &Path) -> Result<()> {
    mountns::unshare_private()?;
    mount::bind(rustix::fs::CWD, root, true)?.attach(rustix::fs::CWD, root)?;
    Ok(())
}

impl Common {
    fn criu(
        &self,
        action: &'static str,
        mut options: Vec<OsString>,
        renumber: bool,
    ) -> Result<(Summary, f64)> {
        let criu = Criu::find(&self.criu, self.libdir.as_deref())?.renumbering(renumber);
        let start = Instant::now();
        options.extend(self.options.iter().cloned());
        let progress = Progress::begin("starting criu");
        let summary = criu.run(action, &self.dir, &options, &mut |stage| progress.stage(stage));
        drop(progress);
        Ok((summary?, start.elapsed().as_secs_f64()))
    }

    fn report(
        &self,
        output: &mut Output,
        pid: i32,
        summary: &Summary,
        seconds: f64,
        line: impl FnOnce(&str, &str) -> String,
    ) -> Result<ExitCode> {
        summary.warnings.iter().for_each(output::warn);
        let dir = super::list::shown(&self.dir);
        if self.json {
            output.json(&Report { format: 1, dir, pid, summary, seconds })?;
        } else {
            let mounts = human::count(summary.mounts, "autofs mount");
            output.print(&line(&mounts, &dir))?;
        }
        Ok(if summary.without_master == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
