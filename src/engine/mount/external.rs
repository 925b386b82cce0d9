//! File systems with a place of their own that keys share (amd maps): mounted for the first key that needs one,
//! unmounted after the last.

use super::{Manner, MountError, helper};
use crate::engine::maps::What;
use crate::sys::mount::{MountError as KernelError, Unmount, unmount};
use crate::sys::{Errno, io_errno};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places and the keys that use them. What was mounted at a place before anybody asked is used, and stays.
#[derive(Debug, Default)]
pub struct Places(Mutex<Uses>);

#[derive(Debug, Default)]
struct Uses {
    /// Which place a key uses.
    of: HashMap<PathBuf, Arc<Place>>,
    /// All that are in use, or were and are still mounted because they are busy.
    places: HashMap<PathBuf, Arc<Place>>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Held while it is mounted or unmounted: nobody waits for it but who needs this very place.
    state: Mutex<Mounted>,
}

#[derive(Debug, Default)]
struct Mounted {
    /// It is there by our doing.
    own: bool,
    /// The command that unmounts it; empty: no command does.
    unmount: Vec<OsString>,
    /// Directories that were made for it, deepest first.
    dirs: Vec<PathBuf>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole between any two operations on it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// Have `what` mounted at `place` as long as `key` (a path) needs it.
    pub fn enter(&self, place: &Path, what: &What, key: &Path, manner: Manner) -> Result<(), MountError> {
        let place = self.add(place, key);
        let mut state = lock(&place.state);
        if is_mounted(&place.path)? {
            return Ok(());
        }
        let missing = place.path.ancestors().take_while(|dir| std::fs::symlink_metadata(dir).is_err());
        let dirs = missing.map(Path::to_owned).collect();
        let made = std::fs::create_dir_all(&place.path)
            .map_err(|error| MountError::Place { place: place.path.clone(), errno: io_errno(error) });
        let mounted = made.and_then(|()| super::mount(what, &place.path, manner));
        *state = Mounted { own: mounted.is_ok(), unmount: unmounts(what), dirs };
        if mounted.is_err() {
            state.remove_dirs();
            drop(state);
            self.leave(key, manner);
        }
        mounted
    }

    /// A key that was found as an earlier engine left it uses `place`.
    pub fn adopt(&self, place: &Path, what: &What, key: &Path) {
        let place = self.add(place, key);
        let mut state = lock(&place.state);
        state.own = true;
        // Which of the directories above were made for it nobody knows any more.
        state.dirs = vec![place.path.clone()];
        state.unmount = unmounts(what);
    }

    /// A key is gone. Places that nobody uses any more are unmounted, if nobody is inside; else the next time.
    pub fn leave(&self, key: &Path, manner: Manner) {
        let unused: Vec<Arc<Place>> = {
            let mut uses = lock(&self.0);
            if uses.of.remove(key).is_none() {
                return;
            }
            let used: HashSet<&Path> = uses.of.values().map(|place| place.path.as_path()).collect();
            let unused = uses.places.values().filter(|place| !used.contains(place.path.as_path()));
            unused.cloned().collect()
        };
        for place in unused {
            // Somebody is at work on it: it is in use again, or being left.
            let Ok(mut state) = place.state.try_lock() else { continue };
            let mut uses = lock(&self.0);
            if uses.of.values().any(|used| used.path == place.path) {
                continue;
            }
            if !state.own || state.unmounted(&place.path, manner) {
                uses.places.remove(&place.path);
            }
        }
    }

    fn add(&self, place: &Path, key: &Path) -> Arc<Place> {
        let mut uses = lock(&self.0);
        let new = || Arc::new(Place { path: place.to_owned(), state: Mutex::default() });
        let place = uses.places.entry(place.to_owned()).or_insert_with(new).clone();
        uses.of.insert(key.to_owned(), place.clone());
        place
    }
}

impl Mounted {
    /// Is it gone now?
    fn unmounted(&mut self, path: &Path, manner: Manner) -> bool {
        let gone = match helper::command(&self.unmount) {
            Some(mut command) => helper::succeed(&mut command, manner.limit).is_ok(),
            None => match unmount(path, Unmount::Idle) {
                Ok(()) | Err(KernelError::NotMounted(_)) => true,
                Err(error) => {
                    tracing::debug!(target: "autofs_cr::mount", place = %path.display(), %error, "stays");
                    false
                }
            },
        };
        if gone {
            self.remove_dirs();
        }
        gone
    }

    fn remove_dirs(&mut self) {
        for dir in self.dirs.drain(..) {
            // What is not empty is used by others.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

fn unmounts(what: &What) -> Vec<OsString> {
    match what {
        What::Command { unmount, .. } => unmount.clone(),
        _ => Vec::new(),
    }
}

/// Is something mounted there? No server is asked.
fn is_mounted(place: &Path) -> Result<bool, MountError> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match rustix::fs::statx(CWD, place, flags, StatxFlags::empty()) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(MountError::Place { place: place.to_owned(), errno }),
    }
}
