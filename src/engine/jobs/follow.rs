//! A mounted key whose entry may have changed: its offsets follow, removals before additions.
//!
//! What is mounted stays as it is until it is idle; who looks up an offset that the entry does not have any more is told so.

use super::{level, remove_dirs};
use crate::discover::facts::MountType;
use crate::engine::kernel::Kernel;
use crate::engine::maps::Credentials;
use crate::engine::task::{Child, Duty, FollowTask, Offset, are_related, birth};
use crate::sys::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The autofs mounts directly below afterwards. Nothing changes when the entry cannot be read, or is no more.
pub(super) fn follow(kernel: &dyn Kernel, task: &FollowTask) -> Vec<Child> {
    try_to(kernel, task).unwrap_or_else(|_| task.known.clone())
}

fn try_to(kernel: &dyn Kernel, task: &FollowTask) -> Result<Vec<Child>, Errno> {
    let target = task.place.target(&task.key);
    // Nobody takes the trigger away under the job.
    let _held = kernel.hold(&task.place)?;
    if !kernel.is_covered(&task.place, &target)? {
        return Err(Errno::NOENT);
    }
    let at = task.offset.as_deref().cloned().unwrap_or_else(|| Offset::root(&task.key, &target));
    // Which offsets there are does not depend on who asks; what is mounted there may.
    let entry = task.served.source.lookup(&at.key, Credentials { uid: 0, gid: 0 })?.ok_or(Errno::NOENT)?;
    let offset =
        |below: &Path| Duty::Offset(Arc::new(Offset { below: below.to_owned(), entry: None, ..at.clone() }));
    let wanted: Vec<PathBuf> =
        level(&entry, &at.below).iter().map(|spec| at.top.join(&spec.offset)).collect();
    let (mut children, mut removed) = (Vec::new(), Vec::new());
    for child in &task.known {
        let Duty::Offset(old) = &child.duty else {
            children.push(child.clone());
            continue;
        };
        let path = &child.place.path;
        let goes = !wanted.iter().any(|wanted| **wanted == **path)
            && !kernel.is_covered(&child.place, path).unwrap_or(true);
        if goes && kernel.unmount(path).is_ok() {
            removed.push(path.to_path_buf());
        } else if old.entry.as_deref() == Some(&entry) {
            children.push(child.clone());
        } else {
            children.push(Child { duty: offset(&old.below), ..child.clone() });
        }
    }
    remove_dirs(kernel, &target, &removed);
    for path in wanted {
        // Also in what is mounted on a trigger that stays nothing is made.
        if children.iter().any(|child| are_related(&child.place.path, &path)) {
            continue;
        }
        let served = &task.served;
        let made = kernel
            .make_dir(&path, served.options.mode)
            .and_then(|_| kernel.make_trigger(&path, MountType::Offset, served));
        match made {
            Ok(place) => {
                let below = path.strip_prefix(&at.top).unwrap_or(&path);
                let duty = offset(below);
                children.push(Child { place: Arc::new(place), under: task.place.dev, duty, born: birth() });
            }
            Err(errno) => tracing::warn!(path = %path.display(), %errno, "no trigger for an offset"),
        }
    }
    Ok(children)
}
