//! Messages to domain types and back. Here a value only has to have the right form (there, in
//! range of its type, known to an enumeration); [`super::check`] judges what it says.

use super::checkpoint::{ActiveKey, DumpedMount, InFlight, Left, Origin, Service};
use super::error::{Fault, FieldError};
use super::wire;
use crate::discover::facts::{
    AutofsMount, AutofsOptions, CoveringMount, End, Master, MountType, PipeEnd, Propagation, TreeEntry,
    Waiter,
};
use crate::sys::DevNum;
use crate::sys::control::{Requester, Token};
use crate::sys::process::ProcessId;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A type that has a message.
pub trait Wire: Sized {
    /// The message.
    type Message;
    /// To the wire.
    fn encode(&self) -> Self::Message;
    /// From the wire.
    fn decode(message: Self::Message) -> Result<Self, FieldError>;
}

/// A field that is always there.
fn need<T>(value: Option<T>, field: &str) -> Result<T, FieldError> {
    value.ok_or_else(|| Fault::Missing.at(field))
}

fn one<T: Wire>(message: Option<T::Message>, field: &str) -> Result<T, FieldError> {
    need(option(message, field)?, field)
}

fn option<T: Wire>(message: Option<T::Message>, field: &str) -> Result<Option<T>, FieldError> {
    let value = message.map(T::decode).transpose();
    value.map_err(|error| error.within(field))
}

fn list<T: Wire>(messages: Vec<T::Message>, field: &str) -> Result<Vec<T>, FieldError> {
    let item = |(i, message)| T::decode(message).map_err(|error| error.within(format_args!("{field}[{i}]")));
    messages.into_iter().enumerate().map(item).collect()
}

fn encode_list<T: Wire>(items: &[T]) -> Vec<T::Message> {
    items.iter().map(T::encode).collect()
}

/// An enumeration's value.
fn known<E: TryFrom<i32>>(value: Option<i32>, field: &str) -> Result<E, FieldError> {
    let value = need(value, field)?;
    E::try_from(value).map_err(|_| Fault::Unknown(value.into()).at(field))
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    Some(path.as_os_str().as_bytes().to_vec())
}

/// The message of `mount`, which is number `position` of the checkpoint.
pub fn encode_mount(position: usize, mount: &DumpedMount) -> wire::AutofsEntry {
    let AutofsMount {
        mount_id,
        parent_id,
        dev,
        path,
        root,
        source,
        options,
        mount_flags,
        propagation,
        catatonic,
        pipe_ends,
        master,
        covering,
        autofs_children,
        waiters,
        // no dump has hidden mounts
        hidden_by: _,
    } = &mount.facts;
    let timeout = i32::try_from(options.timeout);
    wire::AutofsEntry {
        fd: Some(options.fd),
        pgrp: Some(options.pgrp),
        timeout: Some(timeout.unwrap_or(i32::MAX)),
        minproto: Some(options.min_proto as i32),
        maxproto: Some(options.max_proto as i32),
        mode: Some(stock_mode(options.mount_type)),
        // CRIU's fields are signed; the bits are kept.
        uid: options.uid.map(|uid| uid as i32),
        gid: options.gid.map(|gid| gid as i32),
        read_fd: stock_read_fd(&mount.facts),
        dev_major: Some(dev.major),
        dev_minor: Some(dev.minor),
        timeout_seconds: timeout.is_err().then_some(options.timeout),
        strict_expire: Some(options.strict_expire),
        ignore: Some(options.ignore),
        pipe_ino: options.pipe_ino,
        catatonic: Some(*catatonic),
        source: bytes(source),
        root_mode: Some(mount.root_mode),
        root_uid: Some(mount.root_uid),
        root_gid: Some(mount.root_gid),
        root_requester: mount.root_requester.as_ref().map(Wire::encode),
        tree: encode_list(&mount.tree),
        unknown_options: options.unknown.clone(),
        // Both indices are bounded by limits far below 32 bits.
        position: Some(position as u32),
        mount_id: Some(*mount_id),
        parent_id: Some(*parent_id),
        path: bytes(path),
        root: bytes(root),
        mount_flags: mount_flags.clone(),
        propagation: Some(propagation.encode()),
        covering: encode_list(covering),
        autofs_children: autofs_children.clone(),
        pipe_ends: encode_list(pipe_ends),
        master: Some(master.encode()),
        waiters: encode_list(waiters),
        in_flight: encode_list(&mount.in_flight),
        served_by: mount.served_by.map(|index| index as u32),
        active: encode_list(&mount.active),
    }
}

