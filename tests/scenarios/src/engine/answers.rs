//! Every request is answered, whatever goes wrong; and other keys go on meanwhile.

use super::{Daemon, dead_server};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::files::{export_all, script};
use crate::peers::{is_autofs, is_mounted};
use crate::process::{Process, run};
use crate::programs::{Walkers, read_file};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MAP: &str = "\
dead 10.9.9.2:/x
replicas 10.9.9.2,10.9.9.3:/x
slow -fstype=slow :nothing
full / -fstype=tmpfs,nr_inodes=1 :full /sub :/srv/data/one
strict -strict / -fstype=tmpfs,nr_inodes=1 :full /sub :/srv/data/one
gone :/srv/nothing
multi /one :/srv/data/one /two :/srv/data/two
* :/srv/data/&
";

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    export_all(&["one", "two", "k0", "k1", "k2", "k3"])?;
    dead_server()?;
    fs::write("/etc/autofs.conf", "[ autofs ]\nmount_wait = 8\nnegative_timeout = 1\nprogram_wait = 8\n")?;
    fs::write("/etc/auto.master", "/a /etc/auto.a --timeout=600\n/p program:/etc/auto.p --timeout=600\n")?;
    fs::write("/etc/auto.a", MAP)?;
    script("/etc/auto.p", "#!/bin/sh\n[ $1 = stuck ] && sleep 1000\necho :/srv/data/$1\n")?;
    script("/sbin/mount.slow", "#!/bin/sh\nsleep 1\nexec mount --bind /srv/data/one \"$2\"\n")?;
    let mut engine = Daemon::start(&[], &["/a", "/p"])?;

    stuck(checks, "a dead server", "/a/dead/x", "/a/two/two")?;
    stuck(checks, "replicated servers, all dead", "/a/replicas/x", "/a/two/two")?;
    stuck(checks, "a program map that hangs", "/p/stuck/x", "/p/one/one")?;
    disk_full(checks)?;
    entry_removed(checks, &engine)?;
    map_gone(checks, &engine)?;
    storm(checks, &engine)?;
    engine.signal(Signal::SIGUSR1)?;
    checks.that("the engine ends", engine.stop()?);
    checks.that("nothing is left", !is_autofs("/a") && !is_autofs("/p"));
    one_that_waits(checks)?;
    one_that_waits_below_a_key(checks)
}

/// A program waits for a direct mount when the engine is killed, and the file system below has no handles (it is an overlay):
/// the next engine cannot open that mount before the program ends. It serves all others.
fn one_that_waits(checks: &mut Checks) -> Result<()> {
    fs::write("/etc/auto.master", "/a /etc/auto.a\n/- /etc/auto.d\n")?;
    fs::write("/etc/auto.d", "/direct/dead 10.9.9.2:/x\n/direct/one :/srv/data/one\n")?;
    let mut first = Daemon::start(&[], &["/a", "/direct/dead"])?;
    let mut waiter = visitor("/direct/dead/.")?;
    ensure!(wait_until(|| waiter.waits()), "nobody waits");
    first.kill9()?;
    let mut second = Daemon::start(&[], &["/a", "/direct/one"])?;
    checks.that("an engine starts though one mount cannot be opened", !second.serves(&["/direct/dead"]));
    checks.that("the program that waits for it waits", !waiter.ended());
    let said = "/direct/dead: a program waits for it and nobody answers";
    checks.soon("the log says which", || fs::read_to_string(super::LOG).is_ok_and(|log| log.contains(said)));
    checks.step("other mounts are served", read_file("/direct/one/one"));
    second.signal(Signal::SIGHUP)?;
    checks.step("after a reload, too", read_file("/a/one/one"));
    waiter.kill9()?;
    checks.soon("when the program has ended it is served as well", || second.serves(&["/direct/dead"]));
    let mut late = visitor("/direct/dead/.")?;
    checks.soon("its visitors wait", || late.waits());
    checks.soon("and are answered", || late.ended());
    checks.that("the engine ends", second.stop()?);
    checks
        .that("nothing is left", !is_autofs("/a") && !is_autofs("/direct/dead") && !is_autofs("/direct/one"));
    Ok(())
}

