//! A running engine becomes another program again and again; nobody notices.

use super::Daemon;
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::cli;
use crate::files::{export_all, slow_map};
use crate::peers::{autofs_dev, is_autofs, is_mounted};
use crate::process::Process;
use crate::programs::{Sitter, Walkers, read_file};
use anyhow::{Context, Result};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

const ROUNDS: u64 = 20;
const WALKERS: usize = 32;
const MOUNTS: &[&str] = &["/direct/one", "/ind", "/short", "/slow"];
/// Where the other program is.
const OTHER: &str = "/tmp/autofs-cr-other";

fn write_maps() -> Result<()> {
    export_all(&["one", "top", "x", "y", "busy", "late", "k0", "k1", "k2", "k3"])?;
    fs::create_dir_all("/srv/data/top/x")?;
    fs::create_dir_all("/srv/data/top/y")?;
    fs::write(
        "/etc/auto.master",
        "/- /etc/auto.direct\n/ind /etc/auto.ind\n/short /etc/auto.short --timeout=1\n/slow /etc/auto.slow\n",
    )?;
    fs::write("/etc/auto.direct", "/direct/one :/srv/data/one\n")?;
    fs::write("/etc/auto.ind", "multi / :/srv/data/top /x :/srv/data/x /y :/srv/data/y\n* :/srv/data/&\n")?;
    fs::write("/etc/auto.short", "* :/srv/data/&\n")?;
    slow_map()
}

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    write_maps()?;
    let mut daemon = Daemon::start(&["--metrics", "127.0.0.1:9300"], MOUNTS)?;
    let own = cli::run(&["ctl", "status", "--json"])?;
    let own: serde_json::Value = serde_json::from_slice(&own.stdout).context("no status")?;
    let pid = own["status"]["pid"].as_i64().context("no pid")?;
    let exe = || fs::read_link(format!("/proc/{pid}/exe"));
    fs::copy(exe()?, OTHER)?;
    let mut sitters = Sitter::start_all(&["/direct/one/one", "/ind/busy/busy", "/ind/multi/x/x"])?;
    let devs: Vec<_> = MOUNTS.iter().map(|path| autofs_dev(path)).collect();

    // The mounts of /short come and go all the time.
    let files: Vec<String> = (0..4)
        .map(|n| format!("/short/k{n}/k{n}"))
        .chain(["/direct/one/one", "/ind/multi/top", "/ind/multi/y/y", "/ind/k0/k0"].map(str::to_owned))
        .collect();
    let walkers = Walkers::start(WALKERS, &files)?;
    for _ in 0..ROUNDS {
        cli::ok(&["ctl", "reexec"])?;
        std::thread::sleep(Duration::from_millis(200));
        cli::ok(&["ctl", "expire", "/short"])?;
    }
    let (lookups, errors) = walkers.stop()?;
    println!("  {lookups} lookups by {WALKERS} walkers in {ROUNDS} rounds");
    checks.that("the walkers walked", lookups > 1000);
    checks.equal("no lookup failed", errors, Vec::new());
    checks.that("who sits in mounts goes on", sitters.iter_mut().all(Sitter::goes_on));
    let status = cli::json(&["ctl", "status"])?;
    let told = (status["status"]["pid"].as_i64(), status["status"]["upgrades"].as_u64());
    checks.equal("it is the same process", told, (Some(pid), Some(ROUNDS)));
    checks.equal("with the same mounts", MOUNTS.iter().map(|path| autofs_dev(path)).collect(), devs);
    checks.that("that know what is in them", status["status"]["counts"]["mounted"].as_u64() >= Some(3));
    checks.that("metrics are told as before", cli::ok(&["ctl", "metrics"])?.contains("autofs_cr_mounts "));

    in_flight(checks)?;
    maps_change(checks)?;
    cli::ok(&["ctl", "reexec", OTHER])?;
    checks.equal("it is another program", exe()?.to_str(), Some(OTHER));
    let refused = cli::run(&["ctl", "reexec", "/bin/true"])?;
    checks.that("what is not autofs-cr is refused", !refused.status.success());
    checks.equal("and it goes on", read_file("/ind/k1/k1")?.as_str(), "k1");
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).map_or(usize::MAX, Iterator::count);
    checks.soon("no descriptor is left over", || open() < 30);
    drop(sitters);
    checks.that("it ends", daemon.stop()?);
    checks.that("and nothing is left", MOUNTS.iter().all(|path| !is_autofs(path) && !is_mounted(path)));
    checks.that("no directory either", !std::path::Path::new("/direct/one").exists());
    Ok(())
}

/// The maps change, and the next program is the first to see that: what is in use and not wanted any more stays until it is
/// idle, and what is new comes.
fn maps_change(checks: &mut Checks) -> Result<()> {
    let master = "/- /etc/auto.direct\n/ind /etc/auto.ind\n/slow /etc/auto.slow\n";
    let old = fs::read("/etc/auto.master")?;
    fs::write("/etc/auto.master", format!("/gone /etc/auto.short\n{master}"))?;
    fs::write("/etc/auto.direct", "/direct/one :/srv/data/one\n/direct/gone :/srv/data/late\n")?;
    cli::ok(&["ctl", "reload"])?;
    let mut sitters = Sitter::start_all(&["/gone/k0/k0", "/direct/gone/late"])?;
    fs::write("/etc/auto.master", format!("/new /etc/auto.short\n{master}"))?;
    fs::write("/etc/auto.direct", "/direct/one :/srv/data/one\n/direct/new :/srv/data/late\n")?;
    cli::ok(&["ctl", "reexec"])?;
    checks.step("new maps and keys are served", read_file("/new/k1/k1").and(read_file("/direct/new/late")));
    checks.that("who sits where no map is any more goes on", sitters.iter_mut().all(Sitter::goes_on));
    cli::ok(&["ctl", "reexec"])?;
    checks.that("over one more upgrade, too", sitters.iter_mut().all(Sitter::goes_on) && is_autofs("/gone"));
    drop(sitters);
    checks.soon("when that is idle it goes", || {
        cli::ok(&["ctl", "expire"]).is_ok() && !is_autofs("/gone") && !is_autofs("/direct/gone")
    });
    fs::write("/etc/auto.master", old)?;
    fs::write("/etc/auto.direct", "/direct/one :/srv/data/one\n")?;
    cli::ok(&["ctl", "reload"])?;
    checks.soon("what was new as well", || {
        cli::ok(&["ctl", "expire"]).is_ok() && !is_autofs("/new") && !is_autofs("/direct/new")
    });
    Ok(())
}

/// A request that the old program works on is answered by the new one.
fn in_flight(checks: &mut Checks) -> Result<()> {
    fs::write("/tmp/slow", "")?;
    let visitor = Process::start(
        Command::new("cat").arg("/slow/late/late").stdin(Stdio::null()).stdout(Stdio::piped()),
    )?;
    let works = || {
        let status = cli::json(&["ctl", "status"]).unwrap_or_default();
        status["status"]["jobs"]
            .as_array()
            .is_some_and(|jobs| jobs.iter().any(|job| job["path"] == "/slow/late"))
    };
    anyhow::ensure!(wait_until(works), "nobody works on the request");
    cli::ok(&["ctl", "reexec"])?;
    checks.that("a request in work goes on in the next program", wait_until(works));
    fs::remove_file("/tmp/slow")?;
    checks.equal("and is answered", visitor.finish(HANG_LIMIT)?.trim(), "late");
    Ok(())
}
