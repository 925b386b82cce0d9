//! Several maps as one.

use super::{RawEntry, Source, SourceError};
use crate::engine::maps::text::{Text, Warning};
use crate::engine::maps::vars::Variables;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Sources that are asked in order; the first that knows a key answers, be it with its wildcard.
#[derive(Debug)]
pub struct MultiSource(pub Vec<Box<dyn Source>>);

impl Source for MultiSource {
    fn lookup(&self, key: &[u8], variables: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        // A source that is down does not hide those after it.
        let mut failed = None;
        for source in &self.0 {
            match source.lookup(key, variables) {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn visit(&self, each: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
        let mut seen = HashSet::new();
        let mut listed = false;
        for source in &self.0 {
            listed |= source.visit(&mut |key, text, origin| {
                if seen.insert(key.to_vec()) {
                    each(key, text, origin);
                }
            })?;
        }
        Ok(listed)
    }

    fn wildcard(&self) -> Result<Option<RawEntry>, SourceError> {
        self.0.iter().find_map(|source| source.wildcard().transpose()).transpose()
    }

    fn fresh(&self) -> bool {
        self.0.iter().all(|source| source.fresh())
    }

    fn refresh(&self) -> Result<(), SourceError> {
        self.0.iter().try_for_each(|source| source.refresh())
    }

    fn warnings(&self) -> Vec<(PathBuf, Warning)> {
        self.0.iter().flat_map(|source| source.warnings()).collect()
    }
}
