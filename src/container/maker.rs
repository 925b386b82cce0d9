//! The process that holds the device numbers and makes the superblocks.
//!
//! It is forked off CRIU before CRIU mounts anything itself, and holds every device number of the images by a
//! placeholder. When the container's root task comes to its first autofs mount, they are made in a child that enters the root
//! task's pid namespace, because the pid namespace of a mount's owner is the mount's for ever. The root task gets complete
//! mounts, many at a time. Everything is made outside the container's user namespace, where autofs cannot be mounted.
//!
//! What the root task mounts besides must not get a number that is free for a moment. So superblocks with old numbers are
//! made ([`Configured::create`]) while it waits for an answer; all else is done beside it. With the last mount the child is gone,
//! before CRIU wants its number for somebody else.
//!
//! One socket joins them, which the root task inherits from CRIU. When nobody has its other end any more,
//! the maker ends, and with it whatever was not fetched.

use super::apart::{self, receive, send, socket_pair};
use crate::discover::facts::Master;
use crate::image::Checkpoint;
use crate::image::checkpoint::DumpedMount;
use crate::restore::claim::{Claims, NoClaim};
use crate::restore::create::{self, Configured, CreateError};
use crate::restore::plan::{Action, Attach, Number, RestorePlan, Step};
use crate::sys::mount::MountError;
use crate::sys::{DevNum, Errno, fork, mountns, nix_errno};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// The request for all device numbers; others are for one mount.
const NUMBERS: u32 = u32::MAX;

/// How many fit into one message.
const NUMBERS_AT_ONCE: usize = 4000;

/// How many mounts are made, and sent, at a time: few enough for the root task's descriptors.
const MOUNTS_AT_ONCE: usize = 100;

/// The maker as CRIU and the root task see it. Dropping lets it end.
#[derive(Debug)]
pub struct Maker {
    socket: OwnedFd,
    /// Mounts that came before they were wanted: the number of the first, and the mounts.
    ahead: (u32, VecDeque<OwnedFd>),
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

impl Maker {
    /// Start it for the mounts of `image`, each superblock once. Returns when every number is held, with a line for
    /// each that cannot be. `renumber`: then systemd's mounts get another one.
    pub fn start(image: &Checkpoint, renumber: bool) -> Result<(Self, Vec<String>), AskError> {
        let (socket, _) = apart::start(|socket| {
            let served = rustix::net::sockopt::set_socket_passcred(socket, true);
            // Where nobody listens nobody can be told.
            let _ = served.and_then(|()| serve(socket, image, renumber));
        })?;
        let (text, _) = receive(&socket)?;
        Ok((Self { socket, ahead: (0, VecDeque::new()) }, text.lines().map(str::to_owned).collect()))
    }

    /// The complete mount number `index`, detached. To be called by the root task. Those that follow come with it:
    /// CRIU mounts mostly in the order of the images.
    pub fn fetch(&mut self, index: u32) -> Result<OwnedFd, AskError> {
        let (next, ahead) = &mut self.ahead;
        if *next != index || ahead.is_empty() {
            rustix::net::send(&self.socket, &index.to_ne_bytes(), SendFlags::NOSIGNAL)?;
            let (text, mounts) = receive(&self.socket)?;
            if mounts.is_empty() {
                return Err(AskError::Refused(text));
            }
            *ahead = mounts.into();
        }
        *next = index + 1;
        ahead.pop_front().ok_or(AskError::Gone(Errno::PIPE))
    }

