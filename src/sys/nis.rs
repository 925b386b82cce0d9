//! NIS, by the library that was once part of libc; loaded when it is needed.

use super::KeyValue;
use super::library::{LoadError, library};
use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::ptr::null_mut;

/// Called for each key with its text; not 0 ends the list.
type ForEach = unsafe extern "C" fn(c_uint, *mut c_char, c_int, *mut c_char, c_int, *mut c_char) -> c_int;

/// `struct ypall_callback`.
#[repr(C)]
struct Callback {
    function: ForEach,
    data: *mut c_char,
}

library! {
    /// Its functions give 0 or one of its own numbers.
    Library = &["libnsl.so.2", "libnsl.so.3", "libnsl.so.1"];
    fn yp_get_default_domain(*mut *mut c_char) -> c_int;
    fn yp_match(*const c_char, *const c_char, *const c_char, c_int, *mut *mut c_char, *mut c_int) -> c_int;
    fn yp_all(*const c_char, *const c_char, *const Callback) -> c_int;
    fn yperr_string(c_int) -> *const c_char;
}

/// NIS has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NisError {
    /// There is no library.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// There is no such map.
    #[error("there is no such map")]
    NoMap,
    /// Anything else.
    #[error("NIS: {0}; is ypbind running, and the NIS domain set?")]
    Code(String),
    /// A name has a NUL byte.
    #[error("a name has a NUL byte")]
    Nul(#[from] std::ffi::NulError),
}

const NO_MAP: c_int = 4;
const NO_KEY: c_int = 5;
const NO_MORE: c_int = 8;
/// What the callback is told while there are entries.
const GOOD: c_uint = 1;

impl Library {
    fn check(&self, code: c_int) -> Result<(), NisError> {
        match code {
            0 => Ok(()),
            NO_MAP => Err(NisError::NoMap),
            code => {
                // SAFETY: the library has a static text for every number.
                let text = unsafe { (self.yperr_string)(code) };
                // SAFETY: it ends in NUL.
                Err(NisError::Code(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()))
            }
        }
    }

    fn domain(&self) -> Result<CString, NisError> {
        let mut domain = null_mut();
        // SAFETY: the place lives through the call; it gets a text of the library's own.
        self.check(unsafe { (self.yp_get_default_domain)(&mut domain) })?;
        // SAFETY: after a success it ends in NUL. It is copied at once.
        Ok(unsafe { CStr::from_ptr(domain) }.to_owned())
    }
}

/// The text of a key; `None`: there is no such key. Without a domain that of this machine counts.
pub fn get(domain: Option<&str>, map: &str, key: &[u8]) -> Result<Option<Vec<u8>>, NisError> {
    let library = Library::get()?;
    let domain = domain.map_or_else(|| library.domain(), |name| Ok(CString::new(name)?))?;
    let (map, key) = (CString::new(map)?, CString::new(key)?);
    let key_length = c_int::try_from(key.as_bytes().len()).unwrap_or(c_int::MAX);
    let (mut text, mut length) = (null_mut(), 0);
    // SAFETY: all names and places live through the call.
    let code = unsafe {
        (library.yp_match)(domain.as_ptr(), map.as_ptr(), key.as_ptr(), key_length, &mut text, &mut length)
    };
    if code == NO_KEY {
        return Ok(None);
    }
    library.check(code)?;
    let copy = bytes(text, length);
    // SAFETY: it came from malloc, and nobody else frees it.
    unsafe { libc::free(text.cast()) };
    Ok(Some(copy))
}

/// All keys with their texts.
pub fn list(domain: Option<&str>, map: &str) -> Result<Vec<KeyValue>, NisError> {
    let library = Library::get()?;
    let domain = domain.map_or_else(|| library.domain(), |name| Ok(CString::new(name)?))?;
    let map = CString::new(map)?;
    let mut all: Vec<KeyValue> = Vec::new();
    let callback = Callback { function: collect, data: std::ptr::from_mut(&mut all).cast() };
    // SAFETY: names and callback live through the call; nothing else uses the list meanwhile.
    let code = unsafe { (library.yp_all)(domain.as_ptr(), map.as_ptr(), &callback) };
    if code != NO_MORE {
        library.check(code)?;
    }
    Ok(all)
}

/// Called by the library with a list of pairs.
unsafe extern "C" fn collect(
    status: c_uint,
    key: *mut c_char,
    key_length: c_int,
    text: *mut c_char,
    length: c_int,
    list: *mut c_char,
) -> c_int {
    if status != GOOD {
        return 1;
    }
    // SAFETY: it is what `list` gave, still alive and not used by anybody else.
    let list = unsafe { &mut *list.cast::<Vec<KeyValue>>() };
    list.push((bytes(key, key_length), bytes(text, length)));
    0
}

/// A copy of a text of the library's. Some servers count the NUL at its end.
fn bytes(text: *const c_char, length: c_int) -> Vec<u8> {
    let length = usize::try_from(length).unwrap_or(0);
    if text.is_null() {
        return Vec::new();
    }
    // SAFETY: not null, so there are as many bytes as the library says.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    bytes.strip_suffix(b"\0").unwrap_or(bytes).to_vec()
}
