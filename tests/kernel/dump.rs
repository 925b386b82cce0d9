//! The command `dump` against a master in a process of its own.

use crate::common::{Autofs, Visitor, private_mount_namespace, state, tmpfs, wait_until};
use autofs_cr::attach::{Target, abandon, attach_here};
use autofs_cr::discover::facts::{AutofsMount, Master, MountType, TreeEntry};
use autofs_cr::discover::{self, survey};
use autofs_cr::image::checkpoint::{Checkpoint, DumpedMount, Left};
use autofs_cr::sys::control::{Control, Requester};
use autofs_cr::sys::packet::{Kind, Packet, packet_pipe, read_packet};
use autofs_cr::sys::process::ProcessId;
use autofs_cr::{faults, image};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::CWD;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// Makes [`master_program`] one, at this place.
const MASTER: &str = "AUTOFS_CR_TEST_MASTER";

/// A process that serves four mounts: `idle` and `covered` (direct), `slow` (direct, answered when the file `go` is there)
/// and `indirect`, and the place where everything is.
struct Scene {
    home: PathBuf,
    master: Visitor,
}

impl Scene {
    fn new() -> Self {
        let home = private_mount_namespace();
        let this = std::env::current_exe().unwrap();
        let arguments = ["--exact", "dump::master_program", "--nocapture"].map(Path::new);
        let master = Visitor::run_as(this.to_str().unwrap(), &arguments, |command| {
            command.env(MASTER, &home);
        });
        wait_until(|| home.join("ready").exists().then_some(()));
        Self { home, master }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Its mounts as they are.
    fn mounts(&self) -> Vec<AutofsMount> {
        let mut mounts = survey(&discover::Target::Own).unwrap().mounts;
        mounts.retain(|mount| mount.path.starts_with(&self.home));
        mounts.iter_mut().for_each(|mount| mount.waiters.clear());
        mounts
    }

    fn mount(&self, name: &str) -> AutofsMount {
        let path = self.path(name);
        self.mounts().into_iter().find(|mount| mount.path == path).unwrap()
    }

    /// `autofs-cr dump`, with a fault if one is named.
    fn dump_with(&self, arguments: &[&str], fault: &str) -> (bool, String) {
        let image = self.path("image");
        let arguments = [&["dump", "-D", image.to_str().unwrap()], arguments].concat();
        let arguments: Vec<_> = arguments.into_iter().map(Path::new).collect();
        let run = Visitor::run_as(env!("CARGO_BIN_EXE_autofs-cr"), &arguments, |command| {
            command.env(faults::VARIABLE, fault);
        });
        let (status, text) = run.outcome();
        (status.success(), text)
    }

    fn dump(&self, arguments: &[&str]) -> Checkpoint {
        let (success, text) = self.dump_with(arguments, "");
        assert!(success, "{text}");
        image::read(&self.path("image")).unwrap()
    }

    /// A visitor of the slow mount, whose request the master has read.
    fn waiter(&self) -> Visitor {
        let visitor = Visitor::run("ls", &[&self.path("slow/.")]);
        wait_until(|| self.path("asked").exists().then_some(()));
        visitor.until_it_waits();
        visitor
    }

    /// From now on the slow mount is served.
    fn go(&self) {
        fs::write(self.path("go"), "").unwrap();
    }

    /// Look something up, as another user.
    fn visit(&self, name: &str) {
        let visitor = Visitor::run_as("ls", &[&self.path(name).join(".")], |command| {
            command.uid(1234).gid(567);
        });
        let (status, text) = visitor.outcome();
        assert!(status.success(), "{text}");
    }
}

/// Not a test of its own: the master, in a child of these tests.
#[test]
fn master_program() {
    let Ok(home) = std::env::var(MASTER) else { return };
    let home = Path::new(&home);
    let direct = ["idle", "covered", "slow"].map(|name| Autofs::mount(MountType::Direct, home.join(name)));
    let indirect = Autofs::mount(MountType::Indirect, home.join("indirect"));
    indirect.control.set_timeout(indirect.fd.as_fd(), 77).unwrap();
    for key in ["browse", "multi/sub"] {
        fs::create_dir_all(indirect.path.join(key)).unwrap();
    }
    fs::set_permissions(indirect.path.join("browse"), std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .unwrap();
    std::os::unix::fs::symlink("/elsewhere", indirect.path.join("link")).unwrap();
    std::thread::scope(|threads| {
        for mount in direct.iter().chain([&indirect]) {
            threads.spawn(|| serve(home, mount));
        }
        fs::write(home.join("ready"), "").unwrap();
    });
}

/// Answer every request; those of the slow mount only when it is time.
fn serve(home: &Path, mount: &Autofs) {
    let slow = mount.path.ends_with("slow");
    let mut pending = Vec::new();
    loop {
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let mut fds = [PollFd::new(&mount.pipe.read, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&wait)).unwrap();
        pending.extend(read_packet(mount.pipe.read.as_fd()).ok().flatten());
        if slow && !pending.is_empty() {
            fs::write(home.join("asked"), "").unwrap();
        }
        if !slow || home.join("go").exists() {
            pending.drain(..).for_each(|packet| answer(mount, &packet));
        }
    }
}

fn answer(mount: &Autofs, packet: &Packet) {
    let place = match packet.kind {
        Kind::MissingDirect => mount.path.clone(),
        Kind::MissingIndirect => mount.path.join(str::from_utf8(&packet.name).unwrap()),
        Kind::ExpireDirect | Kind::ExpireIndirect => return,
    };
    let _ = fs::create_dir(&place);
    tmpfs().attach(CWD, &place).unwrap();
    // the token may be of a request that was taken away
    let _ = mount.control.ready(mount.fd.as_fd(), packet.token);
}

fn dumped<'a>(image: &'a Checkpoint, name: &str) -> &'a DumpedMount {
    image.mounts.iter().find(|mount| mount.facts.path.ends_with(name)).unwrap()
}

