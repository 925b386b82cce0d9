//! The process that holds the device numbers and makes the superblocks.
//!
//! It is forked off CRIU before CRIU mounts anything itself, and holds every device number of the images by a
//! placeholder. When the container's root task comes to its first autofs mount, all of them are made by
//! [`create::prepare`], in a child that enters the root task's pid namespace, because the pid namespace of
//! a mount's owner is the mount's for ever. The child is gone before CRIU wants its number for somebody else;
//! the root task gets the complete mounts one by one and attaches them. Everything is made outside the
//! container's user namespace, where autofs cannot be mounted.
//!
//! One socket joins them, which the root task inherits from CRIU. When nobody has its other end any more,
//! the maker ends, and with it whatever was not fetched.

use super::apart::{self, BATCH, receive, send, socket_pair};
use crate::discover::facts::Master;
use crate::image::Checkpoint;
use crate::image::checkpoint::DumpedMount;
use crate::restore::claim::{Claims, NoClaim};
use crate::restore::create;
use crate::restore::plan::{Action, Attach, Number, RestorePlan, Step};
use crate::sys::mount::MountError;
use crate::sys::{DevNum, Errno, fork, mountns};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// The request for all device numbers; others are for one mount.
const NUMBERS: u32 = u32::MAX;

/// How many fit into one message.
const NUMBERS_AT_ONCE: usize = 4000;

/// The maker as CRIU and the root task see it. Dropping lets it end.
#[derive(Debug)]
pub struct Maker(OwnedFd);

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

impl Maker {
    /// Start it for the mounts of `image`, each superblock once. Returns when every number is held, with a line for
    /// each that cannot be.
    pub fn start(image: &Checkpoint) -> Result<(Self, Vec<String>), AskError> {
        let maker = Self(apart::start(|socket| {
            let served = rustix::net::sockopt::set_socket_passcred(socket, true);
            // Where nobody listens nobody can be told.
            let _ = served.and_then(|()| serve(socket, image));
        })?);
        let (text, _) = receive(&maker.0)?;
        Ok((maker, text.lines().map(str::to_owned).collect()))
    }

    /// The complete mount number `index`, detached. To be called by the root task.
    pub fn fetch(&self, index: u32) -> Result<OwnedFd, AskError> {
        rustix::net::send(&self.0, &index.to_ne_bytes(), SendFlags::NOSIGNAL)?;
        match receive(&self.0)? {
            (_, mut fds) if fds.len() == 1 => Ok(fds.remove(0)),
            (text, _) => Err(AskError::Refused(text)),
        }
    }

    /// The device numbers of all `count` mounts, as they are made.
    pub fn numbers(&self, count: usize) -> Result<Vec<DevNum>, AskError> {
        rustix::net::send(&self.0, &NUMBERS.to_ne_bytes(), SendFlags::NOSIGNAL)?;
        let mut numbers = Vec::with_capacity(count);
        while numbers.len() < count {
            let (text, _) = receive(&self.0)?;
            let some = text.split_whitespace().map(|minor| minor.parse().map(DevNum::anonymous));
            let Ok(some) = some.collect::<Result<Vec<_>, _>>() else { return Err(AskError::Refused(text)) };
            if some.is_empty() {
                return Err(AskError::Refused("no numbers".to_owned()));
            }
            numbers.extend(some);
        }
        Ok(numbers)
    }
}

/// The maker's life.
fn serve(socket: &OwnedFd, image: &Checkpoint) -> Result<(), Errno> {
    let (claims, not_held) = match claim(&image.mounts) {
        Ok(claimed) => claimed,
        Err(error) => return send(socket, &format!("no device number can be kept: {error}"), &[]),
    };
    let line = |(dev, why): &(DevNum, NoClaim)| format!("device number {dev} cannot be kept: {why}");
    send(socket, &not_held.iter().map(line).collect::<Vec<_>>().join("\n"), &[])?;
    let (mut index, asker) = receive_request(socket)?;
    let made = make_all(image, claims, asker);
    loop {
        answer(socket, &made, index)?;
        (index, _) = receive_request(socket)?;
    }
}

fn answer(socket: &OwnedFd, made: &Result<Vec<OwnedFd>, String>, index: u32) -> Result<(), Errno> {
    match made {
        Ok(mounts) if index == NUMBERS => send_numbers(socket, mounts),
        Ok(mounts) => match mounts.get(index as usize) {
            Some(mount) => send(socket, "", &[mount.as_fd()]),
            None => send(socket, "no such mount", &[]),
        },
        Err(error) => send(socket, error, &[]),
    }
}

fn send_numbers(socket: &OwnedFd, mounts: &[OwnedFd]) -> Result<(), Errno> {
    let minor = |mount: &OwnedFd| Ok(DevNum::from_st_dev(rustix::fs::fstat(mount)?.st_dev).minor.to_string());
    for some in mounts.chunks(NUMBERS_AT_ONCE) {
        let text = some.iter().map(minor).collect::<Result<Vec<_>, Errno>>()?.join(" ");
        send(socket, &text, &[])?;
    }
    Ok(())
}

/// Hold the device numbers; with those that cannot be.
fn claim(mounts: &[DumpedMount]) -> Result<(Claims, Vec<(DevNum, NoClaim)>), MountError> {
    let call = |what| move |errno| MountError::At { what, path: "/".into(), errno };
    // What fills numbers up stays out of every other namespace.
    mountns::unshare_private().map_err(call("unshare"))?;
    raise_limit(mounts.len());
    let mut claims = Claims::new()?;
    let not_held = claims.hold(mounts.iter().map(|mount| mount.facts.dev))?;
    Ok((claims, not_held))
}

