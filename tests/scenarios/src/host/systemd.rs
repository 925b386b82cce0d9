//! A real systemd with automount units, as PID 1 of namespaces of its own.

use super::Engine;
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::cli;
use crate::peers::Systemd;
use crate::process::{Process, run_ok};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The unit of `/mnt/spec-ial`.
const SPECIAL: &str = r"mnt-spec\x2dial";
const DIR: &str = "/tmp/checkpoint";
pub fn run(checks: &mut Checks) -> Result<()> {
    fs::create_dir_all("/srv/data/a")?;
    fs::write("/srv/data/a/a", "a\n")?;
    let units = [
        ("mnt-bind", "/mnt/bind", "What=/srv/data/a\nType=none\nOptions=bind", "600"),
        ("mnt-scratch", "/mnt/scratch", "What=tmpfs\nType=tmpfs\nOptions=size=1M,mode=0755", "2"),
        // Specifiers and drop-ins, beside systemd's own reading of them.
        (SPECIAL, "/mnt/spec-ial", "What=/srv/%N\nType=none\nOptions=bind,x-host=%H,x-id=%%%U", "1min 30s"),
    ];
    for (drop_in, setting) in
        [("mount.d/10", "What=/srv/data/%J"), ("automount.d/10", "TimeoutIdleSec=2M 1h")]
    {
        let kind = if drop_in.starts_with("mount") { "Mount" } else { "Automount" };
        let path = format!("/etc/systemd/system/{SPECIAL}.{drop_in}.conf");
        fs::create_dir_all(Path::new(&path).parent().context("no parent")?)?;
        fs::write(path, format!("[{kind}]\n{setting}\n"))?;
    }
    let systemd = Systemd::boot(&units)?;
    let tree = systemd.pid().to_string();
    checks.equal("systemd serves", systemd.enter(&["cat", "/mnt/bind/a"])?.trim(), "a");

    print!("{}", cli::ok(&["list", "--tree", &tree])?);
    let listed = cli::json(&["list", "--tree", &tree])?;
    let bind = find(&listed, "/mnt/bind")?.clone();
    checks.equal("the master is systemd", bind["master"]["program"].as_str(), Some("systemd"));
    checks.equal("with its unit", bind["master"]["unit"].as_str(), Some("mnt-bind.automount"));

    checks.step("dump", cli::ok(&["dump", "-D", DIR, "--tree", &tree]));
    let image = cli::json(&["show", DIR])?;
    checks.that(
        "What=, Type= and Options= are in the image",
        image["services"].to_string().contains("size=1M,mode=0755"),
    );

    for (unit, name) in [("mount", "What"), ("mount", "Options"), ("automount", "TimeoutIdleUSec")] {
        let unit = format!("{SPECIAL}.{unit}");
        let theirs = systemd.enter(&["systemctl", "show", "-P", name, &unit])?;
        let own = image["services"].to_string();
        let theirs = theirs.trim().replace("2month 1h", "5263200");
        checks.that(&format!("{unit}: {name}={theirs}, as in {own}"), own.contains(&theirs));
    }

    // systemd makes way for another init; its pid namespace, its mounts and their pipes remain.
    systemd.become_another_init()?;
    checks.equal("the unit's mount is still there", systemd.enter(&["cat", "/mnt/bind/a"])?.trim(), "a");
    print!("{}", cli::ok(&["restore", "-D", DIR, "--tree", &tree, "--serve"])?);
    let engine = served_by_engine(checks, &tree)?;
    systemd.enter(&["touch", "/mnt/scratch/file"])?;
    checks.that(
        "a waiting unit's mount is made by What, Type and Options",
        systemd.enter(&["stat", "-f", "-c", "%T %b", "/mnt/scratch"])?.starts_with("tmpfs"),
    );
    checks.that(
        "and expires when idle",
        wait_until(|| !systemd.mountinfo().contains(" /mnt/scratch rw,relatime - tmpfs")),
    );
    checks.that("and is mounted again, empty", systemd.enter(&["ls", "/mnt/scratch"])?.is_empty());
    engine.signal(Signal::SIGTERM)?;
    checks.soon("the engine ends on TERM", || engine.ended());
    drop(engine);
    drop(systemd);

    // Nothing is left: re-create in a fresh mount namespace.
    let fresh = Process::start(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sleep", "600"])
            .stdin(Stdio::null()),
    )?;
    let tree = fresh.pid().to_string();
    anyhow::ensure!(wait_until(
        || fs::read_to_string(format!("/proc/{tree}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    ));
    checks.step("re-create without systemd", cli::ok(&["restore", "-D", DIR, "--tree", &tree, "--serve"]));
    let engine = served_by_engine(checks, &tree)?;
    let now = cli::json(&["list", "--tree", &tree])?;
    checks.equal("same st_dev", &find(&now, "/mnt/bind")?["dev"], &bind["dev"]);
    checks.equal(
        "served",
        run_ok(HANG_LIMIT, "nsenter", &["-t", &tree, "-m", "cat", "/mnt/bind/a"])?.trim(),
        "a",
    );
    engine.signal(Signal::SIGTERM)?;
    checks.soon("the engine ends", || engine.ended());
    Ok(())
}

fn find<'a>(survey: &'a serde_json::Value, path: &str) -> Result<&'a serde_json::Value> {
    let mounts = survey["mounts"].as_array().context("no mounts")?;
    cli::mount_at(mounts, path).with_context(|| format!("no autofs mount at {path}"))
}

fn served_by_engine(checks: &mut Checks, tree: &str) -> Result<Engine> {
    let survey = cli::json(&["list", "--tree", tree])?;
    for path in ["/mnt/bind", "/mnt/scratch"] {
        checks.equal(
            &format!("{path} is served by the engine"),
            find(&survey, path)?["master"]["program"].as_str(),
            Some("autofs-cr"),
        );
    }
    Engine::of(find(&survey, "/mnt/bind")?)
}
