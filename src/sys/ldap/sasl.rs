//! Logging in by SASL: the library asks for what a mechanism takes.

use super::{Connection, Ld, LdapError};
use std::ffi::{CString, c_char, c_int, c_uint, c_ulong, c_void};
use std::ptr::null_mut;

/// What a mechanism may ask for; empty for nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// Who logs in.
    pub user: String,
    /// The password.
    pub secret: String,
}

/// The secret stays out of logs.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// One question: `sasl_interact_t` of libsasl2.
#[repr(C)]
struct Question {
    id: c_ulong,
    challenge: *const c_char,
    prompt: *const c_char,
    usual: *const c_char,
    answer: *const c_void,
    length: c_uint,
}

/// The end of the questions.
const END: c_ulong = 0;
const AUTHENTICATION_NAME: c_ulong = 0x4002;
const PASSWORD: c_ulong = 0x4004;

/// Never ask the user.
const QUIET: c_uint = 2;

/// As the library wants to read it.
struct Answers {
    user: CString,
    secret: CString,
}

impl Connection {
    /// Log in by a mechanism of SASL; GSSAPI takes the Kerberos ticket that is there.
    pub fn bind_sasl(&mut self, mechanism: &str, login: &Login) -> Result<(), LdapError> {
        let mechanism = CString::new(mechanism)?;
        let mut answers = Answers {
            user: CString::new(login.user.as_str())?,
            secret: CString::new(login.secret.as_str())?,
        };
        // SAFETY: the handle is ours; name and answers live through the call, which is the only one that calls `answer`
        // with them.
        let code = unsafe {
            (self.library.ldap_sasl_interactive_bind_s)(
                self.ld,
                std::ptr::null(),
                mechanism.as_ptr(),
                null_mut(),
                null_mut(),
                QUIET,
                answer,
                std::ptr::from_mut(&mut answers).cast(),
            )
        };
        self.check("logging in by SASL", code)
    }
}

/// Called by the library with `Answers` and a list of questions.
unsafe extern "C" fn answer(_: Ld, _: c_uint, answers: *mut c_void, questions: *mut c_void) -> c_int {
    // SAFETY: it is what `bind_sasl` gave, still alive and not used by anybody else.
    let answers = unsafe { &*answers.cast::<Answers>() };
    let mut question = questions.cast::<Question>();
    loop {
        // SAFETY: the list has a last question with the number `END`, where this loop ends.
        let asked = unsafe { &mut *question };
        let text = match asked.id {
            END => return 0,
            AUTHENTICATION_NAME => &answers.user,
            PASSWORD => &answers.secret,
            // Realm and the user to act for: the usual, else nothing.
            _ => c"",
        };
        asked.answer =
            if text.is_empty() && !asked.usual.is_null() { asked.usual } else { text.as_ptr() }.cast();
        // SAFETY: either text ends in NUL.
        let length = unsafe { std::ffi::CStr::from_ptr(asked.answer.cast()) }.count_bytes();
        asked.length = c_uint::try_from(length).unwrap_or(c_uint::MAX);
        // SAFETY: this was not the last one.
        question = unsafe { question.add(1) };
    }
}
