//! mount(8), for types that have a helper of their own (nfs, cifs, fuse ...) and for what it looks up (labels, loop
//! devices).

use super::MountError;
use crate::sys::Errno;
use crate::sys::process::open_pidfd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How much of its output is kept.
const SAID: u64 = 4096;

/// Run `mount -t TYPE -o OPTIONS SOURCE TARGET`.
///
/// It stays in our process group: the kernel takes anybody else who looks at the trigger for a visitor,
/// who would wait for the very request that this answers.
pub(super) fn mount(
    fstype: &str,
    options: &OsStr,
    source: &OsStr,
    target: &Path,
    limit: Duration,
) -> Result<(), MountError> {
    let mut command = Command::new("mount");
    command.args(["-t", fstype]);
    if fstype.starts_with("nfs") {
        // sloppy: options of other systems' maps are ignored
        command.arg("-s");
    }
    if !options.is_empty() {
        command.arg("-o").arg(options);
    }
    command.arg(source).arg(target).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| MountError::NoHelper(errno(&error)))?;
    match wait(&mut child, limit).map_err(MountError::NoHelper)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(MountError::Refused {
            fstype: fstype.into(),
            source_name: source.into(),
            said: said(child, status),
        }),
        None => Err(MountError::TooLong { fstype: fstype.into(), source_name: source.into(), limit }),
    }
}

/// Its exit status; `None` when it took too long and was killed.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>, Errno> {
    let pidfd = open_pidfd(child.id() as i32)?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&left)) {
            Ok(0) => break,
            Ok(_) => return child.wait().map(Some).map_err(|error| errno(&error)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    // What it started (mount.nfs ...) loses its parent; it cannot be told apart from what others started.
    pidfd_send_signal(&pidfd, Signal::KILL)?;
    Ok(None)
}

fn said(mut child: Child, status: ExitStatus) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(SAID).read_to_end(&mut text);
    }
    if text.is_empty() { status.to_string() } else { String::from_utf8_lossy(&text).into_owned() }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
