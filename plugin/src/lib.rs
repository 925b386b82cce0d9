//! The CRIU plugin: containers carry their autofs mounts.
//!
//! CRIU loads it (`/usr/lib/criu/`, or `--libdir`), finds [`CR_PLUGIN_DESC`] and calls its hooks. This
//! file is the C ABI and the guard around it; `criu.rs` is what CRIU exports; the work is done by
//! `autofs_cr::container`. Facts: `criu/include/criu-plugin.h` of CRIU 4.1 and 4.2.
#![allow(unsafe_code, reason = "the C ABI that CRIU calls")]

mod criu;
mod hooks;

use autofs_cr::sys::process::processor_time;
use hooks::Stage;
use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

// The unwinder becomes part of the library: CRIU has no libgcc_s, and to load that takes as long as to load all the rest.
#[link(name = "gcc_eh")]
unsafe extern "C" {}

/// Plugin interface 0.2.0. CRIU treats 0.1.0 as its old interface and would free the descriptor.
const VERSION: c_uint = 2 << 8;

/// Hooks that we declare. CRIU refuses a plugin (and fails every dump and restore) that declares more than it
/// knows itself, so this is the number of the oldest CRIU that is served, 4.1; to an older one we declare none.
const HOOKS: usize = 12;

/// Hook numbers.
const RESUME_DEVICES_LATE: usize = 9;
const PAUSE_DEVICES: usize = 10;
const CHECKPOINT_DEVICES: usize = 11;

/// `cr_plugin_desc_t`.
#[repr(C)]
pub struct PluginDesc {
    name: *const c_char,
    init: extern "C" fn(c_int) -> c_int,
    exit: extern "C" fn(c_int, c_int),
    version: c_uint,
    max_hooks: AtomicU32,
    hooks: [*const c_void; HOOKS],
}

// SAFETY: nobody writes to it once it is loaded: CRIU reads it, and all that it points to is static.
unsafe impl Sync for PluginDesc {}

/// What CRIU looks up in the library.
#[unsafe(no_mangle)]
pub static CR_PLUGIN_DESC: PluginDesc = PluginDesc {
    name: hooks::NAME.as_ptr(),
    init,
    exit,
    version: VERSION,
    max_hooks: AtomicU32::new(HOOKS as c_uint),
    hooks: {
        let mut hooks = [std::ptr::null(); HOOKS];
        hooks[RESUME_DEVICES_LATE] = resume_devices_late as *const c_void;
        hooks[PAUSE_DEVICES] = pause_devices as *const c_void;
        hooks[CHECKPOINT_DEVICES] = checkpoint_devices as *const c_void;
        hooks
    },
};

/// Run when the library is loaded, before CRIU reads the description.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = declare_hooks;

extern "C" fn declare_hooks() {
    if criu::missing().is_some() {
        CR_PLUGIN_DESC.max_hooks.store(0, Ordering::Relaxed);
    }
}

/// Any other answer ends CRIU's chain, and the plugins after us would not run: so always this one.
const NOT_MINE: c_int = -libc::ENOTSUP;
/// But where the dump must not go on.
const FAILED: c_int = -1;

/// A failing `init` would break every run of CRIU on the machine: whatever happens, it succeeds.
extern "C" fn init(stage: c_int) -> c_int {
    guard((), || Stage::of(stage).map_or((), hooks::init));
    0
}

extern "C" fn exit(_stage: c_int, _result: c_int) {
    guard((), hooks::exit);
    catch((), hooks::tell_time);
}

extern "C" fn pause_devices(pid: c_int) -> c_int {
    guard((), || hooks::stopping(pid));
    NOT_MINE
}

extern "C" fn checkpoint_devices(pid: c_int) -> c_int {
    if guard(true, || hooks::stopped(pid)) { NOT_MINE } else { FAILED }
}

extern "C" fn resume_devices_late(pid: c_int) -> c_int {
    guard((), || hooks::whole(pid));
    NOT_MINE
}

/// In the place of CRIU's `autofs_dump`.
pub(crate) extern "C" fn dump(mount: criu::MountInfo) -> c_int {
    guard(-1, || hooks::dump(mount))
}

/// In the place of CRIU's `autofs_mount`.
pub(crate) extern "C" fn mount(
    mount: criu::MountInfo,
    source: *const c_char,
    fstype: *const c_char,
    flags: c_ulong,
) -> c_int {
    let stock = || criu::stock().map_or(-1, |stock| (stock.mount)(mount, source, fstype, flags));
    let mounted = guard(-1, || hooks::mount(mount, flags).unwrap_or_else(stock));
    catch((), hooks::mounted);
    mounted
}

/// No panic leaves the library; time is counted.
fn guard<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    let (start, before) = (Instant::now(), processor_time());
    let result = catch(otherwise, body);
    hooks::spent(start.elapsed(), processor_time().saturating_sub(before));
    result
}

fn catch<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        let _ = catch_unwind(|| criu::log(criu::Level::Error, "a panic in the plugin; see standard error"));
        otherwise
    })
}
