//! `autofs-cr criu dump` and `restore`: a tree of processes without a container runtime.

use super::runtime::Runtime;
use super::{devices, files, goes_on, install, walked};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::files::script;
use crate::plugin::Fillers;
use crate::plugin::container::Container;
use crate::process::{run, run_ok};
use crate::{cli, plugin};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Where the root file system of the tree is.
const ROOT: &str = "/c";
const IMAGES: &str = "/tmp/images/command";

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    files::make_content(Path::new("/"))?;
    plugin::program()?;
    install(checks)?;
    let below = Fillers::high()?;
    let tree = Container::start(&["/start"])?;
    ensure!(wait_until(|| tree.enter(&["cat", "/tmp/ready"]).is_ok()), "the tree is not ready");
    drop(below);

    refusals(checks, &tree)?;
    let mut tree = Tree(Some(tree));
    let was = devices(&tree)?;
    checks.step("a dump that leaves it running", tree.leave_running());
    goes_on(checks, "left running", &tree, "c")?;
    for (after, key) in [("a restore", "d"), ("a second restore", "e")] {
        if checks.step(after, tree.carry(after)).is_none() {
            return Ok(());
        }
        checks.equal(&format!("{after}: same st_dev"), devices(&tree)?, was.clone());
        goes_on(checks, after, &tree, key)?;
    }
    walked(checks, "the tree", &tree)?;
    no_process(checks)
}

/// What stands in the way is named, before anything is touched.
fn refusals(checks: &mut Checks, tree: &Container) -> Result<()> {
    let old = "/tmp/old-criu";
    fs::write(old, "#!/bin/sh\necho Version: 3.17.1\n")?;
    fs::set_permissions(old, fs::Permissions::from_mode(0o755))?;
    let mut refused = |what: &str, says: &str, options: &[&str]| -> Result<()> {
        let pid = tree.pid().to_string();
        let output =
            cli::run(&[&["criu", "dump", "-t", &pid, "-D", "/tmp/images/refused"], options].concat())?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        checks.equal(what, (output.status.code(), told.contains(says)), (Some(1), true));
        Ok(())
    };
    refused("no CRIU", "/nowhere/criu is not there: install CRIU", &["--criu", "/nowhere/criu"])?;
    refused("another program", "does not look like CRIU", &["--criu", "/bin/true"])?;
    refused("an old CRIU", "is CRIU 3.17, which has no hooks for the plugin", &["--criu", old])?;
    refused("no plugin", "the plugin autofs_cr_plugin.so is not in /tmp:", &["--libdir", "/tmp"])
}

/// What CRIU itself refuses: its own reason is told, and where its log is.
fn no_process(checks: &mut Checks) -> Result<()> {
    let output = cli::run(&["criu", "dump", "-t", "4000000", "-D", "/tmp/images/none"])?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let wanted = ["criu dump failed", "4000000", "/tmp/images/none/dump.log"];
    checks.equal("no such process: refused", output.status.code(), Some(1));
    checks.equal("with what CRIU says", wanted.into_iter().find(|text| !told.contains(text)), None);
    Ok(())
}

struct Tree(Option<Container>);

impl Tree {
    fn container(&self) -> Result<&Container> {
        self.0.as_ref().context("no tree")
    }
}

impl Runtime for Tree {
    fn exec(&self, command: &[&str]) -> Result<String> {
        self.container()?.enter(command)
    }

    fn leave_running(&self) -> Result<()> {
        let pid = self.container()?.pid().to_string();
        let told = cli::json(&["criu", "dump", "-t", &pid, "-D", "/tmp/images/left", "--leave-running"])?;
        ensure!(told["mounts"] == 4, "it reports {told}");
        Ok(())
    }

    fn pre_checkpoint(&self) -> Result<()> {
        anyhow::bail!("not of this command")
    }

    /// On a terminal, which shows what is being done when it takes long.
    fn checkpoint(&mut self, way: &str) -> Result<()> {
        let pid = self.container()?.pid().to_string();
        let images = format!("{IMAGES}.{}", way.len());
        let slow = "/tmp/slow-criu";
        script(slow, "#!/bin/sh\nsleep 2\nexec criu \"$@\"\n")?;
        let dump = format!("autofs-cr criu dump --criu {slow} -t {pid} -D {images} -- --file-locks");
        let told = run_ok(HANG_LIMIT, "script", &["-qec", &dump, "/dev/null"])?;
        ensure!(told.contains("4 autofs mounts"), "it reports {told}");
        ensure!(told.contains(" s  "), "a terminal is shown no progress: {told}");
        self.0 = None;
        Ok(())
    }

    fn restore(&mut self, way: &str) -> Result<()> {
        let images = format!("{IMAGES}.{}", way.len());
        fs::create_dir_all(ROOT)?;
        let mounted = run(HANG_LIMIT, "mountpoint", &["-q", ROOT])?.status.success();
        if !mounted {
            run_ok(HANG_LIMIT, "mount", &["--bind", "/", ROOT])?;
        }
        let output = cli::run(&["criu", "restore", "-D", &images, "--root", ROOT])?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "it failed: {errors}");
        ensure!(errors.is_empty(), "without a terminal there is progress: {errors}");
        let pid = told
            .split_once("as process ")
            .and_then(|(_, rest)| rest.split_once(':'))
            .context(told.clone())?
            .0;
        self.0 = Some(Container::restored(pid.parse()?));
        Ok(())
    }
}
