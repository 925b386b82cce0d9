//! Who holds which end of which pipe: one look at the descriptors of every process, for all pipes at once.
//!
//! Threads share their process's descriptors, so processes suffice. A descriptor on its way through a socket is
//! in no table and is not found.

use super::escaped::escape;
use super::facts::{End, PipeEnd};
use super::proc::{Stat, TaskDir, bracketed, numbers};
use crate::sys::Errno;
use rustix::fs::{OFlags, readlinkat_raw};
use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;

/// Collects the ends of the wanted pipes, process by process.
#[derive(Debug, Default)]
pub struct PipeScan {
    wanted: HashSet<u64>,
    /// By the pipe's inode.
    pub ends: HashMap<u64, Vec<PipeEnd>>,
    /// Processes whose descriptors could not be read.
    pub unreadable: usize,
}

impl PipeScan {
    /// Look for these inodes.
    pub fn new(wanted: HashSet<u64>) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Look at one process.
    pub fn visit(&mut self, process: &TaskDir) {
        if self.wanted.is_empty() {
            return;
        }
        match self.descriptors(process) {
            Ok(found) if !found.is_empty() => self.add(process, found),
            Err(Errno::ACCESS | Errno::PERM) => self.unreadable += 1,
            _ => {}
        }
    }

    /// Number and pipe of each descriptor that is wanted.
    fn descriptors(&self, process: &TaskDir) -> Result<Vec<(i32, u64)>, Errno> {
        let dir = process.open_file("fd")?;
        let mut found = Vec::new();
        for fd in numbers(&dir)? {
            // longer links than this buffer are cut and are no pipes
            let mut buffer = [MaybeUninit::uninit(); 32];
            let pipe = match readlinkat_raw(&dir, fd.to_string(), &mut buffer) {
                Ok((link, _)) => bracketed(link, b"pipe:"),
                Err(_) => None,
            };
            found.extend(pipe.filter(|ino| self.wanted.contains(ino)).map(|ino| (fd, ino)));
        }
        Ok(found)
    }

    fn add(&mut self, process: &TaskDir, found: Vec<(i32, u64)>) {
        let Some(stat) = process.stat() else { return };
        for (fd, ino) in found {
            let Some(flags) = open_flags(process, fd) else { continue };
            let ends = self.ends.entry(ino).or_default();
            ends.extend(ends_of(flags).iter().map(|&end| end_of(process, &stat, fd, end, flags)));
        }
    }
}

fn end_of(process: &TaskDir, stat: &Stat, fd: i32, end: End, flags: u32) -> PipeEnd {
    PipeEnd { process: process.identity(stat), comm: escape(&stat.name), fd, end, flags }
}

/// A pipe that was reopened O_RDWR is both ends; one opened O_PATH is none.
fn ends_of(flags: u32) -> &'static [End] {
    match OFlags::from_bits_retain(flags) {
        flags if flags.contains(OFlags::PATH) => &[],
        flags if flags.contains(OFlags::RDWR) => &[End::Read, End::Write],
        flags if flags.contains(OFlags::WRONLY) => &[End::Write],
        _ => &[End::Read],
    }
}

/// The `flags:` line of fdinfo, in octal.
fn open_flags(process: &TaskDir, fd: i32) -> Option<u32> {
    let info = process.read(&format!("fdinfo/{fd}")).ok()?;
    let text = str::from_utf8(&info).ok()?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
    u32::from_str_radix(flags.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn both_ends_of_a_pipe_of_ours() {
        let (read, write) = std::io::pipe().unwrap();
        let ino = |fd: i32| std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino();
        let ino = ino(read.as_raw_fd());
        let pid = i32::try_from(std::process::id()).unwrap();

        let mut scan = PipeScan::new([ino].into());
        scan.visit(&TaskDir::process(pid).unwrap());
        let mut ends: Vec<_> = scan.ends[&ino].iter().map(|end| (end.fd, end.end)).collect();
        ends.sort_by_key(|&(fd, _)| fd);
        let mut expected = [(read.as_raw_fd(), End::Read), (write.as_raw_fd(), End::Write)];
        expected.sort_by_key(|&(fd, _)| fd);
        assert_eq!(ends, expected);
        assert_eq!(scan.ends[&ino][0].process.pid, pid);
    }

    #[test]
    fn access_modes() {
        assert_eq!(ends_of(0o2_000_000), [End::Read]);
        assert_eq!(ends_of(0o2_040_001), [End::Write]);
        assert_eq!(ends_of(0o2), [End::Read, End::Write]);
        assert_eq!(ends_of(OFlags::PATH.bits()), []);
    }
}
