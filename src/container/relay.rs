//! automount(8) knows a direct or offset mount by the inode of its root, which comes with every request; a restored
//! mount has another one, which nobody can choose. So a process on the host, the *relay*, stands between the kernel's
//! pipe and automount's, and puts the inode that automount knows into each request.
//!
//! There is one for each pipe that needs it: none for indirect maps, none for mounts that automount makes after the restore, which write into its own
//! pipe. It ends by itself: with the mounts (no write end is left), and with automount (no read end is left; it makes the
//! mounts catatonic then, as the kernel does without it). It is two processes: one works, the other has copies of both pipes and
//! starts it again when it is killed. What it knows is in a memory file of its own, by which the next dump finds
//! automount behind it and carries the inodes on.

use super::apart;
use super::tree::Tree;
use crate::attach;
use crate::discover::facts::{AutofsMount, End, Master, PipeEnd};
use crate::discover::pipes::PipeScan;
use crate::discover::proc::{self, TaskDir};
use crate::discover::{Target, mountinfo, survey};
use crate::sys::control::Control;
use crate::sys::packet::{Packet, V5_SIZE};
use crate::sys::{DevNum, Errno, fork, io_errno};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Its processes and its memory file are named so.
const NAME: &CStr = c"autofs-cr-relay";

/// Where the inode is in a packet.
const INODE: std::ops::Range<usize> = 16..24;

/// How the worker ends when automount is gone: as by SIGPIPE, which may be quicker.
const MASTER_GONE: i32 = 128 + libc::SIGPIPE;

/// What a relay knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Table {
    /// The master's own pipe.
    pub pipe: u64,
    /// Minor numbers of mounts, and the inodes that the master knows.
    pub inodes: HashMap<u32, u64>,
}

/// Start one that writes into `master`, the write end of the master's pipe. Returns the pipe for the kernel.
/// EPIPE when the relay ended at once.
pub fn start(master: &OwnedFd, table: &Table) -> Result<OwnedFd, Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // Packets stay packets, and a full pipe is waited for.
    rustix::fs::fcntl_setfl(master, OFlags::WRONLY | OFlags::DIRECT)?;
    let mut memory = std::fs::File::from(rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC)?);
    let bytes = postcard::to_allocvec(table).map_err(|_| Errno::IO)?;
    memory.write_all(&bytes).map_err(io_errno)?;
    let (socket, _) = apart::start(|socket| {
        let Ok((_, fds)) = apart::receive(socket) else { return };
        let _ = rustix::thread::set_name(NAME);
        let _ = rustix::process::chdir("/");
        let [read, write, _memory] = &fds[..] else { return };
        if apart::send(socket, "", &[]).is_ok() {
            watch(table, read, write);
        }
    })?;
    apart::send(&socket, "", &[read.as_fd(), master.as_fd(), memory.as_fd()])?;
    apart::receive(&socket)?;
    Ok(write)
}

