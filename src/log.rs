//! The log: to stderr for people, to the journal with its fields, and how much of it.
//!
//! Levels can be changed while a program runs, also for single mounts: whoever looks for what is wrong with one mount
//! need not read about all the others.

use crate::discover::escaped::printable;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber, callsite};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::util::SubscriberInitExt;

/// A level that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It is not one of the names.
    #[error("{0} is no level: error, warn, info, debug, trace, off")]
    Level(String),
    /// Only absolute paths are mounts.
    #[error("{} is not an absolute path", .0.display())]
    NotAbsolute(PathBuf),
}

/// How much is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevels {
    /// Everything; as `RUST_LOG` says it.
    pub level: String,
    /// Single mounts.
    pub mounts: Vec<MountLevel>,
}

/// How much is logged of one mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountLevel {
    /// It and what is below.
    #[serde(with = "crate::discover::escaped")]
    pub mount: PathBuf,
    /// Its level.
    pub level: String,
}

/// How much.
#[derive(Debug, Default)]
struct Levels {
    /// Of everything.
    base: Targets,
    /// Of single mounts and what is below them.
    mounts: Vec<(PathBuf, LevelFilter)>,
}

impl Levels {
    fn change(&mut self, level: Option<&str>, mount: Option<PathBuf>) -> Result<(), LogError> {
        let Some(level) = level else { return Ok(()) };
        let wrong = || LogError::Level(level.to_owned());
        let Some(mount) = mount else {
            // `loud` alone would be a target of which everything is logged.
            let mut words = level.split(',').filter(|part| !part.contains('='));
            if words.any(|word| word.parse::<LevelFilter>().is_err()) {
                return Err(wrong());
            }
            self.base = level.parse().map_err(|_| wrong())?;
            return Ok(());
        };
        if !mount.is_absolute() {
            return Err(LogError::NotAbsolute(mount));
        }
        let filter: Option<LevelFilter> = match level {
            "default" => None,
            level => Some(level.parse().map_err(|_| wrong())?),
        };
        self.mounts.retain(|(path, _)| *path != mount);
        self.mounts.extend(filter.map(|filter| (mount, filter)));
        Ok(())
    }

    fn of_mount(&self, path: &Path) -> Option<LevelFilter> {
        let above = self.mounts.iter().filter(|(mount, _)| path.starts_with(mount));
        above.max_by_key(|(mount, _)| mount.as_os_str().len()).map(|(_, level)| *level)
    }

    fn told(&self) -> LogLevels {
        let mounts = self.mounts.iter();
        let mounts =
            mounts.map(|(mount, level)| MountLevel { mount: mount.clone(), level: level.to_string() });
        LogLevels { level: self.base.to_string(), mounts: mounts.collect() }
    }
}

static LEVELS: RwLock<Option<Levels>> = RwLock::new(None);
/// Some mount has a level of its own: spares the look at all of them where none has.
static MOUNTS: AtomicBool = AtomicBool::new(false);
/// Set when messages go to the journal.
static JOURNAL: OnceLock<tracing_journald::Layer> = OnceLock::new();

thread_local! {
    /// Of the mount that this thread works for.
    static MOUNT: Cell<Option<LevelFilter>> = const { Cell::new(None) };
}

/// Begin to log, at the level of `RUST_LOG` or else this one: to the journal where stderr leads there, else to
/// stderr.
pub fn begin(level: &str, colours: bool) {
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let base = asked.or_else(|| level.parse().ok()).unwrap_or_default();
    with_levels(|levels| levels.base = base);
    if stderr_is_journal() {
        to_journal();
    }
    let text = text(std::io::stderr, colours);
    // Another one stays where there is one: in tests.
    let _ = tracing_subscriber::registry().with(Output(text)).with(Filter).try_init();
}

/// Lines of text. Keys, paths and what programs say come from others: they neither steer a terminal nor begin a line.
fn text<S, W>(writer: W, colours: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    let fields = format::debug_fn(|writer, field, value| {
        let text = format!("{value:?}");
        match field.name() {
            "message" => write!(writer, "{}", printable(&text)),
            name => write!(writer, "{name}={}", printable(&text)),
        }
    });
    tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .fmt_fields(fields.delimited(" "))
        .with_ansi(colours)
        .with_target(false)
        .without_time()
}

/// From now on to the journal, if there is one.
pub fn to_journal() {
    if let Ok(journal) = tracing_journald::layer() {
        let journal = journal.with_field_prefix(None).with_syslog_identifier("autofs-cr".into());
        let _ = JOURNAL.set(journal);
    }
}

/// Does systemd say that stderr is a stream to the journal? (JOURNAL_STREAM, systemd.exec(5))
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let numbers = stream.split_once(':').and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    let stderr = std::fs::metadata("/proc/self/fd/2").map(|meta| (meta.dev(), meta.ino()));
    numbers.is_some_and(|numbers: (u64, u64)| stderr.is_ok_and(|stderr| stderr == numbers))
}

