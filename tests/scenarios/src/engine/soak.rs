//! Many triggers for a long time: idle mounts are expired and maps reloaded all the while, a server is dead, engines are
//! killed and replaced. In the end nothing is unanswered, leaked or grown.

use super::diary::{Diary, Watch, clock};
use super::{Daemon, dead_server};
use crate::check::{Checks, HANG_LIMIT};
use crate::cli;
use crate::files::export;
use crate::peers::mount_table;
use crate::process::{Process, run_ok};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

const DIR: &str = "/tmp/checkpoint";
const VISITORS: usize = 8;
const KEYS: u64 = 300;
const MOUNTS: &[&str] = &["/s", "/direct/d0"];
/// An engine lives so long in the first half.
const BETWEEN: Duration = Duration::from_secs(2);
/// No lookup may take longer, on a busy machine; the dead server's are given up after two seconds.
const LONGEST: Duration = Duration::from_secs(30);

/// How long it goes on: until both are reached.
#[derive(Clone, Copy)]
struct Goal {
    time: Duration,
    triggers: u64,
}

impl Goal {
    /// So many parts of it are done.
    fn reached(self, parts: u32, of: u32, begin: Instant, triggers: u64) -> bool {
        begin.elapsed() >= self.time * parts / of
            && triggers >= self.triggers * u64::from(parts) / u64::from(of)
    }
}

/// The short form, for every run of the tests.
pub fn short(checks: &mut Checks) -> Result<()> {
    let time = Duration::from_secs(40);
    run_for(checks, Goal { time, triggers: 50 * time.as_secs() })
}

/// `scenarios soak MINUTES [TRIGGERS]`.
pub fn long(minutes: &str, triggers: Option<&&str>) -> Result<()> {
    let time = Duration::from_secs(60 * minutes.parse::<u64>()?);
    let triggers = triggers.map_or(Ok(0), |triggers| triggers.parse())?;
    let mut checks = Checks::default();
    run_for(&mut checks, Goal { time, triggers })?;
    println!("soak: {} passed, {} failed", checks.passed, checks.failed);
    anyhow::ensure!(checks.failed == 0, "the soak failed");
    Ok(())
}

fn write_maps(changed: bool) -> Result<()> {
    // The last line comes and goes.
    let lines = if changed { 0..20 } else { 0..21 };
    let direct: String = lines.map(|n| format!("/direct/d{n} :/srv/data/f\n")).collect();
    fs::write("/etc/auto.direct", direct)?;
    fs::write("/etc/auto.s", "dead 10.9.9.2:/x\nmulti /x :/srv/data/f /y :/srv/data/f\n* :/srv/data/f\n")?;
    Ok(())
}

/// What an engine looks like.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// Memory of its own (heap and stacks), KiB.
    own: u64,
    /// Pages of its program and libraries, KiB: what it has run lately.
    code: u64,
    threads: u64,
    descriptors: usize,
}

impl Size {
    fn of(pid: i32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("a number is missing")
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self {
            own: number("RssAnon:")?,
            code: number("RssFile:")?,
            threads: number("Threads:")?,
            descriptors,
        })
    }
}

impl Display for Size {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let Self { own, code, threads, descriptors } = self;
        write!(to, "{own} KiB of its own, {code} KiB of code, {threads} threads, {descriptors} descriptors")
    }
}

/// What happened.
#[derive(Debug, Default)]
struct Counts {
    triggers: u64,
    expiries: u64,
    reloads: u64,
    killed: u64,
    restored: u64,
    lookups: u64,
    dead_lookups: u64,
    errors: u64,
    hangs: u64,
    slowest: Duration,
}

