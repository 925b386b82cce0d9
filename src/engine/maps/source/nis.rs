//! Maps of NIS.

use super::remote::{Client, KeyValue, ServiceError};
use crate::sys::nis::{self, NisError};

/// One map.
pub struct NisClient {
    /// The domain; `None`: that of this machine.
    pub domain: Option<String>,
    /// Its name. NIS has no dots in names by tradition: `auto.home` is `auto_home` where only that is there.
    pub map: String,
}

impl From<NisError> for ServiceError {
    fn from(error: NisError) -> Self {
        match error {
            NisError::NoMap => Self::NoMap,
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl NisClient {
    fn ask<T>(&self, ask: impl Fn(Option<&str>, &str) -> Result<T, NisError>) -> Result<T, ServiceError> {
        let domain = self.domain.as_deref();
        let other = self.map.replace('.', "_");
        match ask(domain, &self.map) {
            Err(NisError::NoMap) if other != self.map => Ok(ask(domain, &other)?),
            result => Ok(result?),
        }
    }
}

impl Client for NisClient {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ServiceError> {
        self.ask(|domain, map| nis::get(domain, map, key))
    }

    fn list(&mut self) -> Result<Option<Vec<KeyValue>>, ServiceError> {
        self.ask(nis::list).map(Some)
    }
}