fn tree(mount: &DumpedMount) -> Vec<String> {
    let line = |entry: &TreeEntry| {
        let target =
            entry.symlink.as_ref().map_or(String::new(), |target| format!(" -> {}", target.display()));
        format!("{} {:o}{target}", entry.path.display(), entry.mode)
    };
    mount.tree.iter().map(line).collect()
}

#[test]
fn everything_is_recorded_and_nothing_is_changed() {
    let scene = Scene::new();
    scene.visit("covered");
    scene.visit("indirect/key");
    let waiter = scene.waiter();
    let before = scene.mounts();
    let image = scene.dump(&[]);
    assert_eq!(scene.mounts(), before);
    assert!(waiter.waits());

    assert_eq!(image.origin.left, Left::Running);
    let facts: Vec<_> = image.mounts.iter().map(|mount| mount.facts.clone()).collect();
    let sorted = |mut mounts: Vec<AutofsMount>| {
        mounts.iter_mut().for_each(|mount| mount.waiters.clear());
        mounts
    };
    assert_eq!(sorted(facts), before);
    let master = ProcessId::of(scene.master.pid()).unwrap();
    for mount in &image.mounts {
        assert_eq!(mount.facts.master.process(), Some(master));
    }
    let covered = dumped(&image, "covered");
    assert_eq!(covered.root_requester, Some(Requester { uid: 1234, gid: 567 }));
    assert_eq!(covered.active.len(), 1);
    assert_eq!(dumped(&image, "idle").root_requester, None);
    let indirect = dumped(&image, "indirect");
    assert_eq!(indirect.facts.options.timeout, 77);
    let expected = ["browse 711", "key 755", "link 555 -> /elsewhere", "multi 755", "multi/sub 755"];
    assert_eq!(tree(indirect), expected);
    let keys: Vec<_> = indirect.active.iter().map(|key| key.key.as_slice()).collect();
    assert_eq!(keys, [&b"key"[..], b"link"]);
    let in_flight = &dumped(&image, "slow").in_flight;
    assert_eq!(in_flight.len(), 1);
    assert_eq!(in_flight[0].waiter.as_ref().unwrap().tid, waiter.pid());
    assert_eq!(in_flight[0].packet, None);

    // the master goes on
    scene.go();
    assert!(waiter.outcome().0.success());
    scene.visit("idle");
}

#[test]
fn an_unread_request_is_recorded() {
    let scene = Scene::new();
    kill(Pid::from_raw(scene.master.pid()), Signal::SIGSTOP).unwrap();
    let waiter = Visitor::run("ls", &[&scene.path("indirect/key")]);
    waiter.until_it_waits();
    let image = scene.dump(&[]);
    let in_flight = &dumped(&image, "indirect").in_flight;
    assert_eq!(in_flight.len(), 1);
    assert_eq!(in_flight[0].packet.as_ref().unwrap().1, b"key");
    assert_eq!(in_flight[0].waiter.as_ref().unwrap().tid, waiter.pid());
    scene.master.until_its_state_is('T');
    kill(Pid::from_raw(scene.master.pid()), Signal::SIGCONT).unwrap();
    assert!(waiter.outcome().0.success());
}