fn run_for(checks: &mut Checks, goal: Goal) -> Result<()> {
    export("f")?;
    dead_server()?;
    // A program that waits when its engine is killed: the next one opens that mount by its handle (`sys::uncovered`),
    // which the laboratory's root, an overlay, does not have. `answers` shows what happens there.
    fs::create_dir_all("/direct")?;
    run_ok(HANG_LIMIT, "mount", &["-t", "tmpfs", "direct", "/direct"])?;
    write_maps(false)?;
    fs::write("/etc/autofs.conf", "[ autofs ]\nmount_wait = 2\nnegative_timeout = 1\n")?;
    fs::write("/etc/auto.master", "/s /etc/auto.s --timeout=1\n/- /etc/auto.direct --timeout=1\n")?;
    let mut engine = Daemon::start(&[], MOUNTS)?;
    let visitors = (0..VISITORS)
        .map(|n| visitor(&format!("live{n}")))
        .chain([visitor("dead")])
        .collect::<Result<Vec<_>>>()?;

    let diary = Diary::default();
    let watch = Watch::start(visitors.iter().map(Process::pid).collect(), diary.clone());

    // Engines come and go, then one stays.
    let mut counts = Counts::default();
    let begin = Instant::now();
    while !goal.reached(1, 2, begin, counts.triggers) {
        trouble(engine.pid(), BETWEEN, &mut counts, &diary)?;
        counts.triggers += requests()?;
        engine = replace(engine, &mut counts, &diary)?;
    }
    let before = counts.triggers;
    let (mut first, mut told) = (None, begin);
    while !goal.reached(1, 1, begin, counts.triggers) {
        trouble(engine.pid(), BETWEEN, &mut counts, &diary)?;
        counts.triggers = before + requests()?;
        // What it needs for such work it has by then.
        if first.is_none() && goal.reached(3, 4, begin, counts.triggers) {
            first = Some(Size::of(engine.pid())?);
        }
        if told.elapsed() > goal.time / 10 {
            told = Instant::now();
            println!("  {:.0?}: {}", begin.elapsed(), Size::of(engine.pid())?);
        }
    }
    let time = begin.elapsed();
    diary.note("the end");
    watch.stop();

    for (n, visitor) in visitors.into_iter().enumerate() {
        ask(checks, n < VISITORS, visitor, &mut counts, &diary)?;
    }
    checks.soon("idle mounts expire", || {
        mount_table().iter().all(|(path, kind, _)| kind == "autofs" || !ours(path))
    });
    let last = Size::of(engine.pid())?;
    let first = first.unwrap_or(last);
    checks.that("the engine ends", engine.stop()?);
    let left = mount_table().iter().filter(|(path, ..)| ours(path)).count();
    checks.equal("mounts that are left", left, 0);
    checks.soon("no holder is left", || !holders());
    let Counts {
        triggers,
        expiries,
        reloads,
        killed,
        restored,
        lookups,
        dead_lookups,
        errors,
        hangs,
        slowest,
    } = counts;
    println!(
        "  {time:.0?}: {triggers} triggers, {lookups} lookups, {errors} errors, {hangs} hangs, the longest took {slowest:.1?}"
    );
    println!("  {dead_lookups} lookups on the dead server, each with its error");
    println!(
        "  {expiries} times all that was idle unmounted, {reloads} reloads, {killed} engines killed, {restored} of them restored from a dump"
    );
    println!("  the engine of the second half, after half of its time: {first}\n    and in the end: {last}");
    checks.that("there was something to do", triggers >= goal.triggers.max(50 * goal.time.as_secs()));
    checks.equal("hangs", hangs, 0);
    checks.that("no descriptor leaked", last.descriptors <= first.descriptors + 16);
    checks.that("the engine has not grown", last.own <= first.own + first.own / 4);
    Ok(())
}

/// What a visitor has seen. Those on the dead server see errors only, all others none.
fn ask(checks: &mut Checks, live: bool, visitor: Process, counts: &mut Counts, diary: &Diary) -> Result<()> {
    visitor.signal(Signal::SIGTERM)?;
    let Ok(told) = visitor.finish(HANG_LIMIT) else {
        counts.hangs += 1;
        return Ok(());
    };
    let mut lines = told.lines();
    let first = lines.next().unwrap_or_default();
    let numbers: Vec<u64> = first.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [lookups, errors, hangs, millis] = numbers[..] else { anyhow::bail!("a visitor printed {told:?}") };
    counts.hangs += hangs;
    counts.slowest = counts.slowest.max(Duration::from_millis(millis));
    for mishap in lines {
        let mut words = mishap.splitn(3, ' ');
        let mut time = || words.next().and_then(|micros| micros.parse().ok()).map(Duration::from_micros);
        let (end, took) = (time().unwrap_or_default(), time().unwrap_or_default());
        let end = SystemTime::UNIX_EPOCH + end;
        let what = words.next().unwrap_or_default();
        let trigger = what.split(' ').next().unwrap_or_default().trim_end_matches("/f");
        println!("  at {} {what}, after {took:.1?}\n{}", clock(end), diary.between(end - took, end, trigger));
    }
    if live {
        counts.lookups += lookups;
        counts.errors += errors;
        checks.equal("a visitor without an error", errors, 0);
    } else {
        counts.dead_lookups += lookups;
        checks.equal("every lookup on the dead server got its error", errors, lookups);
    }
    Ok(())
}

