//! Real automount(8) in a container: indirect, direct and offset mounts and submounts, idle and busy, go on after a
//! restore, and after a second one.

use super::container::{Container, Criu};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::process::{self, Process};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs;

pub fn run(checks: &mut Checks) -> Result<()> {
    super::exports(&["a", "b", "c", "idle"])?;
    fs::write("/etc/auto.master", "/ind /etc/auto.ind --timeout=600\n/short /etc/auto.short --timeout=3\n")?;
    fs::write("/etc/auto.ind", "* -fstype=bind :/srv/data/&\n")?;
    fs::write("/etc/auto.short", "* -fstype=bind :/srv/data/&\n")?;
    let automount = ["automount", "--foreground", "--dont-check-daemon"];
    let below = super::Fillers::high()?;
    let container = Container::start(&[&["catatonit", "--"][..], &automount].concat())?;
    let up = wait_until(|| ["/ind", "/short"].iter().all(|path| container.autofs(path).is_some()));
    ensure!(up, "automount did not mount");
    checks.equal("automount serves", container.enter(&["cat", "/ind/a/a"])?.trim(), "a");

    drop(below);
    let criu = Criu::with_plugin("automount")?;
    let first = carry(checks, &criu, container)?;
    // What is restored can be dumped again.
    let again = Criu::with_plugin("automount.again")?;
    let second = carry(checks, &again, first)?;

    // When another file system has the number the mount gets a new one, which automount does not mind here.
    let moved = Criu::with_plugin("automount.moved")?;
    let device = second.autofs("/ind").context("no /ind")?.dev;
    moved.dump(&second)?;
    ensure!(wait_until(|| second.ended()), "the dump left the container running");
    drop(second);
    let taken = super::Fillers::take(&device)?;
    let container = moved.restore()?;
    checks.that("a taken number is told", moved.log("restore").contains("cannot be kept"));
    let read = container.enter(&["cat", "/ind/c/c"]);
    checks.equal("and the mount is served", read.ok().as_deref().map(str::trim), Some("c"));
    drop(taken);
    Ok(())
}

/// Where programs sit: a busy direct mount, one with offsets, offsets below a key, a key of a submount.
const BUSY: &[&str] = &["/direct/one", "/direct/tree", "/direct/tree/sub", "/multi/m/x", "/tree/deep/a"];

/// Mounts that nobody has used before: after the first restore, the second, and a dump that leaves it running.
const IDLE: [&[&str]; 3] = [
    &["/direct/two/two", "/multi/m/y/y", "/tree/deep/b/b"],
    &["/direct/idle/sub/sub", "/multi/n/x/x", "/tree/deep/c/c"],
    &["/direct/last/two", "/multi/o/y/y", "/tree/deep/one/one"],
];

/// Direct and offset mounts, which automount knows by their inodes, and submounts.
pub fn every_kind(checks: &mut Checks) -> Result<()> {
    super::exports(&["a", "b", "c", "one", "two", "tree", "sub", "x", "y", "idle"])?;
    for dir in ["tree", "idle"] {
        fs::create_dir_all(format!("/srv/data/{dir}/sub"))?;
    }
    fs::write(
        "/etc/auto.master",
        "/- /etc/auto.direct --timeout=600\n/- /etc/auto.brief --timeout=3\n\
         /multi /etc/auto.multi --timeout=600\n/tree /etc/auto.tree --timeout=600\n",
    )?;
    let bind = "-fstype=bind";
    fs::write(
        "/etc/auto.direct",
        format!(
            "/direct/one {bind} :/srv/data/one\n/direct/two {bind} :/srv/data/two\n\
             /direct/last {bind} :/srv/data/two\n/direct/tree {bind} / :/srv/data/tree /sub :/srv/data/sub\n\
             /direct/idle {bind} / :/srv/data/idle /sub :/srv/data/sub\n"
        ),
    )?;
    fs::write("/etc/auto.brief", format!("/brief {bind} :/srv/data/c\n"))?;
    fs::write("/etc/auto.multi", format!("* {bind} /x :/srv/data/x /y :/srv/data/y\n"))?;
    fs::write("/etc/auto.tree", "deep -fstype=autofs file:/etc/auto.deep\n")?;
    fs::write("/etc/auto.deep", format!("* {bind} :/srv/data/&\n"))?;
    let sit: String = BUSY.iter().map(|dir| format!("(cd {dir} && exec sleep 1000) & ")).collect();
    let script = format!(
        "setsid automount --foreground --dont-check-daemon & \
         until grep -q ' /tree ' /proc/self/mountinfo; do sleep 0.1; done; {sit} exec sleep 1000"
    );
    let below = super::Fillers::high()?;
    let container = Container::start(&["catatonit", "--", "sh", "-c", &script])?;
    let sits = || sitting(&container) == BUSY;
    ensure!(wait_until(sits), "programs sit in {:?}", sitting(&container));
    drop(below);
    checks.equal("a short-lived direct mount", container.enter(&["cat", "/brief/c"])?.trim(), "c");
    let container = carry_all(checks, "a restore", IDLE[0], Criu::with_plugin("kinds")?, container)?;
    // The working half of the relay is killed: the other one starts it again.
    let relays = || relays().unwrap_or_default();
    checks.that("there is a relay, and one that watches it", relays().len() >= 2);
    if let Some(youngest) = relays().last() {
        Process::signal_pid(*youngest, Signal::SIGKILL)?;
    }
    let brief = || container.enter(&["cat", "/brief/c"]);
    checks.equal("with a relay that was killed", brief().ok().as_deref().map(str::trim), Some("c"));
    let container =
        carry_all(checks, "a second restore", IDLE[1], Criu::with_plugin("kinds.again")?, container)?;
    let left = Criu::with_plugin("kinds.left")?;
    left.dump_with(&container, &["--leave-running"])?;
    goes_on(checks, "left running", IDLE[2], &container);
    container.enter(&["sh", "-c", "kill -9 $(pgrep -x automount)"])?;
    let dead = container.enter(&["sh", "-c", "cat /multi/dead/x/x || echo failed"]);
    checks.equal("without automount nobody hangs", dead.ok().as_deref().map(str::trim), Some("failed"));
    drop(container);
    checks.soon("no relay is left", || relays().is_empty());
    Ok(())
}

