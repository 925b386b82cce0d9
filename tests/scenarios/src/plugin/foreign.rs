//! A container that sees the mounts of the host's real automount, as binds and through propagation: indirect, direct and
//! offset, idle and busy. It is restored where automount still serves them, and where nobody does.

use super::container::{Container, Criu};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::files::export_all;
use crate::host::{Engine, master_of};
use crate::peers::{Automount, autofs_dev, is_autofs, is_mounted};
use crate::process::{self, run_ok};
use crate::programs::read_file;
use crate::runtimes::runtime::{Podman, Runtime};
use anyhow::{Context, Result, ensure};
use autofs_cr::faults::FOREIGN;
use nix::sys::signal::Signal;
use std::fs;

/// What the container has of the host. `/direct` is an ordinary directory, so CRIU must be told, as runtimes do.
pub(super) const DIRS: &[&str] = &["/ind", "/short", "/direct"];
pub(super) const DUMP: &[&str] = &["--external", "mnt[/direct]:direct"];
pub(super) const RESTORE: &[&str] = &["--external", "mnt[direct]:/direct"];

/// Direct mounts.
pub(super) const DIRECT: &[&str] = &["/direct/one", "/direct/two", "/direct/tree"];

/// Programs whose working directories are in mounts that the host has mounted.
pub(super) const BUSY: &[&str] = &["/ind/a", "/ind/multi/x", "/direct/one", "/direct/tree"];

/// What the maps name, and where it comes from.
pub(super) const EXPORTS: &[&str] = &["a", "b", "c", "d", "e", "x", "y", "one", "two", "tree"];
pub(super) const BIND: &str = "-fstype=bind :/srv/data";

pub fn run(checks: &mut Checks) -> Result<()> {
    exports()?;
    let mut automount = start_host(BIND)?;
    let sit: String = BUSY.iter().map(|dir| format!("(cd {dir} && exec sleep 1000) & ")).collect();
    let container =
        Container::start_with_host(DIRS, &["catatonit", "--", "sh", "-c", &(sit + "sleep 1000")])?;
    ensure!(wait_until(|| sitting(&container) == BUSY), "programs sit in {:?}", sitting(&container));

    let stock = Criu::stock("foreign.stock")?;
    checks.that("a stock CRIU refuses the dump", stock.dump_with(&container, DUMP).is_err());
    let criu = Criu::with_plugin("foreign")?;
    let container = carry(checks, "where automount serves", &criu, container, || Ok(()))?;
    podman(checks)?;
    // What is restored can be dumped again; then automount is gone.
    let again = Criu::with_plugin("foreign.again")?;
    let container = carry(checks, "where nobody serves", &again, container, || end_host(&mut automount))?;
    let _engine = Engine::serving("/ind")?;
    for path in DIRECT.iter().chain(&["/ind", "/short"]) {
        checks.equal(&format!("{path} is served by our engine"), master_of(path)?.as_str(), "autofs-cr");
    }
    drop(container);
    checks.equal("it goes on without the container", read_file("/ind/e/e").ok().as_deref(), Some("e"));
    Ok(())
}

/// A container of podman's (over crun: runc 1.1 unmounts on the host what is mounted in volumes that it restores), with the host's automounter in volumes, at other paths than the host's.
fn podman(checks: &mut Checks) -> Result<()> {
    crate::runtimes::install(checks)?;
    let volumes = ["--volume=/ind:/host/ind:rslave", "--volume=/direct:/host/direct:rslave"];
    let mut podman = Podman::start_with("crun", &volumes)?;
    podman.exec(&["cat", "/host/ind/c/c"])?;
    podman.exec(&["cat", "/host/direct/one/one"])?;
    for way in podman.ways() {
        podman.carry(way).with_context(|| format!("podman: {way}"))?;
        for path in ["/host/ind/c/c", "/host/ind/e/e", "/host/direct/one/one", "/host/direct/two/two"] {
            let text = podman.exec(&["cat", path]);
            let name = path.rsplit('/').next();
            checks.equal(&format!("podman, {way}: {path}"), text.ok().as_deref().map(str::trim), name);
        }
        run_ok(HANG_LIMIT, "umount", &["/ind/e"])?;
    }
    Ok(())
}

pub(super) fn exports() -> Result<()> {
    export_all(EXPORTS)
}

