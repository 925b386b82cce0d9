//! The maps of an automount daemon, or of our engine: what its command line, its configuration and its master map name.
//!
//! Everything here is read in the daemon's own namespace and root directory.

use crate::discover::facts::{AutofsMount, MountType};
use crate::engine::maps::conf::Conf;
use crate::engine::maps::master::{self, Entry, MapName};
use crate::engine::maps::open::Texts;
use crate::engine::maps::switch::Switch;
use crate::engine::maps::vars::{Definition, definition};
use crate::engine::maps::{Map, Site};
use crate::image::checkpoint::Service;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// A larger map is not kept: its file is needed to serve it again.
const ENTRIES_MAX: usize = 100_000;
const BYTES_MAX: usize = 16 << 20;

/// What counts of a command line of automount(8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The master map, if it is named.
    pub master: Option<Vec<u8>>,
    /// `-O`.
    pub options: Vec<u8>,
    /// `-D`.
    pub definitions: Vec<Definition>,
}

/// Options with a value.
const WITH_VALUE: [(&[u8], u8); 7] = [
    (b"pid-file", b'p'),
    (b"timeout", b't'),
    (b"master-wait", b'M'),
    (b"negative-timeout", b'n'),
    (b"define", b'D'),
    (b"global-options", b'O'),
    (b"set-log-priority", b'l'),
];

impl CommandLine {
    /// Of the arguments after the program's name. As getopt(3) does it with `+`: the first word that is no option ends them.
    pub fn parse<'a>(arguments: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut line = Self::default();
        let mut words = arguments.into_iter();
        while let Some(word) = words.next() {
            match word {
                b"--" => {
                    line.master = words.next().map(<[u8]>::to_vec);
                    break;
                }
                [b'-', b'-', long @ ..] => {
                    let (name, value) = split(long);
                    let Some((_, letter)) = WITH_VALUE.iter().find(|(known, _)| *known == name) else {
                        continue;
                    };
                    if let Some(value) = value.or_else(|| words.next()) {
                        line.take(*letter, value);
                    }
                }
                [b'-', letters @ ..] if !letters.is_empty() => {
                    let takes = |letter: &u8| WITH_VALUE.iter().any(|(_, known)| known == letter);
                    let Some(at) = letters.iter().position(takes) else { continue };
                    let attached = Some(&letters[at + 1..]).filter(|value| !value.is_empty());
                    if let Some(value) = attached.or_else(|| words.next()) {
                        line.take(letters[at], value);
                    }
                }
                master => {
                    line.master = Some(master.to_vec());
                    break;
                }
            }
        }
        line
    }

    fn take(&mut self, letter: u8, value: &[u8]) {
        match letter {
            b'O' => self.options = value.to_vec(),
            b'D' => self.definitions.extend(definition(value)),
            _ => {}
        }
    }
}

/// `name` or `name=value`.
fn split(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&byte| byte == b'=') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// The services of a daemon with this command line that may serve these mounts, and what could not be read.
pub fn services(line: &CommandLine, mounts: &[AutofsMount]) -> (Vec<Service>, Vec<String>) {
    let mut reader = Reader::new(line);
    reader.master(line, mounts);
    reader.submounts(mounts);
    (reader.services, reader.warnings)
}

struct Reader {
    site: Arc<Site>,
    /// What the command line adds to every entry's options.
    definitions: Vec<u8>,
    options: Vec<u8>,
    services: Vec<Service>,
    warnings: Vec<String>,
}

