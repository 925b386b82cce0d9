//! A map in memory.

use super::{Pair, RawEntry, Source, SourceError};
use crate::engine::maps::text::Text;
use crate::engine::maps::vars::Variables;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Keys and entries in memory, as a checkpoint keeps them. The key `*` is the wildcard.
#[derive(Debug)]
pub struct ListSource {
    pairs: Vec<Pair>,
    index: HashMap<Vec<u8>, usize>,
}

impl ListSource {
    /// Of keys and entries in order; of several entries with one key the first counts.
    pub fn new(entries: &[(Vec<u8>, Vec<u8>)], origin: &str) -> Self {
        let mut list = Self { pairs: Vec::new(), index: HashMap::new() };
        for (key, entry) in entries {
            if !list.index.contains_key(key) {
                list.index.insert(key.clone(), list.pairs.len());
                let text = Text::from(entry.as_slice()).into_owned();
                list.pairs.push((key.clone(), RawEntry { text, origin: PathBuf::from(origin) }));
            }
        }
        list
    }
}

impl Source for ListSource {
    fn lookup(&self, key: &[u8], _: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        let found = self.index.get(key).or_else(|| self.index.get(b"*".as_slice()));
        Ok(found.and_then(|i| self.pairs.get(*i)).map(|(_, entry)| entry.clone()))
    }

    fn visit(&self, each: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
        self.pairs.iter().for_each(|(key, entry)| each(key, &entry.text, &entry.origin));
        Ok(true)
    }

    fn fresh(&self) -> bool {
        true
    }

    fn refresh(&self) -> Result<(), SourceError> {
        Ok(())
    }
}
