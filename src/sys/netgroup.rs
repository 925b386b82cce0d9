//! Netgroups, asked of the name service.

use std::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    fn innetgr(
        netgroup: *const c_char,
        host: *const c_char,
        user: *const c_char,
        domain: *const c_char,
    ) -> c_int;
}

/// Is a host a member of a netgroup? May wait for a network service.
pub fn has_host(netgroup: &CStr, host: &CStr) -> bool {
    // SAFETY: both strings end in NUL and live through the call; null stands for any user and any domain.
    unsafe { innetgr(netgroup.as_ptr(), host.as_ptr(), std::ptr::null(), std::ptr::null()) == 1 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_unknown_netgroup_has_nobody() {
        assert!(!super::has_host(c"no-such-netgroup", c"localhost"));
    }
}