/// A program waits for a part of an entry without a root when the engine is killed: the next one opens that trigger by the
/// handle of its directory.
fn one_that_waits_below_a_key(checks: &mut Checks) -> Result<()> {
    fs::write("/etc/auto.master", "/a /etc/auto.a\n")?;
    let mut first = Daemon::start(&[], &["/a"])?;
    checks.step("a part of an entry without a root", read_file("/a/multi/two/two"));
    first.signal(Signal::SIGSTOP)?;
    let waiter = Process::start(Command::new("cat").arg("/a/multi/one/one").stdout(Stdio::piped()))?;
    ensure!(wait_until(|| waiter.waits()), "nobody waits");
    first.kill9()?;
    let mut second = Daemon::start(&[], &["/a", "/a/multi/one", "/a/multi/two"])?;
    let read = waiter.finish(HANG_LIMIT);
    checks.that("its other part is waited for while the engine is killed: the next answers", read.is_ok());
    checks.that("the engine ends", second.stop()?);
    checks.that("nothing is left", !is_autofs("/a"));
    Ok(())
}

fn visitor(path: &str) -> Result<Process> {
    Process::start(
        Command::new("stat").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()),
    )
}

/// Ten visitors hang at one key; another key of the same map goes on; all are answered.
fn stuck(checks: &mut Checks, what: &str, path: &str, other: &str) -> Result<()> {
    let mut visitors = (0..10).map(|_| visitor(path)).collect::<Result<Vec<_>>>()?;
    checks.soon(&format!("{what}: its visitors wait"), || visitors.iter().all(Process::waits));
    checks.step(&format!("{what}: {other} goes on"), read_file(other));
    checks.that(&format!("{what}: while they wait"), visitors.iter().all(Process::waits));
    checks.soon(&format!("{what}: all are answered"), || visitors.iter_mut().all(Process::ended));
    Ok(())
}

/// No room for the directory of an offset.
fn disk_full(checks: &mut Checks) -> Result<()> {
    let root = run(HANG_LIMIT, "stat", &["/a/full/."])?;
    checks.that("no room for an offset: its root is mounted", root.status.success() && is_mounted("/a/full"));
    let offset = run(HANG_LIMIT, "stat", &["/a/full/sub"])?;
    checks.that("and the offset is not there", !offset.status.success());
    let strict = run(HANG_LIMIT, "stat", &["/a/strict/."])?;
    let said = String::from_utf8_lossy(&strict.stderr).into_owned();
    checks.that(&format!("with -strict all fails: {}", said.trim()), said.contains("No space left"));
    checks.that("and nothing stays", !is_mounted("/a/strict"));
    Ok(())
}

fn entry_removed(checks: &mut Checks, engine: &Daemon) -> Result<()> {
    let mut visitor = visitor("/a/slow/.")?;
    std::thread::sleep(Duration::from_millis(300));
    fs::write("/etc/auto.a", MAP.replace("slow -fstype=slow :nothing\n", ""))?;
    engine.signal(Signal::SIGHUP)?;
    checks.soon("an entry removed while it is mounted: its visitor is answered", || visitor.ended());
    checks.step("and others go on", read_file("/a/one/one"));
    fs::write("/etc/auto.a", MAP)?;
    engine.signal(Signal::SIGHUP)
}

fn map_gone(checks: &mut Checks, engine: &Daemon) -> Result<()> {
    fs::remove_file("/etc/auto.a")?;
    engine.signal(Signal::SIGHUP)?;
    checks.step("a map that is gone: a lookup is answered", run(HANG_LIMIT, "stat", &["/a/k0/."]));
    fs::write("/etc/auto.a", MAP)?;
    engine.signal(Signal::SIGHUP)?;
    checks.that("and when it is back it serves", wait_until(|| read_file("/a/k1/k1").is_ok()));
    let gone = run(HANG_LIMIT, "stat", &["/a/gone/."])?;
    checks.that("a source that is gone is an error", !gone.status.success());
    Ok(())
}

/// The entry that is asked for comes and goes while its mount expires, over and over.
fn storm(checks: &mut Checks, engine: &Daemon) -> Result<()> {
    let files: Vec<String> = (0..4).map(|n| format!("/a/k{n}/k{n}")).collect();
    let walkers = Walkers::start(8, &files)?;
    let begin = Instant::now();
    let mut turn = 0;
    while begin.elapsed() < Duration::from_secs(5) {
        turn += 1;
        fs::write(
            "/etc/auto.new",
            if turn % 2 == 0 { MAP.to_owned() } else { format!("k0 :/srv/data/k0\n{MAP}") },
        )?;
        fs::rename("/etc/auto.new", "/etc/auto.a")?;
        engine.signal(Signal::SIGHUP)?;
        engine.signal(Signal::SIGUSR1)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    let (lookups, errors) = walkers.stop()?;
    println!("  {lookups} lookups in {turn} reloads and expiries");
    checks.equal("an entry replaced while it expires: no lookup failed or hung", errors, Vec::new());
    Ok(())
}
