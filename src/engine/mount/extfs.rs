//! Does a file system of the ext family need fsck? Its superblock says so, and a clean one costs one read, no fork.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the superblock begins, bytes.
const START: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// In the state: unmounted cleanly. (With a journal it says so while mounted, too: the kernel replays that.)
const CLEAN: u16 = 1;
/// In the state: the kernel found errors.
const ERRORS: u16 = 2;

/// Not clean, or due for its periodic check. `false` for what is no ext file system: the kernel refuses it.
pub(super) fn needs_check(device: &Path) -> std::io::Result<bool> {
    let mut block = [0; 1024];
    File::open(device)?.read_exact_at(&mut block, START)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    Ok(is_due(&block, now))
}

/// `now`: seconds since 1970.
fn is_due(block: &[u8; 1024], now: u64) -> bool {
    let short = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let long = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (mounts, most_mounts, magic, state) = (short(52), short(54) as i16, short(56), short(58));
    let (checked, interval) = (u64::from(long(64)), u64::from(long(68)));
    magic == MAGIC
        && (state & (CLEAN | ERRORS) != CLEAN
            || most_mounts > 0 && i32::from(mounts) >= i32::from(most_mounts)
            || interval > 0 && now >= checked + interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fields: &[(usize, u16)]) -> [u8; 1024] {
        let mut block = [0; 1024];
        for (at, value) in [(56, MAGIC), (58, CLEAN)].iter().chain(fields) {
            block[*at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        block
    }

    #[test]
    fn clean_ones_need_nothing() {
        assert!(!is_due(&block(&[]), 1_000_000));
        // -1: never by count
        assert!(!is_due(&block(&[(52, 500), (54, 0xffff)]), 1_000_000));
        assert!(!is_due(&[0; 1024], 0));
    }

    #[test]
    fn others_do() {
        for fields in
            [[(58, 0), (0, 0)], [(58, CLEAN | ERRORS), (0, 0)], [(52, 30), (54, 30)], [(64, 1), (68, 9)]]
        {
            assert!(is_due(&block(&fields), 1_000_000), "{fields:?}");
        }
        assert!(!is_due(&block(&[(64, 1), (68, 9)]), 9));
    }
}
