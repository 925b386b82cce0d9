//! Hesiod, records of a directory in the domain name system, by its own library; loaded when it is needed.

use super::library::{LoadError, library};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{Error, ErrorKind};
use std::ptr::null_mut;

library! {
    /// Its functions set errno.
    Library = &["libhesiod.so.0"];
    fn hesiod_init(*mut *mut c_void) -> c_int;
    fn hesiod_end(*mut c_void);
    fn hesiod_resolve(*mut c_void, *const c_char, *const c_char) -> *mut *mut c_char;
    fn hesiod_free_list(*mut c_void, *mut *mut c_char);
}

/// Hesiod has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HesiodError {
    /// There is no library.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// Its configuration makes no sense.
    #[error("hesiod: {0}; look at /etc/hesiod.conf")]
    Setup(String),
    /// No server answers.
    #[error("hesiod: {0}; do the servers of /etc/resolv.conf answer?")]
    Server(String),
    /// A name has a NUL byte.
    #[error("a name has a NUL byte")]
    Nul(#[from] std::ffi::NulError),
}

/// A context of the library's.
struct Context(&'static Library, *mut c_void);

impl Context {
    fn new() -> Result<Self, HesiodError> {
        let library = Library::get()?;
        let mut context = null_mut();
        // SAFETY: the place lives through the call.
        match unsafe { (library.hesiod_init)(&mut context) } {
            0 => Ok(Self(library, context)),
            _ => Err(HesiodError::Setup(Error::last_os_error().to_string())),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it came from hesiod_init, and nobody uses it any more.
        unsafe { (self.0.hesiod_end)(self.1) };
    }
}

/// The records that a name has of a type, in the server's order; none when it has none.
pub fn resolve(name: &[u8], of_type: &str) -> Result<Vec<Vec<u8>>, HesiodError> {
    let (name, of_type) = (CString::new(name)?, CString::new(of_type)?);
    let context = Context::new()?;
    // SAFETY: context and names live through the call.
    let list = unsafe { (context.0.hesiod_resolve)(context.1, name.as_ptr(), of_type.as_ptr()) };
    if list.is_null() {
        return match Error::last_os_error() {
            error if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            error => Err(HesiodError::Server(error.to_string())),
        };
    }
    let mut records = Vec::new();
    let mut next = list;
    // SAFETY: the list ends with a null pointer, and this loop does not go past it.
    while let Some(record) = unsafe { next.as_ref() }.filter(|record| !record.is_null()) {
        // SAFETY: each record ends in NUL. It is copied at once.
        records.push(unsafe { CStr::from_ptr(*record) }.to_bytes().to_vec());
        // SAFETY: there is another place behind one that is not null.
        next = unsafe { next.add(1) };
    }
    // SAFETY: it came from this context, and nobody uses it any more.
    unsafe { (context.0.hesiod_free_list)(context.1, list) };
    Ok(records)
}
