//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)), over bytes: paths need not be UTF-8, and the kernel escapes
//! space, tab, newline, backslash and `#` as `\ooo`.

use super::escaped::unescape;
use super::facts::Propagation;
use crate::sys::DevNum;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One line. The fields borrow from the file and are still escaped: equal fields are equal names, and only what
/// is asked for is decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Mount id.
    pub id: u64,
    /// The mount it is attached to.
    pub parent: u64,
    /// Number of the superblock.
    pub dev: DevNum,
    /// Which directory of the file system is attached.
    pub root: &'a [u8],
    /// Where, seen from the root directory of the process.
    pub mount_point: &'a [u8],
    /// Per-mount flags, comma-separated.
    pub flags: &'a [u8],
    /// Propagation.
    pub propagation: Propagation,
    /// File-system type with its subtype.
    pub fstype: &'a [u8],
    /// Source; may be empty.
    pub source: &'a [u8],
    /// Options of the superblock, comma-separated.
    pub super_options: &'a [u8],
}

/// A line that is not as the kernel prints it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of mountinfo has no valid {field}")]
pub struct MountinfoError {
    /// Counted from 1.
    pub line: usize,
    /// What is missing or is not a number.
    pub field: &'static str,
}

/// Every line of the file, in its order.
pub fn parse(file: &[u8]) -> Result<Vec<Entry<'_>>, MountinfoError> {
    file.split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| Entry::parse(line).map_err(|field| MountinfoError { line: index + 1, field }))
        .collect()
}

impl<'a> Entry<'a> {
    /// One line without its newline; the error is the field at fault.
    fn parse(line: &'a [u8]) -> Result<Self, &'static str> {
        // exactly one space ends a field: an empty source shows as two in a row
        let mut fields = line.split(|&byte| byte == b' ');
        let mut next = |name| fields.next().ok_or(name);
        Ok(Self {
            id: number(next("mount id")?).ok_or("mount id")?,
            parent: number(next("parent id")?).ok_or("parent id")?,
            dev: device(next("device number")?).ok_or("device number")?,
            root: next("root")?,
            mount_point: next("mount point")?,
            flags: next("flags")?,
            propagation: propagation(&mut fields).ok_or("separator")?,
            fstype: fields.next().ok_or("type")?,
            source: fields.next().ok_or("source")?,
            super_options: fields.next().ok_or("options")?,
        })
    }

    /// Is it an autofs mount?
    pub fn is_autofs(&self) -> bool {
        self.fstype == b"autofs"
    }
}

/// A field that is a path.
pub fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// The items of a comma-separated field, decoded one by one: an escaped comma separates nothing.
pub fn items(field: &[u8]) -> impl Iterator<Item = OsString> {
    field.split(|&byte| byte == b',').map(|item| OsString::from_vec(unescape(item)))
}

/// The optional fields up to the lone `-`; tags that are not known are passed over.
fn propagation<'a>(fields: &mut impl Iterator<Item = &'a [u8]>) -> Option<Propagation> {
    let mut propagation = Propagation::default();
    for field in fields {
        if field == b"-" {
            return Some(propagation);
        } else if let Some(group) = field.strip_prefix(b"shared:") {
            propagation.shared = number(group);
        } else if let Some(group) = field.strip_prefix(b"master:") {
            propagation.slave_of = number(group);
        } else if field == b"unbindable" {
            propagation.unbindable = true;
        }
    }
    None
}

fn device(field: &[u8]) -> Option<DevNum> {
    let colon = field.iter().position(|&byte| byte == b':')?;
    Some(DevNum { major: number(&field[..colon])?, minor: number(&field[colon + 1..])? })
}