/// The worker is started again until its work is done.
fn watch(table: &Table, read: &OwnedFd, write: &OwnedFd) {
    loop {
        let child = fork::fork(|| match work(table, read, write) {
            Ok(()) => 0,
            Err(Errno::PIPE) => MASTER_GONE as u8,
            Err(_) => 1,
        });
        match child.map(fork::Child::wait) {
            Ok(Ok(0)) => return,
            Ok(Ok(MASTER_GONE)) => return end_requests(read),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Automount is gone, and the kernel does not know while we read in its stead: its mounts are catatonic, so that nobody waits for it.
fn end_requests(read: &OwnedFd) {
    let (Ok(pipe), Ok(control)) = (rustix::fs::fstat(read), Control::open()) else { return };
    let mut seen = HashSet::new();
    for pid in proc::pids().unwrap_or_default() {
        let space = Target::Process(pid);
        let Ok((namespace, table)) = survey::read(&space) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let mounts = mountinfo::parse(&table).map(|entries| survey::assemble(&entries)).unwrap_or_default();
        let its = mounts.into_iter().filter(|mount| mount.options.pipe_ino == Some(pipe.st_ino));
        let targets: Vec<_> = its.map(|mount| attach::Target { path: mount.path, dev: mount.dev }).collect();
        if targets.is_empty() {
            continue;
        }
        // One that cannot be opened is catatonic with the next request: nobody reads the pipe then.
        let one = |target| attach::open_roots(&space, std::slice::from_ref(target)).unwrap_or_default();
        let roots = attach::open_roots(&space, &targets);
        for root in roots.unwrap_or_else(|_| targets.iter().flat_map(one).collect()) {
            let _ = control.make_catatonic(root.as_fd());
        }
    }
}

/// A request is taken out of the kernel's pipe when automount has it: who is killed before leaves it to the next worker. Automount
/// may get one twice then, and answers the second time that it is mounted.
///
/// `Ok` when nobody writes any more, EPIPE when nobody reads.
fn work(table: &Table, read: &OwnedFd, write: &OwnedFd) -> Result<(), Errno> {
    let (copy, copied) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT)?;
    let mut buffer = [0; 2 * V5_SIZE];
    loop {
        // A write end without readers has an error, whatever is asked for.
        let mut ends = [PollFd::new(read, PollFlags::IN), PollFd::new(write, PollFlags::empty())];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut ends, None))?;
        if ends[1].revents().contains(PollFlags::ERR) {
            return Err(Errno::PIPE);
        }
        if rustix::pipe::tee(read, &copied, V5_SIZE, SpliceFlags::empty())? == 0 {
            return Ok(());
        }
        let length = rustix::io::read(&copy, &mut buffer)?;
        let packet = &mut buffer[..length];
        translate(table, packet);
        rustix::io::retry_on_intr(|| rustix::io::write(write, packet))?;
        rustix::io::read(read, &mut buffer)?;
    }
}

/// Requests of direct and offset mounts that the table has; all others stay as they are.
fn translate(table: &Table, packet: &mut [u8]) {
    let known = Packet::parse(packet).ok().and_then(|parsed| table.inodes.get(&parsed.dev.minor));
    if let Some(inode) = known {
        packet[INODE].copy_from_slice(&inode.to_ne_bytes());
    }
}

/// Where a mount's pipe ends in a relay, take the master behind it for its master. Returns the inodes that masters
/// know, where they differ from the real ones.
pub fn look_behind(tree: &Tree, mounts: &mut [AutofsMount]) -> HashMap<DevNum, u64> {
    let mut tables: HashMap<u64, Option<(Table, Vec<PipeEnd>)>> = HashMap::new();
    let mut inodes = HashMap::new();
    for mount in mounts {
        let Some(pipe) = mount.options.pipe_ino else { continue };
        let behind = tables.entry(pipe).or_insert_with(|| {
            let mut readers = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
            let table = readers.find_map(|end| table_of(tree, end.process.pid))?;
            let ends = ends_in(tree, table.pipe);
            Some((table, ends))
        });
        let Some((table, ends)) = behind else { continue };
        let reader = ends.iter().find(|end| end.end == End::Read);
        mount.options.pipe_ino = Some(table.pipe);
        mount.master = reader.map_or(Master::Dead, |end| Master::Automount { process: end.process });
        mount.pipe_ends.clone_from(ends);
        inodes.extend(table.inodes.get(&mount.dev.minor).map(|inode| (mount.dev, *inode)));
    }
    inodes
}

/// What a process outside the tree knows, if it is a relay.
fn table_of(tree: &Tree, pid: i32) -> Option<Table> {
    if tree.by_pid(pid).is_some() {
        return None;
    }
    let process = TaskDir::process(pid).ok()?;
    let link = format!("/memfd:{} (deleted)", NAME.to_string_lossy());
    let memory = process.descriptors(|to| to == Path::new(&link)).ok()?;
    let (fd, _) = memory.first()?;
    postcard::from_bytes(&process.read(&format!("fd/{fd}")).ok()?).ok()
}

