//! Which checkpoints are acceptable. An image is untrusted input: nothing that passes here leads
//! out of a mount, names a mount twice or points nowhere. What strings *mean* (a program map, a
//! symlink's target) is not judged: they are data until a restore is asked to use them.

use super::LIMITS;
use super::checkpoint::{ActiveKey, Checkpoint, DumpedMount, InFlight, Left, Origin, Service};
use super::error::{Fault, FieldError, ImageError};
use super::files;
use crate::discover::escaped::is_printable;
use crate::discover::facts::{AutofsMount, CoveringMount, Master, MountType, PipeEnd, TreeEntry, Waiter};
use crate::sys::{DevNum, process::ProcessId};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

type Checked = Result<(), FieldError>;

/// All rules, over a whole checkpoint; the error names the file that holds the field.
pub fn check(checkpoint: &Checkpoint) -> Result<(), ImageError> {
    origin(&checkpoint.origin).map_err(|error| error.in_file(files::INVENTORY))?;
    for (i, one) in checkpoint.services.iter().enumerate() {
        service(one)
            .map_err(|error| error.within(format_args!("services[{i}]")))
            .map_err(|error| error.in_file(files::SERVICES))?;
    }
    let mounts = &checkpoint.mounts;
    let positions = mounts.iter().enumerate();
    let positions: HashMap<u64, usize> = positions.map(|(i, mount)| (mount.facts.mount_id, i)).collect();
    let mut seen = Seen::default();
    for (i, one) in mounts.iter().enumerate() {
        mount(one)
            .and_then(|()| served_by(one, checkpoint.services.len()))
            .and_then(|()| order(&one.facts, i, &positions))
            .and_then(|()| seen.once(one))
            .map_err(|error| error.within(format_args!("mounts[{i}]")))
            .map_err(|error| error.in_file(&files::mount(one.facts.dev)))?;
    }
    Ok(())
}

fn origin(origin: &Origin) -> Checked {
    printable(&origin.tool).at("origin.tool")?;
    printable(&origin.kernel).at("origin.kernel")?;
    printable(&origin.boot_id).at("origin.boot_id")?;
    match &origin.left {
        Left::Held { holder } => process(holder).at("origin.holder.pid"),
        Left::Running | Left::Catatonic => Ok(()),
    }
}

fn mount(mount: &DumpedMount) -> Checked {
    facts(&mount.facts)?;
    mode(mount.root_mode).at("root_mode")?;
    tree(&mount.tree, mount.facts.options.mount_type)?;
    each("in_flight", &mount.in_flight, in_flight)?;
    active(&mount.active, mount.facts.options.mount_type)
}

fn facts(mount: &AutofsMount) -> Checked {
    if mount.dev.major != 0 {
        let major = mount.dev.major.into();
        return Err(range(major, "autofs has major 0").at("dev_major"));
    }
    device(mount.dev).at("dev_minor")?;
    absolute(&mount.path).at("path")?;
    fs_root(&mount.root).at("root")?;
    text(mount.source.as_os_str().as_bytes()).at("source")?;
    each("mount_flags", &mount.mount_flags, |flag| option(flag).at(""))?;
    options(mount)?;
    each("pipe_ends", &mount.pipe_ends, pipe_end)?;
    match &mount.master {
        Master::Automount { process: id } | Master::AutofsCr { process: id } => {
            process(id).at("master.process.pid")?;
        }
        Master::Systemd { process: id, unit } => {
            process(id).at("master.process.pid")?;
            unit_name(unit).at("master.unit")?;
        }
        Master::Unknown { process: id, comm } => {
            process(id).at("master.process.pid")?;
            printable(comm).at("master.comm")?;
        }
        Master::Dead | Master::NotVisible => {}
    }
    each("waiters", &mount.waiters, waiter)?;
    each("covering", &mount.covering, |one| covering(one, &mount.path))
}

