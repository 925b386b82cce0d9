//! What the kernel writes into a mount's pipe, and the pipe itself.
//!
//! ```text
//!  0          4      8       12    16    24    28    32    36     40    44         300
//!  | protocol | type | token | dev | ino | uid | gid | pid | tgid | len | name[256] | padding
//! ```
//!
//! Source: `struct autofs_v5_packet` of `include/uapi/linux/auto_fs.h`.

use super::{DevNum, Errno, control::Token};
use rustix::pipe::PipeFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Size of a protocol 5 packet. Where 64-bit numbers are aligned to four bytes (32-bit x86) the
/// padding is missing; nothing else differs.
pub const V5_SIZE: usize = 304;
const V5_SIZE_UNPADDED: usize = 300;
const NAME: usize = 44;
const NAME_MAX: usize = 255;

/// What a packet asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// Mount the named key of an indirect mount.
    MissingIndirect,
    /// Unmount the named key of an indirect mount.
    ExpireIndirect,
    /// Mount what belongs on a direct or offset trigger.
    MissingDirect,
    /// Unmount what lies on a direct or offset trigger.
    ExpireDirect,
}

/// One request of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Packet {
    /// What is asked.
    pub kind: Kind,
    /// To be named in the answer.
    pub token: Token,
    /// Number of the autofs superblock.
    pub dev: DevNum,
    /// Inode of the mount's root.
    pub ino: u64,
    /// Requester, in the user namespace of the pipe's opener.
    pub uid: u32,
    /// Requester's group, likewise.
    pub gid: u32,
    /// Requester's task, in the owner's pid namespace.
    pub pid: u32,
    /// Requester's thread group, likewise.
    pub tgid: u32,
    /// Key: one component for indirect mounts; for direct ones the kernel writes the dentry's address
    /// as text, which means nothing.
    pub name: Vec<u8>,
}

/// A packet that is none, or none to be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Wrong length.
    #[error("a packet of {got} bytes, expected {V5_SIZE}")]
    Size {
        /// Bytes read.
        got: usize,
    },
    /// Protocol 4 or older.
    #[error("a protocol {0} packet; only protocol 5 is served: mount with minproto=5")]
    Protocol(i32),
    /// A type that protocol 5 does not have.
    #[error("unknown packet type {0}")]
    Type(i32),
    /// The name's length is out of its field.
    #[error("a packet name of {0} bytes")]
    Name(u32),
    /// No write end is open: every mount of this pipe is catatonic or gone.
    #[error("the kernel has closed the pipe")]
    HangUp,
    /// read(2) failed.
    #[error("the pipe cannot be read: {0}")]
    Read(Errno),
}

impl Packet {
    /// Decode what one read of a packet-mode pipe returned.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        let size = PacketError::Size { got: bytes.len() };
        let (Some(protocol), Some(kind)) = (word(bytes, 0), word(bytes, 4)) else {
            return Err(size);
        };
        if protocol != 5 {
            return Err(PacketError::Protocol(protocol as i32));
        }
        if ![V5_SIZE, V5_SIZE_UNPADDED].contains(&bytes.len()) {
            return Err(size);
        }
        let kind = match kind {
            3 => Kind::MissingIndirect,
            4 => Kind::ExpireIndirect,
            5 => Kind::MissingDirect,
            6 => Kind::ExpireDirect,
            other => return Err(PacketError::Type(other as i32)),
        };
        let at = |at| word(bytes, at).unwrap_or_default();
        let len = at(40);
        let name = match len as usize {
            len @ ..=NAME_MAX => bytes[NAME..NAME + len].to_vec(),
            _ => return Err(PacketError::Name(len)),
        };
        Ok(Self {
            kind,
            token: Token(at(8)),
            dev: DevNum::from_kernel(at(12)),
            ino: u64::from_ne_bytes([16, 17, 18, 19, 20, 21, 22, 23].map(|i| bytes[i])),
            uid: at(24),
            gid: at(28),
            pid: at(32),
            tgid: at(36),
            name,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|chunk| u32::from_ne_bytes(*chunk))
}

/// Read one packet. `None`: the pipe is empty (and O_NONBLOCK).
pub fn read_packet(pipe: BorrowedFd<'_>) -> Result<Option<Packet>, PacketError> {
    // One byte more than a packet, so that a longer one shows.
    let mut buf = [0; V5_SIZE + 1];
    match rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut buf)) {
        Ok(0) => Err(PacketError::HangUp),
        Ok(got) => Packet::parse(&buf[..got]).map(Some),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(PacketError::Read(errno)),
    }
}

