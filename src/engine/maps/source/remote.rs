//! A map that a service of the network keeps: LDAP, SSSD, NIS, hesiod.
//!
//! Keys are asked for one by one, and what was found counts for `positive_timeout`. A service that is down does not take away
//! what it said before: then the last answer counts, whatever its age.

use super::desk::Desk;
use super::{Keys, RawEntry, Source, SourceError};
use crate::engine::maps::text::{ENTRY_MAX, Text, show};
use crate::engine::maps::vars::Variables;
pub use crate::sys::KeyValue;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One map of a service. Calls may block as long as they like: [`Desk`] sets the limit.
pub trait Client: Send + 'static {
    /// The text of exactly this key; `*` is the wildcard, however the service writes it.
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ServiceError>;
    /// All keys with their texts in the service's order; `None`: it cannot list them.
    fn list(&mut self) -> Result<Option<Vec<KeyValue>>, ServiceError>;
}

/// Why a service has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// It works, but does not have the map.
    #[error("there is no such map")]
    NoMap,
    /// It cannot be asked: not installed, not running, not reachable.
    #[error("{0}")]
    Unavailable(String),
    /// What it says of a key makes no sense.
    #[error("{0}")]
    Entry(String),
    /// It did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimeLimit(Duration),
}

/// A map of a service.
#[derive(Debug)]
pub struct RemoteSource {
    /// The map as in the master map: `ldap:auto.home`.
    name: String,
    keys: Keys,
    desk: Desk<Box<dyn Client>>,
    /// How long an answer counts.
    valid: Duration,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    found: HashMap<Vec<u8>, (Instant, Vec<u8>)>,
    /// The last listing, sorted by key.
    listed: Option<Arc<[KeyValue]>>,
}

impl RemoteSource {
    /// A map whose client is made when it is needed.
    pub fn new(
        name: String,
        keys: Keys,
        valid: Duration,
        limit: Duration,
        make: impl Fn() -> Box<dyn Client> + Send + Sync + 'static,
    ) -> Self {
        Self { name, keys, desk: Desk::new(limit, make), valid, memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // The memory is whole between any two operations on it.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: ServiceError) -> SourceError {
        SourceError::Service { map: self.name.clone(), error }
    }

    fn entry(&self, text: &[u8]) -> RawEntry {
        RawEntry { text: Text::from(text).into_owned(), origin: PathBuf::from(&self.name) }
    }

    /// The text of a key: remembered, asked for, or, when the service is down, remembered from earlier.
    fn text(&self, key: &[u8]) -> Result<Option<Vec<u8>>, SourceError> {
        let old = self.memory().found.get(key).cloned();
        if let Some((since, text)) = &old
            && since.elapsed() < self.valid
        {
            return Ok(Some(text.clone()));
        }
        let asked = key.to_vec();
        match self.desk.ask(move |client| client.get(&asked)) {
            Ok(found) => {
                let found = found.filter(|text| self.fits(key, text));
                let mut memory = self.memory();
                match &found {
                    Some(text) => memory.found.insert(key.to_vec(), (Instant::now(), text.clone())),
                    None => memory.found.remove(key),
                };
                Ok(found)
            }
            Err(error) => {
                let listed = self.memory().listed.clone();
                let known = match (old, listed) {
                    (Some((_, text)), _) => Some(text),
                    (None, Some(listed)) => {
                        let place = listed.binary_search_by(|(known, _)| known.as_slice().cmp(key)).ok();
                        match place {
                            Some(place) => Some(listed[place].1.clone()),
                            // All its keys are known.
                            None => return Ok(None),
                        }
                    }
                    (None, None) => None,
                };
                if known.is_some() {
                    tracing::warn!("map {}: {error}; key {} is as it was before", self.name, show(key));
                }
                known.map(Some).ok_or_else(|| self.failed(error))
            }
        }
    }

    fn fits(&self, key: &[u8], text: &[u8]) -> bool {
        let short = text.len() <= ENTRY_MAX;
        if !short {
            tracing::warn!("map {}: the entry of key {} is too long", self.name, show(key));
        }
        short && !text.trim_ascii().is_empty()
    }
}

impl Source for RemoteSource {
    fn lookup(&self, key: &[u8], _: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        let own = if self.keys == Keys::Names && key == b"*" { None } else { self.text(key)? };
        let text = match own {
            None if self.keys != Keys::Paths => self.text(b"*")?,
            own => own,
        };
        Ok(text.map(|text| self.entry(&text)))
    }

