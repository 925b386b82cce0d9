//! `autofs-cr ctl`: talking to a running engine.

use super::ExitCode;
use super::human;
use super::list::shown;
use super::output::Output;
use super::progress::Progress;
use super::table::{Cell, Column, Style, Table};
use anyhow::{Result, bail};
use autofs_cr::discover::users::{Users, users};
use autofs_cr::engine::control::client::{AskError, ask};
use autofs_cr::engine::control::{Reply, Request, Status, Who};
use autofs_cr::engine::state::Counts;
use autofs_cr::log::LogLevels;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const EXAMPLES: &str = "\
Examples:
  autofs-cr ctl status                     maps, running jobs, what hangs
  autofs-cr ctl who                        who triggers mounts, who keeps them
  autofs-cr ctl log debug --mount /net     everything about one mount
  autofs-cr ctl log default --mount /net   as before";

/// Ask a running engine, or tell it what to do
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Ctl {
    #[command(subcommand)]
    command: Command,

    /// Its control socket, where several engines run or it is not below /run/autofs-cr
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,

    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Subcommand)]
enum Command {
    /// What it serves and what it is doing
    Status,
    /// Read the maps again, and wait until the triggers follow them
    Reload,
    /// Unmount what is idle, whatever its timeout, and wait for that
    Expire {
        /// Only of the map that has a mount here
        #[arg(value_name = "MOUNT")]
        mount: Option<PathBuf>,
    },
    /// Become another autofs-cr, or the one that is installed now; no lookup fails
    Reexec {
        /// The program; without: the engine's own file
        #[arg(value_name = "BINARY")]
        binary: Option<PathBuf>,
    },
    /// Which programs trigger mounts, and which keep them from expiring
    Who {
        /// Lookups only: do not search for the programs that keep mounts
        #[arg(long)]
        lookups: bool,
    },
    /// Counters and times, as Prometheus reads them
    Metrics,
    /// Set how much is logged; without a level tell it
    Log {
        /// error, warn, info, debug, trace, off; for a mount also default: as everything else
        #[arg(value_name = "LEVEL")]
        level: Option<String>,
        /// Only about this mount and what is below it
        #[arg(long, value_name = "PATH")]
        mount: Option<PathBuf>,
    },
}

