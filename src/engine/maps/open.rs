//! From the name of a map to where its entries come from.

use super::conf::Ldap;
use super::map::{MapError, Site};
use super::master::{Entry, Files, Format, Loader, MapKind, MapName};
use super::source::ldap::{self, Place};
use super::source::{
    Client, DIRECTORY, Desk, FileSource, HesiodClient, HomesSource, HostsSource, Keys, LdapClient,
    MultiSource, NisClient, ProgramSource, RemoteSource, ServiceError, Source, SssClient, Status,
    SwitchSource,
};
use super::text::is_blank;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a service without a limit of its own may take: less than a lookup has.
const LIMIT: Duration = Duration::from_secs(20);

/// Opens the sources of one entry of the master map: that of its map, and those that its map includes.
#[derive(Clone, Debug)]
pub struct Opener {
    site: Arc<Site>,
    format: Format,
    keys: Keys,
    mount_point: Option<PathBuf>,
    /// Mount options of the entry.
    options: Vec<Vec<u8>>,
}

impl Opener {
    /// For an entry.
    pub fn new(site: Arc<Site>, entry: &Entry, format: Format) -> Self {
        let keys = match (format, &entry.mount_point) {
            (Format::Amd, _) => Keys::Any,
            (_, None) => Keys::Paths,
            (_, Some(_)) => Keys::Names,
        };
        let (mount_point, options) = (entry.mount_point.clone(), entry.options.mount.clone());
        Self { site, format, keys, mount_point, options }
    }

    /// Is a map that is named without a type simply a file?
    pub fn names_files(&self) -> bool {
        self.site.switch.is_files()
    }

    /// The source of the entry's own map.
    pub fn open(&self, map: &MapName) -> Result<Box<dyn Source>, MapError> {
        self.included(map, &[])
    }

    /// The source of a map that the files `above` include, each the one after it.
    pub fn included(&self, map: &MapName, above: &[PathBuf]) -> Result<Box<dyn Source>, MapError> {
        if map.kind == MapKind::Nisplus {
            return Err(MapError::Nisplus(map.to_string()));
        }
        // The maps of a multi map are all in the format of the first that names one.
        if map.format.is_some_and(|format| format != self.format) {
            return Err(MapError::Unsupported(map.to_string()));
        }
        let path = self.path(map);
        match &map.kind {
            MapKind::Path if is_program(&path) => Ok(self.program(path)),
            MapKind::Program => Ok(self.program(path)),
            MapKind::Named if !self.names_files() => Ok(self.switch(map, above)),
            MapKind::Path | MapKind::File | MapKind::Named => {
                Ok(Box::new(FileSource::open(&path, self.keys, Arc::new(self.clone()))?))
            }
            MapKind::Multi(maps) => {
                let sources = maps.iter().map(|map| self.included(map, above)).collect::<Result<_, _>>()?;
                Ok(Box::new(MultiSource(sources)))
            }
            MapKind::Userdir => Ok(Box::new(HomesSource)),
            MapKind::Hosts => Ok(Box::new(HostsSource::new(&self.options))),
            _ => {
                let service = Service::of(map, self.format, &self.site, self.ldap())?;
                let valid = self.site.conf.positive_timeout;
                Ok(Box::new(RemoteSource::new(
                    map.to_string(),
                    self.keys,
                    valid,
                    service.limit,
                    service.make,
                )))
            }
        }
    }

