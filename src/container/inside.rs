//! What is inside the mounts of a container: read in its mount namespace, by a child, because the walk has threads
//! of its own, and CRIU's process must have one only.

use crate::attach::Target;
use crate::discover::{self, facts::TreeEntry};
use crate::dump::tree::{self, Avoid};
use crate::sys::control::Control;
use crate::sys::{Errno, fork, io_errno};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
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
    let (mut receive, send) = std::io::pipe().map_err(io_errno)?;
    let child = fork::fork(|| {
        let looked = look(pid, mounts);
        let bytes = postcard::to_allocvec(&looked).unwrap_or_default();
        (&send).write_all(&bytes).map_or(1, |()| 0)
    })?;
    drop(send);
    let mut bytes = Vec::new();
    receive.read_to_end(&mut bytes).map_err(io_errno)?;
    let _ = child.wait();
    let looked: Result<_, i32> = postcard::from_bytes(&bytes).map_err(|_| Errno::IO)?;
    looked.map_err(Errno::from_raw_os_error)
}

/// In the child.
fn look(pid: i32, mounts: &[Target]) -> Result<Vec<Result<Inside, String>>, i32> {
    // The container may have no /dev/autofs.
    let control = Control::open().map_err(|_| Errno::NODEV.raw_os_error())?;
    let space = discover::Target::Process(pid);
    let trees = tree::read_all(&Arc::new(control), &space, mounts, Avoid::default());
    let inside =
        |tree: tree::Tree| Inside { mode: tree.mode, uid: tree.uid, gid: tree.gid, entries: tree.entries };
    Ok(trees.into_iter().map(|tree| tree.map(inside).map_err(|error| error.to_string())).collect())
}
