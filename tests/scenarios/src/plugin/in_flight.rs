//! Requests in flight: programs that look keys up all the time see neither errors nor hangs, however often their container is
//! dumped and restored.

use super::container::{Container, Criu};
use super::program;
use crate::check::{Checks, wait_until};
use anyhow::{Result, ensure};
use std::fs;
use std::time::{Duration, Instant};

/// Programs that walk.
const WALKERS: usize = 64;
/// Keys that they walk; those that nobody uses for a second expire.
const KEYS: usize = 40;
/// Rounds without `--rounds`.
const ROUNDS: usize = 9;

/// What a round does.
const KINDS: &[(&str, &[&str])] = &[
    ("dump and restore", &[]),
    ("dump --leave-running", &["--leave-running"]),
    ("dump --freeze-cgroup and restore", &["--freeze-cgroup", "/sys/fs/cgroup/sd"]),
];

pub fn run(checks: &mut Checks) -> Result<()> {
    let rounds = crate::rounds().unwrap_or(ROUNDS);
    let keys: Vec<String> = (0..KEYS).map(|number| format!("k{number}")).collect();
    super::exports(&keys.iter().map(String::as_str).collect::<Vec<_>>())?;
    fs::write("/etc/auto.master", "/ind /etc/auto.ind --timeout=1\n")?;
    fs::write("/etc/auto.ind", "* -fstype=bind :/srv/data/&\n")?;
    let mut container = start(Container::start_in_cgroup, &keys, WALKERS)?;
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(300));
        let (kind, options) = KINDS[round % KINDS.len()];
        let begin = Instant::now();
        let criu = Criu::with_plugin(&format!("in-flight.{}", round % 2))?;
        let dumped = criu.dump_with(&container, options);
        if checks.step(&format!("round {}: {kind}", round + 1), dumped).is_none() {
            println!("{}", plugin_lines(&criu.log("dump")));
            break;
        }
        if !options.contains(&"--leave-running") {
            ensure!(wait_until(|| container.ended()), "the dump left the container running");
            drop(container);
            container = criu.restore()?;
        }
        longest = longest.max(begin.elapsed());
    }
    let state = container.enter(&["sh", "-c", "cat /proc/$(cat /tmp/stopped)/stat"])?;
    checks.that("a program that was stopped is stopped", state.contains(" T "));
    let (lookups, errors) = stop(&container, WALKERS)?;
    println!(
        "  {lookups} lookups by {WALKERS} programs in {rounds} rounds; the longest round took {longest:?}"
    );
    checks.that("every program walked on", lookups > WALKERS * rounds);
    checks.equal("no lookup failed", errors, Vec::new());
    Ok(())
}

/// Real automount and everybody who walks.
pub(super) fn start(
    container: impl Fn(&[&str]) -> Result<Container>,
    keys: &[String],
    walkers: usize,
) -> Result<Container> {
    let files: Vec<String> = keys.iter().map(|key| format!("/ind/{key}/{key}")).collect();
    let program = program()?;
    // Each begins at another key.
    let script = format!(
        "automount --foreground --dont-check-daemon &
         while ! grep -q ' /ind autofs' /proc/mounts; do sleep 0.05; done
         sleep 1000 & echo $! >/tmp/stopped; kill -STOP $!
         set -- {}
         for n in $(seq {walkers}); do
             setsid {program} walk \"$@\" >/tmp/walker.$n & echo $! >>/tmp/walkers
             first=$1; shift; set -- \"$@\" $first
         done
         : >/run/ready; wait",
        files.join(" ")
    );
    let container = container(&["catatonit", "--", "sh", "-c", &script])?;
    ensure!(wait_until(|| container.enter(&["test", "-e", "/run/ready"]).is_ok()), "no walkers");
    Ok(container)
}

/// End the walkers: `(lookups, what went wrong)`.
pub(super) fn stop(container: &Container, walkers: usize) -> Result<(usize, Vec<String>)> {
    container.enter(&["sh", "-c", "kill -TERM $(cat /tmp/walkers)"])?;
    let ended = || {
        container.enter(&["sh", "-c", "for n in $(cat /tmp/walkers); do ! test -e /proc/$n || exit 1; done"])
    };
    ensure!(wait_until(|| ended().is_ok()), "a walker hangs");
    let text = container.enter(&["sh", "-c", "cat /tmp/walker.*"])?;
    let mut lookups = 0;
    let mut errors = Vec::new();
    let mut reported = 0;
    for line in text.lines() {
        match line.split(' ').map(str::parse::<usize>).collect::<Result<Vec<_>, _>>().as_deref() {
            Ok([done, _, _]) => (lookups, reported) = (lookups + done, reported + 1),
            _ => errors.push(line.to_owned()),
        }
    }
    ensure!(reported == walkers, "{reported} of {walkers} walkers reported");
    Ok((lookups, errors))
}

fn plugin_lines(log: &str) -> String {
    let ours = |line: &&str| line.contains("autofs-cr") || line.contains("Error");
    log.lines().filter(ours).map(|line| format!("          {line}")).collect::<Vec<_>>().join("\n")
}
