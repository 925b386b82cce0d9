//! Superblocks with their options, and with their old numbers where these can be had.

use super::{CreateError, Item, StepError};
use crate::discover::facts::AutofsMount;
use crate::image::Checkpoint;
use crate::restore::claim::Claims;
use crate::restore::plan::{Action, Number, RestorePlan};
use crate::sys::DevNum;
use crate::sys::mount::{self, AutofsParams, DetachedMount, MountError, MountFlags};
use crate::sys::packet::PacketPipe;
use std::os::fd::AsFd;

/// All of them, in the order of the plan, with numbers from `claims`. Requests go to `pipe`.
pub(super) fn make<'a>(
    image: &'a Checkpoint,
    plan: &'a RestorePlan,
    claims: &mut Claims,
    pipe: &PacketPipe,
) -> Result<Vec<Item<'a>>, CreateError> {
    // Lowest number first, and what gets a new one last, so that it takes none that another wants.
    let mut order: Vec<_> = plan
        .steps
        .iter()
        .enumerate()
        .filter_map(|(index, step)| match &step.action {
            Action::Create { number, .. } => Some((index, step, number)),
            _ => None,
        })
        .collect();
    order.sort_by_key(|(_, _, number)| match number {
        Number::Must(dev) | Number::May(dev) => (false, *dev),
        Number::New { .. } => (true, DevNum::anonymous(0)),
    });

    let mut items = Vec::with_capacity(order.len());
    let mut without = Vec::new();
    for (index, step, number) in order {
        let dumped = &image.mounts[step.mount];
        let new = || superblock(&dumped.facts, dumped.root_uid, dumped.root_gid, pipe);
        let at = StepError::at(&step.path);
        let claimed = match number {
            Number::Must(dev) | Number::May(dev) => {
                claims.superblock(*dev, new).map_err(|source| at(source.into()))?
            }
            Number::New { .. } => {
                without.push((index, step, dumped));
                continue;
            }
        };
        match (claimed, number) {
            (Ok(mount), _) => items.push(item(index, step, dumped, mount)?),
            (Err(why), Number::Must(dev)) => {
                return Err(CreateError::Number { path: step.path.clone(), dev: *dev, why });
            }
            (Err(_), _) => without.push((index, step, dumped)),
        }
    }
    for (index, step, dumped) in without {
        let mount = superblock(&dumped.facts, dumped.root_uid, dumped.root_gid, pipe)
            .map_err(|source| StepError::at(&step.path)(source.into()))?;
        items.push(item(index, step, dumped, mount)?);
    }
    items.sort_by_key(|item| item.index);
    Ok(items)
}

fn item<'a>(
    index: usize,
    step: &'a crate::restore::plan::Step,
    dumped: &'a crate::image::checkpoint::DumpedMount,
    mount: DetachedMount,
) -> Result<Item<'a>, CreateError> {
    let dev = mount.dev().map_err(StepError::call("stat the new mount"))?;
    Ok(Item { index, step, dumped, mount, dev })
}

fn superblock(
    facts: &AutofsMount,
    uid: u32,
    gid: u32,
    pipe: &PacketPipe,
) -> Result<DetachedMount, MountError> {
    let options = &facts.options;
    let params = AutofsParams {
        pipe: pipe.write.as_fd(),
        pgrp: None,
        mount_type: options.mount_type,
        protocol: (options.min_proto, options.max_proto),
        uid: Some(uid),
        gid: Some(gid),
        strict_expire: options.strict_expire,
        ignore: options.ignore,
    };
    mount::autofs(&params, &facts.source, flags(&facts.mount_flags))
}

/// From the words of mountinfo. No word for the access time means that it is always kept.
fn flags(words: &[String]) -> MountFlags {
    let mut flags = MountFlags::empty();
    let mut strict = !words.is_empty();
    for word in words {
        match word.as_str() {
            "ro" => flags |= MountFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => flags |= MountFlags::MOUNT_ATTR_NOSUID,
            "nodev" => flags |= MountFlags::MOUNT_ATTR_NODEV,
            "noexec" => flags |= MountFlags::MOUNT_ATTR_NOEXEC,
            "nodiratime" => flags |= MountFlags::MOUNT_ATTR_NODIRATIME,
            "nosymfollow" => flags |= MountFlags::MOUNT_ATTR_NOSYMFOLLOW,
            "noatime" => {
                flags |= MountFlags::MOUNT_ATTR_NOATIME;
                strict = false;
            }
            "relatime" => strict = false,
            _ => {}
        }
    }
    flags.set(MountFlags::MOUNT_ATTR_STRICTATIME, strict);
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_from_mountinfo() {
        let of = |text: &str| flags(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("rw,relatime"), MountFlags::empty());
        assert_eq!(of("rw"), MountFlags::MOUNT_ATTR_STRICTATIME);
        assert_eq!(flags(&[]), MountFlags::empty());
        assert_eq!(
            of("ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow,idmapped"),
            MountFlags::MOUNT_ATTR_RDONLY
                | MountFlags::MOUNT_ATTR_NOSUID
                | MountFlags::MOUNT_ATTR_NODEV
                | MountFlags::MOUNT_ATTR_NOEXEC
                | MountFlags::MOUNT_ATTR_NOATIME
                | MountFlags::MOUNT_ATTR_NODIRATIME
                | MountFlags::MOUNT_ATTR_NOSYMFOLLOW
        );
    }
}
