//! Talking to a running engine: one request and one answer, each a line of JSON, over a unix socket that only root may use.
//!
//! | module | what it does |
//! |---|---|
//! | [`server`] | the engine's ends: the control socket, and the listener for metrics |
//! | [`client`] | finding an engine and asking it |
//!
//! The reactor only accepts. A connection gets a thread for the moment that it lasts, so that a slow client
//! holds up nobody; size and time of everything it may send are limited.

pub mod client;
pub mod server;

use super::ledger::Program;
use super::state::{Counts, JobReport, MapReport};
use crate::log::LogLevels;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Where engines have their sockets: `PID.sock` each.
pub const DIRECTORY: &str = "/run/autofs-cr";
/// Longest request, bytes.
pub const REQUEST_MAX: usize = 64 * 1024;
/// How long sending a request, or taking an answer, may last.
pub const LINE_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer may take: reading all maps, or unmounting everything idle.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(300);

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What it serves and what it is doing.
    Status,
    /// Read the maps again; answered when triggers follow them.
    Reload,
    /// Unmount what is idle, whatever its timeout; answered when that is done.
    Expire {
        /// Only the map whose mount point, or one of whose triggers, this is.
        #[serde(default, with = "optional_path", skip_serializing_if = "Option::is_none")]
        mount: Option<PathBuf>,
    },
    /// Which programs trigger mounts, and what is mounted.
    Who,
    /// Become another autofs-cr, or the same one anew; no lookup fails. Answered when that begins; [`Status::upgrades`]
    /// tells when it is done.
    Reexec {
        /// The program; without: this one's file, as it is now.
        #[serde(default, with = "optional_path", skip_serializing_if = "Option::is_none")]
        binary: Option<PathBuf>,
    },
    /// Counters as Prometheus reads them.
    Metrics,
    /// Set and tell how much is logged.
    Log {
        /// `error`, `warn`, `info`, `debug`, `trace`, `off`; or `default`, for a mount: as everything else.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        level: Option<String>,
        /// For this mount and what is below; without: for everything.
        #[serde(default, with = "optional_path", skip_serializing_if = "Option::is_none")]
        mount: Option<PathBuf>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Reload`] and [`Request::Expire`]: how things are afterwards.
    Done(Counts),
    /// To [`Request::Who`].
    Who(Who),
    /// To [`Request::Metrics`].
    Metrics(String),
    /// To [`Request::Log`].
    Log(LogLevels),
    /// It cannot be done.
    Error(String),
}

/// What an engine serves and what it is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Version of autofs-cr.
    pub version: String,
    /// Since when, seconds since 1970.
    pub began: u64,
    /// How often it became another program.
    pub upgrades: u32,
    /// Numbers.
    pub counts: Counts,
    /// Its maps.
    pub maps: Vec<MapReport>,
    /// Jobs that are running: what hangs is here.
    pub jobs: Vec<JobReport>,
}

/// Who uses its mounts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Who {
    /// Its process: its mount namespace is where the paths are.
    pub pid: u32,
    /// Programs that triggered mounts.
    pub programs: Vec<Program>,
    /// Triggers with something mounted.
    #[serde(with = "paths")]
    pub mounted: Vec<PathBuf>,
}

mod optional_path {
    use crate::discover::escaped;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::path::PathBuf;

    #[derive(Deserialize)]
    struct Path(#[serde(with = "escaped")] PathBuf);

    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => escaped::serialize(path, to),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Path>::deserialize(from)?.map(|path| path.0))
    }
}

mod paths {
    use crate::discover::escaped;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::path::PathBuf;

    #[derive(Serialize, Deserialize)]
    struct Path(#[serde(with = "escaped")] PathBuf);

    pub fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| Path(path.clone())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Path>::deserialize(from)?.into_iter().map(|path| path.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn requests_are_lines_of_json() {
        for (text, request) in [
            (r#"{"command":"status"}"#, Request::Status),
            (r#"{"command":"expire"}"#, Request::Expire { mount: None }),
            (r#"{"command":"expire","mount":"/net"}"#, Request::Expire { mount: Some("/net".into()) }),
            (
                r#"{"command":"log","level":"debug","mount":"/net"}"#,
                Request::Log { level: Some("debug".into()), mount: Some("/net".into()) },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
        for text in ["", "{}", r#"{"command":"none"}"#, r#"{"command":"expire","path":"/"}"#, "[]", "1"] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_need_not_be_text() {
        let path = PathBuf::from(OsString::from_vec(b"/\xff\n".to_vec()));
        let request = Request::Expire { mount: Some(path.clone()) };
        let text = serde_json::to_string(&request).unwrap();
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        let reply = Reply::Who(Who { pid: 1, programs: Vec::new(), mounted: vec![path] });
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
    }
}
