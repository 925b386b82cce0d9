//! Containers with live autofs mounts and a program that reads from them all the time move from one virtual machine to
//! another, with the package's plugin. Both hosts run the same list of moves: host 1 checkpoints and sends, host 2 receives
//! and restores.

use super::hosted::Hosted;
use super::link::Link;
use super::{Fillers, systemd};
use crate::check::Checks;
use crate::machine::install_package;
use crate::process::{run, run_ok};
use crate::runtimes::runtime::{Cli, Oci, Podman, Runtime};
use crate::runtimes::{self, devices};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
const PLUGIN: &str = "/usr/lib/criu/autofs_cr_plugin.so";
/// Where CRIU takes it for something else.
const AWAY: &str = "/usr/lib/criu/away";
/// The checkpoint, as [`Runtime`] calls it.
const WAY: &str = "moved";

/// Debian 12's, which `scripts/support-matrix` unpacks into the job.
const OLDER: &str =
    "LD_LIBRARY_PATH=/job/systemd-252/usr/lib/x86_64-linux-gnu/systemd /job/systemd-252/lib/systemd/systemd";

/// A way from host 1 to host 2.
struct Move {
    name: &'static str,
    who: Who,
    there: There,
    /// Memory goes ahead, while it runs.
    pre: bool,
    /// Or what is told when it cannot work.
    refused: Option<&'static str>,
}

