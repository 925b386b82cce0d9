//! Our mount files among CRIU's images: the same files, but no inventory of ours. CRIU keeps versions and
//! says which plugin wrote what; the directory is its own, and so is the decision to trust it.

use super::checkpoint::{Checkpoint, DumpedMount, Left, Origin};
use super::error::{Fault, ImageError, io};
use super::framing::{Frame, Frames, MOUNT_MAGIC, Writer};
use super::pack::{File, open_mounts};
use super::{LIMITS, check, convert, files, wire};
use crate::sys::{DevNum, Errno};
use prost::Message;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// All mounts: crit knows its magic.
const MOUNTS: &str = "autofs-cr-mounts.img";

/// Descriptors on covered roots.
const PARKED: &str = "autofs-cr-parked.img";
/// Second word of that file: "AFCP".
const PARKED_MAGIC: u32 = u32::from_le_bytes(*b"AFCP");

/// Mounts of the host's automounter.
const FOREIGN: &str = "autofs-cr-foreign.img";
/// Second word of that file: "AFCF".
const FOREIGN_MAGIC: u32 = u32::from_le_bytes(*b"AFCF");
/// Inodes by which masters know mounts.
const ROOTS: &str = "autofs-cr-roots.img";
/// Second word of that file: "AFCR".
const ROOTS_MAGIC: u32 = u32::from_le_bytes(*b"AFCR");
/// Cgroups.
const CGROUPS: &str = "autofs-cr-cgroups.img";
/// Second word of that file: "AFCG".
const CGROUPS_MAGIC: u32 = u32::from_le_bytes(*b"AFCG");
/// What CRIU's names of them begin with.
const NAME: &str = "autofs-cr-";
/// Second word of CRIU's own `mountpoints-*.img`.
pub(super) const CRIU_MOUNTS_MAGIC: u32 = 0x5556_3928;

