//! OpenLDAP's client library, loaded when it is needed: searches, and all the ways to log in that it knows.
//!
//! What `ldap.conf` says about servers, certificates and ciphers counts as for every other program.

mod answer;
mod sasl;

use super::library::{LoadError, library};
use answer::Message;
pub use answer::{Entry, Values};
pub use sasl::Login;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A handle of the library's.
type Ld = *mut c_void;
/// A message of the library's.
type Msg = *mut c_void;
/// A control of the library's.
type Control = c_void;

/// Bytes with their length.
#[repr(C)]
#[derive(Clone, Copy)]
struct Berval {
    length: c_ulong,
    bytes: *mut c_char,
}

/// Asked by the library for what a login takes.
type Interact = unsafe extern "C" fn(Ld, c_uint, *mut c_void, *mut c_void) -> c_int;

library! {
    /// What is used of it.
    Library = &["libldap.so.2", "libldap-2.5.so.0", "libldap-2.4.so.2"];
    fn ldap_initialize(*mut Ld, *const c_char) -> c_int;
    fn ldap_set_option(Ld, c_int, *const c_void) -> c_int;
    fn ldap_get_option(Ld, c_int, *mut c_void) -> c_int;
    fn ldap_start_tls_s(Ld, *mut *mut Control, *mut *mut Control) -> c_int;
    fn ldap_sasl_bind_s(Ld, *const c_char, *const c_char, *const Berval, *mut *mut Control, *mut *mut Control, *mut *mut Berval) -> c_int;
    fn ldap_sasl_interactive_bind_s(Ld, *const c_char, *const c_char, *mut *mut Control, *mut *mut Control, c_uint, Interact, *mut c_void) -> c_int;
    fn ldap_search_ext_s(Ld, *const c_char, c_int, *const c_char, *mut *mut c_char, c_int, *mut *mut Control, *mut *mut Control, *mut libc::timeval, c_int, *mut Msg) -> c_int;
    fn ldap_first_entry(Ld, Msg) -> Msg;
    fn ldap_next_entry(Ld, Msg) -> Msg;
    fn ldap_get_dn(Ld, Msg) -> *mut c_char;
    fn ldap_get_values_len(Ld, Msg, *const c_char) -> *mut *mut Berval;
    fn ldap_value_free_len(*mut *mut Berval);
    fn ldap_parse_result(Ld, Msg, *mut c_int, *mut *mut c_char, *mut *mut c_char, *mut *mut *mut c_char, *mut *mut *mut Control, c_int) -> c_int;
    fn ldap_msgfree(Msg) -> c_int;
    fn ldap_memfree(*mut c_void);
    fn ldap_create_page_control(Ld, c_int, *mut Berval, c_int, *mut *mut Control) -> c_int;
    fn ldap_parse_pageresponse_control(Ld, *mut Control, *mut c_int, *mut Berval) -> c_int;
    fn ldap_control_find(*const c_char, *mut *mut Control, *mut *mut *mut Control) -> *mut Control;
    fn ldap_control_free(*mut Control);
    fn ldap_controls_free(*mut *mut Control);
    fn ldap_err2string(c_int) -> *const c_char;
    fn ldap_unbind_ext_s(Ld, *mut *mut Control, *mut *mut Control) -> c_int;
    fn ldap_dn2domain(*const c_char, *mut *mut c_char) -> c_int;
    fn ldap_domain2hostlist(*const c_char, *mut *mut c_char) -> c_int;
}

/// Something the server or the library refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LdapError {
    /// There is no library.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// A code of LDAP, or a negative one of the library's.
    #[error("{what}: {meaning}")]
    Code {
        /// What was tried.
        what: &'static str,
        /// The code.
        code: i32,
        /// What it means, with what the server wrote.
        meaning: String,
    },
    /// An argument has a NUL byte.
    #[error("a name or password has a NUL byte")]
    Nul(#[from] std::ffi::NulError),
}

impl LdapError {
    /// The code, if that is what it is.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Code { code, .. } => Some(*code),
            Self::Library(_) | Self::Nul(_) => None,
        }
    }
}

/// The object that was searched below does not exist.
pub const NO_SUCH_OBJECT: i32 = 32;
/// The connection is gone.
pub const SERVER_DOWN: i32 = -1;

/// How deep to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The object itself.
    Base = 0,
    /// All below it.
    Subtree = 2,
}

/// Certificate and key of ours, for servers that want to see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// File with the certificate, in PEM.
    pub certificate: String,
    /// File with its key.
    pub key: String,
}

