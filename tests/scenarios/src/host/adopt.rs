//! Adoption: busy and covered mounts get a new master in place.

use super::{Engine, TRIGGERS, master_of, write_maps};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::cli;
use crate::peers::{Automount, autofs_dev, is_autofs, is_mounted};
use crate::process::run_ok;
use crate::programs::{Sitter, read_file};
use anyhow::Result;
use nix::sys::signal::Signal;

const DIR: &str = "/tmp/checkpoint";

pub fn run(checks: &mut Checks) -> Result<()> {
    write_maps()?;
    dead_master(checks)?;
    living_master(checks)?;
    Ok(())
}

/// automount is killed; its busy, its covered (something mounted over the whole autofs mount) and
/// its idle mounts go on.
fn dead_master(checks: &mut Checks) -> Result<()> {
    let mut automount = Automount::start(TRIGGERS)?;
    let mut sitters = Sitter::start_all(&[
        "/direct/one/one",
        "/direct/tree/sub1/sub1",
        "/ind/busy/busy",
        "/ind/multi/x/x",
    ])?;
    // over /ind as well, which has busy keys and offsets below
    let covered = ["/short", "/ind"];
    for path in covered {
        run_ok(HANG_LIMIT, "mount", &["-t", "tmpfs", "over", path])?;
    }
    let devs = covered.map(autofs_dev);
    cli::ok(&["dump", "-D", DIR])?;
    automount.kill9()?;
    drop(automount);
    checks.equal("a dead master is seen as dead", master_of("/direct/two")?.as_str(), "dead");
    cli::ok(&["restore", "-D", DIR, "--serve"])?;
    let engine = Engine::serving("/direct/one")?;
    checks.that("every program inside sees its directory", sitters.iter_mut().all(Sitter::goes_on));
    checks.equal("the covered mounts keep their numbers", covered.map(autofs_dev), devs);
    for path in covered {
        run_ok(HANG_LIMIT, "umount", &[path])?;
        let new = read_file(&format!("{path}/new/new"));
        checks.equal(&format!("{path}, which was covered, is served"), new.ok().as_deref(), Some("new"));
    }
    checks.equal("an idle offset of /ind, too", read_file("/ind/multi/y/y")?, "y".to_owned());
    checks.equal(
        "an offset that was idle is served",
        read_file("/direct/tree/sub2/sub2")?,
        "sub2".to_owned(),
    );

    // TERM leaves the busy mounts, catatonic, and takes the idle ones away.
    engine.signal(Signal::SIGTERM)?;
    checks.soon("the engine ends on TERM", || engine.ended());
    checks.that("its busy mount stays", is_autofs("/direct/one") && is_mounted("/direct/one"));
    checks.that("programs inside a mount without master still work", sitters.iter_mut().all(Sitter::goes_on));
    checks.that("an idle mount is gone", !is_autofs("/direct/two"));

    // From the same images: busy ones are adopted, gone ones re-created.
    cli::ok(&["restore", "-D", DIR, "--serve"])?;
    let engine = Engine::serving("/direct/one")?;
    checks.equal("a mount that was gone is served again", read_file("/direct/two/two")?, "two".to_owned());
    checks.that("programs inside go on", sitters.iter_mut().all(Sitter::goes_on));
    drop(sitters);
    engine.signal(Signal::SIGTERM)?;
    checks.soon("with nobody inside, TERM takes everything away", || {
        engine.ended() && !TRIGGERS.iter().any(|path| is_autofs(path))
    });
    Ok(())
}

/// The old master lives: its mounts are taken from it, and it gets them back.
fn living_master(checks: &mut Checks) -> Result<()> {
    let mut automount = Automount::start(TRIGGERS)?;
    let mut sitter = Sitter::start("/ind/busy/busy")?;
    cli::ok(&["dump", "-D", DIR, "--replace", "--catatonic"])?;
    checks.that("a catatonic dump leaves automount alive", !automount.ended());
    cli::ok(&["restore", "-D", DIR, "--master", &automount.pid().to_string()])?;
    checks.equal("automount is the master again", master_of("/ind")?.as_str(), "automount");
    checks.equal("and serves", read_file("/ind/late/late")?, "late".to_owned());

    cli::ok(&["dump", "-D", DIR, "--replace"])?;
    cli::ok(&["restore", "-D", DIR, "--serve"])?;
    let engine = Engine::serving("/ind")?;
    checks.that("the program inside goes on", sitter.goes_on());
    checks.equal("the engine serves although automount lives", read_file("/ind/new/new")?, "new".to_owned());
    automount.kill9()?;
    checks.that(
        "the end of the old master changes nothing",
        wait_until(|| read_file("/ind/k0/k0").is_ok()) && sitter.goes_on(),
    );
    drop(sitter);
    engine.signal(Signal::SIGTERM)?;
    checks.soon("everything is gone at the end", || engine.ended() && !is_autofs("/ind"));
    Ok(())
}
