//! Descriptors on covered roots. A master like automount(8) keeps one for each active direct or offset mount, and CRIU
//! refuses to dump them: their path leads to something else. So they are taken away while CRIU looks, and given
//! back under their numbers: at the end of the dump, and in the restored process.

use super::tree::Member;
use crate::discover::facts::AutofsMount;
use crate::discover::proc::{TaskDir, numbers};
use crate::sys::process::copy_fd;
use crate::sys::tracee::{Held, RemoteFd, TraceeError};
use crate::sys::{DevNum, Errno};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A descriptor that a process of the container has on the root of an autofs mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// The process, in the container's numbers.
    pub inner: i32,
    /// Its number there.
    pub fd: i32,
    /// The mount.
    pub dev: DevNum,
    /// Closed by exec?
    pub cloexec: bool,
}

/// One that was taken away, and a copy of it.
#[derive(Debug)]
pub struct Parked {
    /// The process, in our numbers.
    pub pid: i32,
    /// What it is.
    pub descriptor: Descriptor,
    copy: OwnedFd,
}

/// Take away what `member` has on covered roots of `mounts`. It is stopped and traced by us.
pub fn park(member: &Member, mounts: &[&AutofsMount]) -> Result<Vec<Parked>, TraceeError> {
    let found = find(member, mounts);
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let mut held = Held::adopt(member.pid);
    let mut parked = Vec::with_capacity(found.len());
    for descriptor in found {
        let copied = copy_fd(member.pid, descriptor.fd);
        let what = "copying a descriptor";
        let copy = copied.map_err(|errno| TraceeError::Call { tid: member.pid, what, errno })?;
        held.close_fd(RemoteFd(descriptor.fd))?;
        parked.push(Parked { pid: member.pid, descriptor, copy });
    }
    held.release()?;
    Ok(parked)
}

impl Parked {
    /// Give it back. The process is stopped and traced by us.
    pub fn unpark(&self) -> Result<(), TraceeError> {
        let mut held = Held::adopt(self.pid);
        place(&mut held, self.copy.as_fd(), self.descriptor.fd, self.descriptor.cloexec)?;
        held.release()
    }
}

/// Put `file` into the table of a held process, with the number `fd`.
pub fn place(held: &mut Held, file: BorrowedFd<'_>, fd: i32, cloexec: bool) -> Result<(), TraceeError> {
    let sent = held.send_fd(file)?;
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    let arguments = [sent.0 as u64, fd as u64, flags as u64, 0, 0, 0];
    let placed = held.call(libc::SYS_dup3, arguments)?;
    held.close_fd(sent)?;
    match i32::try_from(-placed) {
        Ok(errno) if errno > 0 => Err(TraceeError::Call {
            tid: held.tid(),
            what: "placing a descriptor",
            errno: Errno::from_raw_os_error(errno),
        }),
        _ => Ok(()),
    }
}

fn find(member: &Member, mounts: &[&AutofsMount]) -> Vec<Descriptor> {
    let covered = |mount: &&&AutofsMount| mount.covering.iter().any(|covering| covering.path == mount.path);
    let covered: Vec<_> = mounts.iter().filter(covered).collect();
    let Ok(process) = TaskDir::process(member.pid) else { return Vec::new() };
    if covered.is_empty() {
        return Vec::new();
    }
    let descriptor = |fd| {
        let (mount_id, flags) =
            fd_info(&String::from_utf8_lossy(&process.read(&format!("fdinfo/{fd}")).ok()?))?;
        let mount = covered.iter().find(|mount| mount.mount_id == mount_id)?;
        let cloexec = flags & libc::O_CLOEXEC as u32 != 0;
        Some(Descriptor { inner: member.inner, fd, dev: mount.dev, cloexec })
    };
    let all = process.open_file("fd").and_then(numbers).unwrap_or_default();
    all.into_iter().filter_map(descriptor).collect()
}

/// Mount id and flags.
fn fd_info(text: &str) -> Option<(u64, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("mnt_id:")?.parse().ok()?, u32::from_str_radix(field("flags:")?, 8).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_and_flags_of_a_descriptor() {
        assert_eq!(fd_info("pos:\t0\nflags:\t02100000\nmnt_id:\t93\nino:\t7\n"), Some((93, 0o2_100_000)));
        assert_eq!(fd_info("pos:\t0\n"), None);
    }
}
