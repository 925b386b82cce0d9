//! The mount API: new superblocks, attachment, binds, propagation, unmounting.
//!
//! Everything is made detached first, as a descriptor, and attached when it is complete: what fails
//! halfway leaves nothing behind.

use super::{DevNum, Errno, mountns};
use rustix::fs::{CWD, Mode};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use std::{
    ffi::{CStr, CString, OsStr},
    fmt::Display,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// Flags of one mount (`MOUNT_ATTR_*`), not of the superblock.
pub type MountFlags = MountAttrFlags;

/// A call of the mount API failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// ENODEV of fsopen.
    #[error("this kernel has no file-system type {0}; is its module missing?")]
    UnknownType(String),
    /// The file system refused an option.
    #[error("{fstype} does not take the option {option}: {errno}{}", told(log))]
    Option {
        /// File-system type.
        fstype: String,
        /// `key` or `key=value`.
        option: String,
        /// The kernel's answer.
        errno: Errno,
        /// What the kernel had to say about it.
        log: Vec<String>,
    },
    /// The superblock could not be made.
    #[error("mounting {} as {fstype} failed: {errno}{}", source_name.display(), told(log))]
    Create {
        /// File-system type.
        fstype: String,
        /// What was to be mounted.
        source_name: PathBuf,
        /// The kernel's answer.
        errno: Errno,
        /// What the kernel had to say about it.
        log: Vec<String>,
    },
    /// EBUSY of umount.
    #[error("{} is busy", .0.display())]
    Busy(PathBuf),
    /// EINVAL of umount and mount_setattr.
    #[error("{} is not a mount point", .0.display())]
    NotMounted(PathBuf),
    /// Another step at a path.
    #[error("cannot {what} {}: {errno}", path.display())]
    At {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
}

fn told(log: &[String]) -> String {
    log.iter().map(|line| format!("; {line}")).collect()
}

/// A mount that is nowhere yet. Dropping it unmounts it.
#[derive(Debug)]
pub struct DetachedMount(OwnedFd);

impl AsFd for DetachedMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<DetachedMount> for OwnedFd {
    fn from(mount: DetachedMount) -> Self {
        mount.0
    }
}

impl DetachedMount {
    /// The superblock's number. (A file system that shows another `st_dev` for its files, as btrfs
    /// does, is told by its root directory's.)
    pub fn dev(&self) -> Result<DevNum, Errno> {
        Ok(DevNum::from_st_dev(rustix::fs::fstat(&self.0)?.st_dev))
    }

    /// Attach at `path` below `dir` (an empty path: at `dir` itself), on top of what is mounted there.
    /// A trigger there is not triggered, and a symbolic link not followed.
    pub fn attach(&self, dir: impl AsFd, path: &Path) -> Result<(), MountError> {
        let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        if path.as_os_str().is_empty() {
            flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        }
        rustix::mount::move_mount(&self.0, "", dir, path, flags)
            .map_err(|errno| at("attach a mount at", path, errno))
    }

    /// Unmount it, with all that is mounted on it, wherever it was attached. Not by its path, at which something else may be mounted by now,
    /// but from inside: the working directory is `/` afterwards.
    pub fn detach(&self) -> Result<(), MountError> {
        let call = |what| move |errno| at(what, Path::new("a mount of ours"), errno);
        rustix::process::fchdir(&self.0).map_err(call("enter"))?;
        let unmounted = unmount(Path::new("."), Unmount::Lazy);
        rustix::process::chdir("/").map_err(call("leave"))?;
        unmounted
    }
}

/// A new superblock of type `fstype`, with options of the file system (`None`: a flag without value)
/// and flags of the mount. A file system may give an existing superblock instead, as mount(2) would.
pub fn new_superblock<V: AsRef<OsStr>>(
    fstype: &str,
    source: &Path,
    options: &[(&str, Option<V>)],
    flags: MountFlags,
) -> Result<DetachedMount, MountError> {
    Context::new(fstype, source, options, flags)?.create()?.mount()
}

/// A superblock to be made, with its options: it has no number yet.
#[derive(Debug)]
pub struct Context(Description, Options);

/// One that was made, and is mounted nowhere.
#[derive(Debug)]
pub struct Superblock(Description, Mounting);

#[derive(Debug)]
struct Description {
    fstype: String,
    source: PathBuf,
    flags: MountFlags,
}

#[derive(Debug)]
enum Options {
    /// Set.
    In(OwnedFd),
    /// For mount(2).
    Text(CString),
}

#[derive(Debug)]
enum Mounting {
    /// To be done.
    Of(OwnedFd),
    /// mount(2) does both.
    Done(DetachedMount),
}

impl Description {
    fn refused(self, errno: Errno, log: Vec<String>) -> MountError {
        MountError::Create { fstype: self.fstype, source_name: self.source, errno, log }
    }
}

impl Context {
    /// As for [`new_superblock`].
    pub fn new<V: AsRef<OsStr>>(
        fstype: &str,
        source: &Path,
        options: &[(&str, Option<V>)],
        flags: MountFlags,
    ) -> Result<Self, MountError> {
        use rustix::mount::{fsconfig_set_flag, fsconfig_set_string, fsopen};
        let what = Description { fstype: fstype.into(), source: source.into(), flags };
        let context = match fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(context) => context,
            Err(Errno::NODEV) => return Err(MountError::UnknownType(fstype.into())),
            Err(errno) => return Err(what.refused(errno, Vec::new())),
        };
        let options = options.iter().map(|(k, v)| (*k, v.as_ref().map(AsRef::as_ref)));
        let all = || std::iter::once(("source", Some(source.as_os_str()))).chain(options.clone());
        if all().any(|(_, value)| value.is_some_and(|value| value.len() > LONGEST_VALUE)) {
            return match text(options) {
                Ok(text) => Ok(Self(what, Options::Text(text))),
                Err(errno) => Err(what.refused(errno, Vec::new())),
            };
        }
        for (key, value) in all() {
            match value {
                Some(value) => fsconfig_set_string(&context, key, value),
                None => fsconfig_set_flag(&context, key),
            }
            .map_err(|errno| MountError::Option {
                fstype: fstype.into(),
                option: match value {
                    Some(value) => format!("{key}={}", value.display()),
                    None => key.into(),
                },
                errno,
                log: read_log(&context),
            })?;
        }
        Ok(Self(what, Options::In(context)))
    }

    /// Make it. It gets the lowest free number.
    pub fn create(self) -> Result<Superblock, MountError> {
        let Self(what, options) = self;
        let made = match options {
            Options::Text(text) => {
                by_mount2(&what.fstype, &what.source, &text, what.flags).map(Mounting::Done)
            }
            Options::In(context) => match rustix::mount::fsconfig_create(&context) {
                Ok(()) => Ok(Mounting::Of(context)),
                Err(errno) => return Err(what.refused(errno, read_log(&context))),
            },
        };
        match made {
            Ok(made) => Ok(Superblock(what, made)),
            Err(errno) => Err(what.refused(errno, Vec::new())),
        }
    }
}

