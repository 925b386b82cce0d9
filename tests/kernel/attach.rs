//! Mounts change hands. The masters here are programs that only hold a pipe's read end.

use crate::common::{Autofs, Visitor, next_packet, private_mount_namespace, tmpfs, wait_until};
use autofs_cr::attach::{AttachError, Share, Target, abandon, attach_here, attach_to};
use autofs_cr::discover::facts::{AutofsMount, End, PipeEnd};
use autofs_cr::discover::{self, Target as Namespace};
use autofs_cr::sys::control::Control;
use autofs_cr::sys::mount::{self, AutofsParams, MountFlags, MountType};
use autofs_cr::sys::packet::{Packet, PacketPipe, packet_pipe};
use autofs_cr::sys::{DevNum, process};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::CWD;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A process that holds the read end of a pipe as its stdin, and never reads.
pub struct Holder {
    process: Visitor,
    pub pipe: u64,
}

impl Holder {
    pub fn new() -> (Self, OwnedFd) {
        Self::running("sleep", &["1000"])
    }

    /// With any program. Returns the write end, too.
    pub fn running(program: &str, arguments: &[&str]) -> (Self, OwnedFd) {
        let PacketPipe { read, write } = packet_pipe().unwrap();
        let pipe = rustix::fs::fstat(&read).unwrap().st_ino;
        let arguments: Vec<_> = arguments.iter().map(Path::new).collect();
        let process = Visitor::run_as(program, &arguments, |command| {
            command.stdin(Stdio::from(read));
        });
        // Its loader has files open at first.
        let wchan = format!("/proc/{}/wchan", process.pid());
        wait_until(|| {
            let asleep = fs::read_to_string(&wchan).ok()?;
            ["nanosleep", "do_wait"].iter().any(|call| asleep.contains(call)).then_some(())
        });
        (Self { process, pipe }, write)
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The process that it started, once that runs this program.
    pub fn only_child(&self, program: &str) -> i32 {
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        wait_until(|| {
            let pid: i32 = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            (fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == program).then_some(pid)
        })
    }

    /// What it has open: number, and what it is.
    pub fn descriptors(&self) -> Vec<(String, PathBuf)> {
        let dir = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let mut all: Vec<_> = dir
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_link(entry.path()).unwrap()))
            .collect();
        all.sort();
        all
    }
}

/// A mount that a [`Holder`] is the master of.
pub struct Owned {
    pub target: Target,
    pub master: Holder,
}

impl Owned {
    pub fn new(path: PathBuf, mount_type: MountType) -> Self {
        let (master, write) = Holder::new();
        fs::create_dir_all(&path).unwrap();
        let params =
            AutofsParams { pgrp: Some(master.pid()), ..AutofsParams::new(write.as_fd(), mount_type) };
        let mount = mount::autofs(&params, Path::new("test"), MountFlags::empty()).unwrap();
        mount.attach(CWD, &path).unwrap();
        Self { target: Target { path, dev: mount.dev().unwrap() }, master }
    }

    /// Someone who waits for it.
    pub fn waiter(&self) -> Visitor {
        let visitor = Visitor::run("stat", &[Path::new("-fc%T"), &self.target.path.join(".")]);
        wait_until(|| self.requests().then_some(()));
        visitor
    }

