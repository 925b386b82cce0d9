//! A day in the life: a host that automount serves is handed to autofs-cr and back, with programs inside and 32 that walk.

use super::Daemon;
use crate::check::Checks;
use crate::cli;
use crate::files::export_all;
use crate::peers::{Automount, autofs_dev, is_mounted};
use crate::programs::{Sitter, Walkers, read_file};
use anyhow::Result;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
const WALKERS: usize = 32;
const MOUNTS: &[&str] = &["/direct/one", "/direct/two", "/ind", "/short"];
/// How long each master serves before and after a hand-over.
const WHILE: Duration = Duration::from_secs(3);

/// automount 5.1.9 blocks for ever when it re-connects to a *direct* multi-mount that is mounted, its own included;
/// so the offsets are those of an indirect map.
fn write_maps() -> Result<()> {
    export_all(&["one", "two", "top", "x", "y", "busy", "k0", "k1", "k2", "k3"])?;
    fs::create_dir_all("/srv/data/top/x")?;
    fs::create_dir_all("/srv/data/top/y")?;
    fs::write(
        "/etc/auto.master",
        "/- /etc/auto.direct --timeout=600 --negative-timeout=1\n\
         /ind /etc/auto.ind --timeout=600 --negative-timeout=1\n\
         /short /etc/auto.short --timeout=2 --negative-timeout=1\n",
    )?;
    fs::write("/etc/auto.direct", "/direct/one :/srv/data/one\n/direct/two -ro :/srv/data/two\n")?;
    fs::write(
        "/etc/auto.ind",
        "multi / :/srv/data/top /x :/srv/data/x /y :/srv/data/y\nrootless /x :/srv/data/x\n* :/srv/data/&\n",
    )?;
    fs::write("/etc/auto.short", "* :/srv/data/&\n")?;
    Ok(())
}

pub fn run(checks: &mut Checks) -> Result<()> {
    write_maps()?;
    let mut automount = Automount::start(MOUNTS)?;
    let mut sitters =
        Sitter::start_all(&["/direct/one/one", "/ind/busy/busy", "/ind/multi/x/x", "/ind/rootless/x/x"])?;
    let devs: Vec<_> = MOUNTS.iter().map(|path| autofs_dev(path)).collect();
    let files: Vec<String> = (0..4)
        .map(|n| format!("/short/k{n}/k{n}"))
        .chain(["/direct/two/two", "/ind/multi/top", "/ind/multi/y/y", "/ind/k0/k0"].map(str::to_owned))
        .collect();
    let mut lost = BTreeMap::new();
    let (mut there, mut back) = (0, 0);
    for round in 1..=ROUNDS {
        // Here: automount lives, and is replaced. What fails at its own hand-over it remembers for a while.
        checks.soon("automount finds everything", || files.iter().all(|file| read_file(file).is_ok()));
        let walkers = Walkers::start(WALKERS, &files)?;
        expire_now_and_then(|| automount.signal(Signal::SIGUSR1))?;
        let mut engine = Daemon::start(&["--replace"], MOUNTS)?;
        checks.soon("the engine serves every mount", || all_served_by("autofs-cr"));
        checks.soon("automount has ended", || automount.ended());
        checks.that("programs inside see their directories and files", goes_on(&mut sitters));
        expire_now_and_then(|| engine.signal(Signal::SIGUSR1))?;
        let (lookups, errors) = walkers.stop()?;
        there += lookups;
        checks.equal(&format!("round {round}: no lookup failed on the way here"), errors, Vec::new());

        // Back: automount takes its mounts itself, one by one, while the engine lives.
        let walkers = Walkers::start(WALKERS, &files)?;
        expire_now_and_then(|| engine.signal(Signal::SIGUSR1))?;
        automount = Automount::start(MOUNTS)?;
        checks.soon("automount serves every mount", || all_served_by("automount"));
        checks.that("the engine ends, and leaves alone what is not its own any more", engine.stop()?);
        checks.that("programs inside see their directories and files", goes_on(&mut sitters));
        checks.that("every mount is served by automount", all_served_by("automount"));
        expire_now_and_then(|| automount.signal(Signal::SIGUSR1))?;
        let (lookups, errors) = walkers.stop()?;
        back += lookups;
        for error in errors {
            *lost.entry(error.rsplit(": ").next().unwrap_or_default().to_owned()).or_insert(0) += 1;
        }
    }
    println!("  here: {there} lookups, none failed; back: {back} lookups, failed: {lost:?}");
    checks.that("the walkers walked", there > 1000 && back > 1000);
    // What automount's own CATATONIC does to those who wait then: nothing else may go wrong.
    let others: Vec<_> = lost.keys().filter(|error| !error.starts_with("No such file")).collect();
    checks.equal("on the way back nothing but the hand-over of automount failed", others, Vec::new());
    checks.that("and that seldom", lost.values().sum::<u64>() < back / 100);
    let now: Vec<_> = MOUNTS.iter().map(|path| autofs_dev(path)).collect();
    checks.equal("every mount is the one of the beginning", now, devs);
    drop(sitters);
    checks.step("a new key mounts", read_file("/ind/k3/k3"));
    checks.soon("idle mounts expire", || !is_mounted("/short/k0"));
    Ok(())
}

/// Have a master unmount what nobody uses at the moment, over and over, so that there are always requests.
fn expire_now_and_then(expire: impl Fn() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < WHILE {
        expire()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn goes_on(sitters: &mut [Sitter]) -> bool {
    sitters.iter_mut().all(Sitter::goes_on)
}

/// Is `program` the master of every autofs mount?
fn all_served_by(program: &str) -> bool {
    cli::list().is_ok_and(|mounts| {
        !mounts.is_empty() && mounts.iter().all(|mount| mount["master"]["program"] == program)
    })
}
