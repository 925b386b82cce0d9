//! What an engine serves: maps from a checkpoint, or from a master map.

use super::maps::conf::Conf;
use super::maps::master::{self, Entry, MapName, Master, NameError, Propagation};
use super::maps::open::Texts;
use super::maps::vars::Definition;
use super::maps::{Credentials, Map, MapError, Resolved, Severity, Site, Warning};
use super::served::{self, Opener, PropagationType, ServeOptions, Served, Source};
use crate::discover::facts::MountType;
use crate::image::Checkpoint;
use crate::image::checkpoint::Service;
use crate::sys::Errno;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where automount's own configuration is.
pub const CONF: &str = "/etc/autofs.conf";
/// Where it was before; what is set there wins.
const OLD_CONF: &str = "/etc/default/autofs";

/// Between two tries for the master map.
const MASTER_RETRY: Duration = Duration::from_secs(2);

/// What a command line says; it wins over the configuration file.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The master map; `None`: as configured.
    pub master: Option<MapName>,
    /// The configuration file; `None`: [`CONF`], and that of old versions.
    pub conf: Option<PathBuf>,
    /// Idle time of mounts.
    pub timeout: Option<Duration>,
    /// How long a failed lookup is answered from memory.
    pub negative_timeout: Option<Duration>,
    /// How long a key that was found is not looked for again.
    pub positive_timeout: Option<Duration>,
    /// How long to wait for the master map, in seconds.
    pub master_wait: Option<u32>,
    /// Variables for all maps.
    pub definitions: Vec<Definition>,
    /// Mount options for all maps.
    pub options: Vec<Vec<u8>>,
    /// Choose replicas at random.
    pub random_replica: bool,
}

/// A map, and where it is (to be) mounted.
#[derive(Debug)]
pub struct Wanted {
    /// The map.
    pub served: Arc<Served>,
    /// Mount points: one of an indirect map, any number of a direct one.
    pub paths: Vec<PathBuf>,
}

