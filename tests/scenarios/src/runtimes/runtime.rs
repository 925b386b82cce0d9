//! The container runtimes, each by its own commands.

use super::files;
use crate::check::HANG_LIMIT;
use crate::plugin::container::{Container, Criu};
use crate::process::{run, run_ok};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A container that a runtime started.
pub trait Runtime {
    /// Run a command in the container; its stdout.
    fn exec(&self, command: &[&str]) -> Result<String>;

    /// Checkpoint it and let it run.
    fn leave_running(&self) -> Result<()>;

    /// Write its memory down while it runs, for a checkpoint to come.
    fn pre_checkpoint(&self) -> Result<()>;

    /// The ways to checkpoint and restore it.
    fn ways(&self) -> &'static [&'static str] {
        &["a restore", "a second restore"]
    }

    /// Checkpoint it, so that it ends, and restore it, in one of [`Self::ways`].
    fn carry(&mut self, way: &str) -> Result<()>;
}

/// The criu command.
pub struct Cli(Option<Container>);

impl Cli {
    pub fn start() -> Result<Self> {
        files::make_content(Path::new("/"))?;
        crate::plugin::program()?;
        Ok(Self(Some(Container::start(&["/start"])?)))
    }

    fn container(&self) -> Result<&Container> {
        self.0.as_ref().context("no container")
    }
}

impl Runtime for Cli {
    fn exec(&self, command: &[&str]) -> Result<String> {
        self.container()?.enter(command)
    }

    fn leave_running(&self) -> Result<()> {
        Criu::as_installed("left")?.dump_with(self.container()?, &["--leave-running"])
    }

    fn pre_checkpoint(&self) -> Result<()> {
        Criu::as_installed("pre")?.pre_dump(self.container()?)
    }

    fn carry(&mut self, way: &str) -> Result<()> {
        let criu = Criu::as_installed(&way.replace(' ', "-"))?;
        criu.dump(self.container()?)?;
        self.0 = None;
        self.0 = Some(criu.restore()?);
        Ok(())
    }
}

/// runc or crun.
pub struct Oci {
    program: &'static str,
    dir: PathBuf,
}

impl Oci {
    pub fn start(program: &'static str) -> Result<Self> {
        let dir = Path::new("/tmp").join(program);
        let oci = Self { program, dir };
        for name in ["images", "left", "pre", "work"] {
            fs::create_dir_all(oci.dir.join(name))?;
        }
        files::make_bundle(program, &oci.dir)?;
        oci.call(&["run", "--detach", "--bundle", &oci.path(""), "carried"])?;
        Ok(oci)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// Its standard files are those of the container: none of ours, or CRIU would find them.
    fn call(&self, args: &[&str]) -> Result<()> {
        let script = "exec \"$@\" >/dev/null 2>&1";
        let log = self.path("errors");
        let command = [&["-c", script, "sh", self.program, "--log", &log], args].concat();
        let result = run_ok(HANG_LIMIT, "sh", &command);
        result.map(drop).map_err(|error| {
            let read = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
            let logs = [read("errors"), errors(&read("work/dump.log")), errors(&read("work/restore.log"))];
            error.context(logs.concat())
        })
    }

    fn checkpoint(&self, images: &str, options: &[&str]) -> Result<()> {
        let (images, work) = (self.path(images), self.path("work"));
        let common = ["checkpoint", "--image-path", &images, "--work-path", &work];
        self.call(&[&common, options, &["carried"]].concat())
    }
}

impl Runtime for Oci {
    fn exec(&self, command: &[&str]) -> Result<String> {
        run_ok(HANG_LIMIT, self.program, &[&["exec", "carried"], command].concat())
    }

    fn leave_running(&self) -> Result<()> {
        self.checkpoint("left", &["--leave-running"])
    }

    fn pre_checkpoint(&self) -> Result<()> {
        self.checkpoint("pre", &["--pre-dump"])
    }

    fn carry(&mut self, way: &str) -> Result<()> {
        self.checkpoint(way, &[])?;
        let (images, work) = (self.path(way), self.path("work"));
        let bundle = self.path("");
        self.call(&[
            "restore",
            "--detach",
            "--image-path",
            &images,
            "--work-path",
            &work,
            "--bundle",
            &bundle,
            "carried",
        ])
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        let _ = run(HANG_LIMIT, self.program, &["delete", "--force", "carried"]);
    }
}

/// podman, over runc or crun.
pub struct Podman {
    runtime: &'static str,
}

impl Podman {
    pub fn start(runtime: &'static str) -> Result<Self> {
        let podman = Self { runtime };
        let root = Path::new("/tmp/podman");
        if !root.exists() {
            files::make_root(root)?;
            run_ok(HANG_LIMIT, "tar", &["-C", "/tmp/podman", "-cf", "/tmp/podman.tar", "."])?;
            podman.call(&["import", "/tmp/podman.tar", "carried"])?;
        }
        podman.call(&[
            "run",
            "--detach",
            "--name",
            "carried",
            "--cap-add=SYS_ADMIN,SYS_PTRACE",
            "--device=/dev/autofs",
            "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined",
            "carried",
            "/start",
        ])?;
        Ok(podman)
    }

    fn call(&self, args: &[&str]) -> Result<String> {
        let result = run_ok(HANG_LIMIT, "podman", &[&["--runtime", self.runtime], args].concat());
        result.map_err(|error| error.context(self.criu_errors()))
    }

    /// It keeps CRIU's logs in the container's own directory.
    fn criu_errors(&self) -> String {
        let find = "find /var/lib/containers -name dump.log -o -name restore.log | xargs -r grep -h Error";
        let found = run(HANG_LIMIT, "sh", &["-c", find]);
        found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }
}

impl Runtime for Podman {
    fn exec(&self, command: &[&str]) -> Result<String> {
        self.call(&[&["exec", "carried"], command].concat())
    }

    fn leave_running(&self) -> Result<()> {
        // Not exported: podman 5.4 would lay the files of that archive over those of every later restore in place.
        self.call(&["container", "checkpoint", "--leave-running", "carried"]).map(drop)
    }

    fn pre_checkpoint(&self) -> Result<()> {
        let archive = "/tmp/pre.tar.gz";
        self.call(&["container", "checkpoint", "--pre-checkpoint", "--export", archive, "carried"]).map(drop)
    }

    fn ways(&self) -> &'static [&'static str] {
        &["restore", "checkpoint --export, restore --import"]
    }

    fn carry(&mut self, way: &str) -> Result<()> {
        if way == "restore" {
            self.call(&["container", "checkpoint", "carried"])?;
            self.call(&["container", "restore", "carried"])?;
        } else {
            let archive = "/tmp/carried.tar.gz";
            self.call(&["container", "checkpoint", "--export", archive, "carried"])?;
            self.call(&["rm", "carried"])?;
            self.call(&["container", "restore", "--import", archive])?;
        }
        Ok(())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.call(&["rm", "--force", "--time", "0", "carried"]);
    }
}

fn errors(log: &str) -> String {
    log.lines().filter(|line| line.contains("Error")).map(|line| format!("{line}; ")).collect()
}