/// Remove what an earlier dump has left in `dir`.
pub fn clear(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in [MOUNTS, PARKED, FOREIGN, ROOTS, CGROUPS] {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The file of all mounts, without any: the messages of [`encode`] are to be appended. (One file: thousands take CRIU's
/// directory longer than everything else.)
pub fn begin_mounts() -> File {
    File { name: MOUNTS.to_owned(), bytes: Writer::new(MOUNT_MAGIC).finish() }
}

/// The messages of one superblock. `places`: every place where it is attached, with its position among all
/// places of the dump (parents before children).
pub fn encode<'a>(places: impl IntoIterator<Item = (usize, &'a DumpedMount)>) -> Vec<u8> {
    let mut messages = Writer::more();
    places.into_iter().for_each(|(position, mount)| messages.push(&convert::encode_mount(position, mount)));
    messages.finish()
}

/// The files of all mounts, as they were read.
#[derive(Debug, Default)]
pub struct Mounts {
    /// Ours. Those of autofs that CRIU wrote itself are left out.
    ours: Vec<(String, Vec<u8>)>,
    /// CRIU's, of all mounts whatever they are.
    tables: Vec<(String, Vec<u8>)>,
}

impl Mounts {
    /// Those in `dir`.
    pub fn read(dir: BorrowedFd<'_>) -> Result<Self, ImageError> {
        let ours = match read_if_there(dir, MOUNTS)? {
            Some(bytes) => vec![(MOUNTS.to_owned(), bytes)],
            None => Self::read_each(dir)?,
        };
        let mut mounts = Self { ours, tables: Vec::new() };
        if !mounts.is_empty() {
            // A restore does not depend on them.
            mounts.tables = tables(dir).unwrap_or_default();
        }
        Ok(mounts)
    }

    /// Images of before there was [`MOUNTS`] have a file for each superblock, under the name of CRIU's.
    fn read_each(dir: BorrowedFd<'_>) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
        let mut files = Vec::new();
        for (name, bytes) in read_all(dir, files::is_mount)? {
            if is_ours(&name, &bytes)? {
                files.push((name, bytes));
            }
        }
        Ok(files)
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.ours.iter().all(|(_, bytes)| bytes.len() <= begin_mounts().bytes.len())
    }

    /// The device numbers of all superblocks, and nothing else: known long before all is decoded, and checked then.
    pub fn numbers(&self) -> Result<BTreeSet<DevNum>, ImageError> {
        let mut numbers = BTreeSet::new();
        let mut budget = LIMITS.entries;
        for (file, bytes) in &self.ours {
            for frame in Frames::open(file, bytes, MOUNT_MAGIC)? {
                let number: wire::MountNumber = frame?.decode(&[], &mut budget)?;
                numbers.extend(number.dev_minor.filter(|minor| *minor < 1 << 20).map(DevNum::anonymous));
            }
        }
        Ok(numbers)
    }

    /// Those of all file systems that have such numbers, as far as CRIU's images tell.
    pub fn all_numbers(&self) -> BTreeSet<DevNum> {
        let mut budget = LIMITS.entries;
        let mut number = |frame: Result<Frame<'_>, ImageError>| {
            let mount: wire::CriuMount = frame.ok()?.decode(&[], &mut budget).ok()?;
            mount.root_dev.filter(|dev| *dev < 1 << 20).map(DevNum::anonymous)
        };
        let frames = |(file, bytes)| Frames::open(file, bytes, CRIU_MOUNTS_MAGIC).ok();
        let tables = self.tables.iter().map(|(file, bytes)| (file.as_str(), bytes.as_slice()));
        tables.filter_map(frames).flatten().filter_map(&mut number).collect()
    }

    /// All mounts, checked, parents first.
    pub fn decode(&self) -> Result<Checkpoint, ImageError> {
        let mut budget = LIMITS.entries;
        let mut mounts = Vec::new();
        for (file, bytes) in &self.ours {
            open_mounts(file, bytes, &mut budget, &mut mounts)?;
        }
        mounts.sort_by_key(|(position, _)| *position);
        let mounts = mounts.into_iter().map(|(_, mount)| mount).collect();
        let checkpoint = Checkpoint { origin: nowhere(), mounts, services: Vec::new() };
        check::check(&checkpoint)?;
        Ok(checkpoint)
    }
}

/// The file of the descriptors on covered roots: process, number, minor of the mount, close-on-exec.
pub fn encode_parked(descriptors: impl IntoIterator<Item = (i32, i32, u32, bool)>) -> File {
    let mut file = Writer::new(PARKED_MAGIC);
    for (pid, fd, dev_minor, cloexec) in descriptors {
        let (pid, fd, dev_minor, cloexec) = (Some(pid), Some(fd), Some(dev_minor), Some(cloexec));
        file.push(&wire::Parked { pid, fd, dev_minor, cloexec });
    }
    File { name: PARKED.to_owned(), bytes: file.finish() }
}

/// What [`encode_parked`] was given; nothing when there is no such file.
pub fn read_parked(dir: BorrowedFd<'_>) -> Result<Vec<(i32, i32, u32, bool)>, ImageError> {
    read_list(dir, PARKED, PARKED_MAGIC, "pid, fd, dev_minor or cloexec", |message: wire::Parked| {
        let natural = |number: Option<i32>| number.filter(|number| *number >= 0);
        Some((natural(message.pid)?, natural(message.fd)?, message.dev_minor?, message.cloexec?))
    })
}

/// The file of the inodes by which masters know direct and offset mounts.
pub fn encode_roots<'a>(roots: impl IntoIterator<Item = (&'a DevNum, &'a u64)>) -> File {
    let mut file = Writer::new(ROOTS_MAGIC);
    for (dev, inode) in roots {
        file.push(&wire::Root { dev_minor: Some(dev.minor), inode: Some(*inode) });
    }
    File { name: ROOTS.to_owned(), bytes: file.finish() }
}

