//! Which Kerberos tickets a thread uses, told to the GSSAPI library; loaded when it is needed.

use super::library::{LoadError, library};
use std::ffi::{CString, c_char, c_uint};
use std::ptr::null_mut;

library! {
    /// Its functions give 0 or a code with an error in its upper half.
    Library = &["libgssapi_krb5.so.2"];
    fn gss_krb5_ccache_name(*mut c_uint, *const c_char, *mut *const c_char) -> c_uint;
}

/// Tickets cannot be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// There is no library.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// The library does not know such a cache.
    #[error("{0} is no credential cache")]
    Cache(String),
    /// The name has a NUL byte.
    #[error("the name of a credential cache has a NUL byte")]
    Nul(#[from] std::ffi::NulError),
}

/// Use the tickets of this cache (`FILE:/run/cache`) in what this thread does from now on.
pub fn use_cache(name: &str) -> Result<(), TicketError> {
    let library = Library::get()?;
    let text = CString::new(name)?;
    let mut minor = 0;
    // SAFETY: the place for the code and the name, which is copied, live through the call; nobody wants the name before.
    let code = unsafe { (library.gss_krb5_ccache_name)(&mut minor, text.as_ptr(), null_mut()) };
    if code == 0 { Ok(()) } else { Err(TicketError::Cache(name.into())) }
}
