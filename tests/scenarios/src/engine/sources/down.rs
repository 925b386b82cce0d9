//! Every lookup is answered, whatever hangs behind a map; and others go on.

use super::{Daemon, Rpc, ldap, read};
use crate::check::{Checks, wait_until};
use crate::process::Process;
use anyhow::Result;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// Look up what cannot be answered: an error must come within `limit`, and meanwhile another map must answer.
fn answered(checks: &mut Checks, what: &str, path: &str, limit: Duration) -> Result<()> {
    let (start, path) = (Instant::now(), path.to_owned());
    let visitor = std::thread::spawn(move || read(&path).map(|text| (text, start.elapsed())));
    std::thread::sleep(Duration::from_millis(200));
    let file = Instant::now();
    checks.equal(&format!("{what}: another map"), read("/file/one/one")?, "one".into());
    checks.that(&format!("{what}: it does not wait"), file.elapsed() < Duration::from_secs(2));
    let (text, after) = visitor.join().map_err(|_| anyhow::anyhow!("the visitor panicked"))??;
    let failed = text.contains("No such file") || text.contains("timed out");
    checks
        .that(&format!("{what}: an error ({text}) after {} ms", after.as_millis()), failed && after < limit);
    Ok(())
}

pub fn stuck_program(checks: &mut Checks) -> Result<()> {
    answered(checks, "a program that hangs", "/stuck/key/x", Duration::from_secs(6))?;
    checks.equal("the same program, another key", read("/stuck/fine/one")?, "one".into());
    Ok(())
}

pub fn frozen_mountd(checks: &mut Checks, rpc: &mut Rpc) -> Result<()> {
    rpc.mountd.signal(Signal::SIGSTOP)?;
    answered(checks, "a frozen mountd", "/net/127.0.0.1/srv/data/one/one", Duration::from_secs(12))?;
    rpc.mountd.signal(Signal::SIGCONT)?;
    checks.soon("mountd goes on", || read("/net/127.0.0.1/srv/data/one/one").is_ok_and(|text| text == "one"));
    Ok(())
}

pub fn slapd(checks: &mut Checks, engine: &Daemon, slapd: &mut Process) -> Result<()> {
    slapd.signal(Signal::SIGSTOP)?;
    answered(checks, "a frozen slapd", "/bis/unknown/x", Duration::from_secs(9))?;
    answered(checks, "a frozen slapd, again", "/bis/other/x", Duration::from_secs(2))?;
    // What was asked for before is known.
    engine.signal(Signal::SIGUSR1)?;
    let gone = || !crate::peers::is_mounted("/bis/a");
    checks.that("a key of the frozen slapd expires", wait_until(gone));
    checks.equal("and is mounted again", read("/bis/a/one")?, "one".into());
    slapd.signal(Signal::SIGCONT)?;

    slapd.kill9()?;
    answered(checks, "a dead slapd", "/own/unknown/x", Duration::from_secs(9))?;
    *slapd = ldap::serve()?;
    checks.soon("a new slapd is found", || {
        std::thread::sleep(Duration::from_secs(1));
        read("/own/two/two").is_ok_and(|text| text == "two")
    });
    Ok(())
}
