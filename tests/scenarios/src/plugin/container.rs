//! A container that a real CRIU dumps and restores.

use crate::check::{HANG_LIMIT, wait_until};
use crate::process::{Process, run, run_ok};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The directory that is the container's root, for CRIU's `--root`.
const ROOT: &str = "/c";

/// How long a CRIU run may take: one that hangs would do so for ever.
pub const CRIU_LIMIT: Duration = Duration::from_secs(240);

/// Makes the container's file systems and enters them; then the command is its PID 1. `/dev` has only what
/// programs need; nothing of the machine's is left open or mounted, or CRIU would refuse.
const ENTER: &str = "
set -e
mkdir -p /c && mount --bind / /c && mount --make-private /c && cd /c
mount -t proc proc proc
mount -t tmpfs dev dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/urandom c 1 9
mknod -m 600 dev/autofs c 10 235
for dir in $HOST_DIRS; do mkdir -p .$dir && mount --rbind $dir .$dir; done
mount -t tmpfs tmp tmp
mount -t tmpfs run run
mkdir -p tmp/old
pivot_root . tmp/old
cd /
umount -l /tmp/old
if [ -n \"$CGROUP\" ]; then mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup; fi
for fd in /proc/self/fd/*; do fd=${fd##*/}; if [ $fd -gt 2 ]; then eval \"exec $fd>&-\"; fi; done
exec setsid \"$@\" </dev/null >/dev/null 2>&1
";

/// A process tree in pid and mount namespaces of its own.
pub struct Container {
    /// Its parent, which reaps it; a restored container is init's child.
    _launcher: Option<Process>,
    pid: i32,
}

impl Container {
    /// Start `command` as PID 1.
    pub fn start(command: &[&str]) -> Result<Self> {
        let mut launch = Command::new("unshare");
        launch.args(["--propagation", "private"]);
        Self::enter_and_start(launch, command)
    }

    /// Start `command` as PID 1 of a container that has these directories of the host, with all that is and will be mounted
    /// below them.
    pub fn start_with_host(dirs: &[&str], command: &[&str]) -> Result<Self> {
        let mut launch = Command::new("unshare");
        launch.args(["--propagation", "slave"]).env("HOST_DIRS", dirs.join(" "));
        Self::enter_and_start(launch, command)
    }

    /// Start `command` as PID 1 of a container that manages cgroups of its own: what systemd wants.
    pub fn start_in_cgroup(command: &[&str]) -> Result<Self> {
        const JOIN: &str = "mkdir -p /sys/fs/cgroup/sd && echo 0 >/sys/fs/cgroup/sd/cgroup.procs && exec unshare --propagation private --cgroup \"$@\"";
        let mut launch = Command::new("bash");
        launch.args(["-c", JOIN, "join"]).env("CGROUP", "yes");
        Self::enter_and_start(launch, command)
    }

    fn enter_and_start(mut launch: Command, command: &[&str]) -> Result<Self> {
        let errors = fs::File::create("/tmp/container.log")?;
        // No --kill-child: CRIU would restore the death signal, and its own end would end the container.
        let launcher = Process::start(
            launch
                .args(["--mount", "--pid", "--ipc", "--uts", "--fork"])
                .args(["bash", "-c", ENTER, "enter"])
                .args(command)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(errors),
        )?;
        let mut pid = 0;
        let entered = wait_until(|| {
            pid = child_of(launcher.pid()).unwrap_or(0);
            let program = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let entering = [&b"bash"[..], b"unshare", b"setsid"].iter().any(|its| program.starts_with(its));
            // Before it is there the child is one of the commands that prepare it.
            let apart =
                fs::read_link(format!("/proc/{pid}/ns/pid")).ok() != fs::read_link("/proc/self/ns/pid").ok();
            !program.is_empty() && !entering && apart
        });
        if !entered {
            bail!("the container did not start: {}", fs::read_to_string("/tmp/container.log")?);
        }
        Ok(Self { _launcher: Some(launcher), pid })
    }

    /// One that CRIU has started.
    pub fn restored(pid: i32) -> Self {
        Self { _launcher: None, pid }
    }

    /// Its PID 1 as seen from here.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Run a command inside it, in bounded time; its stdout.
    pub fn enter(&self, command: &[&str]) -> Result<String> {
        self.enter_within(HANG_LIMIT, command)
    }

