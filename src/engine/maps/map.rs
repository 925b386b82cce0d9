//! A master-map entry made usable.

mod check;

use super::amd;
use super::conf::Conf;
use super::hesiod;
use super::local::{Machine, ThisMachine};
use super::master::{self, Entry, Format, LineError, MapKind, MapName, MapOptions};
use super::open::Opener;
use super::options::merge;
use super::source::{ListSource, RawEntry, Source, SourceError};
use super::sun::{self, Context, Defaults};
use super::switch::Switch;
use super::text::{Located, Position, Text, Warning, show};
use super::vars::{Definition, Environment, Requester, Variables};
use super::{Credentials, Resolved};
use crate::image::checkpoint::Service;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
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
    /// Where maps without a type are.
    pub switch: Switch,
}

impl Site {
    /// Of this machine, with what `autofs.conf` says about it.
    pub fn new(conf: Conf, definitions: Vec<Definition>, options: Vec<Vec<u8>>) -> Self {
        let switch = Switch::of_machine();
        let mut site = Self { conf, environment: Environment::probe(), definitions, options, switch };
        site.configure();
        site
    }

    /// Put what the section `amd` says about the machine into the environment.
    pub fn configure(&mut self) {
        const NAMES: [(&str, &str); 8] = [
            ("arch", "arch"),
            ("karch", "karch"),
            ("os", "os"),
            ("osver", "osver"),
            ("full_os", "full_os"),
            ("vendor", "vendor"),
            ("cluster", "cluster"),
            ("auto_dir", "autodir"),
        ];
        let value = |name| self.conf.amd_value("", name).map(str::to_owned);
        let known = NAMES.iter().filter_map(|(setting, name)| Some(((*name).to_owned(), value(setting)?)));
        self.environment.configured = known.collect();
        self.environment.local_domain = value("local_domain");
    }

    /// The format of a map: as its name says, amd where `autofs.conf` has a section for the mount point, else the usual.
    fn format(&self, entry: &Entry) -> Format {
        let first = match &entry.map.kind {
            MapKind::Multi(maps) => maps.iter().find_map(|map| map.format),
            _ => None,
        };
        let section = |point: &PathBuf| self.conf.has_amd_section(&point.to_string_lossy());
        let configured = entry.mount_point.as_ref().is_some_and(section).then_some(Format::Amd);
        entry.map.format.or(first).or(configured).unwrap_or(entry.map.format())
    }

    fn content(&self, entry: &Entry, format: Format, source: Box<dyn Source>) -> Content {
        match format {
            Format::Sun => Content::Sun(source),
            Format::Amd => Content::Amd(source, self.amd_settings(entry)),
            Format::Hesiod => Content::Hesiod(source),
        }
    }

    fn amd_settings(&self, entry: &Entry) -> amd::Settings {
        let usual = amd::Settings::default();
        let point = entry.mount_point.as_deref().unwrap_or(Path::new("/")).to_string_lossy();
        let value = |name| self.conf.amd_value(&point, name);
        let flag = |name, usual| value(name).map_or(usual, |value| value.eq_ignore_ascii_case("yes"));
        let in_defaults = flag("selectors_on_default", usual.selectors_in_defaults);
        amd::Settings {
            bind: flag("autofs_use_lofs", usual.bind),
            normalize_hostnames: flag("normalize_hostnames", usual.normalize_hostnames),
            domain_strip: flag("domain_strip", usual.domain_strip),
            normalize_slashes: flag("normalize_slashes", usual.normalize_slashes),
            selectors_in_defaults: flag("selectors_in_defaults", in_defaults),
            map_defaults: value("map_defaults").filter(|text| !text.is_empty()).map(str::to_owned),
            map_type: value("map_type").map(str::to_owned),
            ufs: value("linux_ufs_mount_type").map_or(usual.ufs, str::to_owned),
        }
    }
}

impl MapError {
    fn entry(origin: PathBuf, key: &[u8], error: EntryError) -> Self {
        Self::Entry { origin, key: show(key).into(), error }
    }
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
    /// Entries in amd format.
    Amd(Box<dyn Source>, amd::Settings),
    /// Records of hesiod.
    Hesiod(Box<dyn Source>),
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
        error: EntryError,
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
    /// Its name service is no more.
    #[error("map {0}: maps of NIS+ are not served; put it into a file, or into LDAP, SSSD or NIS")]
    Nisplus(String),
}

