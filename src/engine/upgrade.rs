//! Upgrade in place: the process becomes another program, usually a newer one, and goes on with the same pipe.
//!
//! Process, process group and pipe stay, so that to the kernel nothing changes: no mount is touched, and requests that come
//! meanwhile wait in the pipe. What the old program has read and not answered is handed over; everything else
//! the new one asks of the kernel, as after any start ([`super::reconnect`]).

use super::control::server::{Listener, Opened};
use crate::sys::packet::{Packet, PacketPipe};
use crate::sys::process::inherit;
use crate::sys::{Errno, io_errno, nix_errno};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsString};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The argument by which the new program is told of what it goes on with.
pub const ARGUMENT: &str = "--carried=";
/// Rises when [`Written`] changes.
const FORMAT: u32 = 1;
/// How long a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(30);

/// The other program cannot take over; this one goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// It does not say that it is autofs-cr.
    #[error("{} is not an autofs-cr that runs here: {why}", path.display())]
    NotAutofsCr {
        /// The program.
        path: PathBuf,
        /// What it said or did instead.
        why: String,
    },
    /// A system call.
    #[error("cannot {what}: {errno}")]
    Call {
        /// What was to be done.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// What was handed over makes no sense to this version.
    #[error("what the program before left is not understood: {0}")]
    Format(String),
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> UpgradeError {
    move |errno| UpgradeError::Call { what, errno }
}

/// What a program goes on with.
#[derive(Debug)]
pub struct Carried {
    /// The pipe of all mounts.
    pub pipe: PacketPipe,
    /// Sockets that listen.
    pub listeners: Vec<Listener>,
    /// The rest.
    pub state: Before,
}

/// What an engine knows from the program that it was before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// How often it became another program.
    pub times: u32,
    /// Requests without an answer.
    pub packets: Vec<Packet>,
    /// Directories that were made for mounts: mount point and how many.
    pub dirs: Vec<(Vec<u8>, u32)>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    read: RawFd,
    write: RawFd,
    listeners: Vec<(RawFd, Opened)>,
    state: Before,
}

/// Copies of the descriptors that go to the next program, and who that is.
#[derive(Debug)]
pub struct Luggage {
    read: OwnedFd,
    write: OwnedFd,
    listeners: Vec<(OwnedFd, Opened)>,
    /// How often this process became another program.
    pub times: u32,
}

impl Luggage {
    /// Of an engine with this pipe and these sockets.
    pub fn pack(pipe: &PacketPipe, listeners: &[Listener], times: u32) -> std::io::Result<Self> {
        let copy =
            |listener: &Listener| Ok((listener.as_fd().try_clone_to_owned()?, listener.opened.clone()));
        Ok(Self {
            read: pipe.read.try_clone()?,
            write: pipe.write.try_clone()?,
            listeners: listeners.iter().map(copy).collect::<std::io::Result<_>>()?,
            times,
        })
    }

    /// Become `program`, with the arguments of this one. Returns only when that fails.
    pub fn become_program(&self, program: &Path, mut state: Before) -> UpgradeError {
        state.times = self.times + 1;
        let done = self.try_exec(program, state);
        // They stay ours.
        let _ = self.mark(FdFlags::CLOEXEC);
        done.err().unwrap_or(UpgradeError::Call { what: "start the program", errno: Errno::NOEXEC })
    }

    fn try_exec(&self, program: &Path, state: Before) -> Result<(), UpgradeError> {
        let written = Written {
            read: self.read.as_raw_fd(),
            write: self.write.as_raw_fd(),
            listeners: self.listeners.iter().map(|(fd, opened)| (fd.as_raw_fd(), opened.clone())).collect(),
            state,
        };
        let file = write(&written)?;
        self.mark(FdFlags::empty()).map_err(failed("keep descriptors"))?;
        fcntl_setfd(&file, FdFlags::empty()).map_err(failed("keep descriptors"))?;
        let carried = format!("{ARGUMENT}{}", file.as_raw_fd());
        let arguments = arguments(std::env::args_os().collect(), &carried);
        let environment = std::env::vars_os().map(|(name, value)| {
            let mut both = name;
            both.push("=");
            both.push(value);
            both
        });
        let (Some(path), Some(arguments), Some(environment)) =
            (c_string(program.as_os_str().to_owned()), c_strings(arguments), c_strings(environment))
        else {
            return Err(failed("start the program")(Errno::INVAL));
        };
        // Not std's exec, which lets signals in: those that come now wait for the next program.
        let Err(errno) = nix::unistd::execve(&path, &arguments, &environment);
        Err(failed("start the program")(nix_errno(errno)))
    }

    fn mark(&self, flags: FdFlags) -> Result<(), Errno> {
        let listeners = self.listeners.iter().map(|(fd, _)| fd);
        [&self.read, &self.write].into_iter().chain(listeners).try_for_each(|fd| fcntl_setfd(fd, flags))
    }
}

fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}

fn c_strings(texts: impl IntoIterator<Item = OsString>) -> Option<Vec<CString>> {
    texts.into_iter().map(c_string).collect()
}

/// The arguments of the next program: those of this one, with another descriptor. The descriptor stands behind the name
/// of the command, or behind that of the program where that is the command.
fn arguments(all: Vec<OsString>, carried: &str) -> Vec<OsString> {
    let old = |argument: &OsString| argument.as_bytes().starts_with(ARGUMENT.as_bytes());
    let mut all: Vec<OsString> = all.into_iter().filter(|argument| !old(argument)).collect();
    let program =
        all.first().is_some_and(|program| Path::new(program).file_name() == Some("automount".as_ref()));
    let command = all.iter().position(|argument| argument == "automount").filter(|_| !program);
    all.insert((command.unwrap_or(0) + 1).min(all.len()), carried.into());
    all
}

