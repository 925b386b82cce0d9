//! The engine beside real automount and beside a bare loop.
//!
//! A visitor in a process group of its own opens a file behind each of [`SAMPLES`] triggers, one after another, and takes the
//! time of each. The bare loop is what no automounter can do without: read the packet, bind, READY.

use super::bare_trigger;
use super::figures::Figures;
use super::life;
use crate::check::{HANG_LIMIT, wait_until};
use crate::peers::mount_table;
use crate::process::Process;
use anyhow::{Context, Result, bail};
use autofs_cr::sys::DevNum;
use autofs_cr::sys::control::{Control, MountFd};
use autofs_cr::sys::mount::{self, MountFlags, Unmount};
use autofs_cr::sys::packet::{packet_pipe, read_packet};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::CWD;
use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Triggers that are visited.
const SAMPLES: usize = 200;
const SIZES: [usize; 3] = [100, 1000, 10_000];
const SOURCE: &str = "/srv/bench";

pub fn run(figures: &mut Figures, rounds: usize) -> Result<()> {
    fs::create_dir_all(SOURCE)?;
    // A mount of its own: binding from one that holds 10 000 others costs the kernel 0.4 ms.
    let source = mount::new_superblock::<&str>("tmpfs", Path::new("bench"), &[], MountFlags::empty())?;
    source.attach(CWD, Path::new(SOURCE))?;
    fs::write(format!("{SOURCE}/f"), "")?;
    for _ in 0..rounds {
        for size in SIZES {
            write_map(size)?;
            bare_loop(size)?.keep(figures, size, "bare loop");
            for who in ["autofs-cr", "automount"] {
                daemon(size, &mut daemon_command(who))?.keep(figures, size, who);
            }
        }
        life::expire(figures)?;
    }
    life::storm(figures)?;
    life::reload(figures)
}

/// A daemon in the foreground, on `/etc/auto.master`.
pub fn daemon_command(who: &str) -> Command {
    let mut command = Command::new(who);
    match who {
        "automount" => command.args(["--foreground", "--dont-check-daemon"]),
        _ => command.arg("automount"),
    };
    command
}

/// Where the daemons of a bench write.
pub fn log(command: &mut Command) -> Result<&mut Command> {
    let log = fs::File::create("/tmp/bench.log")?;
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
}

struct Times {
    start: Duration,
    /// Sorted.
    visits: Vec<Duration>,
    /// Resident memory with all triggers made, and after the visits, KiB; of a daemon.
    memory: Option<(u64, u64)>,
    stop: Duration,
}

impl Times {
    fn keep(self, figures: &mut Figures, size: usize, who: &'static str) {
        figures.time("start", size, who, self.start);
        figures.time("lookup, median", size, who, self.visits[self.visits.len() / 2]);
        figures.time("lookup, p99", size, who, p99(&self.visits));
        if let Some((before, after)) = self.memory {
            figures.add("memory", size, who, before as f64);
            figures.add("memory, 200 mounted", size, who, after as f64);
            figures.time("stop", size, who, self.stop);
        }
    }
}

/// Of sorted times, the one that 99 in 100 do not exceed: of a hundred the last but one, not the longest.
pub fn p99<T: Copy>(sorted: &[T]) -> T {
    sorted[(sorted.len() * 99).div_ceil(100) - 1]
}

fn trigger(n: usize) -> PathBuf {
    format!("/bench/d{n}").into()
}

pub fn write_map(size: usize) -> Result<()> {
    let lines: String = (0..size).map(|n| format!("{} :{SOURCE}\n", trigger(n).display())).collect();
    fs::write("/etc/auto.bench", lines)?;
    fs::write("/etc/auto.master", "/- /etc/auto.bench --timeout=600\n")?;
    Ok(())
}

/// What is mounted on triggers.
pub fn mounted() -> usize {
    mount_table().iter().filter(|(path, fstype, _)| fstype != "autofs" && path.starts_with("/bench/")).count()
}

fn triggers() -> usize {
    mount_table().iter().filter(|(path, fstype, _)| fstype == "autofs" && path.starts_with("/bench/")).count()
}

