//! What is inside the mounts of a container: read in its mount namespace, by a child, because the walk has threads
//! of its own, and CRIU's process must have one only.

use crate::attach::Target;
use crate::discover::{self, facts::TreeEntry};
use crate::dump::tree::{self, Avoid};
use crate::sys::control::Control;
use crate::sys::{Errno, fork};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Root directory and content of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// Mode of the root directory.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Everything inside, parents first.
    pub entries: Vec<TreeEntry>,
}

/// Look at `mounts`, which process `pid` sees at their paths. The results are in their order.
/// ENODEV when this process has no `/dev/autofs`; what concerns one mount is in its own result.
pub fn read(pid: i32, mounts: &[Target]) -> Result<Vec<Result<Inside, String>>, Errno> {
    fork::ask(|| look(pid, mounts))
}

/// In the child.
fn look(pid: i32, mounts: &[Target]) -> Result<Vec<Result<Inside, String>>, Errno> {
    // The container may have no /dev/autofs.
    let control = Control::open().map_err(|_| Errno::NODEV)?;
    let space = discover::Target::Process(pid);
    let trees = tree::read_all(&Arc::new(control), &space, mounts, Avoid::default());
    let inside =
        |tree: tree::Tree| Inside { mode: tree.mode, uid: tree.uid, gid: tree.gid, entries: tree.entries };
    Ok(trees.into_iter().map(|tree| tree.map(inside).map_err(|error| error.to_string())).collect())
}
