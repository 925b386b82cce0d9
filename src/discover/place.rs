//! Which mount a waiter waits on. The kernel does not tell; what is said here is certain, or not said.

use super::facts::{AutofsMount, MountType, Waiter};
use super::mountinfo;
use super::survey::assemble;
use super::waiters::Found;
use crate::sys::DevNum;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Give the waiters to the mounts that they wait on. Where that cannot be told the waiter is handed back; one
/// that sees none of `mounts`, which are those of `mount_namespace`, is not ours.
pub fn place(found: Vec<Found>, mount_namespace: u64, mounts: &mut [AutofsMount]) -> Vec<Waiter> {
    let (placed, unplaced) = sort(found, mount_namespace, mounts);
    for mount in mounts {
        mount.waiters = placed.get(&mount.dev).cloned().unwrap_or_default();
    }
    unplaced
}

type Placed = HashMap<DevNum, Vec<Waiter>>;

fn sort(found: Vec<Found>, mount_namespace: u64, mounts: &[AutofsMount]) -> (Placed, Vec<Waiter>) {
    let mut by_namespace: HashMap<_, Vec<Found>> = HashMap::new();
    for found in found {
        by_namespace.entry(found.mount_namespace).or_default().push(found);
    }
    let ours: HashSet<_> = mounts.iter().map(|mount| mount.dev).collect();
    let (mut placed, mut unplaced) = (Placed::new(), Vec::new());
    for (namespace, found) in by_namespace {
        let others = (namespace != Some(mount_namespace)).then(|| seen_by(&found));
        let seen = others.as_deref().unwrap_or(mounts);
        let is_shared = seen.iter().any(|mount| ours.contains(&mount.dev));
        let only = only(seen);
        let at: HashMap<_, _> = seen.iter().map(|mount| (mount.path.as_path(), mount)).collect();
        for Found { waiter, path, .. } in found.into_iter().filter(|_| is_shared) {
            match only.or_else(|| trigger(&at, path.as_deref()?)) {
                Some(dev) => placed.entry(dev).or_default().push(waiter),
                None => unplaced.push(waiter),
            }
        }
    }
    (placed, unplaced)
}

/// The autofs mounts of the waiters' namespace.
fn seen_by(found: &[Found]) -> Vec<AutofsMount> {
    let tids = found.iter().map(|found| found.waiter.tid);
    let file = tids.filter_map(|tid| std::fs::read(format!("/proc/{tid}/mountinfo")).ok()).next();
    assemble(&mountinfo::parse(&file.unwrap_or_default()).unwrap_or_default())
}

/// The only one that somebody can wait on.
fn only(mounts: &[AutofsMount]) -> Option<DevNum> {
    let mut with_pipe = mounts.iter().filter(|mount| !mount.catatonic).map(|mount| mount.dev);
    let first = with_pipe.next()?;
    with_pipe.all(|dev| dev == first).then_some(first)
}

/// The mount whose trigger stops a walk of `path`.
///
/// A mount's path goes over no symbolic link, so a walk of a path below it comes to it in any case. Where its
/// trigger is not covered the walk does not go on; where it is, the walk may have gone anywhere.
fn trigger(mounts: &HashMap<&Path, &AutofsMount>, path: &Path) -> Option<DevNum> {
    let deepest = path.ancestors().find_map(|ancestor| mounts.get(ancestor))?;
    let trigger = match deepest.options.mount_type {
        MountType::Direct | MountType::Offset => deepest.path.clone(),
        MountType::Indirect => {
            let key = path.strip_prefix(&deepest.path).ok()?.iter().next()?;
            deepest.path.join(key)
        }
    };
    let is_covered = deepest.covering.iter().any(|covering| covering.path == trigger);
    (!is_covered && !deepest.catatonic).then_some(deepest.dev)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::ProcessId;

    fn mounts(file: &str) -> Vec<AutofsMount> {
        assemble(&mountinfo::parse(file.as_bytes()).unwrap())
    }

    fn found(mount_namespace: u64, path: Option<&str>) -> Vec<Found> {
        let waiter = Waiter {
            tid: i32::MAX,
            process: ProcessId { pid: i32::MAX, start_time: 1 },
            comm: "ls".into(),
            expiring: false,
        };
        vec![Found { waiter, mount_namespace: Some(mount_namespace), path: path.map(Into::into) }]
    }

    #[test]
    fn where_there_is_one_mount_there_is_no_choice() {
        let one = "1 0 0:1 / / rw - tmpfs t rw\n2 1 0:2 / /m rw - autofs m rw,fd=3,direct,pipe_ino=5\n";
        let catatonic = "3 1 0:3 / /n rw - autofs n rw,fd=-1,direct,pipe_ino=-1\n";
        let bound = "4 1 0:2 / /bound rw - autofs m rw,fd=3,direct,pipe_ino=5\n";
        let other = "5 1 0:5 / /o rw - autofs o rw,fd=3,direct,pipe_ino=5\n";

        let mut certain = mounts(&[one, catatonic, bound].concat());
        assert!(place(found(7, None), 7, &mut certain).is_empty());
        let waiting: Vec<_> = certain.iter().map(|mount| (mount.mount_id, mount.waiters.len())).collect();
        assert_eq!(waiting, [(2, 1), (3, 0), (4, 1)]);

        let mut two = mounts(&[one, other].concat());
        assert_eq!(place(found(7, None), 7, &mut two).len(), 1);
        // it sees none of them (it is gone, even)
        assert!(place(found(8, None), 7, &mut two).is_empty());
        assert!(two.iter().all(|mount| mount.waiters.is_empty()));
        assert!(place(found(7, Some("/o/file")), 7, &mut two).is_empty());
        assert_eq!(two[1].waiters.len(), 1);
    }

    #[test]
    fn the_first_trigger_on_the_way_that_is_not_covered() {
        let mounts = mounts(
            "\
2 1 0:2 / /ind rw - autofs m rw,fd=3,indirect,pipe_ino=5
3 2 0:3 / /ind/key rw - tmpfs t rw
4 3 0:4 / /ind/key/off rw - autofs m rw,fd=3,offset,pipe_ino=5
5 1 0:5 / /direct rw - autofs m rw,fd=3,direct,pipe_ino=5
6 5 0:6 / /direct rw - tmpfs t rw
7 1 0:7 / /dead rw - autofs m rw,fd=-1,direct,pipe_ino=-1
",
        );
        let at = mounts.iter().map(|mount| (mount.path.as_path(), mount)).collect();
        let on = |path: &str| trigger(&at, Path::new(path)).map(|dev| dev.minor);
        assert_eq!(on("/ind/other/file"), Some(2));
        assert_eq!(on("/ind/key/off/file"), Some(4));
        // a symbolic link in there may lead anywhere
        assert_eq!(on("/ind/key/link"), None);
        assert_eq!(on("/direct/link"), None);
        assert_eq!(on("/ind"), None);
        assert_eq!(on("/indeed/x"), None);
        assert_eq!(on("/dead/x"), None);
    }
}