fn options(mount: &AutofsMount) -> Checked {
    let options = &mount.options;
    if options.min_proto > options.max_proto || options.max_proto > 255 {
        let fault = Fault::Inconsistent("minproto <= maxproto <= 255 does not hold");
        return Err(fault.at("maxproto"));
    }
    if options.pgrp < 0 {
        return Err(range(options.pgrp.into(), "0 and up").at("pgrp"));
    }
    if mount.catatonic != (options.fd < 0) {
        let fault = Fault::Inconsistent("a mount is catatonic exactly when its fd is -1");
        return Err(fault.at("catatonic"));
    }
    if mount.catatonic && options.pipe_ino.is_some() {
        return Err(Fault::Unexpected("a catatonic mount has no pipe").at("pipe_ino"));
    }
    each("unknown_options", &options.unknown, |text| option(text).at(""))
}

fn pipe_end(end: &PipeEnd) -> Checked {
    process(&end.process).at("process.pid")?;
    printable(&end.comm).at("comm")?;
    if end.fd < 0 {
        return Err(range(end.fd.into(), "0 and up").at("fd"));
    }
    Ok(())
}

fn waiter(waiter: &Waiter) -> Checked {
    positive(waiter.tid).at("tid")?;
    process(&waiter.process).at("process.pid")?;
    printable(&waiter.comm).at("comm")
}

fn covering(mount: &CoveringMount, root: &Path) -> Checked {
    absolute(&mount.path).at("path")?;
    if !mount.path.starts_with(root) {
        let (path, root) = (mount.path.clone(), root.to_owned());
        return Err(Fault::Outside { path, root }.at("path"));
    }
    device(mount.dev).at("dev_minor")?;
    fs_root(&mount.root).at("root")?;
    fstype(&mount.fstype).at("fstype")?;
    text(mount.source.as_os_str().as_bytes()).at("source")?;
    each("mount_flags", &mount.mount_flags, |flag| option(flag).at(""))?;
    each("super_options", &mount.super_options, |option| text(option.as_bytes()).at(""))
}

/// Every entry lies in a directory that comes before it: then no path leads through a symlink.
fn tree(entries: &[TreeEntry], mount_type: MountType) -> Checked {
    let mut known: HashMap<&Path, bool> = HashMap::with_capacity(entries.len());
    each("tree", entries, |entry| {
        relative(&entry.path).at("path")?;
        mode(entry.mode).at("mode")?;
        let parent = entry.path.parent().unwrap_or(Path::new(""));
        let at_top = parent.as_os_str().is_empty();
        if !at_top && known.get(parent) != Some(&true) {
            return Err(Fault::NoParent(parent.to_owned()).at("path"));
        }
        let is_directory = entry.symlink.is_none();
        if known.insert(&entry.path, is_directory).is_some() {
            return Err(duplicate(&entry.path).at("path"));
        }
        if let Some(target) = &entry.symlink {
            let target = target.as_os_str().as_bytes();
            filled(target).and_then(|()| length(target, LIMITS.path)).at("symlink")?;
        }
        // The kernel keeps a timeout only for a key of an indirect mount.
        let is_key = at_top && is_directory && mount_type == MountType::Indirect;
        if entry.timeout.is_some() && !is_key {
            return Err(Fault::Unexpected("only keys of indirect mounts have one").at("timeout"));
        }
        if entry.requester.is_some() && !is_directory {
            return Err(Fault::Unexpected("symlinks have none").at("requester"));
        }
        Ok(())
    })
}

fn in_flight(request: &InFlight) -> Checked {
    if let Some((_, key)) = &request.packet {
        relative(Path::new(OsStr::from_bytes(key))).and_then(|()| length(key, LIMITS.name)).at("key")?;
    }
    match &request.waiter {
        Some(one) => waiter(one).map_err(|error| error.within("waiter")),
        None => Ok(()),
    }
}