/// All mounts, owned by a process group in the pid namespace of `asker`.
fn make_all(image: &Checkpoint, claims: Claims, asker: i32) -> Result<Vec<OwnedFd>, String> {
    let call = |what: &'static str| move |errno: Errno| format!("cannot {what}: {errno}");
    let namespace = rustix::fs::open(
        format!("/proc/{asker}/ns/pid"),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(call("open the root task's pid namespace"))?;
    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWPID)
        .map_err(|errno| format!("cannot enter the root task's pid namespace: {errno}"))?;
    let (ours, its) = socket_pair().map_err(call("make a socket pair"))?;
    let child = fork::fork(move || {
        // A number is free when nobody has its placeholder any more: first the parent's copies go, with this closure.
        let alone = receive(&its).map(drop).map_err(call("wait for the parent"));
        let made = alone.and_then(|()| prepare(image, claims));
        let sent = made.and_then(|mounts| hand_over(&its, &mounts).map_err(call("hand mounts over")));
        sent.err().map_or(0, |error| send(&its, &error, &[]).map_or(1, |()| 1))
    })
    .map_err(call("start a process in the container"))?;
    send(&ours, "", &[]).map_err(call("start a process in the container"))?;
    let mut made = Vec::with_capacity(image.mounts.len());
    let answer = loop {
        match receive(&ours) {
            Ok((text, fds)) if text.is_empty() => made.extend(fds),
            Ok((text, _)) => break Err(text),
            Err(_) => break Ok(()),
        }
    };
    let _ = child.wait();
    answer?;
    match made.len() == image.mounts.len() {
        true => Ok(made),
        false => Err("the process that makes autofs mounts died".to_owned()),
    }
}

/// In the child: every mount of the image.
fn prepare(image: &Checkpoint, claims: Claims) -> Result<Vec<OwnedFd>, String> {
    // The owner: a process group of the container's pid namespace.
    nix::unistd::setsid().map_err(|errno| format!("cannot begin a session: {errno}"))?;
    let plan = plan(image);
    let prepared = create::prepare(image, &plan, claims).map_err(|error| error.to_string())?;
    Ok(prepared.into_mounts().map(OwnedFd::from).collect())
}

/// Everything is made, at its number: nothing of a new container is there yet.
fn plan(image: &Checkpoint) -> RestorePlan {
    let step = |(index, mount): (usize, &DumpedMount)| {
        let dev = mount.facts.dev;
        // systemd ignores requests that come with another number.
        let number = match mount.facts.master {
            Master::Systemd { .. } => Number::Must(dev),
            _ => Number::May(dev),
        };
        Step {
            mount: index,
            path: mount.facts.path.clone(),
            action: Action::Create { number, in_tree: false },
            attach: Attach::Nobody,
        }
    };
    RestorePlan { steps: image.mounts.iter().enumerate().map(step).collect(), ..RestorePlan::default() }
}

/// Placeholders and mounts are descriptors, here and in the child.
fn raise_limit(mounts: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = 2 * mounts as u64 + 64;
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

fn hand_over(socket: &OwnedFd, mounts: &[OwnedFd]) -> Result<(), Errno> {
    mounts
        .chunks(BATCH)
        .try_for_each(|some| send(socket, "", &some.iter().map(AsFd::as_fd).collect::<Vec<_>>()))
}

/// Which mount is wanted, and who asks (its number here).
fn receive_request(socket: &OwnedFd) -> Result<(u32, i32), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    // A byte more, so that a longer message is noticed.
    let mut bytes = [0; 5];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let asker = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid.as_raw_nonzero().get()),
        _ => None,
    });
    match (asker, &bytes[..got.bytes]) {
        (Some(asker), [a, b, c, d]) => Ok((u32::from_ne_bytes([*a, *b, *c, *d]), asker)),
        _ => Err(Errno::PIPE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::samples;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
    use std::io::IoSlice;

    /// In a thread: the process that makes mounts cannot be forked off here, and the answer is that.
    fn maker() -> Maker {
        let image = Checkpoint { mounts: Vec::new(), services: Vec::new(), ..samples::checkpoint() };
        let (ours, its) = socket_pair().unwrap();
        rustix::net::sockopt::set_socket_passcred(&its, true).unwrap();
        std::thread::spawn(move || serve(&its, &image));
        assert_eq!(receive(&ours).unwrap().0, "");
        Maker(ours)
    }

    #[test]
    fn a_mount_that_is_not_there() {
        let (ours, its) = socket_pair().unwrap();
        for index in [0, 7, NUMBERS - 1] {
            answer(&its, &Ok(Vec::new()), index).unwrap();
            assert_eq!(receive(&ours).unwrap().0, "no such mount");
        }
    }

    #[test]
    fn requests_of_other_lengths_end_it() {
        for nonsense in [&b""[..], b"1", b"123", &[0; 70_000]] {
            let maker = maker();
            rustix::net::send(&maker.0, nonsense, SendFlags::NOSIGNAL).unwrap();
            assert!(matches!(maker.fetch(0), Err(AskError::Gone(_))), "{}", nonsense.len());
        }
    }

    #[test]
    fn descriptors_that_are_sent_along() {
        let maker = maker();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let fds = [write.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let request = [IoSlice::new(&[0; 4])];
        rustix::net::sendmsg(&maker.0, &request, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        assert!(receive(&maker.0).is_ok());
        // Nobody has a copy.
        drop(write);
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
    }
}
