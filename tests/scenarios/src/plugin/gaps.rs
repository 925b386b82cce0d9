//! Where CRIU's own support of autofs stops: each case with a stock CRIU and with the plugin, side by side.

use super::container::{Container, Criu};
use super::{Fillers, exports, program};
use crate::check::{Checks, wait_until};
use anyhow::{Context, Result, bail, ensure};

/// What a stock CRIU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stock {
    /// The dump or the restore fails, and its log says this.
    Refuses(&'static str),
    /// The restored container is not right.
    Loses,
}

/// One case.
struct Gap {
    name: &'static str,
    /// Mounts of the small master.
    mounts: &'static [&'static str],
    /// What happens before the dump.
    before: fn(&Container) -> Result<()>,
    stock: Stock,
    /// Is the restored container right? `was`: what [`facts`] said before the dump.
    right: fn(&Container, was: &str) -> Result<()>,
}

const GAPS: &[Gap] = &[
    Gap {
        name: "device numbers",
        mounts: &["direct:/mnt/d", "indirect:/mnt/i"],
        before: |_| Ok(()),
        stock: Stock::Loses,
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
        right: |now, _| same(now.enter(&["readlink", "/mnt/i/l"])?.trim(), "/srv/data/a"),
    },
    Gap {
        name: "modes of directories",
        mounts: &["indirect:/mnt/i:mode=710"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        right: |now, _| same(now.enter(&["stat", "-c", "%a", "/mnt/i"])?.trim(), "710"),
    },
    Gap {
        name: "strictexpire",
        mounts: &["indirect:/mnt/i:strictexpire"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        right: |now, _| has(now, "/mnt/i", "strictexpire"),
    },
    Gap {
        name: "ignore",
        mounts: &["indirect:/mnt/i:ignore"],
        before: |_| Ok(()),
        stock: Stock::Loses,
        right: |now, _| has(now, "/mnt/i", "ignore"),
    },
    Gap {
        name: "rootless multi-mounts",
        mounts: &["indirect:/mnt/i:browse=foo", "offset:/mnt/i/foo/d"],
        before: |_| Ok(()),
        stock: Stock::Refuses("/foo/d"),
        right: |now, _| read(now, "/mnt/i/foo/d/d"),
    },
];

/// Every case.
pub fn run(checks: &mut Checks) -> Result<()> {
    exports(&["a", "b", "d", "e"])?;
    for (number, gap) in GAPS.iter().enumerate() {
        let stock = Criu::stock(&format!("gap{number}.stock"))?;
        match gap.stock {
            Stock::Refuses(says) => match carry(gap, &stock) {
                Ok(()) => checks.fail(&format!("{}: stock refuses", gap.name), "it did not"),
                Err(error) => {
                    let log = stock.log("dump") + &stock.log("restore");
                    checks.that(&format!("{}: stock refuses", gap.name), log.contains(says));
                    if !log.contains(says) {
                        println!("          {error:#}");
                    }
                }
            },
            Stock::Loses => {
                let lost = carry(gap, &stock);
                let restored = stock.log("restore").contains("Restore finished successfully");
                checks.that(&format!("{}: stock loses it", gap.name), lost.is_err() && restored);
                if let (Err(error), false) = (lost, restored) {
                    println!("          {error:#}");
                }
            }
        }
        let ours = Criu::with_plugin(&format!("gap{number}"))?;
        checks.step(&format!("{}: right with the plugin", gap.name), carry(gap, &ours));
    }
    Ok(())
}

/// Dump and restore; is the container right?
fn carry(gap: &Gap, criu: &Criu) -> Result<()> {
    // Numbers below those of the container's mounts, free again before the restore: the kernel would give them.
    let below = Fillers::take(8)?;
    let program = program()?;
    let container = Container::start(&[&["catatonit", "--", &program, "master"], gap.mounts].concat())?;
    ensure!(wait_until(|| container.enter(&["test", "-e", "/run/ready"]).is_ok()), "no master");
    (gap.before)(&container)?;
    let was = facts(&container)?;
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop((container, below));
    let container = criu.restore()?;
    (gap.right)(&container, &was)
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

/// A file in a mount holds its own name; a hang is an error.
fn read(container: &Container, path: &str) -> Result<()> {
    let text = container.enter_within(std::time::Duration::from_secs(5), &["cat", path])?;
    ensure!(path.ends_with(text.trim()), "{path} holds {text:?}");
    Ok(())
}
