//! Scenarios of the CRIU plugin.

pub mod automount;
pub mod carry;
pub mod container;
pub mod faults;
pub mod foreign;
pub mod gaps;
pub mod hosted;
pub mod in_flight;
pub mod link;
pub mod master;
pub mod scale;
pub mod systemd;
pub mod two_hosts;

use crate::check::Checks;
use crate::process::{Process, run, run_ok};
use anyhow::{Context, Result};
use autofs_cr::sys::DevNum;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LIMIT: Duration = crate::check::HANG_LIMIT;

/// A real CRIU loads the plugin, and dumps and restores as it does without.
pub fn load(checks: &mut Checks) -> Result<()> {
    let libdir = install()?;
    let images = "/tmp/images";
    fs::create_dir_all(images)?;
    let mut program = Process::start_session(&["sleep", "1000"])?;
    let pid = program.pid().to_string();
    let dump = run(
        LIMIT,
        "criu",
        &["dump", "-t", &pid, "-D", images, "-v4", "-o", "dump.log", "--libdir", &libdir],
    )?;
    let log = fs::read_to_string(format!("{images}/dump.log"))?;
    anyhow::ensure!(
        dump.status.success(),
        "criu dump failed: {}",
        log.lines().filter(|l| l.contains("Error")).collect::<Vec<_>>().join("; ")
    );
    checks.that(
        "criu names the plugin in its log",
        log.contains("Plugin \"autofs-cr\" (version 512 hooks 12)"),
    );
    checks.that("and finds nothing wrong with it", !log.contains("Corrupted plugin"));
    checks.soon("the dump ended the program", || program.ended());
    run_ok(LIMIT, "criu", &["restore", "-d", "-D", images, "-v4", "-o", "restore.log", "--libdir", &libdir])?;
    checks.that(
        "a restore with the plugin works",
        fs::read_to_string(format!("{images}/restore.log"))?.contains("Plugin \"autofs-cr\""),
    );
    run(LIMIT, "kill", &["-9", &pid])?;
    Ok(())
}

/// This program where a container sees it.
pub fn program() -> Result<String> {
    let place = "/usr/local/bin/scenarios";
    if !std::path::Path::new(place).exists() {
        fs::copy(std::env::current_exe()?, place)?;
    }
    Ok(place.to_owned())
}

/// Throw-away file systems, unmounted when dropped.
pub struct Fillers(Vec<String>);

impl Fillers {
    /// As many as put the numbers that come next (those of a container) above what other programs on this
    /// kernel, which get the lowest free ones, take meanwhile. Not the same each time: another scenario may do so, too.
    pub fn high() -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Self::take_up_to(500 + now.subsec_micros() % 2000)
    }

    /// Take a number that was free a moment ago, and all free ones below it.
    fn take(dev: &str) -> Result<Self> {
        let (_, minor) = dev.split_once(':').context("no device number")?;
        Self::take_up_to(minor.parse()?)
    }

    /// All free numbers up to 0:`minor`.
    fn take_up_to(minor: u32) -> Result<Self> {
        let mut fillers = Self(Vec::new());
        loop {
            let path = format!("/tmp/filler/{}", fillers.0.len());
            fs::create_dir_all(&path)?;
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("filler"), path.as_str(), Some("tmpfs"), flags, None::<&str>)?;
            let dev = DevNum::from_st_dev(fs::metadata(&path)?.dev());
            fillers.0.push(path);
            if dev.minor >= minor {
                return Ok(fillers);
            }
        }
    }
}

impl Drop for Fillers {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = nix::mount::umount(path.as_str());
        }
    }
}

/// Directories to be mounted; each holds a file of its own name.
fn exports(names: &[&str]) -> Result<()> {
    for name in names {
        let dir = std::path::Path::new(master::EXPORTS).join(name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), format!("{name}\n"))?;
    }
    Ok(())
}

/// Put the plugin where CRIU can be told to look; the directory. As every installer does: a file that is in use is
/// replaced, not written over. Relays still run code of the old one.
fn install() -> Result<String> {
    let built = std::env::current_exe()?.with_file_name("libautofs_cr_plugin.so");
    let dir = PathBuf::from("/tmp/libdir");
    fs::create_dir_all(&dir)?;
    let (plugin, new) = (dir.join("autofs_cr_plugin.so"), dir.join("new"));
    fs::copy(&built, &new).with_context(|| format!("no plugin at {}", built.display()))?;
    fs::rename(new, plugin)?;
    Ok(dir.to_string_lossy().into_owned())
}
