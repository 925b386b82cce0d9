//! The directory itself: who may write it, what may lie in it, and that it appears whole or not at all.

use super::samples;
use crate::image::{Distrust, Draft, Existing, ImageError, read, write};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory for one test, and the place of an image in it.
fn place() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("image");
    (parent, dir)
}

fn image() -> (TempDir, PathBuf) {
    let (parent, dir) = place();
    write(&dir, &samples::checkpoint(), Existing::Refuse).unwrap();
    (parent, dir)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = dir.read_dir().unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn distrust(dir: &Path) -> Distrust {
    match read(dir).unwrap_err() {
        ImageError::Untrusted { why, .. } => why,
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_written_is_read() {
    let (parent, dir) = image();
    assert_eq!(read(&dir).unwrap(), samples::checkpoint());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    let files = names(&dir);
    assert_eq!(
        files,
        [
            "autofs-57.img",
            "autofs-58.img",
            "autofs-74565.img",
            "autofs-cr-inventory.img",
            "autofs-cr-services.img"
        ]
    );
    assert!(files.iter().all(|name| mode(&dir.join(name)) == 0o600));
    assert_eq!(names(parent.path()), ["image"]);
}

#[test]
fn a_thousand_mounts_are_written_and_read() {
    let (_parent, dir) = place();
    let mut checkpoint = samples::checkpoint();
    checkpoint.mounts = (0..1000)
        .map(|i| samples::mount(samples::facts(100 + u64::from(i), i, &format!("/m/{i}"))))
        .collect();
    write(&dir, &checkpoint, Existing::Refuse).unwrap();
    assert_eq!(read(&dir).unwrap(), checkpoint);
}

#[test]
fn other_files_beside_the_image_are_ignored() {
    let (_parent, dir) = image();
    fs::write(dir.join("autofs-99.img"), "whatever").unwrap();
    symlink("/etc/passwd", dir.join("dump.log")).unwrap();
    assert_eq!(read(&dir).unwrap(), samples::checkpoint());
}

#[test]
fn no_directory_and_no_image() {
    let (_parent, dir) = place();
    assert!(matches!(read(&dir), Err(ImageError::Io { action: "open", .. })));
    fs::create_dir(&dir).unwrap();
    chmod(&dir, 0o700);
    assert!(matches!(read(&dir), Err(ImageError::NotAnImage { .. })));
}

#[test]
fn a_symlink_in_place_of_a_file_is_refused() {
    let (_parent, dir) = image();
    fs::rename(dir.join("autofs-57.img"), dir.join("elsewhere")).unwrap();
    symlink("elsewhere", dir.join("autofs-57.img")).unwrap();
    assert_eq!(distrust(&dir), Distrust::NotRegular);
}

/// The link itself is nobody's promise; what it leads to is.
#[test]
fn a_symlink_to_the_directory_of_others_is_refused() {
    let (parent, dir) = image();
    let link = parent.path().join("link");
    symlink(&dir, &link).unwrap();
    assert!(read(&link).is_ok());
    chmod(&dir, 0o777);
    assert_eq!(distrust(&link), Distrust::Mode(0o777));
}

#[test]
fn a_fifo_in_place_of_a_file_is_refused_without_waiting() {
    let (_parent, dir) = image();
    let file = dir.join("autofs-cr-inventory.img");
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(distrust(&dir), Distrust::NotRegular);
}

#[test]
fn a_directory_in_place_of_a_file_is_refused() {
    let (_parent, dir) = image();
    fs::remove_file(dir.join("autofs-57.img")).unwrap();
    fs::create_dir(dir.join("autofs-57.img")).unwrap();
    assert_eq!(distrust(&dir), Distrust::NotRegular);
}

#[test]
fn what_others_can_write_is_refused() {
    for (path, mode) in
        [("", 0o770), ("", 0o702), ("autofs-57.img", 0o620), ("autofs-cr-inventory.img", 0o606)]
    {
        let (_parent, dir) = image();
        chmod(&dir.join(path), mode);
        assert_eq!(distrust(&dir), Distrust::Mode(mode), "{path}");
    }
}

/// Needs root, like everything that this program is for.
#[test]
fn what_others_own_is_refused() {
    for path in ["", "autofs-57.img"] {
        let (_parent, dir) = image();
        chown(dir.join(path), Some(1234), None).expect("this test needs root");
        assert_eq!(distrust(&dir), Distrust::Owner(1234), "{path}");
    }
}

#[test]
fn a_file_longer_than_listed_is_not_read() {
    let (_parent, dir) = image();
    let file = fs::OpenOptions::new().write(true).open(dir.join("autofs-57.img")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(read(&dir), Err(ImageError::Length { file, .. }) if file == "autofs-57.img"));
    let file = fs::OpenOptions::new().write(true).open(dir.join("autofs-cr-inventory.img")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(read(&dir), Err(ImageError::TooLarge { .. })));
}

#[test]
fn an_empty_directory_is_taken() {
    let (_parent, dir) = place();
    fs::create_dir(&dir).unwrap();
    write(&dir, &samples::checkpoint(), Existing::Refuse).unwrap();
    assert_eq!(read(&dir).unwrap(), samples::checkpoint());
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn an_image_is_replaced_only_when_asked() {
    let (parent, dir) = image();
    let mut newer = samples::checkpoint();
    newer.mounts.pop();
    newer.origin.created += 1;
    let refused = write(&dir, &newer, Existing::Refuse);
    assert!(matches!(refused, Err(ImageError::Exists { .. })));
    assert_eq!(read(&dir).unwrap(), samples::checkpoint());
    write(&dir, &newer, Existing::Replace).unwrap();
    assert_eq!(read(&dir).unwrap(), newer);
    assert_eq!(names(parent.path()), ["image"]);
}

#[test]
fn what_is_no_image_is_never_replaced() {
    let (parent, dir) = image();
    fs::write(dir.join("thesis.tex"), "years").unwrap();
    let refused = write(&dir, &samples::checkpoint(), Existing::Replace);
    assert!(matches!(refused, Err(ImageError::Exists { .. })));
    assert_eq!(fs::read(dir.join("thesis.tex")).unwrap(), b"years");
    assert_eq!(names(parent.path()), ["image"]);
}

#[test]
fn a_failure_leaves_nothing() {
    let (parent, dir) = place();
    let mut bad = samples::checkpoint();
    bad.mounts[0].facts.path = "relative".into();
    assert!(matches!(write(&dir, &bad, Existing::Refuse), Err(ImageError::Field { .. })));
    assert_eq!(names(parent.path()), [""; 0]);
    fs::write(&dir, "a file").unwrap();
    assert!(write(&dir, &samples::checkpoint(), Existing::Replace).is_err());
    assert_eq!(names(parent.path()), ["image"]);
}

#[test]
fn a_failure_at_the_last_step_leaves_nothing() {
    let (parent, dir) = place();
    let draft = Draft::begin(&dir, Existing::Refuse).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("new"), "since then").unwrap();
    assert!(matches!(draft.commit(&samples::checkpoint()), Err(ImageError::Exists { .. })));
    assert_eq!(names(parent.path()), ["image"]);
    assert_eq!(names(&dir), ["new"]);
}

/// Others must not be able to choose what a dump by root removes or writes through.
#[test]
fn a_partial_directory_that_others_made_is_refused() {
    let (parent, dir) = place();
    let partial = parent.path().join(".image.partial");
    fs::create_dir(&partial).unwrap();
    chmod(&partial, 0o777);
    fs::write(partial.join("precious"), "").unwrap();
    let refused = Draft::begin(&dir, Existing::Refuse);
    assert!(matches!(refused, Err(ImageError::Untrusted { why: Distrust::Mode(0o777), .. })));
    assert_eq!(names(&partial), ["precious"]);
    fs::remove_dir_all(&partial).unwrap();
    symlink("/etc", &partial).unwrap();
    assert!(matches!(Draft::begin(&dir, Existing::Refuse), Err(ImageError::Io { .. })));
}

#[test]
fn what_a_killed_dump_left_is_swept_away() {
    let (parent, dir) = place();
    let partial = parent.path().join(".image.partial");
    fs::DirBuilder::new().mode(0o700).create(&partial).unwrap();
    fs::write(partial.join("autofs-57.img"), "half").unwrap();
    write(&dir, &samples::checkpoint(), Existing::Refuse).unwrap();
    assert_eq!(names(parent.path()), ["image"]);
    assert_eq!(read(&dir).unwrap(), samples::checkpoint());
}

#[test]
fn two_dumps_to_the_same_place_do_not_meet() {
    let (parent, dir) = place();
    let draft = Draft::begin(&dir, Existing::Refuse).unwrap();
    assert!(matches!(Draft::begin(&dir, Existing::Refuse), Err(ImageError::Busy { .. })));
    draft.commit(&samples::checkpoint()).unwrap();
    assert_eq!(names(parent.path()), ["image"]);
}

#[test]
fn a_draft_that_is_dropped_leaves_nothing() {
    let (parent, dir) = place();
    drop(Draft::begin(&dir, Existing::Refuse).unwrap());
    assert_eq!(names(parent.path()), [""; 0]);
}

#[test]
fn places_that_cannot_be_an_image() {
    for dir in ["/", "..", ""] {
        let refused = Draft::begin(Path::new(dir), Existing::Refuse);
        assert!(matches!(refused, Err(ImageError::BadDirectory { .. })), "{dir:?}");
    }
    let (_parent, dir) = place();
    let refused = Draft::begin(&dir.join("deep"), Existing::Refuse);
    assert!(matches!(refused, Err(ImageError::Io { action: "open", .. })));
}
