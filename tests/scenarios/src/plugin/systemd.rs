//! Real systemd as PID 1 of a container: its automount units go on after a restore.

use super::container::{Container, Criu};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::process::run_ok;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;

/// Idle seconds of the unit that expires.
const IDLE: &str = "8";

/// Two automount units: `(unit, Where, [Mount] lines, idle seconds)`.
const UNITS: &[(&str, &str, &str, &str)] = &[
    ("mnt-bind", "/mnt/bind", "What=/srv/data/a\nType=none\nOptions=bind", "600"),
    ("mnt-scratch", "/mnt/scratch", "What=tmpfs\nType=tmpfs\nOptions=size=1M,mode=0755", IDLE),
];

/// systemd as it is installed.
pub(super) const PROGRAM: &str = "/usr/lib/systemd/systemd";

/// What is booted: the units; and with them a service in a mount namespace of its own.
pub(super) const TARGET: &str = "carried.target";
const NESTED: &str = "nested.target";

/// A lookup that should hang is given up after this time.
const HANGS: Duration = Duration::from_secs(8);

/// What systemd says to a request of a mount whose number it does not know.
const IGNORED: &str = "Automount point already active?";

pub fn run(checks: &mut Checks) -> Result<()> {
    super::exports(&["a"])?;
    units()?;
    with_plugin(checks)?;
    namespaces(checks)?;
    renumbered(checks)?;
    without(checks)
}

fn with_plugin(checks: &mut Checks) -> Result<()> {
    // Minors above 255 are encoded in another way, and are not the lowest free ones at the restore.
    let below = super::Fillers::high()?;
    let systemd = boot(PROGRAM, TARGET)?;
    drop(below);
    let minor = device(&systemd, "/mnt/bind").and_then(|dev| dev.split_once(':')?.1.parse().ok());
    checks.that("a minor above 255", minor > Some(255));
    checks.equal("systemd serves", systemd.enter(&["cat", "/mnt/bind/a"])?.trim(), "a");
    checks.that("one unit is mounted, one waits", running(&systemd, "bind") && waiting(&systemd, "scratch"));
    let was = (device(&systemd, "/mnt/bind"), device(&systemd, "/mnt/scratch"));

    let criu = Criu::with_plugin("systemd")?;
    criu.dump(&systemd)?;
    checks.that("the dump ends the container", wait_until(|| systemd.ended()));
    drop(systemd);
    checks.step("its cgroups are gone, as on another machine", remove_cgroups());
    let systemd = criu.restore()?;
    checks.equal("same st_dev", (device(&systemd, "/mnt/bind"), device(&systemd, "/mnt/scratch")), was);
    checks.that("the units are as they were", running(&systemd, "bind") && waiting(&systemd, "scratch"));
    checks.equal("what was mounted is there", systemd.enter(&["cat", "/mnt/bind/a"])?.trim(), "a");
    checks.step("a waiting unit's mount is made", systemd.enter(&["touch", "/mnt/scratch/file"]));
    checks.equal(
        "by its type",
        systemd.covering("/mnt/scratch").map(|mount| mount.fstype).as_deref(),
        Some("tmpfs"),
    );
    checks.soon("it expires when idle", || systemd.covering("/mnt/scratch").is_none());
    checks.step("it is mounted again", systemd.enter(&["ls", "/mnt/scratch/."]));
    checks.step("daemon-reexec", systemd.enter(&["systemctl", "daemon-reexec"]));
    checks.soon("it expires after that, too", || systemd.covering("/mnt/scratch").is_none());
    checks.step("and is mounted", systemd.enter(&["ls", "/mnt/scratch/."]));

    // Once more, now with a timer that runs.
    let again = Criu::with_plugin("systemd.again")?;
    again.dump(&systemd)?;
    ensure!(wait_until(|| systemd.ended()), "the dump left the container running");
    drop(systemd);
    let systemd = again.restore()?;
    checks.that("a second restore: mounted", systemd.covering("/mnt/scratch").is_some());
    checks.soon("the idle timer still runs", || systemd.covering("/mnt/scratch").is_none());
    checks.step("and it is mounted again", systemd.enter(&["ls", "/mnt/scratch/."]));
    Ok(())
}

