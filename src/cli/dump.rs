//! `autofs-cr dump`, and the holder that it may leave.

use super::ExitCode;
use super::TargetArgs;
use super::human::count;
use super::list::shown;
use super::output::{self, Output};
use super::progress::Progress;
use anyhow::{Context, Result};
use autofs_cr::dump::plan::{Mode, Wishes};
use autofs_cr::dump::{self, Report, Request, hold};
use autofs_cr::image::Existing;
use autofs_cr::image::checkpoint::Left;
use autofs_cr::quiesce::Waiting;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  autofs-cr dump -D ckpt              every mount; nothing is changed
  autofs-cr dump -D ckpt /home /net   these, and what is mounted below them
  autofs-cr dump -D ckpt --hold       now the daemon may be restarted or killed:
                                      lookups wait until a restore
  autofs-cr dump -D ckpt --catatonic  take the mounts from their daemon;
                                      who waits is stopped until a restore

A dump that fails leaves the mounts as they were, and no image. One that is killed while it takes mounts away \
is undone by the next one.";

/// Write down every autofs mount, with all that a restore needs
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Dump {
    /// The directory to write; it must not exist, or be empty
    #[arg(short = 'D', long = "dir", value_name = "DIR")]
    dir: PathBuf,

    /// Replace an image that is there
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    target: TargetArgs,

    /// Change nothing (the default)
    #[arg(long, group = "mode")]
    leave_running: bool,

    /// Leave a process that keeps the pipes open for so long, 300 seconds if not told: when the daemon dies, lookups wait
    #[arg(long, group = "mode", value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "300")]
    hold: Option<u64>,

    /// Take the mounts from their daemon; stop who waits
    #[arg(long, group = "mode")]
    catatonic: bool,

    /// Leave out what automount units of systemd serve: it makes them itself when it starts
    #[arg(long)]
    without_units: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Only the mounts at these paths, and those below them
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    /// Rises when a field goes or changes its meaning, not when one is added.
    format: u32,
    dir: String,
    mounts: Vec<String>,
    foreign: Vec<String>,
    services: usize,
    active_keys: usize,
    in_flight: usize,
    left: &'a Left,
    stopped: &'a [Waiting],
    warnings: &'a [String],
}

impl Dump {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        let absolute = |path: &PathBuf| {
            let path = std::path::absolute(path).with_context(|| shown(path))?;
            // without a slash at the end, as mounts are listed
            Ok(path.components().collect())
        };
        let mode = match (self.hold, self.catatonic) {
            (Some(seconds), _) => Mode::Hold(Duration::from_secs(seconds)),
            (None, true) => Mode::Catatonic,
            (None, false) => Mode::LeaveRunning,
        };
        let progress = Progress::begin("writing the mounts down");
        let report = dump::dump(&Request {
            dir: self.dir.clone(),
            existing: if self.replace { Existing::Replace } else { Existing::Refuse },
            target: self.target.target(),
            wishes: Wishes {
                paths: self.paths.iter().map(absolute).collect::<Result<_>>()?,
                without_units: self.without_units,
                mode,
            },
            program: "/proc/self/exe".into(),
        })?;
        drop(progress);
        report.warnings.iter().for_each(output::warn);
        if self.json {
            output.json(&printed(&self.dir, &report))?;
        } else {
            output.print(&summary(&self.dir, &report))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn printed<'a>(dir: &Path, report: &'a Report) -> Printed<'a> {
    let mounts = &report.checkpoint.mounts;
    Printed {
        format: 1,
        dir: shown(dir),
        mounts: mounts.iter().map(|mount| shown(&mount.facts.path)).collect(),
        foreign: report.foreign.iter().map(|path| shown(path)).collect(),
        services: report.checkpoint.services.len(),
        active_keys: mounts.iter().map(|mount| mount.active.len()).sum(),
        in_flight: mounts.iter().map(|mount| mount.in_flight.len()).sum(),
        left: &report.checkpoint.origin.left,
        stopped: &report.stopped,
        warnings: &report.warnings,
    }
}

fn summary(dir: &Path, report: &Report) -> String {
    let Printed { mounts, active_keys, in_flight, foreign, .. } = printed(dir, report);
    let dir = shown(dir);
    let mut text = format!(
        "{} dumped to {dir}: {}, {}\n",
        count(mounts.len(), "mount"),
        count(active_keys, "active key"),
        count(in_flight, "open request")
    );
    if !foreign.is_empty() {
        text += &format!("left out, because their daemons are outside the tree: {}\n", foreign.join(", "));
    }
    match &report.checkpoint.origin.left {
        Left::Running => {}
        Left::Held { holder } => {
            text += &format!(
                "process {} holds the pipes: when the daemon dies, lookups wait for autofs-cr restore\n",
                holder.pid
            );
        }
        Left::Catatonic => {
            let stopped = match report.stopped.len() {
                0 => String::new(),
                n => format!(" ({} stopped)", count(n, "waiter")),
            };
            text += &format!(
                "the mounts have no daemon now: keys are not found, direct mounts look empty{stopped}, until autofs-cr restore -D {dir}\n"
            );
        }
    }
    text
}

/// Keep the read ends of pipes (`dump --hold` runs this)
#[derive(Args)]
pub struct HoldPipes {
    /// For how long
    seconds: u64,
}

impl HoldPipes {
    pub fn run(self) -> Result<ExitCode> {
        hold::run(Duration::from_secs(self.seconds))?;
        Ok(ExitCode::SUCCESS)
    }
}
