//! What CRIU itself cannot carry, however the mounts are handled. It would find out half-way, or hang.
//!
//! Facts: `criu/pipes.c` and `criu/files.c` of CRIU 4.1 and 4.2, and by experiment.

use crate::discover::facts::AutofsMount;
use std::collections::{BTreeMap, HashSet};

/// How many pipes CRIU can dump.
const MOST_PIPES: usize = 1024;

/// What a datagram of CRIU's takes of a socket's buffer.
const DATAGRAM: usize = 768;

/// A limit of CRIU's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Limit {
    /// Too many pipes.
    #[error(
        "its autofs mounts have {0} pipes, and CRIU can dump {MOST_PIPES} pipes: let mounts share pipes, as automount(8) and autofs-cr do"
    )]
    Pipes(usize),
    /// Its restore would hang: it sends itself the other ends of each pipe over a socket, and reads them later.
    #[error(
        "CRIU would hang: process {process} has {ends} more ends of its autofs pipes, and CRIU's socket takes {room}; \
             set net.core.wmem_default to {wanted} or more for the restore, or close the write ends"
    )]
    Ends {
        /// The process, in the container's numbers.
        process: i32,
        /// How many ends beside the first of each pipe.
        ends: usize,
        /// How many fit.
        room: usize,
        /// What the sysctl must be.
        wanted: usize,
    },
}

/// The pipes of mounts: for each the processes of its ends.
pub type Pipes = BTreeMap<u64, Vec<i32>>;

/// Those of `mounts`. All mounts of a pipe know the same ends.
pub fn pipes<'a>(mounts: impl IntoIterator<Item = &'a AutofsMount>) -> Pipes {
    let of = |mount: &AutofsMount| mount.pipe_ends.iter().map(|end| end.process.pid).collect();
    mounts.into_iter().filter_map(|mount| Some((mount.options.pipe_ino?, of(mount)))).collect()
}

/// Can CRIU dump them?
pub fn of_dump(pipes: &Pipes) -> Result<(), Limit> {
    if pipes.len() > MOST_PIPES { Err(Limit::Pipes(pipes.len())) } else { Ok(()) }
}

/// Can CRIU restore them here? `buffer`: net.core.wmem_default.
pub fn of_restore(pipes: &Pipes, buffer: usize) -> Result<(), Limit> {
    let mut more: BTreeMap<i32, usize> = BTreeMap::new();
    for ends in pipes.values() {
        let mut opened = HashSet::new();
        for process in ends.iter().filter(|process| !opened.insert(**process)) {
            *more.entry(*process).or_default() += 1;
        }
    }
    let room = buffer / DATAGRAM + 1;
    match more.into_iter().find(|(_, ends)| *ends > room) {
        Some((process, ends)) => Err(Limit::Ends { process, ends, room, wanted: ends * DATAGRAM }),
        None => Ok(()),
    }
}

/// net.core.wmem_default; `None` where it cannot be read.
pub fn buffer() -> Option<usize> {
    std::fs::read_to_string("/proc/sys/net/core/wmem_default").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipes(count: u64, ends: &[i32]) -> Pipes {
        (0..count).map(|pipe| (pipe, ends.to_vec())).collect()
    }

    #[test]
    fn too_many_pipes() {
        assert_eq!(of_dump(&pipes(1024, &[7])), Ok(()));
        assert_eq!(of_dump(&pipes(1025, &[7])), Err(Limit::Pipes(1025)));
    }

    #[test]
    fn ends_beside_the_first_need_room() {
        assert_eq!(of_restore(&pipes(1000, &[7]), 212_992), Ok(()));
        assert_eq!(of_restore(&pipes(1000, &[7, 8]), 212_992), Ok(()), "each has one");
        assert_eq!(of_restore(&pipes(278, &[7, 7]), 212_992), Ok(()));
        let limit = Limit::Ends { process: 7, ends: 279, room: 278, wanted: 279 * 768 };
        assert_eq!(of_restore(&pipes(279, &[7, 7]), 212_992), Err(limit));
        assert_eq!(of_restore(&pipes(279, &[7, 7]), 279 * 768), Ok(()), "as the message says");
    }
}
