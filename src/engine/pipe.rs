//! The pipe of requests, and who waits at it.
//!
//! To wake another thread takes longer than a bind mount. So the *front* thread waits as long as it has nothing else to do, and
//! carries out itself what comes of a request. While it does, the reactor *watches* the pipe, and has workers do what comes:
//! a job that hangs holds up nothing.

use crate::sys::Errno;
use crate::sys::packet::{Packet, PacketError, read_packet};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{PoisonError, RwLock};

/// The read end of the engine's pipe.
pub struct Requests {
    /// `None`: no request is taken any more.
    pipe: RwLock<Option<OwnedFd>>,
    /// Readable while the pipe is, and is watched.
    watch: OwnedFd,
    /// Readable when no request is taken any more.
    end: OwnedFd,
}

impl Requests {
    /// They come from `pipe`, which does not block. It is watched. EMFILE, ENFILE: too many descriptors.
    pub fn new(pipe: OwnedFd) -> Result<Self, Errno> {
        let watch = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&watch, &pipe, EventData::new_u64(0), EventFlags::IN)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { pipe: RwLock::new(Some(pipe)), watch, end })
    }

    /// A descriptor that is readable when requests wait and the pipe is watched.
    pub fn watch(&self) -> std::io::Result<OwnedFd> {
        self.watch.try_clone()
    }

    /// The pipe is watched, or not, because the caller waits at it.
    pub fn set_watched(&self, watched: bool) {
        let events = if watched { EventFlags::IN } else { EventFlags::empty() };
        self.with_pipe(|pipe| {
            // Only a descriptor that is not in there is refused.
            let _ = epoll::modify(&self.watch, pipe, EventData::new_u64(0), events);
        });
    }

    /// Wait for a request; when interrupted, there may be none. `false`: no request is taken any more.
    pub fn wait(&self) -> bool {
        let wait = |pipe: BorrowedFd<'_>| {
            let mut fds = [PollFd::new(&pipe, PollFlags::IN), PollFd::new(&self.end, PollFlags::IN)];
            let _ = poll(&mut fds, None);
            fds[1].revents().is_empty()
        };
        self.with_pipe(wait).unwrap_or(false)
    }

    /// Take one, if there is one.
    pub fn take(&self) -> Result<Option<Packet>, PacketError> {
        self.with_pipe(read_packet).unwrap_or(Ok(None))
    }

    /// Take none from now on: who waits stops, and this read end is closed.
    pub fn close(&self) {
        // The counter has room for many.
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
        *self.pipe.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn with_pipe<T>(&self, run: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        let pipe = self.pipe.read().unwrap_or_else(PoisonError::into_inner);
        pipe.as_ref().map(|pipe| run(pipe.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::Timespec;

    fn readable(fd: impl AsFd) -> bool {
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn what_waits_is_seen_by_who_watches() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let requests = Requests::new(read).unwrap();
        let watch = requests.watch().unwrap();
        assert!(!readable(&watch));
        requests.set_watched(false);
        rustix::io::write(&write, b"x").unwrap();
        assert!(!readable(&watch));
        assert!(requests.wait());
        requests.set_watched(true);
        assert!(readable(&watch));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let requests = Requests::new(read).unwrap();
        std::thread::scope(|scope| {
            let front = scope.spawn(|| requests.wait());
            requests.close();
            assert!(!front.join().unwrap());
        });
        assert!(!requests.wait() && requests.take().unwrap().is_none());
        assert_eq!(rustix::io::write(&write, b"x"), Err(Errno::PIPE));
    }
}
