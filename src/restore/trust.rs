//! Programs that an image names as maps.
//!
//! They would be run as root, with keys that anybody can look up. An image may come from another machine, so
//! one is run only where the master map here names the same program for the same mount point, or the user
//! says that all may be trusted.

use crate::engine::maps::master::{self, Files, Loader, MapKind, MapName};
use crate::image::{Checkpoint, Command, When};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The programs of the image that would be run and that no master map below `root` vouches for.
pub(super) fn untrusted(image: &Checkpoint, root: &Path) -> Vec<Command> {
    let known = known(root);
    let mut commands = image.commands();
    commands.retain(|command| {
        // A map without a type is a program only where its file is one.
        let runs = command.when == When::Always || is_executable(&below(root, &command.program));
        runs && !known.contains(&(command.mount_point.clone(), command.program.clone()))
    });
    commands
}

/// Mount points and the maps that may be programs, of every entry of the master map.
fn known(root: &Path) -> HashSet<(PathBuf, PathBuf)> {
    let auto_master = MapName { kind: MapKind::Named, format: None, name: "auto.master".into() };
    let mut known = HashSet::new();
    // Without a master map nothing is known.
    let master = master::read(&auto_master, &Below(root)).unwrap_or_default();
    for entry in master.entries {
        let mount_point = entry.mount_point.unwrap_or_else(|| "/-".into());
        add(&mount_point, &entry.map, &mut known);
    }
    known
}

fn add(mount_point: &Path, map: &MapName, known: &mut HashSet<(PathBuf, PathBuf)>) {
    match &map.kind {
        MapKind::Program | MapKind::Path => {
            known.insert((mount_point.to_owned(), PathBuf::from(&map.name)));
        }
        MapKind::Multi(maps) => maps.iter().for_each(|map| add(mount_point, map, known)),
        _ => {}
    }
}

/// Master maps below a root.
struct Below<'a>(&'a Path);

impl Loader for Below<'_> {
    fn load(&self, map: &MapName, above: &[PathBuf]) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let name = Path::new(&map.name);
        let name = if name.is_absolute() { below(self.0, name) } else { name.to_owned() };
        let map = MapName { name: name.into(), ..map.clone() };
        Files { directory: self.0.join("etc") }.load(&map, above)
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::checkpoint::{Left, Origin, Service};

    fn image(services: &[(&str, &str)]) -> Checkpoint {
        let service = |&(mount_point, map): &(&str, &str)| Service::MasterEntry {
            mount_point: mount_point.into(),
            map: map.into(),
            options: vec![],
            entries: vec![],
        };
        let origin = Origin {
            created: 0,
            tool: String::new(),
            kernel: String::new(),
            boot_id: String::new(),
            mount_namespace: 0,
            left: Left::Running,
        };
        Checkpoint { origin, mounts: vec![], services: services.iter().map(service).collect() }
    }

    #[test]
    fn only_what_the_master_map_names_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        fs::create_dir_all(etc.join("auto.master.d")).unwrap();
        fs::write(etc.join("auto.master"), "/home program:/etc/auto.sh\n+dir:/etc/auto.master.d\n").unwrap();
        fs::write(etc.join("auto.master.d/x.autofs"), "/net /etc/auto.net\n").unwrap();
        for (name, mode) in [("auto.sh", 0o755), ("auto.net", 0o755), ("auto.data", 0o644)] {
            fs::write(etc.join(name), "").unwrap();
            fs::set_permissions(etc.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let of = |services: &[(&str, &str)]| {
            let commands = untrusted(&image(services), dir.path());
            commands.into_iter().map(|command| command.mount_point).collect::<Vec<_>>()
        };
        // the same, here and in an included file; a plain file; a program that is not there
        assert_eq!(
            of(&[("/home", "program:/etc/auto.sh"), ("/net", "/etc/auto.net")]),
            [""; 0].map(PathBuf::from)
        );
        assert_eq!(
            of(&[("/data", "/etc/auto.data"), ("/gone", "/etc/auto.gone")]),
            [""; 0].map(PathBuf::from)
        );
        // another place, another program, an executable file that the master map does not name
        let bad = [("/other", "program:/etc/auto.sh"), ("/home", "exec:/bin/rm"), ("/x", "/etc/auto.net")];
        assert_eq!(of(&bad), ["/other", "/home", "/x"].map(PathBuf::from));
    }
}
