//! Finding an engine and asking it.

use super::{ANSWER_LIMIT, DIRECTORY, LINE_LIMIT, Reply, Request};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Longest answer, bytes: the state of 100 000 mounts is far below.
const REPLY_MAX: u64 = 64 << 20;

/// No answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// No engine has a socket in the usual place.
    #[error("no engine answers in {DIRECTORY}; is one running? (--socket names one elsewhere)")]
    None,
    /// More than one has.
    #[error("several engines answer; say which with --socket: {}", list(.0))]
    Several(Vec<PathBuf>),
    /// The socket.
    #[error("control socket {}: {error}; does an engine run there? (autofs-cr list tells its process)", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not for us.
    #[error("{}: only root, and who runs the engine, may ask it; run this as root", .0.display())]
    NotRoot(PathBuf),
    /// What came is no answer.
    #[error("{}: not an answer of this version of autofs-cr: {error}", path.display())]
    NotAnAnswer {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
    /// The engine says no.
    #[error("{0}")]
    Refused(String),
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// Ask the engine at `socket`, or the only one there is.
pub fn ask(socket: Option<&Path>, request: &Request) -> Result<Reply, AskError> {
    let (path, stream) = match socket {
        Some(path) => (path.to_owned(), connect(path)?),
        None => only(Path::new(DIRECTORY))?,
    };
    let line = talk(stream, request).map_err(|error| AskError::Socket { path: path.clone(), error })?;
    match serde_json::from_slice(&line) {
        Ok(Reply::Error(text)) => Err(AskError::Refused(text)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(AskError::NotAnAnswer { path, error }),
    }
}

fn connect(path: &Path) -> Result<UnixStream, AskError> {
    UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => AskError::NotRoot(path.to_owned()),
        _ => AskError::Socket { path: path.to_owned(), error },
    })
}

/// The one engine in a directory.
fn only(directory: &Path) -> Result<(PathBuf, UnixStream), AskError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(AskError::NotRoot(directory.to_owned()));
        }
        entries => entries.into_iter().flatten().flatten(),
    };
    let sockets =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "sock"));
    // One that was left by an engine that was killed does not answer.
    let mut live: Vec<(PathBuf, UnixStream)> =
        sockets.filter_map(|path| Some((path.clone(), UnixStream::connect(&path).ok()?))).collect();
    match live.len() {
        1 => live.pop().ok_or(AskError::None),
        0 => Err(AskError::None),
        _ => {
            let mut paths: Vec<PathBuf> = live.into_iter().map(|(path, _)| path).collect();
            paths.sort();
            Err(AskError::Several(paths))
        }
    }
}

fn talk(mut stream: UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(LINE_LIMIT))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(REPLY_MAX)).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "no answer; the engine answers root only",
        ));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_only_engine_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(only(&dir.path().join("none")), Err(AskError::None)));
        drop(UnixListener::bind(dir.path().join("1.sock")).unwrap());
        std::fs::write(dir.path().join("note"), "").unwrap();
        assert!(matches!(only(dir.path()), Err(AskError::None)));
        let _two = UnixListener::bind(dir.path().join("2.sock")).unwrap();
        assert!(only(dir.path()).is_ok_and(|(path, _)| path.ends_with("2.sock")));
        let _three = UnixListener::bind(dir.path().join("3.sock")).unwrap();
        let error = only(dir.path()).unwrap_err().to_string();
        assert!(error.contains("2.sock, ") && error.ends_with("3.sock"), "{error}");
    }
}
