//! Our files among those of CRIU.

use super::super::checkpoint::{Checkpoint, DumpedMount};
use super::super::criu::{
    CRIU_MOUNTS_MAGIC, Foreign, Mounts, begin_mounts, encode, encode_cgroups, encode_foreign, name_externals,
    read_cgroups, read_foreign,
};
use super::super::error::ImageError;
use super::super::framing::{Frames, MOUNT_MAGIC, Writer};
use super::super::pack::File;
use super::super::{files, wire};
use super::samples;
use crate::sys::DevNum;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

/// The checkpoint's mounts, and the messages of each superblock.
fn mounts() -> (Vec<DumpedMount>, Vec<(DevNum, Vec<u8>)>) {
    let no_service = |mount| DumpedMount { served_by: None, ..mount };
    let mounts: Vec<_> = samples::checkpoint().mounts.into_iter().map(no_service).collect();
    let devs: BTreeSet<_> = mounts.iter().map(|mount| mount.facts.dev).collect();
    let places = |dev| mounts.iter().enumerate().filter(move |(_, mount)| mount.facts.dev == dev);
    let messages = devs.into_iter().map(|dev| (dev, encode(places(dev)))).collect();
    (mounts, messages)
}

/// All that is in `dir`; the numbers are those of the mounts.
fn read(dir: BorrowedFd<'_>) -> Result<Checkpoint, ImageError> {
    let files = Mounts::read(dir)?;
    let read = files.decode()?;
    assert_eq!(files.numbers()?, read.mounts.iter().map(|mount| mount.facts.dev).collect());
    assert_eq!(files.is_empty(), read.mounts.is_empty());
    Ok(read)
}

#[test]
fn all_mounts_in_one_file() {
    let (mounts, messages) = mounts();
    let dir = tempfile::tempdir().unwrap();
    let fd = std::fs::File::open(dir.path()).unwrap();
    assert_eq!(read(fd.as_fd()).unwrap().mounts, []);
    let File { name, mut bytes } = begin_mounts();
    std::fs::write(dir.path().join(&name), &bytes).unwrap();
    assert_eq!(read(fd.as_fd()).unwrap().mounts, []);
    messages.iter().for_each(|(_, messages)| bytes.extend(messages));
    std::fs::write(dir.path().join(&name), &bytes).unwrap();
    assert_eq!(read(fd.as_fd()).unwrap().mounts, mounts);

    std::fs::write(dir.path().join(&name), &bytes[..bytes.len() - 1]).unwrap();
    assert!(read(fd.as_fd()).is_err());
    bytes.extend(&messages[0].1);
    std::fs::write(dir.path().join(&name), &bytes).unwrap();
    assert!(read(fd.as_fd()).is_err(), "the same mounts twice");
}

#[test]
fn files_among_those_of_criu() {
    let (mounts, messages) = mounts();
    let dir = tempfile::tempdir().unwrap();
    for (dev, messages) in &messages {
        let bytes = [begin_mounts().bytes, messages.clone()].concat();
        std::fs::write(dir.path().join(files::mount(*dev)), bytes).unwrap();
    }
    // One as CRIU itself writes it, and one of another kind.
    let stock = wire::AutofsEntry { fd: Some(3), pgrp: Some(1), ..wire::AutofsEntry::default() };
    let mut file = Writer::new(MOUNT_MAGIC);
    file.push(&stock);
    std::fs::write(dir.path().join("autofs-99.img"), file.finish()).unwrap();
    std::fs::write(dir.path().join("autofs-x.img"), b"no image").unwrap();

    let fd = std::fs::File::open(dir.path()).unwrap();
    assert_eq!(read(fd.as_fd()).unwrap().mounts, mounts);
    assert!(encode([]).is_empty() && !messages.is_empty());
}

