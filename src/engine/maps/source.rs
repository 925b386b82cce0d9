//! Where the entries of a map come from.
//!
//! | source | entries |
//! |---|---|
//! | [`FileSource`] | a file, with what it includes |
//! | [`ProgramSource`] | the output of a program |
//! | [`MultiSource`] | several maps, asked in order |
//! | [`SwitchSource`] | the same map in several services |
//! | [`HomesSource`] | the home directories of users |
//! | [`HostsSource`] | the exports of the host that is the key |
//! | [`RemoteSource`] | a service of the network: LDAP, SSSD, NIS, hesiod |
//! | [`ListSource`] | a list in memory: from a checkpoint, or of units |
//!
//! Sources do not interpret entries, whatever their format is.

mod desk;
mod file;
mod hesiod;
mod homes;
mod hosts;
pub mod ldap;
mod list;
mod multi;
mod nis;
mod program;
mod remote;
mod sss;
mod switch;

pub use desk::Desk;
pub use file::{FileSource, Keys};
pub use hesiod::HesiodClient;
pub use homes::HomesSource;
pub use hosts::HostsSource;
pub use ldap::LdapClient;
pub use list::ListSource;
pub use multi::MultiSource;
pub use nis::NisClient;
pub use program::ProgramSource;
pub use remote::{Client, KeyValue, RemoteSource, ServiceError};
pub use sss::SssClient;
pub use switch::SwitchSource;

use super::text::{Text, Warning, Words};
use super::vars::Variables;
use crate::engine::rpc::RpcError;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest map in a file, bytes: millions of entries.
pub const FILE_MAX: u64 = 256 << 20;

/// Where maps are that are named without a path.
pub const DIRECTORY: &str = "/etc";

/// An entry as it stands in its map: everything after the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    /// The text.
    pub text: Text<'static>,
    /// The file or program it comes from.
    pub origin: PathBuf,
}

impl RawEntry {
    /// Without the key that stands before it, if it does.
    pub fn without_key(self, key: &[u8]) -> Self {
        let mut words = Words::new(&self.text);
        match words.next() {
            Some(Ok(first)) if first.bytes() == key => {
                Self { text: words.remaining().into_owned(), origin: self.origin }
            }
            _ => self,
        }
    }
}

/// A key and its entry.
pub type Pair = (Vec<u8>, RawEntry);

/// Why a source has no answer. That it does not know a key is not an error.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error("map {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The program cannot be run.
    #[error("program map {}: cannot run it: {error}", path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The program did not end in time and was killed.
    #[error("program map {}: no answer within {limit:?}; it was killed", path.display())]
    TimeLimit {
        /// The program.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// The program wrote more than an entry can have.
    #[error("program map {}: more than {max} bytes of output", path.display())]
    TooMuch {
        /// The program.
        path: PathBuf,
        /// The most it may write.
        max: usize,
    },
    /// The exports of a host cannot be had.
    #[error("exports of host {host}: {error}")]
    Exports {
        /// The host.
        host: String,
        /// Why.
        error: RpcError,
    },
    /// A service has no answer.
    #[error("map {map}: {error}")]
    Service {
        /// The map, with its type.
        map: String,
        /// Why.
        error: ServiceError,
    },
}

/// How asking a service ended, in the words of the name service switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has the key, or the map.
    Success,
    /// It does not.
    NotFound,
    /// It cannot be asked.
    Unavailable,
    /// It cannot be asked now.
    TryAgain,
}

impl Status {
    /// Of a result.
    pub fn of<T>(result: &Result<Option<T>, SourceError>) -> Self {
        match result {
            Ok(Some(_)) => Self::Success,
            Ok(None) => Self::NotFound,
            Err(error) => error.status(),
        }
    }
}

impl SourceError {
    /// In the words of the name service switch.
    pub fn status(&self) -> Status {
        match self {
            Self::Read { error, .. } if error.kind() == io::ErrorKind::NotFound => Status::NotFound,
            Self::Service { error: ServiceError::NoMap, .. } => Status::NotFound,
            _ if self.is_time_limit() => Status::TryAgain,
            _ => Status::Unavailable,
        }
    }

    /// Was time the reason?
    pub fn is_time_limit(&self) -> bool {
        matches!(
            self,
            Self::TimeLimit { .. }
                | Self::Service { error: ServiceError::TimeLimit(_), .. }
                | Self::Exports { error: RpcError::TimeLimit, .. }
        )
    }

    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Read { path, error }
    }
}

/// A map's file as a whole. Neither a device that never ends nor a pipe that nobody writes to is waited for.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let is_file = file.metadata()?.is_file();
    let max = if is_file { FILE_MAX } else { 0 };
    let mut bytes = Vec::new();
    let length = file.take(max + 1).read_to_end(&mut bytes)? as u64;
    match is_file {
        _ if length <= max => Ok(bytes),
        true => Err(io::Error::other(format!("it has more than {FILE_MAX} bytes"))),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Where entries come from. May block, so only workers call it.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// The entry of a key, or that of the wildcard; `None`: no such key. Reads the source again when it changed.
    ///
    /// `variables` know who asks; program maps pass them on.
    fn lookup(&self, key: &[u8], variables: &Variables<'_>) -> Result<Option<RawEntry>, SourceError>;

    /// Call back with all keys and entries in order, the first of each key only; the wildcard is the key `*`. False: they
    /// cannot be listed.
    fn visit(&self, each: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError>;

    /// What [`Source::visit`] gives; `None`: it cannot be listed.
    fn entries(&self) -> Result<Option<Vec<Pair>>, SourceError> {
        let mut all = Vec::new();
        let listed = self.visit(&mut |key, text, origin| {
            all.push((key.to_vec(), RawEntry { text: text.clone().into_owned(), origin: origin.to_owned() }));
        })?;
        Ok(listed.then_some(all))
    }

    /// The entry of the wildcard, where entries can be listed.
    fn wildcard(&self) -> Result<Option<RawEntry>, SourceError> {
        Ok(None)
    }

    /// Has nothing changed since it was read last? False where nobody can tell without reading all.
    fn fresh(&self) -> bool;

    /// Read again what changed.
    fn refresh(&self) -> Result<(), SourceError>;

    /// Is it a program, to be asked for each key?
    fn is_program(&self) -> bool {
        false
    }

    /// What was wrong with it when it was read last, with the file where that stands.
    fn warnings(&self) -> Vec<(PathBuf, Warning)> {
        Vec::new()
    }
}