/// Set the level of everything (as in `RUST_LOG`), or of one mount and what is below (`default`: as of
/// everything); tells how it is then. Without a level nothing is changed.
pub fn change(level: Option<&str>, mount: Option<PathBuf>) -> Result<LogLevels, LogError> {
    let told = with_levels(|levels| {
        levels.change(level, mount)?;
        MOUNTS.store(!levels.mounts.is_empty(), Ordering::Relaxed);
        Ok(levels.told())
    });
    callsite::rebuild_interest_cache();
    told
}

fn with_levels<T>(act: impl FnOnce(&mut Levels) -> T) -> T {
    // Levels are whole between any two operations on them.
    let mut levels = LEVELS.write().unwrap_or_else(PoisonError::into_inner);
    act(levels.get_or_insert_default())
}

fn read<T>(act: impl FnOnce(&Levels) -> T) -> T {
    let levels = LEVELS.read().unwrap_or_else(PoisonError::into_inner);
    match &*levels {
        Some(levels) => act(levels),
        None => act(&Levels::default()),
    }
}

/// What this thread logs from now on is about a mount, until the result is dropped.
pub fn about(mount: &Path) -> About {
    let level = match MOUNTS.load(Ordering::Relaxed) {
        true => read(|levels| levels.of_mount(mount)),
        false => None,
    };
    About { before: MOUNT.replace(level) }
}

/// See [`about`].
#[derive(Debug)]
#[must_use]
pub struct About {
    before: Option<LevelFilter>,
}

impl Drop for About {
    fn drop(&mut self) {
        MOUNT.set(self.before);
    }
}

/// Decides which events count.
struct Filter;

impl<S: Subscriber> Layer<S> for Filter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let base = read(|levels| levels.base.would_enable(metadata.target(), metadata.level()));
        match (MOUNTS.load(Ordering::Relaxed), base) {
            (true, _) => Interest::sometimes(),
            (false, true) => Interest::always(),
            (false, false) => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        match MOUNT.get() {
            // What libraries say is not about a mount.
            Some(level) if metadata.target().starts_with("autofs_cr") => *metadata.level() <= level,
            _ => read(|levels| levels.base.would_enable(metadata.target(), metadata.level())),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        read(|levels| {
            let base = Layer::<Registry>::max_level_hint(&levels.base).unwrap_or(LevelFilter::TRACE);
            levels.mounts.iter().map(|(_, level)| *level).chain([base]).max()
        })
    }
}

/// Where events go.
struct Output<T>(T);

impl<T: Layer<Registry>> Layer<Registry> for Output<T> {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, Registry>) {
        match JOURNAL.get() {
            Some(journal) => journal.on_event(event, context),
            None => self.0.on_event(event, context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_mounts() {
        let mut levels = Levels { base: "warn".parse().unwrap(), ..Levels::default() };
        let mut change = |level: &str, mount: Option<&str>| {
            let changed = levels.change(Some(level), mount.map(PathBuf::from));
            (changed, ["/net", "/net/a/b", "/network"].map(|path| levels.of_mount(Path::new(path))))
        };
        let [info, trace] = [Some(LevelFilter::INFO), Some(LevelFilter::TRACE)];
        assert_eq!(change("info", Some("/net")), (Ok(()), [info, info, None]));
        assert_eq!(change("trace", Some("/net/a")), (Ok(()), [info, trace, None]));
        assert_eq!(change("default", Some("/net")), (Ok(()), [None, trace, None]));
        assert_eq!(change("loud", Some("/net")).0, Err(LogError::Level("loud".into())));
        assert_eq!(change("info", Some("net")).0, Err(LogError::NotAbsolute("net".into())));
        assert_eq!(change("loud", None).0, Err(LogError::Level("loud".into())));
        assert_eq!(change("info,calloop=warn", None).0, Ok(()));
        assert!(levels.base.would_enable("autofs_cr", &tracing::Level::INFO));
        assert_eq!(levels.told().mounts, [MountLevel { mount: "/net/a".into(), level: "trace".into() }]);
    }

    #[test]
    fn a_key_does_not_forge_a_line() {
        let (mut read, write) = std::io::pipe().unwrap();
        let layer = text(std::sync::Mutex::new(write), false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let key = "a\nERROR \x1b[2Jall is lost";
            tracing::warn!(number = 7, key, "no {key}");
        });
        let mut told = String::new();
        std::io::Read::read_to_string(&mut read, &mut told).unwrap();
        let shown = r"a\012ERROR \033[2Jall is lost";
        assert!(told.starts_with(&format!(" WARN no {shown} ")) && told.contains("number=7"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}