fn ours(path: &str) -> bool {
    path == "/s" || path.starts_with("/s/") || path.starts_with("/direct/")
}

fn holders() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .any(|comm| comm.trim() == "autofs-cr-hold")
}

/// For a time: what is idle goes, and every second the maps change.
fn trouble(pid: i32, time: Duration, counts: &mut Counts, diary: &Diary) -> Result<()> {
    let begin = Instant::now();
    let mut reloads = 0;
    while begin.elapsed() < time {
        kill(Pid::from_raw(pid), Signal::SIGUSR1)?;
        counts.expiries += 1;
        std::thread::sleep(Duration::from_millis(20));
        if begin.elapsed().as_secs() > reloads {
            reloads += 1;
            diary.note("reload");
            write_maps(reloads % 2 == 1)?;
            kill(Pid::from_raw(pid), Signal::SIGHUP)?;
        }
    }
    counts.reloads += reloads;
    Ok(())
}

/// The engine is killed between a dump and what comes after: another engine, or a restore.
fn replace(mut engine: Daemon, counts: &mut Counts, diary: &Diary) -> Result<Daemon> {
    diary.note("dump");
    cli::ok(&["dump", "-D", DIR, "--replace", "--hold"])?;
    diary.note("kill -9");
    engine.kill9()?;
    counts.killed += 1;
    if counts.killed.is_multiple_of(2) {
        diary.note("another engine");
        engine = Daemon::start(&[], MOUNTS)?;
    } else {
        counts.restored += 1;
        diary.note("restore");
        cli::ok(&["restore", "-D", DIR, "--serve"])?;
        diary.note("automount --replace");
        engine = Daemon::start(&["--replace"], MOUNTS)?;
    }
    diary.note(format!("process {} serves", engine.pid()));
    Ok(engine)
}

/// Requests that the running engine has answered with a mount.
fn requests() -> Result<u64> {
    let text = cli::ok(&["ctl", "metrics"])?;
    let lines = text.lines().filter(|line| line.starts_with("autofs_cr_requests_total{result=\"ok\"}"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

fn visitor(what: &str) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    Process::start(command.args(["soak-visit", what]).stdin(Stdio::null()).stdout(Stdio::piped()))
}

/// `scenarios soak-visit NAME`: read files behind triggers until SIGTERM; print `LOOKUPS ERRORS HANGS LONGEST`
/// (milliseconds) and the first mishaps: when each ended, how long it took (both in microseconds), its file, and what happened.
pub fn visit_main(name: &str) -> ExitCode {
    crate::programs::stop_on_term();
    let mut seed = name.bytes().fold(0x9e37_79b9_7f4a_7c15, |seed: u64, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let (mut lookups, mut hangs, mut longest, mut errors) = (0u64, 0u64, Duration::ZERO, 0u64);
    let mut mishaps = Vec::new();
    // What the dead server's key got is remembered for a second: no need to ask all the time.
    let pause = Duration::from_micros(if name == "dead" { 50_000 } else { 500 });
    while !crate::programs::STOP.load(Ordering::Relaxed) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let file = match seed % 10 {
            _ if name == "dead" => "/s/dead/f".to_owned(),
            0 => format!("/direct/d{}/f", seed / 10 % 20),
            1 => "/s/multi/x/f".to_owned(),
            2 => "/s/multi/y/f".to_owned(),
            _ => format!("/s/k{}/f", seed / 10 % KEYS),
        };
        let begin = Instant::now();
        let read = fs::read_to_string(&file);
        let took = begin.elapsed();
        longest = longest.max(took);
        lookups += 1;
        hangs += u64::from(took > LONGEST);
        errors += u64::from(read.is_err());
        let slow = took > LONGEST / 10 && name != "dead" || took > LONGEST;
        if slow || read.is_err() && name != "dead" {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let what = read.err().map_or("read".into(), |error| error.to_string());
            mishaps.push(format!("{} {} {file} {what}", now.as_micros(), took.as_micros()));
        }
        std::thread::sleep(pause);
    }
    println!("{lookups} {errors} {hangs} {}", longest.as_millis());
    for mishap in mishaps.iter().take(5) {
        println!("{mishap}");
    }
    ExitCode::SUCCESS
}