    /// Is a request in its pipe?
    pub fn requests(&self) -> bool {
        let read = process::copy_fd(self.master.pid(), 0).unwrap();
        let mut fds = [PollFd::new(&read, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 1
    }

    pub fn facts(&self) -> AutofsMount {
        facts(self.target.dev)
    }

    /// Is the master that it had still, or again, its master?
    pub fn is_own_masters(&self) -> bool {
        let facts = self.facts();
        facts.options.pgrp == self.master.pid() && facts.options.pipe_ino == Some(self.master.pipe)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = abandon(&Namespace::Own, std::slice::from_ref(&self.target));
    }
}

pub fn facts(dev: DevNum) -> AutofsMount {
    let survey = discover::survey(&Namespace::Own).unwrap();
    survey.mounts.into_iter().find(|mount| mount.dev == dev).unwrap()
}

/// Answer a request for a direct mount by a tmpfs.
fn serve(target: &Target, packet: &Packet) {
    assert_eq!(packet.dev, target.dev);
    tmpfs().attach(CWD, &target.path).unwrap();
    let control = Control::open().unwrap();
    // The owner may: it never waits.
    let root = control.open_mount(&target.path, target.dev).unwrap();
    control.ready(root.as_fd(), packet.token).unwrap();
}

fn was_served(visitor: Visitor) {
    let (status, text) = visitor.outcome();
    assert!(status.success(), "{text}");
    assert_eq!(text, "tmpfs\n");
}

#[test]
fn a_waiter_of_a_living_master_is_answered_by_the_next() {
    let home = private_mount_namespace();
    let mount = Owned::new(home.join("data"), MountType::Direct);
    let visitor = mount.waiter();
    let pipe = packet_pipe().unwrap();
    let waiters = attach_here(std::slice::from_ref(&mount.target), pipe.write.as_fd()).unwrap();
    assert_eq!(waiters, 1);
    let packet = next_packet(&pipe.read);
    serve(&mount.target, &packet);
    was_served(visitor);
    // Its old request is gone, and it sees no hang-up.
    assert!(!mount.requests());
    let facts = mount.facts();
    assert_eq!(facts.options.pgrp, rustix::process::getpgrp().as_raw_pid());
    let links = mount.master.descriptors();
    let own_pipe = PathBuf::from(format!("pipe:[{}]", mount.master.pipe));
    assert_eq!(links.iter().filter(|(_, link)| *link == own_pipe).count(), 2);
}

#[test]
fn a_waiter_of_a_dead_master_is_answered_by_the_next() {
    let home = private_mount_namespace();
    let mut mount = Owned::new(home.join("data"), MountType::Direct);
    let visitor = mount.waiter();
    mount.master.process.0.kill().unwrap();
    mount.master.process.0.wait().unwrap();
    let pipe = packet_pipe().unwrap();
    let waiters = attach_here(std::slice::from_ref(&mount.target), pipe.write.as_fd()).unwrap();
    assert_eq!(waiters, 1);
    let packet = next_packet(&pipe.read);
    serve(&mount.target, &packet);
    was_served(visitor);
}

#[test]
fn several_mounts_at_once_catatonic_live_covered_and_our_own() {
    let home = private_mount_namespace();
    let live = Owned::new(home.join("live"), MountType::Indirect);
    let covered = Owned::new(home.join("covered"), MountType::Direct);
    tmpfs().attach(CWD, &covered.target.path).unwrap();
    let catatonic = Autofs::mount(MountType::Direct, home.join("catatonic"));
    catatonic.control.make_catatonic(catatonic.fd.as_fd()).unwrap();
    let of = |mount: &Autofs| Target { path: mount.path.clone(), dev: mount.dev };
    let ours = Autofs::mount(MountType::Direct, home.join("ours"));
    let targets = [live.target.clone(), of(&catatonic), covered.target.clone(), of(&ours)];
    let pipe = packet_pipe().unwrap();
    let ino = rustix::fs::fstat(&pipe.read).unwrap().st_ino;
    for _again in 0..2 {
        assert_eq!(attach_here(&targets, pipe.write.as_fd()).unwrap(), 0);
        let with_pipe = |target: &&Target| facts(target.dev).options.pipe_ino == Some(ino);
        assert_eq!(targets.iter().filter(with_pipe).count(), 3);
    }
}

#[test]
fn into_another_process() {
    let home = private_mount_namespace();
    let mount = Owned::new(home.join("data"), MountType::Direct);
    let second = Owned::new(home.join("second"), MountType::Direct);
    let catatonic = Autofs::mount(MountType::Direct, home.join("catatonic"));
    catatonic.control.make_catatonic(catatonic.fd.as_fd()).unwrap();
    let visitor = mount.waiter();
    let (master, write) = Holder::new();
    drop(write);
    let before = master.descriptors();
    let targets = vec![
        mount.target.clone(),
        second.target.clone(),
        Target { path: catatonic.path.clone(), dev: catatonic.dev },
    ];
    let share = Share { read_fd: 0, targets: targets.clone() };
    let waiters = attach_to(master.pid(), &Namespace::Own, &[share]).unwrap();
    assert_eq!(waiters, 1);
    for target in targets {
        let options = facts(target.dev).options;
        assert_eq!((options.pgrp, options.pipe_ino), (master.pid(), Some(master.pipe)));
        // a child of another test has a copy of our write end until its exec
        let its = |end: &PipeEnd| end.end == End::Read && end.process.pid == master.pid();
        wait_until(|| facts(target.dev).pipe_ends.iter().all(its).then_some(()));
    }
    assert_eq!(master.descriptors(), before);

    // And from there to us, with the waiter.
    let pipe = packet_pipe().unwrap();
    let waiters = attach_here(std::slice::from_ref(&mount.target), pipe.write.as_fd()).unwrap();
    assert_eq!(waiters, 1);
    let packet = next_packet(&pipe.read);
    serve(&mount.target, &packet);
    was_served(visitor);
}

#[test]
fn a_master_of_another_pid_namespace_is_refused_and_nothing_changes() {
    let home = private_mount_namespace();
    let mount = Owned::new(home.join("data"), MountType::Direct);
    let catatonic = Autofs::mount(MountType::Direct, home.join("catatonic"));
    catatonic.control.make_catatonic(catatonic.fd.as_fd()).unwrap();
    let visitor = mount.waiter();
    let old_descriptors = mount.master.descriptors();
    let (outer, write) = Holder::running(
        "unshare",
        &["--pid", "--fork", "--kill-child", "--mount-proc", "setsid", "sleep", "1000"],
    );
    drop(write);
    let inner = outer.only_child("sleep");
    let targets = vec![Target { path: catatonic.path.clone(), dev: catatonic.dev }, mount.target.clone()];
    let shares = [Share { read_fd: 0, targets: targets.clone() }];
    for shares in [&shares[..], &[Share { read_fd: 0, targets: targets[1..].to_vec() }]] {
        let error = attach_to(inner, &Namespace::Own, shares).unwrap_err();
        let AttachError::OtherPidNamespace { master, owner, its, .. } = &error else { panic!("{error}") };
        assert_eq!(*master, inner);
        assert_ne!(owner, its);
        assert!(facts(catatonic.dev).catatonic);
        assert!(mount.is_own_masters());
        assert_eq!(mount.master.descriptors(), old_descriptors);
    }
    // Its waiter waits for its old master still, or again.
    wait_until(|| mount.requests().then_some(()));
    drop(mount);
    // It ends; whether with an error is a matter of tests beside this one, which hold all waiters there are.
    visitor.outcome();
}

#[test]
fn what_is_not_there() {
    let home = private_mount_namespace();
    let pipe = packet_pipe().unwrap();
    let target = Target { path: home, dev: DevNum::anonymous(77) };
    let error = attach_here(std::slice::from_ref(&target), pipe.write.as_fd()).unwrap_err();
    assert!(matches!(error, AttachError::Control { .. }), "{error}");
    let (master, _write) = Holder::new();
    let share = |read_fd| [Share { read_fd, targets: vec![] }];
    let error = attach_to(master.pid(), &Namespace::Own, &share(9)).unwrap_err();
    assert!(matches!(error, AttachError::Pipe { fd: 9, .. }), "{error}");
    assert!(attach_to(i32::MAX, &Namespace::Own, &share(0)).is_err());
}

/// Nobody's any more.
pub fn take_away(target: &Target) {
    abandon(&Namespace::Own, std::slice::from_ref(target)).unwrap();
}
