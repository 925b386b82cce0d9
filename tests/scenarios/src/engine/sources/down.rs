//! Every lookup is answered, whatever hangs behind a map; and others go on.

use super::{Daemon, Rpc, ldap, read};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::process::Process;
use anyhow::Result;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// Limits of the engine's are eight seconds. What is asked where one has passed gets its error sooner.
const AT_ONCE: Duration = Duration::from_secs(6);

/// Look up what cannot be answered: an error must come within `limit`, and sooner another map must answer.
fn answered(checks: &mut Checks, what: &str, path: &str, limit: Duration) -> Result<()> {
    let (start, path) = (Instant::now(), path.to_owned());
    let visitor = std::thread::spawn(move || read(&path).map(|text| (text, start.elapsed())));
    std::thread::sleep(Duration::from_millis(200));
    let file = Instant::now();
    checks.equal(&format!("{what}: another map"), read("/file/one/one")?, "one".into());
    checks.that(&format!("{what}: it does not wait"), file.elapsed() < AT_ONCE);
    let (text, after) = visitor.join().map_err(|_| anyhow::anyhow!("the visitor panicked"))??;
    let failed = text.contains("No such file") || text.contains("timed out");
    checks
        .that(&format!("{what}: an error ({text}) after {} ms", after.as_millis()), failed && after < limit);
    Ok(())
}

pub fn stuck_program(checks: &mut Checks) -> Result<()> {
    answered(checks, "a program that hangs", "/stuck/key/x", HANG_LIMIT)?;
    checks.equal("the same program, another key", read("/stuck/fine/one")?, "one".into());
    Ok(())
}

pub fn frozen_mountd(checks: &mut Checks, rpc: &mut Rpc) -> Result<()> {
    rpc.mountd.signal(Signal::SIGSTOP)?;
    answered(checks, "a frozen mountd", "/net/127.0.0.1/srv/data/one/one", HANG_LIMIT)?;
    rpc.mountd.signal(Signal::SIGCONT)?;
    checks.soon("mountd goes on", || read("/net/127.0.0.1/srv/data/one/one").is_ok_and(|text| text == "one"));
    Ok(())
}

pub fn slapd(checks: &mut Checks, engine: &Daemon, slapd: &mut Process) -> Result<()> {
    slapd.signal(Signal::SIGSTOP)?;
    answered(checks, "a frozen slapd", "/bis/unknown/x", HANG_LIMIT)?;
    answered(checks, "a frozen slapd, again", "/bis/other/x", AT_ONCE)?;
    // What was asked for before is known.
    engine.signal(Signal::SIGUSR1)?;
    let gone = || !crate::peers::is_mounted("/bis/a");
    checks.that("a key of the frozen slapd expires", wait_until(gone));
    checks.equal("and is mounted again", read("/bis/a/one")?, "one".into());
    slapd.signal(Signal::SIGCONT)?;

    slapd.kill9()?;
    answered(checks, "a dead slapd", "/own/unknown/x", HANG_LIMIT)?;
    *slapd = ldap::serve()?;
    checks.soon("a new slapd is found", || {
        std::thread::sleep(Duration::from_secs(1));
        read("/own/two/two").is_ok_and(|text| text == "two")
    });
    Ok(())
}
