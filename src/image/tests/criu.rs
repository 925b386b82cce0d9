//! Our files among those of CRIU.

use super::super::checkpoint::DumpedMount;
use super::super::criu::{encode, read};
use super::super::framing::{MOUNT_MAGIC, Writer};
use super::super::wire;
use super::samples;
use std::os::fd::AsFd;

#[test]
fn files_among_those_of_criu() {
    let dir = tempfile::tempdir().unwrap();
    let no_service = |mount| DumpedMount { served_by: None, ..mount };
    let mounts: Vec<_> = samples::checkpoint().mounts.into_iter().map(no_service).collect();
    let mut written = Vec::new();
    for (position, mount) in mounts.iter().enumerate() {
        let places = || mounts.iter().enumerate().filter(|(_, other)| other.facts.dev == mount.facts.dev);
        if places().next().is_some_and(|(first, _)| first == position) {
            let file = encode(places()).unwrap();
            std::fs::write(dir.path().join(&file.name), &file.bytes).unwrap();
            written.push(file.name);
        }
    }
    // One as CRIU itself writes it, and one of another kind.
    let stock = wire::AutofsEntry { fd: Some(3), pgrp: Some(1), ..wire::AutofsEntry::default() };
    let mut file = Writer::new(MOUNT_MAGIC);
    file.push(&stock);
    std::fs::write(dir.path().join("autofs-99.img"), file.finish()).unwrap();
    std::fs::write(dir.path().join("autofs-x.img"), b"no image").unwrap();

    let fd = std::fs::File::open(dir.path()).unwrap();
    assert_eq!(read(fd.as_fd()).unwrap().mounts, mounts);
    assert!(encode([]).is_none() && !written.is_empty());
}
