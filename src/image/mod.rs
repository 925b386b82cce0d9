//! The image directory: what a dump writes and a restore reads.
//!
//! ```text
//! DIR/                            mode 0700, owned by who reads it or by root
//!   autofs-cr-inventory.img       magic "AFCI": Inventory (versions, origin, every other file with
//!                                 its length and CRC-32), then Seal (CRC-32 of this file so far)
//!   autofs-cr-services.img        magic "AFCS": one Service per frame (map state)
//!   autofs-<s_dev>.img            magic of CRIU's autofs image: one autofs_entry for each place
//!                                 where that superblock is attached
//! ```
//!
//! Every file is in CRIU's framing (`framing`); the messages are those of `proto/`. Fields 1-9 of
//! `autofs_entry` are CRIU's own, so `crit decode` reads that file. `docs/image-format.md` has it all.
//!
//! An image is untrusted input. What comes out of [`read`] has passed, in this order: who may have
//! written the files, sizes, checksums, version, counts, form (`convert`), and meaning (`check`).

mod check;
pub mod checkpoint;
mod commands;
mod convert;
pub mod criu;
mod error;
mod files;
mod framing;
mod pack;
mod read;
mod wire;
mod write;

pub use checkpoint::Checkpoint;
pub use commands::{Command, When};
pub use error::{Distrust, Fault, ImageError};
pub use framing::{FRAME_MAGIC, INVENTORY_MAGIC, MOUNT_MAGIC, SERVICES_MAGIC};
pub use pack::File;
pub use read::read;
pub use write::{Draft, Existing, write};

/// Version of the image that this program writes, and the newest major version that it reads.
pub const VERSION: Version = Version { major: 1, minor: 0 };

/// Version of an image. A new minor version adds fields that an older program may ignore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// Programs refuse an image with another major version.
    pub major: u32,
    /// Informative.
    pub minor: u32,
}

/// What no image exceeds, and a reader therefore refuses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the whole image.
    pub bytes: u64,
    /// Bytes of the inventory.
    pub inventory: u64,
    /// Entries of all lists together.
    pub entries: usize,
    /// Bytes of a path.
    pub path: usize,
    /// Bytes of a path's component.
    pub name: usize,
    /// Bytes of any other string.
    pub text: usize,
}

/// The limits of this version.
pub const LIMITS: Limits =
    Limits { bytes: 256 << 20, inventory: 16 << 20, entries: 2 << 20, path: 4095, name: 255, text: 64 << 10 };

#[cfg(test)]
pub(crate) mod tests;
