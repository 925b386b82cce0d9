//! Dumps and restores that fail half-way, at every fault point of the plugin: the container goes on, and the images stay good.

use super::container::{Container, Criu};
use super::{Fillers, exports, program};
use crate::check::{Checks, wait_until};
use anyhow::{Context, Result, ensure};
use autofs_cr::faults::CONTAINER;
use std::time::Duration;

/// A lookup that takes longer hangs.
const QUICK: Duration = Duration::from_secs(10);

/// What a CRIU that is killed there keeps: copies of descriptors that it has taken away from the master.
const NO_KILL: &str = "container.parked";

pub fn run(checks: &mut Checks) -> Result<()> {
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    exports(&keys.iter().map(String::as_str).chain(["d"]).collect::<Vec<_>>())?;
    let mut keys = keys.iter();
    let mut next = || keys.next().context("no more keys");
    let (program, mounts) = (program()?, ["indirect:/mnt/i", "direct:/mnt/d:keep-fd"]);
    let start = ["catatonit", "--", &program, "master"];
    let below = Fillers::high()?;
    let container = Container::start(&[&start[..], &mounts].concat())?;
    ensure!(wait_until(|| container.enter(&["test", "-e", "/run/ready"]).is_ok()), "no master");
    // Covered, with a descriptor of the master's.
    read(&container, "/mnt/d/d")?;

    let criu = Criu::with_plugin("faults")?;
    let restores = |point: &&&str| matches!(**point, "container.claimed" | "container.made");
    for point in CONTAINER.iter().filter(|point| !restores(point)) {
        for how in ["error", "kill"].iter().filter(|how| **how == "error" || *point != NO_KILL) {
            let dumped = criu.and_fault(&format!("{point}:{how}"))?.dump(&container);
            checks.that(&format!("{point}, {how}: the dump fails"), dumped.is_err() && !container.ended());
            let key = next()?;
            checks.step("a new key is served", read(&container, &format!("/mnt/i/{key}/{key}")));
            container.enter(&["umount", "/mnt/d"])?;
            checks.step("by descriptors, too", read(&container, "/mnt/d/d"));
        }
    }
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop((container, below));
    for point in CONTAINER.iter().filter(restores) {
        for how in ["error", "kill"] {
            let restored = criu.and_fault(&format!("{point}:{how}"))?.restore();
            checks.that(&format!("{point}, {how}: the restore fails"), restored.is_err());
        }
    }
    let container = criu.restore()?;
    checks.that("no number is held any more", !criu.log("restore").contains("cannot be kept"));
    let key = next()?;
    checks.step("the images are good: served", read(&container, &format!("/mnt/i/{key}/{key}")));
    container.enter(&["umount", "/mnt/d"])?;
    checks.step("by descriptors, too", read(&container, "/mnt/d/d"));
    Ok(())
}

fn read(container: &Container, path: &str) -> Result<()> {
    let text = container.enter_within(QUICK, &["cat", path])?;
    ensure!(path.ends_with(text.trim()), "{path} holds {text:?}");
    Ok(())
}
