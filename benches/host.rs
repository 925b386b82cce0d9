//! `scripts/bench host`: dump and restore of N direct mounts beside a bare loop of the same system calls, in one run.
//! (The restore leaves them catatonic: no map serves these mounts. The loop attaches them as well.)
//!
//! The machine may be shared and noisy: look at the ratio, not at the milliseconds. Each row is the median of
//! [`RUNS`] runs, loop and command taking turns.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a bench")]

use autofs_cr::sys::{
    control::Control,
    mount::{self, AutofsParams, MountFlags, MountType, Unmount},
    packet::{PacketPipe, packet_pipe},
};
use rustix::fs::CWD;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const RUNS: usize = 3;
const SIZES: [usize; 3] = [10, 1_000, 10_000];
const IMAGES: &str = "/mnt/images";

fn main() {
    // `cargo test --benches` asks every bench for its tests; this one has none.
    if std::env::args().any(|arg| arg == "--test" || arg == "--list") {
        return;
    }
    private_namespace();
    println!("{:>7}  {:<8} {:>10} {:>10} {:>7}", "mounts", "what", "loop", "autofs-cr", "ratio");
    for size in SIZES {
        let rows: Vec<_> = (0..RUNS).map(|_| round(size)).collect();
        report(size, "dump", rows.iter().map(|row| row.dump));
        report(size, "restore", rows.iter().map(|row| row.restore));
    }
}

/// Times of a loop and of the command.
type Pair = (Duration, Duration);

struct Row {
    dump: Pair,
    restore: Pair,
}

fn report(size: usize, what: &str, pairs: impl Iterator<Item = Pair>) {
    let (mut bare, mut ours): (Vec<_>, Vec<_>) = pairs.unzip();
    bare.sort();
    ours.sort();
    let (bare, ours) = (bare[RUNS / 2].as_secs_f64() * 1e3, ours[RUNS / 2].as_secs_f64() * 1e3);
    println!("{size:>7}  {what:<8} {bare:>7.1} ms {ours:>7.1} ms {:>6.2}x", ours / bare);
}

fn round(size: usize) -> Row {
    let paths: Vec<PathBuf> = (0..size).map(|n| PathBuf::from(format!("/mnt/auto/d{n}"))).collect();
    let pipe = packet_pipe().unwrap();

    let bare_restore = timed(|| bare_restore(&paths, &pipe));
    let bare_dump = timed(|| bare_dump(&paths));
    let dump = timed(|| command(&["dump", "-D", IMAGES]));
    clear(&paths);
    let restore = timed(|| command(&["restore", "-D", IMAGES]));
    clear(&paths);
    fs::remove_dir_all(IMAGES).unwrap();
    Row { dump: (bare_dump, dump), restore: (bare_restore, restore) }
}

/// What a restore cannot do without: directory, superblock, attachment, timeout, CATATONIC, SETPIPEFD.
fn bare_restore(paths: &[PathBuf], pipe: &PacketPipe) {
    let control = Control::open().unwrap();
    for path in paths {
        fs::create_dir_all(path).unwrap();
        let params = AutofsParams {
            pipe: pipe.write.as_fd(),
            pgrp: None,
            mount_type: MountType::Direct,
            protocol: (5, 5),
            uid: None,
            gid: None,
            strict_expire: false,
            ignore: false,
        };
        let detached = mount::autofs(&params, Path::new("bench"), MountFlags::empty()).unwrap();
        let dev = detached.dev().unwrap();
        detached.attach(CWD, path).unwrap();
        let root = control.open_mount(path, dev).unwrap();
        control.set_timeout(root.as_fd(), 600).unwrap();
        control.make_catatonic(root.as_fd()).unwrap();
        control.set_pipe(root.as_fd(), pipe.write.as_fd()).unwrap();
    }
}

/// What a dump cannot do without: the mount table, the root's mode, and a synced image file for each mount.
fn bare_dump(paths: &[PathBuf]) {
    let control = Control::open().unwrap();
    let table = fs::read("/proc/self/mountinfo").unwrap();
    fs::create_dir("/mnt/bare").unwrap();
    let entries = autofs_cr::discover::mountinfo::parse(&table).unwrap();
    let devs: Vec<_> = entries
        .into_iter()
        .filter(autofs_cr::discover::mountinfo::Entry::is_autofs)
        .map(|entry| entry.dev)
        .collect();
    for (path, dev) in paths.iter().zip(devs) {
        let root = control.open_mount(path, dev).unwrap();
        let mode = rustix::fs::fstat(&root).unwrap().st_mode;
        let mut file = fs::File::create(format!("/mnt/bare/{dev}")).unwrap();
        file.write_all(format!("{mode} {}", path.display()).as_bytes()).unwrap();
        file.sync_all().unwrap();
    }
    fs::remove_dir_all("/mnt/bare").unwrap();
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn command(args: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_autofs-cr"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .unwrap();
    assert!(status.success(), "autofs-cr {args:?} failed");
}

fn clear(paths: &[PathBuf]) {
    for path in paths {
        mount::unmount(path, Unmount::Lazy).unwrap();
    }
}

fn private_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("the bench needs root");
    mount::Change::propagation(mount::Propagation::Private, true).apply(CWD, Path::new("/")).unwrap();
    let scratch =
        mount::new_superblock::<&str>("tmpfs", Path::new("bench"), &[], MountFlags::empty()).unwrap();
    scratch.attach(CWD, Path::new("/mnt")).unwrap();
}
