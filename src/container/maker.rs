//! The process that holds the device numbers and makes the superblocks.
//!
//! It is forked off CRIU before CRIU mounts anything itself, and holds every device number of the images by a
//! placeholder. When the container's root task comes to its first autofs mount, they are made inside the root
//! task's pid namespace, because the pid namespace of a mount's owner is the mount's for ever. The root task gets complete
//! mounts, many at a time. Everything is made outside the container's user namespace, where autofs cannot be mounted.
//!
//! What the root task mounts besides must not get a number that is free for a moment. So superblocks with old numbers are
//! made ([`Configured::create`]) while it waits for an answer; all else is done beside it.
//!
//! A process cannot enter a pid namespace, but its children begin there. Each time a child does the work that uses the maker's memory
//! ([`fork::lend`]); with the last mount the last one is gone, before CRIU wants its number for somebody else.
//!
//! One socket joins them, which the root task inherits from CRIU. When nobody has its other end any more,
//! the maker ends, and with it whatever was not fetched.

use super::apart::{self, Message, receive, receive_message, receive_value, send, send_value};
use super::owner::ROOTS_AT_ONCE;
use super::restore::each_once;
use crate::discover::facts::Master;
use crate::image::Checkpoint;
use crate::image::checkpoint::DumpedMount;
use crate::image::criu::Mounts;
use crate::restore::claim::{ASIDE, Claims, NoClaim};
use crate::restore::create::{self, Configured, Created, Prepared};
use crate::restore::plan::{Action, Attach, Number, RestorePlan, Step};
use crate::sys::control::MountFd;
use crate::sys::mount::MountError;
use crate::sys::process::{open_pidfd, runs};
use crate::sys::{DevNum, Errno, fork, mountns, nix_errno};
use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getpid, kill_process, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};

/// How many mounts are made, and sent, at a time: with the first ones goes something else.
const AT_ONCE: usize = apart::BATCH - 1;

/// The maker as CRIU and the root task see it. Dropping lets it end.
#[derive(Debug)]
pub struct Maker {
    socket: OwnedFd,
    process: OwnedFd,
    /// Mounts that came before they were wanted: the number of the first, and the mounts.
    ahead: (u32, VecDeque<OwnedFd>),
    /// In the root task, which closes it with all that it has from CRIU when everything is mounted.
    mounting: Option<OwnedFd>,
}

/// What it is asked for. Mounts are numbered in the order of the images.
#[derive(Serialize, Deserialize)]
enum Request {
    /// By the root task: this mount, and some that follow.
    Mount(u32),
    /// What all of them are ([`Made`]).
    Made,
    /// Their root directories, to be sent through the socket that comes with this.
    Roots(Vec<u32>),
}

