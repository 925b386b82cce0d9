//! A master-map entry made usable.

use super::conf::Conf;
use super::master::{self, Entry, Format, LineError, MapKind, MapName, MapOptions};
use super::options::merge;
use super::source::{FileSource, ListSource, MultiSource, ProgramSource, Source, SourceError};
use super::sun::{self, Context, Defaults};
use super::text::{Position, Warning, show};
use super::vars::{Definition, Environment, Requester, Variables};
use super::{Credentials, Resolved};
use crate::image::checkpoint::Service;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What all maps of an engine share.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// `autofs.conf`.
    pub conf: Conf,
    /// The machine.
    pub environment: Environment,
    /// `-D` of the command line; those of a master-map entry win over them.
    pub definitions: Vec<Definition>,
    /// `-O` of the command line: mount options for all maps.
    pub options: Vec<Vec<u8>>,
}

/// A map that answers.
#[derive(Debug)]
pub struct Map {
    /// Its entry in the master map.
    pub entry: Entry,
    site: Arc<Site>,
    defaults: Defaults,
    definitions: Vec<Definition>,
    content: Content,
}

/// What a map answers from.
#[derive(Debug)]
enum Content {
    /// Entries in sun format.
    Sun(Box<dyn Source>),
    /// One key, whose meaning is known.
    Fixed(Vec<u8>, Resolved),
}

/// Why a map has no answer. That it does not know a key is not an error.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Its source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The entry makes no sense.
    #[error("{}:{error}, in the entry of key {key}", origin.display())]
    Entry {
        /// File or program.
        origin: PathBuf,
        /// The key.
        key: String,
        /// Why.
        error: sun::Error,
    },
    /// Name or options of a submount's map, or of one in a checkpoint.
    #[error("map {map}: {error}")]
    Name {
        /// As written.
        map: String,
        /// Why.
        error: LineError,
    },
    /// Maps of this type or format cannot be served.
    #[error(
        "map {0}: maps of this type or format are not supported; use a file or program map in sun format"
    )]
    Unsupported(String),
}

impl Map {
    /// Open the map of an entry.
    pub fn open(entry: Entry, site: Arc<Site>) -> Result<Self, MapError> {
        let opener = Opener { site: &site, entry: &entry };
        let source = opener.source(&entry.map)?;
        Ok(Self::new(entry, site, Content::Sun(source)))
    }

    /// The map of a checkpoint's service: of a unit, else the map itself. Where that cannot be opened (on another
    /// machine, say) the entries that the checkpoint kept take its place.
    pub fn of_service(service: &Service, site: Arc<Site>) -> Result<Self, MapError> {
        match service {
            Service::MasterEntry { mount_point, map, options, entries } => {
                let point = (mount_point != Path::new("/-")).then(|| mount_point.clone());
                let entry = Self::entry(point, map, options)?;
                match Self::open(entry.clone(), site.clone()) {
                    Err(error) if !entries.is_empty() => {
                        tracing::warn!(
                            "{error}; going on with the {} entries of the checkpoint",
                            entries.len()
                        );
                        Ok(Self::listed(entry, entries, site))
                    }
                    opened => opened,
                }
            }
            Service::Unit { unit, mount_point, what, fstype, options, timeout } => {
                let key = mount_point.as_os_str().as_bytes().to_vec();
                let entry = Entry {
                    mount_point: None,
                    map: MapName { kind: MapKind::Named, format: None, name: unit.into() },
                    options: MapOptions {
                        timeout: Some(Duration::from_secs(*timeout)),
                        ..MapOptions::default()
                    },
                    hidden: HashSet::new(),
                    at: Position::START,
                    written: Default::default(),
                };
                let resolved = super::unit::resolve(what, fstype, options);
                Ok(Self::new(entry, site, Content::Fixed(key, resolved)))
            }
        }
    }

    /// A map with the entries of a checkpoint in place of its own source.
    pub fn listed(entry: Entry, entries: &[(Vec<u8>, Vec<u8>)], site: Arc<Site>) -> Self {
        let source = ListSource::new(entries, &entry.map.to_string());
        Self::new(entry, site, Content::Sun(Box::new(source)))
    }

    fn new(entry: Entry, site: Arc<Site>, content: Content) -> Self {
        let (options, conf) = (&entry.options, &site.conf);
        let defaults = Defaults {
            options: merge(&site.options, &options.mount, conf.append_options),
            definitions: options.definitions.clone(),
            append: conf.append_options,
            slashify: !options.keep_colons,
            bind: !options.nobind,
            symlink: options.symlink,
            direct: entry.mount_point.is_none(),
            strict: options.strict,
            use_weight_only: options.use_weight_only,
        };
        let definitions = [site.definitions.as_slice(), &options.definitions].concat();
        Self { entry, site, defaults, definitions, content }
    }