/// A mount and its position.
pub fn decode_mount(mut message: wire::AutofsEntry) -> Result<(usize, DumpedMount), FieldError> {
    let position = need(message.position, "position")? as usize;
    let mount = DumpedMount {
        root_mode: need(message.root_mode, "root_mode")?,
        root_uid: need(message.root_uid, "root_uid")?,
        root_gid: need(message.root_gid, "root_gid")?,
        root_requester: option(message.root_requester.take(), "root_requester")?,
        tree: list(std::mem::take(&mut message.tree), "tree")?,
        in_flight: list(std::mem::take(&mut message.in_flight), "in_flight")?,
        served_by: message.served_by.map(|index| index as usize),
        active: list(std::mem::take(&mut message.active), "active")?,
        facts: facts(message)?,
    };
    Ok((position, mount))
}

fn facts(message: wire::AutofsEntry) -> Result<AutofsMount, FieldError> {
    Ok(AutofsMount {
        options: options(&message)?,
        mount_id: need(message.mount_id, "mount_id")?,
        parent_id: need(message.parent_id, "parent_id")?,
        dev: DevNum {
            major: need(message.dev_major, "dev_major")?,
            minor: need(message.dev_minor, "dev_minor")?,
        },
        path: path(need(message.path, "path")?),
        root: path(need(message.root, "root")?),
        source: path(message.source.unwrap_or_default()),
        mount_flags: message.mount_flags,
        propagation: option(message.propagation, "propagation")?.unwrap_or_default(),
        catatonic: message.catatonic.unwrap_or(false),
        pipe_ends: list(message.pipe_ends, "pipe_ends")?,
        master: one(message.master, "master")?,
        covering: list(message.covering, "covering")?,
        autofs_children: message.autofs_children,
        waiters: list(message.waiters, "waiters")?,
        hidden_by: None,
    })
}

fn options(message: &wire::AutofsEntry) -> Result<AutofsOptions, FieldError> {
    let unsigned = |value, field| {
        let value: i32 = need(value, field)?;
        u32::try_from(value).map_err(|_| {
            let range = "0 and up";
            let value = value.into();
            Fault::Range { value, range }.at(field)
        })
    };
    let narrow = unsigned(message.timeout, "timeout")?.into();
    let timeout = message.timeout_seconds.unwrap_or(narrow);
    if i32::try_from(timeout).unwrap_or(i32::MAX) as u64 != narrow {
        let fault = Fault::Inconsistent("differs from the stock field timeout");
        return Err(fault.at("timeout_seconds"));
    }
    Ok(AutofsOptions {
        fd: need(message.fd, "fd")?,
        pgrp: need(message.pgrp, "pgrp")?,
        timeout,
        min_proto: unsigned(message.minproto, "minproto")?,
        max_proto: unsigned(message.maxproto, "maxproto")?,
        mount_type: match need(message.mode, "mode")? {
            0 => MountType::Direct,
            1 => MountType::Indirect,
            2 => MountType::Offset,
            other => return Err(Fault::Unknown(other.into()).at("mode")),
        },
        strict_expire: message.strict_expire.unwrap_or(false),
        ignore: message.ignore.unwrap_or(false),
        uid: message.uid.map(|uid| uid as u32),
        gid: message.gid.map(|gid| gid as u32),
        pipe_ino: message.pipe_ino,
        unknown: message.unknown_options.clone(),
    })
}

/// CRIU's numbers of the types.
fn stock_mode(mount_type: MountType) -> i32 {
    match mount_type {
        MountType::Direct => 0,
        MountType::Indirect => 1,
        MountType::Offset => 2,
    }
}

