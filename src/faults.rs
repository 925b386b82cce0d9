//! Fault points: places where a test can make a dump or a restore fail or die.
//!
//! `AUTOFS_CR_FAULT=NAME` makes the point NAME return an error, `NAME:kill` kills the process there
//! with SIGKILL. Unset, a point costs one load.

use std::sync::OnceLock;

/// The environment variable that picks a point.
pub const VARIABLE: &str = "AUTOFS_CR_FAULT";

/// The points of a dump, in the order in which it passes them.
pub const DUMP: &[&str] = &[
    "dump.surveyed",
    "dump.planned",
    "dump.recorded",
    "dump.holder-started",
    "dump.visitors-held",
    "dump.first-catatonic",
    "dump.all-catatonic",
    "dump.waiters-restarting",
    "dump.waiters-stopped",
    "dump.unwritten",
    "dump.written",
];

/// The points of a restore, in the order in which it passes them.
pub const RESTORE: &[&str] = &[
    "restore.image-read",
    "restore.planned",
    "restore.superblocks-made",
    "restore.requesters-replayed",
    "restore.mounts-prepared",
    "restore.first-attached",
    "restore.all-attached",
    "restore.visitors-held",
    "restore.first-catatonic",
    "restore.all-catatonic",
    "restore.waiters-restarting",
    "restore.pipes-set",
];

/// The points of the CRIU plugin, in the order in which a dump and then a restore pass them.
pub const CONTAINER: &[&str] = &[
    "container.asleep",
    "container.waking",
    "container.awake",
    "container.parked",
    "container.claimed",
    "container.made",
];

/// Those of a restore of a container that has mounts of the host's, before the others.
pub const FOREIGN: &[&str] = &["foreign.mounted", "foreign.copied"];

/// The fault that a test asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("stopped at fault point {0}, as {VARIABLE} asks")]
pub struct Fault(&'static str);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Error,
    Kill,
}

/// Does nothing, unless [`VARIABLE`] names this point. `name` is in [`DUMP`], [`RESTORE`], [`CONTAINER`] or [`FOREIGN`].
pub fn point(name: &'static str) -> Result<(), Fault> {
    static CHOSEN: OnceLock<Option<(String, How)>> = OnceLock::new();
    debug_assert!([DUMP, RESTORE, CONTAINER, FOREIGN].concat().contains(&name), "{name}");
    match CHOSEN.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?)) {
        Some((chosen, how)) if chosen == name => fail(name, *how),
        _ => Ok(()),
    }
}

fn parse(value: &str) -> Option<(String, How)> {
    let (name, how) = match value.split_once(':') {
        None => (value, How::Error),
        Some((name, "error")) => (name, How::Error),
        Some((name, "kill")) => (name, How::Kill),
        Some(_) => return None,
    };
    Some((name.to_owned(), how))
}

fn fail(name: &'static str, how: How) -> Result<(), Fault> {
    if how == How::Kill {
        // Nothing may run after this: no destructor, no exit handler.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    Err(Fault(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_a_point_and_how_it_fails() {
        let point = |how| Some(("dump.planned".to_owned(), how));
        assert_eq!(parse("dump.planned"), point(How::Error));
        assert_eq!(parse("dump.planned:error"), point(How::Error));
        assert_eq!(parse("dump.planned:kill"), point(How::Kill));
        assert_eq!(parse("dump.planned:other"), None);
    }

    #[test]
    fn no_name_is_used_twice() {
        let mut names: Vec<_> = DUMP.iter().chain(RESTORE).chain(CONTAINER).chain(FOREIGN).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