    /// A map in the services of the name service switch. A service that cannot have maps here is left out.
    fn switch(&self, map: &MapName, above: &[PathBuf]) -> Box<dyn Source> {
        let mut sources = Vec::new();
        for step in &self.site.switch.0 {
            let source = match step.service {
                MapKind::File => {
                    let path = self.path(map);
                    // A file that includes its own name means the map of that name elsewhere.
                    if above.contains(&path) {
                        continue;
                    }
                    if is_program(&path) {
                        Ok(self.program(path))
                    } else {
                        let file = FileSource::later(&path, self.keys, Arc::new(self.clone()), above);
                        Ok(Box::new(file) as Box<dyn Source>)
                    }
                }
                _ => self.included(&MapName { kind: step.service.clone(), ..map.clone() }, above),
            };
            match source {
                Ok(source) => sources.push((source, step.last.clone())),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Box::new(SwitchSource(sources))
    }

    /// Where a file or program is: amd maps have directories of their own in which they are looked for.
    fn path(&self, map: &MapName) -> PathBuf {
        let point = self.mount_point.as_deref().unwrap_or(Path::new("/")).to_string_lossy();
        let conf = &self.site.conf;
        let search = conf.amd_value(&point, "search_path").filter(|_| self.format == Format::Amd);
        let mut places =
            search.into_iter().flat_map(|path| path.split(':')).map(|dir| Path::new(dir).join(&map.name));
        places.find(|path| path.exists()).unwrap_or_else(|| Path::new(DIRECTORY).join(&map.name))
    }

    /// Where directories are: for amd maps the section `amd` may have its own.
    fn ldap(&self) -> Ldap {
        let conf = &self.site.conf;
        let mut ldap = conf.ldap.clone();
        if self.format == Format::Amd {
            let (base, servers) = (conf.amd_value("", "ldap_base"), conf.amd_value("", "ldap_hostports"));
            if let Some(base) = base.filter(|base| !base.is_empty()) {
                ldap.search_bases = vec![base.to_owned()];
            }
            let servers = servers.unwrap_or_default().split([',', ' ']).filter(|server| !server.is_empty());
            let servers: Vec<String> = servers.map(|server| format!("ldap://{server}")).collect();
            if !servers.is_empty() {
                ldap.uris = servers;
            }
        }
        ldap
    }

    fn program(&self, path: PathBuf) -> Box<dyn Source> {
        Box::new(ProgramSource {
            path,
            directory: self.mount_point.clone().unwrap_or_else(|| "/".into()),
            limit: self.site.conf.program_wait,
            standard_names: self.site.conf.force_standard_program_map_env,
        })
    }
}

/// How a map of a service is asked for.
struct Service {
    /// How long an answer may take.
    limit: Duration,
    make: Box<dyn Fn() -> Box<dyn Client> + Send + Sync>,
}

impl Service {
    fn of(map: &MapName, format: Format, site: &Site, conf: Ldap) -> Result<Self, MapError> {
        let name = map.name.to_string_lossy().into_owned();
        let (limit, make): (_, Box<dyn Fn() -> Box<dyn Client> + Send + Sync>) = match map.kind {
            MapKind::Ldap | MapKind::Ldaps => {
                let place = Place::parse(&name, map.kind == MapKind::Ldaps, &conf);
                let limit = ldap::limit(&place, &conf);
                (limit, Box::new(move || Box::new(LdapClient::new(place.clone(), conf.clone()))))
            }
            MapKind::Sss => (LIMIT, Box::new(move || Box::new(SssClient(name.clone())))),
            MapKind::Yp => {
                let domain = site.conf.amd_value("", "nis_domain").map(str::to_owned);
                let client = move || NisClient { domain: domain.clone(), map: name.clone() };
                (LIMIT, Box::new(move || Box::new(client())))
            }
            MapKind::Hesiod if format == Format::Amd => {
                let base = site.conf.amd_value("", "hesiod_base").unwrap_or("automount").to_owned();
                let map = name.strip_prefix("hesiod.").unwrap_or(&name).to_owned();
                let client = move || HesiodClient::Amd { map: map.clone(), base: base.clone() };
                (LIMIT, Box::new(move || Box::new(client())))
            }
            MapKind::Hesiod => {
                // In a map of the name service switch, whose other services have entries in sun format.
                let as_sun = format == Format::Sun && map.format.is_none();
                (LIMIT, Box::new(move || Box::new(HesiodClient::Filsys { as_sun })))
            }
            _ => return Err(MapError::Unsupported(map.to_string())),
        };
        Ok(Self { limit, make })
    }
}

/// Texts of the master map, from wherever it is.
#[derive(Clone, Debug)]
pub struct Texts {
    /// What all maps share.
    pub site: Arc<Site>,
    /// Where files are.
    pub files: Files,
}

impl Texts {
    /// Of this machine.
    pub fn new(site: Arc<Site>) -> Self {
        Self { site, files: Files::default() }
    }

    /// All that a service has of a map, as text.
    fn ask(&self, map: &MapName) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let Service { limit, make } = Service::of(map, Format::Sun, &self.site, self.site.conf.ldap.clone())
            .map_err(io::Error::other)?;
        let listed = Desk::new(limit, make).ask(|client| client.list()).map_err(|error| {
            let kind = match error {
                ServiceError::NoMap => io::ErrorKind::NotFound,
                ServiceError::TimeLimit(_) => io::ErrorKind::TimedOut,
                ServiceError::Unavailable(_) => io::ErrorKind::NotConnected,
                ServiceError::Entry(_) => io::ErrorKind::InvalidData,
            };
            io::Error::new(kind, error)
        })?;
        let lines = listed.unwrap_or_default();
        let text = lines.iter().flat_map(|(key, entry)| line(key, entry)).collect();
        Ok(vec![(PathBuf::from(map.to_string()), text)])
    }

    /// As [`Self::ask`]; Solaris and NIS write `auto_master` for `auto.master`.
    fn ask_both(&self, map: &MapName) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        match self.ask(map) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = map.name.to_string_lossy().replace('.', "_").into();
                self.ask(&MapName { name, ..map.clone() }).map_err(|_| error)
            }
            asked => asked,
        }
    }
}

/// A key and its entry as a line of a file.
fn line(key: &[u8], entry: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(key.len() + entry.len() + 2);
    for byte in key {
        if is_blank(*byte) || matches!(byte, b'"' | b'\\') {
            line.push(b'\\');
        }
        line.push(*byte);
    }
    line.push(b' ');
    line.extend(entry.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
    line.push(b'\n');
    line
}

impl Loader for Texts {
    fn load(&self, map: &MapName, above: &[PathBuf]) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        match map.kind {
            MapKind::Named if !self.site.switch.is_files() => {}
            MapKind::Ldap | MapKind::Ldaps | MapKind::Sss | MapKind::Yp => return self.ask_both(map),
            _ => return self.files.load(map, above),
        }
        let nowhere = "no service of nsswitch.conf has it";
        let mut result = Err(io::Error::new(io::ErrorKind::NotFound, nowhere));
        for step in &self.site.switch.0 {
            let map = MapName { kind: step.service.clone(), ..map.clone() };
            let loaded = if step.service == MapKind::File {
                // A file that includes its own name means the map of that name elsewhere.
                if above.contains(&self.files.directory.join(&map.name)) {
                    continue;
                }
                self.files.load(&MapName { kind: MapKind::Named, ..map }, above)
            } else {
                self.ask_both(&map)
            };
            let status = match &loaded {
                Ok(_) => Status::Success,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Status::NotFound,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => Status::TryAgain,
                Err(_) => Status::Unavailable,
            };
            result = match (result, loaded) {
                // A service that is down says more than one that does not have the map.
                (Err(error), Err(new)) if new.kind() == io::ErrorKind::NotFound => Err(error),
                (Err(_), loaded) => loaded,
                (first, _) => first,
            };
            if step.last.contains(&status) {
                break;
            }
        }
        result
    }
}

/// A file that may be executed is a program.
fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
