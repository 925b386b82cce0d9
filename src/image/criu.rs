//! Our mount files among CRIU's images: the same files, but no inventory of ours. CRIU keeps versions and
//! says which plugin wrote what; the directory is its own, and so is the decision to trust it.

use super::checkpoint::{Checkpoint, DumpedMount, Left, Origin};
use super::error::{Fault, ImageError, io};
use super::framing::{Frame, Frames, MOUNT_MAGIC, Writer};
use super::pack::{File, open_mounts};
use super::{LIMITS, check, convert, files, wire};
use rustix::fs::{Dir, Mode, OFlags, openat};
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Descriptors on covered roots.
const PARKED: &str = "autofs-cr-parked.img";
/// Second word of that file: "AFCP".
const PARKED_MAGIC: u32 = u32::from_le_bytes(*b"AFCP");

/// The file of one superblock. `places`: every place where it is attached, with its position among all
/// places of the dump (parents before children).
pub fn encode<'a>(places: impl IntoIterator<Item = (usize, &'a DumpedMount)>) -> Option<File> {
    let mut name = None;
    let mut file = Writer::new(MOUNT_MAGIC);
    for (position, mount) in places {
        name.get_or_insert_with(|| files::mount(mount.facts.dev));
        file.push(&convert::encode_mount(position, mount));
    }
    Some(File { name: name?, bytes: file.finish() })
}

/// All mounts of the files in `dir`, checked, parents first. Files that CRIU wrote itself are left out.
pub fn read(dir: BorrowedFd<'_>) -> Result<Checkpoint, ImageError> {
    let path = Path::new("CRIU's image directory");
    let mut budget = LIMITS.entries;
    let mut mounts = Vec::new();
    for entry in Dir::read_from(dir).map_err(io("list", path))? {
        let entry = entry.map_err(io("list", path))?;
        let Some(name) = entry.file_name().to_str().ok().filter(|name| files::is_mount(name)) else {
            continue;
        };
        let bytes = read_file(dir, name)?;
        if is_ours(name, &bytes)? {
            open_mounts(name, &bytes, &mut budget, &mut mounts)?;
        }
    }
    mounts.sort_by_key(|(position, _)| *position);
    let mounts = mounts.into_iter().map(|(_, mount)| mount).collect();
    let checkpoint = Checkpoint { origin: nowhere(), mounts, services: Vec::new() };
    check::check(&checkpoint)?;
    Ok(checkpoint)
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
    let bytes = match read_file(dir, PARKED) {
        Err(ImageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        bytes => bytes?,
    };
    let mut budget = LIMITS.entries;
    let parked = |frame: Result<Frame<'_>, ImageError>| {
        let message: wire::Parked = frame?.decode(&[], &mut budget)?;
        let missing = || Fault::Missing.at("pid, fd, dev_minor or cloexec").in_file(PARKED);
        let natural = |number: Option<i32>| number.filter(|number| *number >= 0).ok_or_else(missing);
        let minor = message.dev_minor.ok_or_else(missing)?;
        Ok((natural(message.pid)?, natural(message.fd)?, minor, message.cloexec.ok_or_else(missing)?))
    };
    Frames::open(PARKED, &bytes, PARKED_MAGIC)?.map(parked).collect()
}

/// Does the first message have fields of ours? CRIU's own has none.
fn is_ours(name: &str, bytes: &[u8]) -> Result<bool, ImageError> {
    let Some(first) = Frames::open(name, bytes, MOUNT_MAGIC)?.next() else { return Ok(false) };
    let message: wire::AutofsEntry = first?.decode(&[], &mut LIMITS.entries.clone())?;
    Ok(message.position.is_some())
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
