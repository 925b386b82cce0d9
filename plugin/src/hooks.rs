//! What happens at each hook: the library is asked, its answers go to CRIU's log.

use crate::criu::{self, Level, MountInfo};
use autofs_cr::container::{Attendant, Copies, Dump, ForeignError, Lull, LullError, RENUMBER, Restore};
use autofs_cr::sys::DevNum;
use autofs_cr::sys::mount::MountFlags;
use std::ffi::{CStr, c_int, c_ulong};
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The plugin's name, also in CRIU's inventory.
pub const NAME: &CStr = c"autofs-cr";

/// What CRIU is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// `criu dump`.
    Dump,
    /// `criu pre-dump`: memory only, nothing for us.
    PreDump,
    /// `criu restore`.
    Restore,
}

impl Stage {
    /// CRIU's number.
    pub fn of(number: c_int) -> Option<Self> {
        [Self::Dump, Self::PreDump, Self::Restore].into_iter().nth(usize::try_from(number).ok()?)
    }
}

/// Between hooks. The root task of a restore has a copy of its own, made by fork.
#[derive(Default)]
struct State {
    stage: Option<Stage>,
    /// From the beginning of a dump until the facts are gathered.
    attendant: Option<Attendant>,
    /// From before the first task is stopped until all are.
    lull: Option<Lull>,
    /// There was one, or none is wanted.
    lulled: bool,
    /// The facts were gathered, or there are none.
    looked: bool,
    /// Nobody waits for the answer to a request.
    quiet: bool,
    dump: Option<Dump>,
    /// The image of all mounts, to be appended to.
    images: Option<File>,
    /// The facts or the images could not be read: no autofs mount is dumped or restored, rather than half of it.
    failed: bool,
    restore: Option<Restore>,
    /// Of the host's mounts.
    copies: Option<Copies>,
    /// The mounts have their masters.
    attached: bool,
    /// In the root task: how many mounts are made.
    mounted: usize,
}

/// Microseconds that this process has spent here since it began with hooks, and of these on a processor.
static SPENT: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Count time: by the clock, and on a processor.
pub fn spent(time: Duration, busy: Duration) {
    for (all, more) in SPENT.iter().zip([time, busy]) {
        all.fetch_add(more.as_micros() as u64, Ordering::Relaxed);
    }
}

/// To CRIU's log: what we cost.
pub fn tell_time() {
    let [time, busy] = SPENT.each_ref().map(|spent| spent.swap(0, Ordering::Relaxed));
    criu::log(Level::Info, &format!("{time} us in the plugin, {busy} on a processor"));
}

fn forget_time() {
    SPENT.iter().for_each(|spent| spent.store(0, Ordering::Relaxed));
}

/// In the root task: one more mount. With the last one its time is told; it began as a copy of CRIU's, which tells of
/// its own.
pub fn mounted() {
    let mut state = state();
    state.mounted += 1;
    if state.restore.as_ref().is_some_and(|restore| restore.len() == state.mounted) {
        tell_time();
    }
}

static STATE: Mutex<State> = Mutex::new(State {
    stage: None,
    attendant: None,
    lull: None,
    lulled: false,
    looked: false,
    quiet: false,
    dump: None,
    images: None,
    failed: false,
    restore: None,
    copies: None,
    attached: false,
    mounted: 0,
});

fn state() -> MutexGuard<'static, State> {
    // CRIU has one thread; after a panic the state is as good as it was.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CRIU begins.
pub fn init(stage: Stage) {
    let mut state = state();
    *state = State { stage: Some(stage), ..State::default() };
    forget_time();
    if stage == Stage::PreDump {
        return;
    }
    if let Err(why) = criu::take_over(crate::dump, crate::mount) {
        criu::log(Level::Warning, &format!("CRIU's own support of autofs stays: {why}"));
        return;
    }
    if stage == Stage::Dump {
        match Attendant::start() {
            Ok(attendant) => state.attendant = Some(attendant),
            // Another try when it is wanted.
            Err(errno) => criu::log(Level::Warning, &format!("a process apart: {errno}")),
        }
    }
    if stage == Stage::Restore {
        // Files of ours may be left of an earlier dump to the same directory.
        if criu::is_required(NAME) {
            open_images(&mut state);
        }
        // Where this fails CRIU finds no mapping for the mounts, and ends.
        match take_externals() {
            Ok(copies) => state.copies = copies,
            Err(error) => criu::log(Level::Error, &error.to_string()),
        }
    }
}

/// Restore: CRIU binds the host's mounts from copies.
fn take_externals() -> Result<Option<Copies>, ForeignError> {
    let Some(dir) = criu::image_dir() else { return Ok(None) };
    let copies = autofs_cr::container::copies(dir)?;
    copies.warnings.iter().for_each(|line| criu::log(Level::Warning, line));
    for (name, place) in &copies.places {
        criu::add_external(&[b"mnt[", name.as_bytes(), b"]:", place.as_os_str().as_bytes()].concat());
    }
    Ok(Some(copies))
}

