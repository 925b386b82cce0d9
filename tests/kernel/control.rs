//! The fourteen commands, and the errors that the kernel documents for them.

use crate::common::{
    Autofs, Visitor, mountinfo_line, private_mount_namespace, tmpfs, unmount_idle, wait_until,
};
use autofs_cr::sys::{
    DevNum, Errno,
    control::{Command, Control, ControlError, Covered, ExpireHow, Requester, Token},
    mount::{self, MountType},
    packet::{Kind, packet_pipe, read_packet},
};
use rustix::fs::{CWD, Mode, OFlags};
use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
};

const NOW: ExpireHow = ExpireHow { immediate: true, leaves: false, forced: false };
const TMPFS_MAGIC: u32 = 0x0102_1994;
const AUTOFS_MAGIC: u32 = 0x0187;

fn direct() -> Autofs {
    Autofs::mount(MountType::Direct, private_mount_namespace().join("direct"))
}

fn indirect() -> Autofs {
    Autofs::mount(MountType::Indirect, private_mount_namespace().join("indirect"))
}

/// A mount that another process's group owns.
fn foreign(owner: &Visitor) -> Autofs {
    let path = private_mount_namespace().join("foreign");
    Autofs::mount_with(MountType::Direct, path, |params| {
        params.pgrp = Some(owner.pid());
    })
}

