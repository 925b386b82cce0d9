//! Which daemon runs, and what an earlier one left.

use anyhow::{Context, Result, bail};
use autofs_cr::discover::mountinfo;
use autofs_cr::engine::config::Wanted;
use autofs_cr::engine::takeover;
use autofs_cr::sys::mount::{Unmount, unmount};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Where automount(8) notes that it runs. By the same file neither starts beside the other.
pub const FLAG: &str = "/run/autofs-running";

/// The note that a daemon runs: a file with its process id. Removed when dropped.
pub struct Flag(PathBuf);

impl Flag {
    /// Write the note. Fails where another process that still runs has written it.
    pub fn raise(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        loop {
            match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    write!(file, "{}", std::process::id())
                        .with_context(|| format!("cannot write {}", path.display()))?;
                    return Ok(Self(path));
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
            }
            if let Some(pid) = living_daemon(&path) {
                bail!("automount runs already: process {pid} (--dont-check-daemon starts in spite of it)");
            }
            // Of a daemon that was killed. When somebody else was quicker, its new file is looked at.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The process that a note names, if it is a daemon that lives.
fn living_daemon(path: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let is_daemon = matches!(comm.trim(), "automount" | "autofs-cr");
    (is_daemon && pid != std::process::id()).then_some(pid)
}

/// A file with our process id. Removed when dropped.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Write it.
    pub fn write(path: &Path) -> Result<Self> {
        fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Fails where an automounter that lives serves a mount which is wanted: two would take it from each other.
pub fn nobody_serves(wanted: &[Wanted]) -> Result<()> {
    let Some((master, path)) = takeover::living(wanted)? else { return Ok(()) };
    bail!(
        "process {} serves {}: --replace takes its mounts and ends it (--dont-check-daemon takes them and lets it run)",
        master.pid,
        path.display()
    )
}

/// Detach everything at and below the mount points where an autofs mount is. Programs inside keep what they have open.
pub fn detach(wanted: &[Wanted]) -> Result<()> {
    let table = fs::read("/proc/self/mountinfo").context("no mount table")?;
    let entries = mountinfo::parse(&table).context("the mount table makes no sense")?;
    let points: Vec<PathBuf> =
        entries.iter().filter(|entry| entry.is_autofs()).map(|e| mountinfo::path(e.mount_point)).collect();
    // Later mounts first: what is mounted below goes before what it is on.
    for point in points.iter().rev() {
        if wanted.iter().flat_map(|map| &map.paths).any(|path| path == point) {
            while is_mounted(point) {
                unmount(point, Unmount::Lazy)
                    .with_context(|| format!("cannot detach {}", point.display()))?;
            }
        }
    }
    Ok(())
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let Ok(entries) = mountinfo::parse(&table) else { return false };
    entries.iter().any(|entry| mountinfo::path(entry.mount_point) == point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flag");
        // Of a process that is not there, or no daemon.
        for stale in ["4194305", "1", ""] {
            fs::write(&path, stale).unwrap();
            let flag = Flag::raise(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), std::process::id().to_string());
            drop(flag);
            assert!(!path.exists());
        }
        let file = directory.path().join("pid");
        let pid = PidFile::write(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", std::process::id()));
        drop(pid);
        assert!(!file.exists());
    }
}
