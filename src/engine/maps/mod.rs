//! Maps: from a key to what must be mounted. Nothing here mounts.
//!
//! | module | holds |
//! |---|---|
//! | [`text`] | bytes with their places in a file: lines, quotes, escapes, continuation |
//! | [`options`] | comma-separated option lists; the words that are automount's own |
//! | [`vars`] | `$ARCH`, `$USER`, `-D` and friends |
//! | [`sun`] | an entry in sun format → [`Resolved`] |
//! | [`master`] | the master map |
//! | [`conf`] | `autofs.conf` |
//! | [`source`] | where entries come from: files, programs, hosts, services of the network |
//! | [`switch`] | which services have maps that are named without a type |
//! | [`open`] | from a map's name to its source |
//! | [`amd`] | an entry in amd format → [`Resolved`] |
//! | [`local`] | questions about this machine and its networks |
//! | [`mod@unit`] | systemd mount units → [`Resolved`] |
//! | [`check`] | what is wrong in a file |
//! | [`map`] | a master-map entry made usable: the engine's way in |
//!
//! The parsers are pure and give every warning a line and a column. Where automount 5.1.9 and its
//! manual disagree, `docs/map-decisions.md` says what is done here.

pub mod amd;
pub mod check;
pub mod conf;
pub mod hesiod;
pub mod local;
pub mod map;
pub mod master;
pub mod open;
pub mod options;
pub mod source;
pub mod sun;
pub mod switch;
pub mod text;
pub mod unit;
pub mod vars;

pub use map::{Map, MapError, Site};
pub use text::{Position, Severity, Warning};

use std::ffi::OsString;
use std::path::PathBuf;

/// Who asks: feeds `$USER`, `$UID`, `$HOME` and friends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Resolved {
    /// In the order of mounting, parents before children. One for a plain entry (with an empty
    /// offset); several for a multi-mount, which need not have a root.
    pub mounts: Vec<MountSpec>,
    /// One mount that fails makes the whole entry fail (`-strict`).
    pub strict: bool,
    /// What to try when mounting this fails (amd maps have several locations).
    pub otherwise: Option<Box<Resolved>>,
}

/// One mount of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// Below the key, relative, no `.` or `..`; empty for the root itself.
    pub offset: PathBuf,
    /// What to do.
    pub what: What,
}

/// What to do at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Mount a file system.
    Mount {
        /// `nfs`, `bind`, `tmpfs` ...
        fstype: String,
        /// Options as mount(8) takes them, without automount's own words; empty for none.
        /// [`options::split`] takes them apart.
        options: OsString,
        /// At least one source; more than one are replicas, best chosen at mount time.
        sources: Vec<Replica>,
        /// Choose among replicas by weight alone, not by distance and response time.
        use_weight_only: bool,
    },
    /// Mount at a place elsewhere, which other keys may share, then make the key (amd maps).
    External {
        /// Absolute path, no `.` or `..`; made when it is missing. What is mounted there already is used.
        place: PathBuf,
        /// What to mount there: [`What::Mount`] or [`What::Command`].
        mount: Box<What>,
        /// What the key is: a bind mount ([`What::Mount`]) of `place` or below, or a [`What::Symlink`] to it.
        then: Box<What>,
    },
    /// Have commands mount and unmount (amd type `program`). Words: the program, its name for itself, arguments.
    Command {
        /// Mounts.
        mount: Vec<OsString>,
        /// Unmounts; empty: no command is needed.
        unmount: Vec<OsString>,
    },
    /// Make a symbolic link (option `symlink`).
    Symlink(PathBuf),
    /// Start an automount below (fstype=autofs): [`Map::submount`] makes its master-map entry.
    Submount {
        /// As in the master map: `file:/etc/auto.sub`, `-hosts` ...
        map: OsString,
        /// Its options as in the master map; what it inherits (mount options, `-D`) is in them.
        options: OsString,
    },
}

/// One place a file system can come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Host; `None` for a local source.
    pub host: Option<String>,
    /// Weight as in `host(5)`; the lower the better.
    pub weight: u32,
    /// The source as mount(8) takes it: `srv1:/export`, `/dev/sdb1`, `/usr`.
    pub source: OsString,
    /// The host is this machine: bind-mount this path (with [`options::for_bind`]), and only when that
    /// fails mount the file system over the network.
    pub local: Option<PathBuf>,
}

impl Replica {
    /// A source that is on this machine, or whose form only its file system knows.
    pub fn plain(source: impl Into<OsString>) -> Self {
        Self { host: None, weight: 0, source: source.into(), local: None }
    }
}
