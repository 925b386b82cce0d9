//! What a lookup would mount, without mounting it.
//!
//! Maps are opened and asked as the engine does it: programs run, names are looked up. Servers are not probed.

use super::config::{ConfigError, Given};
use super::maps::master::Entry;
use super::maps::options::for_bind;
use super::maps::{Credentials, Map, MapError, Replica, Resolved, Site, What};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A mount that a lookup would make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub mount_point: PathBuf,
    /// As in the entry; `bind`, `autofs` for a submount, `symlink` for a symbolic link.
    pub fstype: String,
    /// As mount(8) takes them; of a submount as the master map does.
    pub options: OsString,
    /// What is mounted, or where the link points.
    pub source: OsString,
    /// Of a replicated file system all sources; the engine probes them and takes the best.
    pub replicas: Vec<OsString>,
}

/// What a lookup would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Mounts in the order in which they are made. None: only triggers are set up below the path.
    pub steps: Vec<Step>,
    /// Offsets below the path that are mounted when somebody looks them up.
    pub later: Vec<PathBuf>,
}

/// A lookup that mounts nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A path that no lookup has.
    #[error("{0}: give an absolute path without . and ..")]
    Path(String),
    /// No map is for it.
    #[error("{}: no map of the master map serves this path; `autofs-cr automount --dumpmaps` prints what is served", .0.display())]
    NotServed(PathBuf),
    /// The mount point itself.
    #[error("{} is the mount point of map {map}; give a key below it", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// Its map.
        map: String,
    },
    /// No such key.
    #[error("map {map} has no key {key}")]
    NoKey {
        /// The map.
        map: String,
        /// The key.
        key: String,
    },
    /// The map, or its entry.
    #[error(transparent)]
    Map(#[from] MapError),
    /// An entry that mounts nothing here.
    #[error("{}: the entry names nothing to mount", .0.display())]
    Nothing(PathBuf),
}

/// What a lookup of `path` by `who` would mount.
pub fn explain(given: &Given, path: &Path, who: Credentials) -> Result<Lookup, ExplainError> {
    let clean = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !clean {
        return Err(ExplainError::Path(path.display().to_string()));
    }
    // Without doubled slashes and one at the end.
    let path: PathBuf = path.components().collect();
    let site = Arc::new(given.site()?);
    let entries = given.master(&site)?.entries;
    let (map, top) = serving(&entries, &path, &site)?;
    let mut explained = Explained { site, who, lookup: Lookup::default() };
    explained.below(&map, &top, path.strip_prefix(&top).unwrap_or(Path::new("")))?;
    Ok(explained.lookup)
}

/// The map that serves a path: of those whose mount point, or direct key, is above it the nearest. Also that place.
fn serving(entries: &[Entry], path: &Path, site: &Arc<Site>) -> Result<(Map, PathBuf), ExplainError> {
    let mut nearest: Option<(&Entry, PathBuf)> = None;
    let mut failed = None;
    for entry in entries {
        let place = match &entry.mount_point {
            Some(point) => path.starts_with(point).then(|| point.components().collect()),
            None => match Map::open(entry.clone(), site.clone()).and_then(|map| direct_key(&map, path)) {
                Ok(place) => place,
                Err(error) => {
                    failed = failed.or(Some(error));
                    None
                }
            },
        };
        if let Some(place) = place
            && nearest.as_ref().is_none_or(|(_, other)| place.components().gt(other.components()))
        {
            nearest = Some((entry, place));
        }
    }
    let Some((entry, place)) = nearest else {
        return Err(failed.map_or(ExplainError::NotServed(path.to_owned()), ExplainError::Map));
    };
    if entry.mount_point.is_some() && place == path {
        return Err(ExplainError::MountPoint { path: place, map: entry.map.to_string() });
    }
    Ok((Map::open(entry.clone(), site.clone())?, place))
}

/// The longest key of a direct map that is `path` or above it.
fn direct_key(map: &Map, path: &Path) -> Result<Option<PathBuf>, MapError> {
    let keys = map.keys()?.unwrap_or_default();
    let above = keys.iter().map(|key| Path::new(OsStr::from_bytes(key))).filter(|key| path.starts_with(key));
    Ok(above.max_by_key(|key| key.components().count()).map(|key| key.components().collect()))
}

