//! Real automount: everything a dump records, and a restore where nothing is left.

use super::{Engine, TRIGGERS, write_maps};
use crate::check::{Checks, HANG_LIMIT};
use crate::cli;
use crate::peers::{Automount, autofs_dev, is_autofs, is_mounted, mount_table};
use crate::process::{run, run_ok};
use crate::programs::{Sitter, read_file};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;

const DIR: &str = "/tmp/checkpoint";
pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    write_maps()?;
    // Browse directories, so that the tree inside an indirect mount has something to lose.
    fs::write(
        "/etc/auto.master",
        fs::read_to_string("/etc/auto.master")? + "/browse /etc/auto.browse --timeout=77 browse\n",
    )?;
    fs::write("/etc/auto.browse", "red :/srv/data/one\ngreen :/srv/data/two\n")?;
    let mut automount = Automount::start(&[TRIGGERS, &["/browse"]].concat())?;
    let sitter = Sitter::start("/ind/busy/busy")?;
    read_file("/direct/tree/sub1/sub1")?;
    read_file("/ind/multi/x/x")?;

    listing(checks)?;
    let before = mountinfo()?;
    let dump = cli::ok(&["dump", "-D", DIR]);
    checks.step("dump", dump);
    checks.equal("a dump changes nothing", mountinfo()?, before);
    checks.that("automount still serves", read_file("/ind/late/late").is_ok());
    images(checks)?;

    let devs: Vec<_> = TRIGGERS.iter().map(|path| (*path, autofs_dev(path))).collect();
    drop(sitter);
    end_automount(&mut automount)?;
    checks.that("nothing is left", !TRIGGERS.iter().any(|path| is_autofs(path)));

    // Re-create.
    print!("{}", cli::ok(&["restore", "-D", DIR, "--serve"])?);
    let engine = Engine::serving("/ind")?;
    for (path, dev) in devs {
        checks.equal(&format!("{path} has its old number"), autofs_dev(path), dev);
    }
    checks.equal("timeout of /browse", timeout_of("/browse")?, 77);
    let mut names: Vec<_> =
        fs::read_dir("/browse")?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    checks.equal("browse directories are back", names, vec!["green".into(), "red".into()]);
    for file in [
        "/direct/one/one",
        "/direct/tree/tree",
        "/direct/tree/sub2/sub2",
        "/ind/k1/k1",
        "/ind/multi/y/y",
        "/browse/red/one",
    ] {
        checks.step(&format!("{file} mounts"), read_file(file));
    }
    checks.soon("idle mounts expire", || {
        let _ = read_file("/short/idle/idle");
        crate::check::wait_until(|| !is_mounted("/short/idle"))
    });
    let missing = run(HANG_LIMIT, "cat", &["/direct/nothing"])?;
    checks.that("a path that is no trigger is just missing", !missing.status.success());

    taken_number(checks, engine)?;
    elsewhere(checks)?;
    round_trip(checks)
}

/// What is restored where nothing was left is dumped as it was before.
fn round_trip(checks: &mut Checks) -> Result<()> {
    const AGAIN: &str = "/tmp/again";
    let mut automount = Automount::start(&[TRIGGERS, &["/browse"]].concat())?;
    for file in ["/direct/one/one", "/direct/tree/sub1/sub1", "/ind/multi/x/x", "/ind/busy/busy"] {
        read_file(file)?;
    }
    cli::ok(&["dump", "-D", DIR, "--replace"])?;
    end_automount(&mut automount)?;
    checks.that("nothing is left", !TRIGGERS.iter().any(|path| is_autofs(path)));
    cli::ok(&["restore", "-D", DIR, "--serve", "--remount-active"])?;
    let engine = Engine::serving("/ind")?;
    cli::ok(&["dump", "-D", AGAIN])?;
    let (before, after) = (lasting(DIR)?, lasting(AGAIN)?);
    checks.equal("the same mounts are dumped again", paths(&after), paths(&before));
    for (before, after) in before.iter().zip(&after) {
        checks.equal(&format!("{} is the same in the second image", before["path"]), after, before);
    }
    engine.signal(Signal::SIGTERM)?;
    checks.soon("all gone", || engine.ended() && !is_autofs("/ind"));
    Ok(())
}

