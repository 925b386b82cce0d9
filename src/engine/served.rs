//! A map and how it is served.

use super::maps::{Credentials, Resolved};
use crate::sys::Errno;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A map at its place. Shared by the machine and every job on it.
#[derive(Debug)]
pub struct Served {
    /// Mount point of an indirect map; `None` for a direct map, whose keys are mount points.
    pub point: Option<PathBuf>,
    /// Its name, as the source of the autofs mounts: what mount tables show.
    pub name: OsString,
    /// Where its entries come from.
    pub source: Box<dyn Source>,
    /// How.
    pub options: ServeOptions,
    /// Opens the maps of submounts.
    pub opener: Arc<dyn Opener>,
}

/// Opens maps by name.
pub trait Opener: std::fmt::Debug + Send + Sync {
    /// The map of a submount (`fstype=autofs`) at `target`, as written in its entry.
    fn submount(&self, parent: &Served, target: &Path, map: &OsStr, options: &OsStr)
    -> Result<Served, Errno>;
}

/// The master map, to be read again.
pub trait Master: std::fmt::Debug + Send + Sync {
    /// The maps to be served; of those in `served` that did not change, the same ones. May block.
    fn read(&self, served: &[Arc<Served>]) -> Result<Vec<Arc<Served>>, Errno>;
}

/// Where entries come from. May block: only workers call it.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// What `key` stands for; `None`: no such key.
    fn lookup(&self, key: &[u8], who: Credentials) -> Result<Option<Resolved>, Errno>;
    /// All keys but the wildcard; `None` when the source cannot list them.
    fn keys(&self) -> Result<Option<Vec<Vec<u8>>>, Errno>;
    /// May keys have file systems at places of their own ([`super::maps::What::External`])?
    fn has_places(&self) -> bool {
        false
    }
    /// Tells it from others, and from itself with other options.
    fn identity(&self) -> u64 {
        0
    }
    /// Read the source again; `false`: it did not change.
    fn reload(&self) -> Result<bool, Errno> {
        Ok(true)
    }
}

/// Options of a served map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// Idle time after which a mount is taken away; zero: never.
    pub timeout: Duration,
    /// How long a failed lookup is answered from memory.
    pub negative_timeout: Duration,
    /// How long mount(8) may take; less than the engine's own limit for a lookup.
    pub mount_wait: Duration,
    /// Make the directories of all keys beforehand (indirect maps).
    pub browse: bool,
    /// Propagation of the mounts.
    pub propagation: PropagationType,
    /// Permissions of directories that are made.
    pub mode: u32,
    /// Path walks do not count as use.
    pub strict_expire: bool,
    /// Hide the autofs mounts from df and mount listings.
    pub ignore: bool,
    /// Fail an entry when one of its offsets cannot be made.
    pub strict: bool,
    /// Choose among replicated servers by chance.
    pub random_replica: bool,
}

/// Propagation of mounts that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PropagationType {
    /// Mounts of other namespaces come in, ours do not go out: the default, as in automount.
    #[default]
    Slave,
    /// Nothing comes in or goes out.
    Private,
    /// As the place where it is mounted.
    Shared,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(600),
            negative_timeout: Duration::from_secs(60),
            mount_wait: Duration::from_secs(55),
            browse: false,
            propagation: PropagationType::Slave,
            mode: 0o755,
            strict_expire: false,
            ignore: false,
            strict: false,
            random_replica: false,
        }
    }
}

impl ServeOptions {
    /// How often to look for idle mounts: four times within the timeout, at most once a second.
    pub fn check_every(&self) -> Option<Duration> {
        let quarter = self.timeout.as_secs().div_ceil(4);
        (!self.timeout.is_zero()).then(|| Duration::from_secs(quarter.max(1)))
    }
}