mod option {
    use std::ffi::c_int;
    pub const REFERRALS: c_int = 0x0008;
    pub const PROTOCOL_VERSION: c_int = 0x0011;
    pub const DIAGNOSTIC_MESSAGE: c_int = 0x0032;
    pub const TIMEOUT: c_int = 0x5002;
    pub const NETWORK_TIMEOUT: c_int = 0x5005;
    pub const TLS_CACERTFILE: c_int = 0x6002;
    pub const TLS_CACERTDIR: c_int = 0x6003;
    pub const TLS_CERTFILE: c_int = 0x6004;
    pub const TLS_KEYFILE: c_int = 0x6005;
    pub const TLS_REQUIRE_CERT: c_int = 0x6006;
    pub const TLS_NEWCTX: c_int = 0x600f;
}

/// A connection. It is made when something is asked.
pub struct Connection {
    library: &'static Library,
    ld: Ld,
}

// SAFETY: a handle of libldap may be used by any thread, one at a time; `&mut self` sees to that.
unsafe impl Send for Connection {}

impl Connection {
    /// To a server by its URI, or to those that `ldap.conf` names. Connecting takes at most `network`, each answer `limit`.
    pub fn new(uri: Option<&str>, network: Duration, limit: Duration) -> Result<Self, LdapError> {
        /// libldap reads ldap.conf at the first call, without a lock of its own.
        static FIRST: Mutex<()> = Mutex::new(());
        let library = Library::get()?;
        let uri = uri.map(CString::new).transpose()?;
        let mut connection = Self { library, ld: null_mut() };
        let code = {
            let _one_at_a_time = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
            let uri = uri.as_ref().map_or(null(), |uri| uri.as_ptr());
            // SAFETY: the place for the handle and the text, or null, live through the call.
            unsafe { (library.ldap_initialize)(&mut connection.ld, uri) }
        };
        connection.check("connecting", code)?;
        connection.set_number(option::PROTOCOL_VERSION, 3)?;
        connection.set_number(option::REFERRALS, 0)?;
        connection.set_time(option::NETWORK_TIMEOUT, network)?;
        connection.set_time(option::TIMEOUT, limit)?;
        Ok(connection)
    }

    /// Show the server a certificate when it asks for one.
    pub fn set_certificate(&mut self, own: &ClientCertificate) -> Result<(), LdapError> {
        // The settings of ldap.conf are in a context that all connections share; a context of our own begins without them.
        for which in [option::TLS_CACERTFILE, option::TLS_CACERTDIR] {
            if let Some(path) = self.library.text_of(null_mut(), which) {
                let path = CString::new(path)?;
                self.set(which, path.as_ptr().cast())?;
            }
        }
        for (which, path) in [(option::TLS_CERTFILE, &own.certificate), (option::TLS_KEYFILE, &own.key)] {
            let path = CString::new(path.as_str())?;
            self.set(which, path.as_ptr().cast())?;
        }
        let mut demand: c_int = 0;
        // SAFETY: this option writes a number; no handle stands for the settings of all connections.
        let code = unsafe {
            (self.library.ldap_get_option)(
                null_mut(),
                option::TLS_REQUIRE_CERT,
                std::ptr::from_mut(&mut demand).cast(),
            )
        };
        self.check("reading an option", code)?;
        self.set_number(option::TLS_REQUIRE_CERT, demand)?;
        self.set_number(option::TLS_NEWCTX, 0)
    }

    /// Encrypt the connection from now on.
    pub fn start_tls(&mut self) -> Result<(), LdapError> {
        // SAFETY: the handle is ours; no controls.
        let code = unsafe { (self.library.ldap_start_tls_s)(self.ld, null_mut(), null_mut()) };
        self.check("starting TLS", code)
    }

    /// Log in with a name and a password; with neither, as nobody.
    pub fn bind_simple(&mut self, dn: &str, password: &str) -> Result<(), LdapError> {
        let dn = CString::new(dn)?;
        let password = CString::new(password)?;
        let length = password.as_bytes().len() as c_ulong;
        let credentials = Berval { length, bytes: password.as_ptr().cast_mut() };
        let (none, answer) = (null_mut(), null_mut());
        // SAFETY: the handle is ours; name and credentials live through the call, which only reads them. No mechanism is
        // a simple login; nobody wants the server's credentials.
        let code = unsafe {
            (self.library.ldap_sasl_bind_s)(self.ld, dn.as_ptr(), null(), &credentials, none, none, answer)
        };
        self.check("logging in", code)
    }

    fn set(&mut self, which: c_int, value: *const c_void) -> Result<(), LdapError> {
        // SAFETY: the handle is ours; callers give a value of the type that the option has, which is copied.
        let code = unsafe { (self.library.ldap_set_option)(self.ld, which, value) };
        self.check("setting an option", code)
    }

    fn set_number(&mut self, which: c_int, value: c_int) -> Result<(), LdapError> {
        self.set(which, std::ptr::from_ref(&value).cast())
    }

    fn set_time(&mut self, which: c_int, time: Duration) -> Result<(), LdapError> {
        self.set(which, std::ptr::from_ref(&timeval(time)).cast())
    }

