//! Child processes that cannot outlive or hang a scenario.

use crate::machine::patient;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

/// A child in a process group of its own (so that it can be a visitor), killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Start it.
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::spawn(command.process_group(0))
    }

    /// Start `ARGS...` in a session of its own, without a terminal or files of ours: what CRIU can dump.
    pub fn start_session(args: &[&str]) -> Result<Self> {
        let mut command = Command::new("setsid");
        Self::spawn(command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
    }

    fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("starting {:?}", command.get_program()))?;
        Ok(Self { child })
    }

    /// Start it with its stdin and stdout in our hands.
    pub fn start_piped(command: &mut Command) -> Result<(Self, ChildStdin, ChildStdout)> {
        let mut process = Self::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let stdin = process.child.stdin.take().context("no stdin")?;
        let stdout = process.child.stdout.take().context("no stdout")?;
        Ok((process, stdin, stdout))
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Send a signal to it alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("{signal} to {}", self.pid()))
    }

    /// Send a signal to a process that is no child of ours.
    pub fn signal_pid(pid: i32, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {pid}"))
    }

    /// `kill -9`, and wait for its end.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Does it wait for an automounter's answer?
    pub fn waits(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/wchan", self.pid()))
            .is_ok_and(|wchan| wchan.starts_with("autofs"))
    }

    /// Has it ended?
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Wait for its end and read what it wrote to a piped stdout.
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        let start = std::time::Instant::now();
        while !self.ended() {
            if start.elapsed() > limit {
                bail!("process {} did not end within {limit:?}", self.pid());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut text = String::new();
        if let Some(mut out) = self.child.stdout.take() {
            out.read_to_string(&mut text)?;
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("process {} ended with {status}: {text}", self.pid());
        }
        Ok(text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A waiter is killable; what is not will show up as a leftover in the laboratory's end.
        let _ = self.child.kill();
        crate::check::wait_until(|| self.ended());
    }
}

/// Run a command to its end under `timeout`; its output whatever its exit code.
pub fn run(limit: Duration, program: &str, args: &[&str]) -> Result<Output> {
    let limit = patient(limit);
    // Files, not pipes: a pipe ends only when everybody has closed it, also what the command left behind.
    let mut out = fs::File::from(rustix::fs::memfd_create("stdout", rustix::fs::MemfdFlags::CLOEXEC)?);
    let mut err = fs::File::from(rustix::fs::memfd_create("stderr", rustix::fs::MemfdFlags::CLOEXEC)?);
    let status = Command::new("timeout")
        .arg("--kill-after=10")
        .arg(limit.as_secs_f32().to_string())
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .process_group(0)
        .status()
        .with_context(|| format!("running {program}"))?;
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    for (file, bytes) in [(&mut out, &mut output.stdout), (&mut err, &mut output.stderr)] {
        file.rewind()?;
        file.read_to_end(bytes)?;
    }
    if matches!(status.code(), Some(124 | 137)) || status.signal().is_some() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} hung for {limit:?}, or was killed: {status}: {text}", args.join(" "));
    }
    Ok(output)
}

/// Run a command that must succeed; its stdout.
pub fn run_ok(limit: Duration, program: &str, args: &[&str]) -> Result<String> {
    let output = run(limit, program, args)?;
    if !output.status.success() {
        bail!(
            "{program} {} failed ({}): {}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
