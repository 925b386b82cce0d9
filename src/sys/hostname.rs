//! Names of hosts, asked of the name service.

use std::ffi::CStr;
use std::ptr;

/// The canonical name of a host; `None` when it is unknown. May wait for a network service.
pub fn canonical(host: &CStr) -> Option<String> {
    // SAFETY: all zeros is a valid addrinfo: no flags, any family, null pointers.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_flags = libc::AI_CANONNAME;
    let mut found = ptr::null_mut();
    // SAFETY: the string ends in NUL, hints and found live through the call; a null service means none.
    if unsafe { libc::getaddrinfo(host.as_ptr(), ptr::null(), &hints, &mut found) } != 0 {
        return None;
    }
    // SAFETY: after success found is a list with at least one item, and its first has the name (or null).
    let name = unsafe { (*found).ai_canonname };
    let name = if name.is_null() {
        None
    } else {
        // SAFETY: ends in NUL and lives until the list is freed.
        unsafe { CStr::from_ptr(name) }.to_str().ok().map(str::to_owned)
    };
    // SAFETY: the list came from getaddrinfo and is not used any more.
    unsafe { libc::freeaddrinfo(found) };
    name
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_address_is_its_own_name() {
        assert_eq!(super::canonical(c"127.0.0.1").as_deref(), Some("127.0.0.1"));
        assert_eq!(super::canonical(c"no such host"), None);
    }
}
