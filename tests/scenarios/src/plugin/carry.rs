//! The plugin's main job: a container with autofs mounts is dumped, ends, and is restored.

use super::container::{Container, Criu, Mounted};
use super::{Fillers, exports, program};
use crate::check::{Checks, wait_until};
use anyhow::Result;

/// A small master with an indirect and a direct mount.
pub fn run(checks: &mut Checks) -> Result<()> {
    exports(&["a", "b", "c", "d", "e"])?;
    let below = Fillers::high()?;
    let container = Container::start(&[
        "catatonit",
        "--",
        &program()?,
        "master",
        "indirect:/mnt/i",
        "direct:/mnt/d:timeout=77",
        "direct:/mnt/e",
    ])?;
    anyhow::ensure!(wait_until(|| container.enter(&["test", "-e", "/run/ready"]).is_ok()), "no master");
    checks.equal("the indirect mount is served", container.enter(&["cat", "/mnt/i/a/a"])?.trim(), "a");
    checks.equal("a direct mount is served", container.enter(&["cat", "/mnt/e/e"])?.trim(), "e");
    let before: Vec<_> = ["/mnt/i", "/mnt/d", "/mnt/e"].iter().map(|path| container.autofs(path)).collect();

    drop(below);
    let left = Criu::with_plugin("carry.left")?;
    left.dump_with(&container, &["--leave-running"])?;
    checks.equal(
        "a dump that leaves it running: served",
        container.enter(&["cat", "/mnt/i/c/c"])?.trim(),
        "c",
    );
    let criu = Criu::with_plugin("carry")?;
    criu.dump(&container)?;
    checks.that("the dump ends the container", wait_until(|| container.ended()));
    drop(container);
    checks.that("a restore without the plugin fails", criu.and_stock()?.restore().is_err());
    checks.that("and says why", criu.log("restore").contains("Missing required plugin: autofs-cr"));
    let container = criu.restore()?;
    for (before, path) in before.iter().zip(["/mnt/i", "/mnt/d", "/mnt/e"]) {
        let now = container.autofs(path);
        checks.equal(
            &format!("{path}: same st_dev"),
            now.as_ref().map(|m| &m.dev),
            before.as_ref().map(|m| &m.dev),
        );
        let owner = |mount: &Mounted| (mount.option("pgrp"), mount.option("timeout"));
        checks.equal(
            &format!("{path}: same owner and timeout"),
            now.as_ref().map(owner),
            before.as_ref().map(owner),
        );
    }
    checks.that("what was mounted is mounted", container.covering("/mnt/i/a").is_some());
    checks.equal("and readable", container.enter(&["cat", "/mnt/i/a/a"])?.trim(), "a");
    checks.equal("a new key is mounted", container.enter(&["cat", "/mnt/i/b/b"])?.trim(), "b");
    checks.equal("a waiting direct mount is served", container.enter(&["cat", "/mnt/d/d"])?.trim(), "d");
    checks.that("an unknown key fails at once", container.lacks("/mnt/i/none"));
    drop(container);
    stock_images(checks)
}

/// What CRIU dumped without the plugin is restored with it, by CRIU's own code.
fn stock_images(checks: &mut Checks) -> Result<()> {
    let container = Container::start(&["catatonit", "--", &program()?, "master", "indirect:/mnt/i"])?;
    anyhow::ensure!(wait_until(|| container.enter(&["test", "-e", "/run/ready"]).is_ok()), "no master");
    let stock = Criu::stock("carry.stock")?;
    stock.dump(&container)?;
    anyhow::ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop(container);
    let container = stock.and_plugin()?.restore()?;
    checks.that("images of a stock CRIU are restored", container.autofs("/mnt/i").is_some());
    checks.equal("and served", container.enter(&["cat", "/mnt/i/a/a"])?.trim(), "a");
    Ok(())
}
