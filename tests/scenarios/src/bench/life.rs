//! Expiry, a thousand triggers at once with a dead server among them, and reading a large map again.

use super::{clear, daemon_command, mounted, start, visit, wait_until_fast, write_map};
use crate::check::HANG_LIMIT;
use crate::cli;
use crate::peers::is_autofs;
use crate::process::Process;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const KEYS: usize = 1000;
const ENTRIES: usize = 100_000;
const ROUNDS: usize = 5;

pub fn run() -> Result<()> {
    expire()?;
    storm()?;
    reload()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// USR1 with 100 idle mounts.
fn expire() -> Result<()> {
    write_map(100)?;
    let mut times = Vec::new();
    for who in ["autofs-cr", "automount"] {
        let mut process = start(100, &mut daemon_command(who))?;
        visit(100)?;
        ensure!(mounted() == 100, "{} mounts", mounted());
        let begin = Instant::now();
        process.signal(Signal::SIGUSR1)?;
        ensure!(wait_until_fast(|| mounted() == 0), "{} mounts do not expire", mounted());
        times.push(begin.elapsed());
        process.kill9()?;
        clear()?;
    }
    println!(
        "expire 100 idle mounts: autofs-cr {:.1} ms, automount {:.0} ms, 1/{:.0}",
        millis(times[0]),
        millis(times[1]),
        times[1].as_secs_f64() / times[0].as_secs_f64()
    );
    Ok(())
}

/// A thousand visitors at once; with `dead`, one in ten of a server that does not answer.
fn storm() -> Result<()> {
    crate::engine::dead_server()?;
    fs::write("/etc/autofs.conf", "[ autofs ]\nmount_wait = 5\n")?;
    fs::write("/etc/auto.master", "/storm /etc/auto.storm --timeout=600 nobrowse\n")?;
    let mut p99 = Vec::new();
    for dead in [false, true] {
        let lines = (0..KEYS).map(|n| match n % 10 {
            0 if dead => format!("k{n} 10.9.9.2:/x\n"),
            _ => format!("k{n} :/srv/bench\n"),
        });
        fs::write("/etc/auto.storm", lines.collect::<String>())?;
        let mut all = Vec::new();
        for _ in 0..ROUNDS {
            let mut process = Process::start(daemon_command("autofs-cr").stdin(Stdio::null()))?;
            ensure!(wait_until_fast(|| is_autofs("/storm")), "no autofs mount");
            let mut visitors = Command::new(std::env::current_exe()?);
            visitors.args(["storm", "/storm", &KEYS.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
            let told = Process::start(&mut visitors)?.finish(2 * HANG_LIMIT)?;
            let mut live: Vec<u64> = told
                .lines()
                .filter_map(|line| line.split_once(' '))
                .filter(|(key, _)| !key.ends_with('0'))
                .map(|(_, nanos)| nanos.parse().context("no number"))
                .collect::<Result<_>>()?;
            live.sort();
            ensure!(live.len() == KEYS * 9 / 10, "the visitors printed {told}");
            all.push(Duration::from_nanos(live[live.len() * 99 / 100]));
            process.signal(Signal::SIGTERM)?;
            ensure!(wait_until_fast(|| process.ended()), "it does not end");
        }
        all.sort();
        p99.push(all);
    }
    let middle = |all: &[Duration]| all[ROUNDS / 2];
    println!(
        "{KEYS} triggers at once, p99 of the live ones, median of {ROUNDS} ({:.1}-{:.1} and {:.1}-{:.1} ms): {:.1} ms, with 1 in 10 on a dead server {:.1} ms, x{:.2}",
        millis(p99[0][0]),
        millis(p99[0][ROUNDS - 1]),
        millis(p99[1][0]),
        millis(p99[1][ROUNDS - 1]),
        millis(middle(&p99[0])),
        millis(middle(&p99[1])),
        middle(&p99[1]).as_secs_f64() / middle(&p99[0]).as_secs_f64()
    );
    Ok(())
}

/// An unchanged map of [`ENTRIES`] entries is read again.
fn reload() -> Result<()> {
    let lines: String = (0..ENTRIES).map(|n| format!("k{n} -ro,nosuid server{n}:/export/{n}\n")).collect();
    fs::write("/etc/auto.large", lines)?;
    fs::write("/etc/auto.master", "/large /etc/auto.large nobrowse\n")?;
    let mut process = Process::start(daemon_command("autofs-cr").stdin(Stdio::null()))?;
    ensure!(wait_until_fast(|| is_autofs("/large") && cli::ok(&["ctl", "status"]).is_ok()), "no engine");
    let best = |run: &dyn Fn() -> Result<()>| -> Result<Duration> {
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            run()?;
            best = best.min(begin.elapsed());
        }
        Ok(best)
    };
    let read_twice = best(&|| {
        for _ in 0..2 {
            ensure!(!fs::read("/etc/auto.large")?.is_empty());
        }
        Ok(())
    })?;
    let ask = best(&|| cli::ok(&["ctl", "status"]).map(drop))?;
    let again = best(&|| cli::ok(&["ctl", "reload"]).map(drop))?;
    println!(
        "reload of an unchanged map of {ENTRIES} entries: `ctl reload` {:.2} ms, of which `ctl status` takes {:.2} ms, too; reading the file twice {:.2} ms",
        millis(again),
        millis(ask),
        millis(read_twice)
    );
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
