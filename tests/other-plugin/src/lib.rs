//! Another vendor's CRIU plugin, as far as a scenario needs one: it takes the hooks that ours takes, too, and notes that
//! they were called in `/tmp/other-plugin.log`.
#![allow(unsafe_code, reason = "the C ABI that CRIU calls")]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io::Write;

const HOOKS: usize = 12;
const NOT_MINE: c_int = -95; // ENOTSUP

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

// SAFETY: nobody writes to it, and all that it points to is static.
unsafe impl Sync for PluginDesc {}

/// What CRIU looks up.
#[unsafe(no_mangle)]
pub static CR_PLUGIN_DESC: PluginDesc = PluginDesc {
    name: c"other".as_ptr(),
    init,
    exit,
    version: 2 << 8,
    max_hooks: HOOKS as c_uint,
    hooks: {
        let mut hooks = [std::ptr::null(); HOOKS];
        hooks[9] = resume as *const c_void;
        hooks[10] = pause as *const c_void;
        hooks[11] = checkpoint as *const c_void;
        hooks
    },
};

fn note(what: &str) {
    let log = std::fs::OpenOptions::new().create(true).append(true).open("/tmp/other-plugin.log");
    // What is not noted fails the scenario.
    let _ = log.and_then(|mut log| writeln!(log, "{what}"));
}

extern "C" fn init(_stage: c_int) -> c_int {
    note("init");
    0
}

extern "C" fn exit(_stage: c_int, _result: c_int) {
    note("exit");
}

extern "C" fn resume(_pid: c_int) -> c_int {
    note("resume");
    NOT_MINE
}

extern "C" fn pause(_pid: c_int) -> c_int {
    note("pause");
    NOT_MINE
}

extern "C" fn checkpoint(_pid: c_int) -> c_int {
    note("checkpoint");
    NOT_MINE
}