fn open_images(state: &mut State) {
    let renumber = std::env::var_os(RENUMBER).is_some();
    match criu::image_dir().map(|dir| Restore::open(dir, renumber)) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some((restore, unclaimed)))) => {
            unclaimed.iter().for_each(|line| criu::log(Level::Warning, line));
            criu::log(Level::Info, &format!("{} autofs mounts in the images", restore.len()));
            state.restore = Some(restore);
        }
        Some(Err(error)) => {
            criu::log(Level::Error, &error.to_string());
            state.failed = true;
        }
    }
}

/// Dump: task `pid` is about to be stopped, the root first, when nobody is.
pub fn stopping(pid: c_int) {
    let mut state = state();
    let first = !std::mem::replace(&mut state.lulled, true);
    if state.stage != Some(Stage::Dump) || !first || criu::stock().is_none() {
        return;
    }
    let attendant = state.attendant.take().map_or_else(Attendant::start, Ok);
    let lull = attendant.map_err(LullError::Apart).and_then(|attendant| {
        let lull = Lull::begin(&attendant, pid);
        state.attendant = Some(attendant);
        lull
    });
    match lull {
        Ok(None) => dismiss(&mut state),
        Ok(Some(lull)) => {
            criu::log(Level::Info, &format!("{} tasks sleep until CRIU has stopped them", lull.len()));
            lull.warnings().iter().for_each(|line| criu::log(Level::Warning, line));
            state.lull = Some(lull);
        }
        // CRIU may still be lucky. Another one reads.
        Err(error @ LullError::Refused(_)) => {
            criu::log(Level::Warning, &error.to_string());
            dismiss(&mut state);
        }
        Err(error) => {
            criu::log(Level::Error, &error.to_string());
            state.failed = true;
        }
    }
}

/// It holds nobody, and is not wanted.
fn dismiss(state: &mut State) {
    state.attendant.take().into_iter().for_each(Attendant::end);
}

/// Dump: every task of the tree is stopped. Called once for each; `pid` is the root first. False when the dump must end here: a task
/// may still sleep, or the mounts cannot be dumped.
pub fn stopped(pid: c_int) -> bool {
    let mut state = state();
    look(&mut state, pid);
    !state.failed
}

fn look(state: &mut State, pid: c_int) {
    if let (Some(lull), Some(attendant)) = (state.lull.take(), &state.attendant) {
        let errors = lull.end(attendant);
        errors.iter().for_each(|error| criu::log(Level::Error, error));
        // A task must not be dumped asleep.
        state.quiet = errors.is_empty();
        state.failed |= !state.quiet;
    }
    let first = !std::mem::replace(&mut state.looked, true);
    if state.stage != Some(Stage::Dump) || !first || state.failed || criu::stock().is_none() {
        return;
    }
    match Dump::begin(pid, state.quiet, state.attendant.take()) {
        Ok(None) => {}
        Ok(Some(dump)) => {
            criu::log(Level::Info, &format!("{} autofs mounts in the container", dump.places()));
            dump.warnings().iter().for_each(|line| criu::log(Level::Warning, line));
            criu::require_at_restore(NAME);
            state.images = if clear_images() { save(&dump.mounts_image()) } else { None };
            state.failed = state.images.is_none()
                || !save_all([dump.parked_image(), dump.foreign_image()])
                || !give_externals(&dump);
            // Only the host's mounts: none is dumped.
            let none = dump.places() == 0;
            state.dump = Some(dump);
            if none && !complete(state) {
                state.failed = true;
            }
        }
        Err(error) => {
            criu::log(Level::Error, &error.to_string());
            state.failed = true;
        }
    }
}

/// What takes longest is done beside CRIU's own work, until it is wanted. False when it failed.
fn complete(state: &mut State) -> bool {
    let Some(dump) = &mut state.dump else { return false };
    match dump.complete() {
        Ok(None) => true,
        Ok(Some(warnings)) => {
            warnings.iter().for_each(|line| criu::log(Level::Warning, line));
            save_all([dump.roots_image(), dump.cgroups_image()])
        }
        Err(error) => {
            criu::log(Level::Error, &error.to_string());
            false
        }
    }
}

fn save_all(files: [Option<autofs_cr::image::File>; 2]) -> bool {
    files.into_iter().flatten().all(|file| save(&file).is_some())
}

/// The host's mounts are not CRIU's.
fn give_externals(dump: &Dump) -> bool {
    let host = criu::image_dir().map(|dir| dump.record_host(dir)).unwrap_or_default();
    host.iter().for_each(|line| criu::log(Level::Warning, line));
    dump.externals().all(|(place, name)| {
        criu::log(Level::Info, &format!("{} is the host's: {name}", place.display()));
        let key = [b"mnt[", place.as_os_str().as_bytes(), b"]:", name.as_bytes()].concat();
        let added = criu::add_external(&key);
        if !added {
            criu::log(Level::Error, "CRIU takes no external mounts from a plugin");
        }
        added
    })
}