/// A number in decimal.
pub(super) fn number<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    const LINES: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw\n\
63 43 0:4096 / /mnt/my\\040files rw,nosuid shared:7 master:3 propagate_from:2 - autofs auto\\040map rw,fd=4,direct\n\
64 63 259:1 /sub /mnt/\xff\xfe ro,relatime unbindable new:field -  fuse.x  rw,a\\054b,c\n";

    #[test]
    fn fields_are_found() {
        // the last line's type is empty, as no kernel prints it: the fields behind it do not slip
        let entries = parse(LINES).unwrap();
        let [proc, autofs, odd] = entries.as_slice() else {
            panic!("three lines, {} entries", entries.len())
        };
        assert_eq!((proc.id, proc.parent), (22, 27));
        assert_eq!(proc.propagation, Propagation::default());
        assert!(autofs.is_autofs());
        assert_eq!(autofs.dev, DevNum::anonymous(4096));
        assert_eq!(path(autofs.mount_point), PathBuf::from("/mnt/my files"));
        assert_eq!(path(autofs.source), PathBuf::from("auto map"));
        assert_eq!(autofs.propagation.shared, Some(7));
        assert_eq!(autofs.propagation.slave_of, Some(3));
        assert_eq!(path(odd.mount_point).as_os_str().as_bytes(), b"/mnt/\xff\xfe");
        assert_eq!((odd.fstype, odd.source), (&b""[..], &b"fuse.x"[..]));
        assert!(odd.propagation.unbindable);
    }

    #[test]
    fn an_empty_source_and_escaped_commas() {
        let entries = parse(b"1 0 0:1 / / rw - tmpfs  rw,x=a\\054b\n").unwrap();
        assert_eq!(entries[0].source, b"");
        let options: Vec<_> = items(entries[0].super_options).collect();
        assert_eq!(options, ["rw", "x=a,b"]);
    }

    #[test]
    fn the_field_at_fault_is_named() {
        for (line, field) in [
            (&b"x 1 0:1 / / rw - t s o"[..], "mount id"),
            (b"1 1 01 / / rw - t s o", "device number"),
            (b"1 1 0:1 / / rw t s o", "separator"),
            (b"1 1 0:1 / / rw - t s", "options"),
            (b"1", "parent id"),
        ] {
            let mut file = b"1 0 0:1 / / rw - tmpfs none rw\n".to_vec();
            file.extend(line);
            assert_eq!(parse(&file), Err(MountinfoError { line: 2, field }));
        }
    }

    /// As show_mountinfo() does it.
    fn print(entry: &Entry<'_>) -> Vec<u8> {
        let mut line = format!("{} {} {} ", entry.id, entry.parent, entry.dev).into_bytes();
        for field in [entry.root, entry.mount_point, entry.flags] {
            line.extend(field);
            line.push(b' ');
        }
        let Propagation { shared, slave_of, unbindable } = entry.propagation;
        line.extend(shared.map_or(String::new(), |g| format!("shared:{g} ")).bytes());
        line.extend(slave_of.map_or(String::new(), |g| format!("master:{g} ")).bytes());
        line.extend(if unbindable { &b"unbindable "[..] } else { b"" });
        for field in [&b"-"[..], entry.fstype, entry.source, entry.super_options] {
            line.extend(field);
            line.push(b' ');
        }
        line.pop();
        line.push(b'\n');
        line
    }

    /// Any bytes, escaped as the kernel does.
    fn field() -> impl Strategy<Value = Vec<u8>> {
        any::<Vec<u8>>().prop_map(|bytes| {
            bytes
                .iter()
                .filter(|&&byte| byte != 0)
                .flat_map(|&byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                    _ => vec![byte],
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn no_bytes_panic(file: Vec<u8>) {
            let _ = parse(&file);
        }

        #[test]
        fn no_mangled_line_panics(at in 0..LINES.len(), byte: u8) {
            let mut file = LINES.to_vec();
            file[at] = byte;
            let _ = parse(&file);
        }

        #[test]
        fn what_is_printed_is_parsed(
            (id, parent) in any::<(u64, u64)>(),
            (major, minor) in any::<(u32, u32)>(),
            texts in proptest::array::uniform6(field()),
            (shared, slave_of, unbindable) in any::<(Option<u32>, Option<u32>, bool)>(),
        ) {
            let [root, mount_point, flags, fstype, source, super_options] = &texts;
            let entry = Entry {
                id, parent, root, mount_point, flags, fstype, source, super_options,
                dev: DevNum { major, minor },
                propagation: Propagation { shared, slave_of, unbindable },
            };
            let line = print(&entry);
            prop_assert_eq!(parse(&line), Ok(vec![entry]));
        }
    }
}
