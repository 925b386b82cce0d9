//! What can be wrong with an image, or with writing one.

use super::VERSION;
use std::path::{Path, PathBuf};

/// An image could not be read or written. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `open`, `write` ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// There is a directory, but no checkpoint in it.
    #[error("{} holds no checkpoint (no {file}); give the directory that `dump -D` wrote", dir.display())]
    NotAnImage {
        /// The directory.
        dir: PathBuf,
        /// The file that is missing.
        file: &'static str,
    },
    /// Writing would overwrite something.
    #[error("{} exists and is not empty; choose another directory, or give --replace", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// The path cannot name a new directory.
    #[error("{} cannot hold an image: give a directory that can be renamed (not /, not a mount point)", dir.display())]
    BadDirectory {
        /// The directory.
        dir: PathBuf,
    },
    /// Another dump writes there now.
    #[error("another dump is writing to {}; wait for it or choose another directory", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// Someone else could have written this.
    #[error("{} is not trusted: {why}", path.display())]
    Untrusted {
        /// The file or directory.
        path: PathBuf,
        /// What about it.
        why: Distrust,
    },
    /// The manifest names a file that is not there.
    #[error("{file} is missing")]
    Missing {
        /// The file.
        file: String,
    },
    /// The first eight bytes are not those of this file.
    #[error(
        "{file}: magic {found:#010x} at byte {offset}, expected {expected:#010x}: damaged, \
         or no image of autofs-cr"
    )]
    Magic {
        /// The file.
        file: String,
        /// Byte offset.
        offset: usize,
        /// What is there.
        found: u32,
        /// What should be there.
        expected: u32,
    },
    /// The file ends too early.
    #[error("{file} is cut off: {wanted} bytes wanted at byte {offset}, {left} left")]
    Truncated {
        /// The file.
        file: String,
        /// Byte offset.
        offset: usize,
        /// Bytes wanted there.
        wanted: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// The length is not what the manifest says.
    #[error("{file} has {found} bytes, the inventory says {expected}: cut off or changed")]
    Length {
        /// The file.
        file: String,
        /// Its length.
        found: u64,
        /// The length in the inventory.
        expected: u64,
    },
    /// The checksum is not what the manifest says.
    #[error("{file} is damaged: CRC-32 {found:08x}, recorded {expected:08x}")]
    Checksum {
        /// The file.
        file: String,
        /// Of its bytes.
        found: u32,
        /// As recorded.
        expected: u32,
    },
    /// More bytes than any image has.
    #[error("{file}: {size} bytes exceed the limit of {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size, or that of the whole image.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// More entries than any image has.
    #[error("{file}: more than {limit} entries (at byte {offset})")]
    TooMany {
        /// The file.
        file: String,
        /// Where the limit was passed.
        offset: usize,
        /// The limit.
        limit: usize,
    },
    /// Another program wrote this.
    #[error(
        "{file}: image version {major}.{minor}, this program reads version {}.x; \
         use the autofs-cr that wrote it", VERSION.major
    )]
    Version {
        /// The file.
        file: String,
        /// Major version of the image.
        major: u32,
        /// Minor version.
        minor: u32,
    },
    /// Not a protobuf message of the right kind.
    #[error("{file}: bad message at byte {offset}: {why}")]
    Message {
        /// The file.
        file: String,
        /// Byte offset of the message.
        offset: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A field has no acceptable value.
    #[error("{file}: {field}: {fault}")]
    Field {
        /// The file.
        file: String,
        /// Path of the field: `tree[3].path`.
        field: String,
        /// What is wrong.
        fault: Fault,
    },
}

/// Why a file of an image directory is not trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Distrust {
    /// A symlink, pipe, device ...
    #[error("it is not a regular file")]
    NotRegular,
    /// Owned by a third user.
    #[error("it belongs to uid {0}, not to root or to you; chown it if you trust it")]
    Owner(u32),
    /// Its mode lets others write.
    #[error("mode {0:04o} lets others write to it; chmod it to 0700 (files: 0600) if you trust it")]
    Mode(u32),
}

/// What is wrong with the value of a field.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Not there.
    #[error("missing")]
    Missing,
    /// Should not be there.
    #[error("not allowed here: {0}")]
    Unexpected(&'static str),
    /// Nothing in it.
    #[error("empty")]
    Empty,
    /// A zero byte.
    #[error("contains a NUL byte")]
    Nul,
    /// A control character or the like: it could deceive a terminal's reader.
    #[error("contains a character that cannot be printed: {0:?}")]
    NotPrintable(String),
    /// Longer than the limit.
    #[error("{length} bytes exceed the limit of {limit}")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A path that should begin with a slash.
    #[error("not an absolute path: {0:?}")]
    NotAbsolute(PathBuf),
    /// A path that should not.
    #[error("not a relative path: {0:?}")]
    NotRelative(PathBuf),
    /// `.`, `..`, `//` or a slash at the end.
    #[error("path with an empty, `.` or `..` component: {0:?}")]
    NotNormal(PathBuf),
    /// More than one component.
    #[error("not a single path component: {0:?}")]
    NotOneComponent(PathBuf),
    /// A path that leads out of where it must stay.
    #[error("{path:?} is not below {root:?}")]
    Outside {
        /// The path.
        path: PathBuf,
        /// Where it should be.
        root: PathBuf,
    },
    /// The parent directory is not an earlier entry (or it is a symlink).
    #[error("no directory {0:?} before it")]
    NoParent(PathBuf),
    /// The parent mount comes later.
    #[error("stands before its parent, mount {0}")]
    BeforeParent(u64),
    /// Twice the same.
    #[error("duplicate: {0}")]
    Duplicate(String),
    /// A number outside its range.
    #[error("{value} is out of range ({range})")]
    Range {
        /// The number.
        value: i128,
        /// What is allowed.
        range: &'static str,
    },
    /// An index that points nowhere.
    #[error("points to entry {index} of {len}")]
    Index {
        /// The index.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// An enumeration value that this version does not know.
    #[error("unknown value {0}")]
    Unknown(i64),
    /// Contradicts another field.
    #[error("inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// A fault and the path of its field within one file.
#[derive(Debug)]
pub(super) struct FieldError {
    pub field: String,
    pub fault: Fault,
}

impl FieldError {
    /// The same fault, seen from the message that contains this one.
    pub fn within(mut self, outer: impl std::fmt::Display) -> Self {
        let dot = if self.field.is_empty() { "" } else { "." };
        self.field = format!("{outer}{dot}{}", self.field);
        self
    }

    /// The public error.
    pub fn in_file(self, file: &str) -> ImageError {
        ImageError::Field { file: file.to_owned(), field: self.field, fault: self.fault }
    }
}

impl Fault {
    /// This fault, of that field.
    pub(super) fn at(self, field: impl Into<String>) -> FieldError {
        FieldError { field: field.into(), fault: self }
    }
}

/// Adapter for `map_err`: an operating system error with what was tried and where.
pub(super) fn io<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> ImageError {
    move |source| ImageError::Io { action, path: path.to_owned(), source: source.into() }
}