/// The master map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error(
        "master map {name}: {error} (a name without a path is looked for in /etc, and where nsswitch.conf says)"
    )]
    Master {
        /// As given.
        name: String,
        /// Why.
        error: std::io::Error,
    },
    /// It has no such name.
    #[error("master map: {0}")]
    Name(#[from] NameError),
    /// A configuration file that was asked for cannot be read.
    #[error("configuration file {}: {error}", path.display())]
    Conf {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// The maps that serve the mounts of a checkpoint, at the mount points of those mounts below `root`. A map that cannot be
/// opened is left out with a warning; its mounts stay without a master.
pub fn of_checkpoint(image: &Checkpoint, root: &Path) -> Vec<Wanted> {
    // No file was asked for, so none can be missing.
    let site = Arc::new(Given::default().site().unwrap_or_default());
    let maps = image.services.iter().enumerate();
    maps.filter_map(|(index, service)| {
        let mounts = image.mounts.iter().filter(|mount| mount.served_by == Some(index));
        let own: Vec<_> = mounts
            .filter(|mount| is_top(service, &mount.facts.path, mount.facts.options.mount_type))
            .collect();
        let first = own.first()?;
        let map = Map::of_service(service, site.clone())
            .inspect_err(|error| tracing::warn!("{error}; mounts of this map get no master"))
            .ok()?;
        let mut options = options(&map, &site.conf);
        // As it was, whatever the configuration says today.
        options.timeout = Duration::from_secs(first.facts.options.timeout);
        options.strict_expire = first.facts.options.strict_expire;
        options.ignore = first.facts.options.ignore;
        let paths = own.iter().map(|mount| below(root, &mount.facts.path)).collect();
        Some(Wanted { served: Arc::new(served(map, site.clone(), root, options)), paths })
    })
    .collect()
}

/// Every map of a master map. Maps that cannot be opened are left out with a warning.
pub fn of_master_map(given: &Given) -> Result<Vec<Wanted>, ConfigError> {
    let site = Arc::new(given.site()?);
    // A key that several direct maps have is that of the first.
    let mut direct = HashSet::new();
    let maps = given.master(&site)?.entries.into_iter().filter_map(|entry| {
        let map = Map::open(entry, site.clone()).inspect_err(|error| tracing::warn!("{error}")).ok()?;
        let options = options(&map, &site.conf);
        let served = served(map, site.clone(), Path::new("/"), options);
        let paths = match &served.point {
            Some(point) => vec![point.clone()],
            None => direct_paths(&served).into_iter().filter(|path| direct.insert(path.clone())).collect(),
        };
        Some(Wanted { served: Arc::new(served), paths })
    });
    Ok(maps.collect())
}

impl Given {
    /// The configuration files with what was given over them. What is wrong in them is logged.
    pub fn site(&self) -> Result<Site, ConfigError> {
        let mut warnings = Vec::new();
        let site = self.read(&mut warnings)?;
        let shown = self.conf.as_deref().unwrap_or(Path::new(CONF)).display();
        for warning in warnings {
            tracing::warn!("{shown}:{}: {}", warning.at, warning.message);
        }
        Ok(site)
    }

    /// As [`Given::site`]; what is wrong goes to `warnings`.
    pub fn read(&self, warnings: &mut Vec<Warning>) -> Result<Site, ConfigError> {
        let mut conf = Conf::default();
        if let Some(path) = &self.conf {
            let read = std::fs::read(path);
            conf.apply(&read.map_err(|error| ConfigError::Conf { path: path.clone(), error })?, warnings);
        } else {
            // Without the files the defaults hold.
            conf.apply(&std::fs::read(CONF).unwrap_or_default(), warnings);
            conf.apply_environment(&std::fs::read(OLD_CONF).unwrap_or_default());
        }
        conf.timeout = self.timeout.unwrap_or(conf.timeout);
        conf.negative_timeout = self.negative_timeout.unwrap_or(conf.negative_timeout);
        conf.positive_timeout = self.positive_timeout.unwrap_or(conf.positive_timeout);
        conf.master_wait = self.master_wait.unwrap_or(conf.master_wait);
        Ok(Site::new(conf, self.definitions.clone(), self.options.clone()))
    }

    /// The master map with the mount points that only the configuration names. What is wrong in it is logged.
    pub fn master(&self, site: &Arc<Site>) -> Result<Master, ConfigError> {
        let conf = &site.conf;
        let map = match &self.master {
            Some(map) => map.clone(),
            None => MapName::parse(conf.master_map_name.as_bytes())?,
        };
        let mut left = conf.master_wait / MASTER_RETRY.as_secs() as u32;
        let mut master = loop {
            match master::read(&map, &Texts::new(site.clone())) {
                Ok(master) => break master,
                Err(error) if left > 0 && may_come(&error) => {
                    tracing::warn!("master map {map}: {error}; trying again");
                    left -= 1;
                    std::thread::sleep(MASTER_RETRY);
                }
                Err(error) => return Err(ConfigError::Master { name: map.to_string(), error }),
            }
        };
        for (path, warning) in &master.warnings {
            match warning.severity {
                Severity::Differs => tracing::info!("{}:{}: {}", path.display(), warning.at, warning.message),
                _ => tracing::warn!("{}:{}: {}", path.display(), warning.at, warning.message),
            }
        }
        for wrong in master.add_amd_sections(conf) {
            tracing::warn!("{}: {wrong}", self.conf.as_deref().unwrap_or(Path::new(CONF)).display());
        }
        for entry in &mut master.entries {
            entry.options.random_replica |= self.random_replica;
        }
        Ok(master)
    }
}

/// Can it be that a map is only not there yet? A file that is missing is not waited for.
fn may_come(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    !matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::PermissionDenied | ErrorKind::IsADirectory
    )
}

fn direct_paths(served: &Served) -> Vec<PathBuf> {
    let keys = served.source.keys().ok().flatten().unwrap_or_default();
    keys.into_iter().map(|key| OsString::from_vec(key).into()).collect()
}

/// Is the mount the map's own, and not one that belongs to a key of it?
fn is_top(service: &Service, path: &Path, kind: MountType) -> bool {
    match service {
        Service::MasterEntry { mount_point, .. } if mount_point == Path::new("/-") => {
            kind == MountType::Direct
        }
        Service::MasterEntry { mount_point, .. } => kind == MountType::Indirect && path == mount_point,
        Service::Unit { mount_point, .. } => path == mount_point,
    }
}

fn options(map: &Map, conf: &Conf) -> ServeOptions {
    options_of(&map.entry, conf)
}

fn options_of(entry: &Entry, conf: &Conf) -> ServeOptions {
    let given = &entry.options;
    let usual = ServeOptions::default();
    ServeOptions {
        timeout: given.timeout.unwrap_or(conf.timeout),
        negative_timeout: given.negative_timeout.unwrap_or(conf.negative_timeout),
        browse: given.browse.unwrap_or(conf.browse_mode),
        propagation: match given.propagation {
            Propagation::Slave => PropagationType::Slave,
            Propagation::Private => PropagationType::Private,
            Propagation::Shared => PropagationType::Shared,
        },
        mode: given.mode.unwrap_or(0o755),
        strict_expire: given.strict_expire,
        ignore: conf.use_ignore_mount_option,
        strict: given.strict,
        random_replica: given.random_replica,
        mount_wait: conf.mount_wait.map_or(usual.mount_wait, |wait| wait.min(usual.mount_wait)),
    }
}

fn served(map: Map, site: Arc<Site>, root: &Path, options: ServeOptions) -> Served {
    let point = map.entry.mount_point.as_ref().map(|point| below(root, point));
    let direct_below = if point.is_none() { root.to_owned() } else { PathBuf::from("/") };
    let name = map.entry.map.name.clone();
    let identity = identity(&map.entry, &site, &options);
    let opened = Arc::new(Opened { map, site, root: direct_below, identity });
    Served { point, name, source: Box::new(opened.clone()), options, opener: opened }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    if root == Path::new("/") { path.to_owned() } else { root.join(path.strip_prefix("/").unwrap_or(path)) }
}

/// A map as the engine sees it.
#[derive(Debug)]
struct Opened {
    map: Map,
    site: Arc<Site>,
    /// The keys of a direct map are mount points below this root; the engine sees them with it.
    root: PathBuf,
    identity: u64,
}

/// Tells an entry from another one, and from itself under another configuration.
fn identity(entry: &Entry, site: &Site, options: &ServeOptions) -> u64 {
    let mut hidden: Vec<&PathBuf> = entry.hidden.iter().collect();
    hidden.sort();
    let told =
        format!("{:?}{:?}{:?}{hidden:?}{site:?}{options:?}", entry.mount_point, entry.map, entry.options);
    let mut hasher = DefaultHasher::new();
    told.hash(&mut hasher);
    hasher.finish()
}

/// The master map of an engine, to be read again.
#[derive(Debug)]
pub struct MasterMap(pub Given);

impl served::Master for MasterMap {
    fn read(&self, known: &[Arc<Served>]) -> Result<Vec<Arc<Served>>, Errno> {
        let refused = |error: ConfigError| {
            tracing::warn!("{error}; the maps stay as they are");
            Errno::IO
        };
        let site = Arc::new(self.0.site().map_err(refused)?);
        let entries = self.0.master(&site).map_err(refused)?.entries;
        let mut left: Vec<&Arc<Served>> = known.iter().collect();
        let maps = entries.into_iter().filter_map(|entry| {
            let options = options_of(&entry, &site.conf);
            let identity = identity(&entry, &site, &options);
            if let Some(at) = left.iter().position(|served| served.source.identity() == identity) {
                return Some(left.swap_remove(at).clone());
            }
            let point = entry.mount_point.clone();
            match Map::open(entry, site.clone()) {
                Ok(map) => Some(Arc::new(served(map, site.clone(), Path::new("/"), options))),
                Err(error) => {
                    tracing::warn!("{error}");
                    // What is served there goes on.
                    let old = left.iter().position(|served| point.is_some() && served.point == point)?;
                    Some(left.swap_remove(old).clone())
                }
            }
        });
        Ok(maps.collect())
    }
}

impl Opened {
    /// The map's own key.
    fn own_key<'a>(&self, key: &'a [u8]) -> &'a [u8] {
        if self.root == Path::new("/") {
            return key;
        }
        key.strip_prefix(self.root.as_os_str().as_bytes()).unwrap_or(key)
    }
}