/// CRIU's `read_fd`: there when the owner has closed its write end, so that the read end is what
/// the pipe has to be restored from. Derived from the pipe's ends; not read back.
fn stock_read_fd(mount: &AutofsMount) -> Option<i32> {
    let owned = |end: &&PipeEnd| end.process.pid == mount.options.pgrp;
    let mut ends = mount.pipe_ends.iter().filter(owned);
    if ends.clone().any(|end| end.end == End::Write && end.fd == mount.options.fd) {
        return None;
    }
    ends.find(|end| end.end == End::Read).map(|end| end.fd)
}

impl Wire for ProcessId {
    type Message = wire::ProcessId;

    fn encode(&self) -> wire::ProcessId {
        wire::ProcessId { pid: Some(self.pid), start_time: Some(self.start_time) }
    }

    fn decode(message: wire::ProcessId) -> Result<Self, FieldError> {
        Ok(Self { pid: need(message.pid, "pid")?, start_time: need(message.start_time, "start_time")? })
    }
}

impl Wire for Requester {
    type Message = wire::Requester;

    fn encode(&self) -> wire::Requester {
        wire::Requester { uid: Some(self.uid), gid: Some(self.gid) }
    }

    fn decode(message: wire::Requester) -> Result<Self, FieldError> {
        Ok(Self { uid: need(message.uid, "uid")?, gid: need(message.gid, "gid")? })
    }
}

impl Wire for Propagation {
    type Message = wire::Propagation;

    fn encode(&self) -> wire::Propagation {
        wire::Propagation { shared: self.shared, slave_of: self.slave_of, unbindable: Some(self.unbindable) }
    }

    fn decode(message: wire::Propagation) -> Result<Self, FieldError> {
        Ok(Self {
            shared: message.shared,
            slave_of: message.slave_of,
            unbindable: message.unbindable.unwrap_or(false),
        })
    }
}

impl Wire for TreeEntry {
    type Message = wire::TreeEntry;

    fn encode(&self) -> wire::TreeEntry {
        wire::TreeEntry {
            path: bytes(&self.path),
            mode: Some(self.mode),
            uid: Some(self.uid),
            gid: Some(self.gid),
            symlink: self.symlink.as_deref().and_then(bytes),
            timeout: self.timeout,
            requester: self.requester.as_ref().map(Wire::encode),
        }
    }

    fn decode(message: wire::TreeEntry) -> Result<Self, FieldError> {
        Ok(Self {
            path: path(need(message.path, "path")?),
            mode: need(message.mode, "mode")?,
            uid: need(message.uid, "uid")?,
            gid: need(message.gid, "gid")?,
            symlink: message.symlink.map(path),
            timeout: message.timeout,
            requester: option(message.requester, "requester")?,
        })
    }
}

impl Wire for CoveringMount {
    type Message = wire::CoveringMount;

    fn encode(&self) -> wire::CoveringMount {
        wire::CoveringMount {
            mount_id: Some(self.mount_id),
            path: bytes(&self.path),
            dev_major: Some(self.dev.major),
            dev_minor: Some(self.dev.minor),
            root: bytes(&self.root),
            fstype: Some(self.fstype.clone()),
            source: bytes(&self.source),
            mount_flags: self.mount_flags.clone(),
            super_options: self.super_options.iter().map(|o| o.as_bytes().to_vec()).collect(),
            propagation: Some(self.propagation.encode()),
        }
    }

    fn decode(message: wire::CoveringMount) -> Result<Self, FieldError> {
        Ok(Self {
            mount_id: need(message.mount_id, "mount_id")?,
            path: path(need(message.path, "path")?),
            dev: DevNum {
                major: need(message.dev_major, "dev_major")?,
                minor: need(message.dev_minor, "dev_minor")?,
            },
            root: path(need(message.root, "root")?),
            fstype: need(message.fstype, "fstype")?,
            source: path(message.source.unwrap_or_default()),
            mount_flags: message.mount_flags,
            super_options: message.super_options.into_iter().map(OsString::from_vec).collect(),
            propagation: option(message.propagation, "propagation")?.unwrap_or_default(),
        })
    }
}

