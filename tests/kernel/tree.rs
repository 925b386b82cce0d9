//! What is inside a mount is seen without triggering it. The owner is another process: an owner never triggers.

use crate::common::{Autofs, LIMIT, Visitor, private_mount_namespace, tmpfs, wait_until};
use autofs_cr::attach::Target;
use autofs_cr::discover;
use autofs_cr::dump::tree::{Avoid, Tree, read_all};
use autofs_cr::sys::control::Control;
use autofs_cr::sys::mount::{Change, MountType, Propagation};
use autofs_cr::sys::packet::read_packet;
use rustix::fs::CWD;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A mount of another group's.
fn owned_by(owner: &Visitor, mount_type: MountType, path: &Path) -> Autofs {
    Autofs::mount_with(mount_type, path.to_owned(), |params| params.pgrp = Some(owner.pid()))
}

/// Run a program as the owner.
fn as_owner(owner: &Visitor, program: &str, arguments: &[&str]) {
    let arguments: Vec<_> = arguments.iter().map(Path::new).collect();
    let run = Visitor::run_as(program, &arguments, |command| {
        command.process_group(owner.pid());
    });
    let (status, text) = run.outcome();
    assert!(status.success(), "{program}: {text}");
}

fn read(mounts: &[&Autofs], avoid: Avoid) -> Vec<Tree> {
    let targets: Vec<_> =
        mounts.iter().map(|mount| Target { path: mount.path.clone(), dev: mount.dev }).collect();
    let control = Arc::new(Control::open().unwrap());
    read_all(&control, &discover::Target::Own, &targets, avoid).into_iter().map(Result::unwrap).collect()
}

/// `path mode uid gid -> target` of each entry.
fn lines(tree: &Tree) -> Vec<String> {
    let line = |entry: &autofs_cr::discover::facts::TreeEntry| {
        let target =
            entry.symlink.as_ref().map_or(String::new(), |target| format!(" -> {}", target.display()));
        format!("{} {:o} {}:{}{target}", entry.path.display(), entry.mode, entry.uid, entry.gid)
    };
    tree.entries.iter().map(line).collect()
}

fn nothing_was_asked(mount: &Autofs) {
    assert_eq!(read_packet(mount.pipe.read.as_fd()), Ok(None));
}

/// With idle keys, covered ones, a rootless multi-mount and symlinks, at every depth.
fn furnished(owner: &Visitor, path: &Path) -> Autofs {
    let mount = owned_by(owner, MountType::Indirect, path);
    let shell = "
        cd $0
        mkdir -m 2751 idle; chown 12:34 idle
        mkdir -m 711 covered
        mkdir -p multi/deep/er multi/covered; chmod 700 multi/deep
        ln -s /elsewhere link; ln -s ../up multi/deep/link; chown -h 5:6 link
    ";
    as_owner(owner, "sh", &["-ec", shell, path.to_str().unwrap()]);
    for covered in ["covered", "multi/covered"] {
        tmpfs().attach(CWD, &path.join(covered)).unwrap();
    }
    mount
}

const FURNITURE: [&str; 8] = [
    "covered 711 0:0",
    "idle 2751 12:34",
    "link 555 5:6 -> /elsewhere",
    "multi 755 0:0",
    "multi/covered 755 0:0",
    "multi/deep 700 0:0",
    "multi/deep/er 755 0:0",
    "multi/deep/link 555 0:0 -> ../up",
];

#[test]
fn everything_inside_is_seen_and_nothing_is_triggered() {
    let home = private_mount_namespace();
    let owner = Visitor::idle();
    let mount = furnished(&owner, &home.join("indirect"));
    let trees = read(&[&mount], Avoid::default());
    assert_eq!(lines(&trees[0]), FURNITURE);
    assert_eq!((trees[0].mode, trees[0].uid, trees[0].gid), (0o755, 0, 0));
    assert!(trees[0].guessed.is_empty());
    nothing_was_asked(&mount);
}

