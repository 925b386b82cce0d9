//! What is inside the mounts of a container.

use crate::attach::Target;
use crate::discover::{self, facts::TreeEntry};
use crate::dump::tree::{self, Avoid};
use crate::sys::control::Control;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Root directory and content of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// Number of the root directory.
    pub ino: u64,
    /// Its mode.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Everything inside, parents first.
    pub entries: Vec<TreeEntry>,
}

/// Look at `mounts`, which process `pid` sees at their paths. The results are in their order. Starts threads.
pub fn read(pid: i32, mounts: &[Target]) -> Vec<Result<Inside, String>> {
    let control = match Control::open() {
        Ok(control) => control,
        Err(error) => return mounts.iter().map(|_| Err(error.to_string())).collect(),
    };
    let trees = tree::read_all(&Arc::new(control), &discover::Target::Process(pid), mounts, Avoid::default());
    let inside = |tree::Tree { ino, mode, uid, gid, entries, .. }| Inside { ino, mode, uid, gid, entries };
    trees.into_iter().map(|tree| tree.map(inside).map_err(|error| error.to_string())).collect()
}