impl Source for Arc<Opened> {
    fn lookup(&self, key: &[u8], who: Credentials) -> Result<Option<Resolved>, Errno> {
        let found = self.map.lookup(self.own_key(key), who).map_err(|error| refuse(&error))?;
        if found.is_none() && !self.site.conf.disable_not_found_message {
            tracing::info!("map {} has no key {}", self.map.entry.map, String::from_utf8_lossy(key));
        }
        Ok(found)
    }

    fn keys(&self) -> Result<Option<Vec<Vec<u8>>>, Errno> {
        let keys = self.map.keys().map_err(|error| refuse(&error))?;
        if self.root == Path::new("/") {
            return Ok(keys);
        }
        let with_root =
            |key: Vec<u8>| below(&self.root, Path::new(OsStr::from_bytes(&key))).into_os_string().into_vec();
        Ok(keys.map(|keys| keys.into_iter().map(with_root).collect()))
    }

    fn has_places(&self) -> bool {
        self.map.is_amd()
    }

    fn reload(&self) -> Result<bool, Errno> {
        self.map.refresh().map_err(|error| refuse(&error))
    }

    fn identity(&self) -> u64 {
        self.identity
    }
}

impl Opener for Opened {
    fn submount(
        &self,
        parent: &Served,
        target: &Path,
        map: &OsStr,
        options: &OsStr,
    ) -> Result<Served, Errno> {
        let entry = self.map.submount(target.to_owned(), map, options).map_err(|error| refuse(&error))?;
        let map = Map::open(entry, self.site.clone()).map_err(|error| refuse(&error))?;
        let mut own = self::options(&map, &self.site.conf);
        own.timeout = map.entry.options.timeout.unwrap_or(parent.options.timeout);
        own.browse = map.entry.options.browse.unwrap_or(false);
        Ok(served(map, self.site.clone(), Path::new("/"), own))
    }
}

/// What a visitor is told; the log is told why.
fn refuse(error: &MapError) -> Errno {
    tracing::warn!("{error}");
    match error {
        MapError::Source(error) if error.is_time_limit() => Errno::TIMEDOUT,
        _ => Errno::NOENT,
    }
}
