//! systemd's units: what its automount and mount units of a path say, read from their files.
//!
//! The files of the manager's root are read, not the manager asked: it may be gone, or be the one that waits. What was
//! edited without a daemon-reload is therefore seen already.

use super::specifier;
use crate::discover::unit;
use crate::image::checkpoint::Service;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Where units are looked for, the first place that has one wins (systemd.unit(5)).
const DIRECTORIES: [&str; 12] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/run/systemd/generator.late",
];

/// The service of an automount unit; `None` where no unit file says what to mount.
pub fn service(unit: &str, path: &Path) -> Option<Service> {
    service_in(Path::new("/"), unit, path)
}

fn service_in(root: &Path, unit: &str, path: &Path) -> Option<Service> {
    let automount = load(root, unit);
    let mount = load(root, &unit::name(path, "mount"));
    let text = |name: &str| mount.get(&("Mount", name)).cloned().unwrap_or_default();
    let idle = automount.get(&("Automount", "TimeoutIdleSec"));
    Some(Service::Unit {
        unit: unit.to_owned(),
        mount_point: path.to_owned(),
        what: Some(text("What")).filter(|what| !what.is_empty())?,
        fstype: String::from_utf8(text("Type")).ok()?,
        options: text("Options"),
        timeout: idle.and_then(|span| seconds(span)).unwrap_or(0),
    })
}

/// The settings that count here; of several the last one wins, and an empty one takes the others back.
type Settings = HashMap<(&'static str, &'static str), Vec<u8>>;
const KNOWN: [(&str, &str); 4] =
    [("Automount", "TimeoutIdleSec"), ("Mount", "What"), ("Mount", "Type"), ("Mount", "Options")];

fn load(root: &Path, unit: &str) -> Settings {
    let mut settings = Settings::new();
    for file in files(root, unit) {
        if let Ok(text) = std::fs::read(file) {
            parse(&text, &mut settings, |value| specifier::expand(value, unit, root));
        }
    }
    settings
}

/// The unit's own file, then its drop-ins by name; one in an earlier directory hides its namesakes.
fn files(root: &Path, unit: &str) -> Vec<PathBuf> {
    let directories = || DIRECTORIES.iter().map(|directory| root.join(&directory[1..]));
    let own = directories().map(|directory| directory.join(unit)).find(|file| file.exists());
    let mut drop_ins = BTreeMap::<OsString, PathBuf>::new();
    for name in drop_in_directories(unit) {
        for directory in directories().map(|directory| directory.join(&name)) {
            for file in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if Path::new(&file.file_name()).extension() == Some(OsStr::new("conf")) {
                    drop_ins.entry(file.file_name()).or_insert_with(|| file.path());
                }
            }
        }
    }
    own.into_iter().chain(drop_ins.into_values()).collect()
}

/// `a-b.mount.d`, `a-.mount.d`, `mount.d`.
fn drop_in_directories(unit: &str) -> Vec<String> {
    let (name, suffix) = unit.rsplit_once('.').unwrap_or((unit, ""));
    let dashes = name.match_indices('-').map(|(at, _)| &name[..=at]).filter(|prefix| *prefix != name);
    let prefixes: Vec<_> = dashes.collect();
    let prefixes = prefixes.into_iter().rev().map(|prefix| format!("{prefix}.{suffix}.d"));
    [format!("{unit}.d")].into_iter().chain(prefixes).chain([format!("{suffix}.d")]).collect()
}

fn parse(text: &[u8], settings: &mut Settings, expand: impl Fn(&[u8]) -> Vec<u8>) {
    let mut section = "";
    for line in logical_lines(text) {
        if let Some(name) = line.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
            section = KNOWN
                .iter()
                .map(|(section, _)| *section)
                .find(|known| known.as_bytes() == name)
                .unwrap_or("");
        } else if let Some(at) = line.iter().position(|&byte| byte == b'=') {
            let name = line[..at].trim_ascii();
            let known = KNOWN.iter().find(|known| known.0 == section && known.1.as_bytes() == name);
            if let Some(&known) = known {
                settings.insert(known, expand(line[at + 1..].trim_ascii()));
            }
        }
    }
}

