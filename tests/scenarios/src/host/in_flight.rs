//! Requests in flight: no lookup lost.

use super::{Engine, TRIGGERS, write_maps};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::cli;
use crate::files::slow_map;
use crate::peers::{Automount, is_autofs};
use crate::process::{Process, run_ok};
use crate::programs::Walkers;
use anyhow::Result;
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, Stdio};

const DIR: &str = "/tmp/checkpoint";

/// Dump/kill/restore rounds under load.
const ROUNDS: usize = 20;

pub fn run(checks: &mut Checks) -> Result<()> {
    write_maps()?;
    waiter(checks, Unread::Yes, &[])?;
    waiter(checks, Unread::No, &[])?;
    waiter(checks, Unread::Yes, &["--catatonic"])?;
    waiter(checks, Unread::No, &["--catatonic"])?;
    walkers(checks)
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Unread {
    /// The old daemon is stopped before the lookup: the packet stays in the pipe.
    Yes,
    /// The old daemon has read the packet and is at work on it (a program map that sleeps).
    No,
}

/// One program waits for a key when the dump begins.
fn waiter(checks: &mut Checks, unread: Unread, mode: &[&str]) -> Result<()> {
    let about = format!(
        "dump {}, packet {}",
        mode.join(" "),
        if unread == Unread::Yes { "unread" } else { "read by the old daemon" }
    );
    // The old daemon never answers: the map's program sleeps while /tmp/slow exists. (It is run in the mount, which would
    // stay busy if it went on for ever.)
    slow_map()?;
    fs::write("/etc/auto.master", "/slow /etc/auto.slow --timeout=600\n")?;
    fs::write("/tmp/slow", "")?;
    let mut automount = Automount::start(&["/slow"])?;
    if unread == Unread::Yes {
        automount.signal(Signal::SIGSTOP)?;
    }
    let program = Process::start(
        Command::new("cat").arg("/slow/late/late").stdin(Stdio::null()).stdout(Stdio::piped()),
    )?;
    let pid = program.pid();
    checks.soon(&format!("{about}: a program waits"), || {
        fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|wchan| wchan == "autofs_wait")
    });
    if unread == Unread::No {
        checks.soon(&format!("{about}: the old daemon works on it"), || runs("/etc/auto.slow"));
    }
    cli::ok(&[&["dump", "-D", DIR, "--replace"], mode].concat())?;
    automount.kill9()?;
    fs::remove_file("/tmp/slow")?;
    cli::ok(&["restore", "-D", DIR, "--serve"])?;
    let engine = Engine::serving("/slow")?;
    let text = checks.step(&format!("{about}: the program ends well"), program.finish(HANG_LIMIT));
    checks.equal(&format!("{about}: with its answer"), text.unwrap_or_default().trim(), "late");
    // The old daemon's program keeps the mount busy a moment longer.
    anyhow::ensure!(wait_until(|| !runs("/etc/auto.slow")), "the map's program does not end");
    engine.signal(Signal::SIGTERM)?;
    checks.soon(&format!("{about}: the engine ends, and its mount is gone"), || {
        engine.ended() && !is_autofs("/slow")
    });
    Ok(())
}

/// Is there a process with `word` in its command line?
fn runs(word: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .any(|line| line.split(|&byte| byte == 0).any(|arg| arg == word.as_bytes()))
}

/// 32 programs walk all the time while masters are killed and replaced.
fn walkers(checks: &mut Checks) -> Result<()> {
    // A trigger on which a program waits when its daemon is killed is opened by a handle, which an overlay does not have.
    for path in ["/direct", "/srv/data"] {
        fs::create_dir_all(path)?;
        run_ok(HANG_LIMIT, "mount", &["-t", "tmpfs", "handles", path])?;
    }
    write_maps()?;
    let files: Vec<String> = (0..8)
        .map(|n| format!("/short/k{n}/k{n}"))
        .chain(
            [
                "/direct/one/one",
                "/direct/tree/tree",
                "/direct/tree/sub1/sub1",
                "/direct/tree/sub2/sub2",
                "/ind/multi/x/x",
                "/ind/multi/y/y",
            ]
            .map(str::to_owned),
        )
        .collect();
    let mut automount = Automount::start(TRIGGERS)?;
    let walkers = Walkers::start(32, &files)?;
    let mut engine: Option<Engine> = None;
    for round in 1..=ROUNDS {
        cli::ok(&["dump", "-D", DIR, "--replace", "--hold"])?;
        match &engine {
            None => automount.kill9()?,
            Some(engine) => engine.kill9()?,
        }
        // Lookups come in while there is no master at all.
        std::thread::sleep(std::time::Duration::from_millis(200));
        cli::ok(&["restore", "-D", DIR, "--serve"])?;
        engine = Some(Engine::serving("/ind")?);
        println!("  round {round} of {ROUNDS}");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let (lookups, errors) = walkers.stop()?;
    println!("  {lookups} lookups by 32 walkers in {ROUNDS} rounds");
    checks.that("the walkers walked", lookups > 1000);
    checks.equal("no lookup failed", errors, Vec::new());
    if let Some(engine) = engine {
        engine.signal(Signal::SIGTERM)?;
        checks.that("the last engine ends", wait_until(|| engine.ended()));
    }
    Ok(())
}
