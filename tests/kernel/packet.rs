//! What the kernel really writes.

use crate::common::{Autofs, Visitor, private_mount_namespace};
use autofs_cr::sys::{
    mount::MountType,
    packet::{Kind, PacketError, read_packet},
};
use std::{
    fs,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

#[test]
fn a_packet_names_mount_key_and_visitor() {
    let home = private_mount_namespace();
    let autofs = Autofs::mount(MountType::Indirect, home.join("indirect"));
    let key = std::ffi::OsStr::from_bytes(b"no utf-8 \xff, spaces");
    let visitor = Visitor::run("ls", &[&autofs.path.join(key)]);
    let request = autofs.request();
    assert_eq!(request.kind, Kind::MissingIndirect);
    assert_eq!(request.name, key.as_bytes());
    assert_eq!(request.dev, autofs.dev);
    assert_eq!(request.ino, fs::metadata(&autofs.path).unwrap().ino());
    assert_eq!(request.tgid, visitor.pid() as u32);
    assert_eq!(read_packet(autofs.pipe.read.as_fd()), Ok(None));
}

#[test]
fn an_older_protocol_is_recognised() {
    let home = private_mount_namespace();
    let autofs = Autofs::mount_with(MountType::Indirect, home.join("old"), |params| {
        params.protocol = (4, 4);
    });
    let _visitor = Visitor::run("ls", &[&autofs.path.join("key")]);
    let read = loop {
        match read_packet(autofs.pipe.read.as_fd()) {
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(2)),
            other => break other,
        }
    };
    assert_eq!(read, Err(PacketError::Protocol(4)));
}

#[test]
fn a_shared_pipe_hangs_up_with_its_last_mount() {
    let home = private_mount_namespace();
    let autofs = Autofs::mount(MountType::Direct, home.join("direct"));
    autofs.control.make_catatonic(autofs.fd.as_fd()).unwrap();
    // our own write end is still open
    assert_eq!(read_packet(autofs.pipe.read.as_fd()), Ok(None));
    assert!(Path::new(&autofs.path).exists());
}
