//! The programs that use the mounts: walkers, and programs that sit inside.

use crate::check::HANG_LIMIT;
use crate::process::{Process, run};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// SIGTERM came.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// Have SIGTERM set [`STOP`].
pub fn stop_on_term() {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    // Blocked here and in every thread to come, so that only the waiting thread gets it.
    if term.thread_block().is_ok() {
        std::thread::spawn(move || {
            let _ = term.wait();
            STOP.store(true, Ordering::Relaxed);
        });
    }
}

/// `scenarios walk FILE...`: read every file over and over until SIGTERM; print
/// `LOOKUPS ERRORS PAUSE` (the longest time between two answers, in milliseconds of the wall clock, which goes on
/// while a program lies in an image) and the first errors. A file's content must be its own name.
pub fn walk_main(files: &[&str]) -> ExitCode {
    stop_on_term();
    let (mut lookups, mut errors) = (0u64, Vec::new());
    let (mut pause, mut answered) = (Duration::ZERO, SystemTime::now());
    'walk: loop {
        for file in files {
            if STOP.load(Ordering::Relaxed) {
                break 'walk;
            }
            lookups += 1;
            match fs::read_to_string(file) {
                Ok(text) if file.ends_with(text.trim()) => {
                    pause = pause.max(answered.elapsed().unwrap_or_default());
                    answered = SystemTime::now();
                }
                Ok(text) => errors.push(format!("{file}: holds {text:?}")),
                Err(error) => errors.push(format!("{file}: {error}")),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{lookups} {} {}", errors.len(), pause.as_millis());
    for error in errors.iter().take(5) {
        println!("{error}");
    }
    ExitCode::SUCCESS
}

/// Walkers that read files inside the mounts all the time.
pub struct Walkers(Vec<Process>);

impl Walkers {
    /// Start `count` of them; each begins at another file.
    pub fn start(count: usize, files: &[String]) -> Result<Self> {
        (0..count)
            .map(|n| {
                let mut order = files.to_vec();
                order.rotate_left(n % files.len().max(1));
                Process::start(
                    Command::new(std::env::current_exe()?)
                        .arg("walk")
                        .args(order)
                        .stdin(Stdio::null())
                        .stdout(Stdio::piped()),
                )
            })
            .collect::<Result<Vec<_>>>()
            .map(Self)
    }

    /// Stop them all; `(lookups, what went wrong)`. A walker that hangs is an error here.
    pub fn stop(self) -> Result<(u64, Vec<String>)> {
        for walker in &self.0 {
            walker.signal(Signal::SIGTERM)?;
        }
        let (mut lookups, mut errors) = (0, Vec::new());
        for walker in self.0 {
            let pid = walker.pid();
            let text = walker.finish(HANG_LIMIT).context("a walker hangs")?;
            let mut lines = text.lines();
            let first = lines.next().unwrap_or_default();
            let (done, _) =
                first.split_once(' ').with_context(|| format!("walker {pid} printed {text:?}"))?;
            lookups += done.parse::<u64>()?;
            errors.extend(lines.map(str::to_owned));
        }
        Ok((lookups, errors))
    }
}

/// `scenarios sit FILE`: open FILE, chdir to its directory; answer each line on stdin with
/// `CWD CONTENT`.
pub fn sit_main(file: &str) -> ExitCode {
    let sit = || -> Result<()> {
        let path = std::path::Path::new(file);
        let mut open = fs::File::open(path)?;
        std::env::set_current_dir(path.parent().context("no parent")?)?;
        println!("ready");
        for line in std::io::stdin().lines() {
            line?;
            let cwd = std::env::current_dir()?;
            let mut text = String::new();
            std::io::Seek::rewind(&mut open)?;
            std::io::Read::read_to_string(&mut open, &mut text)?;
            println!("{} {}", cwd.display(), text.trim());
        }
        Ok(())
    };
    match sit() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A program that sits inside a mount: its working directory and an open file are there.
pub struct Sitter {
    process: Process,
    stdin: std::process::ChildStdin,
    stdout: BufReader<ChildStdout>,
    file: String,
}

impl Sitter {
    /// Start it in the directory of `file`, which triggers the mount.
    pub fn start(file: &str) -> Result<Self> {
        Self::sit(Command::new(std::env::current_exe()?), file)
    }

    /// One in the directory of each file.
    pub fn start_all(files: &[&str]) -> Result<Vec<Self>> {
        files.iter().map(|file| Self::start(file)).collect()
    }

    /// Start it in the mount namespace of a process.
    pub fn start_in(pid: i32, file: &str) -> Result<Self> {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &pid.to_string()]).arg(std::env::current_exe()?);
        Self::sit(command, file)
    }

    fn sit(mut command: Command, file: &str) -> Result<Self> {
        command.args(["sit", file]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let (process, stdin, stdout) = Process::start_piped(&mut command)?;
        let mut sitter = Self { process, stdin, stdout: BufReader::new(stdout), file: file.to_owned() };
        let mut line = String::new();
        sitter.stdout.read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("a program could not sit at {file}: {line}");
        }
        Ok(sitter)
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Does it still see its directory (getcwd and /proc/PID/cwd) and its open file?
    pub fn goes_on(&mut self) -> bool {
        let mut ask = || -> Result<bool> {
            writeln!(self.stdin, "?")?;
            let mut line = String::new();
            self.stdout.read_line(&mut line)?;
            let dir = std::path::Path::new(&self.file).parent().context("no parent")?;
            let cwd = fs::read_link(format!("/proc/{}/cwd", self.process.pid()))?;
            let (seen, text) = line.trim().rsplit_once(' ').context("no answer")?;
            Ok(std::path::Path::new(seen) == dir && cwd == dir && self.file.ends_with(text))
        };
        ask().unwrap_or(false)
    }
}

/// Read a file in another process, in bounded time.
pub fn read_file(path: &str) -> Result<String> {
    let output = run(HANG_LIMIT, "cat", &[path])?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
