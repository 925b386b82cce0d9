//! The real peers.

use crate::check::{HANG_LIMIT, wait_until};
use crate::process::{Process, run_ok};
use anyhow::{Result, bail};
use std::fs;
use std::process::{Command, Stdio};

/// Real automount(8) in the foreground.
pub struct Automount {
    process: Process,
}

impl Automount {
    /// Start it on `/etc/auto.master` and wait until every path of `mounts` is an autofs mount.
    pub fn start(mounts: &[&str]) -> Result<Self> {
        fs::create_dir_all("/tmp/logs")?;
        let log = fs::OpenOptions::new().create(true).append(true).open("/tmp/logs/automount.log")?;
        let process = Process::start(
            Command::new("automount")
                .args(["--foreground", "--verbose", "--dont-check-daemon"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        if !wait_until(|| mounts.iter().all(|path| is_autofs(path))) {
            bail!("automount did not mount {mounts:?}: {}", fs::read_to_string("/tmp/logs/automount.log")?);
        }
        Ok(Self { process })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// Send it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Has it ended?
    pub fn ended(&mut self) -> bool {
        self.process.ended()
    }
}

/// Real systemd as PID 1 of its own mount, pid, uts, ipc and cgroup namespaces.
pub struct Systemd {
    unshare: Process,
    pid: i32,
}

impl Systemd {
    /// Boot a target that has nothing but automount units: `(unit, Where, [Mount] lines, idle seconds)`.
    pub fn boot(units: &[(&str, &str, &str, &str)]) -> Result<Self> {
        let dir = "/etc/systemd/system";
        fs::create_dir_all(dir)?;
        let no_defaults = "[Unit]\nDefaultDependencies=no\n";
        let mut target = no_defaults.to_owned();
        for (unit, place, mount, idle) in units {
            fs::write(
                format!("{dir}/{unit}.mount"),
                format!("{no_defaults}[Mount]\nWhere={place}\n{mount}\n"),
            )?;
            fs::write(
                format!("{dir}/{unit}.automount"),
                format!("{no_defaults}[Automount]\nWhere={place}\nTimeoutIdleSec={idle}\n"),
            )?;
            target += &format!("Requires={unit}.automount\nAfter={unit}.automount\n");
        }
        fs::write(format!("{dir}/survive.target"), target)?;
        // The memory-pressure watch is off as CRIU does not restore it.
        Self::start("MEMORY_PRESSURE_WATCH=/dev/null", |systemd| {
            units.iter().all(|(_, place, _, _)| {
                systemd.mountinfo().contains(&format!(" {place} rw,relatime - autofs"))
            })
        })
    }

    /// Boot as in a container, with nothing but what is started later, for the services of packages.
    pub fn boot_for_services() -> Result<Self> {
        fs::create_dir_all("/etc/systemd/system")?;
        fs::write("/etc/systemd/system/survive.target", "[Unit]\nDefaultDependencies=no\n")?;
        Self::start("container=lab", |systemd| systemd.enter(&["systemctl", "is-system-running"]).is_ok())
    }

    fn start(environment: &str, up: impl Fn(&Self) -> bool) -> Result<Self> {
        fs::create_dir_all("/tmp/logs")?;
        let log = fs::OpenOptions::new().create(true).append(true).open("/tmp/logs/systemd.log")?;
        // --fork and --kill-child make unshare the parent that reaps PID 1 and ends it with itself.
        let script = format!(
            "mount -t proc proc /proc && mount -t tmpfs tmpfs /run && \
             exec env {environment} /lib/systemd/systemd --system --unit=survive.target \
             --log-target=console --show-status=no --crash-shell=no --dump-core=no"
        );
        let unshare = Process::start(
            Command::new("unshare")
                .args(["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child=KILL"])
                .args(["--propagation", "private", "bash", "-c", &script])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let mut systemd = Self { pid: 0, unshare };
        let up = wait_until(|| {
            systemd.pid = systemd.child().unwrap_or(0);
            systemd.pid != 0 && up(&systemd)
        });
        if !up {
            bail!("systemd did not come up: {}", fs::read_to_string("/tmp/logs/systemd.log")?);
        }
        Ok(systemd)
    }

    /// Its PID 1, as seen from here.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Run a command inside its mount and pid namespaces.
    pub fn enter(&self, command: &[&str]) -> Result<String> {
        let pid = self.pid.to_string();
        run_ok(HANG_LIMIT, "nsenter", &[&["-t", &pid, "-m", "-p", "--"], command].concat())
    }

    /// Its mount table.
    pub fn mountinfo(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.pid)).unwrap_or_default()
    }

    /// Replace the program of PID 1 by one that only sleeps, through systemd's own daemon-reexec.
    pub fn become_another_init(&self) -> Result<()> {
        self.enter(&[
            "sh",
            "-c",
            "printf '#!/bin/sh\\nexec sleep 100000\\n' >/run/init && chmod +x /run/init",
        ])?;
        self.enter(&["mount", "--bind", "/run/init", "/usr/lib/systemd/systemd"])?;
        // The manager is gone before it can answer.
        let _ = self.enter(&["timeout", "5", "systemctl", "daemon-reexec"]);
        let comm = format!("/proc/{}/comm", self.pid);
        if !wait_until(|| fs::read_to_string(&comm).is_ok_and(|comm| comm.trim() == "sleep")) {
            bail!("systemd is still PID 1");
        }
        Ok(())
    }

    fn child(&self) -> Option<i32> {
        let pid = self.unshare.pid();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .ok()?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    }
}

/// `(mount point, type, st_dev)` of every mount here, in order.
pub fn mount_table() -> Vec<(String, String, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            Some((left.get(4)?.to_string(), right.split(' ').next()?.to_string(), left.get(2)?.to_string()))
        })
        .collect()
}

/// Is there an autofs mount at `path`?
pub fn is_autofs(path: &str) -> bool {
    mount_table().iter().any(|(at, fstype, _)| at == path && fstype == "autofs")
}

/// Is anything but autofs mounted at `path`?
pub fn is_mounted(path: &str) -> bool {
    mount_table().iter().any(|(at, fstype, _)| at == path && fstype != "autofs")
}

/// The device number of the autofs mount at `path`.
pub fn autofs_dev(path: &str) -> Option<String> {
    mount_table().into_iter().find(|(at, fstype, _)| at == path && fstype == "autofs").map(|(_, _, dev)| dev)
}