impl Reader {
    fn new(line: &CommandLine) -> Self {
        let mut conf = Conf::default();
        // without it the defaults hold; its faults are no concern of ours
        if let Ok(text) = std::fs::read("/etc/autofs.conf") {
            conf.apply(&text, &mut Vec::new());
        }
        let definition = |(name, value): &Definition| [b"-D", name.as_bytes(), b"=", value, b" "].concat();
        Self {
            site: Arc::new(Site { conf, switch: Switch::of_machine(), ..Site::default() }),
            definitions: line.definitions.iter().flat_map(definition).collect(),
            options: line.options.clone(),
            services: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn master(&mut self, line: &CommandLine, mounts: &[AutofsMount]) {
        let name = line.master.clone().unwrap_or_else(|| self.site.conf.master_map_name.clone().into());
        let master = MapName::parse(&name).map_err(|error| error.to_string()).and_then(|name| {
            master::read(&name, &Texts::new(self.site.clone())).map_err(|error| error.to_string())
        });
        match master {
            Err(error) => {
                self.warnings.push(format!("master map {}: {error}", String::from_utf8_lossy(&name)));
            }
            Ok(master) => {
                let serves = |entry: &Entry| {
                    mounts.iter().any(|mount| match &entry.mount_point {
                        Some(point) => *point == mount.path,
                        None => mount.options.mount_type != MountType::Indirect,
                    })
                };
                master.entries.iter().filter(|entry| serves(entry)).for_each(|entry| self.entry(entry));
            }
        }
    }

    /// Indirect mounts that no line of the master map is about: submounts (`-fstype=autofs`), whose map is their source.
    fn submounts(&mut self, mounts: &[AutofsMount]) {
        for mount in mounts.iter().filter(|mount| mount.options.mount_type == MountType::Indirect) {
            if self.services.iter().any(|service| service.mount_point() == mount.path) {
                continue;
            }
            match master::entry(Some(mount.path.clone()), mount.source.as_os_str().as_bytes(), b"") {
                Ok(entry) => self.entry(&entry),
                Err(error) => self.warnings.push(format!("the map of {}: {error}", mount.path.display())),
            }
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let (map, written) = entry.written.clone();
        let mut options = [self.definitions.as_slice(), &written].concat();
        if !self.options.is_empty() && (entry.options.mount.is_empty() || self.site.conf.append_options) {
            options = [options.trim_ascii(), b" ", &self.options].concat().trim_ascii().to_vec();
        }
        let entries = match entries(entry, &self.site) {
            Ok(entries) if is_small(&entries) => entries,
            Ok(entries) => {
                self.warnings.push(format!(
                    "map {} has {} entries and is not kept: restoring needs the map itself",
                    entry.map,
                    entries.len()
                ));
                Vec::new()
            }
            Err(error) => {
                self.warnings.push(error);
                Vec::new()
            }
        };
        let mount_point = entry.mount_point.clone().unwrap_or_else(|| PathBuf::from("/-"));
        self.services.push(Service::MasterEntry { mount_point, map, options, entries });
    }
}

/// Key and entry.
type Pair = (Vec<u8>, Vec<u8>);

fn is_small(entries: &[Pair]) -> bool {
    let bytes: usize = entries.iter().map(|(key, entry)| key.len() + entry.len()).sum();
    entries.len() <= ENTRIES_MAX && bytes <= BYTES_MAX
}

/// Key and entry of everything in the map, the wildcard last. Empty where the map cannot be listed; no program is run.
fn entries(entry: &Entry, site: &Arc<Site>) -> Result<Vec<Pair>, String> {
    let map = Map::open(entry.clone(), site.clone()).map_err(|error| error.to_string())?;
    let Some(source) = map.source() else { return Ok(Vec::new()) };
    let listed = source.entries().map_err(|error| error.to_string())?.unwrap_or_default();
    let (wildcard, mut all): (Vec<_>, Vec<_>) = listed.into_iter().partition(|(key, _)| key == b"*");
    // the first one counts
    all.extend(wildcard.into_iter().take(1));
    Ok(all.into_iter().map(|(key, raw)| (key, raw.text.bytes().to_vec())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> CommandLine {
        CommandLine::parse(line.split_whitespace().map(str::as_bytes))
    }

    #[test]
    fn the_master_map_is_the_first_word_that_is_no_option() {
        for line in [
            "/etc/m",
            "-fv /etc/m extra",
            "--foreground --timeout 60 /etc/m",
            "--timeout=60 -p /run/x.pid /etc/m",
            "-p/run/x.pid -d1 -t 5 /etc/m",
            "-fn60 --dont-check-daemon -- /etc/m",
            "--systemd-service --dont-check-daemon /etc/m",
        ] {
            assert_eq!(parse(line).master.as_deref(), Some(&b"/etc/m"[..]), "{line}");
        }
        for line in ["", "-f", "--pid-file /run/autofs.pid", "-O"] {
            assert_eq!(parse(line).master, None, "{line}");
        }
    }

    #[test]
    fn what_all_maps_get() {
        let line = parse("-DA=1 --define=B=2 -D C=x=y -Oro,soft -D broken m");
        let definitions = [("A", "1"), ("B", "2"), ("C", "x=y")];
        let definitions: Vec<Definition> =
            definitions.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
        assert_eq!(line, CommandLine { master: Some(b"m".into()), options: b"ro,soft".into(), definitions });
    }
}
