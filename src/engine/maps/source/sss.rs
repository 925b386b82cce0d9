//! Maps of SSSD.

use super::remote::{Client, KeyValue, ServiceError};
use crate::sys::Errno;
use crate::sys::sss::{SssError, SssMap};

/// One map. SSSD keeps its own cache, so each question opens it anew and sees what is current.
pub struct SssClient(pub String);

impl From<SssError> for ServiceError {
    fn from(error: SssError) -> Self {
        match error {
            SssError::Errno(Errno::NOENT) => Self::NoMap,
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl Client for SssClient {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ServiceError> {
        let mut map = SssMap::open(&self.0)?;
        // Directories write the wildcard as `/`, too.
        let other = if key == b"*" { map.get(b"/")? } else { None };
        Ok(if other.is_some() { other } else { map.get(key)? })
    }

    fn list(&mut self) -> Result<Option<Vec<KeyValue>>, ServiceError> {
        let mut map = SssMap::open(&self.0)?;
        let mut all = Vec::new();
        while let Some((key, text)) = map.next_entry()? {
            all.push((if key == b"/" { b"*".to_vec() } else { key }, text));
        }
        Ok(Some(all))
    }
}
