//! Lists of options, separated by commas.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The options of a list as mount(8) understands it: a comma between double quotes separates nothing.
/// Empty ones are left out, quotes are kept.
pub fn split(list: &OsStr) -> impl Iterator<Item = &OsStr> {
    split_bytes(list.as_bytes()).map(OsStr::from_bytes)
}

/// As [`split`], on bytes.
pub fn split_bytes(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let parts = list.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    });
    parts.filter(|part| !part.is_empty())
}

/// An option's name and value, without the quotes around the value.
pub fn name_value(option: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = option.as_bytes();
    let Some(equals) = bytes.iter().position(|b| *b == b'=') else {
        return (option, None);
    };
    let value = &bytes[equals + 1..];
    let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
    (OsStr::from_bytes(&bytes[..equals]), Some(OsStr::from_bytes(bare)))
}

/// Options side by side.
pub fn join<T: AsRef<[u8]>>(options: impl IntoIterator<Item = T>) -> OsString {
    let parts: Vec<T> = options.into_iter().collect();
    let parts: Vec<&[u8]> = parts.iter().map(AsRef::as_ref).collect();
    OsString::from_vec(parts.join(&b','))
}

/// Options of an entry added to those that apply to a whole map.
///
/// With `append`, the map's come first, so that the entry's win; where the entry repeats all of the map's in one
/// run they are not written twice. Without it, the entry's replace the map's when there are any.
pub fn merge(map: &[Vec<u8>], entry: &[Vec<u8>], append: bool) -> Vec<Vec<u8>> {
    match (map, entry) {
        (_, []) => map.to_vec(),
        ([], _) => entry.to_vec(),
        _ if !append || entry.windows(map.len()).any(|run| run == map) => entry.to_vec(),
        _ => [map, entry].concat(),
    }
}

/// Options that every mount can have, bind mounts included.
const GENERIC: &[&[u8]] = &[
    b"ro",
    b"rw",
    b"suid",
    b"nosuid",
    b"dev",
    b"nodev",
    b"exec",
    b"noexec",
    b"atime",
    b"noatime",
    b"diratime",
    b"nodiratime",
    b"relatime",
    b"norelatime",
    b"strictatime",
    b"nostrictatime",
    b"symfollow",
    b"nosymfollow",
];

/// What of a list means something to a bind mount that takes the place of a network mount.
pub fn for_bind(list: &OsStr) -> OsString {
    join(split_bytes(list.as_bytes()).filter(|option| GENERIC.contains(option)))
}