    /// The error of a code, with what the server wrote.
    fn check(&mut self, what: &'static str, code: c_int) -> Result<(), LdapError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the library has a static text for every number.
        let text = unsafe { (self.library.ldap_err2string)(code) };
        // SAFETY: it ends in NUL.
        let mut meaning = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        // Without a handle it would be what some other connection was told.
        let written = (!self.ld.is_null()).then(|| self.library.text_of(self.ld, option::DIAGNOSTIC_MESSAGE));
        if let Some(written) = written.flatten() {
            meaning = format!("{meaning} ({written})");
        }
        Err(LdapError::Code { what, code, meaning })
    }

    /// What lies below `base` and matches `filter`, in pages, with these attributes. Without a base that of `ldap.conf` counts.
    pub fn search(
        &mut self,
        base: Option<&str>,
        scope: Scope,
        filter: &str,
        attributes: &[&str],
        limit: Duration,
    ) -> Result<Vec<Entry>, LdapError> {
        let (base, filter) = (base.map(CString::new).transpose()?, CString::new(filter)?);
        let names = attributes.iter().map(|name| CString::new(*name)).collect::<Result<Vec<_>, _>>()?;
        let mut list: Vec<*mut c_char> = names.iter().map(|name| name.as_ptr().cast_mut()).collect();
        list.push(null_mut());
        let mut all = Vec::new();
        let mut cookie = Vec::new();
        loop {
            let page = answer::PageControl::new(self, &mut cookie)?;
            let mut controls = [page.control, null_mut()];
            let mut limit = timeval(limit);
            let mut message: Msg = null_mut();
            // SAFETY: all strings, lists (which end in null) and places live through the call; what it writes to `message`
            // is freed by `Message`, on errors, too.
            let code = unsafe {
                (self.library.ldap_search_ext_s)(
                    self.ld,
                    base.as_ref().map_or(null(), |base| base.as_ptr()),
                    scope as c_int,
                    filter.as_ptr(),
                    list.as_mut_ptr(),
                    0,
                    controls.as_mut_ptr(),
                    null_mut(),
                    &mut limit,
                    0,
                    &mut message,
                )
            };
            let message = Message { library: self.library, ld: self.ld, message };
            self.check("searching", code)?;
            message.entries(&names, &mut all);
            cookie = message.cookie();
            if cookie.is_empty() {
                return Ok(all);
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.ld.is_null() {
            // SAFETY: the handle is ours, and nobody uses it after this.
            unsafe { (self.library.ldap_unbind_ext_s)(self.ld, null_mut(), null_mut()) };
        }
    }
}

impl Library {
    /// An option that is a text; `None` when it is not set. No handle stands for the settings of all connections.
    fn text_of(&self, ld: Ld, which: c_int) -> Option<String> {
        let mut text: *mut c_char = null_mut();
        // SAFETY: the handle is alive or null; callers name options that write a string of its own, or null, to the place of
        // a pointer.
        let code = unsafe { (self.ldap_get_option)(ld, which, std::ptr::from_mut(&mut text).cast()) };
        (code == 0).then(|| self.take_string(text)).flatten().filter(|text| !text.is_empty())
    }

    /// A string that the library allocated, freed; `None` for null.
    fn take_string(&self, text: *mut c_char) -> Option<String> {
        if text.is_null() {
            return None;
        }
        // SAFETY: not null, and strings of the library end in NUL.
        let copy = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        // SAFETY: the library allocated it, and nobody else frees it.
        unsafe { (self.ldap_memfree)(text.cast()) };
        Some(copy)
    }
}

fn timeval(time: Duration) -> libc::timeval {
    let seconds = libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX);
    libc::timeval { tv_sec: seconds, tv_usec: time.subsec_micros().into() }
}

/// The servers of a domain as its DNS has them (SRV records), the preferred first, as HOST:PORT. The domain is given
/// as a name in LDAP: `dc=example,dc=com`.
pub fn servers_of(dn: &str) -> Result<Vec<String>, LdapError> {
    let library = Library::get()?;
    let dn = CString::new(dn)?;
    let failed = |what, code| {
        let meaning = "no server is known for this domain".to_owned();
        Err(LdapError::Code { what, code, meaning })
    };
    let mut domain: *mut c_char = null_mut();
    // SAFETY: the name and the place for the result live through the call.
    let code = unsafe { (library.ldap_dn2domain)(dn.as_ptr(), &mut domain) };
    let Some(domain) = library.take_string(domain).filter(|domain| code == 0 && !domain.is_empty()) else {
        return failed("finding the domain of a base", code);
    };
    let domain = CString::new(domain)?;
    let mut hosts: *mut c_char = null_mut();
    // SAFETY: as above.
    let code = unsafe { (library.ldap_domain2hostlist)(domain.as_ptr(), &mut hosts) };
    match library.take_string(hosts) {
        Some(hosts) if code == 0 => Ok(hosts.split_whitespace().map(str::to_owned).collect()),
        _ => failed("asking DNS for LDAP servers", code),
    }
}
