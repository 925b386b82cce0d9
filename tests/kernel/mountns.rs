//! Entering mount namespaces.

use crate::common::{Autofs, Visitor, mountinfo_line, private_mount_namespace, tmpfs, wait_until};
use autofs_cr::sys::{
    Errno,
    mount::{self, MountType},
    mountns::Space,
};
use rustix::fs::CWD;
use std::{fs, path::Path};

#[test]
fn a_process_namespace_is_entered_and_left() {
    let outside = Space::own().unwrap();
    let home = private_mount_namespace();
    let autofs = Autofs::mount(MountType::Indirect, home.join("indirect"));
    let visitor = Visitor::idle();
    let inside = Space::of_process(visitor.pid()).unwrap();
    let line = inside.run(|| mountinfo_line(autofs.dev)).unwrap();
    assert!(line.contains("/mnt/indirect"));
    let seen = outside.run(|| fs::metadata("/mnt/indirect").is_ok()).unwrap();
    assert!(!seen, "the namespace of before does not have it");
    // a mount that is made there is seen here
    fs::create_dir(home.join("new")).unwrap();
    let dev = inside
        .run(|| {
            let mount = tmpfs();
            mount.attach(CWD, Path::new("/mnt/new")).unwrap();
            mount.dev().unwrap()
        })
        .unwrap();
    assert!(mountinfo_line(dev).contains("/mnt/new"));
}

#[test]
fn a_namespace_file_is_enough() {
    private_mount_namespace();
    let visitor = Visitor::run_as("unshare", &[], |command| {
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg("mount -t tmpfs only-there /mnt && touch /mnt/done && exec sleep 1000");
    });
    let file = format!("/proc/{}/ns/mnt", visitor.pid());
    let own = fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    wait_until(|| (fs::read_link(&file).unwrap() != own).then_some(()));
    let space = Space::of_file(Path::new(&file)).unwrap();
    wait_until(|| space.run(|| fs::metadata("/mnt/done").is_ok()).unwrap().then_some(()));
    drop(visitor);
    assert!(space.run(|| fs::metadata("/mnt/done").is_ok()).unwrap());
    assert!(fs::metadata("/mnt/done").is_err());
}

#[test]
fn the_root_of_a_chrooted_process_is_its_own() {
    let home = private_mount_namespace();
    for name in ["bin", "lib", "lib64", "usr", "proc"] {
        fs::create_dir_all(home.join("root").join(name)).unwrap();
        let _ = mount::bind(CWD, &Path::new("/").join(name), true)
            .and_then(|bind| bind.attach(CWD, &home.join("root").join(name)));
    }
    fs::write(home.join("root/mark"), "").unwrap();
    let visitor = Visitor::run("chroot", &[&home.join("root"), Path::new("sleep"), Path::new("1000")]);
    let root = format!("/proc/{}/root", visitor.pid());
    wait_until(|| (fs::read_link(&root).unwrap() == home.join("root")).then_some(()));
    let space = Space::of_process(visitor.pid()).unwrap();
    assert!(space.run(|| fs::metadata("/mark").is_ok()).unwrap());
}

#[test]
fn what_is_no_mount_namespace_is_refused() {
    private_mount_namespace();
    let space = Space::of_file(Path::new("/proc/self/ns/net")).unwrap();
    assert_eq!(space.run(|| ()), Err(Errno::INVAL));
    assert_eq!(Space::of_process(i32::MAX).err(), Some(Errno::NOENT));
}
