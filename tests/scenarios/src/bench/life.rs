//! Expiry, a thousand triggers at once with a dead server among them, and reading a large map again.

use super::engine::{clear, daemon_command, log, mounted, p99, start, visit, wait_until_fast, write_map};
use super::figures::Figures;
use crate::check::HANG_LIMIT;
use crate::peers::is_autofs;
use crate::process::Process;
use anyhow::{Context, Result, ensure};
use autofs_cr::engine::control::Request;
use autofs_cr::engine::control::client::ask;
use autofs_cr::sys::mount::{self, Unmount};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const KEYS: usize = 1000;
const ENTRIES: usize = 100_000;
/// Of a reload, which takes a moment only.
const RELOADS: usize = 5;
/// A thousand programs on a few processors: each round says little.
const STORMS: usize = 15;

/// USR1 with 100 idle mounts.
pub fn expire(figures: &mut Figures) -> Result<()> {
    write_map(100)?;
    for who in ["autofs-cr", "automount"] {
        let mut process = start(100, &mut daemon_command(who))?;
        visit(100)?;
        ensure!(mounted() == 100, "{} mounts", mounted());
        let begin = Instant::now();
        process.signal(Signal::SIGUSR1)?;
        ensure!(wait_until_fast(|| mounted() == 0), "{} mounts do not expire", mounted());
        figures.time("expire", 100, who, begin.elapsed());
        process.kill9()?;
        clear()?;
    }
    Ok(())
}

/// A thousand visitors at once, without a dead server and with one for every tenth of them.
pub fn storm(figures: &mut Figures) -> Result<()> {
    crate::engine::dead_server()?;
    fs::write("/etc/autofs.conf", "[ autofs ]\nmount_wait = 5\n")?;
    fs::write("/etc/auto.master", "/storm /etc/auto.storm --timeout=600 nobrowse\n")?;
    for _ in 0..STORMS {
        figures.time("storm, p99 of the live", KEYS, "all alive", storm_of(false)?);
        figures.time("storm, p99 of the live", KEYS, "1 in 10 dead", storm_of(true)?);
    }
    fs::remove_file("/etc/autofs.conf")?;
    Ok(())
}

fn storm_of(dead: bool) -> Result<Duration> {
    let lines = (0..KEYS).map(|n| match n % 10 {
        0 if dead => format!("k{n} 10.9.9.2:/x\n"),
        _ => format!("k{n} :/srv/bench\n"),
    });
    fs::write("/etc/auto.storm", lines.collect::<String>())?;
    let mut process = Process::start(log(&mut daemon_command("autofs-cr"))?)?;
    ensure!(wait_until_fast(|| is_autofs("/storm")), "no autofs mount");
    let mut visitors = Command::new(std::env::current_exe()?);
    visitors.args(["storm", "/storm", &KEYS.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let told = Process::start(&mut visitors)?.finish(2 * HANG_LIMIT)?;
    let live = told.lines().filter_map(|line| line.split_once(' ')).filter(|(key, _)| !key.ends_with('0'));
    let live: Result<Vec<u64>> = live.map(|(_, nanos)| nanos.parse().context("no number")).collect();
    let mut live = live?;
    live.sort();
    ensure!(live.len() == KEYS * 9 / 10, "the visitors printed {told}");
    process.kill9()?;
    mount::unmount(Path::new("/storm"), Unmount::Lazy)?;
    Ok(Duration::from_nanos(p99(&live)))
}

/// An unchanged map of [`ENTRIES`] entries is read again.
pub fn reload(figures: &mut Figures) -> Result<()> {
    let lines: String = (0..ENTRIES).map(|n| format!("k{n} -ro,nosuid server{n}:/export/{n}\n")).collect();
    fs::write("/etc/auto.large", lines)?;
    fs::write("/etc/auto.master", "/large /etc/auto.large nobrowse\n")?;
    let mut process = Process::start(log(&mut daemon_command("autofs-cr"))?)?;
    let status = || ask(None, &Request::Status);
    ensure!(wait_until_fast(|| is_autofs("/large") && status().is_ok()), "no engine");
    for _ in 0..RELOADS {
        let begin = Instant::now();
        for _ in 0..2 {
            ensure!(!fs::read("/etc/auto.large")?.is_empty());
        }
        figures.time("reload", ENTRIES, "read twice", begin.elapsed());
        let begin = Instant::now();
        ask(None, &Request::Reload)?;
        figures.time("reload", ENTRIES, "autofs-cr", begin.elapsed());
    }
    process.signal(Signal::SIGTERM)?;
    ensure!(wait_until_fast(|| process.ended()), "it does not end");
    Ok(())
}

/// `scenarios storm DIR KEYS`: look at every key at once; `KEY NANOSECONDS` of each.
pub fn storm_main(dir: &str, keys: &str) -> ExitCode {
    let keys: usize = keys.parse().unwrap_or(0);
    let barrier = Barrier::new(keys);
    let visit = |n: usize| {
        let path = format!("{dir}/k{n}/.");
        barrier.wait();
        let begin = Instant::now();
        let _ = fs::metadata(path);
        begin.elapsed()
    };
    let visit = &visit;
    let times = std::thread::scope(|scope| {
        let spawn = |n| std::thread::Builder::new().stack_size(1 << 16).spawn_scoped(scope, move || visit(n));
        let threads: Vec<_> = (0..keys).map(spawn).collect();
        threads
            .into_iter()
            .map(|thread| thread.ok().and_then(|thread| thread.join().ok()))
            .collect::<Vec<_>>()
    });
    for (n, time) in times.into_iter().enumerate() {
        let Some(time) = time else { return ExitCode::FAILURE };
        println!("k{n} {}", time.as_nanos());
    }
    ExitCode::SUCCESS
}
