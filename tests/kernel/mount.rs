//! The mount API.

use crate::common::{Autofs, mountinfo_line, private_mount_namespace, tmpfs, unmount_idle};
use autofs_cr::sys::mount::{self, Change, MountError, MountFlags, MountType, Propagation, Unmount};
use rustix::fs::CWD;
use std::{fs, path::Path};

#[test]
fn autofs_gets_all_its_options() {
    let home = private_mount_namespace();
    let autofs = Autofs::mount_with(MountType::Offset, home.join("all"), |params| {
        params.uid = Some(12);
        params.gid = Some(34);
        params.strict_expire = true;
        params.ignore = true;
    });
    let line = mountinfo_line(autofs.dev);
    for option in ["offset", "uid=12", "gid=34", "strictexpire", "ignore", "maxproto=5"] {
        assert!(line.contains(option), "{option} in {line}");
    }
}

#[test]
fn refusals_say_what_the_kernel_said() {
    private_mount_namespace();
    let source = Path::new("test");
    let none = MountFlags::empty();
    let unknown = mount::new_superblock::<&str>("no-such-fs", source, &[], none);
    assert!(matches!(unknown, Err(MountError::UnknownType(_))), "{unknown:?}");
    let option = mount::new_superblock("tmpfs", source, &[("bogus", Some("1"))], none);
    let message = option.unwrap_err().to_string();
    assert!(message.contains("bogus=1"), "{message}");
    assert!(message.contains("Unknown parameter"), "the kernel's log: {message}");
}

#[test]
fn a_dropped_mount_is_gone_and_an_attached_one_stays() {
    let home = private_mount_namespace();
    let (dropped, kept) = (tmpfs(), tmpfs());
    let (dropped_dev, kept_dev) = (dropped.dev().unwrap(), kept.dev().unwrap());
    assert_ne!(dropped_dev, kept_dev);
    fs::create_dir(home.join("kept")).unwrap();
    kept.attach(CWD, &home.join("kept")).unwrap();
    drop((dropped, kept));
    assert!(mountinfo_line(kept_dev).contains("/mnt/kept"));
}

#[test]
fn binds_flags_and_propagation() {
    let home = private_mount_namespace();
    for name in ["a", "a/below", "b"] {
        fs::create_dir(home.join(name)).unwrap();
    }
    let tree = tmpfs();
    tree.attach(CWD, &home.join("a/below")).unwrap();
    mount::bind(CWD, &home.join("a"), true).unwrap().attach(CWD, &home.join("b")).unwrap();
    assert!(fs::metadata(home.join("b/below")).is_ok());
    let change = Change {
        set: MountFlags::MOUNT_ATTR_NOSUID | MountFlags::MOUNT_ATTR_RDONLY,
        propagation: Some(Propagation::Shared),
        ..Change::propagation(Propagation::Private, false)
    };
    change.apply(CWD, &home.join("a/below")).unwrap();
    let line = mountinfo_line(tree.dev().unwrap());
    assert!(line.contains("ro,nosuid") && line.contains("shared:"), "{line}");
    let error = change.apply(CWD, &home.join("a")).unwrap_err();
    assert!(matches!(error, MountError::NotMounted(_)), "{error}");
}

#[test]
fn unmount_tells_busy_from_absent() {
    let home = private_mount_namespace();
    let path = home.join("m");
    fs::create_dir(&path).unwrap();
    let absent = mount::unmount(&path, Unmount::Idle).unwrap_err();
    assert!(matches!(absent, MountError::NotMounted(_)), "{absent}");
    tmpfs().attach(CWD, &path).unwrap();
    let file = fs::File::create(path.join("open")).unwrap();
    let busy = mount::unmount(&path, Unmount::Idle).unwrap_err();
    assert!(matches!(busy, MountError::Busy(_)), "{busy}");
    mount::unmount(&path, Unmount::Lazy).unwrap();
    drop(file);
}

#[test]
fn no_step_triggers_an_automount() {
    let home = private_mount_namespace();
    // The owner never triggers: make somebody else the owner.
    let owner = crate::common::Visitor::idle();
    let autofs = Autofs::mount_with(MountType::Direct, home.join("direct"), |params| {
        params.pgrp = Some(owner.pid());
    });
    tmpfs().attach(CWD, &autofs.path).unwrap();
    unmount_idle(&autofs.path);
    Change::propagation(Propagation::Slave, false).apply(CWD, &autofs.path).unwrap();
    let covered = autofs.control.is_mount_point(&autofs.path).unwrap();
    assert_eq!(covered.unwrap().dev, autofs.dev);
}

/// The mount API takes values up to 255 bytes only.
#[test]
fn long_options_work_too() {
    let home = private_mount_namespace();
    let layers: Vec<_> = (0..30).map(|number| home.join(format!("layer-{number}"))).collect();
    for layer in &layers {
        fs::create_dir(layer).unwrap();
        fs::write(layer.join(layer.file_name().unwrap()), "").unwrap();
    }
    let lower = layers.iter().map(|layer| layer.to_str().unwrap()).collect::<Vec<_>>().join(":");
    let source = "s".repeat(1000);
    let flags = MountFlags::MOUNT_ATTR_NODEV;
    let overlay =
        mount::new_superblock("overlay", Path::new(&source), &[("lowerdir", Some(&lower))], flags).unwrap();
    fs::create_dir(home.join("merged")).unwrap();
    overlay.attach(CWD, &home.join("merged")).unwrap();
    assert_eq!(fs::read_dir(home.join("merged")).unwrap().count(), layers.len());
    let line = mountinfo_line(overlay.dev().unwrap());
    assert!(line.contains(&source) && line.contains("nodev"), "{line}");
    let refused = mount::new_superblock("overlay", Path::new(&source), &[("bogus", Some("1"))], flags);
    assert!(matches!(refused, Err(MountError::Create { .. })), "{refused:?}");
}
