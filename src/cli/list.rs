//! `autofs-cr list`.

use super::ExitCode;
use super::output::{self, Output};
use super::table::{Cell, Column, Style, Table};
use super::{TargetArgs, human};
use anyhow::Result;
use autofs_cr::discover::escaped::escape;
use autofs_cr::discover::facts::{
    AutofsMount, AutofsOptions, Blind, CoveringMount, End, Master, MountType, Pipe, PipeEnd, Propagation,
    Survey, Waiter,
};
use autofs_cr::discover::{Target, survey};
use autofs_cr::sys::control::{Control, Requester};
use clap::Args;
use serde::Serialize;
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;

const EXAMPLES: &str = "\
Examples:
  autofs-cr list                  the mounts of this mount namespace
  autofs-cr list --tree 812       those that process 812 sees
  autofs-cr list --json |
    jq -r '.mounts[] | select(.master.program == \"dead\").path'

Columns:
  PIPE     inode of the kernel's pipe; `catatonic`: there is none; keys are
           not found, direct mounts look empty
  ENDS     who holds the pipe: process:descriptor, r: read end, w: write end
  GROUP    the process group that owns the mount
  MASTER   the program that answers, its process (and for systemd its unit)
  IDLE     the idle timeout
  MOUNTED  what is mounted on the trigger, or how many keys are mounted

A narrow terminal does not show ENDS and GROUP. The shape of --json is described in list-json.md, in docs/ or /usr/share/doc/autofs-cr/.";

/// Every autofs mount: what it is, who answers it, what is mounted on it
///
/// Only reads: nothing is triggered, nothing waits, no mount is touched.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct List {
    #[command(flatten)]
    pub target: TargetArgs,

    /// Print all facts as JSON
    #[arg(long, conflicts_with = "wide")]
    json: bool,

    /// Add sources, options and propagation, and a line for every mount on a trigger and every waiter; cut nothing
    #[arg(short, long)]
    wide: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Listing<'a> {
    /// Rises when a field goes or changes its meaning, not when one is added.
    format: u32,
    mount_namespace: u64,
    mounts: Vec<Listed<'a>>,
    unplaced_waiters: &'a [Waiter],
    blind: &'a Blind,
}

#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    facts: &'a AutofsMount,
    /// Who triggered it last; only a catatonic mount tells that to anybody but its owner.
    requester: Option<Requester>,
}

