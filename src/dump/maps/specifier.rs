//! Specifiers in systemd's unit files (systemd.unit(5), "Specifiers"): those of the unit's name, of the machine, and of the
//! system's manager. What others stand for is not in files; they stay as they are, as unknown ones do.

use crate::discover::unit::unescape;
use std::path::Path;

/// A value with what its specifiers stand for in `unit`, whose manager has `root`.
pub fn expand(value: &[u8], unit: &str, root: &Path) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        out.extend(&rest[..at]);
        rest = &rest[at + 1..];
        let known =
            rest.split_first().and_then(|(&letter, after)| Some((stands_for(letter, unit, root)?, after)));
        match known {
            Some((text, after)) => {
                out.extend(text);
                rest = after;
            }
            None => out.push(b'%'),
        }
    }
    out.extend(rest);
    out
}

fn stands_for(letter: u8, unit: &str, root: &Path) -> Option<Vec<u8>> {
    let name = unit.rsplit_once('.').map_or(unit, |(name, _)| name);
    let (prefix, instance) = name.split_once('@').unwrap_or((name, ""));
    let last = prefix.rsplit_once('-').map_or(prefix, |(_, last)| last);
    let path = |name: &str| [&b"/"[..], &unescape(name)].concat();
    let line = |file: &str| Some(std::fs::read(root.join(file)).ok()?.trim_ascii().to_vec());
    let system = rustix::system::uname();
    Some(match letter {
        b'%' => b"%".into(),
        b'n' => unit.into(),
        b'N' => name.into(),
        b'p' => prefix.into(),
        b'P' => unescape(prefix),
        b'i' => instance.into(),
        b'I' => unescape(instance),
        b'j' => last.into(),
        b'J' => unescape(last),
        b'f' => path(if instance.is_empty() { prefix } else { instance }),
        b't' => b"/run".into(),
        b'S' => b"/var/lib".into(),
        b'C' => b"/var/cache".into(),
        b'L' => b"/var/log".into(),
        b'E' => b"/etc".into(),
        b'T' => b"/tmp".into(),
        b'V' => b"/var/tmp".into(),
        b'u' | b'g' => b"root".into(),
        b'U' | b'G' => b"0".into(),
        b'h' => b"/root".into(),
        b'H' => system.nodename().to_bytes().into(),
        b'l' => system.nodename().to_bytes().split(|&byte| byte == b'.').next()?.into(),
        b'v' => system.release().to_bytes().into(),
        b'm' => line("etc/machine-id")?,
        b'b' => line("proc/sys/kernel/random/boot_id")?.into_iter().filter(|&byte| byte != b'-').collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_names_and_of_the_machine() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/machine-id"), "4711\n").unwrap();
        let unit = r"mnt-my\x20data.mount";
        for (value, expected) in [
            ("a%%b", "a%b"),
            ("%", "%"),
            ("x%", "x%"),
            ("%%", "%"),
            ("%Z%z", "%Z%z"),
            ("%n", unit),
            ("%N %p", r"mnt-my\x20data mnt-my\x20data"),
            ("%P", "mnt/my data"),
            ("%j|%J|%i", r"my\x20data|my data|"),
            ("srv:%f", "srv:/mnt/my data"),
            ("%t/x %S %U", "/run/x /var/lib 0"),
            ("id=%m", "id=4711"),
        ] {
            assert_eq!(expand(value.as_bytes(), unit, root.path()), expected.as_bytes(), "{value}");
        }
        assert_eq!(expand(b"%b", unit, root.path()), b"%b", "no such file");
    }
}