fn active(keys: &[ActiveKey], mount_type: MountType) -> Checked {
    let mut seen = HashSet::with_capacity(keys.len());
    each("active", keys, |active| {
        let path = Path::new(OsStr::from_bytes(&active.key));
        match mount_type {
            MountType::Indirect => component(&active.key),
            MountType::Direct | MountType::Offset => absolute(path),
        }
        .at("key")?;
        if !seen.insert(&active.key) {
            return Err(duplicate(path).at("key"));
        }
        text(active.entry.as_deref().unwrap_or_default()).at("entry")
    })
}

fn service(service: &Service) -> Checked {
    match service {
        Service::MasterEntry { mount_point, map, options, entries } => {
            absolute(mount_point).at("mount_point")?;
            filled(map).at("map")?;
            text(options).at("options")?;
            each("entries", entries, |(key, entry)| {
                filled(key).at("key")?;
                text(entry).at("entry")
            })
        }
        Service::Unit { unit, mount_point, what, fstype: name, options, timeout: _ } => {
            unit_name(unit).at("name")?;
            absolute(mount_point).at("mount_point")?;
            text(what).at("what")?;
            if !name.is_empty() {
                fstype(name).at("fstype")?;
            }
            text(options).at("options")
        }
    }
}

fn served_by(mount: &DumpedMount, len: usize) -> Checked {
    match mount.served_by {
        Some(index) if index >= len => Err(Fault::Index { index, len }.at("served_by")),
        _ => Ok(()),
    }
}

/// The parent, where it is an autofs mount of the checkpoint, comes first; children come later.
fn order(mount: &AutofsMount, own: usize, positions: &HashMap<u64, usize>) -> Checked {
    let position = |id| positions.get(id).copied();
    if position(&mount.parent_id).is_some_and(|parent| parent >= own) {
        return Err(Fault::BeforeParent(mount.parent_id).at("parent_id"));
    }
    each("autofs_children", &mount.autofs_children, |id| match position(id) {
        Some(child) if child <= own => Err(Fault::BeforeParent(mount.mount_id).at("")),
        _ => Ok(()),
    })
}

/// What must not occur twice among the mounts.
#[derive(Default)]
struct Seen<'a> {
    ids: HashSet<u64>,
    /// The same path under another parent is possible: a stack of mounts, or propagation.
    places: HashSet<(u64, &'a Path)>,
    superblocks: HashMap<DevNum, MountType>,
}

impl<'a> Seen<'a> {
    fn once(&mut self, mount: &'a DumpedMount) -> Checked {
        let facts = &mount.facts;
        if !self.ids.insert(facts.mount_id) {
            return Err(Fault::Duplicate(facts.mount_id.to_string()).at("mount_id"));
        }
        if !self.places.insert((facts.parent_id, &facts.path)) {
            return Err(duplicate(&facts.path).at("path"));
        }
        let mount_type = facts.options.mount_type;
        if *self.superblocks.entry(facts.dev).or_insert(mount_type) != mount_type {
            let fault = Fault::Inconsistent("the same superblock has another type elsewhere");
            return Err(fault.at("mode"));
        }
        Ok(())
    }
}

/// Check every element of a list; a field inside it is named `list[i].field`.
fn each<'a, T>(list: &str, items: &'a [T], mut check: impl FnMut(&'a T) -> Checked) -> Checked {
    items
        .iter()
        .enumerate()
        .try_for_each(|(i, item)| check(item).map_err(|error| error.within(format_args!("{list}[{i}]"))))
}

fn absolute(path: &Path) -> Result<(), Fault> {
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_prefix(b"/") {
        Some(b"") => Ok(()),
        Some(rest) => normal(path, rest),
        None => Err(Fault::NotAbsolute(path.to_owned())),
    }
}

fn relative(path: &Path) -> Result<(), Fault> {
    match path.as_os_str().as_bytes() {
        b"" => Err(Fault::Empty),
        [b'/', ..] => Err(Fault::NotRelative(path.to_owned())),
        bytes => normal(path, bytes),
    }
}

