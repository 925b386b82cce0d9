//! What jobs ask of the kernel, as a trait: [`linux`] does it, `simulated` (tests only) pretends in memory.

use super::maps::What;
use super::mount::MountError;
use super::served::Served;
use super::task::Place;
use crate::discover::facts::MountType;
use crate::sys::control::Token;
use crate::sys::{DevNum, Errno};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

pub mod linux;
#[cfg(test)]
pub mod simulated;

/// A use of a mount, until it is dropped.
pub trait Hold {
    /// [`Kernel::answer`], also when no path leads to the mount any more (`umount -l`).
    fn answer(&self, token: Token, result: Result<(), Errno>) -> Result<(), Errno>;
}

/// The kernel, as far as jobs need it. Every call may block, so jobs make them; what the machine decides only answers,
/// and looks for a mount that it does not know.
pub trait Kernel: Send + Sync {
    /// Answer a request: READY or FAIL.
    fn answer(&self, place: &Place, token: Token, result: Result<(), Errno>) -> Result<(), Errno>;
    /// Where the autofs mount with this number is, when nobody remembers it.
    fn find(&self, dev: DevNum) -> Result<Place, Errno>;
    /// Keep an autofs mount from being unmounted as long as the result lives: it counts as a use. NOENT: the
    /// mount is not there; ACCESS: another master has taken it.
    fn hold<'a>(&'a self, place: &Place) -> Result<Box<dyn Hold + 'a>, Errno>;
    /// Send one expire request for something idle and wait for its answer. `false`: nothing is idle. A trigger
    /// is chosen again and again, even when nothing is mounted on it: ask once.
    fn expire(&self, place: &Place, immediate: bool) -> Result<bool, Errno>;
    /// Is something mounted on the trigger `target` of `place`?
    fn is_covered(&self, place: &Place, target: &Path) -> Result<bool, Errno>;
    /// Does this autofs mount still exist, and is it still ours?
    fn exists(&self, place: &Place) -> bool {
        self.hold(place).is_ok()
    }
    /// A new autofs mount on an existing directory, answered by this engine.
    fn make_trigger(&self, path: &Path, kind: MountType, served: &Served) -> Result<Place, Errno>;
    /// Mount a file system on a directory.
    fn mount(&self, what: &What, target: &Path, served: &Served) -> Result<(), MountError>;
    /// Have `what` mounted at `place` as long as `key` needs it; other keys may share it.
    fn enter(&self, place: &Path, what: &What, key: &Path, served: &Served) -> Result<(), MountError>;
    /// As [`Kernel::enter`], for a key that an earlier engine mounted.
    fn adopt(&self, place: &Path, what: &What, key: &Path);
    /// A key does not need its place any more, if it had one.
    fn leave(&self, key: &Path, served: &Served);
    /// Unmount the topmost mount at a path; EBUSY when it is in use.
    fn unmount(&self, path: &Path) -> Result<(), Errno>;
    /// Detach the pipe; waiters wake with ENOENT.
    fn make_catatonic(&self, place: &Place) -> Result<(), Errno>;
    /// Make a directory and its parents; returns how many are new.
    fn make_dir(&self, path: &Path, mode: u32) -> Result<usize, Errno>;
    /// Set the idle time after which a mount goes; zero: never.
    fn set_timeout(&self, place: &Place, timeout: Duration) -> Result<(), Errno>;
    /// Remove an empty directory or a symbolic link.
    fn remove(&self, path: &Path) -> Result<(), Errno>;
    /// Remove a symbolic link, and nothing else.
    fn remove_link(&self, path: &Path) -> Result<(), Errno>;
    /// Make a symbolic link.
    fn symlink(&self, target: &Path, path: &Path) -> Result<(), Errno>;
    /// The names in a directory.
    fn names(&self, dir: &Path) -> Result<Vec<OsString>, Errno>;
}