/// What [`encode_roots`] was given; nothing when there is no such file.
pub fn read_roots(dir: BorrowedFd<'_>) -> Result<HashMap<DevNum, u64>, ImageError> {
    read_list(dir, ROOTS, ROOTS_MAGIC, "dev_minor or inode", |message: wire::Root| {
        Some((DevNum::anonymous(message.dev_minor?), message.inode?))
    })
}

/// The file of the container's cgroups: paths below the root of its cgroup namespace, parents first.
pub fn encode_cgroups<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> File {
    let mut file = Writer::new(CGROUPS_MAGIC);
    for path in paths {
        file.push(&wire::Cgroup { path: Some(path.as_os_str().as_encoded_bytes().to_vec()) });
    }
    File { name: CGROUPS.to_owned(), bytes: file.finish() }
}

/// What [`encode_cgroups`] was given, none of it outside that root; nothing when there is no such file.
pub fn read_cgroups(dir: BorrowedFd<'_>) -> Result<Vec<PathBuf>, ImageError> {
    read_list(dir, CGROUPS, CGROUPS_MAGIC, "path", |message: wire::Cgroup| {
        let path = PathBuf::from(OsString::from_vec(message.path?));
        let below = path.components().all(|part| matches!(part, Component::Normal(_)));
        Some(path).filter(|path| below && !path.as_os_str().is_empty())
    })
}

/// A mount that the container has of the host's automounter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// Its id in the container's mount table.
    pub mount_id: u64,
    /// Where the host has it.
    pub path: PathBuf,
    /// A trigger, or what is mounted below one?
    pub autofs: bool,
    /// Do events come from the host's mount?
    pub slave: bool,
}

impl Foreign {
    /// What CRIU calls it.
    pub fn name(&self) -> String {
        external_name(self.mount_id)
    }
}

/// All names have one length, so that one can be put in the place of another.
fn external_name(mount_id: u64) -> String {
    format!("{NAME}{mount_id:010}")
}

/// The file of the host's mounts.
pub fn encode_foreign<'a>(mounts: impl IntoIterator<Item = &'a Foreign>) -> File {
    let mut file = Writer::new(FOREIGN_MAGIC);
    for mount in mounts {
        let path = Some(mount.path.as_os_str().as_encoded_bytes().to_vec());
        let (mount_id, autofs, slave) = (Some(mount.mount_id), Some(mount.autofs), Some(mount.slave));
        file.push(&wire::Foreign { mount_id, path, autofs, slave });
    }
    File { name: FOREIGN.to_owned(), bytes: file.finish() }
}

/// What [`encode_foreign`] was given; nothing when there is no such file.
pub fn read_foreign(dir: BorrowedFd<'_>) -> Result<Vec<Foreign>, ImageError> {
    read_list(dir, FOREIGN, FOREIGN_MAGIC, "mount_id or path", |message: wire::Foreign| {
        let path = PathBuf::from(OsString::from_vec(message.path?));
        Some(Foreign {
            mount_id: message.mount_id?,
            path: Some(path).filter(|path| path.is_absolute())?,
            autofs: message.autofs.unwrap_or_default(),
            slave: message.slave.unwrap_or_default(),
        })
    })
}

/// CRIU names external mounts by path, so that all that are stacked at one path have one name in its images of mounts
/// in `dir`. Each gets its own.
pub fn name_externals(dir: BorrowedFd<'_>) -> Result<(), ImageError> {
    for (name, mut bytes) in tables(dir)? {
        if name_each(&name, &mut bytes)? {
            let path = Path::new(&name);
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(dir, path, flags, Mode::empty()).map_err(io("open", path))?;
            std::fs::File::from(file).write_all(&bytes).map_err(io("write", path))?;
        }
    }
    Ok(())
}

/// CRIU's own images of mounts, each of one mount namespace.
fn tables(dir: BorrowedFd<'_>) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
    read_all(dir, |name| name.starts_with("mountpoints-") && name.ends_with(".img"))
}

