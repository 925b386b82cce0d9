//! Where CRIU's own support of autofs stops: each case with a stock CRIU and with the plugin, side by side.

use super::container::{Container, Criu};
use super::{Fillers, exports, program};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::peers::{is_autofs, is_mounted};
use crate::process::{Process, run_ok};
use anyhow::{Context, Result, bail, ensure};
use autofs_cr::discover;
use autofs_cr::sys::control::{Control, ControlError};
use autofs_cr::sys::tracee::{Injected, RemoteFd, Seized};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// A lookup that takes longer hangs, as two do where a stock CRIU has restored the container.
const HANGS: Duration = Duration::from_secs(15);

/// What a stock CRIU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stock {
    /// The dump or the restore fails, and its log says this.
    Refuses(&'static str),
    /// The restored container is not right.
    Loses,
    /// It works, and must with the plugin.
    Works,
}

/// One case.
struct Gap {
    name: &'static str,
    /// Mounts of the small master.
    mounts: &'static [&'static str],
    /// What happens before the dump.
    before: fn(&Container) -> Result<()>,
    stock: Stock,
    /// What the documentation says of the plugin.
    with: &'static str,
    /// Is the restored container right? `was`: what [`facts`] said before the dump.
    right: fn(&Container, was: &str) -> Result<()>,
}