/// The two ends of a master's pipe.
#[derive(Debug)]
pub struct PacketPipe {
    /// For the master; O_NONBLOCK.
    pub read: OwnedFd,
    /// For the kernel (mount option `fd=`, SETPIPEFD).
    pub write: OwnedFd,
}

/// A pipe in packet mode, both ends CLOEXEC. Many mounts may share one, so that it is made as large
/// as an unprivileged pipe may be (1 MiB, 256 packets); the kernel refuses that to users with many pipes,
/// and a small one only makes visitors wait a little. The read end does not block. EMFILE, ENFILE: too many descriptors.
pub fn packet_pipe() -> Result<PacketPipe, Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT)?;
    let flags = rustix::fs::fcntl_getfl(&read)?;
    rustix::fs::fcntl_setfl(&read, flags | rustix::fs::OFlags::NONBLOCK)?;
    let _ = rustix::pipe::fcntl_setpipe_size(write.as_fd(), 1 << 20);
    Ok(PacketPipe { read, write })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; V5_SIZE];
        for (at, value) in [
            (0, 5u32),
            (4, 3),
            (8, 77),
            (12, 0x10_0000),
            (16, 9),
            (24, 1000),
            (28, 100),
            (32, 41),
            (36, 40),
            (40, 3),
        ] {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes[44..47].copy_from_slice(b"key");
        bytes
    }

    #[test]
    fn reads_every_field_with_and_without_padding() -> Result<(), PacketError> {
        let packet = Packet::parse(&sample())?;
        assert_eq!(
            packet,
            Packet {
                kind: Kind::MissingIndirect,
                token: Token(77),
                dev: DevNum::anonymous(256),
                ino: 9,
                uid: 1000,
                gid: 100,
                pid: 41,
                tgid: 40,
                name: b"key".to_vec(),
            }
        );
        assert_eq!(Packet::parse(&sample()[..300])?, packet);
        Ok(())
    }

    #[test]
    fn names_what_is_wrong() {
        let change = |at: usize, value: u32| {
            let mut bytes = sample();
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            Packet::parse(&bytes)
        };
        assert_eq!(change(0, 4), Err(PacketError::Protocol(4)));
        assert_eq!(change(4, 2), Err(PacketError::Type(2)));
        assert_eq!(change(40, 256), Err(PacketError::Name(256)));
        assert_eq!(Packet::parse(&sample()[..303]), Err(PacketError::Size { got: 303 }));
        // a protocol 4 packet has 272 bytes: told by its protocol, not by its size
        let mut old = sample();
        old[..4].copy_from_slice(&4u32.to_ne_bytes());
        assert_eq!(Packet::parse(&old[..272]), Err(PacketError::Protocol(4)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Packet::parse(&bytes);
        }

        #[test]
        fn no_changed_packet_panics(at in 0usize..V5_SIZE, byte: u8) {
            let mut bytes = sample();
            bytes[at] = byte;
            let _ = Packet::parse(&bytes);
        }
    }

    #[test]
    fn a_pipe_keeps_packets_apart_and_reports_its_end() -> Result<(), Box<dyn std::error::Error>> {
        let pipe = packet_pipe()?;
        assert_eq!(read_packet(pipe.read.as_fd())?, None);
        rustix::io::write(&pipe.write, &sample())?;
        rustix::io::write(&pipe.write, &sample()[..300])?;
        assert!(read_packet(pipe.read.as_fd())?.is_some());
        assert!(read_packet(pipe.read.as_fd())?.is_some());
        drop(pipe.write);
        assert_eq!(read_packet(pipe.read.as_fd()), Err(PacketError::HangUp));
        Ok(())
    }
}
