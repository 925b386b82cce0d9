//! Real automount(8) in a container: its indirect maps go on after a restore.

use super::container::{Container, Criu};
use crate::check::{Checks, wait_until};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;

/// A lookup that takes longer hangs.
const QUICK: Duration = Duration::from_secs(10);

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
    let read = container.enter_within(QUICK, &["cat", "/ind/c/c"]);
    checks.equal("and the mount is served", read.ok().as_deref().map(str::trim), Some("c"));
    drop(taken);
    Ok(())
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
        let read = container.enter_within(QUICK, &["cat", &format!("/ind/{key}/{key}")]);
        checks.equal(&format!("/ind/{key} is served"), read.ok().as_deref().map(str::trim), Some(key));
    }
    checks.that("an unknown key fails", container.enter_within(QUICK, &["ls", "/ind/none/."]).is_err());
    let idle = container.enter_within(QUICK, &["cat", "/short/idle/idle"]);
    checks.equal("a short-lived key is mounted", idle.ok().as_deref().map(str::trim), Some("idle"));
    checks.soon("it expires when idle", || container.covering("/short/idle").is_none());
    let idle = container.enter_within(QUICK, &["cat", "/short/idle/idle"]);
    checks.equal("and is mounted again", idle.ok().as_deref().map(str::trim), Some("idle"));
    Ok(container)
}
