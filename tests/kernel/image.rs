//! Image directories on file systems that are full or are mount points.

use crate::common::private_mount_namespace;
use autofs_cr::image::{Checkpoint, Draft, Existing, ImageError, write};
use autofs_cr::sys::mount::{MountFlags, new_superblock};
use rustix::fs::CWD;
use std::path::{Path, PathBuf};

fn checkpoint() -> Checkpoint {
    serde_json::from_str(include_str!("../data/checkpoint.json")).unwrap()
}

/// A tmpfs that is small in this way.
fn tmpfs(option: (&str, Option<&str>)) -> PathBuf {
    let dir = private_mount_namespace().join("small");
    std::fs::create_dir(&dir).unwrap();
    let tmpfs = new_superblock("tmpfs", Path::new("test"), &[option], MountFlags::empty()).unwrap();
    tmpfs.attach(CWD, &dir).unwrap();
    dir
}

fn is_empty(dir: &Path) -> bool {
    dir.read_dir().unwrap().next().is_none()
}

#[test]
fn a_full_file_system_leaves_nothing() {
    // Its root, the partial directory, and two of five files.
    for option in [("nr_inodes", Some("4")), ("size", Some("8k"))] {
        let parent = tmpfs(option);
        let error = write(&parent.join("image"), &checkpoint(), Existing::Refuse).unwrap_err();
        assert!(matches!(error, ImageError::Io { action: "create" | "write", .. }), "{error}");
        assert!(is_empty(&parent), "{option:?}");
    }
}

#[test]
fn a_mount_point_is_refused_at_once() {
    let dir = tmpfs(("size", Some("1m")));
    let error = Draft::begin(&dir, Existing::Refuse).unwrap_err();
    assert!(matches!(error, ImageError::BadDirectory { .. }), "{error}");
    assert!(is_empty(&dir));
    assert_eq!(dir.parent().unwrap().read_dir().unwrap().count(), 1);
}