const GAPS: &[Gap] = &[
    Gap {
        name: "device number of a mount (systemd and direct maps depend on it), also above minor 255",
        mounts: &["direct:/mnt/d", "indirect:/mnt/i"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        with: "kept, if it is free",
        right: |now, was| {
            same(&facts(now)?, was)?;
            read(now, "/mnt/d/d")?;
            read(now, "/mnt/i/a/a")
        },
    },
    Gap {
        name: "browse directories",
        mounts: &["indirect:/mnt/i:browse=a:browse=b"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        with: "kept",
        right: |now, _| {
            same(now.enter(&["ls", "/mnt/i"])?.trim(), "a\nb")?;
            read(now, "/mnt/i/a/a")
        },
    },
    Gap {
        name: "symbolic links",
        mounts: &["indirect:/mnt/i:link=l>/srv/data/a"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        with: "kept",
        right: |now, _| same(now.enter_within(HANGS, &["readlink", "/mnt/i/l"])?.trim(), "/srv/data/a"),
    },
    Gap {
        name: "mode of the root directory",
        mounts: &["indirect:/mnt/i:mode=710"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        with: "kept",
        right: |now, _| same(now.enter(&["stat", "-c", "%a", "/mnt/i"])?.trim(), "710"),
    },
    Gap {
        name: "`strictexpire`",
        mounts: &["indirect:/mnt/i:strictexpire"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        with: "kept",
        right: |now, _| has(now, "/mnt/i", "strictexpire"),
    },
    Gap {
        name: "`ignore`",
        mounts: &["indirect:/mnt/i:ignore"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        with: "kept",
        right: |now, _| has(now, "/mnt/i", "ignore"),
    },
    Gap {
        name: "timeouts of single keys",
        mounts: &["indirect:/mnt/i:browse=a:key-timeout=a=55"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        with: "kept",
        right: |now, _| {
            let found =
                in_master(now, "/mnt/i", |control, root| control.set_dentry_timeout(root, b"a", None))?;
            same(&found.to_string(), "55")
        },
    },
    Gap {
        name: "who triggered what is mounted on a direct or offset mount",
        mounts: &["direct:/mnt/d", "indirect:/mnt/i"],
        before: |container| {
            container.enter(&[
                "setpriv",
                "--reuid=1234",
                "--regid=4321",
                "--clear-groups",
                "ls",
                "/mnt/d/.",
            ])?;
            container.enter(&[
                "setpriv",
                "--reuid=55",
                "--regid=66",
                "--clear-groups",
                "ls",
                "/mnt/i/a/.",
            ])?;
            Ok(())
        },
        stock: Stock::Loses,
        with: "kept",
        right: |now, _| {
            let who = in_master(now, "/mnt/d", |control, root| control.requester(root, "/mnt/d".as_ref()))?;
            same(&format!("{} {}", who.uid, who.gid), "1234 4321")
        },
    },
    Gap {
        name: "owner group of a catatonic mount",
        mounts: &["direct:/mnt/d", "direct:/mnt/e:catatonic"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        with: "kept",
        right: |now, _| {
            let group = |path| now.autofs(path).and_then(|mount| mount.option("pgrp"));
            let (live, catatonic) = (group("/mnt/d"), group("/mnt/e"));
            ensure!(live.is_some() && live == catatonic, "owners {live:?} and {catatonic:?}");
            same(&now.autofs("/mnt/e").and_then(|mount| mount.option("fd")).unwrap_or_default(), "-1")
        },
    },
    Gap {
        name: "a master that does not lead its process group",
        mounts: &["direct:/mnt/d", "indirect:/mnt/i", "in-group"],
        before: |_| Ok(()),
        stock: Stock::Refuses("alive, but unreachable"),
        with: "kept",
        right: |now, _| {
            read(now, "/mnt/d/d")?;
            read(now, "/mnt/i/a/a")
        },
    },
    Gap {
        name: "descriptors on covered roots (automount(8) keeps one for each active direct or offset mount)",
        mounts: &["direct:/mnt/d:keep-fd", "direct:/mnt/e:keep-fd"],
        before: |container| read(container, "/mnt/d/d"),
        stock: Stock::Refuses("Open files on overmounted mounts"),
        with: "kept",
        right: |now, _| {
            read(now, "/mnt/d/d")?;
            // The master answers by its descriptors.
            now.enter(&["umount", "/mnt/d"])?;
            read(now, "/mnt/d/d")?;
            read(now, "/mnt/e/e")
        },
    },
    Gap {
        name: "a master that died",
        mounts: &["direct:/mnt/d", "dies"],
        before: master_is_dead,
        stock: Stock::Refuses("Failed to find read pipe fd"),
        with: "the mount, catatonic",
        right: |now, _| {
            // Nobody answers, and nobody waits: in a catatonic mount there is nothing.
            same(&now.autofs("/mnt/d").and_then(|mount| mount.option("fd")).unwrap_or_default(), "-1")?;
            same(&now.enter(&["ls", "/mnt/d/."])?, "")
        },
    },
    Gap {
        name: "a catatonic mount that nobody owns any more",
        mounts: &["direct:/mnt/d:catatonic", "dies"],
        before: master_is_dead,
        stock: Stock::Loses,
        with: "kept",
        right: |now, was| {
            same(&facts(now)?, was)?;
            same(&now.autofs("/mnt/d").and_then(|mount| mount.option("fd")).unwrap_or_default(), "-1")?;
            same(&now.enter(&["ls", "/mnt/d/."])?, "")
        },
    },
    Gap {
        name: "a request that its master has not read",
        mounts: &["direct:/mnt/d", "visits"],
        before: |container| {
            container.enter(&[
                "sh",
                "-c",
                "kill -STOP $(pgrep -x scenarios) && echo /mnt/d/d >/run/visit",
            ])?;
            ensure!(wait_until(|| waiting(container)), "nobody waits");
            Ok(())
        },
        stock: Stock::Refuses("Unseizable"),
        with: "asked again; the program sees no error",
        right: |now, _| {
            let state = now.enter(&["sh", "-c", "cat /proc/$(pgrep -x scenarios)/stat"])?;
            ensure!(state.contains(" T "), "the master was stopped and is not: {state}");
            now.enter(&["sh", "-c", "kill -CONT $(pgrep -x scenarios)"])?;
            answer(now, "d")
        },
    },
    Gap {
        name: "a request that its master works on",
        mounts: &["indirect:/mnt/i", "visits"],
        before: |container| {
            container.enter(&["sh", "-c", "echo /mnt/i/slow/slow >/run/visit"])?;
            let works = || container.enter(&["grep", "-q", "Missing", "/run/requests"]).is_ok();
            ensure!(wait_until(|| waiting(container) && works()), "nobody waits");
            Ok(())
        },
        stock: Stock::Refuses("Unseizable"),
        with: "asked again; the program sees no error",
        right: |now, _| {
            now.enter(&["touch", "/run/go"])?;
            answer(now, "slow")
        },
    },
    Gap {
        name: "a master that cannot see the path",
        mounts: &["direct:/mnt/d:keep-fd", "chroot"],
        before: |_| Ok(()),
        stock: Stock::Works,
        with: "works",
        right: |now, _| {
            // All it can do there is to say no.
            ensure!(now.enter_within(HANGS, &["ls", "/mnt/d/."]).is_err(), "nobody has answered");
            now.enter(&["grep", "-q", "Missing", "/run/run/requests"]).map(drop)
        },
    },
    Gap {
        name: "rootless multi-mounts (an offset below a directory of an indirect mount)",
        mounts: &["indirect:/mnt/i:browse=foo", "offset:/mnt/i/foo/d"],
        before: |_| Ok(()),
        stock: Stock::Refuses("Failed to create autofs dentry"),
        with: "kept",
        right: |now, _| read(now, "/mnt/i/foo/d/d"),
    },
    Gap {
        name: "foreign mounts (the host's automounter, seen through slave propagation; scenario `foreign`)",
        mounts: &["indirect:/mnt/i", "on-host"],
        before: |container| read(container, "/mnt/i/a/a"),
        stock: Stock::Refuses("unreachable sharing"),
        with: "the host's own mounts, busy keys too",
        right: |now, was| {
            same(&facts(now)?, was)?;
            ensure!(now.covering("/mnt/i/a").is_some(), "the busy key is not mounted");
            read(now, "/mnt/i/a/a")?;
            read(now, "/mnt/i/b/b")?;
            ensure!(is_mounted("/mnt/i/b"), "a new key is not the host's");
            Ok(())
        },
    },
];

/// The documentation with the table that this makes.
const DOCUMENT: &str = "criu-plugin.md";
const TABLE_BEGINS: &str = "<!-- made by scripts/scenario --write stock-gaps -->\n";
const TABLE_ENDS: &str = "<!-- end -->";

/// Every case.
pub fn run(checks: &mut Checks) -> Result<()> {
    exports(&["a", "b", "d", "e", "slow"])?;
    let version = run_ok(HANG_LIMIT, "criu", &["--version"])?;
    let version = version.lines().find_map(|line| line.strip_prefix("Version: ")).context("no version")?;
    let head = format!("CRIU {version} alone");
    let mut table = format!("| case | {head} | with the plugin |\n|---|---|---|\n");
    for (number, gap) in GAPS.iter().enumerate() {
        let alone = stock(checks, gap, &Criu::stock(&format!("gap{number}.stock"))?);
        let ours = Criu::with_plugin(&format!("gap{number}"))?;
        let mut carried = carry(gap, &ours);
        // Between the two another program on this kernel may have taken the number.
        for _ in 0..5 {
            if carried.is_err() && ours.log("restore").contains("cannot be kept") {
                carried = carry(gap, &ours);
            }
        }
        let with = if carried.is_ok() { gap.with } else { "FAILED" };
        checks.step(&format!("{}: right with the plugin", gap.name), carried);
        table += &format!("| {} | {alone} | {with} |\n", gap.name);
    }
    document(checks, &table, &head)
}

/// The case without the plugin; in a word for the table.
fn stock(checks: &mut Checks, gap: &Gap, criu: &Criu) -> &'static str {
    let carried = carry(gap, criu);
    let (dump, restore) = (criu.log("dump"), criu.log("restore"));
    let dumped = dump.contains("Dumping finished successfully");
    let restored = restore.contains("Restore finished successfully");
    let (what, holds, word) = match gap.stock {
        Stock::Refuses(says) => {
            let word = if dumped { "restore fails" } else { "dump refused" };
            ("stock refuses", (dump + &restore).contains(says), word)
        }
        Stock::Loses => ("stock loses it", restored, "lost"),
        Stock::Works => ("stock does it", restored, "works"),
    };
    checks.that(&format!("{}: {what}", gap.name), carried.is_ok() == (gap.stock == Stock::Works) && holds);
    if let (Err(error), false) = (carried, holds) {
        println!("          {error:#}");
    }
    word
}

/// The table in the documentation is the one of this run, if it is of the same CRIU. With `--write` it is put there: docs is
/// `/out` then.
fn document(checks: &mut Checks, table: &str, head: &str) -> Result<()> {
    let path = Path::new("/src/docs").join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) = text.split_once(TABLE_BEGINS).context("the document has no table")?;
    let (old, after) = rest.split_once(TABLE_ENDS).context("the table has no end")?;
    let writable = Path::new("/out").join(DOCUMENT);
    if writable.exists() {
        fs::write(writable, [before, TABLE_BEGINS, table, TABLE_ENDS, after].concat())?;
    } else if old.contains(head) {
        checks.that("the table in the documentation is that of this run", old == table);
        if old != table {
            println!("{table}");
        }
    }
    Ok(())
}

/// Dump and restore; is the container right?
fn carry(gap: &Gap, criu: &Criu) -> Result<()> {
    // Numbers below those of the container's mounts, free again before the restore: the kernel would give them.
    let below = Fillers::high()?;
    let program = program()?;
    let master = master(&program, gap.mounts);
    let (host, container) = if gap.mounts.contains(&"on-host") {
        let (host, sleep) = (Host::start(&master)?, ["catatonit", "--", "sleep", "1000"]);
        (Some(host), Container::start_with_host(&["/mnt/i"], &sleep)?)
    } else {
        (None, Container::start(&master)?)
    };
    let ready = || host.is_some() || container.enter(&["test", "-e", "/run/ready"]).is_ok();
    ensure!(wait_until(ready), "no master");
    (gap.before)(&container)?;
    let was = facts(&container)?;
    // It waits ten seconds for a task that it cannot stop.
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop((container, below));
    let container = criu.restore()?;
    (gap.right)(&container, &was)
}

/// The master is on the host, which shares its mounts.
struct Host(Process);

impl Host {
    fn start(master: &[&str]) -> Result<Self> {
        run_ok(HANG_LIMIT, "mount", &["--make-rshared", "/"])?;
        let host = Self(Process::start_session(master)?);
        ensure!(wait_until(|| is_autofs("/mnt/i")), "no master");
        Ok(host)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill9();
        let _ = run_ok(HANG_LIMIT, "umount", &["--lazy", "/mnt/i"]);
        let _ = run_ok(HANG_LIMIT, "mount", &["--make-rprivate", "/"]);
    }
}

/// The container's PID 1 and its arguments; words without a colon say how the master lives.
fn master<'a>(program: &'a str, mounts: &[&'a str]) -> Vec<&'a str> {
    let (specs, how): (Vec<&str>, Vec<&str>) = mounts.iter().copied().partition(|word| word.contains(':'));
    const VISITS: &str = "setsid \"$0\" \"$@\" & while ! test -s /run/visit; do sleep 0.05; done; \
                          cat $(cat /run/visit) >/run/answer 2>&1; : >/run/answered; sleep 1000";
    const DIES: &str = "setsid \"$0\" \"$@\" & until test -e /run/ready; do sleep 0.05; done; \
                        kill -9 $!; wait; exec sleep 1000";
    let program: &[&str] =
        if how.contains(&"chroot") { &[program, "master", "chroot"] } else { &[program, "master"] };
    let start = match how.first() {
        Some(&"on-host") => &[][..],
        Some(&"visits") => &["catatonit", "--", "sh", "-c", VISITS][..],
        // In the group of a shell, as when a script starts it.
        Some(&"in-group") => &["catatonit", "--", "sh", "-c", "\"$0\" \"$@\"; sleep 1000"][..],
        Some(&"dies") => &["catatonit", "--", "sh", "-c", DIES][..],
        _ => &["catatonit", "--"][..],
    };
    [start, program, &specs].concat()
}

/// Its shell has ended it, and does nothing more.
fn master_is_dead(container: &Container) -> Result<()> {
    let dead = || container.enter(&["pgrep", "-xf", "sleep 1000"]).is_ok();
    ensure!(wait_until(dead), "the master lives");
    Ok(())
}

/// Does a program of the container wait for a mount?
fn waiting(container: &Container) -> bool {
    container.enter(&["sh", "-c", "grep -q autofs_wait /proc/[0-9]*/wchan"]).is_ok()
}

/// What the visitor has read in the end.
fn answer(container: &Container, want: &str) -> Result<()> {
    let answered = || container.enter(&["test", "-e", "/run/answered"]).is_ok();
    ensure!(wait_until(answered), "the visitor hangs");
    same(container.enter(&["cat", "/run/answer"])?.trim(), want)
}

/// Paths and numbers of the autofs mounts.
fn facts(container: &Container) -> Result<String> {
    let mounts = container.mounts();
    let autofs = mounts.iter().filter(|mount| mount.fstype == "autofs");
    let lines: Vec<String> = autofs.map(|mount| format!("{} {}", mount.path, mount.dev)).collect();
    ensure!(!lines.is_empty(), "no autofs mounts");
    Ok(lines.join("; "))
}

fn same(got: &str, want: &str) -> Result<()> {
    ensure!(got == want, "got {got:?}, expected {want:?}");
    Ok(())
}

fn has(container: &Container, path: &str, option: &str) -> Result<()> {
    let mount = container.autofs(path).with_context(|| format!("no autofs mount at {path}"))?;
    match mount.option(option) {
        Some(_) => Ok(()),
        None => bail!("{path} has {}", mount.options),
    }
}

/// A command that only the owner may give, in the place of the master.
fn in_master<T>(
    container: &Container,
    path: &str,
    act: impl FnOnce(&Control<Injected<'_>>, RemoteFd) -> Result<T, ControlError>,
) -> Result<T> {
    let survey = discover::survey(&discover::Target::Process(container.pid()))?;
    let mount = survey.mounts.iter().find(|mount| mount.path == Path::new(path)).context("no mount")?;
    let master = mount.master.process().context("no master")?;
    let control = Control::open()?;
    let root = control.open_mount(Path::new(&format!("/proc/{}/root{path}", container.pid())), mount.dev)?;
    let seized = Seized::new(master.pid)?;
    let mut held = seized.stop(HANG_LIMIT).map_err(|(_, error)| error)?;
    let root = held.send_fd(root.as_fd())?;
    let result = act(&Control::with_caller(Injected::new(&mut held, &control)?), root);
    held.close_fd(root)?;
    held.release()?;
    Ok(result?)
}

/// A file in a mount holds its own name; a hang is an error.
fn read(container: &Container, path: &str) -> Result<()> {
    let text = container.enter(&["cat", path])?;
    ensure!(path.ends_with(text.trim()), "{path} holds {text:?}");
    Ok(())
}