fn paths(mounts: &[Value]) -> Vec<&Value> {
    mounts.iter().map(|mount| &mount["path"]).collect()
}

/// What an image tells of each mount, by path, without what is another one's after a restore: mount ids, the pipe,
/// processes.
fn lasting(dir: &str) -> Result<Vec<Value>> {
    let image = cli::json(&["show", dir])?;
    let pick = |of: &Value, names: &[&str]| -> Value {
        names.iter().map(|&name| (name.to_owned(), of[name].clone())).collect()
    };
    let list = |of: &Value, names: &[&str]| -> Value {
        of.as_array().into_iter().flatten().map(|item| pick(item, names)).collect()
    };
    let mounts = image["mounts"].as_array().context("show --json has no mounts")?;
    let mut mounts: Vec<_> = mounts
        .iter()
        .map(|mount| {
            let facts = &mount["facts"];
            let mut lasting = pick(facts, &["path", "dev", "root", "source", "mount_flags", "catatonic"]);
            // the offsets in it come back with the root of the tree, and have another number then
            if facts["path"].as_str().is_some_and(|path| path.starts_with("/direct/tree/")) {
                lasting["dev"] = Value::Null;
            }
            let options =
                ["timeout", "min_proto", "max_proto", "mount_type", "strict_expire", "ignore", "uid", "gid"];
            lasting["options"] = pick(&facts["options"], &options);
            lasting["covering"] = list(&facts["covering"], &["path", "root", "fstype", "mount_flags"]);
            lasting["rest"] = pick(mount, &["root_mode", "root_uid", "root_gid", "root_requester", "active"]);
            lasting["tree"] = list(&mount["tree"], &["path", "mode", "uid", "gid", "symlink"]);
            lasting["served_by"] = mount["served_by"]
                .as_u64()
                .map_or(Value::Null, |index| image["services"][index as usize].clone());
            lasting
        })
        .collect();
    mounts.sort_by_key(|mount| mount["path"].to_string());
    Ok(mounts)
}

/// What `list` says of real automount.
fn listing(checks: &mut Checks) -> Result<()> {
    print!("{}", cli::ok(&["list"])?);
    let mounts = cli::list()?;
    for (path, kind) in [
        ("/direct/one", "direct"),
        ("/ind", "indirect"),
        ("/direct/tree/sub1", "offset"),
        ("/ind/multi/x", "offset"),
    ] {
        let mount = cli::mount_at(&mounts, path).with_context(|| format!("list shows no {path}"))?;
        checks.equal(&format!("type of {path}"), mount["options"]["mount_type"].as_str(), Some(kind));
        checks.equal(&format!("master of {path}"), mount["master"]["program"].as_str(), Some("automount"));
    }
    let busy = cli::mount_at(&mounts, "/ind").context("no /ind")?;
    checks.that(
        "the active key of /ind is a covering mount",
        busy["covering"].to_string().contains("/ind/busy"),
    );
    checks.that("check finds nothing wrong", run(HANG_LIMIT, "autofs-cr", &["check"])?.status.success());
    Ok(())
}

/// The image directory: modes, `show`, stock `crit`.
fn images(checks: &mut Checks) -> Result<()> {
    checks.equal("mode of the image directory", fs::metadata(DIR)?.mode() & 0o777, 0o700);
    let mut decoded = 0;
    for entry in fs::read_dir(DIR)? {
        let path = entry?.path();
        checks.equal(&format!("mode of {}", path.display()), fs::metadata(&path)?.mode() & 0o777, 0o600);
        let name = path.to_string_lossy().into_owned();
        if name.contains("/autofs-") && !name.contains("/autofs-cr-") {
            let output = run_ok(HANG_LIMIT, "crit", &["decode", "-i", &name])?;
            decoded += usize::from(output.contains("\"timeout\""));
        }
    }
    let mounts =
        cli::json(&["show", DIR])?["mounts"].as_array().context("show --json has no mounts")?.clone();
    checks.equal("stock crit reads an image of every mount", decoded, mounts.len());
    let browse =
        mounts.iter().find(|m| m["facts"]["path"] == "/browse").context("no /browse in the image")?;
    checks.equal("browse directories are in the image", browse["tree"].as_array().map(Vec::len), Some(2));
    checks.that("the map that serves it is in the image", browse["served_by"].is_u64());
    checks.that("show prints for people", cli::ok(&["show", DIR])?.contains("/direct/tree"));
    Ok(())
}