/// What a new mount is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Made {
    /// Its device number.
    pub dev: DevNum,
    /// The inode of its root directory.
    pub ino: u64,
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
    /// Start it for `mounts`, each superblock once. `renumber`: where the number is taken, systemd's mounts get another one, too.
    pub fn start(mounts: &Mounts, renumber: bool) -> Result<Self, AskError> {
        let (socket, pid) = apart::start(|socket| {
            let served = rustix::net::sockopt::set_socket_passcred(socket, true);
            // Where nobody listens nobody can be told.
            let _ = served.and_then(|()| serve(socket, mounts, renumber));
        })?;
        let process = open_pidfd(pid.as_raw_nonzero().get())?;
        Ok(Self { socket, process, ahead: (0, VecDeque::new()), mounting: None })
    }

    /// End it at once: while it takes numbers, or waits for its turn, it does not see that nobody wants them any more.
    pub fn end(self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Wait until every number is held; with a line for each that cannot be. To be called once.
    pub fn claimed(&self) -> Result<Vec<String>, AskError> {
        let (text, _) = receive(&self.socket)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The complete mount number `index`, detached. To be called by the root task. Those that follow come with it:
    /// CRIU mounts mostly in the order of the images.
    pub fn fetch(&mut self, index: u32) -> Result<OwnedFd, AskError> {
        let (next, ahead) = &mut self.ahead;
        if *next != index || ahead.is_empty() {
            send_value(&self.socket, &Request::Mount(index))?;
            let (text, fds) = receive(&self.socket)?;
            *ahead = fds.into();
            if self.mounting.is_none() {
                self.mounting = ahead.pop_front();
            }
            if ahead.is_empty() {
                let why =
                    if text.is_empty() { "there is no descriptor left for it".to_owned() } else { text };
                return Err(AskError::Refused(why));
            }
        }
        *next = index + 1;
        ahead.pop_front().ok_or(AskError::Gone(Errno::PIPE))
    }

    /// What all mounts are that were made.
    pub fn made(&self) -> Result<Vec<Made>, AskError> {
        send_value(&self.socket, &Request::Made)?;
        Ok(receive_value(&self.socket)?)
    }

    /// A socket through which root directories of these superblocks come, [`ROOTS_AT_ONCE`] in a message.
    pub fn roots(&self, indices: Vec<u32>) -> Result<OwnedFd, AskError> {
        let (ours, its) = apart::socket_pair()?;
        apart::send_value_with(&self.socket, &Request::Roots(indices), &[its.as_fd()])?;
        Ok(ours)
    }
}

/// The maker's life.
fn serve(socket: &OwnedFd, mounts: &Mounts, renumber: bool) -> Result<(), Errno> {
    apart::hurry();
    let (mut claims, not_held) = match claim(mounts) {
        Ok(claimed) => claimed,
        Err(error) => return send(socket, &format!("no device number can be kept: {error}"), &[]),
    };
    send(socket, &warnings(&not_held).join("\n"), &[])?;
    // CRIU has images to read before it mounts anything.
    claims.make_way();
    let image = match mounts.decode() {
        Ok(image) => each_once(image),
        // Who asks has read the same, and will not go on.
        Err(_) => return Ok(()),
    };
    let plans = plans(&image, renumber);
    let mut making = Making::new(&image, &plans, claims)?;
    let mut is_inside = false;
    loop {
        making.wait(socket)?;
        let Message { value, fds, sender } = receive_message(socket)?;
        match value {
            Request::Mount(index) => {
                let asker = sender.ok_or(Errno::PIPE)?;
                if !std::mem::replace(&mut is_inside, true) {
                    making.enter(asker);
                }
                let answered = match making.next {
                    Some(_) => in_child(|| making.make(socket, index))??,
                    None => false,
                };
                if !answered {
                    making.send(socket, index)?;
                }
            }
            Request::Made => send_value(socket, &making.facts)?,
            Request::Roots(indices) => {
                let [through] = &fds[..] else { return Err(Errno::PIPE) };
                // Whoever waits for them sees the end.
                let _ = making.send_roots(&indices, through);
            }
        }
    }
}

/// [`fork::lend`]. Where the child is killed on the way, as when the root task's pid namespace ends, our memory is not to be trusted.
fn in_child<T>(body: impl FnOnce() -> T) -> Result<T, Errno> {
    let lent = fork::lend(body)?;
    lent.ok_or_else(|| {
        let _ = kill_process(getpid(), Signal::KILL);
        Errno::SRCH
    })
}

/// Some mounts each, in the order of the images.
fn plans(image: &Checkpoint, renumber: bool) -> Vec<RestorePlan> {
    let steps: Vec<_> =
        image.mounts.iter().enumerate().map(|(index, mount)| step(index, mount, renumber)).collect();
    let plan = |some: &[Step]| RestorePlan { steps: some.to_vec(), ..RestorePlan::default() };
    steps.chunks(AT_ONCE).map(plan).collect()
}

/// As many as fit into one message.
fn warnings(not_held: &[(DevNum, NoClaim)]) -> Vec<String> {
    const TOLD: usize = 100;
    let line = |(dev, why): &(DevNum, NoClaim)| format!("device number {dev} cannot be kept: {why}");
    let more = not_held.len().saturating_sub(TOLD);
    let more = (more > 0).then(|| format!("nor can {more} other device numbers"));
    not_held.iter().take(TOLD).map(line).chain(more).collect()
}

/// Hold the device numbers; with those that cannot be.
fn claim(mounts: &Mounts) -> Result<(Claims, Vec<(DevNum, NoClaim)>), MountError> {
    let call = |what| move |errno| MountError::At { what, path: "/".into(), errno };
    // Who decodes all tells what is wrong with it.
    let numbers = mounts.numbers().unwrap_or_default();
    let others = &mounts.all_numbers() - &numbers;
    // What fills numbers up stays out of every other namespace.
    mountns::unshare_private().map_err(call("unshare"))?;
    raise_limit(numbers.len());
    let mut claims = Claims::new();
    claims.leave(others);
    let not_held = claims.hold(numbers)?;
    Ok((claims, not_held))
}

/// The mounts, owned by process groups in the pid namespace of the root task, in the order of the images.
struct Making<'a> {
    image: &'a Checkpoint,
    plans: std::slice::Iter<'a, RestorePlan>,
    /// What is made next.
    next: Option<Configured<'a>>,
    /// Complete ones.
    made: Vec<OwnedFd>,
    /// What these are.
    facts: Vec<Made>,
    /// Root directories that others have, too.
    roots: Vec<MountFd>,
    /// Until all else is mounted, too, which might get numbers that other restores want: they wait.
    claims: Option<Claims>,
    /// Shows that it is: the other end, which the root task gets, is closed.
    mounting: (OwnedFd, Option<OwnedFd>),
    /// The root task, once it has asked.
    asker: Option<Pid>,
    /// Why there are no more.
    failed: Option<String>,
}

