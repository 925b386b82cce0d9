//! The names of the files of an image.

use crate::sys::DevNum;

/// Versions, origin, and the length and checksum of every other file.
pub const INVENTORY: &str = "autofs-cr-inventory.img";
/// Map state.
pub const SERVICES: &str = "autofs-cr-services.img";

/// The file of the mounts of one superblock, as CRIU names it: its `s_dev` is the kernel's own
/// `dev_t`, with 20 bits for the minor.
pub fn mount(dev: DevNum) -> String {
    format!("autofs-{}.img", (dev.major << 20) | dev.minor)
}

/// Is this the name of a file that belongs to an image?
pub fn is_ours(name: &str) -> bool {
    name == INVENTORY || may_be_listed(name)
}

/// May the inventory name this file? Then it has no slash, and no second way to be written.
pub fn may_be_listed(name: &str) -> bool {
    name == SERVICES || is_mount(name)
}

/// Is this what [`mount`] gives?
pub fn is_mount(name: &str) -> bool {
    let number = name.strip_prefix("autofs-").and_then(|rest| rest.strip_suffix(".img"));
    let canonical = |digits: &str| digits.parse().is_ok_and(|n: u32| n.to_string() == digits);
    number.is_some_and(canonical)
}
