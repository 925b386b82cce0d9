//! `autofs-cr show`.

use super::ExitCode;
use super::human;
use super::list::{self, shown};
use super::output::Output;
use super::table::{Cell, Column, Style, Table};
use anyhow::Result;
use autofs_cr::discover::escaped::escape;
use autofs_cr::discover::facts::TreeEntry;
use autofs_cr::image::checkpoint::{Checkpoint, DumpedMount, InFlight, Left, Origin, Service};
use autofs_cr::image::{Command, When, read};
use autofs_cr::sys::control::Requester;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  autofs-cr show ckpt                  what a restore would work with
  autofs-cr show ckpt --json | jq -r '.mounts[].facts.path'

Below a mount: its directories (d) and symlinks (l), what was mounted on it, its active keys with their map \
entries, and who waited on it. SERVICE is the number of an entry of the second table.

The image's files are described in autofs-cr-image(5).";

/// Print a checkpoint
///
/// Reads and checks the whole image, as a restore does; touches nothing else.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Show {
    /// The directory that `dump -D` wrote
    dir: PathBuf,

    /// Print everything as JSON
    #[arg(long, conflicts_with = "wide")]
    json: bool,

    /// Add sources, options, propagation and every line of the maps; cut nothing
    #[arg(short, long)]
    wide: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    /// Rises when a field goes or changes its meaning, not when one is added.
    format: u32,
    #[serde(flatten)]
    checkpoint: &'a Checkpoint,
    commands: &'a [Command],
}