impl Wire for PipeEnd {
    type Message = wire::PipeEnd;

    fn encode(&self) -> wire::PipeEnd {
        let end = match self.end {
            End::Read => wire::pipe_end::End::Read,
            End::Write => wire::pipe_end::End::Write,
        };
        wire::PipeEnd {
            process: Some(self.process.encode()),
            comm: Some(self.comm.clone()),
            fd: Some(self.fd),
            end: Some(end.into()),
            flags: Some(self.flags),
        }
    }

    fn decode(message: wire::PipeEnd) -> Result<Self, FieldError> {
        Ok(Self {
            process: one(message.process, "process")?,
            comm: message.comm.unwrap_or_default(),
            fd: need(message.fd, "fd")?,
            end: match known(message.end, "end")? {
                wire::pipe_end::End::Read => End::Read,
                wire::pipe_end::End::Write => End::Write,
            },
            flags: message.flags.unwrap_or(0),
        })
    }
}

impl Wire for Master {
    type Message = wire::Master;

    fn encode(&self) -> wire::Master {
        use wire::master::Program;
        let (program, process, unit, comm) = match self {
            Self::Dead => (Program::Dead, None, None, None),
            Self::NotVisible => (Program::NotVisible, None, None, None),
            Self::Automount { process } => (Program::Automount, Some(process), None, None),
            Self::AutofsCr { process } => (Program::AutofsCr, Some(process), None, None),
            Self::Systemd { process, unit } => (Program::Systemd, Some(process), Some(unit), None),
            Self::Unknown { process, comm } => (Program::Unknown, Some(process), None, Some(comm)),
        };
        wire::Master {
            program: Some(program.into()),
            process: process.map(Wire::encode),
            unit: unit.cloned(),
            comm: comm.cloned(),
        }
    }

    fn decode(message: wire::Master) -> Result<Self, FieldError> {
        use wire::master::Program;
        let program = known(message.program, "program")?;
        let process = one(message.process, "process");
        Ok(match program {
            Program::Dead => Self::Dead,
            Program::NotVisible => Self::NotVisible,
            Program::Automount => Self::Automount { process: process? },
            Program::AutofsCr => Self::AutofsCr { process: process? },
            Program::Systemd => Self::Systemd { process: process?, unit: need(message.unit, "unit")? },
            Program::Unknown => Self::Unknown { process: process?, comm: message.comm.unwrap_or_default() },
        })
    }
}

impl Wire for Waiter {
    type Message = wire::Waiter;

    fn encode(&self) -> wire::Waiter {
        wire::Waiter {
            tid: Some(self.tid),
            process: Some(self.process.encode()),
            comm: Some(self.comm.clone()),
            expiring: Some(self.expiring),
        }
    }

    fn decode(message: wire::Waiter) -> Result<Self, FieldError> {
        Ok(Self {
            tid: need(message.tid, "tid")?,
            process: one(message.process, "process")?,
            comm: message.comm.unwrap_or_default(),
            expiring: message.expiring.unwrap_or(false),
        })
    }
}

impl Wire for InFlight {
    type Message = wire::InFlight;

    fn encode(&self) -> wire::InFlight {
        wire::InFlight {
            token: self.packet.as_ref().map(|(token, _)| token.0),
            key: self.packet.as_ref().map(|(_, key)| key.clone()),
            waiter: self.waiter.as_ref().map(Wire::encode),
            was_stopped: Some(self.was_stopped),
        }
    }

    fn decode(message: wire::InFlight) -> Result<Self, FieldError> {
        let packet = match (message.token, message.key) {
            (Some(token), Some(key)) => Some((Token(token), key)),
            (None, None) => None,
            (Some(_), None) => return Err(Fault::Missing.at("key")),
            (None, Some(_)) => return Err(Fault::Missing.at("token")),
        };
        Ok(Self {
            packet,
            waiter: option(message.waiter, "waiter")?,
            was_stopped: message.was_stopped.unwrap_or(false),
        })
    }
}

