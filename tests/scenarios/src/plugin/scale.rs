//! Many autofs mounts in one container: with the plugin, and beside a stock CRIU where that lives.

use super::container::{Container, Criu};
use super::faults::no_process_left;
use super::{exports, program};
use crate::bench::figures::Figures;
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::files::script;
use anyhow::{Context, Result, ensure};
use autofs_cr::restore::claim::Claims;
use autofs_cr::sys::mount::Placeholder;
use autofs_cr::sys::{DevNum, fork, mountns};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// What `scripts/test` runs, and what `scripts/bench criu` does; the stock CRIU goes as far as [`STOCK`].
const SHORT: &[usize] = &[1, 100, 1000];
const ALL: &[usize] = &[1, 100, 1000, 10_000];

/// Stock CRIU hangs when it restores more mounts than this (kernel default of net.core.wmem_default): it sends two
/// descriptors of each to itself over one socket that nobody reads meanwhile.
const STOCK: usize = 138;

/// Of what takes a moment only.
pub const SMALL_ROUNDS: usize = 15;

/// What the plugin may take of a processor for a dump or a restore: far above what it takes on a slow machine, and far below what a call
/// for each pair of mounts would take. (How long it takes by the clock is for others to say, who use the machine, too.)
const BUSY: Duration = Duration::from_secs(2);

pub fn run(checks: &mut Checks) -> Result<()> {
    limits(checks)?;
    killed(checks)?;
    others_between(checks)?;
    one_after_the_other(checks)?;
    turn(checks)?;
    sizes(checks, SHORT)
}

/// `scripts/bench criu`. Size by size, as the end of thousands of mounts keeps the kernel busy for a while, and taking turns in
/// being first.
pub fn bench(figures: &mut Figures, rounds: usize) -> Result<()> {
    exports(&["one"])?;
    let mut checks = Checks::default();
    // The first on a machine reads programs from the disk, and CRIU finds out what the kernel can do.
    carry(1, None)?;
    carry(1, Some(&mut checks))?;
    for &size in ALL {
        let with_stock = size <= STOCK;
        for round in 0..if with_stock { SMALL_ROUNDS.max(rounds) } else { rounds } {
            let mut turns = vec![true, false];
            turns.rotate_left(round % 2);
            for plugin in turns.into_iter().filter(|plugin| *plugin || with_stock) {
                let who = if plugin { "plugin" } else { "stock CRIU" };
                carry(size, plugin.then_some(&mut checks))?.keep(figures, size, who);
            }
        }
    }
    if checks.failed > 0 {
        // Device numbers belong to the whole machine: somebody else may have had one.
        println!("{} checks failed", checks.failed);
    }
    Ok(())
}

/// What CRIU cannot carry is refused before it begins, and the container goes on.
fn limits(checks: &mut Checks) -> Result<()> {
    let start = |count: usize, option: &str| -> Result<Container> {
        let mounts: Vec<String> = (0..count).map(|number| format!("direct:/mnt/{number}:{option}")).collect();
        start(&mounts)
    };
    let many = start(1025, "own-pipe")?;
    let criu = Criu::with_plugin("scale.pipes")?;
    let refused = criu.dump(&many).map_err(|error| format!("{error:#}"));
    checks.that(
        "1025 pipes: refused, with CRIU's limit",
        refused.is_err_and(|why| why.contains("CRIU can dump 1024 pipes")),
    );
    checks.that("the container goes on", many.enter(&["ls", "/run/ready"]).is_ok());
    drop(many);

    let kept = start(280, "own-pipe-kept")?;
    let criu = Criu::with_plugin("scale.ends")?;
    criu.dump(&kept)?;
    checks.that(
        "280 pipes with both ends: warned of at the dump",
        criu.log("dump").contains("net.core.wmem_default"),
    );
    drop(kept);
    // Another restore takes its numbers.
    let turn = File::open("/dev/autofs")?;
    flock(&turn, FlockOperation::LockExclusive)?;
    let begin = Instant::now();
    let refused = criu.restore().map_err(|error| format!("{error:#}"));
    checks.that(
        "their restore is refused, and says what to set",
        refused.is_err_and(|why| why.contains("set net.core.wmem_default to 215040 or more")),
    );
    no_process_left(checks, "after it");
    let at_once = begin.elapsed() < Duration::from_secs(45);
    checks.that("at once: CRIU would hang, and whoever takes numbers waits a minute for its turn", at_once);
    Ok(())
}