/// Real automount, on a host that shares its mounts as systemd lets it. `from`: options and source of every map line, but
/// for the name.
pub(super) fn start_host(from: &str) -> Result<Automount> {
    let (_, source) = from.split_once(' ').context("no options")?;
    fs::write(
        "/etc/auto.master",
        "/- /etc/auto.direct --timeout=600\n/ind /etc/auto.ind --timeout=600\n/short /etc/auto.short --timeout=3\n",
    )?;
    let direct = DIRECT.iter().map(|path| format!("{path} {from}{}\n", path.trim_start_matches("/direct")));
    fs::write("/etc/auto.direct", direct.collect::<String>())?;
    fs::write("/etc/auto.ind", format!("multi /x {source}/x /y {source}/y\n* {from}/&\n"))?;
    fs::write("/etc/auto.short", format!("* {from}/&\n"))?;
    run_ok(HANG_LIMIT, "mount", &["--make-rshared", "/"])?;
    Automount::start(&[DIRECT, &["/ind", "/short"]].concat())
}

/// Automount ends, and all its mounts with it.
pub(super) fn end_host(automount: &mut Automount) -> Result<()> {
    automount.signal(Signal::SIGUSR1)?;
    let busy = ["/ind/a", "/ind/b", "/direct/one", "/direct/two", "/direct/tree"];
    wait_until(|| !busy.iter().any(|path| is_mounted(path)));
    automount.signal(Signal::SIGTERM)?;
    ensure!(wait_until(|| automount.ended()), "automount does not end");
    ensure!(!is_autofs("/ind") && !is_autofs("/direct/one"), "automount has left mounts behind");
    Ok(())
}

/// Dump, `between`, restore, and see that everything goes on.
fn carry(
    checks: &mut Checks,
    what: &str,
    criu: &Criu,
    container: Container,
    between: impl FnOnce() -> Result<()>,
) -> Result<Container> {
    let was = mounts(&container);
    criu.dump_with(&container, DUMP)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop(container);
    between()?;
    for point in FOREIGN {
        for how in ["error", "kill"] {
            let failed = criu.and_fault(&format!("{point}:{how}"))?.restore_with(RESTORE);
            checks.that(&format!("{what}: {point}, {how}: the restore fails"), failed.is_err());
        }
    }
    super::faults::no_process_left(checks, what);
    let engines =
        || process::run(HANG_LIMIT, "pgrep", &["-x", "autofs-cr"]).map(|found| found.stdout.is_empty());
    checks.soon(&format!("{what}: no engine is left"), || engines().unwrap_or_default());
    let copies = fs::read_to_string("/proc/self/mountinfo")?.contains("/run/autofs-cr/foreign");
    checks.that(&format!("{what}: no copy is left on the host"), !copies);
    let container = criu.restore_with(RESTORE)?;
    checks.equal(&format!("{what}: the same mounts"), mounts(&container), was);
    checks.that(&format!("{what}: programs are where they were"), sitting(&container) == BUSY);
    for path in DIRECT.iter().chain(&["/ind", "/short"]) {
        let here = container.autofs(path).map(|mount| mount.dev);
        checks.that(&format!("{what}: {path} is the host's"), here.is_some() && here == autofs_dev(path));
    }
    for path in [
        "/ind/a/a",
        "/ind/c/c",
        "/ind/d/d",
        "/ind/multi/x/x",
        "/ind/multi/y/y",
        "/direct/one/one",
        "/direct/two/two",
        "/direct/tree/tree",
    ] {
        let text = container.enter(&["cat", path]);
        let name = path.rsplit('/').next();
        checks.equal(&format!("{what}: {path}"), text.ok().as_deref().map(str::trim), name);
    }
    checks.that(&format!("{what}: a new key is the host's, too"), is_mounted("/ind/d"));
    checks.that(&format!("{what}: an unknown key fails"), container.lacks("/ind/none/."));
    container.enter(&["cat", "/short/b/b"])?;
    checks.soon(&format!("{what}: an idle key expires, there and here"), || {
        container.covering("/short/b").is_none() && !is_mounted("/short/b")
    });
    Ok(container)
}

/// Paths and types of what the container has of the host.
fn mounts(container: &Container) -> Vec<(String, String)> {
    let of_host = |path: &str| DIRS.iter().any(|dir| path.starts_with(dir));
    let mounts = container.mounts().into_iter().filter(|mount| of_host(&mount.path));
    let mut mounts: Vec<_> = mounts.map(|mount| (mount.path, mount.fstype)).collect();
    mounts.sort();
    mounts
}

/// Where its programs are.
pub(super) fn sitting(container: &Container) -> Vec<String> {
    let script = "for pid in $(pgrep -x sleep); do readlink /proc/$pid/cwd; done | grep -v '^/$' | sort";
    let told = container.enter(&["sh", "-c", script]).unwrap_or_default();
    let mut dirs: Vec<_> = told.lines().map(str::to_owned).collect();
    dirs.sort_by_key(|dir| BUSY.iter().position(|busy| busy == dir));
    dirs
}