    /// As [`Self::enter`], with a limit.
    pub fn enter_within(&self, limit: Duration, command: &[&str]) -> Result<String> {
        let pid = self.pid.to_string();
        run_ok(limit, "nsenter", &[&["-t", &pid, "-m", "-p", "--"], command].concat())
    }

    /// A program is told that there is no such file. (No other error will do, nor a program that was ended at the limit.)
    pub fn lacks(&self, path: &str) -> bool {
        self.enter(&["ls", path]).is_err_and(|error| format!("{error:#}").contains("No such file"))
    }

    /// Every mount in it.
    pub fn mounts(&self) -> Vec<Mounted> {
        // From inside, so that process groups have the numbers of its own pid namespace.
        let text = self.enter(&["cat", "/proc/1/mountinfo"]).unwrap_or_default();
        text.lines().filter_map(Mounted::parse).collect()
    }

    /// The autofs mount at `path`.
    pub fn autofs(&self, path: &str) -> Option<Mounted> {
        self.mounts().into_iter().find(|mount| mount.path == path && mount.fstype == "autofs")
    }

    /// What is mounted at `path` but autofs.
    pub fn covering(&self, path: &str) -> Option<Mounted> {
        self.mounts().into_iter().find(|mount| mount.path == path && mount.fstype != "autofs")
    }

    /// Has it ended (all that CRIU dumps, it kills)?
    pub fn ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.is_empty() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = run(HANG_LIMIT, "kill", &["-9", &self.pid.to_string()]);
        // Its device numbers are free then.
        let _ = wait_until(|| self.ended());
    }
}

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    pub path: String,
    pub fstype: String,
    pub dev: String,
    pub options: String,
}

impl Mounted {
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let mut right = right.split(' ');
        Some(Self {
            path: left.get(4)?.to_string(),
            dev: left.get(2)?.to_string(),
            fstype: right.next()?.to_owned(),
            options: right.nth(1)?.to_owned(),
        })
    }

    /// An option's value; empty for a flag.
    pub fn option(&self, name: &str) -> Option<String> {
        let split = |option: &str| option.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()));
        let mut options = self.options.split(',').map(|o| split(o).unwrap_or((o.to_owned(), String::new())));
        options.find(|(its, _)| its == name).map(|(_, value)| value)
    }
}

/// A real CRIU, with our plugin or without.
pub struct Criu {
    /// Where it is told to look for plugins.
    libdir: Option<PathBuf>,
    images: PathBuf,
    /// A fault point of the plugin.
    fault: String,
    /// systemd gets new numbers where the old ones are taken.
    renumber: bool,
    /// Its program.
    program: &'static str,
}

impl Criu {
    /// With the plugin. `images`: a name for the directory.
    pub fn with_plugin(images: &str) -> Result<Self> {
        Self::new(Some(super::install()?.into()), images)
    }

    /// Without a word about plugins.
    pub fn as_installed(images: &str) -> Result<Self> {
        Self::new(None, images)
    }

    /// As it comes: a directory without plugins.
    pub fn stock(images: &str) -> Result<Self> {
        Self::new(Some("/tmp/no-plugins".into()), images)
    }

    /// The directory of that name.
    pub fn images_of(name: &str) -> PathBuf {
        Path::new("/tmp/images").join(name)
    }

    fn new(libdir: Option<PathBuf>, images: &str) -> Result<Self> {
        fs::create_dir_all("/tmp/no-plugins")?;
        let images = Self::images_of(images);
        fs::create_dir_all(&images)?;
        Ok(Self { libdir, images, fault: String::new(), renumber: false, program: "criu" })
    }

    /// The same images, with the plugin.
    pub fn and_plugin(&self) -> Result<Self> {
        Ok(Self { libdir: Some(super::install()?.into()), ..self.and_stock()? })
    }

    /// The same images, without the plugin.
    pub fn and_stock(&self) -> Result<Self> {
        let libdir = Some("/tmp/no-plugins".into());
        Ok(Self {
            libdir,
            images: self.images.clone(),
            fault: String::new(),
            renumber: false,
            program: "criu",
        })
    }

