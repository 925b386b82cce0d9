//! docs/benchmarks.md, of the figures of one run.

use super::figures::{Figures, Spread};
use super::plot::{Line, svg};
use crate::cli;
use crate::plugin::scale::SMALL_ROUNDS;
use crate::process::run_ok;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What a figure is compared with, and how much of it it may be: that is the aim.
enum Aim {
    /// So many times what the other one takes.
    Of(&'static str, f64),
    /// A time, seconds.
    Within(f64),
    /// None: shown for comparison.
    Shown(&'static str),
}

/// A line of a table: what is measured, for how many mounts, whose figure, against what.
type Row = (&'static str, usize, &'static str, Aim);

const OURS: &str = "autofs-cr";
const THEIRS: &str = "automount";
const BARE: &str = "bare loop";

const ENGINE: &[Row] = &[
    ("lookup, median", 100, OURS, Aim::Of(THEIRS, 1.0 / 150.0)),
    ("lookup, p99", 100, OURS, Aim::Of(THEIRS, 1.0 / 150.0)),
    ("lookup, median", 10_000, OURS, Aim::Of(THEIRS, 1.0 / 1000.0)),
    ("lookup, p99", 10_000, OURS, Aim::Of(THEIRS, 1.0 / 1000.0)),
    ("lookup, median", 100, OURS, Aim::Of(BARE, 3.0)),
    ("lookup, p99", 100, OURS, Aim::Of(BARE, 3.0)),
    ("lookup, median", 10_000, OURS, Aim::Of(BARE, 3.0)),
    ("lookup, p99", 10_000, OURS, Aim::Of(BARE, 3.0)),
    ("start", 10_000, OURS, Aim::Of(BARE, 1.5)),
    ("start", 10_000, OURS, Aim::Of(THEIRS, 1.0)),
    ("expire", 100, OURS, Aim::Of(THEIRS, 1.0 / 100.0)),
    ("stop", 10_000, OURS, Aim::Of(THEIRS, 1.0 / 20.0)),
    ("memory", 10_000, OURS, Aim::Of(THEIRS, 1.0)),
    ("memory, 200 mounted", 10_000, OURS, Aim::Of(THEIRS, 1.0)),
    ("storm, p99 of the live", 1000, "1 in 10 dead", Aim::Of("all alive", 3.0)),
    ("reload", 100_000, OURS, Aim::Of("read twice", 1.0)),
];

const HOST: &[Row] = &[
    ("dump", 10, OURS, Aim::Of(BARE, 2.0)),
    ("dump", 1000, OURS, Aim::Of(BARE, 2.0)),
    ("dump", 10_000, OURS, Aim::Of(BARE, 2.0)),
    ("restore", 10, OURS, Aim::Of(BARE, 2.0)),
    ("restore", 1000, OURS, Aim::Of(BARE, 2.0)),
    ("restore", 10_000, OURS, Aim::Of(BARE, 2.0)),
];

const CONTAINERS: &[Row] = &[
    ("container dump", 1, "plugin", Aim::Of("stock CRIU", 1.0)),
    ("container dump", 100, "plugin", Aim::Of("stock CRIU", 1.0)),
    ("container restore", 1, "plugin", Aim::Of("stock CRIU", 1.0)),
    ("container restore", 100, "plugin", Aim::Of("stock CRIU", 1.0)),
    ("programs frozen", 100, "plugin", Aim::Of("stock CRIU", 1.05)),
    ("own share of a dump", 10_000, "plugin", Aim::Within(0.3)),
    ("own share of a restore", 10_000, "plugin", Aim::Within(0.3)),
    ("container dump", 10_000, "plugin", Aim::Shown("stock CRIU")),
    ("container restore", 10_000, "plugin", Aim::Shown("stock CRIU")),
];

const SECTIONS: &[(&str, &str, &[Row])] = &[
    (
        "The engine",
        "Direct maps whose entries are bind mounts. *lookup*: a program opens a file behind a trigger, 200 of them one after \
         another. *start*: until all triggers are there. *expire*: 100 idle mounts, on USR1. *stop*: 10 000 triggers, 200 of \
         them mounted. *memory*: resident, with all triggers made. *storm*: 1 000 programs look up a key each at the same \
         moment; with one key in ten on an NFS server that drops all packets, beside the same without. *reload*: of a map that did \
         not change, asked over the control socket, beside reading its file twice. The *bare loop* does what nobody can do \
         without: make the mounts; read the packet, bind, READY. Where an aim beside automount is below the bare loop nobody can \
         meet it: it comes from measurements in which automount took far longer.",
        ENGINE,
    ),
    (
        "Dump and restore on a host",
        "`autofs-cr dump` and `restore` of direct mounts, from start to end of the program. The *bare loop* makes the same system \
         calls for each mount: for a dump the mount table, OPENMOUNT and a synced file; for a restore mount, timeout, CATATONIC, SETPIPEFD.",
        HOST,
    ),
    (
        "Containers",
        "`criu dump` and `restore` of a container with direct mounts on one pipe, with the plugin and by a stock CRIU, which hangs on \
         restoring 140 and more. *programs frozen*: by a dump, as CRIU counts (`stats-dump`: until all are stopped, and from then on). \
         *own share*: the time spent in the plugin.",
        CONTAINERS,
    ),
];

/// Where and with what it was measured.
pub struct Machine {
    lines: Vec<(&'static str, String)>,
}

impl Machine {
    /// This one, now.
    pub fn look() -> Result<Self> {
        let second = Duration::from_secs(20);
        let first_line = |program: &str, args: &[&str]| -> Result<String> {
            let text = run_ok(second, program, args)?;
            Ok(text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned())
        };
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let models: Vec<&str> = cpus
            .lines()
            .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, name)| name)
            .collect();
        let memory = fs::read_to_string("/proc/meminfo")?;
        let kib: u64 = memory.split_whitespace().nth(1).context("no MemTotal")?.parse()?;
        let commit = std::env::var("AUTOFS_CR_COMMIT").unwrap_or_default();
        let lines = vec![
            ("date", first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?),
            ("processors", format!("{} × {}", models.len(), models.first().unwrap_or(&"?"))),
            ("memory", format!("{} GiB", kib >> 20)),
            ("kernel", first_line("uname", &["-srm"])?),
            ("autofs-cr", format!("{} {commit}", cli::ok(&["--version"])?.trim())),
            ("automount", first_line("automount", &["--version"])?),
            ("CRIU", first_line("criu", &["--version"])?),
            ("load at the beginning", load()?),
        ];
        Ok(Self { lines })
    }
}

/// Of one minute.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// The tables alone; what was not measured is left out.
pub fn tables(figures: &Figures) -> String {
    let mut out = String::new();
    for (title, about, rows) in SECTIONS {
        let rows: Vec<String> = rows.iter().filter_map(|row| table_row(figures, row)).collect();
        if !rows.is_empty() {
            out += &format!(
                "## {title}\n{about}\n\n| what | mounts | | median (least to most) | beside | median (least to most) | ratio | aim | met |\n\
                 |---|---|---|---|---|---|---|---|---|\n{}\n",
                rows.concat()
            );
        }
    }
    out
}

fn table_row(figures: &Figures, (what, size, who, aim): &Row) -> Option<String> {
    let ours = figures.spread(what, *size, who)?;
    let unit = if what.starts_with("memory") { memory } else { time };
    let mut line = format!("| {what} | {} | {who} | {} |", number(*size), spread(ours, unit));
    // Writing to a string cannot fail.
    let _ = match aim {
        Aim::Within(limit) => {
            writeln!(line, " | | | at most {} | {} |", time(*limit), met(ours.median <= *limit))
        }
        Aim::Of(peer, most) => {
            let theirs = figures.spread(what, *size, peer)?;
            let ratio = figures.ratio((what, *size, who), (what, *size, peer))?;
            let (theirs, shown) = (spread(theirs, unit), spread(ratio, times));
            let met = met(ratio.median <= *most);
            writeln!(line, " {peer} | {theirs} | {shown} | {} | {met} |", times(*most))
        }
        Aim::Shown(peer) => match figures.spread(what, *size, peer) {
            Some(theirs) => writeln!(line, " {peer} | {} | | | |", spread(theirs, unit)),
            None => writeln!(line, " {peer} | not possible | | | |"),
        },
    };
    Some(line)
}

fn met(met: bool) -> &'static str {
    if met { "yes" } else { "**no**" }
}

