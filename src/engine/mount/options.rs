//! Option text, as mount(8) takes it, sorted into what the mount API wants.

use crate::engine::maps::options::{name_value, split};
use crate::sys::mount::MountFlags;
use std::ffi::{OsStr, OsString};

/// Options of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Flags of the mount to set.
    pub set: MountFlags,
    /// Flags of the mount to clear: matters to binds, which begin with their source's.
    pub clear: MountFlags,
    /// `bind`.
    pub bind: bool,
    /// `rbind`.
    pub recursive: bool,
    /// mount(8) must do it: `loop`, for one, is its business.
    pub needs_helper: bool,
    /// The rest, for the file system.
    own: Vec<(String, Option<OsString>)>,
}

/// What a word does to the flags of a mount: `(word, sets, clears)`.
const FLAGS: &[(&str, MountFlags, MountFlags)] = {
    const NONE: MountFlags = MountFlags::empty();
    const ATIME: MountFlags = MountFlags::MOUNT_ATTR__ATIME;
    &[
        ("ro", MountFlags::MOUNT_ATTR_RDONLY, NONE),
        ("rw", NONE, MountFlags::MOUNT_ATTR_RDONLY),
        ("nosuid", MountFlags::MOUNT_ATTR_NOSUID, NONE),
        ("suid", NONE, MountFlags::MOUNT_ATTR_NOSUID),
        ("nodev", MountFlags::MOUNT_ATTR_NODEV, NONE),
        ("dev", NONE, MountFlags::MOUNT_ATTR_NODEV),
        ("noexec", MountFlags::MOUNT_ATTR_NOEXEC, NONE),
        ("exec", NONE, MountFlags::MOUNT_ATTR_NOEXEC),
        ("nosymfollow", MountFlags::MOUNT_ATTR_NOSYMFOLLOW, NONE),
        ("symfollow", NONE, MountFlags::MOUNT_ATTR_NOSYMFOLLOW),
        ("nodiratime", MountFlags::MOUNT_ATTR_NODIRATIME, NONE),
        ("diratime", NONE, MountFlags::MOUNT_ATTR_NODIRATIME),
        ("noatime", MountFlags::MOUNT_ATTR_NOATIME, ATIME),
        ("strictatime", MountFlags::MOUNT_ATTR_STRICTATIME, ATIME),
        // relatime is the kernel's default, and its flag is zero.
        ("relatime", NONE, ATIME),
        ("atime", NONE, ATIME),
        ("norelatime", NONE, ATIME),
        ("nostrictatime", NONE, ATIME),
    ]
};

/// Words for mount(8) and fstab that mean nothing to the kernel; so do `x-...` and `comment=...`.
const IGNORED: &[&str] = &[
    "_netdev", "auto", "defaults", "group", "noauto", "nofail", "nouser", "owner", "silent", "loud", "user",
    "users",
];

/// Words that only mount(8) can carry out.
const HELPERS: &[&str] = &["encryption", "loop", "offset", "remount", "sizelimit", "uhelper", "helper"];

impl Options {
    /// Sort a comma-separated list. Later words win over earlier ones.
    pub fn parse(list: &OsStr) -> Self {
        let none = MountFlags::empty();
        let mut options = Self {
            set: none,
            clear: none,
            bind: false,
            recursive: false,
            needs_helper: false,
            own: Vec::new(),
        };
        for option in split(list) {
            options.add(option);
        }
        options
    }

    fn add(&mut self, option: &OsStr) {
        let (name, value) = name_value(option);
        // The file system refuses a name that is no text, and says so.
        let name = name.to_string_lossy();
        if let Some((_, set, clear)) = FLAGS.iter().find(|(word, ..)| value.is_none() && *word == name) {
            self.set = self.set.difference(*clear).union(*set);
            self.clear = self.clear.difference(*set).union(*clear);
            return;
        }
        match &*name {
            "bind" => self.bind = true,
            "rbind" => self.recursive = true,
            word if HELPERS.contains(&word) => self.needs_helper = true,
            word if IGNORED.contains(&word) || word.starts_with("x-") || word == "comment" => {}
            _ => self.own.push((name.into_owned(), value.map(OsStr::to_owned))),
        }
    }

    /// Parameters of a new superblock. `ro` is one as well as a flag of the mount, as with mount(2).
    pub fn parameters(&self) -> Vec<(&str, Option<&OsStr>)> {
        let read_only = self.set.contains(MountFlags::MOUNT_ATTR_RDONLY).then_some(("ro", None));
        self.own.iter().map(|(name, value)| (name.as_str(), value.as_deref())).chain(read_only).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        Options::parse(OsStr::new(text))
    }

    #[test]
    fn flags_of_the_mount_and_options_of_the_file_system_part() {
        let options = parse("ro,nosuid,size=1M,mode=0755,defaults,x-systemd.automount,_netdev,comment=a");
        assert_eq!(options.set, MountFlags::MOUNT_ATTR_RDONLY | MountFlags::MOUNT_ATTR_NOSUID);
        assert_eq!(
            options.parameters(),
            [("size", Some(OsStr::new("1M"))), ("mode", Some(OsStr::new("0755"))), ("ro", None)]
        );
        assert!(!options.needs_helper && !options.bind);
    }

    #[test]
    fn the_last_word_wins() {
        let options = parse("ro,noatime,rw,strictatime");
        assert_eq!(options.set, MountFlags::MOUNT_ATTR_STRICTATIME);
        assert!(options.clear.contains(MountFlags::MOUNT_ATTR_RDONLY));
        assert!(options.parameters().is_empty());
        let options = parse("rw,ro");
        assert_eq!((options.set, options.clear), (MountFlags::MOUNT_ATTR_RDONLY, MountFlags::empty()));
    }

    #[test]
    fn binds_and_what_only_mount_8_can_do() {
        assert!(parse("bind").bind);
        assert!(parse("ro,rbind").recursive);
        assert!(parse("loop,ro").needs_helper);
        assert!(parse("offset=4096").needs_helper);
    }

    #[test]
    fn a_quoted_value_keeps_its_commas() {
        let options = parse("context=\"system_u:object_r:x_t:s0,c1\",ro");
        assert_eq!(options.parameters()[0], ("context", Some(OsStr::new("system_u:object_r:x_t:s0,c1"))));
    }
}
