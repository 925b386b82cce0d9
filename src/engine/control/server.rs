//! The engine's end of its control socket, and the listener for metrics.

use super::{ANSWER_LIMIT, DIRECTORY, LINE_LIMIT, REQUEST_MAX, Reply, Request};
use crate::engine::upgrade;
use crate::log;
use calloop::channel::Sender;
use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// The most that is written at once: a slow reader is looked at in between.
const WRITE_MAX: usize = 64 * 1024;
/// Connections at once; more are refused.
const CONNECTIONS: usize = 16;

/// A listener cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another engine answers there.
    #[error("control socket {}: another engine answers there; end that one, or choose another socket", .0.display())]
    InUse(PathBuf),
    /// It cannot be made.
    #[error("socket {}: {error}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The address of the metrics cannot be used.
    #[error("metrics at {address}: {error}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

/// Where metrics are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAt {
    /// A unix socket: `unix:PATH`.
    Unix(PathBuf),
    /// A port of this machine: `127.0.0.1:9300`, `[::1]:9300`.
    Tcp(SocketAddr),
}

impl std::str::FromStr for MetricsAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match Path::new(path).is_absolute() {
                true => Ok(Self::Unix(path.into())),
                false => Err(format!("{path} is not an absolute path")),
            };
        }
        let address: SocketAddr =
            text.parse().map_err(|_| "neither unix:PATH nor ADDRESS:PORT".to_owned())?;
        match address.ip().is_loopback() {
            true => Ok(Self::Tcp(address)),
            false => Err(format!("{} is not an address of the loopback interface", address.ip())),
        }
    }
}

/// A question to the reactor.
#[derive(Debug)]
pub struct Ask {
    /// What.
    pub request: Request,
    /// Where the answer goes.
    pub reply: SyncSender<Reply>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// What a listening socket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// It speaks HTTP, and tells metrics only.
    http: bool,
    /// Its path, if it is a unix socket.
    path: Option<Vec<u8>>,
}

/// A listening socket; its name goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// What it is.
    pub opened: Opened,
    /// As many references as connections, and one.
    connections: Arc<()>,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(listener, _) => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            let _ = fs::remove_file(path);
        }
    }
}

