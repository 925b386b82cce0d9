//! The container runtimes, each by its own commands.

use super::files;
use crate::check::Checks;
use crate::plugin::container::{Container, Criu, errors};
use crate::process::{run, run_ok};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For commands of the runtimes, which are slow where the processor is emulated.
const LIMIT: Duration = Duration::from_secs(240);
/// The OCI container's and podman's name.
const NAME: &str = "carried";
/// podman's checkpoint, and its image for another host.
const ARCHIVE: &str = "/tmp/carried.tar";
const IMAGE: &str = "/tmp/podman-image.tar";
const PRE: &str = "/tmp/pre.tar.gz";

/// A container that a runtime started.
pub trait Runtime {
    /// Run a command in the container; its stdout.
    fn exec(&self, command: &[&str]) -> Result<String>;

    /// Checkpoint it and let it run.
    fn leave_running(&self) -> Result<()>;

    /// Write its memory down while it runs, for a checkpoint to come.
    fn pre_checkpoint(&self) -> Result<()>;

    /// What that left, for another host. Checkpoints and restores of this runtime go on from there.
    fn go_on_from_pre(&mut self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The ways to checkpoint and restore it.
    fn ways(&self) -> &'static [&'static str] {
        &["a restore", "a second restore"]
    }

    /// Checkpoint it, so that it ends.
    fn checkpoint(&mut self, way: &str) -> Result<()>;

    /// Restore what [`Self::checkpoint`] of the same way left: here, or on another host.
    fn restore(&mut self, way: &str) -> Result<()>;

    /// What another host needs to restore it: the images, and what was written to the root file system.
    fn moved(&self, _way: &str) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Where CRIU writes its logs and statistics, if that is a directory of ours.
    fn logs(&self, _way: &str) -> Option<PathBuf> {
        None
    }

    /// What is to be looked at after a restore, besides.
    fn own_checks(&self, _checks: &mut Checks, _name: &str) -> Result<()> {
        Ok(())
    }

    /// Checkpoint and restore it, in one of [`Self::ways`].
    fn carry(&mut self, way: &str) -> Result<()> {
        self.checkpoint(way)?;
        self.restore(way)
    }
}

/// The criu command.
pub struct Cli {
    container: Option<Container>,
    /// There is a pre-checkpoint.
    pre: bool,
}

impl Cli {
    pub fn start() -> Result<Self> {
        Self::prepare()?;
        Ok(Self::of(Some(Container::start(&["/start"])?)))
    }

    /// The files of [`Self::start`], and no container yet.
    pub fn prepare() -> Result<Self> {
        files::make_content(Path::new("/"))?;
        crate::plugin::program()?;
        Ok(Self::of(None))
    }

    /// A container of somebody else's, or none yet.
    pub fn of(container: Option<Container>) -> Self {
        Self { container, pre: false }
    }

    fn images(way: &str) -> String {
        way.replace(' ', "-")
    }

    fn container(&self) -> Result<&Container> {
        self.container.as_ref().context("no container")
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

    fn go_on_from_pre(&mut self) -> Vec<PathBuf> {
        self.pre = true;
        vec![Criu::images_of("pre")]
    }

    fn checkpoint(&mut self, way: &str) -> Result<()> {
        let after_pre: &[&str] = if self.pre { &["--track-mem", "--prev-images-dir", "../pre"] } else { &[] };
        Criu::as_installed(&Self::images(way))?.dump_with(self.container()?, after_pre)?;
        self.container = None;
        Ok(())
    }

    fn restore(&mut self, way: &str) -> Result<()> {
        let criu = Criu::as_installed(&Self::images(way))?;
        self.container = Some(criu.restore()?);
        Ok(())
    }

    fn moved(&self, way: &str) -> Vec<PathBuf> {
        // The second is made by our engine, the third is systemd's log.
        vec![Criu::images_of(&Self::images(way)), "/direct".into(), "/var/log/kmsg".into()]
    }

    fn logs(&self, way: &str) -> Option<PathBuf> {
        Some(Criu::images_of(&Self::images(way)))
    }
}

/// runc or crun.
pub struct Oci {
    program: &'static str,
    dir: PathBuf,
    /// There is a pre-checkpoint.
    pre: bool,
}

impl Oci {
    pub fn start(program: &'static str) -> Result<Self> {
        let oci = Self::prepare(program)?;
        oci.call(&["run", "--detach", "--bundle", &oci.path(""), NAME])?;
        Ok(oci)
    }

    /// A bundle, and no container yet.
    pub fn prepare(program: &'static str) -> Result<Self> {
        let dir = Path::new("/tmp").join(program);
        let oci = Self { program, dir, pre: false };
        for name in ["images", "left", "pre", "work"] {
            fs::create_dir_all(oci.dir.join(name))?;
        }
        files::make_bundle(program, &oci.dir)?;
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
        let result = run_ok(LIMIT, "sh", &command);
        result.map(drop).map_err(|error| {
            let read = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
            let logs = [errors(&read("work/dump.log")), errors(&read("work/restore.log")), read("errors")];
            error.context(logs.join("; "))
        })
    }

    fn checkpoint_to(&self, images: &str, options: &[&str]) -> Result<()> {
        let (images, work) = (self.path(images), self.path("work"));
        let common = ["checkpoint", "--image-path", &images, "--work-path", &work];
        self.call(&[&common, options, &[NAME]].concat())
    }
}

impl Runtime for Oci {
    fn exec(&self, command: &[&str]) -> Result<String> {
        run_ok(LIMIT, self.program, &[&["exec", NAME], command].concat())
    }

