//! Visitors are held and let go, and their programs notice nothing.

use crate::common::{Autofs, LIMIT, Visitor, private_mount_namespace, tmpfs, wait_until};
use autofs_cr::quiesce::{QuiesceError, Quiesced, Scope};
use autofs_cr::sys::DevNum;
use autofs_cr::sys::mount::MountType;
use autofs_cr::sys::packet::{PacketPipe, packet_pipe};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::CWD;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

fn direct() -> Autofs {
    Autofs::mount(MountType::Direct, private_mount_namespace().join("direct"))
}

fn hold(mount: &Autofs) -> Quiesced {
    Quiesced::hold(&scope(mount.dev)).unwrap()
}

fn scope(dev: DevNum) -> Scope {
    Scope { mounts: vec![dev], ..Scope::default() }
}

/// A visitor that waits for the mount, its request read when `read`.
fn waiter(mount: &Autofs, read: bool) -> Visitor {
    let visitor = Visitor::run("ls", &[&mount.path.join(".")]);
    if read {
        mount.request();
    }
    visitor.until_it_waits();
    visitor
}

/// Take the mount away and give it to ourselves again with a new pipe.
fn change_hands(mount: &Autofs, held: &mut Quiesced) -> (usize, PacketPipe) {
    mount.control.make_catatonic(mount.fd.as_fd()).unwrap();
    let restarted = held.restart_waiters().unwrap();
    let pipe = packet_pipe().unwrap();
    mount.control.set_pipe(mount.fd.as_fd(), pipe.write.as_fd()).unwrap();
    (restarted, pipe)
}

/// Answer the request in the new pipe, and see that the visitor is content.
fn answered(mount: &Autofs, pipe: &PacketPipe, visitor: Visitor) {
    let packet = crate::common::next_packet(&pipe.read);
    tmpfs().attach(CWD, &mount.path).unwrap();
    mount.control.ready(mount.fd.as_fd(), packet.token).unwrap();
    let (status, text) = visitor.outcome();
    assert!(status.success(), "{text}");
}

#[test]
fn a_waiter_asks_the_new_master() {
    for read in [true, false] {
        let mount = direct();
        let visitor = waiter(&mount, read);
        let mut held = hold(&mount);
        let waiting: Vec<_> = held.waiting().iter().map(|waiting| waiting.waiter.tid).collect();
        assert!(waiting.contains(&visitor.pid()));
        let (restarted, pipe) = change_hands(&mount, &mut held);
        assert_eq!(restarted, 1);
        held.release().unwrap();
        answered(&mount, &pipe, visitor);
    }
}

#[test]
fn many_waiters_and_as_many_keys() {
    let mount = Autofs::mount(MountType::Indirect, private_mount_namespace().join("indirect"));
    let visitors: Vec<_> =
        (0..40).map(|key| Visitor::run("ls", &[&mount.path.join((key % 20).to_string())])).collect();
    visitors.iter().for_each(Visitor::until_it_waits);
    let mut held = hold(&mount);
    let (restarted, pipe) = change_hands(&mount, &mut held);
    assert_eq!(restarted, 40);
    held.release().unwrap();
    for _ in 0..20 {
        let packet = crate::common::next_packet(&pipe.read);
        std::fs::create_dir(mount.path.join(std::str::from_utf8(&packet.name).unwrap())).unwrap();
        tmpfs().attach(CWD, &mount.path.join(std::str::from_utf8(&packet.name).unwrap())).unwrap();
        mount.control.ready(mount.fd.as_fd(), packet.token).unwrap();
    }
    for visitor in visitors {
        let (status, text) = visitor.outcome();
        assert!(status.success(), "{text}");
    }
}

#[test]
fn waiters_may_be_left_stopped() {
    let mount = direct();
    let visitor = waiter(&mount, true);
    let other = Visitor::idle();
    let mut held = hold(&mount);
    mount.control.make_catatonic(mount.fd.as_fd()).unwrap();
    assert_eq!(held.restart_waiters().unwrap(), 1);
    let stopped = held.release_waiters_stopped().unwrap();
    assert_eq!(stopped.iter().map(|waiting| waiting.waiter.tid).collect::<Vec<_>>(), [visitor.pid()]);
    assert!(!stopped[0].was_stopped);
    visitor.until_its_state_is('T');
    other.until_its_state_is('S');
    let pipe = packet_pipe().unwrap();
    mount.control.set_pipe(mount.fd.as_fd(), pipe.write.as_fd()).unwrap();
    kill(Pid::from_raw(visitor.pid()), Signal::SIGCONT).unwrap();
    answered(&mount, &pipe, visitor);
}

#[test]
fn a_waiter_that_its_user_stopped_stays_stopped() {
    let mount = direct();
    let visitor = waiter(&mount, true);
    let pid = Pid::from_raw(visitor.pid());
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut held = hold(&mount);
    let waiting = held.waiting().iter().find(|waiting| waiting.waiter.tid == visitor.pid());
    assert!(waiting.unwrap().was_stopped);
    let (restarted, pipe) = change_hands(&mount, &mut held);
    assert_eq!(restarted, 1);
    held.release().unwrap();
    visitor.until_its_state_is('T');
    kill(pid, Signal::SIGCONT).unwrap();
    answered(&mount, &pipe, visitor);
}