    /// What a key stands for; `None`: the map does not have it. May block: programs run, names are looked up.
    pub fn lookup(&self, key: &[u8], who: Credentials) -> Result<Option<Resolved>, MapError> {
        let mut warnings = Vec::new();
        let resolved = self.lookup_as(key, &Requester::new(who), &super::local::is_local, &mut warnings);
        for warning in warnings {
            tracing::debug!("map {}, key {}: {}: {}", self.entry.map, show(key), warning.at, warning.message);
        }
        resolved
    }

    /// As [`Map::lookup`], with the requester's names and the machine's hosts given, and warnings kept.
    pub fn lookup_as(
        &self,
        key: &[u8],
        who: &Requester,
        is_local: &dyn Fn(&str) -> bool,
        warnings: &mut Vec<Warning>,
    ) -> Result<Option<Resolved>, MapError> {
        if self.is_hidden(key) {
            return Ok(None);
        }
        let environment = &self.site.environment;
        let variables = Variables { environment, definitions: &self.definitions, requester: who };
        let source = match &self.content {
            Content::Sun(source) => source,
            Content::Fixed(known, resolved) => return Ok((key == known).then(|| resolved.clone())),
        };
        let Some(raw) = source.lookup(key, &variables)? else {
            return Ok(None);
        };
        if raw.text.bytes() == b"-null" {
            return Ok(None);
        }
        let context = Context { key, variables, defaults: &self.defaults, is_local };
        let resolved = sun::resolve(&raw.text, &context, warnings);
        resolved.map(Some).map_err(|error| MapError::Entry {
            origin: raw.origin,
            key: show(key).into(),
            error,
        })
    }

    /// All keys in order, without the wildcard; `None` when the map cannot list them.
    pub fn keys(&self) -> Result<Option<Vec<Vec<u8>>>, MapError> {
        let pairs = match &self.content {
            Content::Sun(source) => source.entries()?,
            Content::Fixed(key, _) => return Ok(Some(vec![key.clone()])),
        };
        let Some(pairs) = pairs else {
            return Ok(None);
        };
        let wanted = |key: &Vec<u8>, text: &[u8]| key != b"*" && text != b"-null" && !self.is_hidden(key);
        let keys = pairs.into_iter().filter(|(key, raw)| wanted(key, raw.text.bytes())).map(|(key, _)| key);
        Ok(Some(keys.collect()))
    }

    fn is_hidden(&self, key: &[u8]) -> bool {
        !self.entry.hidden.is_empty() && self.entry.hidden.contains(Path::new(OsStr::from_bytes(key)))
    }

    /// Read again what changed; true when something did.
    pub fn refresh(&self) -> Result<bool, MapError> {
        let Some(source) = self.source() else {
            return Ok(false);
        };
        let changed = !source.fresh();
        source.refresh()?;
        Ok(changed)
    }

    /// Where the entries come from; `None` for the map of a unit.
    pub fn source(&self) -> Option<&dyn Source> {
        match &self.content {
            Content::Sun(source) => Some(source.as_ref()),
            Content::Fixed(..) => None,
        }
    }

    fn entry(mount_point: Option<PathBuf>, map: &[u8], options: &[u8]) -> Result<Entry, MapError> {
        let entry = master::entry(mount_point, map, options);
        entry.map_err(|error| MapError::Name { map: show(map).into(), error })
    }

    /// The master-map entry of a submount ([`super::What::Submount`]), with what it inherits.
    pub fn submount(&self, mount_point: PathBuf, map: &OsStr, options: &OsStr) -> Result<Entry, MapError> {
        let mut entry = Self::entry(Some(mount_point), map.as_bytes(), options.as_bytes())?;
        entry.options.inherit(&self.entry.options);
        Ok(entry)
    }
}

/// Opens sources.
struct Opener<'a> {
    site: &'a Site,
    entry: &'a Entry,
}

impl Opener<'_> {
    fn source(&self, map: &MapName) -> Result<Box<dyn Source>, MapError> {
        if map.format() != Format::Sun {
            return Err(MapError::Unsupported(map.to_string()));
        }
        let path = Path::new("/etc").join(&map.name);
        match &map.kind {
            MapKind::Path if is_program(&path) => Ok(self.program(path)),
            MapKind::Program => Ok(self.program(path)),
            // A name without a type is a file in /etc, as `automount: files` in nsswitch.conf says.
            MapKind::Path | MapKind::File | MapKind::Named => {
                Ok(Box::new(FileSource::open(&path, self.entry.mount_point.is_none())?))
            }
            MapKind::Multi(maps) => {
                let sources = maps.iter().map(|map| self.source(map)).collect::<Result<_, _>>()?;
                Ok(Box::new(MultiSource(sources)))
            }
            _ => Err(MapError::Unsupported(map.to_string())),
        }
    }

    fn program(&self, path: PathBuf) -> Box<dyn Source> {
        Box::new(ProgramSource {
            path,
            directory: self.entry.mount_point.clone().unwrap_or_else(|| "/".into()),
            limit: self.site.conf.program_wait,
            standard_names: self.site.conf.force_standard_program_map_env,
        })
    }
}

/// A file that may be executed is a program.
fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