    fn leave_running(&self) -> Result<()> {
        self.checkpoint_to("left", &["--leave-running"])
    }

    fn pre_checkpoint(&self) -> Result<()> {
        self.checkpoint_to("pre", &["--pre-dump"])
    }

    fn go_on_from_pre(&mut self) -> Vec<PathBuf> {
        self.pre = true;
        vec![self.dir.join("pre")]
    }

    fn checkpoint(&mut self, way: &str) -> Result<()> {
        let after_pre: &[&str] = if self.pre { &["--parent-path", "../pre"] } else { &[] };
        self.checkpoint_to(way, after_pre)
    }

    fn restore(&mut self, way: &str) -> Result<()> {
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
            NAME,
        ])
    }

    fn moved(&self, way: &str) -> Vec<PathBuf> {
        // Places that programs write to: CRIU wants files that are open to have the size that they had.
        let written = ["direct", "run", "tmp", "var"].map(|dir| self.dir.join("rootfs").join(dir));
        [self.dir.join(way)].into_iter().chain(written).collect()
    }

    fn logs(&self, _way: &str) -> Option<PathBuf> {
        Some(self.dir.join("work"))
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        let _ = run(LIMIT, self.program, &["delete", "--force", NAME]);
    }
}

/// podman, over runc or crun.
pub struct Podman {
    runtime: &'static str,
    /// There is a pre-checkpoint.
    pre: bool,
}

impl Podman {
    /// As another host is made ready: [`IMAGE`] is here.
    pub fn prepare(runtime: &'static str) -> Result<Self> {
        let podman = Self { runtime, pre: false };
        podman.call(&["load", "--input", IMAGE])?;
        Ok(podman)
    }

    /// Its image for [`Self::prepare`].
    pub fn image() -> &'static Path {
        Path::new(IMAGE)
    }

    /// Write it.
    pub fn save_image(&self) -> Result<()> {
        if !Self::image().exists() {
            self.call(&["save", "--output", IMAGE, NAME])?;
        }
        Ok(())
    }

    pub fn start(runtime: &'static str) -> Result<Self> {
        Self::start_with(runtime, &[])
    }

    /// With more options of `podman run`.
    pub fn start_with(runtime: &'static str, options: &[&str]) -> Result<Self> {
        let podman = Self { runtime, pre: false };
        let root = Path::new("/tmp/podman");
        if !root.exists() {
            files::make_root(root)?;
            run_ok(LIMIT, "tar", &["-C", "/tmp/podman", "-cf", "/tmp/podman.tar", "."])?;
        }
        if podman.call(&["image", "exists", NAME]).is_err() {
            podman.call(&["import", "/tmp/podman.tar", NAME])?;
        }
        let run = [
            "run",
            "--detach",
            "--name",
            NAME,
            "--cap-add=SYS_ADMIN,SYS_PTRACE",
            "--device=/dev/autofs",
            "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined",
        ];
        podman.call(&[&run, options, &[NAME, "/start"]].concat())?;
        Ok(podman)
    }

    fn call(&self, args: &[&str]) -> Result<String> {
        let result = run_ok(LIMIT, "podman", &[&["--runtime", self.runtime], args].concat());
        result.map_err(|error| error.context(self.criu_errors()))
    }

    /// It keeps CRIU's logs in the container's own directory.
    fn criu_errors(&self) -> String {
        let find = "find /var/lib/containers -name dump.log -o -name restore.log | xargs -r grep -h Error";
        let found = run(LIMIT, "sh", &["-c", find]);
        found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }
}

impl Runtime for Podman {
    fn exec(&self, command: &[&str]) -> Result<String> {
        self.call(&[&["exec", NAME], command].concat())
    }

    fn leave_running(&self) -> Result<()> {
        // Not exported: podman 5.4 would lay the files of that archive over those of every later restore in place.
        self.call(&["container", "checkpoint", "--leave-running", NAME]).map(drop)
    }

    fn pre_checkpoint(&self) -> Result<()> {
        self.call(&["container", "checkpoint", "--pre-checkpoint", "--export", PRE, NAME]).map(drop)
    }

    fn go_on_from_pre(&mut self) -> Vec<PathBuf> {
        self.pre = true;
        vec![PRE.into()]
    }

    fn ways(&self) -> &'static [&'static str] {
        &["restore", "checkpoint --export, restore --import"]
    }

    fn checkpoint(&mut self, way: &str) -> Result<()> {
        if way == "restore" {
            self.call(&["container", "checkpoint", NAME])?;
        } else {
            let after_pre: &[&str] = if self.pre { &["--with-previous"] } else { &[] };
            let export = ["container", "checkpoint", "--compress", "none", "--export", ARCHIVE];
            self.call(&[&export, after_pre, &[NAME]].concat())?;
            self.call(&["rm", NAME])?;
        }
        Ok(())
    }

    fn restore(&mut self, way: &str) -> Result<()> {
        let from: &[&str] = match way {
            "restore" => &[NAME],
            _ if self.pre => &["--import-previous", PRE, "--import", ARCHIVE],
            _ => &["--import", ARCHIVE],
        };
        self.call(&[&["container", "restore"], from].concat()).map(drop)
    }

    fn moved(&self, _way: &str) -> Vec<PathBuf> {
        vec![ARCHIVE.into()]
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.call(&["rm", "--force", "--time", "0", NAME]);
    }
}
