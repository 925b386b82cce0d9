//! `autofs-cr top` in a real terminal (tmux), beside real automount and beside our engine.

use crate::check::{Checks, wait_until};
use crate::cli;
use crate::files::{export, script};
use crate::peers::{Automount, is_autofs};
use crate::process::{Process, run_ok};
use crate::programs::read_file;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = crate::check::HANG_LIMIT;
/// A program map that answers when the file `/tmp/go` is there.
const MAP: &str = "#!/bin/sh\nwhile [ ! -e /tmp/go ]; do sleep 0.1; done\necho :/srv/data/one\n";

/// With a lookup that hangs, and without.
pub fn run(checks: &mut Checks) -> Result<()> {
    export("one")?;
    script("/etc/auto.slow", MAP)?;
    fs::write("/etc/auto.master", "/slow /etc/auto.slow --timeout=600\n")?;

    let automount = Automount::start(&["/slow"])?;
    let visitor = Process::start(Command::new("cat").arg("/slow/key/one").stdout(Stdio::piped()))?;
    let terminal = Terminal::start()?;
    let waiter = |line: &str| line.contains(&format!(" {} ", visitor.pid())) && line.contains("cat");
    let waits = |line: &str| waiter(line) && line.contains("/slow") && line.contains("automount");
    checks.soon("who waits is shown, with mount and master", || terminal.shows(waits));
    let seconds = |line: &str| line.trim().split('s').next().and_then(|age| age.parse::<f32>().ok());
    checks.soon("and for how long", || terminal.shows(|line| waiter(line) && seconds(line) > Some(2.0)));
    terminal.tmux(&["resize-window", "-t", "top", "-x", "60", "-y", "8"])?;
    checks.soon("a small terminal shows as much as fits", || {
        terminal.shows(|line| waiter(line) && line.chars().count() <= 60)
    });
    terminal.tmux(&["resize-window", "-t", "top", "-x", "120", "-y", "30"])?;
    fs::write("/tmp/go", "")?;
    checks.equal("the lookup is answered", visitor.finish(LIMIT)?.trim(), "one");
    let mounted = |line: &str| line.contains("/slow") && line.contains("1 key");
    checks.soon("the mount is shown", || terminal.shows(mounted));
    checks.soon("and nobody who waits", || terminal.shows(|line| line.ends_with(" 0 waiting")));
    terminal.tmux(&["send-keys", "-t", "top", "q"])?;
    checks.soon("q ends it, and the terminal is as before", || {
        terminal.shows(|line| line == "ended with 0") && !terminal.shows(mounted)
    });
    automount.signal(Signal::SIGTERM)?;
    ensure!(wait_until(|| !is_autofs("/slow")), "automount does not end");
    drop(automount);

    let log = fs::File::create("/tmp/engine.log")?;
    let engine = Process::start(Command::new("autofs-cr").arg("automount").stdin(Stdio::null()).stderr(log))?;
    ensure!(wait_until(|| is_autofs("/slow")), "the engine does not serve");
    read_file("/slow/key/one")?;
    let text = cli::ok(&["top", "-n", "2", "-d", "0.2"])?;
    print!("{text}");
    checks.that(
        "our engine tells its lookups and times",
        text.contains("\nengine: 1 lookup so far, 0 failed; half within "),
    );
    checks.that("and from the second picture on its rate", text.contains("\nengine: 0.0 lookups/s"));
    checks.that("and who they come from", text.lines().any(|line| line.contains("cat /slow/key/one")));
    checks.that("no terminal: nothing but text", !text.contains('\x1b'));
    engine.signal(Signal::SIGTERM)?;
    Ok(())
}

/// A tmux with `autofs-cr top` in it; it ends with the laboratory's machine at the latest.
struct Terminal;

impl Terminal {
    fn start() -> Result<Self> {
        let command = "env -u NO_COLOR autofs-cr top --delay 0.3; echo ended with $?; sleep 1000";
        let terminal = Self;
        terminal.tmux(&["new-session", "-d", "-s", "top", "-x", "120", "-y", "30", command])?;
        Ok(terminal)
    }

    fn tmux(&self, args: &[&str]) -> Result<String> {
        run_ok(LIMIT, "tmux", args)
    }

    fn shows(&self, what: impl Fn(&str) -> bool) -> bool {
        self.tmux(&["capture-pane", "-p", "-t", "top"]).is_ok_and(|text| text.lines().any(what))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}