fn spread(spread: Spread, unit: fn(f64) -> String) -> String {
    format!("{} ({} to {})", unit(spread.median), unit(spread.least), unit(spread.most))
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

fn memory(kib: f64) -> String {
    format!("{:.1} MiB", kib / 1024.0)
}

fn times(ratio: f64) -> String {
    if ratio < 0.2 { format!("1/{:.0}", 1.0 / ratio) } else { format!("{ratio:.2}") }
}

/// With a gap between thousands.
fn number(size: usize) -> String {
    if size < 10_000 { size.to_string() } else { format!("{} {:03}", size / 1000, size % 1000) }
}

/// The page and its plots.
pub fn write(dir: &Path, figures: &Figures, machine: &Machine, rounds: usize) -> Result<()> {
    let line = |name, what, who| Line { name, points: figures.line(what, who) };
    let latency = [
        line("automount, p99", "lookup, p99", THEIRS),
        line("automount, median", "lookup, median", THEIRS),
        line("autofs-cr, p99", "lookup, p99", OURS),
        line("autofs-cr, median", "lookup, median", OURS),
        line("bare loop, median", "lookup, median", BARE),
    ];
    let moves = [
        line("container, restore", "container restore", "plugin"),
        line("container, dump", "container dump", "plugin"),
        line("host, restore", "restore", OURS),
        line("host, dump", "dump", OURS),
        line("bare loop, restore", "restore", BARE),
        line("bare loop, dump", "dump", BARE),
    ];
    fs::write(dir.join("lookup.svg"), svg("Time of a lookup that mounts", &latency))?;
    fs::write(dir.join("dump-restore.svg"), svg("Time of a dump and of a restore", &moves))?;
    let mut out = format!(
        "<!-- Written by scripts/bench; changes are lost. -->\n\
         # Benchmarks\n\n\
         One run of `scripts/bench`, everything beside its peer on the same machine, taking turns: look at the ratios. Medians of {rounds} \
         rounds (storm: 15, reload: 5; containers with up to 100 mounts: {SMALL_ROUNDS}), with the least and the most; a ratio is taken \
         round by round. Aims are those the project \
         set itself before.\n\n| | |\n|---|---|\n"
    );
    for (name, value) in
        machine.lines.iter().map(|(name, value)| (*name, value.clone())).chain([("load at the end", load()?)])
    {
        let _ = writeln!(out, "| {name} | {value} |");
    }
    out += "\n![Time of a lookup over the number of mounts](lookup.svg)\n\n\
            ![Time of dump and restore over the number of mounts](dump-restore.svg)\n\n";
    out += tables(figures).trim_end();
    out += "\n";
    let page = dir.join("benchmarks.md");
    fs::write(&page, out).with_context(|| format!("{}; run it as scripts/bench", page.display()))
}
