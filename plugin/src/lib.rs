//! The CRIU plugin: containers carry their autofs mounts.
//!
//! CRIU loads it (`/usr/lib/criu/`, or `--libdir`), finds [`CR_PLUGIN_DESC`] and calls its hooks. This
//! file is the C ABI and nothing else. Facts: `criu/include/criu-plugin.h` of CRIU 4.1 and 4.2.
#![allow(unsafe_code, reason = "the C ABI that CRIU calls")]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::panic::catch_unwind;

/// Plugin interface 0.2.0. CRIU treats 0.1.0 as its old interface and would free the descriptor.
const VERSION: c_uint = 2 << 8;

/// Hooks that we declare. CRIU refuses a plugin (and fails every dump) that declares more than it
/// knows itself, so this is the number of the oldest CRIU that is served, 4.1.
const HOOKS: usize = 12;

/// `cr_plugin_desc_t`.
#[repr(C)]
pub struct PluginDesc {
    name: *const c_char,
    init: extern "C" fn(c_int) -> c_int,
    exit: extern "C" fn(c_int, c_int),
    version: c_uint,
    max_hooks: c_uint,
    hooks: [*const c_void; HOOKS],
}

// SAFETY: nobody writes to it: CRIU reads it, and all that it points to is static.
unsafe impl Sync for PluginDesc {}

/// What CRIU looks up in the library.
#[unsafe(no_mangle)]
pub static CR_PLUGIN_DESC: PluginDesc = PluginDesc {
    name: c"autofs-cr".as_ptr(),
    init,
    exit,
    version: VERSION,
    max_hooks: HOOKS as c_uint,
    hooks: [std::ptr::null(); HOOKS],
};

/// A failing `init` would break every run of CRIU on the machine: whatever happens, it succeeds.
extern "C" fn init(stage: c_int) -> c_int {
    let _ = catch_unwind(|| stage);
    0
}

extern "C" fn exit(stage: c_int, result: c_int) {
    let _ = catch_unwind(|| (stage, result));
}