impl Wire for ActiveKey {
    type Message = wire::ActiveKey;

    fn encode(&self) -> wire::ActiveKey {
        wire::ActiveKey { key: Some(self.key.clone()), entry: self.entry.clone() }
    }

    fn decode(message: wire::ActiveKey) -> Result<Self, FieldError> {
        Ok(Self { key: need(message.key, "key")?, entry: message.entry })
    }
}

impl Wire for Origin {
    type Message = wire::Origin;

    fn encode(&self) -> wire::Origin {
        let (left, holder) = match &self.left {
            Left::Running => (wire::origin::Left::Running, None),
            Left::Held { holder } => (wire::origin::Left::Held, Some(holder.encode())),
            Left::Catatonic => (wire::origin::Left::Catatonic, None),
        };
        wire::Origin {
            created: Some(self.created),
            tool: Some(self.tool.clone()),
            kernel: Some(self.kernel.clone()),
            boot_id: Some(self.boot_id.clone()),
            mount_namespace: Some(self.mount_namespace),
            left: Some(left.into()),
            holder,
        }
    }

    fn decode(message: wire::Origin) -> Result<Self, FieldError> {
        Ok(Self {
            created: need(message.created, "created")?,
            tool: message.tool.unwrap_or_default(),
            kernel: message.kernel.unwrap_or_default(),
            boot_id: message.boot_id.unwrap_or_default(),
            mount_namespace: need(message.mount_namespace, "mount_namespace")?,
            left: match known(message.left, "left")? {
                wire::origin::Left::Running => Left::Running,
                wire::origin::Left::Held => Left::Held { holder: one(message.holder, "holder")? },
                wire::origin::Left::Catatonic => Left::Catatonic,
            },
        })
    }
}

impl Wire for Service {
    type Message = wire::Service;

    fn encode(&self) -> wire::Service {
        use wire::service::Kind;
        match self {
            Self::MasterEntry { mount_point, map, options, entries } => wire::Service {
                kind: Some(Kind::MasterEntry(wire::MasterEntry {
                    mount_point: bytes(mount_point),
                    map: Some(map.clone()),
                    options: Some(options.clone()),
                })),
                entries: encode_list(entries),
            },
            Self::Unit { unit, mount_point, what, fstype, options, timeout } => wire::Service {
                kind: Some(Kind::Unit(wire::Unit {
                    name: Some(unit.clone()),
                    mount_point: bytes(mount_point),
                    what: Some(what.clone()),
                    fstype: Some(fstype.clone()),
                    options: Some(options.clone()),
                    timeout: Some(*timeout),
                })),
                entries: Vec::new(),
            },
        }
    }

    fn decode(message: wire::Service) -> Result<Self, FieldError> {
        use wire::service::Kind;
        Ok(match need(message.kind, "kind")? {
            Kind::MasterEntry(entry) => Self::MasterEntry {
                mount_point: path(need(entry.mount_point, "mount_point")?),
                map: need(entry.map, "map")?,
                options: entry.options.unwrap_or_default(),
                entries: list(message.entries, "entries")?,
            },
            Kind::Unit(unit) => Self::Unit {
                unit: need(unit.name, "name")?,
                mount_point: path(need(unit.mount_point, "mount_point")?),
                what: unit.what.unwrap_or_default(),
                fstype: unit.fstype.unwrap_or_default(),
                options: unit.options.unwrap_or_default(),
                timeout: unit.timeout.unwrap_or(0),
            },
        })
    }
}

/// A line of a map: key and entry.
impl Wire for (Vec<u8>, Vec<u8>) {
    type Message = wire::MapEntry;

    fn encode(&self) -> wire::MapEntry {
        wire::MapEntry { key: Some(self.0.clone()), entry: Some(self.1.clone()) }
    }

    fn decode(message: wire::MapEntry) -> Result<Self, FieldError> {
        let key = need(message.key, "key")?;
        Ok((key, need(message.entry, "entry")?))
    }
}
