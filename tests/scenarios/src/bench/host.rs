//! Dump and restore of N direct mounts beside a bare loop of the same system calls.
//! (The restore leaves them catatonic: no map serves these mounts. The loop attaches them as well.)

use super::bare_trigger;
use super::figures::Figures;
use anyhow::{Result, ensure};
use autofs_cr::sys::{
    control::Control,
    mount::{self, MountFlags, Unmount},
    packet::{PacketPipe, packet_pipe},
};
use rustix::fs::CWD;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SIZES: [usize; 3] = [10, 1_000, 10_000];
const IMAGES: &str = "/mnt/images";

pub fn run(figures: &mut Figures, rounds: usize) -> Result<()> {
    let scratch = mount::new_superblock::<&str>("tmpfs", Path::new("bench"), &[], MountFlags::empty())?;
    scratch.attach(CWD, Path::new("/mnt"))?;
    for _ in 0..rounds {
        for size in SIZES {
            round(figures, size)?;
        }
    }
    Ok(mount::unmount(Path::new("/mnt"), Unmount::Lazy)?)
}

fn round(figures: &mut Figures, size: usize) -> Result<()> {
    let paths: Vec<PathBuf> = (0..size).map(|n| PathBuf::from(format!("/mnt/auto/d{n}"))).collect();
    let pipe = packet_pipe()?;
    figures.time("restore", size, "bare loop", timed(|| bare_restore(&paths, &pipe))?);
    figures.time("dump", size, "bare loop", timed(|| bare_dump(&paths))?);
    figures.time("dump", size, "autofs-cr", timed(|| command(&["dump", "-D", IMAGES]))?);
    clear(&paths)?;
    figures.time("restore", size, "autofs-cr", timed(|| command(&["restore", "-D", IMAGES]))?);
    clear(&paths)?;
    Ok(fs::remove_dir_all(IMAGES)?)
}

/// What a restore cannot do without: directory, superblock, attachment, timeout, CATATONIC, SETPIPEFD.
fn bare_restore(paths: &[PathBuf], pipe: &PacketPipe) -> Result<()> {
    let control = Control::open()?;
    for path in paths {
        let (_, root) = bare_trigger(&control, path, pipe)?;
        control.make_catatonic(root.as_fd())?;
        control.set_pipe(root.as_fd(), pipe.write.as_fd())?;
    }
    Ok(())
}

/// What a dump cannot do without: the mount table, the root's mode, and a synced image file for each mount.
fn bare_dump(paths: &[PathBuf]) -> Result<()> {
    let control = Control::open()?;
    let table = fs::read("/proc/self/mountinfo")?;
    fs::create_dir("/mnt/bare")?;
    let entries = autofs_cr::discover::mountinfo::parse(&table)?;
    let devs: Vec<_> = entries
        .into_iter()
        .filter(autofs_cr::discover::mountinfo::Entry::is_autofs)
        .map(|entry| entry.dev)
        .collect();
    for (path, dev) in paths.iter().zip(devs) {
        let root = control.open_mount(path, dev)?;
        let mode = rustix::fs::fstat(&root)?.st_mode;
        let mut file = fs::File::create(format!("/mnt/bare/{dev}"))?;
        file.write_all(format!("{mode} {}", path.display()).as_bytes())?;
        file.sync_all()?;
    }
    Ok(fs::remove_dir_all("/mnt/bare")?)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn command(args: &[&str]) -> Result<()> {
    let mut command = Command::new("autofs-cr");
    let status = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "autofs-cr {args:?} failed");
    Ok(())
}

fn clear(paths: &[PathBuf]) -> Result<()> {
    Ok(paths.iter().try_for_each(|path| mount::unmount(path, Unmount::Lazy))?)
}
