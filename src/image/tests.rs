//! Whole images: written and read, cut, flipped, forged.

use super::samples;
use super::*;
use std::os::unix::fs::PermissionsExt;

#[test]
fn what_is_written_is_read() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("image");
    let checkpoint = samples::checkpoint();
    write(&dir, &checkpoint, Existing::Refuse).unwrap();
    assert_eq!(read(&dir).unwrap(), checkpoint);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    let mut names: Vec<String> = Vec::new();
    for entry in dir.read_dir().unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600);
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "autofs-57.img",
            "autofs-58.img",
            "autofs-74565.img",
            "autofs-cr-inventory.img",
            "autofs-cr-services.img"
        ]
    );
    assert_eq!(parent.path().read_dir().unwrap().count(), 1);
}