/// A service with a mount namespace of its own, which has copies of the autofs mounts.
fn namespaces(checks: &mut Checks) -> Result<()> {
    let systemd = boot(PROGRAM, NESTED)?;
    let pid = || -> Option<String> {
        let show = ["systemctl", "show", "--value", "--property=MainPID", "apart.service"];
        let pid = systemd.enter(&show).ok()?.trim().to_owned();
        (pid != "0").then_some(pid)
    };
    ensure!(wait_until(|| pid().is_some()), "the service does not run: {}", log());
    let pid = pid().context("no service")?;
    // What its namespace has at a place.
    let inside = |systemd: &Container, place: &str, fstype: &str| -> Option<String> {
        let table = systemd.enter(&["cat", &format!("/proc/{pid}/mountinfo")]).ok()?;
        let has =
            |line: &&str| line.contains(&format!(" {place} ")) && line.contains(&format!(" - {fstype} "));
        Some(table.lines().find(has)?.split(' ').nth(2)?.to_owned())
    };
    let namespace =
        |systemd: &Container, pid: &str| systemd.enter(&["readlink", &format!("/proc/{pid}/ns/mnt")]);
    checks.that(
        "a unit has a mount namespace of its own",
        namespace(&systemd, &pid)? != namespace(&systemd, "1")?,
    );
    let was = (device(&systemd, "/mnt/scratch"), inside(&systemd, "/mnt/scratch", "autofs"));
    checks.that("with copies of the autofs mounts", was.0.is_some() && was.0 == was.1);
    // What systemd mounts does not propagate from a container's private root: then the walk ends in ELOOP.
    let look =
        |systemd: &Container| systemd.enter(&["nsenter", "-t", &pid, "-m", "ls", "/mnt/scratch/."]).is_ok();
    let as_before = look(&systemd);
    checks.that("a lookup there reaches systemd", systemd.covering("/mnt/scratch").is_some());
    checks.soon("which expires the mount", || systemd.covering("/mnt/scratch").is_none());

    let criu = Criu::with_plugin("systemd.nested")?;
    criu.dump(&systemd)?;
    ensure!(wait_until(|| systemd.ended()), "the dump left the container running");
    drop(systemd);
    let systemd = criu.restore()?;
    let now = (device(&systemd, "/mnt/scratch"), inside(&systemd, "/mnt/scratch", "autofs"));
    checks.equal("the same after a restore", now, was);
    checks.that("still in two namespaces", namespace(&systemd, &pid)? != namespace(&systemd, "1")?);
    checks.equal("a lookup in the copy is answered as before", look(&systemd), as_before);
    checks.that("systemd has mounted for it", systemd.covering("/mnt/scratch").is_some());
    Ok(())
}

/// The numbers are taken: refused, or (wanted) systemd learns new ones.
fn renumbered(checks: &mut Checks) -> Result<()> {
    let systemd = boot(PROGRAM, TARGET)?;
    systemd.enter(&["cat", "/mnt/bind/a"])?;
    ensure!(wait_until(|| running(&systemd, "bind")), "the unit does not run");
    let was: Vec<String> = UNITS.iter().filter_map(|(_, place, ..)| device(&systemd, place)).collect();
    let criu = Criu::with_plugin("systemd.taken")?;
    criu.dump(&systemd)?;
    ensure!(wait_until(|| systemd.ended()), "the dump left the container running");
    drop(systemd);
    let taken = was.iter().map(|dev| super::Fillers::take(dev)).collect::<Result<Vec<_>>>()?;
    let refused = criu.restore().map_err(|error| format!("{error:#}"));
    checks.that(
        "numbers are taken: the restore is refused",
        refused.is_err_and(|why| why.contains("its device number")),
    );
    let systemd = criu.and_renumber()?.restore()?;
    let now: Vec<String> = UNITS.iter().filter_map(|(_, place, ..)| device(&systemd, place)).collect();
    checks.that("wanted: other numbers", now.len() == was.len() && now.iter().all(|dev| !was.contains(dev)));
    checks.soon("the units are as they were", || running(&systemd, "bind") && waiting(&systemd, "scratch"));
    checks.equal("what was mounted is there", systemd.enter(&["cat", "/mnt/bind/a"])?.trim(), "a");
    checks.step("systemd answers", systemd.enter(&["touch", "/mnt/scratch/file"]));
    checks.that("and mounts", systemd.covering("/mnt/scratch").is_some());
    checks.soon("it expires when idle", || systemd.covering("/mnt/scratch").is_none());
    checks.step("it is mounted again", systemd.enter(&["ls", "/mnt/scratch/."]));
    checks.that("no request was ignored", !log().contains(IGNORED));
    drop(taken);
    Ok(())
}

