//! `autofs-cr restore`.

use super::ExitCode;
use super::output::{self, Output};
use super::progress::Progress;
use super::table::{Cell, Column, Style, Table};
use super::{TargetArgs, human, list};
use anyhow::{Result, bail};
use autofs_cr::restore::resume::Resumed;
use autofs_cr::restore::verify::{How, Outcome};
use autofs_cr::restore::{self, Master, Request, Restored};
use clap::Args;
use sd_notify::NotifyState;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  autofs-cr restore -D ckpt --serve          make or adopt the mounts; serve
  autofs-cr restore -D ckpt --master 812     back to process 812, their master
  autofs-cr restore -D ckpt --root /srv/box  below another directory, catatonic:
                                             nobody serves them

Where a mount of the image still exists it is adopted: busy or covered, with a master that lives or not. What \
is missing is made, with its old device number where that is free. Visitors notice nothing: who waits gets its \
answer from the new master. With neither --serve nor --master what is made stays catatonic, and what exists keeps the \
master that it has.

If anything fails, everything is taken back.";

/// Bring the mounts of an image back, and give them a master
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Restore {
    /// The image directory
    #[arg(short = 'D', long = "dir", value_name = "DIR")]
    dir: PathBuf,

    /// Take all paths of the image below this directory (in the target's namespace)
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    #[command(flatten)]
    target: TargetArgs,

    /// Serve the mounts: an engine starts in the background
    #[arg(long, conflicts_with = "master")]
    serve: bool,

    /// Stay in the foreground until the engine ends
    #[arg(long, requires = "serve")]
    foreground: bool,

    /// Give the mounts to this process, which was their master and still has the pipes
    #[arg(long, value_name = "PID")]
    master: Option<i32>,

    /// Mount again what was mounted when the image was made
    #[arg(long)]
    remount_active: bool,

    /// Refuse rather than give a mount a new device number
    #[arg(long)]
    require_devid: bool,

    /// Run programs that the image names as maps, though no master map here does
    #[arg(long)]
    trust_programs: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Only the mounts at these paths, and those below them
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    /// Rises when a field goes or changes its meaning, not when one is added.
    format: u32,
    mounts: &'a [Outcome],
    /// Process that answers now.
    master: Option<i32>,
    /// Visitors who waited for the old master and wait for the new one now.
    waiters: usize,
    #[serde(flatten)]
    resumed: &'a Resumed,
}

impl Restore {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        if !self.root.is_absolute() {
            bail!("--root {}: not an absolute path", self.root.display());
        }
        let master = match (self.serve, self.master) {
            (true, _) => Master::Engine { foreground: self.foreground },
            (false, Some(pid)) => Master::Process(pid),
            (false, None) => Master::Nobody,
        };
        let progress = Progress::begin("restoring the mounts");
        let restored = restore::restore(&Request {
            image: self.dir.clone(),
            target: self.target.target(),
            root: self.root.clone(),
            paths: self.paths.clone(),
            master,
            remount_active: self.remount_active,
            require_devid: self.require_devid,
            trust_programs: self.trust_programs,
        })?;
        drop(progress);
        self.report(&restored, output)?;
        let Some(engine) = restored.engine else { return Ok(ExitCode::SUCCESS) };
        // Under a service manager the engine is the main process.
        let ready = [NotifyState::Ready, NotifyState::MainPid(engine.pid().unsigned_abs())];
        if let Err(error) = sd_notify::notify(&ready) {
            output::warn(format_args!("the service manager could not be told: {error}"));
        }
        if !self.foreground {
            engine.leave();
            return Ok(ExitCode::SUCCESS);
        }
        let code = restore::supervise(engine)?;
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
    }

    fn report(&self, restored: &Restored, output: &mut Output) -> Result<()> {
        let Restored { mounts, master, waiters, resumed, engine: _ } = restored;
        if self.json {
            return output.json(&Report { format: 1, mounts, master: *master, waiters: *waiters, resumed });
        }
        output.print(&table(mounts).render(output))?;
        for line in summary(restored, self.serve) {
            output.print(&(line + "\n"))?;
        }
        for problem in &resumed.problems {
            output::warn(problem);
        }
        if master.is_none() {
            output::note(
                "the mounts without a master are catatonic: keys are not found, direct mounts look empty, until they get one (--serve, --master)",
            );
        }
        Ok(())
    }
}

const COLUMNS: [Column; 5] = [
    Column::long("PATH", 12),
    Column::new("TYPE"),
    Column::new("RESTORED"),
    Column::right("DEV"),
    Column::long("MASTER", 14),
];

fn table(mounts: &[Outcome]) -> Table {
    let mut table = Table::new(&COLUMNS);
    for outcome in mounts {
        table.row(vec![
            list::shown(&outcome.path).into(),
            outcome.mount_type.to_string().into(),
            how(outcome),
            outcome.now.as_ref().map_or("-".into(), |now| now.dev.to_string()).into(),
            outcome.now.as_ref().map_or("-".into(), list::master),
        ]);
        let dev = outcome.now.as_ref().map(|now| now.dev);
        if let Some(dev) = dev.filter(|dev| *dev != outcome.old_dev) {
            let taken = outcome.taken_by.as_deref().unwrap_or("something else");
            table.note(format!("number {dev} instead of {}, which {taken} has", outcome.old_dev));
        }
        for difference in &outcome.differences {
            let [what, expected, here] = [difference.what, &difference.expected, &difference.here];
            table.note(format!("{what}: {here} instead of {expected}"));
        }
    }
    table
}

fn how(outcome: &Outcome) -> Cell {
    let (text, style) = match (outcome.how, outcome.why) {
        (How::Created, _) => ("created".to_owned(), Style::Good),
        (How::Bound, _) => ("bound".to_owned(), Style::Good),
        (How::Adopted, _) => ("adopted".to_owned(), Style::Good),
        (How::Skipped, Some(why)) => (why.to_string(), Style::Dim),
        (How::Skipped, None) => ("left out".to_owned(), Style::Dim),
    };
    Cell::styled(text, style)
}

fn summary(restored: &Restored, served: bool) -> Vec<String> {
    let count = |how| restored.mounts.iter().filter(|outcome| outcome.how == how).count();
    let mut lines = vec![format!(
        "{}: {} created, {} adopted",
        human::count(restored.mounts.len(), "mount"),
        count(How::Created) + count(How::Bound),
        count(How::Adopted)
    )];
    let resumed = &restored.resumed;
    for (number, what, done) in [
        (restored.waiters, "waiter", "handed on"),
        (resumed.continued, "stopped task", "continued"),
        (resumed.remounted, "active key", "mounted again"),
    ] {
        lines.extend((number > 0).then(|| format!("{} {done}", human::count(number, what))));
    }
    if let Some(pid) = restored.master.filter(|_| served) {
        lines.push(format!("engine: process {pid}"));
    }
    lines
}
