//! Master map and maps change while programs sit in the mounts: HUP, and `ctl reload`, follow them.

use super::Daemon;
use crate::check::{Checks, HANG_LIMIT};
use crate::cli;
use crate::files::export_all;
use crate::peers::{autofs_dev, is_autofs, is_mounted};
use crate::process::run;
use crate::programs::{Sitter, read_file};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;

/// Entries of the map that does not change.
const LARGE: usize = 100_000;

fn write(master: &str, direct: &str) -> Result<()> {
    fs::write("/etc/auto.master", format!("{master}\n"))?;
    fs::write("/etc/auto.direct", format!("{direct}\n"))?;
    Ok(())
}

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    export_all(&["one", "two", "a", "busy"])?;
    fs::write("/etc/auto.ind", "* :/srv/data/&\nm /one :/srv/data/one /busy :/srv/data/busy\n")?;
    fs::write("/etc/auto.other", "/direct/one :/srv/data/one\n")?;
    let ind = "/ind /etc/auto.ind --timeout=600";
    let direct = "/- /etc/auto.direct --timeout=600";
    write(&format!("{ind}\n{direct}"), "/direct/one :/srv/data/one\n/direct/split :/srv/data/two")?;
    let mut daemon = Daemon::start(&[], &["/ind", "/direct/one", "/direct/split"])?;

    let mut inside = Sitter::start_all(&["/ind/busy/busy", "/direct/one/one", "/direct/split/two"])?;
    offsets(checks, &daemon)?;
    let dev = autofs_dev("/direct/one");
    // one map more, another timeout, a key in another map, a key that becomes a directory of keys, a map less
    write(
        &format!("/more /etc/auto.ind\n{direct}\n/- /etc/auto.other --timeout=77"),
        "/direct/split/a :/srv/data/a",
    )?;
    daemon.signal(Signal::SIGHUP)?;
    checks.soon("a map that is new is served", || is_autofs("/more"));
    checks.equal("and works", read_file("/more/one/one")?.as_str(), "one");
    checks.equal("a key in another map keeps its mount", autofs_dev("/direct/one"), dev);
    checks.soon("and has that one's timeout", || timeout("/direct/one").as_deref() == Some("77"));
    checks
        .that("a key in use makes no room yet", is_mounted("/direct/split") && !is_autofs("/direct/split/a"));
    checks.equal("a map in use that is gone still answers", read_file("/ind/one/one")?.as_str(), "one");
    checks.that("who sat in mounts goes on", inside.iter_mut().all(Sitter::goes_on));
    inside.clear();
    cli::ok(&["ctl", "expire"])?;
    checks.soon("then it goes, with its directory", || !Path::new("/ind").exists());
    checks.soon("and the key makes room", || is_autofs("/direct/split/a"));
    checks.equal("for those below", read_file("/direct/split/a/a")?.as_str(), "a");

    write(&format!("/more /etc/auto.none --timeout=5\n{direct}"), "")?;
    cli::ok(&["ctl", "reload"])?;
    let gone = ["/direct/one", "/direct/split/a"].map(|path| !is_autofs(path) || is_mounted(path));
    checks.equal("keys that are gone are gone", gone, [true; 2]);
    checks.equal(
        "a map that cannot be opened goes on as it was",
        read_file("/more/two/two")?.as_str(),
        "two",
    );
    fs::write("/etc/auto.master", "")?;
    fs::remove_file("/etc/auto.master")?;
    cli::ok(&["ctl", "reload"])?;
    checks.equal("without a master map nothing changes", read_file("/more/a/a")?.as_str(), "a");
    checks.that("the engine ends", daemon.stop()?);
    let missing = run(HANG_LIMIT, "ls", &["/more"])?;
    checks.that("and nothing is left", !missing.status.success());
    large(checks)
}

/// The entry of a mounted key has other offsets.
fn offsets(checks: &mut Checks, daemon: &Daemon) -> Result<()> {
    let mut inside = Sitter::start("/ind/m/busy/busy")?;
    checks.that("an offset", is_autofs("/ind/m/one"));
    fs::write("/etc/auto.ind", "* :/srv/data/&\nm /two :/srv/data/two /a/b :/srv/data/a\n")?;
    daemon.signal(Signal::SIGHUP)?;
    checks.soon("a new offset of a mounted key", || is_autofs("/ind/m/two"));
    let read = [read_file("/ind/m/two/two")?, read_file("/ind/m/a/b/a")?];
    checks.equal("is mounted, as is one below a directory", read, ["two".into(), "a".into()]);
    checks.that("one that it has no more is gone", !Path::new("/ind/m/one").exists());
    checks.that("unless it is in use", inside.goes_on() && is_mounted("/ind/m/busy"));
    Ok(())
}

/// A large map that did not change costs nothing.
fn large(checks: &mut Checks) -> Result<()> {
    let lines: String = (0..LARGE).map(|n| format!("k{n} -ro,nosuid :/srv/data/two\n")).collect();
    fs::write("/etc/auto.large", lines)?;
    fs::write("/etc/auto.master", "/large /etc/auto.large\n")?;
    let mut daemon = Daemon::start(&[], &["/large"])?;
    read_file("/large/k7/two")?;
    let pid = cli::json(&["ctl", "status"])?["status"]["pid"].to_string();
    let has_read = || -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).context("no rchar")?;
        Ok(line.parse()?)
    };
    let before = has_read()?;
    cli::ok(&["ctl", "reload"])?;
    let read = has_read()? - before;
    checks.that("an unchanged map is not read again", read < fs::metadata("/etc/auto.large")?.len() / 10);
    checks.that("the engine ends again", daemon.stop()?);
    Ok(())
}

/// Of the topmost autofs mount at a path.
fn timeout(path: &str) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line =
        table.lines().rfind(|line| line.contains(&format!(" {path} ")) && line.contains(" - autofs "))?;
    let options = line.rsplit(' ').next()?;
    options.split(',').find_map(|option| option.strip_prefix("timeout=")).map(str::to_owned)
}