fn ends_in(tree: &Tree, pipe: u64) -> Vec<PipeEnd> {
    let mut scan = PipeScan::new([pipe].into());
    tree.members
        .iter()
        .filter_map(|member| TaskDir::process(member.pid).ok())
        .for_each(|task| scan.visit(&task));
    scan.ends.remove(&pipe).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u32, minor: u32, inode: u64) -> Vec<u8> {
        let mut packet = vec![0; V5_SIZE];
        packet[..4].copy_from_slice(&5u32.to_ne_bytes());
        packet[4..8].copy_from_slice(&kind.to_ne_bytes());
        packet[12..16].copy_from_slice(&DevNum::anonymous(minor).to_kernel().to_ne_bytes());
        packet[INODE].copy_from_slice(&inode.to_ne_bytes());
        packet
    }

    #[test]
    fn packets_get_the_inode_that_the_master_knows() {
        let table = Table { pipe: 1, inodes: [(300, 77)].into() };
        for (minor, inode) in [(300, 77), (301, 5)] {
            let mut bytes = packet(5, minor, 5);
            translate(&table, &mut bytes);
            assert_eq!(bytes, packet(5, minor, inode));
        }
        let mut short = vec![1, 2, 3];
        translate(&table, &mut short);
        assert_eq!(short, [1, 2, 3]);
    }

    #[test]
    fn a_relay_works_until_nobody_writes() {
        let (theirs, master) = rustix::pipe::pipe().unwrap();
        let (read, kernel) = rustix::pipe::pipe_with(PipeFlags::DIRECT).unwrap();
        let table = Table { pipe: 1, inodes: [(300, 77)].into() };
        rustix::io::write(&kernel, &packet(6, 300, 5)).unwrap();
        rustix::io::write(&kernel, &packet(5, 301, 5)).unwrap();
        drop(kernel);
        work(&table, &read, &master).unwrap();
        drop(master);
        let mut bytes = vec![0; 4 * V5_SIZE];
        let length = rustix::io::read(&theirs, &mut bytes).unwrap();
        assert_eq!(bytes[..length], [packet(6, 300, 77), packet(5, 301, 5)].concat());
    }

    #[test]
    fn a_relay_ends_with_the_master() {
        let (theirs, master) = rustix::pipe::pipe().unwrap();
        let (read, _kernel) = rustix::pipe::pipe_with(PipeFlags::DIRECT).unwrap();
        drop(theirs);
        let table = Table { pipe: 1, inodes: HashMap::new() };
        assert_eq!(work(&table, &read, &master), Err(Errno::PIPE));
    }

    #[test]
    fn a_request_stays_until_the_master_has_it() {
        let (theirs, master) = rustix::pipe::pipe_with(PipeFlags::DIRECT).unwrap();
        let (read, kernel) = rustix::pipe::pipe_with(PipeFlags::DIRECT).unwrap();
        let table = Table { pipe: 1, inodes: HashMap::new() };
        // The master reads nothing, and its pipe has no room for the last one.
        let room = rustix::pipe::fcntl_getpipe_size(&master).unwrap() / rustix::param::page_size();
        rustix::io::write(&master, &packet(5, 300, 0)).unwrap();
        for inode in 1..=room as u64 {
            rustix::io::write(&kernel, &packet(5, 300, inode)).unwrap();
        }
        drop(kernel);
        let bytes_in = |pipe: &OwnedFd| rustix::io::ioctl_fionread(pipe).unwrap() as usize;
        std::thread::scope(|scope| {
            scope.spawn(|| work(&table, &read, &master).unwrap());
            while bytes_in(&theirs) < room * V5_SIZE || bytes_in(&read) > V5_SIZE {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(bytes_in(&read), V5_SIZE);
            let mut bytes = vec![0; 2 * V5_SIZE];
            for inode in 0..=room as u64 {
                let length = rustix::io::read(&theirs, &mut bytes).unwrap();
                assert_eq!(bytes[..length], packet(5, 300, inode));
            }
        });
        assert_eq!(bytes_in(&read), 0);
    }
}