/// A daemon that serves the map, when all its triggers are there.
pub fn start(size: usize, command: &mut Command) -> Result<Process> {
    let process = Process::start(log(command)?)?;
    // Not the mount table while it starts: reading it slows mounting down. The last trigger is made last.
    let last = trigger(size - 1);
    let control = Control::open()?;
    let up = wait_until_fast(|| control.is_mount_point(&last).is_ok_and(|found| found.is_some()));
    if !up || !wait_until(|| triggers() == size) {
        bail!("not all triggers were made: {}", fs::read_to_string("/tmp/bench.log")?);
    }
    Ok(process)
}

/// What a daemon takes.
fn daemon(size: usize, command: &mut Command) -> Result<Times> {
    let begin = Instant::now();
    let mut process = start(size, command)?;
    let start = begin.elapsed();
    // What only the start took may be on its way back.
    std::thread::sleep(Duration::from_millis(200));
    let before = resident(process.pid())?;
    let visits = visit(size)?;
    let memory = Some((before, resident(process.pid())?));
    let begin = Instant::now();
    process.signal(Signal::SIGTERM)?;
    let ended = (0..120_000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        process.ended()
    });
    if !ended {
        bail!("it does not stop");
    }
    let stop = begin.elapsed();
    clear()?;
    Ok(Times { start, visits, memory, stop })
}

pub fn wait_until_fast(mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > HANG_LIMIT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Resident memory of a process, KiB.
fn resident(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    line.split_whitespace().nth(1).context("no number")?.parse().context("no number")
}

/// In this process, which is the master.
fn bare_loop(size: usize) -> Result<Times> {
    let begin = Instant::now();
    let pipe = packet_pipe()?;
    let control = Control::open()?;
    let mut roots: HashMap<DevNum, (PathBuf, MountFd)> = HashMap::new();
    for n in 0..size {
        let path = trigger(n);
        let (dev, root) = bare_trigger(&control, &path, &pipe)?;
        roots.insert(dev, (path, root));
    }
    let start = begin.elapsed();
    let visitor = visitor(size)?;
    for _ in 0..SAMPLES.min(size) {
        poll(&mut [PollFd::new(&pipe.read, PollFlags::IN)], None)?;
        let packet = read_packet(pipe.read.as_fd())?.context("no packet")?;
        let (path, root) = roots.get(&packet.dev).context("another mount's packet")?;
        mount::bind(CWD, Path::new(SOURCE), false)?.attach(CWD, path)?;
        control.ready(root.as_fd(), packet.token)?;
    }
    let visits = times(visitor)?;
    drop(roots);
    clear()?;
    Ok(Times { start, visits, memory: None, stop: Duration::ZERO })
}

/// Unmount whatever is left below /bench.
pub fn clear() -> Result<()> {
    loop {
        let table = mount_table();
        let left: Vec<_> = table.iter().rev().filter(|(path, ..)| path.starts_with("/bench/")).collect();
        if left.is_empty() {
            return Ok(());
        }
        for (path, ..) in left {
            mount::unmount(Path::new(path), Unmount::Lazy)?;
        }
    }
}

/// A visitor of every so many triggers, in a group of its own.
fn visitor(size: usize) -> Result<Process> {
    let exe = std::env::current_exe()?;
    Process::start(
        Command::new(exe).args(["visit", &size.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()),
    )
}

pub fn visit(size: usize) -> Result<Vec<Duration>> {
    times(visitor(size)?)
}

/// What a visitor printed, sorted.
fn times(visitor: Process) -> Result<Vec<Duration>> {
    let text = visitor.finish(2 * HANG_LIMIT)?;
    let times: Result<Vec<u64>, _> = text.lines().map(str::parse).collect();
    let mut times: Vec<_> = times?.into_iter().map(Duration::from_nanos).collect();
    times.sort();
    anyhow::ensure!(!times.is_empty(), "the visitor printed {text:?}");
    Ok(times)
}

/// `scenarios visit SIZE`: nanoseconds of each visit, a line each.
pub fn visit_main(size: &str) -> ExitCode {
    let size: usize = size.parse().unwrap_or(0);
    for sample in 0..SAMPLES.min(size) {
        let file = trigger(sample * size / SAMPLES.min(size)).join("f");
        let begin = Instant::now();
        let open = fs::File::open(&file);
        let took = begin.elapsed();
        if let Err(error) = open {
            println!("{}: {error}", file.display());
            return ExitCode::FAILURE;
        }
        println!("{}", took.as_nanos());
    }
    ExitCode::SUCCESS
}
