//! Checkpoints for tests.

use crate::discover::facts::*;
use crate::image::checkpoint::*;
use crate::sys::DevNum;
use crate::sys::control::{Requester, Token};
use crate::sys::process::ProcessId;

/// Facts of an indirect mount that automount serves.
pub fn facts(mount_id: u64, minor: u32, path: &str) -> AutofsMount {
    let process = ProcessId { pid: 812, start_time: 4711 };
    AutofsMount {
        mount_id,
        parent_id: 28,
        dev: DevNum::anonymous(minor),
        path: path.into(),
        root: "/".into(),
        source: "/etc/auto.data".into(),
        options: AutofsOptions {
            fd: 6,
            pgrp: 812,
            timeout: 300,
            min_proto: 5,
            max_proto: 5,
            mount_type: MountType::Indirect,
            strict_expire: false,
            ignore: true,
            uid: None,
            gid: None,
            pipe_ino: Some(15_931),
            unknown: Vec::new(),
        },
        mount_flags: vec!["rw".into(), "relatime".into()],
        propagation: Propagation { shared: Some(7), ..Propagation::default() },
        catatonic: false,
        pipe_ends: vec![PipeEnd {
            process,
            comm: "automount".into(),
            fd: 5,
            end: End::Read,
            flags: 0o2_004_000,
        }],
        master: Master::Automount { process },
        covering: Vec::new(),
        autofs_children: Vec::new(),
        waiters: Vec::new(),
        hidden_by: None,
    }
}

/// A mount without anything inside.
pub fn mount(facts: AutofsMount) -> DumpedMount {
    DumpedMount { root_mode: 0o755, ..DumpedMount::of(facts) }
}

/// A directory in a mount's tree.
pub fn directory(path: &str) -> TreeEntry {
    TreeEntry {
        path: path.into(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        symlink: None,
        timeout: None,
        requester: None,
    }
}

/// One of everything.
pub fn checkpoint() -> Checkpoint {
    let process = ProcessId { pid: 4102, start_time: 90_001 };
    let mut indirect = mount(facts(40, 57, "/data"));
    let waiter = Waiter { tid: 4103, process, comm: "make".into(), expiring: false };
    indirect.facts.waiters = vec![waiter.clone()];
    indirect.facts.autofs_children = vec![52];
    indirect.facts.covering = vec![CoveringMount {
        mount_id: 51,
        path: "/data/src".into(),
        dev: DevNum { major: 8, minor: 300 },
        root: "/export".into(),
        fstype: "ext4".into(),
        source: "/dev/sdb1".into(),
        mount_flags: vec!["rw".into()],
        super_options: vec!["rw".into(), "errors=remount-ro".into()],
        propagation: Propagation::default(),
    }];
    let link = TreeEntry { symlink: Some("../../etc".into()), mode: 0o777, ..directory("link") };
    let requester = Some(Requester { uid: 1000, gid: 1000 });
    let key = TreeEntry { timeout: Some(60), requester, ..directory("src") };
    indirect.tree = vec![key, directory("src/deep"), link];
    indirect.in_flight = vec![InFlight {
        packet: Some((Token(9), b"new".to_vec())),
        waiter: Some(waiter),
        was_stopped: false,
    }];
    indirect.served_by = Some(0);
    indirect.active = vec![ActiveKey { key: b"src".to_vec(), entry: Some(b"-rw :/dev/sdb1".to_vec()) }];

    let mut offset = mount(facts(52, 0x12345, "/data/src/deep"));
    offset.facts.parent_id = 51;
    offset.facts.options.mount_type = MountType::Offset;
    offset.facts.options.timeout = 1 << 40;
    offset.root_requester = requester;

    let mut unit = mount(facts(60, 58, "/srv/\u{e4} b"));
    unit.facts.options = AutofsOptions {
        mount_type: MountType::Direct,
        fd: -1,
        pipe_ino: None,
        uid: Some(u32::MAX - 1),
        unknown: vec!["shiny=1".into()],
        ..unit.facts.options
    };
    unit.facts.catatonic = true;
    unit.facts.pipe_ends.clear();
    unit.facts.master = Master::Dead;
    unit.served_by = Some(1);

    Checkpoint {
        origin: Origin {
            created: 1_700_000_000,
            tool: "0.1.0".into(),
            kernel: "6.12.0".into(),
            boot_id: "5f3c".into(),
            mount_namespace: 4_026_531_841,
            left: Left::Held { holder: process },
        },
        mounts: vec![indirect, offset, unit],
        services: vec![
            Service::MasterEntry {
                mount_point: "/data".into(),
                map: b"/etc/auto.data".to_vec(),
                options: b"--timeout 300".to_vec(),
                entries: vec![
                    (b"src".to_vec(), b"-rw :/dev/sdb1".to_vec()),
                    (b"*".to_vec(), b"srv:/&\xff".to_vec()),
                ],
            },
            Service::Unit {
                unit: "srv-x.automount".into(),
                mount_point: "/srv/x".into(),
                what: b"/dev/sdc".to_vec(),
                fstype: "xfs".into(),
                options: b"ro".to_vec(),
                timeout: 30,
            },
        ],
    }
}
