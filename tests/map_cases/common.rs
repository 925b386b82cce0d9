//! Maps in temporary files, and what their keys stand for, as text.

use autofs_cr::engine::maps::conf::Conf;
use autofs_cr::engine::maps::local::Machine;
use autofs_cr::engine::maps::master::{Item, parse};
use autofs_cr::engine::maps::source::RawEntry;
use autofs_cr::engine::maps::text::Text;
use autofs_cr::engine::maps::vars::{Environment, Requester, User, Variables};
use autofs_cr::engine::maps::{Credentials, Map, Replica, Resolved, Site, Warning, What};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// The machine and the requester of all cases.
pub fn environment() -> Environment {
    Environment {
        sysname: "Linux".into(),
        nodename: "client.example.org".into(),
        release: "6.12.0".into(),
        version: "#1 SMP".into(),
        machine: "x86_64".into(),
        ..Environment::default()
    }
}

pub fn root() -> Requester {
    let user = User { name: "root".into(), group: "root".into(), home: b"/root".to_vec() };
    Requester::known(Credentials { uid: 0, gid: 0 }, user)
}

/// The settings of all cases.
pub fn site() -> Site {
    Site { conf: Conf::default(), environment: environment(), ..Site::default() }
}

/// The network of all cases: `client` is this machine, on 10.1.0.0/24 with all but `far1`.
pub struct Fake;

impl Machine for Fake {
    fn is_local(&self, host: &str) -> bool {
        matches!(host, "client" | "client.example.org")
    }

    fn is_on_network(&self, network: &str) -> bool {
        matches!(network, "10.1.0.0" | "10.1.0.0/24")
    }

    fn is_near(&self, host: &str) -> bool {
        host != "far1"
    }

    fn is_in_netgroup(&self, netgroup: &str, host: &str) -> bool {
        netgroup == "clients" && matches!(host, "client" | "client.example.org")
    }

    fn canonical(&self, host: &str) -> Option<String> {
        (host == "alias").then(|| "real.example.com".to_owned())
    }

    fn exports(&self, host: &str, _: &[Vec<u8>]) -> Option<Text<'static>> {
        let entry: &'static [u8] = b"-nosuid,nodev /a exporter:/a /b/c exporter:/b/c";
        (host == "exporter").then(|| Text::from(entry))
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }
}

/// A map on disk, opened through a line of a master map.
pub struct Opened {
    pub map: Map,
    directory: tempfile::TempDir,
}

/// How a map is opened.
pub struct Setup<'a> {
    pub mount_point: &'a str,
    pub options: &'a str,
    pub site: Site,
    /// Other files beside the map; `@` in all texts stands for their directory.
    pub files: &'a [(&'a str, &'a str)],
    pub program: bool,
    /// Before the map's path, with a colon.
    pub kind: &'a str,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { mount_point: "/m", options: "", site: site(), files: &[], program: false, kind: "" }
    }
}

impl Setup<'_> {
    pub fn open(self, text: &str) -> Opened {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().to_str().unwrap().to_owned();
        for (name, text) in self.files.iter().chain(&[("map", text)]) {
            std::fs::write(directory.path().join(name), text.replace('@', &here)).unwrap();
        }
        let kind = if self.program {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(directory.path().join("map"), mode).unwrap();
            if self.kind.is_empty() { "program:" } else { self.kind }
        } else {
            self.kind
        };
        let line = format!("{} {kind}{here}/map {}", self.mount_point, self.options.replace('@', &here));
        let mut warnings = Vec::new();
        let item = parse(line.as_bytes(), &mut warnings).pop();
        let Some(Item::Entry(entry)) = item else { panic!("{line}: {warnings:?}") };
        Opened { map: Map::open(*entry, Arc::new(self.site)).unwrap(), directory }
    }
}

impl Opened {
    /// What a key stands for, as text; see [`show`].
    pub fn lookup(&self, key: &str) -> String {
        self.lookup_warned(key).0
    }

    /// With the warnings of its entry.
    pub fn lookup_warned(&self, key: &str) -> (String, Vec<Warning>) {
        let mut warnings = Vec::new();
        let found = self.map.lookup_as(key.as_bytes(), &root(), &Fake, &mut warnings);
        let here = self.directory.path().to_str().unwrap();
        let text = match found {
            Ok(None) => "ENOENT".into(),
            Ok(Some(resolved)) => show(&resolved).replace(here, "@"),
            Err(error) => format!("error: {error}").replace(here, "@"),
        };
        (text, warnings)
    }

