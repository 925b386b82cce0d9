//! Which interrupted calls must be made again so that no program notices that it was held.

const ENOENT: i64 = libc::ENOENT as i64;
const EINTR: i64 = libc::EINTR as i64;
/// close and ioctl of 32-bit programs, on x86 as on ARM.
const COMPAT_EXCEPTIONS: [i64; 2] = [6, 54];

/// The call that a task was in when it stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Call {
    /// Its number and result; `None`: it was in none.
    pub call: Option<(u64, i64)>,
    /// It is a 64-bit program.
    pub native: bool,
    /// It was still asleep when every visitor had been seized, so that its call may have met a catatonic mount.
    pub slept_on: bool,
}

/// Why a call must be made again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// Its look-up met a mount without a master.
    Catatonic,
    /// Our stop cut it short.
    Stop,
}

/// Decide. `signal_waits`: would a signal have ended the call as well?
///
/// A call that failed with ENOENT had no effect and may be repeated. So has one that failed with EINTR, and it can only
/// have failed by our stop when no signal waits: the kernel itself repeats most calls that are interrupted, but not
/// those that signal(7) lists (epoll_wait, semop, sockets with a timeout ...), nor the wait for an autofs mount's mutex. Two
/// exceptions: close(2) has closed in spite of EINTR, and what an ioctl did only its driver knows (EXPIRE is a master's).
pub(super) fn cause(stopped: Call, signal_waits: impl FnOnce() -> bool) -> Option<Cause> {
    let (number, result) = stopped.call?;
    let exceptions = if stopped.native { [libc::SYS_close, libc::SYS_ioctl] } else { COMPAT_EXCEPTIONS };
    if exceptions.contains(&i64::try_from(number).ok()?) {
        return None;
    }
    match -result {
        ENOENT if stopped.slept_on => Some(Cause::Catatonic),
        EINTR if !signal_waits() => Some(Cause::Stop),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(number: i64, result: i32, slept_on: bool, signal: bool) -> Option<Cause> {
        let call = Some((number as u64, i64::from(result)));
        cause(Call { call, native: true, slept_on }, || signal)
    }

    #[test]
    fn a_lookup_that_met_a_catatonic_mount_is_made_again() {
        let open = libc::SYS_openat;
        assert_eq!(decide(open, -libc::ENOENT, true, false), Some(Cause::Catatonic));
        // with a signal as well: the kernel runs the handler first
        assert_eq!(decide(open, -libc::ENOENT, true, true), Some(Cause::Catatonic));
        // it ended before anything was changed: the file is really missing
        assert_eq!(decide(open, -libc::ENOENT, false, false), None);
        assert_eq!(decide(open, -libc::EACCES, true, false), None);
        assert_eq!(decide(open, 7, true, false), None);
    }

    #[test]
    fn a_call_that_only_our_stop_cut_short_is_made_again() {
        let wait = libc::SYS_epoll_pwait;
        assert_eq!(decide(wait, -libc::EINTR, false, false), Some(Cause::Stop));
        assert_eq!(decide(wait, -libc::EINTR, false, true), None);
        assert_eq!(decide(libc::SYS_close, -libc::EINTR, true, false), None);
        assert_eq!(decide(libc::SYS_ioctl, -libc::EINTR, true, false), None);
        assert_eq!(decide(libc::SYS_ioctl, -libc::ENOENT, true, false), None);
        let idle = Call { call: None, native: true, slept_on: true };
        assert_eq!(cause(idle, || false), None);
        let compat = |number| {
            let call = Some((number, i64::from(-libc::EINTR)));
            cause(Call { call, native: false, slept_on: false }, || false)
        };
        assert_eq!((compat(6), compat(3)), (None, Some(Cause::Stop)));
    }
}
