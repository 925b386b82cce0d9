//! The process that claims device numbers and makes the superblocks.
//!
//! It is forked off CRIU before CRIU mounts anything itself, and holds every device number of the images by a
//! placeholder. The container's root task then asks for its superblocks one by one: they are made here, where
//! the privilege and the claims are, but owned by the root task's process group, because the pid namespace of
//! the owner is the mount's for ever. The root task gets a detached mount, fills it and attaches it.
//!
//! One socket joins them, which the root task inherits from CRIU. When nobody has its other end any more,
//! everything is given back by ending.

use crate::image::checkpoint::DumpedMount;
use crate::restore::claim::Claims;
use crate::sys::control::{Control, ControlError};
use crate::sys::mount::{self, AutofsParams, Change, DetachedMount, MountError, MountFlags, Propagation};
use crate::sys::{DevNum, Errno};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What the root task asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Make superblock number `index` of the images.
    Make {
        /// Which.
        index: u32,
        /// Flags of the mount (`MOUNT_ATTR_*`).
        flags: u32,
    },
    /// Its directories are made: timeouts, and CATATONIC.
    Finish {
        /// Which.
        index: u32,
    },
}

impl Request {
    fn encode(self) -> [u8; 12] {
        let words = match self {
            Self::Make { index, flags } => [0, index, flags],
            Self::Finish { index } => [1, index, 0],
        };
        let mut bytes = [0; 12];
        for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_ne_bytes();
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<4>() else { return None };
        match words.iter().map(|word| u32::from_ne_bytes(*word)).collect::<Vec<_>>()[..] {
            [0, index, flags] => Some(Self::Make { index, flags }),
            [1, index, _] => Some(Self::Finish { index }),
            _ => None,
        }
    }
}

/// The maker as CRIU and the root task see it. Dropping lets it end.
#[derive(Debug)]
pub struct Maker(OwnedFd);

impl Maker {
    /// Start it for these superblocks. Returns when every number is claimed, with a line for each that is not.
    pub fn start(images: &[DumpedMount]) -> Result<(Self, Vec<String>), Errno> {
        let kind = SocketType::SEQPACKET;
        let (ours, its) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_socket_passcred(&its, true)?;
        crate::sys::detached::spawn(its, |socket| {
            let _ = serve(&socket, images);
        })?;
        let maker = Self(ours);
        let (text, _) = maker.receive()?;
        let lines = text.lines().map(str::to_owned).collect();
        Ok((maker, lines))
    }

    /// Ask, and wait for the answer: the mount that was made.
    pub fn ask(&self, request: Request) -> Result<Option<OwnedFd>, AskError> {
        rustix::net::send(&self.0, &request.encode(), SendFlags::NOSIGNAL)?;
        match self.receive()? {
            (text, fd) if text.is_empty() => Ok(fd),
            (text, _) => Err(AskError::Refused(text)),
        }
    }

    fn receive(&self) -> Result<(String, Option<OwnedFd>), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; 64 << 10];
        let got = rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        // Every answer has a first byte, so that an end is an end.
        let Some((_, text)) = bytes[..got.bytes].split_first() else { return Err(Errno::PIPE) };
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((String::from_utf8_lossy(text).into_owned(), fd))
    }
}

/// No answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The maker has ended.
    #[error("the process that makes autofs mounts has ended: {0}")]
    Gone(#[from] Errno),
    /// It says why.
    #[error("{0}")]
    Refused(String),
}

fn answer(socket: &OwnedFd, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let parts = [IoSlice::new(b"\0"), IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// The maker's life.
fn serve(socket: &OwnedFd, images: &[DumpedMount]) -> Result<(), Errno> {
    let mut works = match Works::new(images) {
        Ok((works, lines)) => {
            answer(socket, &lines.join("\n"), None)?;
            works
        }
        Err(error) => return answer(socket, &error.to_string(), None),
    };
    loop {
        let (request, asker) = receive(socket)?;
        match works.run(request, asker) {
            Ok(fd) => answer(socket, "", fd.as_ref().map(AsFd::as_fd))?,
            Err(error) => answer(socket, &error.to_string(), None)?,
        }
    }
}

/// A request, and who sends it (its number here).
fn receive(socket: &OwnedFd) -> Result<(Request, i32), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 12];
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let asker = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid.as_raw_pid()),
        _ => None,
    });
    let request = Request::decode(&bytes[..got.bytes]);
    request.zip(asker).ok_or(Errno::PIPE)
}