#[test]
fn mounts_of_the_host() {
    let mount = |mount_id, path: &str, autofs, slave| Foreign { mount_id, path: path.into(), autofs, slave };
    let mounts = [mount(7, "/net", true, true), mount(8, "/net/a b", false, false)];
    let dir = tempfile::tempdir().unwrap();
    let fd = std::fs::File::open(dir.path()).unwrap();
    assert_eq!(read_foreign(fd.as_fd()).unwrap(), []);
    let file = encode_foreign(&mounts);
    std::fs::write(dir.path().join(&file.name), &file.bytes).unwrap();
    assert_eq!(read_foreign(fd.as_fd()).unwrap(), mounts);
    let relative = encode_foreign(&[mount(7, "net", true, true)]);
    std::fs::write(dir.path().join(&file.name), &relative.bytes).unwrap();
    assert!(read_foreign(fd.as_fd()).is_err());
}

#[test]
fn cgroups_below_the_containers_root() {
    let dir = tempfile::tempdir().unwrap();
    let fd = std::fs::File::open(dir.path()).unwrap();
    assert!(read_cgroups(fd.as_fd()).unwrap().is_empty());
    let paths = ["system.slice", "system.slice/a b.service"].map(PathBuf::from);
    let file = encode_cgroups(&paths);
    std::fs::write(dir.path().join(&file.name), &file.bytes).unwrap();
    assert_eq!(read_cgroups(fd.as_fd()).unwrap(), paths);
    for outside in ["", "/a", "..", "a/../../b"] {
        std::fs::write(dir.path().join(&file.name), encode_cgroups(&[outside.into()]).bytes).unwrap();
        assert!(read_cgroups(fd.as_fd()).is_err(), "{outside:?}");
    }
}

#[test]
fn numbers_of_all_mounts() {
    let (_, messages) = mounts();
    let dir = tempfile::tempdir().unwrap();
    let fd = std::fs::File::open(dir.path()).unwrap();
    let numbers = || Mounts::read(fd.as_fd()).unwrap().all_numbers();
    let table = |name: &str, devs: &[u32]| {
        let mut table = Writer::new(CRIU_MOUNTS_MAGIC);
        let mount = |dev: &u32| wire::CriuMount { root_dev: Some(*dev), ..wire::CriuMount::default() };
        devs.iter().for_each(|dev| table.push(&mount(dev)));
        std::fs::write(dir.path().join(name), table.finish()).unwrap();
    };
    table("mountpoints-12.img", &[41, 8 << 20 | 1, 42, 41]);
    table("mountpoints-13.img", &[43]);
    assert!(numbers().is_empty(), "without mounts of ours");
    let File { name, mut bytes } = begin_mounts();
    messages.iter().for_each(|(_, messages)| bytes.extend(messages));
    std::fs::write(dir.path().join(&name), &bytes).unwrap();
    assert_eq!(numbers(), [41, 42, 43].map(DevNum::anonymous).into());
    // What cannot be read is no reason to fail.
    std::fs::write(dir.path().join("mountpoints-12.img"), "no image").unwrap();
    assert_eq!(numbers(), [DevNum::anonymous(43)].into());
    std::fs::create_dir(dir.path().join("mountpoints-14.img")).unwrap();
    assert!(numbers().is_empty());
}

#[test]
fn mounts_that_are_stacked_get_names_of_their_own() {
    let mount = |id, key: &str| wire::CriuMount {
        mnt_id: Some(id),
        ext_key: Some(key.to_owned()),
        ..wire::CriuMount::default()
    };
    let mut file = Writer::new(CRIU_MOUNTS_MAGIC);
    let names = ["autofs-cr-0000000012", "autofs-cr-0000000012", "autofs-cr-other", "/net"];
    names.iter().zip([11, 12, 13, 14]).for_each(|(name, id)| file.push(&mount(id, name)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mountpoints-12.img");
    std::fs::write(&path, file.finish()).unwrap();
    name_externals(std::fs::File::open(dir.path()).unwrap().as_fd()).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let frames = Frames::open("mountpoints-12.img", &bytes, CRIU_MOUNTS_MAGIC).unwrap();
    let name = |message: wire::CriuMount| message.ext_key.unwrap();
    let found: Vec<_> = frames.map(|frame| name(frame.unwrap().decode(&[], &mut 1000).unwrap())).collect();
    assert_eq!(found, ["autofs-cr-0000000011", names[1], names[2], names[3]]);
}
