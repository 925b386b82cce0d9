//! A checkpoint as the bytes of its files, and back. No file is touched here.

use super::checkpoint::{Checkpoint, DumpedMount, Origin, Service};
use super::convert::{self, Wire};
use super::error::{Fault, ImageError};
use super::framing::{Frames, INVENTORY_MAGIC, MOUNT_MAGIC, SERVICES_MAGIC, Writer};
use super::{LIMITS, VERSION, check, files, wire};
use crate::sys::DevNum;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Field of `autofs_entry` whose messages have lists of their own (`covering`).
const NESTED_LISTS: &[u64] = &[136];

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name in the directory.
    pub name: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// The files of a checkpoint, the inventory last. Whatever is returned can be unpacked again:
/// the same rules are applied here, with the same errors.
pub fn pack(checkpoint: &Checkpoint) -> Result<Vec<File>, ImageError> {
    let packed = encode(checkpoint);
    let by_name: HashMap<&str, &[u8]> =
        packed.iter().map(|file| (file.name.as_str(), file.bytes.as_slice())).collect();
    unpack(|name, _| Ok(by_name[name].to_vec()))?;
    Ok(packed)
}

pub(super) fn encode(checkpoint: &Checkpoint) -> Vec<File> {
    let mut services = Writer::new(SERVICES_MAGIC);
    checkpoint.services.iter().for_each(|service| services.push(&service.encode()));
    let mut mounts: BTreeMap<DevNum, Writer> = BTreeMap::new();
    for (position, mount) in checkpoint.mounts.iter().enumerate() {
        let file = mounts.entry(mount.facts.dev).or_insert_with(|| Writer::new(MOUNT_MAGIC));
        file.push(&convert::encode_mount(position, mount));
    }
    let mut packed = vec![File { name: files::SERVICES.to_owned(), bytes: services.finish() }];
    packed
        .extend(mounts.into_iter().map(|(dev, file)| File { name: files::mount(dev), bytes: file.finish() }));
    packed.push(inventory(&checkpoint.origin, &packed));
    packed
}

pub(super) fn inventory(origin: &Origin, others: &[File]) -> File {
    let mut file = Writer::new(INVENTORY_MAGIC);
    file.push(&wire::Inventory {
        major: Some(VERSION.major),
        minor: Some(VERSION.minor),
        origin: Some(origin.encode()),
        files: others
            .iter()
            .map(|other| wire::File {
                name: Some(other.name.clone()),
                length: Some(other.bytes.len() as u64),
                crc32: Some(crc32fast::hash(&other.bytes)),
            })
            .collect(),
    });
    file.push(&wire::Seal { crc32: Some(crc32fast::hash(file.bytes())) });
    File { name: files::INVENTORY.to_owned(), bytes: file.finish() }
}

/// The checkpoint of an image. `fetch` gets a file's bytes by name, and never more bytes than its
/// second argument says.
pub fn unpack(
    mut fetch: impl FnMut(&str, u64) -> Result<Vec<u8>, ImageError>,
) -> Result<Checkpoint, ImageError> {
    let mut budget = LIMITS.entries;
    let (origin, manifest) = open_inventory(&fetch(files::INVENTORY, LIMITS.inventory)?, &mut budget)?;
    let mut services = Vec::new();
    let mut mounts = Vec::new();
    for entry in manifest {
        let bytes = fetch(&entry.name, entry.length)?;
        entry.verify(&bytes)?;
        if entry.name == files::SERVICES {
            services = open_services(&bytes, &mut budget)?;
        } else {
            open_mounts(&entry.name, &bytes, &mut budget, &mut mounts)?;
        }
    }
    let checkpoint = Checkpoint { origin, mounts: in_order(mounts)?, services };
    check::check(&checkpoint)?;
    Ok(checkpoint)
}

/// What the inventory says about another file.
struct Entry {
    name: String,
    length: u64,
    crc32: u32,
}

impl Entry {
    fn verify(&self, bytes: &[u8]) -> Result<(), ImageError> {
        let file = || self.name.clone();
        let length = bytes.len() as u64;
        if length != self.length {
            return Err(ImageError::Length { file: file(), found: length, expected: self.length });
        }
        verify(&self.name, bytes, self.crc32)
    }
}

fn verify(file: &str, bytes: &[u8], expected: u32) -> Result<(), ImageError> {
    match crc32fast::hash(bytes) {
        found if found == expected => Ok(()),
        found => Err(ImageError::Checksum { file: file.to_owned(), found, expected }),
    }
}