#[test]
fn paths_choose_and_wrong_ones_are_answered() {
    let scene = Scene::new();
    let idle = scene.path("idle");
    let image = scene.dump(&[idle.to_str().unwrap()]);
    assert_eq!(image.mounts.len(), 1);
    let wrong = scene.path("indirect/multi");
    let (success, text) = scene.dump_with(&["--replace", wrong.to_str().unwrap()], "");
    assert!(!success && text.contains("near it") && text.contains("indirect"), "{text}");
    // the image that was there is still there
    assert_eq!(image::read(&scene.path("image")).unwrap(), image);
}

#[test]
fn foreign_mounts_are_left_out() {
    let scene = Scene::new();
    let stranger = Visitor::idle();
    let tree = stranger.pid().to_string();
    let (success, text) = scene.dump_with(&["--tree", &tree], "");
    assert!(!success && text.contains("outside the tree"), "{text}");
    let tree = scene.master.pid().to_string();
    assert_eq!(scene.dump(&["--tree", &tree]).mounts.len(), 4);
}

/// Whoever holds read ends for a dead master.
fn holders(scene: &Scene) -> Vec<i32> {
    let mount = scene.mount("slow");
    let ends = mount.pipe_ends.iter().filter(|end| end.comm == "autofs-cr-hold");
    ends.map(|end| end.process.pid).collect()
}

#[test]
fn with_a_holder_lookups_wait_when_the_master_dies() {
    let mut scene = Scene::new();
    let image = scene.dump(&["--hold"]);
    let [holder] = holders(&scene)[..] else { panic!("one holder") };
    assert!(matches!(image.origin.left, Left::Held { holder: process } if process.pid == holder));
    scene.master.0.kill().unwrap();
    scene.master.0.wait().unwrap();
    let visitor = Visitor::run("ls", &[&scene.path("idle/.")]);
    visitor.until_it_waits();
    assert_eq!(scene.mount("idle").master, Master::Dead);

    // a second one takes the place of the first
    scene.dump(&["--hold=200", "--replace"]);
    wait_until(|| (holders(&scene).len() == 1 && holders(&scene) != [holder]).then_some(()));
    assert!(visitor.waits());

    let pipe = packet_pipe().unwrap();
    let targets: Vec<_> =
        scene.mounts().into_iter().map(|mount| Target { path: mount.path, dev: mount.dev }).collect();
    let [holder] = holders(&scene)[..] else { panic!("one holder") };
    assert_eq!(attach_here(&targets, pipe.write.as_fd()).unwrap(), 1);
    assert_eq!(crate::common::next_packet(&pipe.read).kind, Kind::MissingDirect);
    // nobody writes into its pipes any more
    wait_until(|| (!Path::new(&format!("/proc/{holder}/fd")).exists() || state(holder) == 'Z').then_some(()));
    abandon(&discover::Target::Own, &targets).unwrap();
}

#[test]
fn a_holder_ends_at_its_limit() {
    let scene = Scene::new();
    // Its second may be over when we look.
    assert!(matches!(scene.dump(&["--hold=1"]).origin.left, Left::Held { .. }));
    wait_until(|| holders(&scene).is_empty().then_some(()));
}

/// Give all mounts to ourselves, and have a stopped waiter answered.
fn take_over(scene: &Scene, waiter: Visitor) {
    let pipe = packet_pipe().unwrap();
    let targets: Vec<_> =
        scene.mounts().into_iter().map(|mount| Target { path: mount.path, dev: mount.dev }).collect();
    attach_here(&targets, pipe.write.as_fd()).unwrap();
    kill(Pid::from_raw(waiter.pid()), Signal::SIGCONT).unwrap();
    let packet = crate::common::next_packet(&pipe.read);
    let index = targets.iter().position(|target| target.dev == packet.dev).unwrap();
    tmpfs().attach(CWD, &targets[index].path).unwrap();
    let control = Control::open().unwrap();
    let root = control.open_mount(&targets[index].path, packet.dev).unwrap();
    control.ready(root.as_fd(), packet.token).unwrap();
    let (status, text) = waiter.outcome();
    assert!(status.success(), "{text}");
    abandon(&discover::Target::Own, &targets).unwrap();
}

