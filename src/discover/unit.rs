//! Names of systemd units that stand for a path (systemd.unit(5), "String Escaping for Inclusion in Unit Names").

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// `/mnt/my data` and `automount` give `mnt-my\x20data.automount`.
pub fn name(path: &Path, suffix: &str) -> String {
    let mut name = String::new();
    for component in path.components() {
        let Component::Normal(component) = component else { continue };
        if !name.is_empty() {
            name.push('-');
        }
        for &byte in component.as_bytes() {
            match byte {
                // a dot may not begin a name
                b'.' if !name.is_empty() => name.push('.'),
                b':' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => name.push(char::from(byte)),
                // writing to a String cannot fail
                _ => drop(write!(name, "\\x{byte:02x}")),
            }
        }
    }
    if name.is_empty() {
        name.push('-');
    }
    format!("{name}.{suffix}")
}

/// The path, without the slash before it, that a name (or a part of one) without its suffix stands for.
pub fn unescape(name: &str) -> Vec<u8> {
    let mut path = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = rest.strip_prefix(b"\\x").and_then(|hex| str::from_utf8(hex.get(..2)?).ok());
        let escaped = escaped.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(escaped) => {
                path.push(escaped);
                rest = &rest[4..];
            }
            None => {
                path.push(if byte == b'-' { b'/' } else { byte });
                rest = after;
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn as_systemd_escape_does_it() {
        for (path, expected) in [
            (&b"/"[..], "-.automount"),
            (b"/mnt/data", "mnt-data.automount"),
            (b"//mnt///data/", "mnt-data.automount"),
            (b"/proc/sys/fs/binfmt_misc", "proc-sys-fs-binfmt_misc.automount"),
            (b"/mnt/my data", r"mnt-my\x20data.automount"),
            (b"/mnt/a-b\\c", r"mnt-a\x2db\x5cc.automount"),
            (b"/.hidden/.too", r"\x2ehidden-.too.automount"),
            (b"/net/host:1/\xc3\xa4\xff", r"net-host:1-\xc3\xa4\xff.automount"),
        ] {
            let path = Path::new(OsStr::from_bytes(path));
            let own = name(path, "automount");
            assert_eq!(own, expected, "{}", path.display());
            if own != "-.automount" {
                let back = unescape(own.strip_suffix(".automount").unwrap());
                assert_eq!(Path::new("/").join(OsStr::from_bytes(&back)), path, "{own}");
            }
        }
    }
}
