//! Superblocks with their options, and with their old numbers where these can be had.

use super::{CreateError, Item, StepError};
use crate::image::Checkpoint;
use crate::image::checkpoint::DumpedMount;
use crate::restore::claim::Claims;
use crate::restore::plan::{Action, Number, RestorePlan, Step};
use crate::sys::DevNum;
use crate::sys::mount::{self, AutofsParams, Context, DetachedMount, MountError, MountFlags, Superblock};
use crate::sys::packet::PacketPipe;
use std::os::fd::AsFd;

/// A superblock to be made.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    index: usize,
    step: &'a Step,
    dumped: &'a DumpedMount,
    number: &'a Number,
    context: Context,
}

/// All of them, without numbers. Requests will go to `pipe`.
pub(super) fn configure<'a>(
    image: &'a Checkpoint,
    plan: &'a RestorePlan,
    pipe: &PacketPipe,
) -> Result<Vec<Pending<'a>>, CreateError> {
    let create = |(index, step): (usize, &'a Step)| match &step.action {
        Action::Create { number, .. } => Some((index, step, number)),
        _ => None,
    };
    let mut pending = Vec::new();
    for (index, step, number) in plan.steps.iter().enumerate().filter_map(create) {
        let dumped = &image.mounts[step.mount];
        let context = context(dumped, pipe).map_err(|error| StepError::at(&step.path)(error.into()))?;
        pending.push(Pending { index, step, dumped, number, context });
    }
    // Lowest number first, and what gets a new one last, so that it takes none that another wants.
    pending.sort_by_key(|pending| (pending.number.wanted().is_none(), pending.number.wanted()));
    Ok(pending)
}

/// A mount in its second step.
#[derive(Debug)]
pub(super) struct Fresh<'a> {
    index: usize,
    step: &'a Step,
    dumped: &'a DumpedMount,
    number: &'a Number,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Made, with the number that it should have, unless somebody interfered.
    Unseen(Superblock),
    /// With that number.
    Right(DetachedMount, DevNum),
    /// It got another number, and was given up.
    Wrong,
    /// To be made with any number.
    Missing(Option<Context>),
}

/// Make those that have a number, with `claims`.
pub(super) fn make<'a>(
    pending: Vec<Pending<'a>>,
    claims: &mut Claims,
    pipe: &PacketPipe,
) -> Result<Vec<Fresh<'a>>, CreateError> {
    let mut all = Vec::with_capacity(pending.len());
    for Pending { index, step, dumped, number, context } in pending {
        let mut fresh = Fresh { index, step, dumped, number, state: State::Wrong };
        fresh.state = match number.wanted() {
            None => State::Missing(Some(context)),
            Some(dev) if claims.let_go(dev) => {
                State::Unseen(context.create().map_err(|error| fresh.failed(error))?)
            }
            Some(dev) => fresh.by_number(dev, Some(context), claims, pipe)?,
        };
        all.push(fresh);
    }
    // Where a lower number has become free, each that follows has the one before its own: that shows in the last.
    let last = all.iter_mut().rfind(|fresh| matches!(fresh.state, State::Unseen(_)));
    if !last.map_or(Ok(true), Fresh::look)? {
        look_at_all(&mut all, claims, pipe)?;
    }
    Ok(all)
}

/// Mount them, and look at their numbers; in the order of the plan.
pub(super) fn mount_all<'a>(
    mut all: Vec<Fresh<'a>>,
    claims: &mut Claims,
    pipe: &PacketPipe,
) -> Result<Vec<Item<'a>>, CreateError> {
    look_at_all(&mut all, claims, pipe)?;
    let mut items = Vec::with_capacity(all.len());
    for mut fresh in all {
        let (mount, dev) = match std::mem::replace(&mut fresh.state, State::Wrong) {
            State::Right(mount, dev) => (mount, dev),
            State::Missing(Some(context)) => fresh.any_number(context)?,
            _ => fresh.any_number(context(fresh.dumped, pipe).map_err(|error| fresh.failed(error))?)?,
        };
        items.push(Item { index: fresh.index, step: fresh.step, dumped: fresh.dumped, mount, dev });
    }
    items.sort_by_key(|item| item.index);
    Ok(items)
}

/// Those that have got wrong numbers give them up before others are tried.
fn look_at_all(all: &mut [Fresh<'_>], claims: &mut Claims, pipe: &PacketPipe) -> Result<(), CreateError> {
    for fresh in all.iter_mut() {
        fresh.look()?;
    }
    for fresh in all.iter_mut().filter(|fresh| matches!(fresh.state, State::Wrong)) {
        claims.look_again();
        if let Some(dev) = fresh.number.wanted() {
            fresh.state = fresh.by_number(dev, None, claims, pipe)?;
        }
    }
    Ok(())
}

impl Fresh<'_> {
    /// Has it the right number, as far as it is made?
    fn look(&mut self) -> Result<bool, CreateError> {
        match std::mem::replace(&mut self.state, State::Wrong) {
            State::Unseen(superblock) => {
                let (mount, dev) = self.mount(superblock)?;
                let right = self.number.wanted() == Some(dev);
                if right {
                    self.state = State::Right(mount, dev);
                }
                Ok(right)
            }
            state => {
                self.state = state;
                Ok(true)
            }
        }
    }

    /// One try after the other, each looked at: `first` is the first.
    fn by_number(
        &self,
        dev: DevNum,
        mut first: Option<Context>,
        claims: &mut Claims,
        pipe: &PacketPipe,
    ) -> Result<State, CreateError> {
        let new = || {
            let context = first.take().map_or_else(|| context(self.dumped, pipe), Ok)?;
            Ok((context.create()?.mount()?, ()))
        };
        match (claims.superblock(dev, new).map_err(|error: MountError| self.failed(error))?, self.number) {
            (Ok((mount, ())), _) => Ok(State::Right(mount, dev)),
            (Err(why), Number::Must(dev)) => {
                Err(CreateError::Number { path: self.step.path.clone(), dev: *dev, why })
            }
            (Err(_), _) => Ok(State::Missing(first)),
        }
    }

    fn any_number(&self, context: Context) -> Result<(DetachedMount, DevNum), CreateError> {
        self.mount(context.create().map_err(|error| self.failed(error))?)
    }

    fn mount(&self, superblock: Superblock) -> Result<(DetachedMount, DevNum), CreateError> {
        let mount = superblock.mount().map_err(|error| self.failed(error))?;
        let dev = mount.dev().map_err(StepError::call("stat the new mount"))?;
        Ok((mount, dev))
    }

    fn failed(&self, error: MountError) -> CreateError {
        StepError::at(&self.step.path)(error.into())
    }
}

fn context(dumped: &DumpedMount, pipe: &PacketPipe) -> Result<Context, MountError> {
    let facts = &dumped.facts;
    let options = &facts.options;
    let params = AutofsParams {
        pipe: pipe.write.as_fd(),
        pgrp: None,
        mount_type: options.mount_type,
        protocol: (options.min_proto, options.max_proto),
        uid: Some(dumped.root_uid),
        gid: Some(dumped.root_gid),
        strict_expire: options.strict_expire,
        ignore: options.ignore,
    };
    mount::autofs_context(&params, &facts.source, flags(&facts.mount_flags))
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