/// The negative control: the same with a stock CRIU, when another file system has the old number.
fn without(checks: &mut Checks) -> Result<()> {
    let systemd = boot(PROGRAM, TARGET)?;
    systemd.enter(&["cat", "/mnt/bind/a"])?;
    // While it mounts it has the root open, which a stock CRIU cannot dump.
    ensure!(wait_until(|| running(&systemd, "bind")), "the unit does not run");
    let was = device(&systemd, "/mnt/scratch").context("no /mnt/scratch")?;
    let criu = Criu::stock("systemd.stock")?;
    criu.dump(&systemd)?;
    ensure!(wait_until(|| systemd.ended()), "the dump left the container running");
    drop(systemd);
    let taken = super::Fillers::take(&was)?;
    let systemd = criu.restore()?;
    checks.that("stock CRIU: another st_dev", device(&systemd, "/mnt/scratch") != Some(was));
    checks.that("and a visitor hangs", systemd.enter_within(HANGS, &["ls", "/mnt/scratch/."]).is_err());
    checks.that("because systemd ignores the request", log().contains(IGNORED));
    drop(taken);
    Ok(())
}

/// Unit files, and a target that needs nothing else.
pub(super) fn units() -> Result<()> {
    let dir = "/etc/systemd/system";
    let plain = "[Unit]\nDefaultDependencies=no\n";
    fs::create_dir_all(dir)?;
    let mut target = plain.to_owned();
    for (unit, place, mount, idle) in UNITS {
        fs::write(format!("{dir}/{unit}.mount"), format!("{plain}[Mount]\nWhere={place}\n{mount}\n"))?;
        let automount = format!("{plain}[Automount]\nWhere={place}\nTimeoutIdleSec={idle}\n");
        fs::write(format!("{dir}/{unit}.automount"), automount)?;
        target += &format!("Requires={unit}.automount\nAfter={unit}.automount\n");
    }
    fs::write(format!("{dir}/{TARGET}"), &target)?;
    let service = "[Service]\nExecStart=/usr/bin/sleep 1000\nPrivateTmp=yes\n";
    let after: String = UNITS.iter().map(|(unit, ..)| format!("After={unit}.automount\n")).collect();
    fs::write(format!("{dir}/apart.service"), format!("{plain}{after}{service}"))?;
    fs::write(format!("{dir}/{NESTED}"), target + "Requires=apart.service\nAfter=apart.service\n")?;
    // CRIU does not restore the trigger of pressure stalls, and PID 1 would spin.
    fs::create_dir_all("/etc/systemd/system.conf.d")?;
    fs::write("/etc/systemd/system.conf.d/psi.conf", "[Manager]\nDefaultMemoryPressureWatch=off\n")?;
    Ok(())
}

/// `program`: variables of its environment may come before it.
pub(super) fn boot(program: &str, target: &str) -> Result<Container> {
    // systemd watches /etc/localtime, which CRIU finds again when it is a file on a tmpfs.
    let start = format!(
        "cp -a /etc /tmp/etc && mount -t tmpfs etc /etc && cp -a /tmp/etc/. /etc && rm -r /tmp/etc /etc/localtime && : >/etc/localtime && ln -sf /var/log/kmsg /dev/kmsg && : >/var/log/kmsg && \
                 exec env MEMORY_PRESSURE_WATCH=/dev/null {program} --system --unit={target} \
                 --log-target=kmsg --log-level=info --show-status=no --crash-shell=no --dump-core=no"
    );
    let systemd = Container::start_in_cgroup(&["sh", "-c", &start])?;
    let up = wait_until(|| UNITS.iter().all(|(_, place, _, _)| systemd.autofs(place).is_some()));
    ensure!(up, "systemd did not come up: {}", log());
    Ok(systemd)
}

/// Those of [`boot`], the deepest first. A process that has just ended is in one for a moment.
pub(super) fn remove_cgroups() -> Result<()> {
    let remove = "cd /sys/fs/cgroup && { [ ! -d sd ] || find sd -depth -type d -exec rmdir {} +; }";
    ensure!(wait_until(|| run_ok(HANG_LIMIT, "sh", &["-c", remove]).is_ok()), "{remove}");
    Ok(())
}

/// What systemd says: the container's root is this machine's.
fn log() -> String {
    fs::read_to_string("/var/log/kmsg").unwrap_or_default()
}

fn device(systemd: &Container, path: &str) -> Option<String> {
    systemd.autofs(path).map(|mount| mount.dev)
}

fn state(systemd: &Container, unit: &str) -> String {
    let unit = format!("mnt-{unit}.automount");
    let shown = systemd.enter(&["systemctl", "show", "--value", "--property=SubState", &unit]);
    shown.unwrap_or_default().trim().to_owned()
}

fn running(systemd: &Container, unit: &str) -> bool {
    state(systemd, unit) == "running"
}

fn waiting(systemd: &Container, unit: &str) -> bool {
    state(systemd, unit) == "waiting"
}