/// A superblock could not be made or finished.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error("{0}")]
    Mount(#[from] MountError),
    #[error("{0}")]
    Control(#[from] ControlError),
    #[error("{what}: {errno}")]
    Call { what: &'static str, errno: Errno },
    #[error("device number {0} is taken: another file system got it meanwhile")]
    Lost(DevNum),
    #[error("no such image")]
    NoImage,
}

struct Works<'a> {
    images: &'a [DumpedMount],
    control: Control,
    /// The write end that the mounts get until they are catatonic.
    pipe: OwnedFd,
    /// Nobody writes before the mounts are catatonic, but a pipe without a reader is dead at once.
    _read: OwnedFd,
    /// Holds the numbers below the wanted ones.
    claims: Claims,
    placeholders: BTreeMap<DevNum, DetachedMount>,
    /// Roots of the mounts that are not finished.
    open: BTreeMap<u32, OwnedFd>,
}

impl<'a> Works<'a> {
    fn new(images: &'a [DumpedMount]) -> Result<(Self, Vec<String>), WorkError> {
        let call = |what| move |errno| WorkError::Call { what, errno };
        // What fills numbers up stays out of every other namespace.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .map_err(|errno| WorkError::Call { what: "unshare", errno: Errno::from_raw_os_error(errno as i32) })?;
        let slave = Change::propagation(Propagation::Slave, true);
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        slave.apply(root.map_err(call("open /"))?, Path::new(""))?;
        let (read, pipe) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(call("pipe"))?;
        let mut claims = Claims::new().map_err(call("open /"))?;
        let mut placeholders = BTreeMap::new();
        let mut lines = Vec::new();
        let mut numbers: Vec<DevNum> = images.iter().map(|image| image.facts.dev).collect();
        numbers.sort();
        numbers.dedup();
        for dev in numbers {
            match claims.superblock(dev, placeholder)? {
                Ok(held) => drop(placeholders.insert(dev, held)),
                Err(why) => lines.push(format!("device number {dev} cannot be kept: {why}")),
            }
        }
        let control = Control::open()?;
        Ok((Self { images, control, pipe, _read: read, claims, placeholders, open: BTreeMap::new() }, lines))
    }

    fn run(&mut self, request: Request, asker: i32) -> Result<Option<DetachedMount>, WorkError> {
        match request {
            Request::Make { index, flags } => self.make(index, MountFlags::from_bits_retain(flags), asker).map(Some),
            Request::Finish { index } => self.finish(index).map(|()| None),
        }
    }

    fn make(&mut self, index: u32, flags: MountFlags, asker: i32) -> Result<DetachedMount, WorkError> {
        let image = self.images.get(index as usize).ok_or(WorkError::NoImage)?;
        let options = &image.facts.options;
        let params = AutofsParams {
            pipe: self.pipe.as_fd(),
            pgrp: Some(asker),
            mount_type: options.mount_type,
            protocol: (options.min_proto, options.max_proto),
            uid: options.uid,
            gid: options.gid,
            strict_expire: options.strict_expire,
            ignore: options.ignore,
        };
        let make = || mount::autofs(&params, &image.facts.source, flags);
        let dev = image.facts.dev;
        let made = match self.placeholders.remove(&dev) {
            // No claim: the number is a new one, which was told at the start.
            None => make()?,
            Some(placeholder) => {
                drop(placeholder);
                let made = self.claims.superblock(dev, || make().map_err(WorkError::from))?;
                made.map_err(|_| WorkError::Lost(dev))?
            }
        };
        // A descriptor for commands; `.` triggers nothing.
        let root = rustix::fs::openat(
            &made,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| WorkError::Call { what: "open the new root", errno })?;
        self.open.insert(index, root);
        Ok(made)
    }

    /// CATATONIC first: what follows is for the owner only, unless there is none.
    fn finish(&mut self, index: u32) -> Result<(), WorkError> {
        let image = self.images.get(index as usize).ok_or(WorkError::NoImage)?;
        let root = self.open.remove(&index).ok_or(WorkError::NoImage)?;
        let root = root.as_fd();
        self.control.make_catatonic(root)?;
        self.control.set_timeout(root, image.facts.options.timeout)?;
        for entry in image.tree.iter().filter(|entry| entry.timeout.is_some()) {
            let name = entry.path.as_os_str().as_encoded_bytes();
            self.control.set_dentry_timeout(root, name, entry.timeout)?;
        }
        Ok(())
    }
}

fn placeholder() -> Result<DetachedMount, WorkError> {
    Ok(mount::new_superblock::<&str>("tmpfs", Path::new("autofs-cr"), &[], MountFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_both_ways() {
        for request in [Request::Make { index: 7, flags: 0x20_0001 }, Request::Finish { index: u32::MAX }] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        assert_eq!(Request::decode(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Request::decode(&[0, 0, 0]), None);
    }
}
