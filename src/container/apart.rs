//! Processes apart from CRIU: forked off it, with one socket in common. When nobody has CRIU's end any more it is their
//! end, too.

use crate::sys::{Errno, fork, io_errno};
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::Pid;
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How many descriptors a message can carry (SCM_MAX_FD).
pub const BATCH: usize = 253;

/// A value of at most so many bytes is in the message itself.
const SHORT: usize = 4096;

/// Run `body` in a process of its own, with its end of the socket; returns ours, and its number.
///
/// It is not CRIU's child: CRIU watches its children. Errors are those of [`fork::fork_away`] and socketpair(2).
pub fn start(body: impl FnOnce(&OwnedFd)) -> Result<(OwnedFd, Pid), Errno> {
    let (socket, its) = socket_pair()?;
    let pid = fork::fork_away(|| {
        alone(&its);
        body(&its);
    })?;
    Ok((socket, pid))
}

/// What was inherited from CRIU is given up: descriptors, signal handlers, session.
fn alone(socket: &OwnedFd) {
    let _ = nix::unistd::setsid();
    fork::close_all_but(socket.as_fd());
    fork::reset_signals();
}

/// Everybody waits for this process: programs that use all processors must not hold it up.
pub fn hurry() {
    let _ = rustix::process::setpriority_process(None, -20);
    // To the scheduler a session may be a group, whose members share what the group has.
    let _ = std::fs::write("/proc/self/autogroup", "-20");
}

/// Two ends of a connection that carries messages, not bytes (SOCK_SEQPACKET), both CLOEXEC.
pub fn socket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Send a text (an error, or empty) with at most [`BATCH`] descriptors. EPIPE when nobody has the other end any more.
pub fn send(socket: &OwnedFd, text: &str, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send_bytes(socket, text.as_bytes(), fds)
}

/// The first byte is ours, so that an end is an end.
fn send_bytes(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [IoSlice::new(b"\0"), IoSlice::new(bytes)];
    rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// Send a value of any size: a long one by way of memory of its own. Errors are those of [`send`] and memfd_create(2).
pub fn send_value(socket: &OwnedFd, value: &impl Serialize) -> Result<(), Errno> {
    send_value_with(socket, value, &[])
}

/// The same with descriptors: fewer than [`BATCH`].
pub fn send_value_with(
    socket: &OwnedFd,
    value: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let bytes = postcard::to_allocvec(value).map_err(|_| Errno::IO)?;
    if bytes.len() <= SHORT {
        return send_bytes(socket, &bytes, fds);
    }
    let mut memory = File::from(rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC)?);
    memory.write_all(&bytes).map_err(io_errno)?;
    send_bytes(socket, b"", &[fds, &[memory.as_fd()]].concat())
}

/// A value that was sent.
#[derive(Debug)]
pub struct Message<T> {
    /// The value.
    pub value: T,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
    /// Who sent it: known where the socket has SO_PASSCRED.
    pub sender: Option<Pid>,
}

/// The value that comes next; waits for it. EPIPE as [`receive`], EIO when it is not of this type.
pub fn receive_value<T: DeserializeOwned>(socket: &OwnedFd) -> Result<T, Errno> {
    Ok(receive_message(socket)?.value)
}

/// The same with all that is known of it.
pub fn receive_message<T: DeserializeOwned>(socket: &OwnedFd) -> Result<Message<T>, Errno> {
    let mut space = [0; 1 + SHORT];
    let Received { bytes: short, mut fds, sender } = receive_bytes(socket, &mut space)?;
    let mut long = Vec::new();
    if let Some(mut memory) = fds.pop_if(|_| short.is_empty()).map(File::from) {
        memory.rewind().and_then(|()| memory.read_to_end(&mut long)).map_err(io_errno)?;
    }
    let value = postcard::from_bytes(if long.is_empty() { short } else { &long }).map_err(|_| Errno::IO)?;
    Ok(Message { value, fds, sender })
}

/// The next message, of at most 64 KiB; waits for it. EPIPE when nobody has the other end any more.
pub fn receive(socket: &OwnedFd) -> Result<(String, Vec<OwnedFd>), Errno> {
    let mut space = vec![0; 64 << 10];
    let Received { bytes: text, fds, .. } = receive_bytes(socket, &mut space)?;
    Ok((String::from_utf8_lossy(text).into_owned(), fds))
}

struct Received<'a> {
    bytes: &'a [u8],
    fds: Vec<OwnedFd>,
    sender: Option<Pid>,
}

fn receive_bytes<'a>(socket: &OwnedFd, into: &'a mut [u8]) -> Result<Received<'a>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(into)];
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let (mut fds, mut sender) = (Vec::new(), None);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(received) => fds.extend(received),
            RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials.pid),
            _ => {}
        }
    }
    let (_, bytes) = into[..got.bytes].split_first().ok_or(Errno::PIPE)?;
    Ok(Received { bytes, fds, sender })
}