/// Who carries what.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    /// The criu command.
    Criu,
    /// The criu command; this systemd with automount units.
    Systemd(&'static str),
    /// The criu command; the host's automounter, whose mounts are from a server?
    Hosted(bool),
    Oci(&'static str),
    Podman(&'static str),
}

/// What host 2 is like.
#[derive(Clone, Copy, PartialEq)]
enum There {
    Like,
    /// Its file systems have the device numbers.
    NumbersTaken,
    NoPlugin,
    /// Nobody serves there what the host's automounter did here.
    NoAutomounter,
}

const fn works(name: &'static str, who: Who) -> Move {
    Move { name, who, there: There::Like, pre: false, refused: None }
}

/// The first is what `two-hosts` does.
const MOVES: &[Move] = &[
    works("criu", Who::Criu),
    works("criu, systemd 257", Who::Systemd(systemd::PROGRAM)),
    works("criu, systemd 252", Who::Systemd(OLDER)),
    works("runc", Who::Oci("runc")),
    works("crun", Who::Oci("crun")),
    works("podman, runc", Who::Podman("runc")),
    works("podman, crun", Who::Podman("crun")),
    Move { pre: true, ..works("criu, pre-dump", Who::Criu) },
    Move { pre: true, ..works("runc, pre-dump", Who::Oci("runc")) },
    Move { pre: true, ..works("podman, runc, pre-checkpoint", Who::Podman("runc")) },
    Move { there: There::NumbersTaken, ..works("criu, numbers taken", Who::Criu) },
    Move {
        there: There::NumbersTaken,
        refused: Some("its device number"),
        ..works("criu, systemd 257, numbers taken", Who::Systemd(systemd::PROGRAM))
    },
    Move {
        there: There::NoPlugin,
        refused: Some("Missing required plugin"),
        ..works("criu, no plugin on host 2", Who::Criu)
    },
    works("criu, automounter on both hosts", Who::Hosted(false)),
    works("criu, automounter on both hosts, NFS", Who::Hosted(true)),
    Move { there: There::NoAutomounter, ..works("criu, automounter on host 1 only", Who::Hosted(false)) },
    Move { there: There::NoAutomounter, ..works("criu, automounter on host 1 only, NFS", Who::Hosted(true)) },
];

/// One move.
pub fn run_first(checks: &mut Checks) -> Result<()> {
    all_of(checks, &MOVES.iter().take(1).collect::<Vec<_>>())
}

/// Those of these names.
pub fn run_some(names: &[&str]) -> Result<()> {
    let mut checks = Checks::default();
    all_of(&mut checks, &MOVES.iter().filter(|each| names.contains(&each.name)).collect::<Vec<_>>())?;
    ensure!(checks.failed == 0, "{} checks failed", checks.failed);
    Ok(())
}

/// All of them; host 2 prints a column of `docs/support-matrix.md`.
pub fn run_all(checks: &mut Checks) -> Result<()> {
    all_of(checks, &MOVES.iter().collect::<Vec<_>>())
}

fn all_of(checks: &mut Checks, moves: &[&Move]) -> Result<()> {
    let host: usize = std::env::var("HOST")?.parse()?;
    install_package()?;
    // It gives up when a container does not stand still within 10 s.
    fs::create_dir_all("/etc/criu")?;
    fs::write("/etc/criu/default.conf", "timeout 120\n")?;
    // The package's program, where this one looks for its companions.
    let beside = std::env::current_exe()?.with_file_name("autofs-cr");
    if !beside.exists() {
        symlink("/usr/bin/autofs-cr", beside)?;
    }
    // Once it has run it knows the kernel: the first time is slow.
    run(LIMIT, "criu", &["check"])?;
    tell_versions(host)?;
    let mut link = Link::new(host)?;
    for each in moves {
        clean()?;
        // What host 1 has for host 2 stays until that is done.
        let mut here = None;
        let done = match host {
            1 => source(checks, &mut link, each, &mut here),
            _ => destination(checks, &mut link, each),
        };
        link.end(done.as_ref().err())?;
        drop(here);
        if let Err(error) = &done {
            checks.fail(&format!("host {host}: {}", each.name), &format!("{error:#}"));
        }
        if host == 2 {
            let (cell, time) = match (done, each.refused) {
                (Ok(time), None) => ("works".to_owned(), time),
                (Ok(_), Some(_)) => ("refused".to_owned(), String::new()),
                (Err(error), _) => (format!("fails: {}", short(&format!("{error:#}"))), String::new()),
            };
            println!("cell: {}\t{cell}\t{time}", each.name);
        }
    }
    Ok(())
}

/// Images and bundles of the last move.
fn clean() -> Result<()> {
    run_ok(LIMIT, "rm", &["-rf", "/tmp/images", "/tmp/runc", "/tmp/crun"]).map(drop)
}

/// For the record: kernel and CRIU of this host, and what both have from packages.
fn tell_versions(host: usize) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let criu = run_ok(LIMIT, "criu", &["--version"])?;
    let criu = criu.lines().find_map(|line| line.strip_prefix("Version: ")).unwrap_or_default();
    println!("versions of host {host}: kernel {}, criu {criu}", release.trim());
    let format = "--showformat=${Package} ${Version}, ";
    let packages = ["runc", "crun", "podman", "systemd", "autofs"];
    let told = run_ok(LIMIT, "dpkg-query", &[&["--show", format], &packages[..]].concat())?;
    println!("packages: {}", told.trim_end_matches(", "));
    Ok(())
}

fn source(
    checks: &mut Checks,
    link: &mut Link,
    each: &Move,
    here: &mut Option<Box<dyn Runtime>>,
) -> Result<String> {
    let name = each.name;
    // So high that the numbers are free on host 2.
    let below = Fillers::high()?;
    let runtime = here.insert(each.who.start()?);
    if !matches!(each.who, Who::Systemd(_) | Who::Hosted(_)) {
        runtimes::ready(name, &**runtime)?;
    }
    drop(below);
    link.say(&serde_json::to_string(&devices(&**runtime)?)?)?;
    if let Who::Podman(_) = each.who {
        link.send_files(&[Podman::image().into()])?;
    }
    link.hear()?;
    link.tell_clock()?;
    std::thread::sleep(Duration::from_secs(1));
    let ahead = if each.pre { send_ahead(link, &mut **runtime)? } else { String::new() };

    let begin = Instant::now();
    let kept = each.there == There::NoPlugin;
    let way = if kept { "left" } else { WAY };
    if kept { runtime.leave_running() } else { runtime.checkpoint(way) }.context("checkpoint")?;
    checks.that(&format!("host 1: {name}: checkpoint"), true);
    let dumped = begin.elapsed();
    let frozen = runtime.logs(way).and_then(|logs| frozen(&logs).ok()).unwrap_or_default();
    let size = link.send_files(&runtime.moved(way))?;
    link.hear()?;
    let copied = begin.elapsed() - dumped;
    link.say(&format!("{ahead}{frozen}dump {dumped:.1?}, copy of {} KiB {copied:.1?}", size / 1024))?;
    link.hear()?;
    if kept {
        let key = runtime.exec(&["cat", "/ind/c/c"]);
        checks.that(&format!("host 1: {name}: the container goes on here"), key.is_ok());
        runtimes::walked(checks, &format!("host 1: {name}"), &**runtime)?;
    }
    Ok(String::new())
}

/// Most of its memory, while it runs; how long that took.
fn send_ahead(link: &mut Link, runtime: &mut dyn Runtime) -> Result<String> {
    let begin = Instant::now();
    runtime.pre_checkpoint()?;
    let size = link.send_files(&runtime.go_on_from_pre())?;
    link.hear()?;
    Ok(format!("{} KiB ahead of it in {:.1?}, ", size / 1024, begin.elapsed()))
}

/// Returns how long it took, with the parts.
fn destination(checks: &mut Checks, link: &mut Link, each: &Move) -> Result<String> {
    let name = &format!("host 2: {}", each.name);
    let was: BTreeMap<String, String> = serde_json::from_str(&link.hear()?)?;
    if let Who::Podman(_) = each.who {
        link.receive_files()?;
    }
    let mut runtime = each.who.prepare(each.there)?;
    let last =
        was.values().max_by_key(|dev| dev.rsplit(':').next().and_then(|minor| minor.parse::<u32>().ok()));
    let _taken = match each.there {
        There::NumbersTaken => Some(Fillers::take(last.context("no autofs mount")?)?),
        There::NoPlugin => {
            fs::rename(PLUGIN, AWAY)?;
            None
        }
        There::Like | There::NoAutomounter => None,
    };
    link.say("ready")?;
    let ahead = link.clock_ahead()?;
    if each.pre {
        runtime.go_on_from_pre();
        link.receive_files()?;
        link.say("got it")?;
    }
    link.receive_files()?;
    link.say("here")?;
    let parts = link.hear()?;

    let begin = Instant::now();
    let way = if each.there == There::NoPlugin { "left" } else { WAY };
    let restored = runtime.restore(way);
    let took = begin.elapsed();
    if each.there == There::NoPlugin {
        fs::rename(AWAY, PLUGIN)?;
    }
    link.say("done")?;
    if let Some(reason) = each.refused {
        let told = restored.err().map(|error| format!("{error:#}")).unwrap_or_default();
        checks.that(&format!("{name}: refused: {reason}"), told.contains(reason));
        ensure!(told.contains(reason), "it was to be refused with {reason:?}, and was: {told}");
        return Ok(String::new());
    }
    restored?;
    let before = checks.failed;
    let now = devices(&*runtime)?;
    match each.there {
        // They are the host's own.
        _ if matches!(each.who, Who::Hosted(_)) => {
            checks.equal(&format!("{name}: as many mounts"), now.len(), was.len());
        }
        There::NumbersTaken => checks.that(
            &format!("{name}: other device numbers"),
            now.len() == was.len()
                && now.iter().all(|(path, dev)| was.get(path).is_some_and(|old| old != dev)),
        ),
        _ => checks.equal(&format!("{name}: same st_dev"), now, was),
    }
    let pause = if let Who::Hosted(_) = each.who {
        runtime.own_checks(checks, name)?;
        let pause = runtimes::reader(checks, name, &*runtime)? - ahead;
        format!("{pause} ms between two lookups of a program; ")
    } else if let Who::Systemd(_) = each.who {
        checks.step(&format!("{name}: a mounted unit"), runtime.exec(&["cat", "/mnt/bind/a"]));
        checks.step(&format!("{name}: a unit that waits"), runtime.exec(&["touch", "/mnt/scratch/file"]));
        String::new()
    } else {
        runtimes::goes_on(checks, name, &*runtime, "c")?;
        let pause = runtimes::walked(checks, name, &*runtime)? - ahead;
        format!("{pause} ms between two lookups of a program; ")
    };
    let plugin = runtime.logs(way).map(|logs| in_plugin(&logs)).unwrap_or_default();
    ensure!(checks.failed == before, "{} checks failed", checks.failed - before);
    Ok(format!("{pause}{parts}, restore {took:.1?}{plugin}"))
}

impl Who {
    fn start(self) -> Result<Box<dyn Runtime>> {
        Ok(match self {
            Self::Criu => Box::new(Cli::start()?),
            Self::Systemd(program) => {
                systemd_files()?;
                let container = systemd::boot(program, systemd::TARGET)?;
                container.enter(&["cat", "/mnt/bind/a"])?;
                Box::new(Cli::of(Some(container)))
            }
            Self::Hosted(nfs) => Box::new(Hosted::start(nfs)?),
            Self::Oci(program) => Box::new(Oci::start(program)?),
            Self::Podman(program) => {
                let podman = Podman::start(program)?;
                podman.save_image()?;
                Box::new(podman)
            }
        })
    }

    /// The root file system that it wants on another host.
    fn prepare(self, there: There) -> Result<Box<dyn Runtime>> {
        Ok(match self {
            Self::Criu => Box::new(Cli::prepare()?),
            Self::Systemd(_) => {
                systemd_files()?;
                mount_points()?;
                // Of an earlier move. Where controllers are on CRIU cannot put its root task there.
                systemd::remove_cgroups()?;
                Box::new(Cli::of(None))
            }
            Self::Hosted(nfs) => Box::new(Hosted::prepare(nfs, there != There::NoAutomounter)?),
            Self::Oci(program) => Box::new(Oci::prepare(program)?),
            Self::Podman(program) => Box::new(Podman::prepare(program)?),
        })
    }
}

fn systemd_files() -> Result<()> {
    super::exports(&["a"])?;
    systemd::units()
}

/// What systemd and the start of its container have made below the root of host 1, where host 2 has its own mounts.
fn mount_points() -> Result<()> {
    let root = "mkdir -p /c && { mountpoint -q /c || mount --bind / /c; } && mount --make-private /c";
    run_ok(LIMIT, "sh", &["-c", &format!("{root} && mkdir -p /c/sys/fs/cgroup /c/mnt/bind /c/mnt/scratch")])
        .map(drop)
}

/// The first error of CRIU's in a message that names a cause, or the beginning of the message.
fn short(message: &str) -> &str {
    let errors = message.split("Error (").skip(1).filter_map(|rest| Some(rest.split_once("): ")?.1));
    let cause = errors.map(first_part).find(|error| !error.ends_with("FAILED."));
    cause.unwrap_or_else(|| first_part(message))
}

fn first_part(message: &str) -> &str {
    let part = message.split([';', '\n', '\t']).next().unwrap_or_default();
    part.char_indices().nth(120).map_or(part, |(end, _)| &part[..end])
}

/// From CRIU's statistics: how long stopping took, and how long all were stopped.
fn frozen(logs: &Path) -> Result<String> {
    let file = logs.join("stats-dump");
    let told = run_ok(LIMIT, "crit", &["decode", "-i", &file.to_string_lossy()])?;
    let told: Value = serde_json::from_str(&told)?;
    let micros = |name| told["entries"][0]["dump"][name].as_u64().unwrap_or_default() / 1000;
    Ok(format!("freeze {} ms, frozen {} ms, ", micros("freezing_time"), micros("frozen_time")))
}

/// What the plugin says of its share of the restore.
fn in_plugin(logs: &Path) -> String {
    let log = fs::read_to_string(logs.join("restore.log")).unwrap_or_default();
    let told = log
        .lines()
        .filter_map(|line| line.split_once(" us in the plugin")?.0.rsplit(' ').next()?.parse::<u64>().ok());
    format!(", of it the plugin {} ms", told.sum::<u64>() / 1000)
}
