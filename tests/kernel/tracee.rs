//! Holding tasks and calling in their place, seen from the tasks.

use crate::common::{
    Autofs, LIMIT, Visitor, mountinfo_line, next_packet, private_mount_namespace, tmpfs, wait_until,
};
use autofs_cr::sys::{
    Errno,
    control::{Command, Control, ControlError, Token},
    mount::MountType,
    packet::packet_pipe,
    tracee::{Held, Injected, RemoteCall, Seized, TraceeError},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::fs::CWD;
use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

fn hold(visitor: &Visitor) -> Held {
    visitor.seize().stop(LIMIT).unwrap()
}

fn shell(script: &str) -> Visitor {
    Visitor::run("sh", &[Path::new("-c"), Path::new(script)])
}

fn proc_file(visitor: &Visitor, name: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{name}", visitor.pid())).unwrap()
}

/// A program that sleeps, and has begun to.
fn sleeper() -> Visitor {
    let visitor = Visitor::idle();
    visitor.until_it_is_in("hrtimer_nanosleep");
    visitor
}

/// A program that computes, and has begun to.
fn busy() -> Visitor {
    let visitor = shell("trap : USR1; while :; do :; done");
    visitor.until_it_catches(&[Signal::SIGUSR1]);
    visitor
}

fn signal(visitor: &Visitor, signal: Signal) {
    kill(Pid::from_raw(visitor.pid()), signal).unwrap();
}

/// All that a program could notice: masks, handlers, mappings, descriptors.
fn traces(visitor: &Visitor) -> (Vec<String>, String, BTreeSet<PathBuf>) {
    let status = proc_file(visitor, "status");
    // SigQ counts the signals of all processes of a user
    let of_signals = |line: &&str| line.starts_with("Sig") && !line.starts_with("SigQ");
    let signals = status.lines().filter(of_signals).map(str::to_owned).collect();
    let fds = fs::read_dir(format!("/proc/{}/fd", visitor.pid())).unwrap();
    (signals, proc_file(visitor, "maps"), fds.map(|fd| fd.unwrap().path()).collect())
}

#[test]
fn a_sleep_goes_on_where_it_was() {
    let start = Instant::now();
    let visitor = Visitor::run("sleep", &[Path::new("8")]);
    visitor.until_it_is_in("hrtimer_nanosleep");
    std::thread::sleep(Duration::from_secs(6));
    let interrupted = Instant::now();
    let held = hold(&visitor);
    assert!(held.syscall().unwrap().is_some());
    held.release().unwrap();
    let mut held = hold(&visitor);
    assert_eq!(held.call(libc::SYS_getpid, [0; 6]).unwrap(), i64::from(visitor.pid()));
    held.release().unwrap();
    let (status, _) = visitor.outcome();
    assert!(status.success());
    assert!(start.elapsed() >= Duration::from_secs(8));
    // had it begun again, it would have taken 8 s from there
    assert!(interrupted.elapsed() < Duration::from_millis(7500));
}

#[test]
fn calls_leave_no_traces() {
    for visitor in [sleeper(), busy()] {
        let before = traces(&visitor);
        let mut held = hold(&visitor);
        assert_eq!(held.call(libc::SYS_getpgid, [0; 6]).unwrap(), i64::from(visitor.pid()));
        assert_eq!(held.call(libc::SYS_close, [999, 0, 0, 0, 0, 0]).unwrap(), -i64::from(libc::EBADF));
        drop(held);
        assert_eq!(traces(&visitor), before);
        wait_until(|| "RS".contains(visitor.state()).then_some(()));
    }
}

#[test]
fn a_descriptor_travels() {
    let visitor = sleeper();
    let before = traces(&visitor).2;
    let mut held = hold(&visitor);
    let file = tempfile::NamedTempFile::new().unwrap();
    let there = held.send_fd(file.as_fd()).unwrap();
    let link = fs::read_link(format!("/proc/{}/fd/{}", visitor.pid(), there.0)).unwrap();
    assert_eq!(link, file.path());
    let flags = proc_file(&visitor, &format!("fdinfo/{}", there.0));
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:\t")).unwrap();
    assert_ne!(u32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC as u32, 0);
    held.close_fd(there).unwrap();
    held.release().unwrap();
    assert_eq!(traces(&visitor).2, before);
}

#[test]
fn a_task_without_free_numbers_says_so() {
    let visitor = shell("exec 3<&-; ulimit -n 4; exec sleep 1000");
    visitor.until_it_is_in("hrtimer_nanosleep");
    let before = traces(&visitor);
    let mut held = hold(&visitor);
    let file = tempfile::tempfile().unwrap();
    let error = held.send_fd(file.as_fd()).unwrap_err();
    assert!(matches!(error, TraceeError::Call { .. }), "{error}");
    held.release().unwrap();
    assert_eq!(traces(&visitor), before);
}

#[test]
fn who_was_stopped_stays_stopped() {
    let visitor = Visitor::idle();
    signal(&visitor, Signal::SIGSTOP);
    visitor.until_its_state_is('T');
    let mut held = hold(&visitor);
    assert_eq!(held.call(libc::SYS_getpid, [0; 6]).unwrap(), i64::from(visitor.pid()));
    held.release().unwrap();
    visitor.until_its_state_is('T');
    signal(&visitor, Signal::SIGCONT);
    visitor.until_its_state_is('S');
}

#[test]
fn signals_that_arrive_meanwhile_are_delivered_afterwards() {
    let visitor = shell("trap 'echo one' USR1; trap 'exit 7' USR2; while :; do sleep 0.01; done");
    visitor.until_it_catches(&[Signal::SIGUSR1, Signal::SIGUSR2]);
    let mut held = hold(&visitor);
    signal(&visitor, Signal::SIGUSR1);
    held.call(libc::SYS_getpid, [0; 6]).unwrap();
    signal(&visitor, Signal::SIGUSR2);
    held.call(libc::SYS_getpid, [0; 6]).unwrap();
    held.release().unwrap();
    let (status, output) = visitor.outcome();
    assert_eq!((status.code(), output.as_str()), (Some(7), "one\n"));
}

#[test]
fn a_stop_that_arrives_meanwhile_stops_it_afterwards() {
    let visitor = Visitor::idle();
    let mut held = hold(&visitor);
    held.call(libc::SYS_getpid, [0; 6]).unwrap();
    signal(&visitor, Signal::SIGSTOP);
    for _ in 0..3 {
        assert_eq!(held.call(libc::SYS_getpid, [0; 6]).unwrap(), i64::from(visitor.pid()));
    }
    held.release().unwrap();
    visitor.until_its_state_is('T');
    signal(&visitor, Signal::SIGCONT);
    visitor.until_its_state_is('S');
}

#[test]
fn a_storm_of_signals_keeps_nobody_from_being_held() {
    let visitor = busy();
    for round in 0..400 {
        signal(&visitor, Signal::SIGUSR1);
        let mut held = hold(&visitor);
        if round % 10 == 0 {
            held.call(libc::SYS_getpid, [0; 6]).unwrap();
        }
        held.release().unwrap();
    }
    visitor.until_its_state_is('R');
}

#[test]
fn release_stopped_stops() {
    let visitor = Visitor::idle();
    hold(&visitor).release_stopped().unwrap();
    visitor.until_its_state_is('T');
    signal(&visitor, Signal::SIGCONT);
    visitor.until_its_state_is('S');
}

#[test]
fn the_dead_and_the_traced_are_told_apart() {
    let mut visitor = Visitor::idle();
    let held = hold(&visitor);
    let pid = visitor.pid();
    let refused = std::thread::spawn(move || Seized::new(pid).map(drop)).join().unwrap();
    assert!(matches!(refused, Err(TraceeError::Refused { .. })), "{refused:?}");
    signal(&visitor, Signal::SIGKILL);
    visitor.until_its_state_is('Z');
    assert!(matches!(held.syscall(), Err(TraceeError::Gone(_))));
    drop(held);
    assert!(matches!(Seized::new(pid), Err(TraceeError::Gone(_))));
    visitor.0.wait().unwrap();
    assert!(matches!(Seized::new(pid), Err(TraceeError::Gone(_))));
}

/// A visitor that waits on `autofs` while it changes hands: CATATONIC, the call set to restart,
/// a new pipe. Returns what the program got from the new master.
fn change_hands(autofs: &Autofs, trigger: &Path, read_by_the_old: bool) -> String {
    let (control, fd) = (&autofs.control, autofs.fd.as_fd());
    let visitor = Visitor::run("cat", &[&trigger.join("file")]);
    visitor.until_it_is_in("autofs_wait");
    if read_by_the_old {
        autofs.request();
    }
    let seized = visitor.seize();
    let Err((Some(seized), TraceeError::Timeout(_))) = seized.stop(Duration::from_millis(20)) else {
        panic!("a waiter stopped")
    };
    control.make_catatonic(fd).unwrap();
    let mut held = seized.stop(LIMIT).unwrap();
    assert_eq!(held.syscall().unwrap(), Some((libc::SYS_openat as u64, -i64::from(libc::ENOENT))));
    held.restart_syscall().unwrap();
    let pipe = packet_pipe().unwrap();
    control.set_pipe(fd, pipe.write.as_fd()).unwrap();
    held.release().unwrap();

    let request = next_packet(&pipe.read);
    assert_eq!(request.tgid, visitor.pid() as u32);
    fs::create_dir_all(trigger).unwrap();
    tmpfs().attach(CWD, trigger).unwrap();
    fs::write(trigger.join("file"), "from the new master").unwrap();
    control.ready(fd, request.token).unwrap();
    let (status, output) = visitor.outcome();
    assert!(status.success(), "{output}");
    output
}

#[test]
fn a_direct_mounts_waiter_is_answered_by_the_new_master() {
    for read_by_the_old in [false, true] {
        let autofs = Autofs::mount(MountType::Direct, private_mount_namespace().join("direct"));
        let output = change_hands(&autofs, &autofs.path, read_by_the_old);
        assert_eq!(output, "from the new master");
    }
}

#[test]
fn an_indirect_mounts_waiter_is_answered_by_the_new_master() {
    for read_by_the_old in [false, true] {
        let autofs = Autofs::mount(MountType::Indirect, private_mount_namespace().join("indirect"));
        let output = change_hands(&autofs, &autofs.path.join("key"), read_by_the_old);
        assert_eq!(output, "from the new master");
    }
}

#[test]
fn a_waiter_that_is_released_stopped_waits_for_the_new_master() {
    let autofs = Autofs::mount(MountType::Direct, private_mount_namespace().join("direct"));
    let (control, fd) = (&autofs.control, autofs.fd.as_fd());
    let visitor = Visitor::run("cat", &[&autofs.path.join("file")]);
    visitor.until_it_is_in("autofs_wait");
    let seized = visitor.seize();
    control.make_catatonic(fd).unwrap();
    let mut held = seized.stop(LIMIT).unwrap();
    held.restart_syscall().unwrap();
    held.release_stopped().unwrap();
    visitor.until_its_state_is('T');
    let pipe = packet_pipe().unwrap();
    control.set_pipe(fd, pipe.write.as_fd()).unwrap();
    signal(&visitor, Signal::SIGCONT);
    let request = next_packet(&pipe.read);
    control.fail(fd, request.token, Errno::XDEV).unwrap();
    let (_, output) = visitor.outcome();
    assert!(output.contains("cross-device"), "{output}");
}

#[test]
fn a_command_in_anothers_place_makes_that_one_the_owner() {
    let autofs = Autofs::mount(MountType::Direct, private_mount_namespace().join("direct"));
    autofs.control.make_catatonic(autofs.fd.as_fd()).unwrap();
    // Started after the mount, so that it sees it.
    let master = sleeper();
    let before = traces(&master);
    let mut held = hold(&master);
    let device = Control::open().unwrap();
    let injected = Injected::new(&mut held, &device).unwrap();
    let pipe = injected.with_held(|held| held.send_fd(autofs.pipe.write.as_fd())).unwrap();
    let control = Control::with_caller(injected);
    assert_eq!(control.version().unwrap().0, 1);
    let root = control.open_mount(&autofs.path, autofs.dev).unwrap();
    control.set_pipe(root, pipe).unwrap();
    assert_eq!(control.set_pipe(root, pipe), Err(ControlError::AlreadyHasPipe));
    assert_eq!(control.ready(root, Token(0)), Err(ControlError::UnknownToken(Token(0))));
    control.close_mount(root).unwrap();
    control.caller().with_held(|held| held.close_fd(pipe)).unwrap();
    drop(control);
    held.release().unwrap();

    assert_eq!(traces(&master), before);
    assert!(mountinfo_line(autofs.dev).contains(&format!("pgrp={}", master.pid())));
    let _visitor = Visitor::run("ls", &[&autofs.path]);
    assert_eq!(autofs.request().dev, autofs.dev);
}

#[test]
fn many_calls_are_made_in_order_and_leave_no_traces() {
    let visitor = sleeper();
    let before = traces(&visitor);
    let mut held = hold(&visitor);
    // more than one table; each result tells its place
    let calls: Vec<_> = (0..3000)
        .map(|number| RemoteCall { number: libc::SYS_umask, arguments: [number & 0o777, 0, 0, 0, 0, 0] })
        .collect();
    let original = held.call(libc::SYS_umask, [0; 6]).unwrap();
    let results = held.call_all(&calls).unwrap();
    let expected = std::iter::once(0).chain((0..2999).map(|number| number & 0o777));
    assert!(results.into_iter().eq(expected));
    held.call(libc::SYS_umask, [original as u64, 0, 0, 0, 0, 0]).unwrap();
    // a stop signal amidst
    signal(&visitor, Signal::SIGSTOP);
    assert_eq!(held.call_all(&calls).unwrap().len(), 3000);
    signal(&visitor, Signal::SIGCONT);
    held.release().unwrap();
    assert_eq!(traces(&visitor), before);
    visitor.until_its_state_is('S');
}

#[test]
fn many_descriptors_travel_all_or_none() {
    let visitor = shell("ulimit -n 500; exec sleep 1000");
    visitor.until_it_is_in("hrtimer_nanosleep");
    let before = traces(&visitor);
    let mut held = hold(&visitor);
    let files: Vec<_> = (0..300).map(|_| tempfile::tempfile().unwrap()).collect();
    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let there = held.send_fds(&files).unwrap();
    let numbers: BTreeSet<_> = there.iter().map(|fd| fd.0).collect();
    assert_eq!(numbers.len(), 300);
    for (ours, there) in files.iter().zip(&there) {
        let link = fs::read_link(format!("/proc/{}/fd/{}", visitor.pid(), there.0)).unwrap();
        assert_eq!(fs::read_link(format!("/proc/self/fd/{}", ours.as_raw_fd())).unwrap(), link);
    }
    let error = held.send_fds(&files).unwrap_err();
    assert!(matches!(error, TraceeError::Call { errno: Errno::MFILE, .. }), "{error}");
    held.close_fds(&there).unwrap();
    held.release().unwrap();
    assert_eq!(traces(&visitor), before);
}

#[test]
fn many_mounts_are_given_to_another_at_once() {
    let home = private_mount_namespace();
    let mounts: Vec<_> =
        (0..40).map(|number| Autofs::mount(MountType::Direct, home.join(number.to_string()))).collect();
    for mount in &mounts[1..] {
        mount.control.make_catatonic(mount.fd.as_fd()).unwrap();
    }
    let master = Visitor::idle();
    let mut held = hold(&master);
    let mut fds: Vec<_> = mounts.iter().map(|mount| mount.fd.as_fd()).collect();
    fds.push(mounts[0].pipe.write.as_fd());
    let there = held.send_fds(&fds).unwrap();
    let (pipe, roots) = there.split_last().unwrap();
    let control = Control::with_caller(Injected::new(&mut held, Control::open().unwrap()).unwrap());
    let results = control.set_pipe_all(roots, *pipe);
    assert_eq!(results[0], Err(ControlError::NotOwner(Command::SetPipeFd)));
    assert!(results[1..].iter().all(Result::is_ok), "{results:?}");
    let paths: Vec<_> =
        roots[1..].iter().copied().zip(mounts[1..].iter().map(|mount| &*mount.path)).collect();
    let requesters = control.requester_all(&paths);
    assert!(requesters.len() == 39 && requesters.iter().all(Result::is_ok), "{requesters:?}");
    let [bad, good] = &control.requester_all(&[(roots[1], Path::new("no-slash")), paths[0]])[..] else {
        panic!("two answers")
    };
    assert!(matches!(bad, Err(ControlError::BadPath { .. })) && good.is_ok());
    control.caller().with_held(|held| held.close_fds(&there)).unwrap();
    drop(control);
    held.release().unwrap();
    for mount in &mounts[1..] {
        assert!(mountinfo_line(mount.dev).contains(&format!("pgrp={}", master.pid())));
    }
}

#[test]
fn a_sleeper_runs_nothing_of_its_own_until_it_is_woken() {
    let mut visitor = shell("trap 'echo trapped' USR1; sleep 100 & wait; while :; do :; done");
    let children = format!("task/{}/children", visitor.pid());
    // a shell that forks blocks all signals for a moment
    let blocks_none = || proc_file(&visitor, "status").contains("SigBlk:\t0000000000000000");
    let waits = || visitor.state() == 'S' && !proc_file(&visitor, &children).is_empty() && blocks_none();
    wait_until(|| waits().then_some(()));
    let before = traces(&visitor);
    let sleeper = hold(&visitor).put_to_sleep().unwrap();
    assert_eq!(
        proc_file(&visitor, "status").lines().find(|l| l.starts_with("TracerPid")),
        Some("TracerPid:\t0")
    );
    visitor.until_its_state_is('S');
    let call = proc_file(&visitor, "syscall");
    assert!(call.starts_with(&format!("{} 0x0 0x0 0x0 0x0", libc::SYS_ppoll)), "{call}");
    // A handler must not run in the middle of it.
    signal(&visitor, Signal::SIGUSR1);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(proc_file(&visitor, "syscall"), call);

    let mut held = hold(&visitor);
    held.wake(&sleeper).unwrap();
    held.release().unwrap();
    // it runs already, and a shell that was waiting blocks all signals for a moment
    let as_before = || {
        let now = traces(&visitor);
        (before.0 == now.0 && before.2 == now.2).then_some(())
    };
    wait_until(as_before);
    use std::io::{BufRead, BufReader};
    let mut lines = BufReader::new(visitor.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "trapped");
    // Awake, it is not woken once more: it would be where it was.
    let mut held = hold(&visitor);
    let now = traces(&visitor);
    held.wake_if_asleep(&sleeper).unwrap();
    assert_eq!(traces(&visitor), now);
    held.release().unwrap();
    // It computes: stopped anywhere, it goes on.
    for round in 0..100 {
        let sleeper = hold(&visitor).put_to_sleep().unwrap();
        let mut held = hold(&visitor);
        let wake = if round % 2 == 0 { Held::wake } else { Held::wake_if_asleep };
        wake(&mut held, &sleeper).unwrap();
        held.release().unwrap();
    }
    visitor.until_its_state_is('R');
}