struct Explained {
    site: Arc<Site>,
    who: Credentials,
    lookup: Lookup,
}

impl Explained {
    /// A map at `top`, and the rest of the path behind it: of an indirect map the first component is the key.
    fn below(&mut self, map: &Map, top: &Path, rest: &Path) -> Result<(), ExplainError> {
        let (key, target, rest) = match (&map.entry.mount_point, rest.components().next()) {
            (None, _) => (top.as_os_str(), top.to_owned(), rest),
            (Some(_), Some(Component::Normal(key))) => {
                (key, top.join(key), rest.strip_prefix(key).unwrap_or(Path::new("")))
            }
            // A submount that was looked up itself.
            (Some(_), _) => return Ok(()),
        };
        let resolved = map.lookup(key.as_bytes(), self.who)?;
        let missing = || ExplainError::NoKey {
            map: map.entry.map.to_string(),
            key: key.to_string_lossy().into_owned(),
        };
        self.entry(map, &resolved.ok_or_else(missing)?, &target, rest)
    }

    fn entry(
        &mut self,
        map: &Map,
        resolved: &Resolved,
        target: &Path,
        rest: &Path,
    ) -> Result<(), ExplainError> {
        for spec in &resolved.mounts {
            let at: PathBuf = target.join(&spec.offset).components().collect();
            if !rest.starts_with(&spec.offset) {
                self.lookup.later.extend(spec.offset.starts_with(rest).then_some(at));
            } else if let What::Submount { map: name, options } = &spec.what {
                let inner = Map::open(map.submount(at.clone(), name, options)?, self.site.clone())?;
                self.step(&at, "autofs", options.clone(), inner.entry.map.to_string().into(), Vec::new());
                return self.below(&inner, &at, rest.strip_prefix(&spec.offset).unwrap_or(rest));
            } else {
                self.what(&spec.what, &at)?;
            }
        }
        Ok(())
    }

    fn what(&mut self, what: &What, at: &Path) -> Result<(), ExplainError> {
        match what {
            What::Symlink(to) => {
                self.step(at, "symlink", OsString::new(), to.clone().into_os_string(), Vec::new());
            }
            What::External { place, mount, then } => {
                self.what(mount, place)?;
                self.what(then, at)?;
            }
            What::Mount { fstype, options, sources, use_weight_only } => {
                let best = best(sources, *use_weight_only);
                let best = best.ok_or_else(|| ExplainError::Nothing(at.to_owned()))?;
                let replicas = match sources.len() {
                    1 => Vec::new(),
                    _ => sources.iter().map(|replica| replica.source.clone()).collect(),
                };
                match &best.local {
                    Some(path) => {
                        self.step(at, "bind", for_bind(options), path.clone().into_os_string(), replicas);
                    }
                    None => self.step(at, fstype, options.clone(), best.source.clone(), replicas),
                }
            }
            What::Command { mount, .. } => {
                let command = mount.first().cloned().unwrap_or_default();
                self.step(at, "program", OsString::new(), command, Vec::new());
            }
            // Only the caller has the map that it belongs to.
            What::Submount { .. } => {}
        }
        Ok(())
    }

    fn step(
        &mut self,
        at: &Path,
        fstype: &str,
        options: OsString,
        source: OsString,
        replicas: Vec<OsString>,
    ) {
        let (mount_point, fstype) = (at.to_owned(), fstype.to_owned());
        self.lookup.steps.push(Step { mount_point, fstype, options, source, replicas });
    }
}

/// What is known without asking servers: this machine is the nearest; among others weight counts where it alone does.
fn best(sources: &[Replica], use_weight_only: bool) -> Option<&Replica> {
    match sources.iter().find(|replica| replica.local.is_some()) {
        Some(local) => Some(local),
        None if use_weight_only => sources.iter().min_by_key(|replica| replica.weight),
        None => sources.first(),
    }
}
