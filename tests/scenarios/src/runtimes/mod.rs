//! The criu command, runc, crun and podman carry a container with autofs mounts, each by its own commands and
//! without a flag for the plugin: `scripts/install` has put it where CRIU looks.
//!
//! In the container real automount serves an indirect map, and our engine an indirect and a direct one.

pub mod command;
mod files;
pub mod runtime;

use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::plugin::Fillers;
use crate::process::{run, run_ok};
use anyhow::{Context, Result, bail, ensure};
use runtime::{Cli, Oci, Podman, Runtime};
use std::collections::BTreeMap;
use std::path::Path;

const INSTALL: &str = "/src/scripts/install";
const PLUGIN: &str = "/usr/lib/criu/autofs_cr_plugin.so";
const PROGRAM: &str = "/usr/local/bin/autofs-cr";

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    install(checks)?;
    each(checks, "criu", || Ok(Box::new(Cli::start()?)))?;
    each(checks, "runc", || Ok(Box::new(Oci::start("runc")?)))?;
    each(checks, "crun", || Ok(Box::new(Oci::start("crun")?)))?;
    each(checks, "podman with runc", || Ok(Box::new(Podman::start("runc")?)))?;
    each(checks, "podman with crun", || Ok(Box::new(Podman::start("crun")?)))?;
    uninstall(checks)
}

/// `scripts/install`.
pub fn install(checks: &mut Checks) -> Result<()> {
    let built = std::env::current_exe()?.parent().context("no directory of programs")?.to_owned();
    run_ok(HANG_LIMIT, INSTALL, &["--from", &built.to_string_lossy()])?;
    checks.that("scripts/install: the plugin is where CRIU looks", Path::new(PLUGIN).exists());
    checks.that("scripts/install: the program runs", run_ok(HANG_LIMIT, PROGRAM, &["--version"]).is_ok());
    Ok(())
}

fn uninstall(checks: &mut Checks) -> Result<()> {
    run_ok(HANG_LIMIT, INSTALL, &["--uninstall"])?;
    let left = [PLUGIN, PROGRAM, "/usr/lib/criu"].into_iter().any(|path| Path::new(path).exists());
    checks.that("scripts/install --uninstall leaves nothing", !left);
    Ok(())
}

fn each(checks: &mut Checks, name: &str, start: impl FnOnce() -> Result<Box<dyn Runtime>>) -> Result<()> {
    let below = Fillers::high()?;
    let mut runtime = start().with_context(|| format!("{name} starts a container"))?;
    ready(name, &*runtime)?;
    drop(below);
    let was = devices(&*runtime)?;
    checks.equal(&format!("{name}: four autofs mounts"), was.len(), 4);
    let mut keys = files::KEYS[2..].iter();
    let mut new = || keys.next().copied().unwrap_or_default();

    let left = checks.step(&format!("{name}: a checkpoint that leaves it running"), runtime.leave_running());
    if left.is_some() {
        goes_on(checks, &format!("{name}: left running"), &*runtime, new())?;
    }
    pre_checkpoint(checks, name, &*runtime)?;
    for way in runtime.ways() {
        let after = format!("{name}: {way}");
        if checks.step(&after, runtime.carry(way)).is_none() {
            return Ok(());
        }
        checks.equal(&format!("{after}: same st_dev"), devices(&*runtime)?, was.clone());
        goes_on(checks, &after, &*runtime, new())?;
    }
    walked(checks, name, &*runtime).map(drop)
}

/// Wait until everything in the container runs.
pub fn ready(name: &str, runtime: &dyn Runtime) -> Result<()> {
    let up = wait_until(|| runtime.exec(&["cat", "/tmp/ready"]).is_ok());
    ensure!(up, "{name}: the container is not ready: {:?}", runtime.exec(&["cat", "/tmp/engine.log"]));
    Ok(())
}

/// Device numbers of the autofs mounts, by path.
pub fn devices(runtime: &dyn Runtime) -> Result<BTreeMap<String, String>> {
    let table = runtime.exec(&["cat", "/proc/1/mountinfo"])?;
    let autofs = table.lines().filter(|line| line.contains(" - autofs "));
    let words = autofs.map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(words.filter_map(|words| Some((words.get(4)?.to_string(), words.get(2)?.to_string()))).collect())
}

/// Programs are where they were, a new key is mounted by both masters, an unknown one fails at once.
pub fn goes_on(checks: &mut Checks, after: &str, runtime: &dyn Runtime, key: &str) -> Result<()> {
    for sitter in runtime.exec(&["cat", "/tmp/sitters"])?.lines() {
        let (pid, place) = sitter.split_once(' ').context("no sitter")?;
        let cwd = runtime.exec(&["readlink", &format!("/proc/{pid}/cwd")]);
        checks.equal(&format!("{after}: the program in {place}"), cwd?.trim(), place);
    }
    for root in ["/ind", "/our"] {
        let file = format!("{root}/{key}/{key}");
        let read = runtime.exec(&["cat", &file]);
        checks.step(&format!("{after}: {file} is mounted"), read);
    }
    checks.that(&format!("{after}: an unknown key"), runtime.exec(&["ls", "/our/none"]).is_err());
    Ok(())
}

/// Needs a kernel that tells which pages were written. Where it does not, the runtime must say so, and the container
/// go on.
fn pre_checkpoint(checks: &mut Checks, name: &str, runtime: &dyn Runtime) -> Result<()> {
    let able = run(HANG_LIMIT, "criu", &["check", "--feature", "mem_dirty_track"])?.status.success();
    let done = runtime.pre_checkpoint();
    if able {
        checks.step(&format!("{name}: a pre-checkpoint"), done);
    } else {
        checks.that(
            &format!("{name}: a pre-checkpoint is refused (this kernel has no CONFIG_MEM_SOFT_DIRTY)"),
            done.is_err(),
        );
    }
    checks.that(&format!("{name}: it goes on"), runtime.exec(&["cat", "/ind/a/a"]).is_ok());
    Ok(())
}

/// The program that read all the time, through everything, saw no error. The longest time between two answers, in
/// milliseconds.
pub fn walked(checks: &mut Checks, name: &str, runtime: &dyn Runtime) -> Result<i64> {
    // Idle direct mounts are served as well.
    checks.step(&format!("{name}: the idle direct mount"), runtime.exec(&["cat", "/direct/two/b"]));
    reader(checks, name, runtime)
}

/// The last part of it.
pub fn reader(checks: &mut Checks, name: &str, runtime: &dyn Runtime) -> Result<i64> {
    runtime.exec(&["sh", "-c", "kill -TERM $(cat /tmp/walker)"])?;
    let mut walked = String::new();
    wait_until(|| {
        walked = runtime.exec(&["cat", "/tmp/walked"]).unwrap_or_default();
        !walked.is_empty()
    });
    let words: Vec<i64> =
        walked.lines().next().unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
    let [lookups, errors, pause] = words[..] else { bail!("{name}: the program that read told {walked:?}") };
    checks.that(&format!("{name}: a program read {lookups} times"), lookups > 100);
    checks.equal(&format!("{name}: without an error"), errors, 0);
    Ok(pause)
}