impl List {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        let target = self.target.target();
        let survey = survey(&target)?;
        gaps(&survey).for_each(output::warn);
        // A daemon that unmounts what is idle waits for itself.
        let unplaced = survey.unplaced_waiters.iter().filter(|waiter| !waiter.expiring);
        let unplaced: Vec<_> = unplaced.cloned().collect();
        if !unplaced.is_empty() {
            output::warn(format_args!("waiting, but not known on which mount: {}", waiters(&unplaced)));
        }
        let requesters = requesters(&survey.mounts, &target);
        let listed = |(facts, requester)| Listed { facts, requester };
        let mounts: Vec<_> = survey.mounts.iter().zip(requesters).map(listed).collect();
        if self.json {
            output.json(&Listing {
                format: 1,
                mount_namespace: survey.mount_namespace,
                mounts,
                unplaced_waiters: &survey.unplaced_waiters,
                blind: &survey.blind,
            })?;
        } else if mounts.is_empty() {
            output::note("no autofs mounts in this mount namespace");
        } else {
            if self.wide {
                output.width = None;
            }
            output.print(&table(&mounts, self.wide).render(output))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What the survey could not see.
pub fn gaps(survey: &Survey) -> impl Iterator<Item = String> {
    let Blind { descriptors, sleepers } = survey.blind;
    let hidden = survey.mounts.iter().filter(|mount| mount.options.pipe() == Pipe::NotShown).count();
    let gaps = [
        (descriptors, "processes hide their descriptors, so masters may be missing: run as root"),
        (sleepers, "tasks sleep where this kernel does not tell, perhaps on a mount: run as root"),
        (
            hidden,
            "mounts hide their pipes, so masters are not known: a kernel with CONFIG_CHECKPOINT_RESTORE",
        ),
    ];
    gaps.into_iter().filter(|&(count, _)| count > 0).map(|(count, text)| format!("{count} {text}"))
}

/// Who triggered each mount last. Only asked where nothing can wait: of catatonic mounts of our own namespace that
/// are reached through no mount with a pipe. (Of any other mount only its owner may ask.)
fn requesters(mounts: &[AutofsMount], target: &Target) -> Vec<Option<Requester>> {
    let live: HashSet<_> = mounts.iter().filter(|mount| !mount.catatonic).map(|mount| &*mount.path).collect();
    let may_ask = |mount: &AutofsMount| {
        mount.catatonic
            && mount.options.mount_type != MountType::Indirect
            && !mount.path.ancestors().any(|ancestor| live.contains(ancestor))
    };
    let device = (*target == Target::Own).then(Control::open).and_then(Result::ok);
    let ask = |mount: &AutofsMount| {
        let device = device.as_ref().filter(|_| may_ask(mount))?;
        let root = device.open_mount(&mount.path, mount.dev).ok()?;
        device.requester(root.as_fd(), &mount.path).ok()
    };
    mounts.iter().map(ask).collect()
}

const COLUMNS: [Column; 9] = [
    Column::long("PATH", 12),
    Column::new("TYPE"),
    Column::right("DEV"),
    Column::right("PIPE"),
    Column::optional("ENDS"),
    Column { right: true, ..Column::optional("GROUP") },
    Column::long("MASTER", 14),
    Column::right("IDLE"),
    Column::long("MOUNTED", 7),
];
/// Columns of `--wide`, filled by [`wide_cells`].
pub const WIDE: [Column; 3] = [Column::new("SOURCE"), Column::new("OPTIONS"), Column::new("PROPAGATION")];

fn table(mounts: &[Listed<'_>], wide: bool) -> Table {
    let mut table = Table::new(&[&COLUMNS[..], if wide { &WIDE } else { &[] }].concat());
    for Listed { facts, requester } in mounts {
        let mut cells = cells(facts);
        if wide {
            cells.extend(wide_cells(facts));
        }
        table.row(cells);
        if !facts.waiters.is_empty() {
            table.note(format!("waiting: {}", waiters(&facts.waiters)));
        }
        if wide {
            facts.covering.iter().for_each(|mount| table.note(covering(mount)));
            if let Some(Requester { uid, gid }) = requester {
                table.note(format!("last triggered by uid {uid}, gid {gid}"));
            }
        }
    }
    table
}

fn cells(mount: &AutofsMount) -> Vec<Cell> {
    vec![
        shown(&mount.path).into(),
        mount.options.mount_type.to_string().into(),
        mount.dev.to_string().into(),
        pipe(&mount.options),
        ends(&mount.pipe_ends).into(),
        group(mount.options.pgrp).into(),
        master(mount),
        human::duration(mount.options.timeout).into(),
        mounted(mount).into(),
    ]
}

/// The cells of [`WIDE`].
pub fn wide_cells(mount: &AutofsMount) -> [Cell; 3] {
    [shown(&mount.source).into(), options(&mount.options).into(), propagation(&mount.propagation).into()]
}

/// A path for people.
pub fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

fn pipe(options: &AutofsOptions) -> Cell {
    match options.pipe() {
        Pipe::Inode(ino) => ino.to_string().into(),
        Pipe::Catatonic => Cell::styled("catatonic", Style::Warning),
        Pipe::NotShown => Cell::styled("not shown", Style::Warning),
    }
}

/// 0: in a pid namespace that is not visible here.
fn group(pgrp: i32) -> String {
    if pgrp == 0 { "-".into() } else { pgrp.to_string() }
}

/// In the manner of lsof: `812:5r`.
fn ends(ends: &[PipeEnd]) -> String {
    let end = |end: &PipeEnd| {
        let letter = match end.end {
            End::Read => 'r',
            End::Write => 'w',
        };
        format!("{}:{}{letter}", end.process.pid, end.fd)
    };
    or_dash(ends.iter().map(end).collect::<Vec<_>>().join(" "))
}

/// Program and process.
pub fn master(mount: &AutofsMount) -> Cell {
    let holder = mount.pipe_ends.iter().find(|end| end.end == End::Read);
    let (text, style) = match &mount.master {
        Master::Automount { process } => (format!("automount {}", process.pid), Style::Good),
        Master::AutofsCr { process } => (format!("autofs-cr {}", process.pid), Style::Good),
        Master::Systemd { process, unit } => (format!("systemd {} {unit}", process.pid), Style::Good),
        Master::Unknown { process, comm } => (format!("unknown {} {comm}", process.pid), Style::Warning),
        Master::Dead => match holder {
            Some(holder) => (format!("dead, held by {}", holder.process.pid), Style::Warning),
            None if mount.catatonic => ("none".into(), Style::Bad),
            None => ("dead".into(), Style::Bad),
        },
        Master::NotVisible => ("not visible".into(), Style::Warning),
    };
    Cell::styled(text, style)
}

/// What is on the trigger, or how many keys.
pub fn mounted(mount: &AutofsMount) -> String {
    if mount.options.mount_type == MountType::Indirect {
        let keys: HashSet<_> = mount.covering.iter().map(|covering| &covering.path).collect();
        return match keys.len() {
            0 => "-".into(),
            n => human::count(n, "key"),
        };
    }
    or_dash(mount.covering.iter().map(|covering| covering.fstype.as_str()).collect::<Vec<_>>().join("+"))
}

/// In the manner of mount(8).
pub fn covering(mount: &CoveringMount) -> String {
    let CoveringMount { path, fstype, source, root, mount_flags, super_options, .. } = mount;
    let part = if root == Path::new("/") { String::new() } else { format!("[{}]", shown(root)) };
    let mut options = mount_flags.clone();
    options.extend(super_options.iter().map(|option| escape(option.as_encoded_bytes())));
    let mut seen = HashSet::new();
    options.retain(|option| seen.insert(option.clone()));
    format!("{} on {} type {fstype} ({})", shown(source) + &part, shown(path), options.join(","))
}

/// Names and numbers.
pub fn waiters(waiters: &[Waiter]) -> String {
    let one = |waiter: &Waiter| {
        let how = if waiter.expiring { " (expiring)" } else { "" };
        format!("{} {}{how}", waiter.comm, waiter.tid)
    };
    waiters.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn options(options: &AutofsOptions) -> String {
    let mut texts = vec![format!("proto={}-{}", options.min_proto, options.max_proto)];
    texts.extend(options.strict_expire.then(|| "strictexpire".into()));
    texts.extend(options.ignore.then(|| "ignore".into()));
    texts.extend(options.uid.map(|uid| format!("uid={uid}")));
    texts.extend(options.gid.map(|gid| format!("gid={gid}")));
    texts.extend(options.unknown.iter().cloned());
    texts.join(",")
}

fn propagation(propagation: &Propagation) -> String {
    let mut texts = Vec::new();
    texts.extend(propagation.shared.map(|group| format!("shared:{group}")));
    texts.extend(propagation.slave_of.map(|group| format!("slave:{group}")));
    texts.extend(propagation.unbindable.then(|| "unbindable".into()));
    if texts.is_empty() { "private".into() } else { texts.join(",") }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listing as docs/list-json.md describes it: what is read here must stay readable.
    fn sample() -> Survey {
        serde_json::from_str(include_str!("../../tests/data/list.json")).unwrap()
    }

    fn rendered(wide: bool, width: Option<usize>) -> String {
        let survey = sample();
        let requester = |facts: &AutofsMount| facts.catatonic.then_some(Requester { uid: 1000, gid: 100 });
        let listed = |facts| Listed { facts, requester: requester(facts) };
        let mounts: Vec<_> = survey.mounts.iter().map(listed).collect();
        table(&mounts, wide).render(&Output { width, colours: false })
    }

    #[test]
    fn every_kind_of_mount() {
        insta::assert_snapshot!(rendered(false, None));
    }

    #[test]
    fn eighty_columns_are_enough() {
        insta::assert_snapshot!(rendered(false, Some(80)));
    }

    #[test]
    fn wide_tells_all() {
        insta::assert_snapshot!(rendered(true, None));
    }

    #[test]
    fn gaps_are_told() {
        let mut survey = sample();
        assert_eq!(gaps(&survey).count(), 0);
        survey.blind = Blind { descriptors: 2, sleepers: 1 };
        survey.mounts[0].options.pipe_ino = None;
        assert_eq!(gaps(&survey).count(), 3);
    }
}