impl Superblock {
    /// Mount it, nowhere yet.
    pub fn mount(self) -> Result<DetachedMount, MountError> {
        let Self(what, made) = self;
        let context = match made {
            Mounting::Done(mount) => return Ok(mount),
            Mounting::Of(context) => context,
        };
        match rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, what.flags) {
            Ok(mount) => Ok(DetachedMount(mount)),
            Err(errno) => Err(what.refused(errno, read_log(&context))),
        }
    }
}

/// A superblock that is there to have a number, mounted nowhere: a ramfs, which costs the kernel least.
#[derive(Debug)]
pub struct Placeholder(OwnedFd);

impl Placeholder {
    /// With the lowest free number.
    pub fn new() -> Result<Self, MountError> {
        let context = rustix::mount::fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC);
        let made =
            context.and_then(|context| rustix::mount::fsconfig_create(&context).map(|()| Self(context)));
        made.map_err(Self::failed)
    }

    /// A mount of it, which tells the number, and can be closed. Once only.
    ///
    /// The end of a mount costs a grace period of the kernel's (10 to 40 µs, mostly waiting), that of a placeholder none.
    pub fn mount(&self) -> Result<DetachedMount, MountError> {
        let mount = rustix::mount::fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, MountFlags::empty());
        mount.map(DetachedMount).map_err(Self::failed)
    }

    fn failed(errno: Errno) -> MountError {
        let source_name = "a placeholder".into();
        MountError::Create { fstype: "ramfs".into(), source_name, errno, log: Vec::new() }
    }
}