/// Dump, restore, and see that every mount goes on.
fn carry_all(
    checks: &mut Checks,
    what: &str,
    idle: &[&str],
    criu: Criu,
    container: Container,
) -> Result<Container> {
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop(container);
    let container = criu.restore()?;
    checks.that(&format!("{what}: programs are where they were"), sitting(&container) == BUSY);
    goes_on(checks, what, idle, &container);
    Ok(container)
}

fn goes_on(checks: &mut Checks, what: &str, idle: &[&str], container: &Container) {
    let read = |path: &str| container.enter(&["cat", path]);
    let mut served = |path: &str| {
        let name = path.rsplit('/').next();
        checks.equal(&format!("{what}: {path}"), read(path).ok().as_deref().map(str::trim), name);
    };
    let own = |dir: &&str| format!("{dir}/{}", dir.rsplit('/').next().unwrap_or_default());
    BUSY.iter().map(own).for_each(|path| served(&path));
    idle.iter().for_each(|path| served(path));
    served("/brief/c");
    checks.soon(&format!("{what}: an idle direct mount expires"), || container.covering("/brief").is_none());
    checks.that(&format!("{what}: and is mounted again"), read("/brief/c").is_ok());
    checks.that(&format!("{what}: an unknown key fails"), container.lacks("/tree/deep/none/."));
}

/// Where its programs are, in the order of [`BUSY`].
fn sitting(container: &Container) -> Vec<String> {
    let script = "for pid in $(pgrep -x sleep); do readlink /proc/$pid/cwd; done";
    let told = container.enter(&["sh", "-c", script]).unwrap_or_default();
    let mut dirs: Vec<_> = told.lines().filter(|dir| *dir != "/").map(str::to_owned).collect();
    dirs.sort_by_key(|dir| BUSY.iter().position(|busy| busy == dir));
    dirs
}

/// The processes of relays, oldest first.
fn relays() -> Result<Vec<i32>> {
    let output = process::run(HANG_LIMIT, "pgrep", &["-x", "autofs-cr-relay"])?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect())
}

/// Dump, restore, and see that everything goes on.
fn carry(checks: &mut Checks, criu: &Criu, container: Container) -> Result<Container> {
    let device = |container: &Container| container.autofs("/ind").map(|mount| mount.dev);
    let was = device(&container);
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop(container);
    let container = criu.restore()?;
    checks.equal("same st_dev", device(&container), was);
    checks.that("a mounted key is mounted", container.covering("/ind/a").is_some());
    for key in ["a", "b", "c"] {
        let read = container.enter(&["cat", &format!("/ind/{key}/{key}")]);
        checks.equal(&format!("/ind/{key} is served"), read.ok().as_deref().map(str::trim), Some(key));
    }
    checks.that("an unknown key fails", container.lacks("/ind/none/."));
    let idle = container.enter(&["cat", "/short/idle/idle"]);
    checks.equal("a short-lived key is mounted", idle.ok().as_deref().map(str::trim), Some("idle"));
    checks.soon("it expires when idle", || container.covering("/short/idle").is_none());
    let idle = container.enter(&["cat", "/short/idle/idle"]);
    checks.equal("and is mounted again", idle.ok().as_deref().map(str::trim), Some("idle"));
    Ok(container)
}
