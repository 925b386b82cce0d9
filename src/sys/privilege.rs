//! Privileges that a process gives up for good; `docs/hardening.md` tells who keeps which, and for what.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads files, and nothing of other processes.
    Reader,
    /// Looks at processes and mounts, in other namespaces, too.
    Observer,
    /// Holds the descriptors that it has.
    Holder,
    /// Makes mounts, holds visitors, is an engine.
    Mounter,
}

impl Role {
    /// What it keeps, where it has it.
    pub fn keeps(self) -> &'static [Capability] {
        use Capability::*;
        match self {
            Self::Holder => &[],
            Self::Reader => &[CAP_DAC_READ_SEARCH],
            Self::Observer => &[CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_SYS_PTRACE],
            Self::Mounter => &[
                CAP_CHOWN,
                CAP_DAC_OVERRIDE,
                CAP_DAC_READ_SEARCH,
                CAP_FOWNER,
                CAP_FSETID,
                CAP_KILL,
                CAP_NET_BIND_SERVICE,
                CAP_SETGID,
                CAP_SETPCAP,
                CAP_SETUID,
                CAP_SYS_ADMIN,
                CAP_SYS_CHROOT,
                CAP_SYS_PTRACE,
                CAP_SYS_RESOURCE,
            ],
        }
    }

    /// Does it start programs of others (mount helpers, program maps)? Those begin with what the service manager or the
    /// caller allows, not with what their parent keeps for itself.
    fn starts_programs(self) -> bool {
        self == Self::Mounter
    }
}

/// Has this process what mounting needs?
pub fn may_mount() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Give up what the role does not need, in this thread and those that it starts from now on: call it before there are others.
pub fn keep(role: Role) -> Result<(), CapsError> {
    let wanted: CapsHashSet = role.keeps().iter().copied().collect();
    let has = caps::read(None, CapSet::Permitted)?;
    if !role.starts_programs() {
        let _ = rustix::thread::set_no_new_privs(true);
        // First, while CAP_SETPCAP is there.
        if has.contains(&Capability::CAP_SETPCAP) {
            for capability in caps::read(None, CapSet::Bounding)?.difference(&wanted) {
                caps::drop(None, CapSet::Bounding, *capability)?;
            }
        }
    }
    let kept: CapsHashSet = has.intersection(&wanted).copied().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: capabilities belong to threads.
    fn in_thread(role: Role) -> CapsHashSet {
        std::thread::spawn(move || {
            keep(role).unwrap();
            for set in [CapSet::Inheritable, CapSet::Ambient] {
                assert!(caps::read(None, set).unwrap().is_empty());
            }
            let permitted = caps::read(None, CapSet::Permitted).unwrap();
            assert_eq!(permitted, caps::read(None, CapSet::Effective).unwrap());
            if role != Role::Mounter {
                assert!(caps::read(None, CapSet::Bounding).unwrap().is_subset(&permitted));
            }
            permitted
        })
        .join()
        .unwrap()
    }

    #[test]
    fn what_a_role_does_not_need_is_gone() {
        let had = caps::read(None, CapSet::Permitted).unwrap();
        for role in [Role::Holder, Role::Reader, Role::Observer, Role::Mounter] {
            let wanted: CapsHashSet = role.keeps().iter().copied().collect();
            assert_eq!(in_thread(role), had.intersection(&wanted).copied().collect());
        }
    }

    /// The units must allow what the program keeps, or a restart of it under systemd does less than one by hand.
    #[test]
    fn the_units_allow_what_the_program_keeps() {
        let unit = |text: &str| -> Vec<Capability> {
            let lines = text.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
            lines.flat_map(str::split_whitespace).map(|name| name.parse().unwrap()).collect()
        };
        for text in [
            include_str!("../../packaging/autofs-cr.service"),
            include_str!("../../packaging/autofs-cr-restore.service"),
        ] {
            let allowed: CapsHashSet = unit(text).into_iter().collect();
            assert_eq!(allowed, Role::Mounter.keeps().iter().copied().collect());
        }
    }
}
