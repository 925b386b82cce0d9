//! systemd learns new device numbers.
//!
//! It knows the mounts of its automount units by number, and ignores requests that come with another one. Where the
//! old numbers are taken it is made to execute itself anew (as `systemctl daemon-reexec` does), while nobody else in the container
//! runs, and the numbers are replaced in the state that it hands over to itself.
//!
//! Facts: by experiment with systemd 257. The state is text in a memfd, with a line `dev-id=NUMBER` for each automount unit.

use super::parked;
use crate::discover::proc::TaskDir;
use crate::sys::process::ProcessId;
use crate::sys::tracee::{Held, TraceeError};
use crate::sys::{DevNum, Errno, io_errno};
use rustix::fs::MemfdFlags;
use rustix::process::Signal;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// In the environment of a restore: wanted.
pub const VARIABLE: &str = "AUTOFS_CR_RENUMBER";

/// How long systemd may take; it takes some 50 ms.
const LIMIT: Duration = Duration::from_secs(10);

/// What the memfd is called.
const STATE: &str = "/memfd:systemd-state";

/// The line of a unit.
const NUMBER: &str = "dev-id=";

/// systemd still believes in the old numbers.
#[derive(Debug, thiserror::Error)]
pub enum RenumberError {
    /// It did not execute itself, or cannot be used.
    #[error("it did not execute itself anew: {0}")]
    Tracee(#[from] TraceeError),
    /// The state is not where it was in systemd 257.
    #[error("the state that it hands over to itself was not found, or has no device number")]
    NoState,
    /// Another call.
    #[error("cannot {what}: {errno}")]
    Call {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

/// Have the system manager `held` replace device numbers. It is stopped, as is everybody else in its container.
pub fn renumber(held: &mut Held, new: &HashMap<DevNum, DevNum>) -> Result<(), RenumberError> {
    let call = |what: &'static str| move |errno: Errno| RenumberError::Call { what, errno };
    let pid = held.tid();
    // To the system manager this means daemon-reexec.
    let sent = ProcessId::of(pid).and_then(|systemd| systemd.signal(Signal::TERM));
    sent.map_err(call("send it a signal"))?;
    held.run_to_exec(LIMIT)?;
    let process = TaskDir::process(pid).map_err(call("find its process"))?;
    let is_state = |link: &Path| link.as_os_str().as_encoded_bytes().starts_with(STATE.as_bytes());
    let states = process.descriptors(is_state).map_err(call("list its descriptors"))?;
    let &(fd, _) = states.first().ok_or(RenumberError::NoState)?;
    let state = process.read(&format!("fd/{fd}")).map_err(call("read its state"))?;
    let state = replaced(&state, new).ok_or(RenumberError::NoState)?;
    let memfd = rustix::fs::memfd_create("systemd-state", MemfdFlags::CLOEXEC);
    let mut file = File::from(memfd.map_err(call("make a file for its state"))?);
    let written = file.write_all(&state).and_then(|()| file.rewind());
    written.map_err(io_errno).map_err(call("write its state"))?;
    Ok(parked::place(held, file.as_fd(), fd, false)?)
}

/// The state with other numbers; `None` when it has none of the old ones.
fn replaced(state: &[u8], new: &HashMap<DevNum, DevNum>) -> Option<Vec<u8>> {
    let other = |line: &[u8]| {
        let old: u64 = std::str::from_utf8(line).ok()?.strip_prefix(NUMBER)?.trim_end().parse().ok()?;
        let new = new.get(&DevNum::from_st_dev(old))?;
        Some(format!("{NUMBER}{}\n", new.to_st_dev()).into_bytes())
    };
    let mut some = false;
    let line = |line: &[u8]| {
        let other = other(line);
        some |= other.is_some();
        other.unwrap_or_else(|| line.to_vec())
    };
    let state: Vec<u8> = state.split_inclusive(|byte| *byte == b'\n').flat_map(line).collect();
    some.then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_replaced_and_nothing_else() {
        let new = HashMap::from([(DevNum::anonymous(40), DevNum::anonymous(300))]);
        let state = "mnt-a.automount\nstate=waiting\ndev-id=40\npipe-fd=7\n\nmnt-b.automount\ndev-id=41\n";
        let expected = state.replace("dev-id=40", "dev-id=1048620");
        assert_eq!(replaced(state.as_bytes(), &new), Some(expected.into_bytes()));
        assert_eq!(replaced(b"dev-id=41\ndev-id=x\n", &new), None);
        assert_eq!(replaced(b"", &new), None);
    }
}