#[test]
fn mounts_that_are_taken_away_and_waiters_that_are_stopped() {
    let scene = Scene::new();
    scene.visit("covered");
    let waiter = scene.waiter();
    let before = scene.mounts();
    let image = scene.dump(&["--catatonic"]);
    assert_eq!(image.origin.left, Left::Catatonic);
    assert!(scene.mounts().iter().all(|mount| mount.catatonic));
    waiter.until_its_state_is('T');
    let facts: Vec<_> =
        image.mounts.iter().map(|mount| (mount.facts.dev, mount.facts.options.clone())).collect();
    assert_eq!(facts, before.into_iter().map(|mount| (mount.dev, mount.options)).collect::<Vec<_>>());
    let in_flight = &dumped(&image, "slow").in_flight;
    assert_eq!(in_flight.len(), 1);
    assert_eq!(in_flight[0].waiter.as_ref().unwrap().tid, waiter.pid());
    assert!(!in_flight[0].was_stopped);
    // the old master was not told, and goes on
    assert_ne!(state(scene.master.pid()), 'Z');
    take_over(&scene, waiter);
}

/// As they were before anything was done.
fn unchanged(scene: &Scene, before: &[AutofsMount], what: &str) {
    let facts = |mounts: &[AutofsMount]| -> Vec<_> {
        mounts
            .iter()
            .map(|mount| (mount.path.clone(), mount.catatonic, mount.master.clone(), mount.options.pgrp))
            .collect()
    };
    assert_eq!(facts(&scene.mounts()), facts(before), "{what}");
    let left: Vec<_> = fs::read_dir(&scene.home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains("image")), "{what}: {left:?}");
}

/// Every way to dump and every fault point, each in a scene of its own that nothing of the others is in.
fn at_every_point(check: fn(&Scene, Visitor, mode: &'static str, point: &'static str)) {
    for mode in ["--leave-running", "--hold", "--catatonic"] {
        for &point in faults::DUMP {
            let run = std::thread::Builder::new().name(format!("{mode} {point}"));
            let run = run.spawn(move || {
                let scene = Scene::new();
                let waiter = scene.waiter();
                check(&scene, waiter, mode, point);
            });
            run.unwrap().join().unwrap_or_else(|_| panic!("{mode} {point}"));
        }
    }
}

/// Does a dump of this kind come by at this point?
fn passes(mode: &str, point: &str) -> bool {
    match point {
        "dump.holder-started" => mode == "--hold",
        "dump.visitors-held"
        | "dump.first-catatonic"
        | "dump.all-catatonic"
        | "dump.waiters-restarting"
        | "dump.waiters-stopped" => mode == "--catatonic",
        _ => true,
    }
}

#[test]
fn every_fault_is_undone() {
    at_every_point(|scene, waiter, mode, point| {
        let before = scene.mounts();
        let (success, text) = scene.dump_with(&[mode], point);
        if passes(mode, point) && point != "dump.written" {
            assert!(!success && text.contains(point), "{text}");
            unchanged(scene, &before, point);
            assert!(holders(scene).is_empty());
        } else {
            // nothing was to fail
            assert!(success, "{text}");
            if mode == "--catatonic" {
                return;
            }
        }
        scene.go();
        let (status, text) = waiter.outcome();
        assert!(status.success(), "{text}");
        scene.visit("idle");
    });
}

#[test]
fn what_a_killed_dump_leaves_is_undone_by_the_next() {
    at_every_point(|scene, waiter, mode, point| {
        if !passes(mode, point) {
            return;
        }
        let before = scene.mounts();
        let (success, text) = scene.dump_with(&[mode], &format!("{point}:kill"));
        assert!(!success, "{text}");
        let (success, text) = scene.dump_with(&["--hold", "--replace"], "");
        assert!(success, "{text}");
        // the one that was left behind is told to end
        wait_until(|| (holders(scene).len() == 1).then_some(()));
        fs::remove_dir_all(scene.path("image")).unwrap();
        unchanged(scene, &before, point);
        scene.go();
        // between CATATONIC and the notes of who is stopped a waiter may see the error
        let (status, text) = waiter.outcome();
        let may_fail =
            ["dump.first-catatonic", "dump.all-catatonic", "dump.waiters-restarting"].contains(&point);
        assert!(status.success() || may_fail, "{status} {text}");
        scene.visit("idle");
    });
}