impl<'a> Making<'a> {
    fn new(image: &'a Checkpoint, plans: &'a [RestorePlan], claims: Claims) -> Result<Self, Errno> {
        let (mounting, end) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut making = Self {
            image,
            plans: plans.iter(),
            next: None,
            made: Vec::new(),
            facts: Vec::new(),
            roots: Vec::new(),
            claims: Some(claims),
            mounting: (mounting, Some(end)),
            asker: None,
            failed: None,
        };
        making.configure();
        Ok(making)
    }

    /// Until there is a request.
    fn wait(&mut self, socket: &OwnedFd) -> Result<(), Errno> {
        while self.claims.is_some() {
            let mut ready =
                [PollFd::new(socket, PollFlags::IN), PollFd::new(&self.mounting.0, PollFlags::empty())];
            retry_on_intr(|| poll(&mut ready, None))?;
            let [request, mounted] = ready.map(|fd| !fd.revents().is_empty());
            // Or the root task is no more: then numbers come first, as everything ends.
            if mounted && !self.asker.is_some_and(|asker| runs(asker.as_raw_nonzero().get())) {
                return Err(Errno::PIPE);
            }
            if mounted {
                self.claims = None;
            }
            if request {
                break;
            }
        }
        Ok(())
    }

    fn configure(&mut self) {
        let next = self.plans.next().map(|plan| create::configure(self.image, plan));
        self.next = next.and_then(|next| self.kept(next));
    }

    /// Children begin in the pid namespace of `asker`.
    fn enter(&mut self, asker: Pid) {
        self.asker = Some(asker);
        let path = format!("/proc/{}/ns/pid", asker.as_raw_nonzero());
        let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let enter = |namespace| setns(namespace, CloneFlags::CLONE_NEWPID).map_err(nix_errno);
        let entered = namespace.and_then(enter);
        self.kept(entered.map_err(|errno| format!("cannot enter the root task's pid namespace: {errno}")));
    }

    /// In a child, while the root task waits for mount `index`: make it, and the superblocks of those that follow, if there are any.
    /// Then the root task gets its answer, and these are completed. Returns whether it got one.
    fn make(&mut self, socket: &OwnedFd, index: u32) -> Result<bool, Errno> {
        // The owner is a process group of the container's pid namespace.
        let session = nix::unistd::setsid().map_err(nix_errno);
        self.kept(session.map_err(|errno| format!("cannot begin a session in the container: {errno}")));
        apart::hurry();
        while self.made.len() <= index as usize
            && let Some(created) = self.create()
        {
            self.finish(created);
        }
        let created = self.create();
        // With the answer it goes on mounting.
        self.make_way();
        let Some(created) = created else { return Ok(false) };
        self.send(socket, index)?;
        self.finish(created);
        self.make_way();
        Ok(true)
    }

    fn make_way(&mut self) {
        self.claims.iter_mut().for_each(Claims::make_way);
    }