    /// The same images, with the plugin and new numbers.
    pub fn and_renumber(&self) -> Result<Self> {
        Ok(Self { renumber: true, ..self.and_plugin()? })
    }

    /// The same images, with the plugin and a fault.
    pub fn and_fault(&self, fault: &str) -> Result<Self> {
        Ok(Self { fault: fault.to_owned(), ..self.and_plugin()? })
    }

    /// Another program, with the plugin.
    pub fn of_program(program: &'static str, images: &str) -> Result<Self> {
        Ok(Self { program, ..Self::with_plugin(images)? })
    }

    /// Dump; the container ends.
    pub fn dump(&self, container: &Container) -> Result<()> {
        self.dump_with(container, &[])
    }

    /// Dump with more options.
    pub fn dump_with(&self, container: &Container, options: &[&str]) -> Result<()> {
        self.run("dump", &[&["-t", &container.pid().to_string()], options].concat())
    }

    /// Write memory down, for a dump to come.
    pub fn pre_dump(&self, container: &Container) -> Result<()> {
        self.run("pre-dump", &["-t", &container.pid().to_string()])
    }

    /// Restore, detached.
    pub fn restore(&self) -> Result<Container> {
        self.restore_with(&[])
    }

    /// Restore with more options.
    pub fn restore_with(&self, options: &[&str]) -> Result<Container> {
        let pidfile = self.images.join("pid");
        let _ = fs::remove_file(&pidfile);
        let pidfile = pidfile.to_string_lossy().into_owned();
        self.run("restore", &[&["-d", "--pidfile", &pidfile], options].concat())?;
        let pid = fs::read_to_string(&pidfile).context("CRIU wrote no pid file")?.trim().parse()?;
        Ok(Container::restored(pid))
    }

    /// The log of `dump` or `restore`.
    pub fn log(&self, action: &str) -> String {
        fs::read_to_string(self.images.join(format!("{action}.log"))).unwrap_or_default()
    }

    /// How long the dump kept programs from running: until all were stopped, and from then on.
    pub fn frozen(&self) -> Result<Duration> {
        let stats = self.images.join("stats-dump").to_string_lossy().into_owned();
        let stats: serde_json::Value =
            serde_json::from_str(&run_ok(HANG_LIMIT, "crit", &["decode", "-i", &stats])?)?;
        let micros =
            |name: &str| stats["entries"][0]["dump"][name].as_u64().with_context(|| format!("no {name}"));
        Ok(Duration::from_micros(micros("freezing_time")? + micros("frozen_time")?))
    }

    fn run(&self, action: &str, options: &[&str]) -> Result<()> {
        let images = self.images.to_string_lossy();
        let log = format!("{action}.log");
        let libdir = self.libdir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
        let libdir = libdir.iter().flat_map(|dir| ["--libdir", dir]).collect::<Vec<_>>();
        let common = [&[action, "-D", &images, "-v4", "-o", &log, "--root", ROOT], &libdir[..]].concat();
        fs::create_dir_all(ROOT)?;
        // CRIU wants the root of a restore to be a mount that shares nothing.
        let _ = run(
            HANG_LIMIT,
            "sh",
            &["-c", "{ mountpoint -q /c || mount --bind / /c; } && mount --make-private /c"],
        )?;
        let fault = format!("AUTOFS_CR_FAULT={}", self.fault);
        let renumber: &[&str] = if self.renumber { &["AUTOFS_CR_RENUMBER=yes"] } else { &[] };
        let output = run(
            CRIU_LIMIT,
            "env",
            &[&[&*fault][..], renumber, &[self.program], &common[..], options].concat(),
        )
        .with_context(|| format!("the end of its log: {}", tail(&self.log(action))))?;
        if !output.status.success() {
            bail!("criu {action} failed: {}", errors(&self.log(action)));
        }
        Ok(())
    }
}

/// The errors in a log of CRIU's. Where it tells none but that it failed: its last step before it began to undo them.
pub fn errors(log: &str) -> String {
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
    if errors.iter().all(|line| line.ends_with("FAILED.")) {
        let step = log.lines().take_while(|line| !line.contains("Unlock network")).last().unwrap_or_default();
        return step.split_once(") ").map_or(step, |(_time, text)| text.trim()).to_owned();
    }
    errors.join("; ")
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}

fn child_of(pid: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
