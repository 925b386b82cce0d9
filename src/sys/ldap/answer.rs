//! Reading what a search found.

use super::{Berval, Connection, Control, Ld, LdapError, Library, Msg};
use std::ffi::{CStr, CString, c_int};
use std::ptr::null_mut;

/// Entries in one answer. Servers that are asked for more at once may refuse.
const PAGE: c_int = 1000;
/// Number of the control that asks for a page, and of the one that answers it.
const PAGED_RESULTS: &CStr = c"1.2.840.113556.1.4.319";

/// An attribute with its values.
pub type Values = (String, Vec<Vec<u8>>);

/// An object that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub dn: String,
    /// Those of its attributes that were asked for and are there.
    pub attributes: Vec<Values>,
}

impl Entry {
    /// The values of an attribute; none when it is not there. The case of names does not matter.
    pub fn values(&self, attribute: &str) -> &[Vec<u8>] {
        let found = self.attributes.iter().find(|(name, _)| name.eq_ignore_ascii_case(attribute));
        found.map_or(&[], |(_, values)| values)
    }
}

/// What a search gave, in the library's memory.
pub(super) struct Message {
    pub(super) library: &'static Library,
    pub(super) ld: Ld,
    pub(super) message: Msg,
}

impl Drop for Message {
    fn drop(&mut self) {
        if !self.message.is_null() {
            // SAFETY: the message is ours, and nobody uses it after this.
            unsafe { (self.library.ldap_msgfree)(self.message) };
        }
    }
}

impl Message {
    /// Append its entries.
    pub(super) fn entries(&self, attributes: &[CString], all: &mut Vec<Entry>) {
        let library = self.library;
        // SAFETY: handle and message are alive; the entry that it gives lives as long as the message.
        let mut entry = unsafe { (library.ldap_first_entry)(self.ld, self.message) };
        while !entry.is_null() {
            // SAFETY: as above; the name is allocated for us.
            let dn = unsafe { (library.ldap_get_dn)(self.ld, entry) };
            let values = |name: &CString| {
                let values = self.values(entry, name);
                (!values.is_empty()).then(|| (name.to_string_lossy().into_owned(), values))
            };
            let attributes = attributes.iter().filter_map(values).collect();
            all.push(Entry { dn: library.take_string(dn).unwrap_or_default(), attributes });
            // SAFETY: as above.
            entry = unsafe { (library.ldap_next_entry)(self.ld, entry) };
        }
    }

    fn values(&self, entry: Msg, attribute: &CStr) -> Vec<Vec<u8>> {
        // SAFETY: handle, entry and name are alive; the list is allocated for us.
        let list = unsafe { (self.library.ldap_get_values_len)(self.ld, entry, attribute.as_ptr()) };
        let mut values = Vec::new();
        if list.is_null() {
            return values;
        }
        let mut place = list;
        loop {
            // SAFETY: the list ends in null, where this loop ends, too.
            let value = unsafe { *place };
            if value.is_null() {
                break;
            }
            // SAFETY: every element before the end is a value of the library's.
            values.push(unsafe { *value }.copy());
            // SAFETY: this was not the end.
            place = unsafe { place.add(1) };
        }
        // SAFETY: the list is ours, and nobody uses it after this.
        unsafe { (self.library.ldap_value_free_len)(list) };
        values
    }

    /// Where the next page begins; empty: there is none.
    pub(super) fn cookie(&self) -> Vec<u8> {
        let mut controls: *mut *mut Control = null_mut();
        let none = null_mut();
        // SAFETY: handle and message are alive; of what could be written only the controls are wanted. The message is not
        // freed here (0).
        let code = unsafe {
            (self.library.ldap_parse_result)(
                self.ld,
                self.message,
                none,
                null_mut(),
                null_mut(),
                null_mut(),
                &mut controls,
                0,
            )
        };
        if code != 0 || controls.is_null() {
            return Vec::new();
        }
        let cookie = self.cookie_in(controls);
        // SAFETY: the list was allocated for us, and nobody uses it after this.
        unsafe { (self.library.ldap_controls_free)(controls) };
        cookie
    }

    fn cookie_in(&self, controls: *mut *mut Control) -> Vec<u8> {
        // SAFETY: the list is alive; what is found lives as long as the list.
        let control =
            unsafe { (self.library.ldap_control_find)(PAGED_RESULTS.as_ptr(), controls, null_mut()) };
        if control.is_null() {
            return Vec::new();
        }
        let mut count = 0;
        let mut cookie = Berval { length: 0, bytes: null_mut() };
        // SAFETY: handle and control are alive; the bytes of the cookie are allocated for us.
        let code = unsafe {
            (self.library.ldap_parse_pageresponse_control)(self.ld, control, &mut count, &mut cookie)
        };
        if code != 0 {
            return Vec::new();
        }
        let copy = cookie.copy();
        // SAFETY: they are ours, or null, which may be freed.
        unsafe { (self.library.ldap_memfree)(cookie.bytes.cast()) };
        copy
    }
}

impl Berval {
    fn copy(self) -> Vec<u8> {
        if self.bytes.is_null() {
            return Vec::new();
        }
        // SAFETY: not null, so there are as many bytes as its length says.
        unsafe { std::slice::from_raw_parts(self.bytes.cast::<u8>(), self.length as usize) }.to_vec()
    }
}

/// The wish for a page. A server that knows no pages ignores it.
pub(super) struct PageControl {
    library: &'static Library,
    pub(super) control: *mut Control,
}

impl PageControl {
    /// For the page that begins at a cookie; an empty one is the first.
    pub(super) fn new(connection: &mut Connection, cookie: &mut [u8]) -> Result<Self, LdapError> {
        let mut at = Berval { length: cookie.len() as _, bytes: cookie.as_mut_ptr().cast() };
        let mut control = null_mut();
        let library = connection.library;
        // SAFETY: the handle is alive; the cookie is copied into the control, which is allocated for us.
        let code =
            unsafe { (library.ldap_create_page_control)(connection.ld, PAGE, &mut at, 0, &mut control) };
        connection.check("asking for a page", code)?;
        Ok(Self { library, control })
    }
}

impl Drop for PageControl {
    fn drop(&mut self) {
        // SAFETY: the control is ours, and nobody uses it after this.
        unsafe { (self.library.ldap_control_free)(self.control) };
    }
}