    /// What was wrong in the file, as `LINE:COLUMN: MESSAGE`.
    pub fn warnings(&self) -> Vec<String> {
        let all = self.map.source().unwrap().warnings();
        all.iter().map(|(_, warning)| format!("{}: {}", warning.at, warning.message)).collect()
    }

    /// An entry as it stands in the map.
    pub fn raw(&self, key: &str) -> Option<RawEntry> {
        let (environment, requester) = (environment(), root());
        let variables = Variables { environment: &environment, definitions: &[], requester: &requester };
        self.map.source().unwrap().lookup(key.as_bytes(), &variables).unwrap()
    }

    pub fn keys(&self) -> Vec<String> {
        let keys = self.map.keys().unwrap().unwrap();
        keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect()
    }

    /// The map of the submount that a key is.
    pub fn submount(&self, key: &str, site: Site) -> Opened {
        let resolved = self.map.lookup_as(key.as_bytes(), &root(), &Fake, &mut Vec::new());
        let resolved = resolved.unwrap().unwrap();
        let What::Submount { map, options } = &resolved.mounts[0].what else { panic!("{resolved:?}") };
        let entry = self.map.submount("/m/sub".into(), map, options).unwrap();
        Opened { map: Map::open(entry, Arc::new(site)).unwrap(), directory: tempfile::tempdir().unwrap() }
    }
}

/// One line for each mount: `[OFFSET: ][-t TYPE] [-o OPTIONS] SOURCE...`.
pub fn show(resolved: &Resolved) -> String {
    let lines: Vec<String> = resolved
        .mounts
        .iter()
        .map(|mount| {
            let offset = mount.offset.as_os_str();
            let root = offset.is_empty() && resolved.mounts.len() == 1;
            let offset = if root { String::new() } else { format!("/{}: ", offset.to_str().unwrap()) };
            format!("{offset}{}", show_what(&mount.what))
        })
        .collect();
    let otherwise = resolved.otherwise.as_ref().map_or(String::new(), |next| format!(" || {}", show(next)));
    lines.join("; ") + &otherwise
}

fn show_what(what: &What) -> String {
    let with = |options: &std::ffi::OsStr| match String::from_utf8_lossy(options.as_bytes()) {
        options if options.is_empty() => String::new(),
        options => format!(" -o {options}"),
    };
    match what {
        What::Mount { fstype, options, sources, use_weight_only } => {
            let sources: Vec<String> = sources.iter().map(show_replica).collect();
            let by_weight = if *use_weight_only { " by weight" } else { "" };
            format!("-t {fstype}{} {}{by_weight}", with(options), sources.join(" | "))
        }
        What::External { place, mount, then } => {
            format!("{} {}, then {}", show_what(mount), place.display(), show_what(then))
        }
        What::Symlink(target) => format!("symlink {}", target.display()),
        What::Command { mount, unmount } => {
            let words = |words: &[OsString]| words.join(OsStr::new(" ")).to_string_lossy().into_owned();
            format!("run {}, then {}", words(mount), words(unmount))
        }
        What::Submount { map, options } => format!("automount {}{}", map.to_string_lossy(), with(options)),
    }
}

fn show_replica(replica: &Replica) -> String {
    let weight = if replica.weight > 0 { format!("({})", replica.weight) } else { String::new() };
    let local = replica.local.as_ref().map_or(String::new(), |path| format!(" (here {})", path.display()));
    format!("{}{weight}{local}", replica.source.to_string_lossy())
}

/// Tests named by their number in the list of cases: a map, then keys with what they stand for.
#[macro_export]
macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident: $map:expr, $(with $setup:expr,)? { $($key:expr => $expected:expr),* $(,)? })*) => {$(
        $(#[$doc])*
        #[test]
        #[allow(unused_mut, unused_assignments)]
        fn $name() {
            let mut setup = $crate::common::Setup::default();
            $(setup = $setup;)?
            let opened = setup.open($map);
            $(assert_eq!(opened.lookup($key), $expected, "key {}", $key);)*
        }
    )*};
}