    /// The superblocks of the next ones.
    fn create(&mut self) -> Option<Created<'a>> {
        let next = self.next.take().filter(|_| self.failed.is_none())?;
        let created = next.create(self.claims.as_mut()?);
        self.kept(created)
    }

    fn finish(&mut self, created: Created<'a>) {
        let Some(claims) = &mut self.claims else { return };
        let finished = created.finish(claims);
        for mount in self.kept(finished).into_iter().flat_map(Prepared::into_mounts).map(OwnedFd::from) {
            if let Some(stat) = self.kept(rustix::fs::fstat(&mount)) {
                self.facts.push(Made { dev: DevNum::from_st_dev(stat.st_dev), ino: stat.st_ino });
                self.made.push(mount);
            }
        }
        self.configure();
    }

    /// An error is told to whoever asks.
    fn kept<T, E: Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.failed = Some(error.to_string())).ok()
    }

    fn send(&mut self, socket: &OwnedFd, index: u32) -> Result<(), Errno> {
        if let Some(why) = &self.failed {
            return send(socket, why, &[]);
        }
        let mut some = self.made.iter().skip(index as usize).take(AT_ONCE).peekable();
        if some.peek().is_none() {
            return send(socket, "no such mount", &[]);
        }
        let end = self.mounting.1.take();
        send(socket, "", &end.iter().chain(some).map(AsFd::as_fd).collect::<Vec<_>>())
    }

    /// The root directories of mounts, whatever is mounted on them: good for commands to the superblock. They stay open here: to close
    /// the last descriptor of one takes long, and tasks are stopped while their owner closes them.
    fn send_roots(&mut self, indices: &[u32], through: &OwnedFd) -> Result<(), Errno> {
        for some in indices.chunks(ROOTS_AT_ONCE) {
            let made = some.iter().map(|index| self.made.get(*index as usize).ok_or(Errno::NOENT));
            let made = made.collect::<Result<Vec<_>, Errno>>()?;
            let open = || made.iter().map(create::open_root).collect::<Result<Vec<_>, Errno>>();
            let roots = open().or_else(|_| {
                // There may be too many.
                self.roots.clear();
                open()
            })?;
            send(through, "", &roots.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
            self.roots.extend(roots);
        }
        Ok(())
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

/// Placeholders and mounts are descriptors, root directories, too, some mounts that are not yet made, and fillers that make way.
fn raise_limit(mounts: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = (2 * mounts + ASIDE + 64 + 4 * AT_ONCE) as u64;
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

#[cfg(test)]
mod tests {
    use super::super::apart::socket_pair;
    use super::*;
    use rustix::net::SendFlags;

    /// In a thread: no child can be forked off here.
    fn maker() -> Maker {
        let (ours, its) = socket_pair().unwrap();
        rustix::net::sockopt::set_socket_passcred(&its, true).unwrap();
        std::thread::spawn(move || serve(&its, &Mounts::default(), false));
        let process = open_pidfd(getpid().as_raw_nonzero().get()).unwrap();
        let maker = Maker { socket: ours, process, ahead: (0, VecDeque::new()), mounting: None };
        assert_eq!(maker.claimed().unwrap(), [""; 0]);
        maker
    }

    #[test]
    fn a_mount_that_is_not_there() {
        for index in [0, 7, u32::MAX] {
            let answer = maker().fetch(index).unwrap_err();
            assert!(answer.to_string().contains("no such mount"), "{answer}");
        }
        assert_eq!(maker().made().unwrap(), []);
        assert!(matches!(receive(&maker().roots(vec![0]).unwrap()), Err(Errno::PIPE)));
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
    fn what_is_no_request_ends_it() {
        for nonsense in [&b""[..], b"\0", b"\0\x09", &[0xff; 70_000]] {
            let mut maker = maker();
            rustix::net::send(&maker.socket, nonsense, SendFlags::NOSIGNAL).unwrap();
            assert!(matches!(maker.fetch(0), Err(AskError::Gone(_))), "{}", nonsense.len());
        }
    }

    #[test]
    fn descriptors_that_are_sent_along() {
        let maker = maker();
        let (read, write) = rustix::pipe::pipe().unwrap();
        apart::send_value_with(&maker.socket, &Request::Made, &[write.as_fd()]).unwrap();
        assert_eq!(receive_value::<Vec<Made>>(&maker.socket).unwrap(), []);
        // It keeps none.
        drop((write, maker));
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0));
    }
}