/// The mount API refuses longer values (EINVAL), though file systems such as overlay have them.
const LONGEST_VALUE: usize = 255;

/// Options as mount(2) takes them.
fn text<'a>(options: impl Iterator<Item = (&'a str, Option<&'a OsStr>)>) -> Result<CString, Errno> {
    let mut text = Vec::new();
    for (key, value) in options {
        text.extend(key.as_bytes());
        text.extend(value.iter().flat_map(|value| [b"=", value.as_bytes()].concat()));
        text.push(b',');
    }
    text.pop();
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// The same by mount(2), which takes one page of options. It only mounts somewhere: that is in a mount
/// namespace which lives as long as this call.
fn by_mount2(fstype: &str, source: &Path, options: &CStr, flags: MountFlags) -> Result<DetachedMount, Errno> {
    use rustix::mount::{MountFlags, fsconfig_create, fsmount, fsopen, mount, open_tree};
    let made = mountns::run_in_copy(|| {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let place = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        rustix::mount::move_mount(&place, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        rustix::process::fchdir(&place)?;
        rustix::fs::mkdir("m", Mode::RWXU)?;
        mount(source, "m", fstype, MountFlags::empty(), options)?;
        open_tree(CWD, "m", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
    });
    let detached = DetachedMount(made??);
    let change = Change { set: flags, clear: MountAttrFlags::empty(), propagation: None, recursive: false };
    match change.apply(&detached, Path::new("")) {
        Err(MountError::At { errno, .. }) => Err(errno),
        Err(_) => Err(Errno::INVAL),
        Ok(()) => Ok(detached),
    }
}

/// The messages that the kernel left in a file-system context: one by each read, `e text`, until
/// ENODATA. (The kernel keeps eight at most.)
fn read_log(context: &OwnedFd) -> Vec<String> {
    std::iter::from_fn(|| {
        let mut buf = [0; 1024];
        let got = rustix::io::read(context, &mut buf).ok()?;
        let line = String::from_utf8_lossy(&buf[..got]);
        let text = line.split_once(' ').map_or(&*line, |(_level, text)| text);
        Some(text.trim_end().to_owned())
    })
    .take(8)
    .collect()
}

/// The three types of an autofs mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountType {
    /// The keys are directories below the mount.
    Indirect,
    /// The mount is itself the trigger.
    Direct,
    /// A direct trigger below another mount of a multi-mount.
    Offset,
}

/// The option, as it is given and shown.
impl Display for MountType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Indirect => "indirect",
            Self::Direct => "direct",
            Self::Offset => "offset",
        })
    }
}

/// How an autofs superblock is made. The idle timeout is no mount option:
/// [`super::control::Control::set_timeout`].
#[derive(Clone, Copy, Debug)]
pub struct AutofsParams<'a> {
    /// Write end of the master's pipe. The kernel takes its own reference.
    pub pipe: BorrowedFd<'a>,
    /// Owner group, in this process's pid namespace; its namespace becomes the mount's. `None`:
    /// this process's group.
    pub pgrp: Option<i32>,
    /// Type.
    pub mount_type: MountType,
    /// Lowest and highest protocol version.
    pub protocol: (u32, u32),
    /// Owner of the root directory; `None`: this process's user.
    pub uid: Option<u32>,
    /// Group of the root directory.
    pub gid: Option<u32>,
    /// Path walks do not count as use.
    pub strict_expire: bool,
    /// Hidden from df and mount listings.
    pub ignore: bool,
}

impl<'a> AutofsParams<'a> {
    /// Owned by this process, its group and its user; protocol 5; no other option.
    pub fn new(pipe: BorrowedFd<'a>, mount_type: MountType) -> Self {
        Self {
            pipe,
            pgrp: None,
            mount_type,
            protocol: (5, 5),
            uid: None,
            gid: None,
            strict_expire: false,
            ignore: false,
        }
    }
}

/// A new autofs superblock.
pub fn autofs(
    params: &AutofsParams<'_>,
    source: &Path,
    flags: MountFlags,
) -> Result<DetachedMount, MountError> {
    autofs_context(params, source, flags)?.create()?.mount()
}

