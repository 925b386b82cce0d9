//! Who triggered a mount last. The kernel notes it when a request is answered, and there is no other way to
//! set it: so a child with these ids makes a request of each, and it is answered.

use super::{CreateError, Item, StepError, open_root};
use crate::discover::facts::MountType;
use crate::restore::resume::take_ids;
use crate::sys::control::{Control, Requester};
use crate::sys::mount::{self, DetachedMount, MountFlags};
use crate::sys::packet::{PacketPipe, read_packet};
use crate::sys::{DevNum, Errno, fork};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// How long the requests of one requester may take without any progress.
const LIMIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A directory to be looked up, relative to a descriptor.
struct Lookup<'a> {
    from: BorrowedFd<'a>,
    path: PathBuf,
}

/// Give every trigger its requester. Keys are made for it; they must not have anything inside yet, because
/// only then is a directory of an autofs mount a trigger.
pub(super) fn replay(
    items: &mut [Item<'_>],
    control: &Control,
    pipe: &PacketPipe,
) -> Result<(), CreateError> {
    let with_root = |item: &Item<'_>| wanted(item).iter().any(|(key, _)| key.is_none());
    let stage = match items.iter().any(with_root) {
        true => Some(stage()?),
        false => None,
    };
    let mut lookups: BTreeMap<(u32, u32), Vec<Lookup<'_>>> = BTreeMap::new();
    for item in items.iter() {
        for (key, who) in wanted(item) {
            let lookup = match (key, &stage) {
                (Some(key), _) => make_key(item, key),
                (None, Some(stage)) => put_on_stage(item, stage),
                (None, None) => continue,
            };
            let lookup = lookup.map_err(StepError::at(&item.step.path))?;
            lookups.entry((who.uid, who.gid)).or_default().push(lookup);
        }
    }
    let by_number: HashMap<_, _> = items.iter().map(|item| (item.dev, item)).collect();
    for ((uid, gid), lookups) in lookups {
        visit(Requester { uid, gid }, &lookups, &by_number, control, pipe)?;
    }
    for item in items.iter_mut().filter(|item| with_root(item)) {
        // What is on the stage goes with it; a copy is attached nowhere.
        let copy = mount::bind(&item.mount, Path::new(""), false).map_err(StepError::from);
        item.mount = copy.map_err(StepError::at(&item.step.path))?;
    }
    // Its number may be somebody else's. If not now then it goes with the namespace.
    let _ = stage.as_ref().map(DetachedMount::detach);
    Ok(())
}

/// The keys of an item that have a requester; `None` for its root. A new trigger has root for one.
fn wanted<'a>(item: &Item<'a>) -> Vec<(Option<&'a Path>, Requester)> {
    let dumped = item.dumped;
    let other = |who: &Requester| *who != Requester { uid: 0, gid: 0 };
    if dumped.facts.options.mount_type != MountType::Indirect {
        return dumped.root_requester.filter(other).map(|who| (None, who)).into_iter().collect();
    }
    let keys = dumped.tree.iter().filter(|entry| entry.path.components().count() == 1);
    keys.filter_map(|entry| Some((Some(entry.path.as_path()), entry.requester.filter(other)?))).collect()
}

fn make_key<'a>(item: &'a Item<'_>, key: &Path) -> Result<Lookup<'a>, StepError> {
    rustix::fs::mkdirat(&item.mount, key, Mode::from_raw_mode(0o755))
        .map_err(StepError::call("make a directory inside"))?;
    Ok(Lookup { from: item.mount.as_fd(), path: key.to_owned() })
}

/// A place to attach mounts: the root of one is a trigger only for who comes to it through a mount point.
fn stage() -> Result<DetachedMount, StepError> {
    let stage = mount::new_superblock::<&str>("tmpfs", Path::new("autofs-cr"), &[], MountFlags::empty())?;
    stage.attach(CWD, Path::new("/"))?;
    Ok(stage)
}

fn put_on_stage<'a>(item: &Item<'_>, stage: &'a DetachedMount) -> Result<Lookup<'a>, StepError> {
    let name = item.index.to_string();
    rustix::fs::mkdirat(stage, &name, Mode::from_raw_mode(0o755))
        .map_err(StepError::call("make a directory"))?;
    item.mount.attach(stage, Path::new(&name))?;
    // The dot makes the walk enter the mount.
    Ok(Lookup { from: stage.as_fd(), path: Path::new(&name).join(".") })
}

/// One child makes the lookups of one requester; its requests are answered.
fn visit(
    who: Requester,
    lookups: &[Lookup<'_>],
    items: &HashMap<DevNum, &Item<'_>>,
    control: &Control,
    pipe: &PacketPipe,
) -> Result<(), StepError> {
    let child = fork::fork(|| look_up(who, lookups)).map_err(StepError::call("start a child"))?;
    let mut answered = HashSet::new();
    loop {
        let mut fds = [PollFd::new(&pipe.read, PollFlags::IN), PollFd::new(&child, PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&LIMIT)))
            .map_err(StepError::call("wait for a request"))?;
        if ready == 0 {
            // Dropping the child kills it, which ends its wait.
            return Err(StepError::Call { what: "give a mount its requester", errno: Errno::TIMEDOUT });
        }
        let ended = fds[1].revents().contains(PollFlags::IN);
        while let Some(packet) = read_packet(pipe.read.as_fd())? {
            let Some(item) = items.get(&packet.dev) else { continue };
            let root = open_root(&item.mount).map_err(StepError::call("open the root of the new mount"))?;
            // Success is what the kernel notes. But as nothing is mounted, the walk asks again.
            match answered.insert((packet.dev, packet.name)) {
                true => control.ready(root.as_fd(), packet.token)?,
                false => control.fail(root.as_fd(), packet.token, Errno::NOENT)?,
            }
        }
        if ended {
            return match child.wait() {
                Ok(0) => Ok(()),
                _ => Err(StepError::Call { what: "take on the ids of a requester", errno: Errno::PERM }),
            };
        }
    }
}

/// In the child.
fn look_up(who: Requester, lookups: &[Lookup<'_>]) -> u8 {
    if !take_ids(who) {
        return 1;
    }
    for lookup in lookups {
        // It fails: nothing gets mounted.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let _ = rustix::fs::openat(lookup.from, &lookup.path, flags, Mode::empty());
    }
    0
}