#[test]
fn everyone_is_held_and_let_go_as_he_was() {
    let mount = direct();
    let asleep = Visitor::idle();
    let running = Visitor::run("sh", &[Path::new("-c"), Path::new("while :; do :; done")]);
    let forking = Visitor::run("sh", &[Path::new("-c"), Path::new("while :; do (:); done")]);
    let stopped = Visitor::idle();
    kill(Pid::from_raw(stopped.pid()), Signal::SIGSTOP).unwrap();
    stopped.until_its_state_is('T');
    asleep.until_its_state_is('S');
    for _ in 0..20 {
        let held = hold(&mount);
        for visitor in [&asleep, &running, &stopped] {
            assert_eq!(visitor.state(), 't');
        }
        assert!(matches!(forking.state(), 't' | 'D'));
        held.release().unwrap();
        stopped.until_its_state_is('T');
        asleep.until_its_state_is('S');
        assert_ne!(running.state(), 't');
        assert_ne!(forking.state(), 't');
    }
}

#[test]
fn dropping_lets_everyone_go() {
    let mount = direct();
    let asleep = Visitor::idle();
    let visitor = waiter(&mount, true);
    drop(hold(&mount));
    asleep.until_its_state_is('S');
    // nobody changed the mount: the visitor still waits, and is free again
    assert!(visitor.waits());
    // a test beside this one may hold it now
    let status = format!("/proc/{}/status", visitor.pid());
    wait_until(|| std::fs::read_to_string(&status).unwrap().contains("TracerPid:\t0\n").then_some(()));
    mount.control.make_catatonic(mount.fd.as_fd()).unwrap();
    visitor.outcome();
}

#[test]
fn a_waiter_with_a_debugger_is_refused_others_are_told() {
    let mount = direct();
    let other = Visitor::idle();
    let visitor = waiter(&mount, true);
    let debugged = other.seize().stop(LIMIT).unwrap();
    let held = hold(&mount);
    assert_eq!(held.not_held().iter().map(|one| one.tid).collect::<Vec<_>>(), [other.pid()]);
    held.release().unwrap();
    drop(debugged);

    let _debugged = visitor.seize();
    match Quiesced::hold(&scope(mount.dev)) {
        Err(QuiesceError::Traced { tid, .. }) => assert_eq!(tid, visitor.pid()),
        other => panic!("{other:?}"),
    }
    mount.control.make_catatonic(mount.fd.as_fd()).unwrap();
}

#[test]
fn who_does_not_see_the_mount_is_left_alone() {
    let outside = Visitor::idle();
    let mount = direct();
    let inside = Visitor::idle();
    let held = hold(&mount);
    assert_eq!(inside.state(), 't');
    assert_ne!(outside.state(), 't');
    held.release().unwrap();
}

#[test]
fn whoever_is_spared_goes_on() {
    let mount = direct();
    let master = Visitor::idle();
    let held = Quiesced::hold(&Scope { spare: vec![master.pid()], ..scope(mount.dev) }).unwrap();
    assert_ne!(master.state(), 't');
    held.release().unwrap();
}

#[test]
fn two_that_hold_take_turns() {
    let mount = direct();
    let _visitors: Vec<_> = (0..5).map(|_| Visitor::idle()).collect();
    let dev = mount.dev;
    let start = Instant::now();
    std::thread::scope(|scope_of_threads| {
        for _ in 0..4 {
            scope_of_threads.spawn(|| {
                for _ in 0..10 {
                    let held = Quiesced::hold(&scope(dev)).unwrap();
                    assert!(held.not_held().is_empty());
                    held.release().unwrap();
                }
            });
        }
    });
    // Far above what it takes on a machine that does other things as well: they must not wait for each other for ever.
    assert!(start.elapsed() < LIMIT * 6);
}

/// Names what [`visitor_program`] does in a child of these tests.
const PROGRAM: &str = "AUTOFS_CR_TEST_VISITOR";

/// A visitor that runs a part of this file.
fn program(name: &str) -> Visitor {
    let this = std::env::current_exe().unwrap();
    let arguments = ["--exact", "quiesce::visitor_program", "--nocapture"].map(Path::new);
    Visitor::run_as(this.to_str().unwrap(), &arguments, |command| {
        command.env(PROGRAM, name);
    })
}

/// Not a test of its own: what [`program`] runs. Ends only when a call is interrupted.
#[test]
fn visitor_program() {
    use rustix::event::epoll;
    match std::env::var(PROGRAM).as_deref() {
        Err(_) => {}
        Ok("epoll") => {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let mut events = Vec::<epoll::Event>::with_capacity(1);
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        }
        Ok("socket with a timeout") => {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(LIMIT * 6)).unwrap();
            socket.recv(&mut [0]).unwrap();
        }
        Ok(other) => panic!("{other}"),
    }
}

#[test]
fn calls_that_a_stop_interrupts_are_made_again() {
    let mount = direct();
    for name in ["epoll", "socket with a timeout"] {
        let visitor = program(name);
        let calls = [libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_recvfrom];
        let waits = || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", visitor.pid())).unwrap();
            let calling = |task: std::fs::DirEntry| {
                let call = std::fs::read_to_string(task.path().join("syscall")).unwrap();
                calls.iter().any(|number| call.starts_with(&format!("{number} ")))
            };
            tasks.filter_map(Result::ok).any(calling).then_some(())
        };
        wait_until(waits);
        for _ in 0..10 {
            hold(&mount).release().unwrap();
        }
        wait_until(waits);
        assert_ne!(visitor.state(), 'Z');
    }
}
