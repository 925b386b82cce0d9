//! `autofs-cr restore` as a user calls it, on images that are made here.

use crate::common::{LIMIT, private_mount_namespace};
use autofs_cr::discover::facts::{AutofsMount, AutofsOptions, Master, MountType, Propagation, TreeEntry};
use autofs_cr::image::checkpoint::{Checkpoint, DumpedMount, Left, Origin};
use autofs_cr::image::{self, Existing};
use autofs_cr::sys::DevNum;
use autofs_cr::sys::control::{Control, Requester};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Run the program; fails the test when it takes too long.
pub fn autofs_cr(arguments: &[&str], fault: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autofs-cr"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs(fault.map(|fault| ("AUTOFS_CR_FAULT", fault)));
    let mut child = command.spawn().unwrap();
    let start = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("took too long: {:?}", child.wait_with_output());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// It succeeds; what it printed as JSON.
pub fn restore(arguments: &[&str]) -> serde_json::Value {
    let output = autofs_cr(&[&["restore", "--json"], arguments].concat(), None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A free minor, well above those in use.
pub fn origin(left: Left) -> Origin {
    Origin {
        created: 1,
        tool: "test".into(),
        kernel: "6".into(),
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().into(),
        mount_namespace: 1,
        left,
    }
}

pub fn dumped(path: &Path, minor: u32, mount_type: MountType) -> DumpedMount {
    DumpedMount {
        facts: AutofsMount {
            mount_id: minor.into(),
            parent_id: 1,
            dev: DevNum::anonymous(minor),
            path: path.into(),
            root: "/".into(),
            source: "/etc/auto.x".into(),
            options: AutofsOptions::parse(
                format!("fd=5,pgrp=1,timeout=300,minproto=5,maxproto=5,{mount_type},pipe_ino=1").as_bytes(),
            ),
            mount_flags: vec!["rw".into(), "relatime".into()],
            propagation: Propagation::default(),
            catatonic: false,
            pipe_ends: vec![],
            master: Master::Dead,
            covering: vec![],
            autofs_children: vec![],
            waiters: vec![],
        },
        root_mode: 0o755,
        root_uid: 0,
        root_gid: 0,
        root_requester: None,
        tree: vec![],
        in_flight: vec![],
        served_by: None,
        active: vec![],
    }
}

pub fn write_image(dir: &Path, mounts: Vec<DumpedMount>) {
    let checkpoint = Checkpoint { origin: origin(Left::Running), mounts, services: vec![] };
    image::write(dir, &checkpoint, Existing::Replace).unwrap();
}

fn entry(path: &str, mode: u32) -> TreeEntry {
    TreeEntry { path: path.into(), mode, uid: 0, gid: 0, symlink: None, timeout: None, requester: None }
}

#[test]
fn everything_inside_a_mount_comes_back() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let who = Some(Requester { uid: 1234, gid: 77 });
    let mut direct = dumped(&home.join("data"), 300, MountType::Direct);
    direct.facts.options.strict_expire = true;
    direct.facts.options.ignore = true;
    direct.facts.mount_flags = vec!["rw".into(), "nosuid".into(), "noatime".into()];
    direct.facts.propagation.shared = Some(1);
    (direct.root_uid, direct.root_gid, direct.root_mode) = (10, 20, 0o711);
    (direct.facts.options.uid, direct.facts.options.gid) = (Some(10), Some(20));
    direct.root_requester = who;
    direct.tree = vec![entry("sub", 0o2750)];
    let mut indirect = dumped(&home.join("deep/er/mnt"), 299, MountType::Indirect);
    indirect.tree = vec![
        TreeEntry { requester: who, timeout: Some(17), ..entry("key", 0o700) },
        TreeEntry { uid: 5, gid: 6, ..entry("key/sub", 0o1777) },
        entry("key/sub/deeper", 0o755),
        TreeEntry { symlink: Some("/srv/x y".into()), ..entry("link", 0o555) },
    ];
    write_image(&image, vec![direct, indirect]);

    let report = restore(&["-D", image.to_str().unwrap()]);
    println!("{report:#}");
    for (index, minor) in [(0, 300), (1, 299)] {
        let mount = &report["mounts"][index];
        assert_eq!(mount["how"], "created");
        assert_eq!(mount["now"]["dev"]["minor"], minor);
        assert_eq!(mount["differences"], serde_json::json!([]));
    }
    let data = fs::metadata(home.join("data")).unwrap();
    assert_eq!((data.mode() & 0o7777, data.uid(), data.gid()), (0o711, 10, 20));
    assert_eq!(fs::metadata(home.join("data/sub")).unwrap().mode() & 0o7777, 0o2750);
    let mnt = home.join("deep/er/mnt");
    assert_eq!(fs::metadata(mnt.join("key")).unwrap().mode() & 0o7777, 0o700);
    let sub = fs::metadata(mnt.join("key/sub")).unwrap();
    assert_eq!((sub.mode() & 0o7777, sub.uid(), sub.gid()), (0o1777, 5, 6));
    assert!(mnt.join("key/sub/deeper").is_dir());
    assert_eq!(fs::read_link(mnt.join("link")).unwrap(), PathBuf::from("/srv/x y"));

    let control = Control::open().unwrap();
    let root = control.open_mount(&home.join("data"), DevNum::anonymous(300)).unwrap();
    assert_eq!(Some(control.requester(root.as_fd(), &home.join("data")).unwrap()), who);
    let root = control.open_mount(&mnt, DevNum::anonymous(299)).unwrap();
    assert_eq!(control.set_dentry_timeout(root.as_fd(), b"key", Some(1)).unwrap(), 17);
}
