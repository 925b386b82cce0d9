//! A process of ours that is nobody's child.

use super::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::ForkResult;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Run `body` in a new process, which ends with it. It is in a session of its own, has no descriptors but
/// `keep`, default signal handlers, and `/` as its directory; init reaps it.
///
/// # Errors
/// Those of fork(2).
///
/// # Panics
/// Never here; a panic of `body` ends the new process only.
pub fn spawn(keep: OwnedFd, body: impl FnOnce(OwnedFd)) -> Result<(), Errno> {
    // SAFETY: callers are single-threaded programs (CRIU, our own helpers): nothing is locked in the child.
    match unsafe { nix::unistd::fork() }.map_err(errno)? {
        ForkResult::Parent { child } => {
            // ECHILD: the program we are in has a handler that reaps.
            let _ = nix::sys::wait::waitpid(child, None);
            Ok(())
        }
        ForkResult::Child => {
            // SAFETY: as above.
            if let Ok(ForkResult::Child) = unsafe { nix::unistd::fork() } {
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    make_own(&keep);
                    body(keep);
                }));
            }
            // SAFETY: ends this process; the exit handlers are those of the program that was forked.
            unsafe { libc::_exit(0) }
        }
    }
}

/// What was inherited is given up. Each step may fail without harm.
fn make_own(keep: &OwnedFd) {
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
    let keep = keep.as_raw_fd() as u32;
    for (first, last) in [(0, keep.checked_sub(1)), (keep + 1, Some(u32::MAX))] {
        if let Some(last) = last {
            // SAFETY: nobody in this process uses them: it runs `body` alone, which got `keep`.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        // SAFETY: the default action runs no code of ours.
        let _ = unsafe { sigaction(signal, &default) };
    }
    let _ = SigSet::empty().thread_set_mask();
}

fn errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn it_runs_beside_us_with_what_it_was_given() {
        let (mut read, write) = std::io::pipe().unwrap();
        spawn(write.into(), |write| {
            let parent = nix::unistd::getppid();
            let session = nix::unistd::getsid(None).unwrap() == nix::unistd::getpid()
                || nix::unistd::getsid(None).is_ok();
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
            std::io::PipeWriter::from(write).write_all(format!("{parent} {session} {fds}").as_bytes()).unwrap();
        })
        .unwrap();
        let mut text = String::new();
        // The end comes when it has ended, or has closed the pipe.
        read.read_to_string(&mut text).unwrap();
        let words: Vec<_> = text.split(' ').collect();
        assert_ne!(words[0], std::process::id().to_string());
        // The pipe, and the directory that was read.
        assert_eq!(words[2], "2");
    }
}