/// Who takes numbers is killed: whoever is next finds them free.
fn killed(checks: &mut Checks) -> Result<()> {
    const ROUNDS: usize = 10;
    let free = || -> Result<u32> { Ok(Placeholder::new()?.mount()?.dev()?.minor) };
    let hold = |first| {
        mountns::unshare_private().ok()?;
        let mut claims = Claims::new();
        let not_held = claims.hold((first..first + 1000).map(DevNum::anonymous)).ok()?;
        let turn = flock(&File::open("/dev/autofs").ok()?, FlockOperation::NonBlockingLockExclusive);
        (not_held.len() < 100 && turn.is_err()).then_some(claims)
    };
    let mut others = 0;
    for _ in 0..ROUNDS {
        let first = free()?;
        let (mut told, tell) = std::io::pipe()?;
        let child = fork::fork(|| {
            let Some(_claims) = hold(first) else { return 1 };
            let _ = (&tell).write_all(b"x");
            std::thread::sleep(HANG_LIMIT);
            0
        })?;
        drop(tell);
        told.read_exact(&mut [0]).context("no numbers were held")?;
        child.signal(Signal::KILL)?;
        let turn = File::open("/dev/autofs")?;
        flock(&turn, FlockOperation::LockExclusive)?;
        others += usize::from(free()? > first);
    }
    checks.equal("a restore that is killed: others take numbers before they are free", others, 0);
    Ok(())
}

/// CRIU makes mounts of its own between ours: none gets a number that is free for a moment.
fn others_between(checks: &mut Checks) -> Result<()> {
    const COUNT: usize = 1000;
    let mounts: Vec<String> = (0..COUNT).map(|number| format!("direct:/mnt/{number}")).collect();
    let container = start(&mounts)?;
    for number in (0..COUNT / 2).step_by(20) {
        let path = format!("/mnt/{number}");
        container.enter(&["mount", "-t", "tmpfs", "other", &path])?;
    }
    let was = devices(&container);
    let criu = Criu::with_plugin("scale.others")?;
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop(container);
    let begin = Instant::now();
    let failed = criu.and_fault("container.made:error")?.restore();
    let took = begin.elapsed();
    checks.that("a restore of 1000 mounts that fails at the first one fails", failed.is_err());
    checks.that(&format!("and ends: it took {took:?}, at most 60s"), took < Duration::from_secs(60));
    let now = devices(&criu.restore()?);
    let changed = was.iter().filter(|(path, dev)| now.get(*path) != Some(dev)).count();
    checks.equal("tmpfs between 1000 mounts: another st_dev", (now.len(), changed), (COUNT, 0));
    Ok(())
}

/// Containers of one machine: what CRIU mounts for one takes no number of those that are restored after it.
fn one_after_the_other(checks: &mut Checks) -> Result<()> {
    let mounts: Vec<String> = (0..100).map(|number| format!("direct:/mnt/{number}")).collect();
    let containers = (0..4).map(|_| start(&mounts)).collect::<Result<Vec<_>>>()?;
    let mut dumped = Vec::new();
    for (number, container) in containers.into_iter().enumerate() {
        let was = devices(&container);
        let criu = Criu::with_plugin(&format!("scale.container-{number}"))?;
        criu.dump(&container)?;
        ensure!(wait_until(|| container.ended()), "the dump left the container running");
        dumped.push((criu, was));
    }
    for order in ["the oldest first", "the youngest first"] {
        let mut running = Vec::new();
        let (mut kept, mut all) = (0, 0);
        for (criu, was) in &dumped {
            let container = criu.restore()?;
            let now = devices(&container);
            kept += was.iter().filter(|(path, dev)| now.get(*path) == Some(dev)).count();
            all += mounts.len();
            running.push(container);
        }
        checks.equal(&format!("four containers, {order}: mounts with their st_dev"), kept, all);
        running.clear();
        dumped.reverse();
    }
    Ok(())
}

