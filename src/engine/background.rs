//! What a process in the background does without.

use rustix::fs::{Mode, OFlags};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Where the journal takes what services write to stderr (systemd-journald.service(8)).
const JOURNAL: &str = "/run/systemd/journal/stdout";

/// Give up stdin, stdout and stderr, which belong to whoever started us. Messages go to the journal, where
/// there is one.
pub fn leave_stdio() {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty()) else { return };
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(journal().unwrap_or(null));
    crate::log::to_journal();
}

fn journal() -> Option<OwnedFd> {
    let mut stream = UnixStream::connect(JOURNAL).ok()?;
    // Identifier, unit, priority (6: information), and no level prefixes, no syslog, kmsg or console.
    stream.write_all(b"autofs-cr\n\n6\n0\n0\n0\n0\n").ok()?;
    Some(stream.into())
}
