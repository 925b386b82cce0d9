//! What CRIU exports, resolved when the plugin is loaded: nothing of CRIU's is linked, so that a CRIU
//! that lacks something still loads the plugin.
//!
//! CRIU has no hook for autofs mounts, but it is linked with `-rdynamic`, and its table of file systems is
//! writable. The slots of the autofs entry are found *by value*: those that hold the addresses of
//! `autofs_dump` and `autofs_mount`. Where that does not work out exactly, CRIU's own support stays.
//! Facts: `criu/filesystems.c`, `criu/include/mount.h` and `criu/log.c` of CRIU 4.1 and 4.2.

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// `struct mount_info`, of a mount that CRIU works on: handed back, or read as [`Mount`].
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct MountInfo(*const Mount);

/// Slot `dump` of CRIU's table.
pub type DumpFn = extern "C" fn(MountInfo) -> c_int;
/// Slot `mount`: the mount, its source, type and flags.
pub type MountFn = extern "C" fn(MountInfo, *const c_char, *const c_char, c_ulong) -> c_int;

/// `service_mountpoint`.
type PathFn = extern "C" fn(MountInfo) -> *const c_char;

/// Words of the table's entry that may be one of the slots: all that `struct fstype` has.
const SLOTS: usize = 9;

/// The beginning of `struct mount_info`, the same since CRIU 1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Its id in mountinfo, and its parent's.
    _ids: [c_int; 2],
    /// Number of the superblock, as the kernel encodes it internally (20 bits of minor).
    pub s_dev: c_uint,
}

impl MountInfo {
    /// Its device number; `None` of no mount.
    pub fn read(self) -> Option<Mount> {
        // SAFETY: CRIU keeps it while it calls us, and changes nothing meanwhile; it is longer than this.
        unsafe { self.0.as_ref() }.copied()
    }
}

/// How loud a message is, as CRIU's `-v` counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Level {
    /// Always.
    Error = 1,
    /// `-v1`.
    Warning = 2,
    /// `-v3`.
    Info = 3,
}

/// One line into CRIU's log; nowhere when CRIU does not export its logger.
pub fn log(level: Level, message: &str) {
    type Print = unsafe extern "C" fn(c_uint, *const c_char, ...);
    // SAFETY: the signature of `print_on_level`.
    let print = symbol(c"print_on_level").map(|f| unsafe { std::mem::transmute::<*mut c_void, Print>(f) });
    let prefix = match level {
        Level::Error => "Error (autofs-cr): ",
        Level::Warning => "Warn  (autofs-cr): ",
        Level::Info => "autofs-cr: ",
    };
    let line = CString::new(format!("{prefix}{message}\n").replace('\0', "\u{fffd}"));
    if let (Some(print), Ok(line)) = (print, line) {
        // SAFETY: the format takes one string, which is NUL-ended.
        unsafe { print(level as c_uint, c"%s".as_ptr(), line.as_ptr()) }
    }
}

/// The directory of the images; `None` when it is not open.
pub fn image_dir() -> Option<BorrowedFd<'static>> {
    type Get = unsafe extern "C" fn() -> RawFd;
    // SAFETY: the signature of `criu_get_image_dir`.
    let get = unsafe { std::mem::transmute::<*mut c_void, Get>(symbol(c"criu_get_image_dir")?) };
    // SAFETY: it takes nothing and reads a table of its own.
    let fd = unsafe { get() };
    // SAFETY: CRIU keeps it open from before init until after the last hook.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Where CRIU wants a mount at restore.
pub fn mountpoint(mount: MountInfo) -> Option<PathBuf> {
    let path = (stock()?.mountpoint)(mount);
    // SAFETY: NUL-ended, and CRIU's until the mount callback returns.
    (!path.is_null()).then(|| OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()).into())
}

/// CRIU shall take this for an external resource, as with `--external KEY`. False when it does not.
pub fn add_external(key: &[u8]) -> bool {
    type Add = unsafe extern "C" fn(*mut c_char) -> c_int;
    let (Some(add), Ok(key)) = (symbol(c"add_external"), CString::new(key)) else { return false };
    // SAFETY: the signature of `add_external`.
    let add = unsafe { std::mem::transmute::<*mut c_void, Add>(add) };
    // SAFETY: NUL-ended; CRIU makes a copy.
    unsafe { add(key.into_raw()) == 0 }
}

/// Note in the inventory that a restore needs this plugin.
pub fn require_at_restore(name: &CStr) {
    type Add = unsafe extern "C" fn(*const c_char) -> c_int;
    if let Some(add) = symbol(c"add_inventory_plugin") {
        // SAFETY: the signature of `add_inventory_plugin`.
        let add = unsafe { std::mem::transmute::<*mut c_void, Add>(add) };
        // SAFETY: NUL-ended; CRIU makes a copy.
        unsafe { add(name.as_ptr()) };
    }
}

/// Is this image one that needs the plugin? Tells CRIU that it is here.
pub fn is_required(name: &CStr) -> bool {
    type Check = unsafe extern "C" fn(*const c_char, usize) -> bool;
    let Some(check) = symbol(c"check_and_remove_inventory_plugin") else { return false };
    // SAFETY: the signature of `check_and_remove_inventory_plugin`.
    let check = unsafe { std::mem::transmute::<*mut c_void, Check>(check) };
    // SAFETY: NUL-ended, with its length.
    unsafe { check(name.as_ptr(), name.count_bytes()) }
}

