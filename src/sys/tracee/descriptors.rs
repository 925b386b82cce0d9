//! Descriptors in a held task's table.

use super::session::RemoteCall;
use super::{Errno, Held, TraceeError, call, memory, process};
use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{BorrowedFd, RawFd},
};

/// A descriptor in the held task's table: a number that means nothing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteFd(pub RawFd);

/// Descriptors in one message; the kernel allows 253.
pub const MOST: usize = 128;

impl Held {
    /// Give the task a descriptor of ours; returns it as the task numbers it (CLOEXEC set).
    pub fn send_fd(&mut self, fd: BorrowedFd<'_>) -> Result<RemoteFd, TraceeError> {
        let [sent] = self.send_fds(&[fd])?[..] else { return Err(TraceeError::Gone(self.tid)) };
        Ok(sent)
    }

    /// Give it several; all or none.
    ///
    /// They travel through a socket pair made in the task, so that the task needs neither `/proc` nor a
    /// common pid namespace with us.
    pub fn send_fds(&mut self, fds: &[BorrowedFd<'_>]) -> Result<Vec<RemoteFd>, TraceeError> {
        let data = self.session()?.data();
        let kind = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64;
        let arguments = [libc::AF_UNIX as u64, kind, 0, data, 0, 0];
        self.checked("making a socket pair", libc::SYS_socketpair, arguments)?;
        let mut ends = [[0; 4]; 2];
        memory::read(self.tid, data, ends.as_flattened_mut())?;
        let [ours, theirs] = ends.map(|end| RemoteFd(RawFd::from_ne_bytes(end)));
        let mut sent = Vec::with_capacity(fds.len());
        let complete = fds.chunks(MOST).try_for_each(|some| {
            self.send_through(ours, some)?;
            sent.extend(self.receive_fds(theirs, some.len())?);
            Ok(())
        });
        let ends_closed = self.close_fds(&[ours, theirs]);
        if let Err(error) = complete.and(ends_closed) {
            let _ = self.close_fds(&sent);
            return Err(error);
        }
        Ok(sent)
    }

    fn send_through(&self, ours: RemoteFd, fds: &[BorrowedFd<'_>]) -> Result<(), TraceeError> {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        let tid = self.tid;
        let send = || {
            let socket = process::copy_fd(process::thread_group(tid)?, ours.0)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(fds));
            sendmsg(socket, &[IoSlice::new(b"f")], &mut control, SendFlags::NOSIGNAL)
        };
        call("sending descriptors", tid, send()).map(drop)
    }

    /// Have it take the descriptors out of the message that is next in `socket`, which are `count`; all or none. EAGAIN where there is
    /// no message yet, EPIPE where there will be none.
    pub fn receive_fds(&mut self, socket: RemoteFd, count: usize) -> Result<Vec<RemoteFd>, TraceeError> {
        let tid = self.tid;
        let data = self.session()?.data();
        memory::write(tid, data, message(data).as_flattened())?;
        let what = "receiving descriptors";
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
        let length = self.checked(what, libc::SYS_recvmsg, [socket.0 as u64, data, flags, 0, 0, 0])?;
        if length == 0 {
            return Err(TraceeError::Call { tid, what, errno: Errno::PIPE });
        }
        let mut control = [0; CONTROL];
        memory::read(tid, data + CONTROL_AT, &mut control)?;
        // Where the task runs out of numbers the kernel gives it as many as there are.
        let (header, numbers) = control.split_at(CONTROL_HEADER);
        let length = header.first_chunk().map_or(0, |length| usize::from_ne_bytes(*length));
        let received = length.saturating_sub(CONTROL_HEADER) / size_of::<RawFd>();
        let numbers = numbers.as_chunks().0.iter().map(|number| RemoteFd(RawFd::from_ne_bytes(*number)));
        let fds: Vec<_> = numbers.take(received).collect();
        if received < count {
            let _ = self.close_fds(&fds);
            return Err(TraceeError::Call { tid, what, errno: Errno::MFILE });
        }
        Ok(fds)
    }

    /// Close one of the task's descriptors.
    pub fn close_fd(&mut self, fd: RemoteFd) -> Result<(), TraceeError> {
        self.close_fds(&[fd])
    }

    /// Close several; all are tried.
    pub fn close_fds(&mut self, fds: &[RemoteFd]) -> Result<(), TraceeError> {
        let close =
            |fd: &RemoteFd| RemoteCall { number: libc::SYS_close, arguments: [fd.0 as u64, 0, 0, 0, 0, 0] };
        let calls: Vec<_> = fds.iter().map(close).collect();
        let results = self.call_all(&calls)?;
        results.into_iter().try_for_each(|result| self.check("closing a descriptor", result).map(drop))
    }
}

/// Where [`message`] has its control message, and how long that may be: its length (8 bytes), level, type, and
/// the descriptors.
const CONTROL_AT: u64 = 9 * 8;
const CONTROL: usize = CONTROL_HEADER + MOST * size_of::<RawFd>();
const CONTROL_HEADER: usize = 16;

/// A `struct msghdr` for address `at`, followed by what it points to: an iovec for one byte, a control message
/// (length 0, for the kernel to fill in), the byte.
fn message(at: u64) -> [[u8; 8]; 10] {
    let (iovec, control) = (at + 7 * 8, at + CONTROL_AT);
    let byte = control + CONTROL as u64;
    [0, 0, iovec, 1, control, CONTROL as u64, 0, byte, 1, 0].map(u64::to_ne_bytes)
}
