//! Files that change while their map is served.

use crate::common::{Setup, root};
use autofs_cr::engine::maps::Map;
use std::path::PathBuf;

fn path(map: &Map) -> PathBuf {
    PathBuf::from(&map.entry.map.name)
}

#[test]
fn an_indirect_map_is_read_again_when_it_changes() {
    let opened = Setup::default().open("a s:/1\n");
    assert!(!opened.map.refresh().unwrap());
    std::fs::write(path(&opened.map), "a s:/two\nb s:/b\n").unwrap();
    assert_eq!(opened.lookup("a"), "-t nfs s:/two");
    assert_eq!(opened.lookup("b"), "-t nfs s:/b");
}

#[test]
fn a_direct_map_changes_as_a_whole() {
    let opened = Setup { mount_point: "/-", ..Setup::default() }.open("/a s:/1\n");
    std::fs::write(path(&opened.map), "/a s:/two\n/b s:/b\n").unwrap();
    assert_eq!(opened.lookup("/a"), "-t nfs s:/1");
    assert_eq!(opened.lookup("/b"), "ENOENT");
    assert!(opened.map.refresh().unwrap());
    assert_eq!(opened.lookup("/a"), "-t nfs s:/two");
    assert_eq!(opened.keys(), ["/a", "/b"]);
}

#[test]
fn a_file_that_is_replaced_is_seen() {
    let opened = Setup::default().open("a s:/1\n");
    let file = path(&opened.map);
    let new = file.with_extension("new");
    std::fs::write(&new, "a s:/2\n").unwrap();
    std::fs::rename(&new, &file).unwrap();
    assert_eq!(opened.lookup("a"), "-t nfs s:/2");
}

#[test]
fn included_files_are_watched_too() {
    let files = [("inc", "a s:/1\n")];
    let opened = Setup { files: &files, ..Setup::default() }.open("+@/inc\n+@/later\n");
    assert_eq!(opened.lookup("a"), "-t nfs s:/1");
    assert_eq!(opened.warnings().len(), 1);
    std::fs::write(path(&opened.map).with_file_name("inc"), "a s:/22\n").unwrap();
    std::fs::write(path(&opened.map).with_file_name("later"), "b s:/b\n").unwrap();
    assert_eq!(opened.lookup("a"), "-t nfs s:/22");
    assert_eq!(opened.lookup("b"), "-t nfs s:/b");
    assert_eq!(opened.warnings().len(), 0);
}

#[test]
fn a_file_that_vanishes_is_an_error() {
    let opened = Setup::default().open("a s:/1\n");
    std::fs::remove_file(path(&opened.map)).unwrap();
    assert!(opened.lookup("a").starts_with("error: map @/map: No such file"), "{}", opened.lookup("a"));
    assert!(opened.map.lookup_as(b"a", &root(), &crate::common::Fake, &mut Vec::new()).is_err());
}

#[test]
fn a_file_that_is_written_again_keeps_its_meaning() {
    let opened = Setup::default().open("dup s:/1\ndup s:/2\n* s:/any/&\n");
    let text = std::fs::read(path(&opened.map)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(path(&opened.map), text).unwrap();
    assert!(opened.map.refresh().unwrap());
    assert_eq!(opened.lookup("dup"), "-t nfs s:/1");
    assert_eq!(opened.lookup("x"), "-t nfs s:/any/x");
    assert_eq!(opened.warnings().len(), 1);
}