/// The same in one file's bytes. Returns whether anything was changed.
fn name_each(file: &str, bytes: &mut [u8]) -> Result<bool, ImageError> {
    let mut wrong = Vec::new();
    for frame in Frames::open(file, bytes, CRIU_MOUNTS_MAGIC)? {
        let frame = frame?;
        let message: wire::CriuMount = frame.decode(&[], &mut LIMITS.entries.clone())?;
        let (Some(id), Some(key)) = (message.mnt_id, message.ext_key) else { continue };
        let name = external_name(id.into());
        if key.len() == name.len() && key.starts_with(NAME) && key != name {
            wrong.push((frame.offset, key, name));
        }
    }
    for (offset, key, name) in &wrong {
        let found = bytes[*offset..].windows(key.len()).position(|bytes| bytes == key.as_bytes());
        let place = offset + found.ok_or_else(|| Fault::Missing.at("ext_key").in_file(file))?;
        bytes[place..place + name.len()].copy_from_slice(name.as_bytes());
    }
    Ok(!wrong.is_empty())
}

/// Does the first message have fields of ours? CRIU's own has none.
fn is_ours(name: &str, bytes: &[u8]) -> Result<bool, ImageError> {
    let Some(first) = Frames::open(name, bytes, MOUNT_MAGIC)?.next() else { return Ok(false) };
    let message: wire::AutofsEntry = first?.decode(&[], &mut LIMITS.entries.clone())?;
    Ok(message.position.is_some())
}

/// The messages of one of our files, each turned into something; nothing when there is no such file. `fields`: which are missing, or wrong,
/// where `of` has no answer.
fn read_list<M: Message + Default, T, C: FromIterator<T> + Default>(
    dir: BorrowedFd<'_>,
    name: &str,
    magic: u32,
    fields: &'static str,
    of: impl Fn(M) -> Option<T>,
) -> Result<C, ImageError> {
    let Some(bytes) = read_if_there(dir, name)? else { return Ok(C::default()) };
    let mut budget = LIMITS.entries;
    let item = |frame: Result<Frame<'_>, ImageError>| {
        of(frame?.decode(&[], &mut budget)?).ok_or_else(|| Fault::Missing.at(fields).in_file(name))
    };
    Frames::open(name, &bytes, magic)?.map(item).collect()
}

/// The files in `dir` whose names are such, in no order.
fn read_all(dir: BorrowedFd<'_>, is_such: fn(&str) -> bool) -> Result<Vec<(String, Vec<u8>)>, ImageError> {
    let path = Path::new("CRIU's image directory");
    let mut files = Vec::new();
    for entry in Dir::read_from(dir).map_err(io("list", path))? {
        let entry = entry.map_err(io("list", path))?;
        if let Some(name) = entry.file_name().to_str().ok().filter(|name| is_such(name)) {
            files.push((name.to_owned(), read_file(dir, name)?));
        }
    }
    Ok(files)
}

fn read_if_there(dir: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
    match read_file(dir, name) {
        Err(ImageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        bytes => bytes.map(Some),
    }
}

fn read_file(dir: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, ImageError> {
    let path = Path::new(name);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).map_err(io("open", path))?;
    // Room for most files at once: without it the kernel is asked for a few bytes first.
    let mut bytes = Vec::with_capacity(4096);
    let limit = LIMITS.bytes;
    std::fs::File::from(file).take(limit + 1).read_to_end(&mut bytes).map_err(io("read", path))?;
    match bytes.len() as u64 {
        size if size > limit => Err(ImageError::TooLarge { file: name.to_owned(), size, limit }),
        _ => Ok(bytes),
    }
}

/// What CRIU keeps itself.
fn nowhere() -> Origin {
    Origin {
        created: 0,
        tool: String::new(),
        kernel: String::new(),
        boot_id: String::new(),
        mount_namespace: 0,
        left: Left::Running,
    }
}
