//! Memory of a process that stays for months.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Most arenas of glibc's allocator. By itself each new thread gets one until there are eight for each CPU, and what is free
/// in one is of no use to the others; workers of ours allocate little, and briefly.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Have threads share arenas. To be called before threads are started.
pub fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes no pointers and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Give back what only the start needed: free memory of the allocator, and the pages of our own code, of which those that
/// are needed again come from the page cache.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointers and locks each arena itself.
    unsafe {
        libc::malloc_trim(0);
    }
    // What cannot be told stays.
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Ok(own) = fs::metadata("/proc/self/exe") else { return };
    for (start, length) in maps.lines().filter_map(|line| code(line, own.ino())) {
        // SAFETY: the range is, or was a moment ago, a mapping of code from our own file: private, never written, so that
        // each page is read from the file again when it is needed. Our code is never unmapped while it runs.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Start and length of a mapping that holds code of the file with this inode and can never have been written.
fn code(line: &str, ino: u64) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp" && words.nth(2)?.parse() == Ok(ino);
    let start = usize::from_str_radix(start, 16).ok()?;
    is_code.then_some((start, usize::from_str_radix(end, 16).ok()?.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_data() {
        let line = "5581a000-5581f000 r-xp 0001a000 08:01 4711   /usr/bin/autofs-cr";
        assert_eq!(code(line, 4711), Some((0x5581_a000, 0x5000)));
        assert_eq!(code(line, 4712), None);
        assert_eq!(code(&line.replace("r-xp", "rw-p"), 4711), None);
        assert_eq!(code("7ffd1000-7ffd2000 r-xp 00000000 00:00 0 [vdso]", 4711), None);
    }

    #[test]
    fn a_process_goes_on() {
        few_arenas();
        let kept = vec![7_u8; 1 << 20];
        give_back();
        assert!(kept.iter().all(|byte| *byte == 7));
    }
}