fn open_inventory(bytes: &[u8], budget: &mut usize) -> Result<(Origin, Vec<Entry>), ImageError> {
    let file = files::INVENTORY;
    let missing = |field: &str| Fault::Missing.at(field).in_file(file);
    let frames = Frames::open(file, bytes, INVENTORY_MAGIC)?.collect::<Result<Vec<_>, _>>()?;
    let [first, .., last] = frames[..] else {
        return Err(missing("seal"));
    };
    let seal: wire::Seal = last.decode(&[], budget)?;
    verify(file, last.before(bytes), seal.crc32.ok_or_else(|| missing("seal.crc32"))?)?;

    let version: wire::Version = first.decode(&[], budget)?;
    let major = version.major.ok_or_else(|| missing("major"))?;
    if major != VERSION.major {
        let minor = version.minor.unwrap_or(0);
        return Err(ImageError::Version { file: file.to_owned(), major, minor });
    }
    let inventory: wire::Inventory = first.decode(&[], budget)?;
    let origin = inventory.origin.ok_or_else(|| missing("origin"))?;
    let origin = Origin::decode(origin).map_err(|error| error.within("origin").in_file(file))?;
    Ok((origin, manifest(inventory.files)?))
}

fn manifest(listed: Vec<wire::File>) -> Result<Vec<Entry>, ImageError> {
    let mut names = HashSet::with_capacity(listed.len());
    let mut total = 0u64;
    let mut entries = Vec::with_capacity(listed.len());
    for (i, one) in listed.into_iter().enumerate() {
        let fault = |fault: Fault, field| {
            fault.at(field).within(format_args!("files[{i}]")).in_file(files::INVENTORY)
        };
        let name = one.name.ok_or_else(|| fault(Fault::Missing, "name"))?;
        let length = one.length.ok_or_else(|| fault(Fault::Missing, "length"))?;
        let crc32 = one.crc32.ok_or_else(|| fault(Fault::Missing, "crc32"))?;
        if !files::may_be_listed(&name) {
            return Err(fault(Fault::Unexpected("not the name of an image file"), "name"));
        }
        if !names.insert(name.clone()) {
            return Err(fault(Fault::Duplicate(name), "name"));
        }
        total = total.saturating_add(length);
        if total > LIMITS.bytes {
            return Err(ImageError::TooLarge { file: name, size: total, limit: LIMITS.bytes });
        }
        entries.push(Entry { name, length, crc32 });
    }
    Ok(entries)
}

fn open_services(bytes: &[u8], budget: &mut usize) -> Result<Vec<Service>, ImageError> {
    let file = files::SERVICES;
    let frames = Frames::open(file, bytes, SERVICES_MAGIC)?;
    frames
        .enumerate()
        .map(|(i, frame)| {
            Service::decode(frame?.decode(&[], budget)?)
                .map_err(|error| error.within(format_args!("services[{i}]")).in_file(file))
        })
        .collect()
}

/// The mounts of one file, with their positions. A file may be named after a superblock, and has only that then.
pub fn open_mounts(
    file: &str,
    bytes: &[u8],
    budget: &mut usize,
    mounts: &mut Vec<(usize, DumpedMount)>,
) -> Result<(), ImageError> {
    for frame in Frames::open(file, bytes, MOUNT_MAGIC)? {
        let (position, mount) = convert::decode_mount(frame?.decode(NESTED_LISTS, budget)?)
            .map_err(|error| error.in_file(file))?;
        if files::is_mount(file) && files::mount(mount.facts.dev) != file {
            let fault = Fault::Inconsistent("not the device number in the file's name");
            return Err(fault.at("dev_minor").in_file(file));
        }
        mounts.push((position, mount));
    }
    Ok(())
}

/// The mounts of all files, in the order in which they were dumped.
fn in_order(mut mounts: Vec<(usize, DumpedMount)>) -> Result<Vec<DumpedMount>, ImageError> {
    mounts.sort_by_key(|(position, _)| *position);
    for (i, (position, mount)) in mounts.iter().enumerate() {
        if *position != i {
            let fault = Fault::Inconsistent("the positions of all mounts are not 0, 1, 2 ...");
            return Err(fault.at("position").in_file(&files::mount(mount.facts.dev)));
        }
    }
    Ok(mounts.into_iter().map(|(_, mount)| mount).collect())
}