/// CRIU's own functions: those that ours stand in for, and one that is wanted often.
#[derive(Clone, Copy)]
pub struct Stock {
    /// Of a dump.
    pub dump: DumpFn,
    /// Of a restore.
    pub mount: MountFn,
    mountpoint: PathFn,
}

static STOCK: OnceLock<Stock> = OnceLock::new();

/// CRIU's own functions, once they were replaced.
pub fn stock() -> Option<&'static Stock> {
    STOCK.get()
}

/// Why autofs could not be taken over; CRIU's own support stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotTakenOver {
    /// CRIU does not export this.
    Missing(&'static CStr),
    /// Its table has no entry for autofs.
    NoEntry,
    /// The entry does not hold the function (or more than once).
    Slot(&'static CStr),
    /// The entry cannot be written.
    ReadOnly,
}

impl std::fmt::Display for NotTakenOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |name: &CStr| name.to_string_lossy().into_owned();
        match self {
            Self::Missing(symbol) => write!(f, "CRIU does not export {}", name(symbol)),
            Self::NoEntry => f.write_str("CRIU knows no file system autofs"),
            Self::Slot(symbol) => write!(f, "CRIU's entry for autofs does not hold {} once", name(symbol)),
            Self::ReadOnly => f.write_str("CRIU's table of file systems is read-only"),
        }
    }
}

/// Something that every CRIU since 4.1 exports, and this one does not.
pub fn missing() -> Option<&'static CStr> {
    let needed = [
        c"find_fstype_by_name",
        c"autofs_dump",
        c"autofs_mount",
        c"service_mountpoint",
        c"criu_get_image_dir",
        c"add_inventory_plugin",
        c"check_and_remove_inventory_plugin",
    ];
    needed.into_iter().find(|name| symbol(name).is_none())
}

/// Put our functions in the place of CRIU's.
pub fn take_over(dump: DumpFn, mount: MountFn) -> Result<(), NotTakenOver> {
    type Find = unsafe extern "C" fn(*const c_char) -> *const c_void;
    missing().map_or(Ok(()), |name| Err(NotTakenOver::Missing(name)))?;
    // SAFETY: the signature of `find_fstype_by_name`.
    let find = unsafe { std::mem::transmute::<*mut c_void, Find>(need(c"find_fstype_by_name")?) };
    // SAFETY: NUL-ended; it compares names only.
    let entry = unsafe { find(c"autofs".as_ptr()) } as usize;
    let mut words = [0; SLOTS];
    read_words(entry, &mut words).ok_or(NotTakenOver::NoEntry)?;
    let old_dump = need(c"autofs_dump")?;
    let old_mount = need(c"autofs_mount")?;
    let mountpoint = need(c"service_mountpoint")?;
    let dump_slot = slot(&words, old_dump as usize).ok_or(NotTakenOver::Slot(c"autofs_dump"))?;
    let mount_slot = slot(&words, old_mount as usize).ok_or(NotTakenOver::Slot(c"autofs_mount"))?;
    STOCK.get_or_init(|| Stock {
        // SAFETY: the signature of `autofs_dump`.
        dump: unsafe { std::mem::transmute::<*mut c_void, DumpFn>(old_dump) },
        // SAFETY: the signature of `autofs_mount`.
        mount: unsafe { std::mem::transmute::<*mut c_void, MountFn>(old_mount) },
        // SAFETY: the signature of `service_mountpoint`.
        mountpoint: unsafe { std::mem::transmute::<*mut c_void, PathFn>(mountpoint) },
    });
    words[dump_slot] = dump as usize;
    words[mount_slot] = mount as usize;
    write_words(entry, &words).ok_or(NotTakenOver::ReadOnly)
}

/// The one word that has this value.
fn slot(words: &[usize], value: usize) -> Option<usize> {
    let mut found = words.iter().enumerate().filter(|(_, word)| **word == value).map(|(index, _)| index);
    found.next().filter(|_| found.next().is_none())
}

fn need(name: &'static CStr) -> Result<*mut c_void, NotTakenOver> {
    symbol(name).ok_or(NotTakenOver::Missing(name))
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is NUL-ended; the lookup runs no code.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Our own memory by way of the kernel: an address that does not hold is an error, not a crash.
fn read(address: usize, into: &mut [u8]) -> Option<()> {
    let remote = RemoteIoVec { base: address, len: into.len() };
    let length = into.len();
    let got = process_vm_readv(Pid::this(), &mut [IoSliceMut::new(into)], &[remote]);
    (got == Ok(length)).then_some(())
}

fn read_words(address: usize, into: &mut [usize; SLOTS]) -> Option<()> {
    let mut bytes = [0; SLOTS * size_of::<usize>()];
    read(address, &mut bytes)?;
    for (word, bytes) in into.iter_mut().zip(bytes.as_chunks().0) {
        *word = usize::from_ne_bytes(*bytes);
    }
    Some(())
}

fn write_words(address: usize, words: &[usize; SLOTS]) -> Option<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let remote = RemoteIoVec { base: address, len: bytes.len() };
    let put = process_vm_writev(Pid::this(), &[IoSlice::new(&bytes)], &[remote]);
    (put == Ok(bytes.len())).then_some(())
}