/// Are all components of `path`, in `bytes` without a leading slash, real names?
fn normal(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    no_nul(bytes)?;
    length(bytes, LIMITS.path)?;
    bytes.split(|byte| *byte == b'/').try_for_each(|part| match part {
        b"" | b"." | b".." => Err(Fault::NotNormal(path.to_owned())),
        name => length(name, LIMITS.name),
    })
}

fn component(name: &[u8]) -> Result<(), Fault> {
    let path = Path::new(OsStr::from_bytes(name));
    if name.contains(&b'/') {
        return Err(Fault::NotOneComponent(path.to_owned()));
    }
    relative(path)
}

/// It may become part of a helper's name (`mount.TYPE`), or an argument.
fn fstype(name: &str) -> Result<(), Fault> {
    match name.starts_with('-') {
        true => Err(Fault::Unexpected("a leading dash")),
        false => component(name.as_bytes()).and_then(|()| printable(name)),
    }
}

fn unit_name(name: &str) -> Result<(), Fault> {
    component(name.as_bytes()).and_then(|()| printable(name))
}

/// The `root` column of mountinfo. Not always a path: `mnt:[4026531841]` for nsfs,
/// `/gone//deleted` for a bind whose source was removed.
fn fs_root(root: &Path) -> Result<(), Fault> {
    let bytes = root.as_os_str().as_bytes();
    filled(bytes)?;
    match bytes.split(|byte| *byte == b'/').any(|part| part == b"..") {
        true => Err(Fault::NotNormal(root.to_owned())),
        false => Ok(()),
    }
}

fn option(text: &str) -> Result<(), Fault> {
    filled(text.as_bytes())?;
    match text.contains(',') {
        true => Err(Fault::Unexpected("a comma")),
        false => printable(text),
    }
}

/// Strings (what is not a string but bytes is escaped wherever it is printed).
fn printable(string: &str) -> Result<(), Fault> {
    text(string.as_bytes())?;
    match is_printable(string) {
        true => Ok(()),
        false => Err(Fault::NotPrintable(string.to_owned())),
    }
}

fn filled(bytes: &[u8]) -> Result<(), Fault> {
    match bytes {
        b"" => Err(Fault::Empty),
        bytes => text(bytes),
    }
}

fn text(bytes: &[u8]) -> Result<(), Fault> {
    no_nul(bytes)?;
    length(bytes, LIMITS.text)
}

fn no_nul(bytes: &[u8]) -> Result<(), Fault> {
    match bytes.contains(&0) {
        true => Err(Fault::Nul),
        false => Ok(()),
    }
}

fn length(bytes: &[u8], limit: usize) -> Result<(), Fault> {
    match bytes.len() {
        length if length > limit => Err(Fault::TooLong { length, limit }),
        _ => Ok(()),
    }
}

fn mode(mode: u32) -> Result<(), Fault> {
    match mode {
        0..=0o7777 => Ok(()),
        _ => Err(range(mode.into(), "permission bits: 0 to 07777")),
    }
}

fn device(dev: DevNum) -> Result<(), Fault> {
    if dev.minor >= 1 << 20 {
        return Err(range(dev.minor.into(), "20 bits"));
    }
    if dev.major >= 1 << 12 {
        return Err(range(dev.major.into(), "12 bits"));
    }
    Ok(())
}

fn process(id: &ProcessId) -> Result<(), Fault> {
    positive(id.pid)
}

fn positive(id: i32) -> Result<(), Fault> {
    match id {
        1.. => Ok(()),
        _ => Err(range(id.into(), "1 and up")),
    }
}

fn range(value: i128, range: &'static str) -> Fault {
    Fault::Range { value, range }
}

fn duplicate(path: &Path) -> Fault {
    Fault::Duplicate(format!("{path:?}"))
}

/// Names the field of a fault.
trait At {
    fn at(self, field: &str) -> Checked;
}

impl At for Result<(), Fault> {
    fn at(self, field: &str) -> Checked {
        self.map_err(|fault| fault.at(field))
    }
}