/// Another superblock has the wanted number.
fn taken_number(checks: &mut Checks, engine: Engine) -> Result<()> {
    let wanted = autofs_dev("/direct/two").context("no /direct/two")?;
    engine.signal(Signal::SIGTERM)?;
    checks.soon("the engine takes its mounts away", || engine.ended() && !is_autofs("/direct/two"));
    // tmpfs superblocks take the lowest free numbers, the wanted one among them.
    fs::create_dir_all("/tmp/fill")?;
    let mut filled = 0;
    while !crate::peers::mount_table().iter().any(|(_, fstype, dev)| fstype == "tmpfs" && *dev == wanted) {
        run_ok(HANG_LIMIT, "mount", &["-t", "tmpfs", "fill", "/tmp/fill"])?;
        filled += 1;
        anyhow::ensure!(filled < 5_000, "could not take number {wanted}");
    }
    let refused = cli::run(&["restore", "-D", DIR, "--serve", "--require-devid"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    checks.that("--require-devid refuses a taken number", !refused.status.success());
    checks.that(
        "and says which number and which mount has it",
        said.contains(&wanted) && said.contains("/tmp/fill"),
    );
    checks.that("and touches nothing", !TRIGGERS.iter().any(|path| is_autofs(path)));
    checks.step(
        "without it the restore goes on with a new number",
        cli::ok(&["restore", "-D", DIR, "--serve"]),
    );
    let engine = Engine::serving("/direct/two")?;
    checks.that("another number it is", autofs_dev("/direct/two") != Some(wanted));
    checks.equal("and it serves", read_file("/direct/two/two")?, "two".to_owned());
    engine.signal(Signal::SIGTERM)?;
    checks.soon("all gone", || engine.ended() && !is_autofs("/ind"));
    for _ in 0..filled {
        run_ok(HANG_LIMIT, "umount", &["/tmp/fill"])?;
    }
    Ok(())
}

/// Below another root: nothing outside it is touched.
fn elsewhere(checks: &mut Checks) -> Result<()> {
    fs::create_dir_all("/tmp/root/srv/data")?;
    fs::create_dir_all("/tmp/root/etc")?;
    run_ok(HANG_LIMIT, "mount", &["--bind", "/srv/data", "/tmp/root/srv/data"])?;
    checks.step("restore below --root", cli::ok(&["restore", "-D", DIR, "--root", "/tmp/root", "--serve"]));
    let engine = Engine::serving("/tmp/root/ind")?;
    checks.equal("it serves there", read_file("/tmp/root/ind/k2/k2")?, "k2".to_owned());
    checks.equal("a direct mount, too", read_file("/tmp/root/direct/one/one")?, "one".to_owned());
    checks.that("nothing appears outside", !is_autofs("/ind"));
    engine.signal(Signal::SIGTERM)?;
    checks.soon("all gone", || engine.ended() && !is_autofs("/tmp/root/ind"));
    Ok(())
}

/// It ends, without a mount that TERM might find in use.
fn end_automount(automount: &mut Automount) -> Result<()> {
    automount.signal(Signal::SIGUSR1)?;
    let inside = |path: &str| TRIGGERS.iter().chain(&["/browse"]).any(|top| path.starts_with(top));
    let idle = || !mount_table().iter().any(|(path, fstype, _)| fstype != "autofs" && inside(path));
    anyhow::ensure!(crate::check::wait_until(idle), "automount unmounts nothing");
    automount.signal(Signal::SIGTERM)?;
    anyhow::ensure!(crate::check::wait_until(|| automount.ended()), "automount does not end");
    Ok(())
}

fn timeout_of(path: &str) -> Result<u64> {
    let mounts = cli::list()?;
    let mount = cli::mount_at(&mounts, path).with_context(|| format!("no {path}"))?;
    mount["options"]["timeout"].as_u64().context("no timeout")
}

fn mountinfo() -> Result<String> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?)
}