/// One to be made. Without `pgrp` its owner is the group of the process that makes it; the pipe must be open there, with the same
/// number.
pub fn autofs_context(
    params: &AutofsParams<'_>,
    source: &Path,
    flags: MountFlags,
) -> Result<Context, MountError> {
    let kind = params.mount_type.to_string();
    let value = |key: &'static str, value: &dyn Display| (key, Some(value.to_string()));
    let mut options = vec![
        // As a number, because kernels before 6.7 know no other way.
        value("fd", &params.pipe.as_raw_fd()),
        value("minproto", &params.protocol.0),
        value("maxproto", &params.protocol.1),
        (kind.as_str(), None),
    ];
    options.extend(params.pgrp.map(|pgrp| value("pgrp", &pgrp)));
    options.extend(params.uid.map(|uid| value("uid", &uid)));
    options.extend(params.gid.map(|gid| value("gid", &gid)));
    options.extend(params.strict_expire.then_some(("strictexpire", None)));
    options.extend(params.ignore.then_some(("ignore", None)));
    Context::new("autofs", source, &options, flags)
}

/// A bind mount of `path` below `dir` (an empty path: of `dir` itself), detached. A trigger at `path`
/// is triggered, as by mount(8).
pub fn bind(dir: impl AsFd, path: &Path, recursive: bool) -> Result<DetachedMount, MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    rustix::mount::open_tree(dir, path, flags).map(DetachedMount).map_err(|errno| at("bind", path, errno))
}

/// How events travel between copies of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Propagation {
    /// To and from the peers.
    Shared = libc::MS_SHARED,
    /// Not at all.
    Private = libc::MS_PRIVATE,
    /// From the master peers only.
    Slave = libc::MS_SLAVE,
    /// Not at all, and it cannot be bound.
    Unbindable = libc::MS_UNBINDABLE,
}

/// A change of existing mounts.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Flags to set.
    pub set: MountFlags,
    /// Flags to clear.
    pub clear: MountFlags,
    /// Propagation to set.
    pub propagation: Option<Propagation>,
    /// Of the whole tree.
    pub recursive: bool,
}

impl Change {
    /// Only the propagation.
    pub fn propagation(to: Propagation, recursive: bool) -> Self {
        Self { set: MountFlags::empty(), clear: MountFlags::empty(), propagation: Some(to), recursive }
    }

    /// Apply to the mount at `path` below `dir` (an empty path: at `dir`). A trigger there is not
    /// triggered.
    pub fn apply(&self, dir: impl AsFd, path: &Path) -> Result<(), MountError> {
        let attributes = libc::mount_attr {
            attr_set: self.set.bits().into(),
            attr_clr: self.clear.bits().into(),
            propagation: self.propagation.map_or(0, |to| to as u64),
            userns_fd: 0,
        };
        let mut flags = libc::AT_NO_AUTOMOUNT | libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
        if self.recursive {
            flags |= libc::AT_RECURSIVE;
        }
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| at("change", path, Errno::INVAL))?;
        // SAFETY: `name` is NUL-ended, and the size is that of the structure.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                dir.as_fd().as_raw_fd(),
                name.as_ptr(),
                flags,
                &attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if result == 0 {
            return Ok(());
        }
        Err(match super::last_errno() {
            Errno::INVAL => MountError::NotMounted(path.into()),
            errno => at("change", path, errno),
        })
    }
}

/// How to unmount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmount {
    /// Only what is not in use.
    Idle,
    /// Out of the namespace now, gone when the last user goes (MNT_DETACH).
    Lazy,
    /// Abort what waits for a dead server first (MNT_FORCE).
    Force,
}

/// Unmount the topmost mount at `path`. Triggers nothing, follows no symbolic link.
pub fn unmount(path: &Path, how: Unmount) -> Result<(), MountError> {
    let flags = UnmountFlags::NOFOLLOW
        | match how {
            Unmount::Idle => UnmountFlags::empty(),
            Unmount::Lazy => UnmountFlags::DETACH,
            Unmount::Force => UnmountFlags::FORCE,
        };
    rustix::mount::unmount(path, flags).map_err(|errno| match errno {
        Errno::BUSY => MountError::Busy(path.into()),
        Errno::INVAL => MountError::NotMounted(path.into()),
        errno => at("unmount", path, errno),
    })
}

fn at(what: &'static str, path: &Path, errno: Errno) -> MountError {
    MountError::At { what, path: path.into(), errno }
}