/// Without comments and empty lines; a backslash at the end joins a line with the next one.
fn logical_lines(text: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    let mut open: Option<Vec<u8>> = None;
    for line in text.split(|&byte| byte == b'\n') {
        let trimmed = line.trim_ascii();
        if matches!(trimmed.first(), Some(b'#' | b';')) || (trimmed.is_empty() && open.is_none()) {
            continue;
        }
        let (part, goes_on) = match trimmed.strip_suffix(b"\\") {
            Some(part) => (part, true),
            None => (trimmed, false),
        };
        let mut whole = open.take().unwrap_or_default();
        whole.extend(part);
        match goes_on {
            true => {
                whole.push(b' ');
                open = Some(whole);
            }
            false => lines.push(whole),
        }
    }
    lines.extend(open);
    lines
}

/// A time span of systemd.time(7) in whole seconds: `90`, `1min 30s`, `infinity` (0: never).
fn seconds(span: &[u8]) -> Option<u64> {
    const UNITS: [(&[&str], f64); 10] = [
        (&["nsec", "ns"], 1e-9),
        (&["usec", "us", "µs", "μs"], 1e-6),
        (&["msec", "ms"], 1e-3),
        (&["seconds", "second", "sec", "s", ""], 1.0),
        (&["minutes", "minute", "min", "m"], 60.0),
        (&["hours", "hour", "hr", "h"], 3600.0),
        (&["days", "day", "d"], 86_400.0),
        (&["weeks", "week", "w"], 604_800.0),
        (&["months", "month", "M"], 2_629_800.0),
        (&["years", "year", "y"], 31_557_600.0),
    ];
    let mut rest = str::from_utf8(span).ok()?.trim();
    if rest == "infinity" {
        return Some(0);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start();
        let end = rest.find(|c: char| c.is_ascii_digit() || c.is_whitespace()).unwrap_or(rest.len());
        let (_, length) = UNITS.iter().find(|(names, _)| names.contains(&&rest[..end]))?;
        total += number * length;
        rest = rest[end..].trim_start();
    }
    // a span below a second is none to wait, but it is not "never" either
    Some(if total > 0.0 { (total as u64).max(1) } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    #[test]
    fn a_unit_with_drop_ins() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let automount = "[Unit]\nDescription=x\n[Automount]\nWhere=/mnt/data\nTimeoutIdleSec=1min 30s\n";
        write(root, "etc/systemd/system/mnt-data.automount", automount);
        write(root, "usr/lib/systemd/system/mnt-data.mount", "[Mount]\nWhat=hidden\n");
        let mount = "# made by hand\n[Mount]\nWhat = srv:/a%%b\nWhere=/mnt/data\nType=nfs\nOptions=ro,\\\n# no\n  soft\n";
        write(root, "run/systemd/generator/mnt-data.mount", mount);
        write(root, "etc/systemd/system/mnt-data.mount.d/20.conf", "[Mount]\nType=nfs4\n");
        write(root, "run/systemd/system/mnt-data.mount.d/20.conf", "[Mount]\nType=hidden\n");
        write(root, "etc/systemd/system/mnt-.mount.d/10.conf", "[Mount]\nType=nfs3\n[Install]\nOptions=no\n");
        let service = service_in(root, "mnt-data.automount", Path::new("/mnt/data")).unwrap();
        assert_eq!(
            service,
            Service::Unit {
                unit: "mnt-data.automount".into(),
                mount_point: "/mnt/data".into(),
                what: b"srv:/a%b".into(),
                fstype: "nfs4".into(),
                options: b"ro, soft".into(),
                timeout: 90,
            }
        );
    }

    #[test]
    fn without_a_mount_unit_nothing_is_known() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "etc/systemd/system/mnt.automount", "[Automount]\nWhere=/mnt\n");
        assert_eq!(service_in(root.path(), "mnt.automount", Path::new("/mnt")), None);
    }

    #[test]
    fn time_spans() {
        for (text, expected) in [
            ("0", Some(0)),
            ("90", Some(90)),
            ("infinity", Some(0)),
            ("1h30min", Some(5_400)),
            ("2 days 1s", Some(172_801)),
            ("1.5min", Some(90)),
            ("10ms", Some(1)),
            ("1M 1y", Some(34_187_400)),
            ("5 parsecs", None),
            ("min", None),
        ] {
            assert_eq!(seconds(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn names_of_drop_in_directories() {
        assert_eq!(
            drop_in_directories("a-b-c.mount"),
            ["a-b-c.mount.d", "a-b-.mount.d", "a-.mount.d", "mount.d"]
        );
        assert_eq!(drop_in_directories("-.mount"), ["-.mount.d", "mount.d"]);
    }
}