fn write(written: &Written) -> Result<OwnedFd, UpgradeError> {
    let bytes = postcard::to_allocvec(written).map_err(|error| UpgradeError::Format(error.to_string()))?;
    let file = memfd_create("autofs-cr", MemfdFlags::CLOEXEC).map_err(failed("keep the state"))?;
    let mut file = std::fs::File::from(file);
    let io = |error: std::io::Error| failed("keep the state")(io_errno(error));
    file.write_all(&[&FORMAT.to_ne_bytes(), &bytes[..]].concat()).map_err(io)?;
    file.rewind().map_err(io)?;
    Ok(file.into())
}

/// What the program before left behind descriptor `number`.
pub fn take(number: RawFd) -> Result<Carried, UpgradeError> {
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(inherit(number).map_err(failed("take the state over"))?);
    file.read_to_end(&mut bytes).map_err(|error| UpgradeError::Format(error.to_string()))?;
    let (format, bytes) =
        bytes.split_first_chunk().ok_or_else(|| UpgradeError::Format("it is too short".into()))?;
    let format = u32::from_ne_bytes(*format);
    if format != FORMAT {
        return Err(UpgradeError::Format(format!("its format is {format}, not {FORMAT}")));
    }
    let written: Written =
        postcard::from_bytes(bytes).map_err(|error| UpgradeError::Format(error.to_string()))?;
    let take = |fd| inherit(fd).map_err(failed("take a descriptor over"));
    let pipe = PacketPipe { read: take(written.read)?, write: take(written.write)? };
    let listeners = written.listeners.into_iter().map(|(fd, opened)| Ok(Listener::again(take(fd)?, opened)));
    Ok(Carried { pipe, listeners: listeners.collect::<Result<_, _>>()?, state: written.state })
}

/// This program, as its file is now: a package may have put another in its place.
pub fn own_program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => OsString::from_vec(path.to_vec()).into(),
        None => path,
    }
}

/// Does a program say that it is autofs-cr? Once we have become it, it is too late to ask.
pub fn check(program: &Path) -> Result<(), UpgradeError> {
    let wrong = |why: String| UpgradeError::NotAutofsCr { path: program.into(), why };
    if !program.is_absolute() {
        return Err(wrong("its path is not absolute".into()));
    }
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| wrong(error.to_string()))?;
    let begin = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if begin.elapsed() > VERSION_LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(wrong("it does not tell its version".into()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        let _ = out.take(4096).read_to_string(&mut said);
    }
    let first = said.lines().next().unwrap_or_default();
    match first.contains("autofs-cr ") {
        true => Ok(()),
        false => Err(wrong(format!("asked for its version it says {first:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::DevNum;
    use crate::sys::control::Token;
    use crate::sys::packet::{Kind, packet_pipe};
    use std::os::fd::IntoRawFd;

    #[test]
    fn what_is_left_is_taken_up() {
        let packet = Packet {
            kind: Kind::ExpireIndirect,
            token: Token(7),
            dev: DevNum::anonymous(300),
            ino: 12,
            uid: 1,
            gid: 2,
            pid: 3,
            tgid: 4,
            name: b"k\xff".to_vec(),
        };
        let state = Before { times: 3, packets: vec![packet], dirs: vec![(b"/a\xff".to_vec(), 2)] };
        let pipe = packet_pipe().unwrap();
        let written = Written {
            read: pipe.read.into_raw_fd(),
            write: pipe.write.into_raw_fd(),
            listeners: Vec::new(),
            state: state.clone(),
        };
        let carried = take(write(&written).unwrap().into_raw_fd()).unwrap();
        assert_eq!(carried.state, state);
        assert_eq!(carried.pipe.write.as_raw_fd(), written.write);
        rustix::io::write(&carried.pipe.write, b"x").unwrap();
        assert_eq!(rustix::io::read(&carried.pipe.read, &mut [0; 1]), Ok(1));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bytes in [&b""[..], &[2, 0, 0, 0], &FORMAT.to_ne_bytes()] {
            let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
            let mut file = std::fs::File::from(file);
            file.write_all(bytes).unwrap();
            file.rewind().unwrap();
            assert!(matches!(take(file.into_raw_fd()), Err(UpgradeError::Format(_))), "{bytes:?}");
        }
        assert!(matches!(take(99_999), Err(UpgradeError::Call { .. })));
    }

    #[test]
    fn arguments_stay() {
        let next = |all: &[&str]| {
            let all = arguments(all.iter().map(OsString::from).collect(), "--carried=9");
            all.into_iter().map(|argument| argument.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(next(&["autofs-cr", "-v", "automount", "m"]), "autofs-cr -v automount --carried=9 m");
        assert_eq!(next(&["autofs-cr", "automount", "--carried=4"]), "autofs-cr automount --carried=9");
        assert_eq!(next(&["/usr/sbin/automount", "-f"]), "/usr/sbin/automount --carried=9 -f");
    }

    #[test]
    fn another_program_is_refused() {
        for program in ["/bin/true", "/none", "true", "/bin/cat"] {
            assert!(check(Path::new(program)).is_err(), "{program}");
        }
    }
}
