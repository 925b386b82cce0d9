//! Device numbers. The kernel speaks three encodings; this type is the only place that converts.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The number of a superblock (`st_dev`), as major and minor.
///
/// Anonymous superblocks (autofs, tmpfs) have major 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct DevNum {
    /// Major number; 0 for anonymous superblocks.
    pub major: u32,
    /// Minor number, 20 bits in the kernel.
    pub minor: u32,
}

impl DevNum {
    /// An anonymous superblock's number.
    pub const fn anonymous(minor: u32) -> Self {
        Self { major: 0, minor }
    }

    /// From `st_dev` as stat(2) reports it (glibc's `makedev` encoding).
    pub fn from_st_dev(st_dev: u64) -> Self {
        Self { major: rustix::fs::major(st_dev), minor: rustix::fs::minor(st_dev) }
    }

    /// To `st_dev` as stat(2) reports it.
    pub fn to_st_dev(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }

    /// From the kernel's 32-bit `new_encode_dev`, the form in packets.
    pub const fn from_kernel(dev: u32) -> Self {
        Self { major: (dev & 0xfff00) >> 8, minor: (dev & 0xff) | ((dev >> 12) & 0xfff00) }
    }

    /// To the kernel's 32-bit `new_encode_dev`, the form that OPENMOUNT wants.
    pub const fn to_kernel(self) -> u32 {
        (self.minor & 0xff) | (self.major << 8) | ((self.minor & !0xff) << 12)
    }
}

/// `major:minor`, as mountinfo prints it.
impl fmt::Display for DevNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_encoding_goes_both_ways_above_minor_255() {
        for minor in [0, 1, 255, 256, 4095, 4096, 0xfffff] {
            let dev = DevNum::anonymous(minor);
            assert_eq!(DevNum::from_kernel(dev.to_kernel()), dev);
            assert_eq!(DevNum::from_st_dev(dev.to_st_dev()), dev);
        }
        assert_eq!(DevNum::anonymous(256).to_kernel(), 0x10_0000);
    }
}
