//! What the kernel writes into a mount's pipe (`struct autofs_v5_packet`, 304 bytes on 64-bit).

use super::{DevNum, control::Token};

/// Size of a protocol 5 packet in the pipe on 64-bit machines.
pub const V5_SIZE: usize = 304;

/// What a packet asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// What is asked.
    pub kind: Kind,
    /// To be named in the answer.
    pub token: Token,
    /// Number of the autofs superblock.
    pub dev: DevNum,
    /// Root inode (direct, offset) or the parent directory's.
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

/// A packet that is none.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// Wrong length.
    #[error("a packet of {got} bytes, expected {V5_SIZE}")]
    Size {
        /// Bytes read.
        got: usize,
    },
    /// Protocol 4 or older.
    #[error("a protocol {0} packet; only protocol 5 is served")]
    Protocol(i32),
    /// A type that protocol 5 does not have.
    #[error("unknown packet type {0}")]
    Type(i32),
    /// The name's length is out of its field.
    #[error("a packet name of {0} bytes")]
    Name(u32),
}

impl Packet {
    /// Decode what one read of a packet-mode pipe returned.
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        let _ = bytes;
        todo!()
    }
}