    fn visit(&self, each: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
        let before = self.memory().listed.clone();
        let listed = match (self.desk.ask(|client| client.list()), before) {
            (Ok(None), _) => return Ok(false),
            (Ok(Some(mut listed)), _) => {
                listed.retain_mut(|(key, text)| match self.keys.check(key) {
                    Ok(_) if key == b"*" && self.keys == Keys::Paths => false,
                    Ok(clean) => {
                        *key = clean.into_owned();
                        self.fits(key, text)
                    }
                    Err(_) if key == b"*" => self.keys != Keys::Paths,
                    Err(why) => {
                        tracing::warn!("map {}: {why}", self.name);
                        false
                    }
                });
                // Stable: of several entries of a key the first counts.
                listed.sort_by(|(a, _), (b, _)| a.cmp(b));
                listed.dedup_by(|(a, _), (b, _)| a == b);
                let listed: Arc<[KeyValue]> = listed.into();
                self.memory().listed = Some(listed.clone());
                listed
            }
            (Err(error), Some(listed)) => {
                tracing::warn!("map {}: {error}; its keys are as they were before", self.name);
                listed
            }
            (Err(error), None) => return Err(self.failed(error)),
        };
        let origin = Path::new(&self.name);
        listed.iter().for_each(|(key, text)| each(key, &Text::from(text.as_slice()), origin));
        Ok(true)
    }

    fn wildcard(&self) -> Result<Option<RawEntry>, SourceError> {
        if self.keys == Keys::Paths {
            return Ok(None);
        }
        Ok(self.text(b"*")?.map(|text| self.entry(&text)))
    }

    /// Services do not tell.
    fn fresh(&self) -> bool {
        false
    }

    /// What was found counts no longer, unless the service is down.
    fn refresh(&self) -> Result<(), SourceError> {
        let long_ago = Instant::now().checked_sub(self.valid);
        for (since, _) in self.memory().found.values_mut() {
            *since = long_ago.unwrap_or(*since);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::maps::Credentials;
    use crate::engine::maps::vars::{Environment, Requester};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[derive(Clone, Default)]
    struct Fake {
        down: Arc<AtomicBool>,
        asked: Arc<AtomicUsize>,
    }

    const ENTRIES: [(&str, &str); 4] =
        [("b", "s:/b"), ("*", "s:/any/&"), ("b", "s:/second"), ("x/y", "s:/z")];

    impl Fake {
        fn answer<T>(&self, answer: T) -> Result<T, ServiceError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let down = self.down.load(Ordering::Relaxed);
            if down { Err(ServiceError::Unavailable("down".into())) } else { Ok(answer) }
        }

        fn source(&self, keys: Keys) -> RemoteSource {
            let (fake, limit) = (self.clone(), Duration::from_secs(10));
            RemoteSource::new("test:map".into(), keys, limit, limit, move || Box::new(fake.clone()))
        }
    }

    impl Client for Fake {
        fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ServiceError> {
            let found = ENTRIES.iter().find(|(known, _)| known.as_bytes() == key);
            self.answer(found.map(|(_, text)| text.as_bytes().to_vec()))
        }
        fn list(&mut self) -> Result<Option<Vec<KeyValue>>, ServiceError> {
            self.answer(Some(
                ENTRIES.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect(),
            ))
        }
    }

    fn lookup(source: &dyn Source, key: &str) -> String {
        let requester = Requester::new(Credentials { uid: 0, gid: 0 });
        let environment = Environment::default();
        let variables = Variables { environment: &environment, definitions: &[], requester: &requester };
        match source.lookup(key.as_bytes(), &variables) {
            Ok(None) => "nothing".into(),
            Ok(Some(raw)) => String::from_utf8_lossy(raw.text.bytes()).into_owned(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn keys_then_the_wildcard() {
        let source = Fake::default().source(Keys::Names);
        assert_eq!([lookup(&source, "b"), lookup(&source, "c")], ["s:/b", "s:/any/&"]);
        let keys: Vec<_> = source.entries().unwrap().unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [b"*".to_vec(), b"b".to_vec()], "a key with a slash is none");
    }

    #[test]
    fn a_direct_map_has_no_wildcard() {
        let source = Fake::default().source(Keys::Paths);
        assert_eq!(lookup(&source, "/c"), "nothing");
        assert!(source.entries().unwrap().unwrap().is_empty());
    }

    #[test]
    fn what_was_found_is_not_asked_for_again() {
        let fake = Fake::default();
        let source = fake.source(Keys::Names);
        lookup(&source, "b");
        lookup(&source, "b");
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
        source.refresh().unwrap();
        lookup(&source, "b");
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_service_that_is_down_does_not_take_away_what_it_said() {
        let fake = Fake::default();
        let source = fake.source(Keys::Names);
        lookup(&source, "b");
        fake.down.store(true, Ordering::Relaxed);
        source.refresh().unwrap();
        assert_eq!([lookup(&source, "b"), lookup(&source, "c")], ["s:/b", "error: map test:map: down"]);
        assert!(source.entries().is_err());

        fake.down.store(false, Ordering::Relaxed);
        source.entries().unwrap();
        fake.down.store(true, Ordering::Relaxed);
        assert_eq!([lookup(&source, "b"), lookup(&source, "c")], ["s:/b", "s:/any/&"]);
        assert_eq!(source.entries().unwrap().unwrap().len(), 2);
    }
}