/// Why an entry makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// In sun format.
    #[error(transparent)]
    Sun(#[from] sun::Error),
    /// In amd format.
    #[error(transparent)]
    Amd(#[from] amd::Error),
    /// A record of hesiod.
    #[error(transparent)]
    Hesiod(#[from] hesiod::Error),
}

impl EntryError {
    /// Where in the map, and why.
    fn place(&self) -> (Position, String) {
        fn of(error: &Located<impl Display>) -> (Position, String) {
            (error.at, error.kind.to_string())
        }
        match self {
            Self::Sun(error) => of(error),
            Self::Amd(error) => of(error),
            Self::Hesiod(error) => of(error),
        }
    }
}

impl Map {
    /// Open the map of an entry.
    pub fn open(entry: Entry, site: Arc<Site>) -> Result<Self, MapError> {
        let format = site.format(&entry);
        let source = Opener::new(site.clone(), &entry, format).open(&entry.map)?;
        let content = site.content(&entry, format, source);
        Ok(Self::new(entry, site, content))
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
                        Self::listed(entry, entries, site)
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
                    origin: PathBuf::new(),
                    at: Position::START,
                    written: Default::default(),
                };
                let resolved = super::unit::resolve(what, fstype, options);
                Ok(Self::new(entry, site, Content::Fixed(key, resolved)))
            }
        }
    }

    /// A map with the entries of a checkpoint in place of its own source.
    pub fn listed(entry: Entry, entries: &[(Vec<u8>, Vec<u8>)], site: Arc<Site>) -> Result<Self, MapError> {
        let source = ListSource::new(entries, &entry.map.to_string());
        let content = site.content(&entry, site.format(&entry), Box::new(source));
        Ok(Self::new(entry, site, content))
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
        let resolved = self.lookup_as(key, &Requester::new(who), &ThisMachine, &mut warnings);
        for warning in warnings {
            tracing::debug!("map {}, key {}: {}: {}", self.entry.map, show(key), warning.at, warning.message);
        }
        resolved
    }

    /// As [`Map::lookup`], with the requester's names and the machine given, and warnings kept.
    pub fn lookup_as(
        &self,
        key: &[u8],
        who: &Requester,
        machine: &dyn Machine,
        warnings: &mut Vec<Warning>,
    ) -> Result<Option<Resolved>, MapError> {
        if self.is_hidden(key) {
            return Ok(None);
        }
        let environment = &self.site.environment;
        let variables = Variables { environment, definitions: &self.definitions, requester: who };
        match &self.content {
            Content::Fixed(known, resolved) => Ok((key == known).then(|| resolved.clone())),
            Content::Sun(source) | Content::Hesiod(source) => {
                let Some(raw) = source.lookup(key, &variables)? else {
                    return Ok(None);
                };
                if raw.text.bytes() == b"-null" {
                    return Ok(None);
                }
                let context = Context { key, variables, defaults: &self.defaults, machine };
                let resolved = self.resolve(&raw.text, &context, warnings);
                resolved.map(Some).map_err(|error| MapError::entry(raw.origin, key, error))
            }
            Content::Amd(source, settings) => {
                let Some((raw, base)) = self.amd_entry(source.as_ref(), key, &variables)? else {
                    return Ok(None);
                };
                let point = self.entry.mount_point.as_deref().unwrap_or(Path::new("/"));
                let path = point.join(OsStr::from_bytes(key));
                let context = amd::Context {
                    key,
                    path: path.as_os_str().as_bytes(),
                    map: &self.entry.map,
                    variables,
                    defaults: &self.defaults,
                    settings,
                    machine,
                };
                let base = base.as_ref().map(|base| &base.text);
                let resolved = amd::resolve(&raw.text, base, &context, warnings).map_err(EntryError::from);
                resolved.map(Some).map_err(|error| MapError::entry(raw.origin, key, error))
            }
        }
    }

    /// What an entry in sun format, or a record of hesiod, stands for.
    fn resolve(
        &self,
        text: &Text<'_>,
        context: &Context<'_>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Resolved, EntryError> {
        match self.content {
            Content::Hesiod(_) => Ok(sun::resolve(&hesiod::entry(text)?, context, warnings)?),
            _ => Ok(sun::resolve(text, context, warnings)?),
        }
    }

    /// The entry of a key in an amd map, and `/defaults`. A program is asked for the key only.
    fn amd_entry(
        &self,
        source: &dyn Source,
        key: &[u8],
        variables: &Variables<'_>,
    ) -> Result<Option<(RawEntry, Option<RawEntry>)>, MapError> {
        let key = [self.entry.options.prefix.as_slice(), key].concat();
        if source.is_program() {
            // It writes the key before the entry.
            let found = source.lookup(&key, variables)?;
            return Ok(found.map(|raw| (raw.without_key(&key), None)));
        }
        for candidate in amd::candidates(&key) {
            if let Some(raw) = source.lookup(&candidate, variables)? {
                return Ok(Some((raw, source.lookup(b"/defaults", variables)?)));
            }
        }
        Ok(None)
    }

    /// All keys in order, without the wildcard; `None` when the map cannot list them.
    pub fn keys(&self) -> Result<Option<Vec<Vec<u8>>>, MapError> {
        let (source, prefix) = match &self.content {
            Content::Sun(source) | Content::Hesiod(source) => (source, None),
            Content::Amd(source, _) => (source, Some(self.entry.options.prefix.as_slice())),
            Content::Fixed(key, _) => return Ok(Some(vec![key.clone()])),
        };
        let mut keys = Vec::new();
        let listed = source.visit(&mut |key, text, _| match prefix {
            // Of an amd map: names in this directory that are no patterns.
            Some(prefix) => {
                let name =
                    key.strip_prefix(prefix).filter(|name| !name.iter().any(|b| matches!(b, b'/' | b'*')));
                keys.extend(name.map(<[u8]>::to_vec));
            }
            None if key == b"*" || text.bytes() == b"-null" || self.is_hidden(key) => {}
            None => keys.push(key.to_vec()),
        })?;
        Ok(listed.then_some(keys))
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

    /// Is it in amd format?
    pub fn is_amd(&self) -> bool {
        matches!(self.content, Content::Amd(..))
    }

    /// Where the entries come from; `None` for the map of a unit.
    pub fn source(&self) -> Option<&dyn Source> {
        match &self.content {
            Content::Sun(source) | Content::Hesiod(source) | Content::Amd(source, _) => Some(source.as_ref()),
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
