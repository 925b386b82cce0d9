//! SSSD's library for automounters, loaded when it is needed.

use super::library::{LoadError, library};
use super::{Errno, KeyValue};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

/// Where distributions have it: it is no library for everybody, so it is not where the others are.
const FILES: &[&str] = &[
    #[cfg(target_arch = "x86_64")]
    "/usr/lib/x86_64-linux-gnu/sssd/modules/libsss_autofs.so",
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/aarch64-linux-gnu/sssd/modules/libsss_autofs.so",
    "/usr/lib64/sssd/modules/libsss_autofs.so",
    "/usr/lib/sssd/modules/libsss_autofs.so",
];

library! {
    /// Its functions give 0 or an errno; texts are allocated for the caller.
    Library = FILES;
    fn _sss_setautomntent(*const c_char, *mut *mut c_void) -> c_int;
    fn _sss_getautomntent_r(*mut *mut c_char, *mut *mut c_char, *mut c_void) -> c_int;
    fn _sss_getautomntbyname_r(*const c_char, *mut *mut c_char, *mut c_void) -> c_int;
    fn _sss_endautomntent(*mut *mut c_void) -> c_int;
}

library! {
    /// Old ones do not have this.
    Protocol = FILES;
    fn _sss_auto_protocol_version(c_uint) -> c_uint;
}

/// A map of SSSD.
pub struct SssMap {
    library: &'static Library,
    context: *mut c_void,
}

// SAFETY: the context belongs to no thread; `&mut self` keeps calls apart.
unsafe impl Send for SssMap {}

/// SSSD refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SssError {
    /// There is no library.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// NOENT: there is no such map or key. HOSTDOWN: SSSD has lost its server and does not remember the map.
    #[error("sssd: {0}; is it running, with autofs among its services?")]
    Errno(Errno),
    /// A name has a NUL byte.
    #[error("a name has a NUL byte")]
    Nul(#[from] std::ffi::NulError),
}

fn check(code: c_int) -> Result<(), SssError> {
    if code == 0 { Ok(()) } else { Err(SssError::Errno(Errno::from_raw_os_error(code))) }
}

/// A text that the library allocated with malloc, freed.
fn take(text: *mut c_char) -> Vec<u8> {
    if text.is_null() {
        return Vec::new();
    }
    // SAFETY: not null, and texts of the library end in NUL.
    let copy = unsafe { CStr::from_ptr(text) }.to_bytes().to_vec();
    // SAFETY: it came from malloc, and nobody else frees it.
    unsafe { libc::free(text.cast()) };
    copy
}

impl SssMap {
    /// A map by its name.
    pub fn open(name: &str) -> Result<Self, SssError> {
        let library = Library::get()?;
        if let Ok(protocol) = Protocol::get() {
            // With version 1 it tells a server that is down from a key that is not there.
            // SAFETY: a plain number in and out.
            unsafe { (protocol._sss_auto_protocol_version)(1) };
        }
        let name = CString::new(name)?;
        let mut context = null_mut();
        // SAFETY: name and place live through the call.
        check(unsafe { (library._sss_setautomntent)(name.as_ptr(), &mut context) })?;
        Ok(Self { library, context })
    }

    /// The text of a key; `None`: there is no such key.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, SssError> {
        let key = CString::new(key)?;
        let mut text = null_mut();
        // SAFETY: the context is alive; key and place live through the call.
        let code = unsafe { (self.library._sss_getautomntbyname_r)(key.as_ptr(), &mut text, self.context) };
        found(check(code).map(|()| take(text)))
    }

    /// The next key with its text; `None` at the end. A map is listed once.
    pub fn next_entry(&mut self) -> Result<Option<KeyValue>, SssError> {
        let (mut key, mut text) = (null_mut(), null_mut());
        // SAFETY: the context is alive; the places live through the call.
        let code = unsafe { (self.library._sss_getautomntent_r)(&mut key, &mut text, self.context) };
        found(check(code).map(|()| (take(key), take(text))))
    }
}

fn found<T>(result: Result<T, SssError>) -> Result<Option<T>, SssError> {
    match result {
        Err(SssError::Errno(Errno::NOENT)) => Ok(None),
        result => result.map(Some),
    }
}

impl Drop for SssMap {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nobody uses it after this.
        unsafe { (self.library._sss_endautomntent)(&mut self.context) };
    }
}