impl Listener {
    /// The control socket; without a path `/run/autofs-cr/PID.sock`.
    pub fn control(path: Option<&Path>) -> Result<Self, ListenError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => {
                let made = DirBuilder::new().mode(0o700).recursive(true).create(DIRECTORY);
                made.map_err(|error| ListenError::Socket { path: DIRECTORY.into(), error })?;
                Path::new(DIRECTORY).join(format!("{}.sock", std::process::id()))
            }
        };
        Ok(Self::new(unix(path, 0o600)?, false))
    }

    /// The control socket at its usual place; an engine can do without.
    pub fn usual() -> Option<Self> {
        Self::control(None).inspect_err(|error| tracing::warn!("{error}; no control by autofs-cr ctl")).ok()
    }

    /// The listener for metrics.
    pub fn metrics(at: &MetricsAt) -> Result<Self, ListenError> {
        let socket = match at {
            MetricsAt::Unix(path) => unix(path.clone(), 0o660)?,
            MetricsAt::Tcp(address) => {
                let fail = |error| ListenError::Address { address: *address, error };
                let listener = TcpListener::bind(address).map_err(fail)?;
                listener.set_nonblocking(true).map_err(fail)?;
                Socket::Tcp(listener)
            }
        };
        Ok(Self::new(socket, true))
    }

    fn new(socket: Socket, http: bool) -> Self {
        let path = match &socket {
            Socket::Unix(_, path) => Some(path.as_os_str().as_bytes().to_vec()),
            Socket::Tcp(_) => None,
        };
        Self { socket, opened: Opened { http, path }, connections: Arc::new(()) }
    }

    /// One that the program before had opened.
    pub fn again(fd: OwnedFd, opened: Opened) -> Self {
        let socket = match &opened.path {
            Some(path) => Socket::Unix(fd.into(), OsStr::from_bytes(path).into()),
            None => Socket::Tcp(fd.into()),
        };
        Self { socket, opened, connections: Arc::new(()) }
    }

    /// Every connection that waits gets a thread. Does not block.
    pub fn accept(&self, asks: &Sender<Ask>) {
        loop {
            let accepted = match &self.socket {
                Socket::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
                Socket::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            };
            match accepted {
                Ok(stream) => self.serve(stream, asks),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return tracing::warn!(%error, "a connection to the control socket is lost"),
            }
        }
    }

    fn serve(&self, stream: Stream, asks: &Sender<Ask>) {
        if Arc::strong_count(&self.connections) > CONNECTIONS {
            return tracing::warn!("too many connections to the control socket; one is refused");
        }
        if let (false, Stream::Unix(stream)) = (self.opened.http, &stream)
            && !is_allowed(stream)
        {
            return tracing::warn!("somebody who is not root used the control socket; refused");
        }
        let (asks, http, held) = (asks.clone(), self.opened.http, self.connections.clone());
        let talk = move || {
            let _held = held;
            let talked = if http { tell_metrics(stream, &asks) } else { talk(stream, &asks) };
            if let Err(error) = talked {
                tracing::debug!(%error, "a client of the control socket got no answer");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("control".into()).spawn(talk) {
            tracing::warn!(%error, "no thread for the control socket");
        }
    }
}

/// Root, and who runs the engine.
fn is_allowed(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn unix(path: PathBuf, mode: u32) -> Result<Socket, ListenError> {
    let bind = || -> io::Result<UnixListener> {
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let bound = match bind() {
        Err(error) if error.kind() == ErrorKind::AddrInUse => match UnixStream::connect(&path) {
            Ok(_) => return Err(ListenError::InUse(path)),
            // Whoever listened there has ended. (A file that is no socket refuses as well.)
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && is_socket(&path) => {
                fs::remove_file(&path).and_then(|()| bind())
            }
            Err(error) => Err(error),
        },
        bound => bound,
    };
    match bound {
        Ok(listener) => Ok(Socket::Unix(listener, path)),
        Err(error) => Err(ListenError::Socket { path, error }),
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Read until `end` is there.
    fn read_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let limit = Instant::now() + LINE_LIMIT;
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            // Not for each read: whoever sends byte by byte has no more time than others.
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let got = match self {
                Self::Unix(stream) => {
                    stream.set_read_timeout(Some(left))?;
                    stream.read(&mut chunk)?
                }
                Self::Tcp(stream) => {
                    stream.set_read_timeout(Some(left))?;
                    stream.read(&mut chunk)?
                }
            };
            bytes.extend_from_slice(&chunk[..got]);
            if let Some(at) = bytes.windows(end.len()).position(|window| window == end) {
                bytes.truncate(at);
                return Ok(bytes);
            }
            if got == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if bytes.len() > REQUEST_MAX {
                return Err(io::Error::other("the request is too long"));
            }
        }
    }

    /// As [`Self::read_until`]: whoever takes byte by byte has no more time than others.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let limit = Instant::now() + LINE_LIMIT;
        while !bytes.is_empty() {
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let part = &bytes[..bytes.len().min(WRITE_MAX)];
            let written = match self {
                Self::Unix(stream) => {
                    stream.set_write_timeout(Some(left))?;
                    stream.write(part)?
                }
                Self::Tcp(stream) => {
                    stream.set_write_timeout(Some(left))?;
                    stream.write(part)?
                }
            };
            if written == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

/// One request, one answer.
fn talk(mut stream: Stream, asks: &Sender<Ask>) -> io::Result<()> {
    let line = stream.read_until(b"\n")?;
    let reply = match serde_json::from_slice(&line) {
        Ok(Request::Log { level, mount }) => match log::change(level.as_deref(), mount) {
            Ok(levels) => Reply::Log(levels),
            Err(error) => Reply::Error(error.to_string()),
        },
        Ok(Request::Reexec { binary }) => {
            let binary = binary.unwrap_or_else(upgrade::own_program);
            match upgrade::check(&binary) {
                Ok(()) => ask(Request::Reexec { binary: Some(binary) }, asks, ANSWER_LIMIT),
                Err(error) => Reply::Error(error.to_string()),
            }
        }
        Ok(request) => ask(request, asks, ANSWER_LIMIT),
        Err(error) => Reply::Error(format!("not a request: {error}")),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    stream.write(&line)
}

fn ask(request: Request, asks: &Sender<Ask>, limit: Duration) -> Reply {
    let (reply, answer) = sync_channel(1);
    // An engine that has ended neither takes the question nor answers it.
    let _ = asks.send(Ask { request, reply });
    answer.recv_timeout(limit).unwrap_or_else(|_| Reply::Error("the engine is ending".into()))
}

/// HTTP, as much of it as Prometheus and curl need.
fn tell_metrics(mut stream: Stream, asks: &Sender<Ask>) -> io::Result<()> {
    let request = stream.read_until(b"\r\n\r\n")?;
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, text) = match (method, path) {
        (b"GET", b"/" | b"/metrics") => match ask(Request::Metrics, asks, LINE_LIMIT) {
            Reply::Metrics(text) => ("200 OK", text),
            _ => ("503 Service Unavailable", String::new()),
        },
        (b"GET", _) => ("404 Not Found", String::new()),
        _ => ("405 Method Not Allowed", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        text.len()
    );
    stream.write(&[head.as_bytes(), text.as_bytes()].concat())
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