    /// The device numbers of all `count` mounts, as they are made.
    pub fn numbers(&self, count: usize) -> Result<Vec<DevNum>, AskError> {
        rustix::net::send(&self.socket, &NUMBERS.to_ne_bytes(), SendFlags::NOSIGNAL)?;
        let mut numbers = Vec::with_capacity(count);
        while numbers.len() < count {
            let (text, _) = receive(&self.socket)?;
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
fn serve(socket: &OwnedFd, image: &Checkpoint, renumber: bool) -> Result<(), Errno> {
    apart::hurry();
    let (claims, not_held) = match claim(&image.mounts) {
        Ok(claimed) => claimed,
        Err(error) => return send(socket, &format!("no device number can be kept: {error}"), &[]),
    };
    send(socket, &warnings(&not_held).join("\n"), &[])?;
    let plans = plans(image, renumber);
    let configured =
        plans.split_first().ok_or_else(|| "there is none".to_owned()).and_then(|(first, others)| {
            let first = create::configure(image, first).map_err(|error| error.to_string())?;
            Ok((first, others))
        });
    let (mut index, asker) = receive_request(socket)?;
    let mut making =
        configured.and_then(|(first, others)| Making::start(image, first, others, claims, asker));
    loop {
        answer(socket, &mut making, index)?;
        making.as_mut().map_or(Ok(()), |making| making.wait(socket))?;
        (index, _) = receive_request(socket)?;
    }
}

/// Some mounts each, in the order of the images.
fn plans(image: &Checkpoint, renumber: bool) -> Vec<RestorePlan> {
    let steps: Vec<_> =
        image.mounts.iter().enumerate().map(|(index, mount)| step(index, mount, renumber)).collect();
    let plan = |some: &[Step]| RestorePlan { steps: some.to_vec(), ..RestorePlan::default() };
    steps.chunks(MOUNTS_AT_ONCE).map(plan).collect()
}

/// As many as fit into one message.
fn warnings(not_held: &[(DevNum, NoClaim)]) -> Vec<String> {
    const TOLD: usize = 100;
    let line = |(dev, why): &(DevNum, NoClaim)| format!("device number {dev} cannot be kept: {why}");
    let more = not_held.len().saturating_sub(TOLD);
    let more = (more > 0).then(|| format!("nor can {more} other device numbers"));
    not_held.iter().take(TOLD).map(line).chain(more).collect()
}

fn answer(socket: &OwnedFd, making: &mut Result<Making, String>, index: u32) -> Result<(), Errno> {
    match making.as_mut().map_err(|error| error.clone()).and_then(|making| making.up_to(index as usize)) {
        Ok(mounts) if index == NUMBERS => send_numbers(socket, mounts),
        Ok(mounts) => {
            let some: Vec<_> =
                mounts.iter().skip(index as usize).take(MOUNTS_AT_ONCE).map(AsFd::as_fd).collect();
            send(socket, if some.is_empty() { "no such mount" } else { "" }, &some)
        }
        Err(error) => send(socket, &error, &[]),
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

/// The mounts, owned by a process group in the pid namespace of the root task, in the order of the images.
struct Making {
    /// The child that makes them, until it has ended.
    child: Option<(fork::Child, OwnedFd)>,
    /// It has made superblocks, and completes them.
    unfinished: bool,
    made: Vec<OwnedFd>,
    count: usize,
    /// Why there are no more.
    failed: Option<String>,
}

impl Making {
    /// Start a child that makes `first`, and then `others`, whenever it is told to.
    fn start(
        image: &Checkpoint,
        first: Configured<'_>,
        others: &[RestorePlan],
        claims: Claims,
        asker: i32,
    ) -> Result<Self, String> {
        let call = |what: &'static str| move |errno: Errno| format!("cannot {what}: {errno}");
        let namespace = rustix::fs::open(
            format!("/proc/{asker}/ns/pid"),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(call("open the root task's pid namespace"))?;
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWPID)
            .map_err(nix_errno)
            .map_err(call("enter the root task's pid namespace"))?;
        let (ours, its) = socket_pair().map_err(call("make a socket pair"))?;
        // A number is free when nobody has its placeholder any more: our copies go with this closure.
        let child = fork::fork(move || {
            let made = make(image, first, others, claims, &its);
            made.err().map_or(0, |error| send(&its, &error, &[]).map_or(1, |()| 1))
        })
        .map_err(call("start a process in the container"))?;
        let count = image.mounts.len();
        Ok(Self { child: Some((child, ours)), unfinished: false, made: Vec::new(), count, failed: None })
    }

    /// All that are there, when the one at `index` is. Whoever asks waits.
    fn up_to(&mut self, index: usize) -> Result<&[OwnedFd], String> {
        while self.made.len() < self.count && self.failed.is_none() {
            if !self.unfinished {
                self.make_more();
            } else if self.made.len() <= index {
                self.take();
            } else {
                break;
            }
        }
        self.failed.clone().map_or(Ok(&self.made), Err)
    }

    /// Until somebody asks on `socket`. What the child has completed is taken meanwhile, and so is its end, before which a pid namespace
    /// cannot end.
    fn wait(&mut self, socket: &OwnedFd) -> Result<(), Errno> {
        while let Some((_, child)) = &self.child {
            let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(child, PollFlags::IN)];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
            if !fds[0].revents().is_empty() {
                break;
            }
            self.take();
        }
        Ok(())
    }

    /// Have the superblocks of the next made.
    fn make_more(&mut self) {
        // One that has died is noticed below.
        let _ = self.child.as_ref().map(|(_, child)| send(child, "", &[]));
        self.unfinished = self.receive().is_some();
    }

    /// Complete mounts. With the last one the child is gone.
    fn take(&mut self) {
        let Some(some) = self.receive() else { return };
        if some.len() != MOUNTS_AT_ONCE.min(self.count - self.made.len()) {
            self.failed = Some("there are too few descriptors for all mounts".to_owned());
        }
        self.made.extend(some);
        self.unfinished = false;
        if self.made.len() == self.count {
            let _ = self.child.take().map(|(child, _)| child.wait());
        }
    }

    /// What the child sends next. An error is kept, and its end.
    fn receive(&mut self) -> Option<Vec<OwnedFd>> {
        let failed = match self.child.as_ref().map(|(_, child)| receive(child)) {
            Some(Ok((text, mounts))) if text.is_empty() => return Some(mounts),
            Some(Ok((text, _))) => text,
            _ => "the process that makes autofs mounts died".to_owned(),
        };
        self.failed = Some(failed);
        self.child = None;
        None
    }
}

/// In the child: some mounts whenever it is told to. Says when their superblocks are there, and then sends them.
fn make(
    image: &Checkpoint,
    first: Configured<'_>,
    others: &[RestorePlan],
    mut claims: Claims,
    socket: &OwnedFd,
) -> Result<(), String> {
    let call = |what: &'static str| move |errno| format!("cannot {what}: {errno}");
    // It has a copy of the maker's end of the socket, too.
    let killed = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(killed).map_err(call("be bound to the maker"))?;
    // The owner: a process group of the container's pid namespace.
    nix::unistd::setsid().map_err(nix_errno).map_err(call("begin a session"))?;
    apart::hurry();
    let failed = |error: CreateError| error.to_string();
    let gone = |errno| format!("nobody wants mounts any more: {errno}");
    let mut others = others.iter();
    let mut configured = Ok(first);
    loop {
        // First: what was sent to an end that closes takes the answer with it.
        receive(socket).map_err(gone)?;
        let created = configured.and_then(|configured| configured.create(&mut claims)).map_err(failed)?;
        send(socket, "", &[]).map_err(gone)?;
        let mounts: Vec<OwnedFd> =
            created.finish(&mut claims).map_err(failed)?.into_mounts().map(OwnedFd::from).collect();
        send(socket, "", &mounts.iter().map(AsFd::as_fd).collect::<Vec<_>>()).map_err(gone)?;
        let Some(next) = others.next() else { return Ok(()) };
        configured = create::configure(image, next);
    }
}

/// Everything is made, at its number: nothing of a new container is there yet.
fn step(index: usize, mount: &DumpedMount, renumber: bool) -> Step {
    let dev = mount.facts.dev;
    // systemd ignores requests that come with another number, and so does automount(8) but for indirect maps. Only the system manager can be told.
    let number = match mount.facts.master {
        Master::Systemd { process, .. } if !renumber || process.pid != 1 => Number::Must(dev),
        _ if mount.facts.known_by_inode() => Number::Must(dev),
        _ => Number::May(dev),
    };
    Step {
        mount: index,
        path: mount.facts.path.clone(),
        action: Action::Create { number, in_tree: false },
        attach: Attach::Nobody,
    }
}

/// Placeholders and mounts are descriptors, here and in the child, and some mounts that are not yet made.
fn raise_limit(mounts: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = 2 * mounts as u64 + 64 + 3 * MOUNTS_AT_ONCE as u64;
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
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
        std::thread::spawn(move || serve(&its, &image, false));
        assert_eq!(receive(&ours).unwrap().0, "");
        Maker { socket: ours, ahead: (0, VecDeque::new()) }
    }

    #[test]
    fn a_mount_that_is_not_there() {
        let (ours, its) = socket_pair().unwrap();
        let mut nothing =
            Ok(Making { child: None, unfinished: false, made: Vec::new(), count: 0, failed: None });
        for index in [0, 7, NUMBERS - 1] {
            answer(&its, &mut nothing, index).unwrap();
            assert_eq!(receive(&ours).unwrap().0, "no such mount");
        }
    }

    #[test]
    fn thousands_of_warnings_fit_into_a_message() {
        let not_held: Vec<_> = (0..10_000).map(|minor| (DevNum::anonymous(minor), NoClaim::Taken)).collect();
        let (ours, its) = socket_pair().unwrap();
        send(&its, &warnings(&not_held).join("\n"), &[]).unwrap();
        let (text, _) = receive(&ours).unwrap();
        assert_eq!(text.lines().last(), Some("nor can 9900 other device numbers"));
        assert_eq!(warnings(&not_held[..2]).len(), 2);
    }

    #[test]
    fn requests_of_other_lengths_end_it() {
        for nonsense in [&b""[..], b"1", b"123", &[0; 70_000]] {
            let mut maker = maker();
            rustix::net::send(&maker.socket, nonsense, SendFlags::NOSIGNAL).unwrap();
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
        rustix::net::sendmsg(&maker.socket, &request, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        assert!(receive(&maker.socket).is_ok());
        // Nobody has a copy.
        drop(write);
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
    }
}