impl Ctl {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        let keepers = !matches!(self.command, Command::Who { lookups: true });
        let request = match self.command.clone() {
            Command::Status => Request::Status,
            Command::Reload => Request::Reload,
            Command::Expire { mount } => Request::Expire { mount },
            Command::Who { .. } => Request::Who,
            Command::Reexec { binary } => return self.reexec(binary, output),
            Command::Metrics => Request::Metrics,
            Command::Log { level, mount } => Request::Log { level, mount },
        };
        let progress = Progress::begin("the engine is at work");
        let reply = ask(self.socket.as_deref(), &request)?;
        drop(progress);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let text = match &reply {
            Reply::Who(who) => {
                let kept = if keepers { users(&who.mounted)? } else { Vec::new() };
                if self.json {
                    return print(output, &WhoReport { who, kept });
                }
                programs(who, now, output) + &keeping(&kept, output)
            }
            reply if self.json => return print(output, reply),
            Reply::Status(told) => status(told, now, output),
            Reply::Metrics(text) => text.clone(),
            Reply::Log(levels) => log_levels(levels),
            Reply::Done(counts) => {
                format!("done: {}\n", serving(counts))
            }
            Reply::Error(text) => bail!("{text}"),
        };
        output.print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// How long an engine may take until it answers as another program.
const REEXEC_LIMIT: Duration = Duration::from_secs(60);

impl Ctl {
    fn reexec(&self, binary: Option<PathBuf>, output: &mut Output) -> Result<ExitCode> {
        let status = || match ask(self.socket.as_deref(), &Request::Status)? {
            Reply::Status(status) => Ok(status),
            other => bail!("not a status: {other:?}"),
        };
        let before = status()?;
        match ask(self.socket.as_deref(), &Request::Reexec { binary }) {
            // It may be another program before it has answered.
            Ok(_) | Err(AskError::Socket { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let begin = Instant::now();
        loop {
            // While it changes, a connection may be lost with the program that accepted it.
            match status() {
                Ok(now) if now.upgrades > before.upgrades => {
                    if self.json {
                        return print(output, &Reply::Status(now));
                    }
                    let Status { pid, version, .. } = now;
                    output.print(&format!("engine {pid} goes on as autofs-cr {version}\n"))?;
                    return Ok(ExitCode::SUCCESS);
                }
                _ if begin.elapsed() > REEXEC_LIMIT => {
                    bail!("the engine has not become another program; its log says why")
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn print(output: &mut Output, value: &impl Serialize) -> Result<ExitCode> {
    output.json(value)?;
    Ok(ExitCode::SUCCESS)
}

/// What `ctl who --json` prints.
#[derive(Serialize)]
struct WhoReport<'a> {
    #[serde(flatten)]
    who: &'a Who,
    /// What keeps each of the mounted triggers.
    kept: Vec<Users>,
}

fn ago(now: u64, then: u64) -> String {
    match now.saturating_sub(then) {
        0 => "now".into(),
        seconds => format!("{} ago", human::duration(seconds)),
    }
}

const MAPS: [Column; 7] = [
    Column::long("MAP", 12),
    Column::long("AT", 8),
    Column::right("IDLE"),
    Column::right("MOUNTS"),
    Column::right("MOUNTED"),
    Column::right("FAILED"),
    Column::new("NOW"),
];
const JOBS: [Column; 4] =
    [Column::new("JOB"), Column::right("FOR"), Column::right("WAITING"), Column::long("ON", 12)];

fn serving(counts: &Counts) -> String {
    format!(
        "{}, {} mounted",
        human::count(counts.mounts, "autofs mount"),
        human::count(counts.mounted, "key")
    )
}

fn status(told: &Status, now: u64, output: &Output) -> String {
    let Status { pid, version, began, counts, maps, jobs, upgrades: _ } = told;
    let mut text =
        format!("engine {pid}, autofs-cr {version}, began {}: {}\n", ago(now, *began), serving(counts));
    let mut table = Table::new(&MAPS);
    for map in maps {
        let doing = match (map.reading, map.expiring) {
            (true, _) => "reading",
            (_, true) => "expiring",
            _ => "",
        };
        let idle = human::duration(map.timeout);
        let numbers = [map.mounts, map.mounted, map.failed].map(|number| number.to_string().into());
        let mut row: Vec<Cell> = vec![shown(&map.name).into(), shown(&map.point).into(), idle.into()];
        row.extend(numbers);
        row.push(doing.into());
        table.row(row);
    }
    text += &table.render(output);
    if jobs.is_empty() {
        return text;
    }
    let mut table = Table::new(&JOBS);
    for job in jobs {
        let style = if job.late { Style::Bad } else { Style::Plain };
        table.row(vec![
            Cell::styled(job.what.clone(), style),
            format!("{:.1}s", job.running_ms as f64 / 1e3).into(),
            job.waiting.to_string().into(),
            shown(&job.path).into(),
        ]);
        if job.late {
            table.note("it takes too long; who waited for it has been told so".to_owned());
        }
    }
    text + &table.render(output)
}

const PROGRAMS: [Column; 6] = [
    Column::right("LOOKUPS"),
    Column::right("UID"),
    Column::long("PROGRAM", 12),
    Column::right("LAST PID"),
    Column::right("LAST"),
    Column::long("MOSTLY", 20),
];
/// Triggers that are shown of each program.
const MOSTLY: usize = 3;

fn programs(who: &Who, now: u64, output: &Output) -> String {
    if who.programs.is_empty() {
        return "no program has triggered a mount yet\n".to_owned();
    }
    let mut table = Table::new(&PROGRAMS);
    for program in &who.programs {
        let triggers = program.triggers.iter().take(MOSTLY);
        let mut mostly: Vec<String> = triggers.map(|looked| shown(&looked.path)).collect();
        let more = program.triggers.len().saturating_sub(MOSTLY) as u64 + program.others;
        if more > 0 {
            mostly.push("...".to_owned());
        }
        table.row(vec![
            program.lookups.to_string().into(),
            program.uid.to_string().into(),
            program.comm.clone().into(),
            program.pid.to_string().into(),
            ago(now, program.last).into(),
            mostly.join(" ").into(),
        ]);
        let facts = [&program.command, &program.cgroup].map(String::as_str);
        let facts: Vec<&str> = facts.into_iter().filter(|fact| !fact.is_empty()).collect();
        if !facts.is_empty() {
            table.note(facts.join("  in "));
        }
    }
    table.render(output)
}

const KEEPING: [Column; 5] = [
    Column::long("MOUNT", 12),
    Column::right("PID"),
    Column::right("UID"),
    Column::long("KEPT BY", 12),
    Column::long("WITH", 16),
];

/// Mounts that are in use; idle ones are left out.
fn keeping(kept: &[Users], output: &Output) -> String {
    let mut table = Table::new(&KEEPING);
    let mut any = false;
    for users in kept {
        for program in &users.programs {
            any = true;
            let uses: Vec<String> = program.uses.iter().map(|used| used.how.to_string()).collect();
            table.row(vec![
                shown(&users.path).into(),
                program.pid.to_string().into(),
                program.uid.to_string().into(),
                program.comm.clone().into(),
                uses.join(", ").into(),
            ]);
        }
    }
    if any { format!("\n{}", table.render(output)) } else { String::new() }
}

fn log_levels(levels: &LogLevels) -> String {
    let mounts = levels.mounts.iter().map(|of| format!("{}: {}\n", shown(&of.mount), of.level));
    format!("level: {}\n", levels.level) + &mounts.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use autofs_cr::engine::ledger::{Looked, Program};
    use autofs_cr::engine::state::{Counts, JobReport, MapReport};

    const OUTPUT: Output = Output { width: None, colours: false };

    #[test]
    fn a_status_tells_what_hangs() {
        let map = MapReport {
            name: "/etc/auto.net".into(),
            point: "/net".into(),
            timeout: 300,
            mounts: 1,
            mounted: 2,
            failed: 1,
            reading: false,
            expiring: true,
        };
        let job = JobReport {
            what: "mount".into(),
            path: "/net/dead".into(),
            running_ms: 75_000,
            late: true,
            waiting: 0,
        };
        let told = Status {
            pid: 812,
            version: "1.2.3".into(),
            began: 40,
            upgrades: 0,
            counts: Counts { mounts: 1, mounted: 2, ..Counts::default() },
            maps: vec![map],
            jobs: vec![job],
        };
        insta::assert_snapshot!(status(&told, 100, &OUTPUT));
    }

    #[test]
    fn programs_are_told_with_what_they_look_up() {
        let looked = |path: &str, lookups| Looked { path: path.into(), lookups, last: 90 };
        let program = Program {
            uid: 0,
            comm: "updatedb".into(),
            pid: 4711,
            command: "updatedb -v".into(),
            cgroup: "/system.slice/plocate-updatedb.service".into(),
            lookups: 900,
            first: 10,
            last: 90,
            triggers: ["/net/a", "/net/b", "/net/c", "/net/d"].map(|path| looked(path, 200)).to_vec(),
            others: 100,
        };
        let who = Who { pid: 812, programs: vec![program], mounted: Vec::new() };
        insta::assert_snapshot!(programs(&who, 100, &OUTPUT));
    }
}
