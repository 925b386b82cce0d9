//! listmount and statmount, compared with mountinfo.

use crate::common::{Autofs, mountinfo_line, private_mount_namespace, tmpfs};
use autofs_cr::sys::{
    features,
    mount::MountType,
    statmount::{MountId, id_of, list, stat},
};
use rustix::fs::CWD;
use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, path::Path};

#[test]
fn an_autofs_mount_by_its_descriptor() {
    if !features::get().statmount {
        return; // nothing to test on a kernel before 6.8: the caller reads mountinfo
    }
    let home = private_mount_namespace();
    let path = home.join(OsStr::from_bytes(b"a b\\\xff"));
    let autofs = Autofs::mount(MountType::Indirect, path.clone());
    let id = id_of(&autofs.fd).unwrap().unwrap();
    let found = stat(id).unwrap().unwrap();
    assert_eq!((found.id, found.dev), (id, autofs.dev));
    assert_eq!((found.path, found.fstype.as_str()), (path, "autofs"));
    assert_eq!(found.root, Path::new("/"));
    let line = mountinfo_line(autofs.dev);
    assert!(line.starts_with(&format!("{} ", found.mountinfo_id)));
    if let Some(options) = found.options {
        let options = String::from_utf8(options).unwrap();
        assert!(options.contains("indirect") && line.ends_with(&options), "{options} in {line}");
    }
    if let Some(source) = found.source {
        assert_eq!(source, Path::new("test"));
    }
    assert!(list().unwrap().unwrap().contains(&id));
    assert!(stat(MountId(id.0 + 1_000_000)).is_err());
}

#[test]
fn long_paths_and_many_mounts() {
    if !features::get().statmount {
        return;
    }
    let home = private_mount_namespace();
    let path = (0..15).fold(home, |path, _| path.join("d".repeat(200)));
    fs::create_dir_all(&path).unwrap();
    let mounts: Vec<_> = (0..600)
        .map(|_| {
            let mount = tmpfs();
            mount.attach(CWD, &path).unwrap();
            id_of(&mount).unwrap().unwrap()
        })
        .collect();
    for id in [mounts.first(), mounts.last()] {
        assert_eq!(stat(*id.unwrap()).unwrap().unwrap().path, path);
    }
    let all = list().unwrap().unwrap();
    assert!(mounts.iter().all(|id| all.contains(id)));
}