fn directory(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn version_and_protocol() {
    let autofs = indirect();
    let (major, minor) = autofs.control.version().unwrap();
    assert_eq!(major, 1);
    assert!(minor >= 1);
    let (version, sub_version) = autofs.control.protocol(autofs.fd.as_fd()).unwrap();
    assert_eq!(version, 5);
    assert!(sub_version >= 2);
}

#[test]
fn open_mount_reaches_a_covered_mount_and_tells_what_is_not_there() {
    let autofs = direct();
    let control = &autofs.control;
    tmpfs().attach(CWD, &autofs.path).unwrap();
    let fd = control.open_mount(&autofs.path, autofs.dev).unwrap();
    let opened = DevNum::from_st_dev(rustix::fs::fstat(&fd).unwrap().st_dev);
    assert_eq!(opened, autofs.dev);
    let flags = rustix::io::fcntl_getfd(&fd).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    control.close_mount(fd).unwrap();

    let nothing = |path: PathBuf, dev| match control.open_mount(&path, dev) {
        Err(ControlError::NoSuchMount { path: told, .. }) => assert_eq!(told, path),
        other => panic!("{other:?}"),
    };
    nothing(autofs.path.clone(), DevNum::anonymous(0xfffff));
    nothing(autofs.path.join("no/such"), autofs.dev);
    nothing(PathBuf::from("/"), autofs.dev);
    fs::write("/mnt/file", "").unwrap();
    nothing(PathBuf::from("/mnt/file/x"), autofs.dev);
}

#[test]
fn minors_above_255_are_encoded_as_the_kernel_does() {
    let home = private_mount_namespace();
    // The kernel gives the lowest free minor.
    let mut fillers = vec![tmpfs()];
    while fillers.last().unwrap().dev().unwrap().minor < 256 {
        fillers.push(tmpfs());
    }
    let autofs = Autofs::mount(MountType::Direct, home.join("high"));
    assert!(autofs.dev.minor > 255);
    let info = autofs.control.is_mount_point(&autofs.path).unwrap().unwrap();
    assert_eq!((info.dev, info.magic), (autofs.dev, AUTOFS_MAGIC));
    let _visitor = Visitor::run("ls", &[&autofs.path]);
    assert_eq!(autofs.request().dev, autofs.dev);
}

#[test]
fn ready_lets_the_visitor_in() {
    let autofs = direct();
    let visitor = Visitor::run("ls", &[&autofs.path]);
    let request = autofs.request();
    assert_eq!(request.kind, Kind::MissingDirect);
    assert_eq!(request.pid, visitor.pid() as u32);
    let mount = tmpfs();
    mount.attach(CWD, &autofs.path).unwrap();
    fs::write(autofs.path.join("inside"), "").unwrap();
    autofs.control.ready(autofs.fd.as_fd(), request.token).unwrap();
    let (status, output) = visitor.outcome();
    assert!(status.success());
    assert_eq!(output, "inside\n");
    assert_eq!(
        autofs.control.ready(autofs.fd.as_fd(), request.token),
        Err(ControlError::UnknownToken(request.token))
    );
}

#[test]
fn fail_gives_the_visitor_that_error() {
    let autofs = indirect();
    for (errno, text) in [
        (Errno::ACCESS, "Permission denied"),
        (Errno::NOENT, "No such file"),
        (Errno::HOSTUNREACH, "No route to host"),
    ] {
        // not ls: it asks twice
        let mut visitor = Visitor::run("cat", &[&autofs.path.join("key")]);
        let request = autofs.request();
        assert_eq!((request.kind, &*request.name), (Kind::MissingIndirect, &b"key"[..]));
        let fail = |token| autofs.control.fail(autofs.fd.as_fd(), token, errno).unwrap();
        fail(request.token);
        // It asks again when a test beside this one, which holds all waiters there are, takes ENOENT for that of a catatonic mount.
        wait_until(|| {
            read_packet(autofs.pipe.read.as_fd()).unwrap().into_iter().for_each(|again| fail(again.token));
            visitor.0.try_wait().unwrap()
        });
        let (_, output) = visitor.outcome();
        assert!(output.contains(text), "{output}");
    }
    assert_eq!(
        autofs.control.fail(autofs.fd.as_fd(), Token(0), Errno::NOENT),
        Err(ControlError::UnknownToken(Token(0)))
    );
}

#[test]
fn set_pipe_attaches_a_catatonic_mount_only() {
    let autofs = direct();
    let (control, fd) = (&autofs.control, autofs.fd.as_fd());
    let pipe = packet_pipe().unwrap();
    let write = pipe.write.as_fd();
    assert_eq!(control.set_pipe(fd, write), Err(ControlError::AlreadyHasPipe));
    control.make_catatonic(fd).unwrap();
    assert!(mountinfo_line(autofs.dev).contains("fd=-1"));
    assert_eq!(control.set_pipe(fd, pipe.read.as_fd()), Err(ControlError::NotAPipe));
    assert_eq!(control.set_pipe(fd, directory(Path::new("/")).as_fd()), {
        // An O_PATH descriptor is none at all to the kernel.
        Err(ControlError::BadDescriptor(Command::SetPipeFd))
    });
    let file = fs::File::create("/mnt/file").unwrap();
    assert_eq!(control.set_pipe(fd, file.as_fd()), Err(ControlError::NotAPipe));
    rustix::fs::fcntl_setfl(write, OFlags::NONBLOCK).unwrap();
    control.set_pipe(fd, write).unwrap();
    let flags = rustix::fs::fcntl_getfl(write).unwrap();
    assert!(flags.contains(OFlags::DIRECT) && !flags.contains(OFlags::NONBLOCK));
    let _visitor = Visitor::run("ls", &[&autofs.path]);
    assert_eq!(crate::common::next_packet(&pipe.read).dev, autofs.dev);
}

#[test]
fn set_pipe_makes_the_caller_the_owner() {
    let owner = Visitor::idle();
    let autofs = foreign(&owner);
    let fd = autofs.fd.as_fd();
    assert!(mountinfo_line(autofs.dev).contains(&format!("pgrp={}", owner.pid())));
    autofs.control.make_catatonic(fd).unwrap();
    autofs.control.set_pipe(fd, autofs.pipe.write.as_fd()).unwrap();
    let ours = nix::unistd::getpgrp();
    assert!(mountinfo_line(autofs.dev).contains(&format!("pgrp={ours}")));
}

#[test]
fn set_pipe_is_refused_to_another_pid_namespace() {
    let owner = Visitor::run_as("unshare", &[], |command| {
        command.args(["--pid", "--fork", "--kill-child", "setsid", "sleep", "1000"]);
    });
    // unshare's child is number 1 of the new namespace and makes a group of its own there
    let children = format!("/proc/{0}/task/{0}/children", owner.pid());
    let inside: i32 = wait_until(|| {
        let pid = fs::read_to_string(&children).unwrap().trim().parse().ok()?;
        let own_group = nix::unistd::Pid::from_raw(pid);
        (nix::unistd::getpgid(Some(own_group)) == Ok(own_group)).then_some(pid)
    });
    let path = private_mount_namespace().join("inside");
    let autofs = Autofs::mount_with(MountType::Direct, path, |params| params.pgrp = Some(inside));
    autofs.control.make_catatonic(autofs.fd.as_fd()).unwrap();
    assert_eq!(
        autofs.control.set_pipe(autofs.fd.as_fd(), autofs.pipe.write.as_fd()),
        Err(ControlError::OtherPidNamespace)
    );
}

#[test]
fn catatonic_releases_every_waiter() {
    let autofs = direct();
    let visitors = [(); 3].map(|()| Visitor::run("cat", &[&autofs.path.join("file")]));
    autofs.request();
    visitors.iter().for_each(Visitor::until_it_waits);
    autofs.control.make_catatonic(autofs.fd.as_fd()).unwrap();
    for visitor in visitors {
        let (status, output) = visitor.outcome();
        assert!(!status.success() && output.contains("No such file"), "{output}");
    }
    autofs.control.make_catatonic(autofs.fd.as_fd()).unwrap();
}

/// Everybody is then treated as the owner is: a lookup triggers nothing.
#[test]
fn a_catatonic_direct_mount_is_an_empty_directory() {
    let autofs = direct();
    autofs.control.make_catatonic(autofs.fd.as_fd()).unwrap();
    let (status, output) = Visitor::run("ls", &[&autofs.path]).outcome();
    assert!(status.success() && output.is_empty());
}

#[test]
fn commands_by_descriptor_are_for_the_owner_until_the_mount_is_catatonic() {
    let owner = Visitor::idle();
    let autofs = foreign(&owner);
    let (control, fd, path) = (&autofs.control, autofs.fd.as_fd(), &*autofs.path);
    type Try<'a> = Box<dyn Fn() -> Result<(), ControlError> + 'a>;
    let tries: Vec<(Command, Try<'_>)> = vec![
        (Command::ProtoVer, Box::new(|| control.protocol(fd).map(drop))),
        (Command::Ready, Box::new(|| control.ready(fd, Token(1)))),
        (Command::Fail, Box::new(|| control.fail(fd, Token(1), Errno::NOENT))),
        (Command::SetPipeFd, Box::new(|| control.set_pipe(fd, autofs.pipe.write.as_fd()))),
        (Command::Timeout, Box::new(|| control.set_timeout(fd, 1).map(drop))),
        (Command::Requester, Box::new(|| control.requester(fd, path).map(drop))),
        (Command::Expire, Box::new(|| control.expire(fd, NOW).map(drop))),
        (Command::AskUmount, Box::new(|| control.may_umount(fd).map(drop))),
        (Command::IsMountPoint, Box::new(|| control.covered(fd, path).map(drop))),
    ];
    for (command, run) in &tries {
        assert_eq!(run(), Err(ControlError::NotOwner(*command)));
    }
    control.make_catatonic(fd).unwrap();
    for (command, run) in tries {
        // Would attach it again, and EXPIRE would then wait for us.
        if command == Command::SetPipeFd {
            continue;
        }
        assert!(!matches!(run(), Err(ControlError::NotOwner(_))));
    }
}

#[test]
fn other_file_systems_are_refused() {
    private_mount_namespace();
    let control = Control::open().unwrap();
    let tmpfs = rustix::fs::open("/mnt", OFlags::RDONLY, Mode::empty()).unwrap();
    assert_eq!(control.may_umount(tmpfs.as_fd()), Err(ControlError::NotAutofs(Command::AskUmount)));
}

#[test]
fn without_privilege_only_version_and_is_mount_point_answer() {
    let autofs = direct();
    // of this thread only
    caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap();
    autofs.control.version().unwrap();
    assert!(autofs.control.is_mount_point(&autofs.path).unwrap().is_some());
    assert_eq!(
        autofs.control.may_umount(autofs.fd.as_fd()),
        Err(ControlError::NoPrivilege(Command::AskUmount))
    );
    caps::raise(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap();
}

#[test]
fn timeouts_of_mounts() {
    let autofs = direct();
    let fd = autofs.fd.as_fd();
    assert_eq!(autofs.control.set_timeout(fd, 300), Ok(0));
    assert_eq!(autofs.control.set_timeout(fd, 0), Ok(300));
    assert_eq!(autofs.control.set_dentry_timeout(fd, b"key", Some(1)), Err(ControlError::NoKeyTimeouts));
}

#[test]
fn timeouts_of_keys() {
    let autofs = indirect();
    let (control, fd) = (&autofs.control, autofs.fd.as_fd());
    assert!(control.protocol(fd).unwrap().1 >= 6, "the kernel is too old for this test");
    control.set_timeout(fd, 300).unwrap();
    fs::create_dir(autofs.path.join("key")).unwrap();
    assert_eq!(control.set_dentry_timeout(fd, b"key", Some(5)), Ok(300));
    assert_eq!(control.set_dentry_timeout(fd, b"key", Some(0)), Ok(5));
    assert_eq!(control.set_dentry_timeout(fd, b"key", None), Ok(300));
    // One that never expires cannot be told from one without a timeout of its own, whatever the mount's is; one that has the
    // mount's can, when that is another for a moment.
    for (own, mount, told) in [(Some(0), 300, 300), (Some(0), 77, 77), (None, 77, 77), (Some(300), 77, 300)] {
        control.set_timeout(fd, 300).unwrap();
        control.set_dentry_timeout(fd, b"key", own).unwrap();
        control.set_timeout(fd, mount).unwrap();
        assert_eq!(control.set_dentry_timeout(fd, b"key", None), Ok(told), "{own:?} {mount}");
    }
    assert_eq!(control.set_dentry_timeout(fd, b"none", Some(1)), Err(ControlError::NoSuchKey("none".into())));
}

#[test]
fn requester_is_who_triggered_last() {
    let autofs = direct();
    let visitor = Visitor::run_as("ls", &[&autofs.path], |command| {
        command.uid(1234).gid(567);
    });
    let request = autofs.request();
    assert_eq!((request.uid, request.gid), (1234, 567));
    tmpfs().attach(CWD, &autofs.path).unwrap();
    autofs.control.ready(autofs.fd.as_fd(), request.token).unwrap();
    visitor.outcome();
    assert_eq!(
        autofs.control.requester(autofs.fd.as_fd(), &autofs.path),
        Ok(Requester { uid: 1234, gid: 567 })
    );
}

#[test]
fn requester_needs_the_root_of_a_mount() {
    let autofs = indirect();
    let key = autofs.path.join("key");
    fs::create_dir(&key).unwrap();
    let ask = || autofs.control.requester(autofs.fd.as_fd(), &key);
    assert!(matches!(ask(), Err(ControlError::NoSuchMount { .. })));
    tmpfs().attach(CWD, &key).unwrap();
    assert!(matches!(ask(), Err(ControlError::NoSuchMount { .. })));
    unmount_idle(&key);
    // A bind mount of the key, attached nowhere, has it as its root.
    let bound = mount::bind(CWD, &key, false).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}/.", bound.as_fd().as_raw_fd()));
    let requester = autofs.control.requester(autofs.fd.as_fd(), &path);
    assert_eq!(requester, Ok(Requester { uid: 0, gid: 0 }));
}

#[test]
fn expire_asks_the_master_and_tells_the_answer() {
    let autofs = direct();
    let (control, fd) = (&autofs.control, autofs.fd.as_fd());
    tmpfs().attach(CWD, &autofs.path).unwrap();
    assert_eq!(control.expire(fd, ExpireHow::default()), Ok(false));
    // a program that another test starts has a copy of the descriptor, which is a use, until its exec
    let expire = || wait_until(|| Some(control.expire(fd, NOW)).filter(|called| *called != Ok(false)));
    std::thread::scope(|scope| {
        let expiry = scope.spawn(expire);
        let request = autofs.request();
        assert_eq!(request.kind, Kind::ExpireDirect);
        control.fail(fd, request.token, Errno::BUSY).unwrap();
        let answer = expiry.join().unwrap();
        assert!(matches!(answer, Err(ControlError::Other { errno: Errno::BUSY, .. })), "{answer:?}");

        let expiry = scope.spawn(expire);
        let request = autofs.request();
        unmount_idle(&autofs.path);
        control.ready(fd, request.token).unwrap();
        assert_eq!(expiry.join().unwrap(), Ok(true));
    });
}

#[test]
fn expire_spares_what_is_in_use() {
    let autofs = direct();
    tmpfs().attach(CWD, &autofs.path).unwrap();
    let _inside = Visitor::run_as("sleep", &[Path::new("1000")], |command| {
        command.current_dir(&autofs.path);
    });
    assert_eq!(autofs.control.expire(autofs.fd.as_fd(), NOW), Ok(false));
}

#[test]
fn may_umount_tells_use() {
    let autofs = indirect();
    let ask = || autofs.control.may_umount(autofs.fd.as_fd()).unwrap();
    // a program that another test starts has a copy of each descriptor until its exec
    wait_until(|| ask().then_some(()));
    let inside = directory(&autofs.path);
    assert!(!ask());
    drop(inside);
    wait_until(|| ask().then_some(()));
}

#[test]
fn is_mount_point_by_path_and_by_descriptor() {
    let autofs = direct();
    let (control, fd, path) = (&autofs.control, autofs.fd.as_fd(), &*autofs.path);
    let info = control.is_mount_point(path).unwrap().unwrap();
    assert_eq!((info.dev, info.magic), (autofs.dev, AUTOFS_MAGIC));
    assert_eq!(control.covered(fd, path), Ok(Covered::No));

    let mount = tmpfs();
    mount.attach(CWD, path).unwrap();
    let info = control.is_mount_point(path).unwrap().unwrap();
    assert_eq!((info.dev, info.magic), (mount.dev().unwrap(), TMPFS_MAGIC));
    assert_eq!(control.covered(fd, path), Ok(Covered::Root(TMPFS_MAGIC)));

    fs::create_dir("/mnt/plain").unwrap();
    assert_eq!(control.is_mount_point(Path::new("/mnt/plain")), Ok(None));
    let missing = control.is_mount_point(Path::new("/mnt/missing"));
    assert!(matches!(missing, Err(ControlError::NoSuchMount { .. })));
}

#[test]
fn covered_tells_a_tree_without_root() {
    let autofs = indirect();
    fs::create_dir(autofs.path.join("key")).unwrap();
    tmpfs().attach(CWD, &autofs.path.join("key")).unwrap();
    let covered = autofs.control.covered(autofs.fd.as_fd(), &autofs.path);
    assert_eq!(covered, Ok(Covered::Below));
}