impl Show {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        let checkpoint = &read(&self.dir)?;
        if self.json {
            output.json(&Shown { format: 1, checkpoint, commands: &checkpoint.commands() })?;
        } else {
            if self.wide {
                output.width = None;
            }
            output.print(&render(checkpoint, self.wide, output))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn render(checkpoint: &Checkpoint, wide: bool, output: &Output) -> String {
    let mut text = origin(&checkpoint.origin);
    if checkpoint.mounts.is_empty() {
        return text + "no mounts\n";
    }
    text += "\n";
    text += &mounts(&checkpoint.mounts, wide).render(output);
    if !checkpoint.services.is_empty() {
        text += "\n";
        text += &services(&checkpoint.services, wide).render(output);
    }
    let commands = checkpoint.commands();
    for Command { mount_point, program, .. } in commands.iter().filter(|one| one.when == When::Always) {
        let line = format!("runs {} to look up keys of {}", shown(program), shown(mount_point));
        text += &format!("{}\n", Style::Warning.paint(&line, output));
    }
    text
}

fn origin(origin: &Origin) -> String {
    let Origin { created, tool, kernel, boot_id, mount_namespace, left } = origin;
    let left = match left {
        Left::Running => "the mounts were left as they were".into(),
        Left::Held { holder } => format!("process {} holds the pipes", holder.pid),
        Left::Catatonic => "the mounts were made catatonic, their waiters are stopped".into(),
    };
    format!(
        "dumped {} by autofs-cr {tool}; {left}\n\
         kernel {kernel}, boot {boot_id}, mount namespace {mount_namespace}\n",
        human::date(*created)
    )
}

const MOUNTS: [Column; 8] = [
    Column::long("PATH", 12),
    Column::new("TYPE"),
    Column::right("DEV"),
    Column::right("GROUP"),
    Column::long("MASTER", 14),
    Column::right("IDLE"),
    Column::long("MOUNTED", 7),
    Column::right("SERVICE"),
];

fn mounts(mounts: &[DumpedMount], wide: bool) -> Table {
    let mut table = Table::new(&[&MOUNTS[..], if wide { &list::WIDE } else { &[] }].concat());
    for mount in mounts {
        let facts = &mount.facts;
        let service = mount.served_by.map_or("-".into(), |index| index.to_string());
        let mut cells: Vec<Cell> = vec![
            shown(&facts.path).into(),
            facts.options.mount_type.to_string().into(),
            facts.dev.to_string().into(),
            facts.options.pgrp.to_string().into(),
            match facts.catatonic {
                true => Cell::styled("catatonic", Style::Warning),
                false => list::master(facts),
            },
            human::duration(facts.options.timeout).into(),
            list::mounted(facts).into(),
            service.into(),
        ];
        if wide {
            cells.extend(list::wide_cells(facts));
        }
        table.row(cells);
        notes(mount).for_each(|note| table.note(note));
    }
    table
}

/// What is inside a mount and around it.
fn notes(mount: &DumpedMount) -> impl Iterator<Item = String> {
    let root = mount.root_requester.iter().map(|requester| format!("root {}", triggered(requester)));
    let tree = mount.tree.iter().map(tree_entry);
    let covering = mount.facts.covering.iter().map(list::covering);
    let active = mount.active.iter().map(|active| match &active.entry {
        Some(entry) => format!("key {}: {}", escape(&active.key), escape(entry)),
        None => format!("key {}, its entry is not known", escape(&active.key)),
    });
    root.chain(tree).chain(covering).chain(active).chain(mount.in_flight.iter().map(in_flight))
}

/// In the manner of `ls -l`.
fn tree_entry(entry: &TreeEntry) -> String {
    let TreeEntry { path, mode, uid, gid, symlink, timeout, requester } = entry;
    let mut text = match symlink {
        Some(target) => format!("l{mode:04o} {uid}:{gid} {} -> {}", shown(path), shown(target)),
        None => format!("d{mode:04o} {uid}:{gid} {}", shown(path)),
    };
    if let Some(timeout) = timeout {
        text += &format!(", idle {}", human::duration(*timeout));
    }
    if let Some(requester) = requester {
        text += &format!(", {}", triggered(requester));
    }
    text
}

fn triggered(Requester { uid, gid }: &Requester) -> String {
    format!("last triggered by uid {uid}, gid {gid}")
}

fn in_flight(request: &InFlight) -> String {
    let waiter = match &request.waiter {
        Some(waiter) => list::waiters(std::slice::from_ref(waiter)),
        None => "somebody".into(),
    };
    let stopped = if request.was_stopped { " (stopped before the dump)" } else { "" };
    match &request.packet {
        Some((token, key)) => format!("{waiter} waits for {}, request {}{stopped}", escape(key), token.0),
        None => format!("{waiter} waits{stopped}"),
    }
}

const SERVICES: [Column; 4] = [
    Column::right("SERVICE"),
    Column::long("MOUNT POINT", 11),
    Column::long("WHAT", 20),
    Column::long("OPTIONS", 12),
];

fn services(services: &[Service], wide: bool) -> Table {
    let mut table = Table::new(&SERVICES);
    for (index, service) in services.iter().enumerate() {
        let (mount_point, what, options) = match service {
            Service::MasterEntry { mount_point, map, options, entries } => {
                let lines = if entries.len() == 1 { "line" } else { "lines" };
                (mount_point, format!("{} ({} {lines})", escape(map), entries.len()), escape(options))
            }
            Service::Unit { unit, mount_point, what, fstype, options, timeout } => {
                let fstype = if fstype.is_empty() { "by content" } else { fstype };
                let idle = human::duration(*timeout);
                (mount_point, format!("{unit}: {} ({fstype}, idle {idle})", escape(what)), escape(options))
            }
        };
        table.row(vec![index.to_string().into(), shown(mount_point).into(), what.into(), options.into()]);
        if let (true, Service::MasterEntry { entries, .. }) = (wide, service) {
            entries.iter().for_each(|(key, entry)| table.note(format!("{} {}", escape(key), escape(entry))));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample of the library's tests, of which they say that it has everything.
    fn sample() -> Checkpoint {
        serde_json::from_str(include_str!("../../tests/data/checkpoint.json")).unwrap()
    }

    fn rendered(wide: bool) -> String {
        render(&sample(), wide, &Output { width: None, colours: false })
    }

    #[test]
    fn everything_is_shown() {
        insta::assert_snapshot!(rendered(false));
    }

    #[test]
    fn wide_adds_the_lines_of_maps() {
        insta::assert_snapshot!(rendered(true));
    }

    #[test]
    fn an_empty_checkpoint_says_so() {
        let mut checkpoint = sample();
        checkpoint.mounts.clear();
        let text = render(&checkpoint, false, &Output { width: None, colours: false });
        assert!(text.ends_with("\nno mounts\n"), "{text}");
    }

    #[test]
    fn a_program_map_is_pointed_out() {
        let mut checkpoint = sample();
        if let Service::MasterEntry { map, .. } = &mut checkpoint.services[0] {
            *map = b"program:/etc/\x1b[2Jauto.sh".to_vec();
        }
        let text = render(&checkpoint, false, &Output { width: None, colours: false });
        assert!(text.ends_with("\nruns /etc/\\033[2Jauto.sh to look up keys of /data\n"), "{text}");
    }
}