#[test]
fn where_no_copy_may_be_made_what_covers_hides() {
    let home = private_mount_namespace();
    let owner = Visitor::idle();
    let mount = furnished(&owner, &home.join("indirect"));
    Change::propagation(Propagation::Unbindable, false).apply(CWD, &mount.path).unwrap();
    let trees = read(&[&mount], Avoid::default());
    let guessed: Vec<_> = trees[0].guessed.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(guessed, ["covered", "multi/covered"]);
    assert_eq!(lines(&trees[0]).len(), 8);
    assert_eq!(lines(&trees[0])[0], "covered 755 0:0");
    nothing_was_asked(&mount);
}

#[test]
fn covered_direct_mounts_and_their_directories() {
    let home = private_mount_namespace();
    let owner = Visitor::idle();
    let idle = owned_by(&owner, MountType::Direct, &home.join("idle"));
    let covered = owned_by(&owner, MountType::Direct, &home.join("covered"));
    as_owner(&owner, "mkdir", &["-p", home.join("covered/sub/dir").to_str().unwrap()]);
    tmpfs().attach(CWD, &covered.path).unwrap();
    let trees = read(&[&idle, &covered], Avoid::default());
    assert!(lines(&trees[0]).is_empty());
    assert_eq!(lines(&trees[1]), ["sub 755 0:0", "sub/dir 755 0:0"]);
    nothing_was_asked(&idle);
    nothing_was_asked(&covered);
}

#[test]
fn a_key_with_an_open_request_stops_nobody() {
    let home = private_mount_namespace();
    let owner = Visitor::idle();
    let first = furnished(&owner, &home.join("first"));
    let second = furnished(&owner, &home.join("second"));
    let _waiter = Visitor::run("ls", &[&first.path.join("idle")]);
    first.request();
    let start = Instant::now();
    let trees = read(&[&first, &second], Avoid::default());
    assert!(start.elapsed() < LIMIT / 4);
    assert_eq!(trees[0].guessed, [Path::new("idle")]);
    assert_eq!(lines(&trees[0])[1], "idle 755 0:0");
    assert_eq!(lines(&trees[0])[2..], FURNITURE[2..]);
    assert_eq!(lines(&trees[1]), FURNITURE);

    // A root that was opened otherwise is read by every walker.
    let mut otherwise = Avoid::default();
    otherwise.root(first.dev);
    assert_eq!(read(&[&first], otherwise)[0], trees[0]);

    // known beforehand, it costs nothing
    let mut avoid = Avoid::default();
    avoid.key(first.dev, "idle".into());
    wait_until(|| {
        let start = Instant::now();
        assert_eq!(read(&[&first, &second], avoid.clone())[0], trees[0]);
        // a stall takes longer
        (start.elapsed().as_millis() < 200).then_some(())
    });
}

#[test]
fn many_open_requests_use_up_the_patience() {
    let home = private_mount_namespace();
    let owner = Visitor::idle();
    let mount = owned_by(&owner, MountType::Indirect, &home.join("indirect"));
    let keys: Vec<_> = (0..12).map(|key| mount.path.join(key.to_string())).collect();
    let arguments: Vec<_> = keys.iter().map(|key| key.to_str().unwrap()).collect();
    as_owner(&owner, "mkdir", &arguments);
    let waiters: Vec<_> = keys.iter().map(|key| Visitor::run("ls", &[key])).collect();
    for _ in &waiters {
        mount.request();
    }
    let start = Instant::now();
    let trees = read(&[&mount], Avoid::default());
    assert!(start.elapsed() < LIMIT / 4);
    assert_eq!(trees[0].guessed.len(), keys.len());
    drop(mount);
    // They end; whether with an error is a matter of tests beside this one, which hold all waiters there are.
    for waiter in waiters {
        waiter.outcome();
    }
}
