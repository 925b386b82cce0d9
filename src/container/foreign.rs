//! Foreign mounts: those of the host's automounter, that a container sees as binds and through propagation. They are
//! not made anew: CRIU takes them for external mounts, and a restore gives it copies of the host's own ([`back`]).
//!
//! What was there on the host is written down beside, as `autofs-cr dump` does it, so that a host on which nobody serves
//! these paths can have them from our engine.

pub mod back;

use crate::discover::facts::AutofsMount;
use crate::discover::mountinfo::{self, Entry};
use crate::discover::{DiscoverError, Target, survey};
use crate::dump::plan::{Mode, Wishes};
use crate::dump::{self, Request};
use crate::image::Existing;
use crate::image::criu::Foreign;
use crate::sys::{DevNum, fork};
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The image of the host's mounts, in CRIU's image directory.
pub const HOST_IMAGE: &str = "autofs-cr-host";

/// A foreign mount and where the container has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// In the container.
    pub place: PathBuf,
    /// On the host.
    pub mount: Foreign,
}

/// The autofs mounts of process `root` that are foreign: nobody `inside` reads their pipes, and this process's mount
/// namespace has them, too. With all that the host has mounted below them; parents first.
pub fn find(
    root: i32,
    mounts: &[AutofsMount],
    inside: impl Fn(&AutofsMount) -> bool,
) -> Result<Vec<Seen>, DiscoverError> {
    if mounts.iter().all(&inside) {
        return Ok(Vec::new());
    }
    let (namespace, host) = survey::read(&Target::Own)?;
    let (its, container) = survey::read(&Target::Process(root))?;
    if namespace == its {
        return Ok(Vec::new());
    }
    let (host, container) = (mountinfo::parse(&host)?, mountinfo::parse(&container)?);
    let outside: HashSet<DevNum> =
        mounts.iter().filter(|mount| !inside(mount)).map(|mount| mount.dev).collect();
    Ok(compare(&container, &host, &outside))
}

/// `outside`: superblocks whose masters are not in the container.
fn compare(container: &[Entry<'_>], host: &[Entry<'_>], outside: &HashSet<DevNum>) -> Vec<Seen> {
    let mut at: HashMap<(DevNum, &[u8]), Vec<PathBuf>> = HashMap::new();
    for entry in host {
        at.entry((entry.dev, entry.root)).or_default().push(mountinfo::path(entry.mount_point));
    }
    let by_id: HashMap<u64, &Entry<'_>> = container.iter().map(|entry| (entry.id, entry)).collect();
    let mut found: Vec<Seen> = Vec::new();
    // What was moved below a younger mount is printed before its parent.
    let mut ordered: Vec<_> = container.iter().collect();
    ordered.sort_by_key(|entry| depth(entry, &by_id));
    for entry in ordered {
        let Some(there) = at.get(&(entry.dev, entry.root)) else { continue };
        let place = mountinfo::path(entry.mount_point);
        let parent = found.iter().find(|seen| seen.mount.mount_id == entry.parent);
        // Below a foreign mount: at the same place below the host's. The first of all: wherever the host has it.
        let path = match parent {
            Some(parent) => {
                let below = place.strip_prefix(&parent.place).unwrap_or(Path::new(""));
                let want = join(&parent.mount.path, below);
                there.iter().find(|path| **path == want)
            }
            None if entry.is_autofs() && outside.contains(&entry.dev) => there.first(),
            None => None,
        };
        let Some(path) = path.cloned() else { continue };
        let slave = entry.propagation.slave_of.is_some();
        let mount = Foreign { mount_id: entry.id, path, autofs: entry.is_autofs(), slave };
        found.push(Seen { place, mount });
    }
    found
}

/// An empty path adds no slash.
fn join(path: &Path, below: &Path) -> PathBuf {
    path.components().chain(below.components()).collect()
}

fn depth(entry: &Entry<'_>, by_id: &HashMap<u64, &Entry<'_>>) -> usize {
    let above = std::iter::successors(Some(entry), |entry| by_id.get(&entry.parent).copied());
    above.take(by_id.len()).count()
}

/// Write down what serves these mounts, into CRIU's image directory. Returns what could not be.
pub fn record(dir: BorrowedFd<'_>, mounts: &[Seen]) -> Vec<String> {
    let autofs = mounts.iter().filter(|seen| seen.mount.autofs);
    let paths = autofs.map(|seen| seen.mount.path.clone()).collect();
    let request = Request {
        dir: Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(HOST_IMAGE),
        existing: Existing::Replace,
        target: Target::Own,
        wishes: Wishes { paths, without_units: false, mode: Mode::LeaveRunning },
        program: PathBuf::new(),
    };
    // A dump has threads, and CRIU's process must have one only.
    let told = std::io::pipe().map_err(|error| error.to_string()).and_then(|(mut receive, send)| {
        let child = fork::fork(|| {
            let warnings = match dump::dump(&request) {
                Ok(report) => report.warnings,
                Err(error) => vec![error.to_string()],
            };
            (&send).write_all(warnings.join("\n").as_bytes()).map_or(1, |()| 0)
        });
        drop(send);
        let child = child.map_err(|errno| errno.to_string())?;
        let mut text = String::new();
        receive.read_to_string(&mut text).map_err(|error| error.to_string())?;
        let _ = child.wait();
        Ok(text)
    });
    told.unwrap_or_else(|error| error).lines().map(|line| format!("the host's automounter: {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "\
1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw
10 1 0:50 / /net rw shared:2 - autofs auto.net rw,fd=5,pgrp=9,timeout=60,minproto=5,maxproto=5,indirect
11 10 8:1 /srv/a /net/a rw shared:3 - ext4 /dev/sda rw
12 1 0:51 / /d/one rw shared:4 - autofs auto.direct rw,fd=5,pgrp=9,timeout=60,minproto=5,maxproto=5,direct
13 12 0:60 / /d/one rw shared:5 - tmpfs tmpfs rw
";

    fn seen(place: &str, mount_id: u64, path: &str, autofs: bool) -> Seen {
        let mount = Foreign { mount_id, path: path.into(), autofs, slave: true };
        Seen { place: place.into(), mount }
    }

    #[test]
    fn what_the_host_has_below_its_automounter_is_the_hosts() {
        let container = "\
101 100 0:50 / /data/net rw master:2 - autofs auto.net rw
102 101 8:1 /srv/a /data/net/a rw master:3 - ext4 /dev/sda rw
104 102 0:70 / /data/net/a/own rw - tmpfs tmpfs rw
105 100 0:51 / /one rw master:4 - autofs auto.direct rw
106 105 0:60 / /one rw master:5 - tmpfs tmpfs rw
107 100 0:52 / /mine rw - autofs auto.mine rw
100 90 0:40 / / rw - overlay overlay rw
108 100 8:1 /srv/a /elsewhere rw - ext4 /dev/sda rw
";
        let outside = [50, 51].map(DevNum::anonymous).into();
        let found = compare(
            &mountinfo::parse(container.as_bytes()).unwrap(),
            &mountinfo::parse(HOST.as_bytes()).unwrap(),
            &outside,
        );
        let expected = [
            seen("/data/net", 101, "/net", true),
            seen("/one", 105, "/d/one", true),
            seen("/data/net/a", 102, "/net/a", false),
            seen("/one", 106, "/d/one", false),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_master_inside_is_not_the_hosts() {
        let table = mountinfo::parse(HOST.as_bytes()).unwrap();
        assert_eq!(compare(&table, &table, &HashSet::new()), []);
    }
}