/// Other restores can take numbers when CRIU has mounted everything: not before, and not only when it ends.
fn turn(checks: &mut Checks) -> Result<()> {
    const SCRIPT: &str = r#"#!/bin/sh
        if flock -n /dev/autofs true; then who=anybody; else who=nobody; fi
        echo "$CRTOOLS_SCRIPT_ACTION: $who" >>/tmp/turns"#;
    script("/tmp/turns.sh", SCRIPT)?;
    let container = start(&["direct:/mnt/one".to_owned()])?;
    let criu = Criu::with_plugin("scale.turn")?;
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    let _restored = criu.restore_with(&["--action-script", "/tmp/turns.sh"])?;
    let told = fs::read_to_string("/tmp/turns")?;
    for line in ["post-setup-namespaces: nobody", "post-restore: anybody"] {
        checks.that(&format!("who can take numbers at {line}"), told.lines().any(|told| told == line));
    }
    Ok(())
}

fn sizes(checks: &mut Checks, sizes: &[usize]) -> Result<()> {
    exports(&["one"])?;
    for &size in sizes {
        let times = carry(size, Some(checks))?;
        let busy = times.busy;
        checks.that(
            &format!("{size} mounts: {busy:?} of a processor, at most {BUSY:?}"),
            !busy.is_zero() && busy <= BUSY,
        );
    }
    Ok(())
}

struct Times {
    dump: Duration,
    restore: Duration,
    /// How long programs did not run at the dump, as CRIU counts.
    frozen: Duration,
    /// Of these, in the plugin.
    dump_share: Duration,
    restore_share: Duration,
    /// Of a processor, there: the dump's or the restore's, whichever is more.
    busy: Duration,
}

impl Times {
    fn keep(self, figures: &mut Figures, size: usize, who: &'static str) {
        figures.time("container dump", size, who, self.dump);
        figures.time("container restore", size, who, self.restore);
        figures.time("programs frozen", size, who, self.frozen);
        if who == "plugin" {
            figures.time("own share of a dump", size, who, self.dump_share);
            figures.time("own share of a restore", size, who, self.restore_share);
        }
    }
}

/// With the plugin (and checks), or a stock CRIU.
fn carry(size: usize, checks: Option<&mut Checks>) -> Result<Times> {
    let images = format!("scale.{size}.{}", checks.is_some());
    let criu = if checks.is_some() { Criu::with_plugin(&images)? } else { Criu::stock(&images)? };
    // The first one lives on a path that is a key; none is mounted at dump, so that the two are comparable.
    let places = (1..size).map(|number| format!("direct:/mnt/{number}"));
    let mounts: Vec<String> = std::iter::once("direct:/mnt/one".to_owned()).chain(places).collect();
    let container = start(&mounts)?;
    let was = devices(&container);

    let start = Instant::now();
    criu.dump(&container)?;
    let dump = start.elapsed();
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop(container);
    let start = Instant::now();
    let container = criu.restore()?;
    let restore = start.elapsed();

    let busy = |action| share(&criu.log(action), " on a processor");
    let times = Times {
        dump,
        restore,
        frozen: criu.frozen()?,
        dump_share: share(&criu.log("dump"), " us in the plugin"),
        restore_share: share(&criu.log("restore"), " us in the plugin"),
        busy: busy("dump").max(busy("restore")),
    };
    if let Some(checks) = checks {
        let now = devices(&container);
        let others = was.iter().filter(|(path, dev)| now.get(*path) != Some(dev)).count();
        checks.equal(
            &format!("{size} mounts: all there, with another st_dev"),
            (now.len(), others),
            (size, 0),
        );
        checks.equal(
            &format!("{size} mounts: served"),
            container.enter(&["cat", "/mnt/one/one"]).ok().as_deref().map(str::trim),
            Some("one"),
        );
    }
    Ok(times)
}

fn start(mounts: &[String]) -> Result<Container> {
    let program = program()?;
    let mut command = vec!["catatonit", "--", &program, "master"];
    command.extend(mounts.iter().map(String::as_str));
    let container = Container::start(&command)?;
    ensure!(wait_until(|| container.enter(&["test", "-e", "/run/ready"]).is_ok()), "no master");
    Ok(container)
}

/// The plugin's time of that kind, which it tells in CRIU's log, of every process.
fn share(log: &str, kind: &str) -> Duration {
    let told = log.lines().filter_map(|line| Some(line.split_once(kind)?.0));
    let micros = told.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
    Duration::from_micros(micros.sum())
}

fn devices(container: &Container) -> BTreeMap<String, String> {
    let autofs = container.mounts().into_iter().filter(|mount| mount.fstype == "autofs");
    autofs.map(|mount| (mount.path, mount.dev)).collect()
}