/// Dump: the image of one superblock.
pub fn dump(mount: MountInfo) -> c_int {
    let mut state = state();
    if state.failed {
        return -1;
    }
    if state.dump.is_some() && !complete(&mut state) {
        state.failed = true;
        return -1;
    }
    let State { dump: Some(dump), images: Some(images), .. } = &mut *state else {
        criu::log(
            Level::Warning,
            "nothing is known of the container's autofs mounts: CRIU dumps this one itself",
        );
        return criu::stock().map_or(-1, |stock| (stock.dump)(mount));
    };
    let failed = |error: &dyn std::fmt::Display| {
        criu::log(Level::Error, &error.to_string());
        -1
    };
    let Some(read) = mount.read() else { return failed(&"CRIU describes no mount") };
    match dump.image(dev(read.s_dev)).map(|messages| images.write_all(&messages)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => failed(&format!("the image of the mounts: {error}")),
        Err(error) => failed(&error),
    }
}

/// What an earlier dump has left there would be read at a restore. False when it stays.
fn clear_images() -> bool {
    let cleared = criu::image_dir().map_or(Ok(()), autofs_cr::image::criu::clear);
    let failed =
        |errno| criu::log(Level::Error, &format!("images of an earlier dump cannot be removed: {errno}"));
    cleared.map_err(failed).is_ok()
}

/// Write an image; what goes wrong is logged.
fn save(file: &autofs_cr::image::File) -> Option<File> {
    let Some(dir) = criu::image_dir() else {
        criu::log(Level::Error, "CRIU's image directory is not open");
        return None;
    };
    let written = write(dir, &file.name, &file.bytes);
    written.map_err(|error| criu::log(Level::Error, &format!("{}: {error}", file.name))).ok()
}

fn write(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> std::io::Result<File> {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::Mode;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// Restore, in the root task: one superblock. `None`: the image is CRIU's own.
pub fn mount(mount: MountInfo, flags: c_ulong) -> Option<c_int> {
    let mut state = state();
    let first = state.mounted == 0;
    if first {
        forget_time();
    }
    if state.failed {
        return Some(-1);
    }
    let restore = state.restore.as_mut()?;
    if first && let Err(error) = restore.make_cgroups() {
        criu::log(Level::Warning, &error.to_string());
    }
    let dev = dev(mount.read()?.s_dev);
    if !restore.has(dev) {
        return None;
    }
    let path = criu::mountpoint(mount)?;
    Some(match restore.mount(dev, &path, mount_flags(flags)) {
        Ok(()) => 0,
        Err(error) => {
            criu::log(Level::Error, &error.to_string());
            -1
        }
    })
}

/// Restore: every task is whole and stopped. Called once for each; `pid` is the root first.
pub fn whole(pid: c_int) {
    let mut state = state();
    if std::mem::replace(&mut state.attached, true) {
        return;
    }
    if let Some(copies) = &state.copies {
        copies.keep();
    }
    let Some(restore) = state.restore.take() else { return };
    let count = restore.len();
    let errors = restore.attach(pid);
    for error in &errors {
        criu::log(Level::Error, &error.to_string());
    }
    criu::log(Level::Info, &format!("{} autofs mounts, {} without a master", count, errors.len()));
}

/// CRIU ends. What is held goes back.
pub fn exit() {
    let state = std::mem::take(&mut *state());
    if let (Some(dump), Some(dir)) = (&state.dump, criu::image_dir()) {
        dump.name_externals(dir).err().iter().for_each(|error| criu::log(Level::Error, &error.to_string()));
    }
    let errors = state.dump.map(Dump::end).unwrap_or_default();
    errors.iter().for_each(|error| criu::log(Level::Error, error));
}

/// From the kernel's internal encoding, as CRIU keeps it.
fn dev(s_dev: u32) -> DevNum {
    DevNum { major: s_dev >> 20, minor: s_dev & 0xf_ffff }
}

/// Flags of mount(2) that are flags of the one mount.
fn mount_flags(flags: c_ulong) -> MountFlags {
    let pairs = [
        (libc::MS_RDONLY, MountFlags::MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, MountFlags::MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, MountFlags::MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, MountFlags::MOUNT_ATTR_NOEXEC),
        (libc::MS_NOATIME, MountFlags::MOUNT_ATTR_NOATIME),
        (libc::MS_NODIRATIME, MountFlags::MOUNT_ATTR_NODIRATIME),
    ];
    let set = pairs.into_iter().filter(|(flag, _)| flags & flag != 0).map(|(_, attribute)| attribute);
    set.fold(MountFlags::empty(), |all, one| all | one)
}
