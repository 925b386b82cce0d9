//! Maps of hesiod.

use super::remote::{Client, KeyValue, ServiceError};
use crate::engine::maps::hesiod;
use crate::engine::maps::text::Text;
use crate::sys::hesiod::resolve;

/// One map.
pub enum HesiodClient {
    /// The records `filsys` of users, lockers and the like: there is but one such map.
    Filsys {
        /// Does the map's reader expect entries in sun format?
        as_sun: bool,
    },
    /// A map in amd format.
    Amd {
        /// Its name, as amd has it: without `hesiod.`.
        map: String,
        /// Of which type its records are: the setting `hesiod_base`.
        base: String,
    },
}

impl Client for HesiodClient {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ServiceError> {
        // What follows an @ would be the domain that is asked: whoever looks up a path must not choose it.
        if key.contains(&b'@') {
            return Ok(None);
        }
        let ask = |name: &[u8], of_type| {
            resolve(name, of_type).map_err(|error| ServiceError::Unavailable(error.to_string()))
        };
        match self {
            // A server has its own wildcards.
            Self::Filsys { .. } if key == b"*" => Ok(None),
            Self::Filsys { as_sun } => {
                let record = ask(key, "filsys")?.into_iter().min_by_key(|record| preference(record));
                let Some(record) = record else { return Ok(None) };
                if !*as_sun {
                    return Ok(Some(record));
                }
                let entry = hesiod::entry(&Text::from(record.as_slice()));
                entry
                    .map(|entry| Some(entry.bytes().to_vec()))
                    .map_err(|error| ServiceError::Entry(error.kind.to_string()))
            }
            Self::Amd { map, base } => {
                let name = [key, b".", map.as_bytes()].concat();
                Ok(ask(&name, base)?.into_iter().next())
            }
        }
    }

    fn list(&mut self) -> Result<Option<Vec<KeyValue>>, ServiceError> {
        Ok(None)
    }
}

/// The number at a record's end: the lowest is the one to use. Records without one come last.
fn preference(record: &[u8]) -> u32 {
    let last = record.rsplit(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
    std::str::from_utf8(last).ok().and_then(|word| word.parse().ok()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_chooses_no_domain() {
        let amd = HesiodClient::Amd { map: "home".into(), base: "automount".into() };
        for mut client in [HesiodClient::Filsys { as_sun: true }, amd] {
            assert_eq!(client.get(b"joe@example.com"), Ok(None));
        }
    }

    #[test]
    fn the_lowest_number_comes_first() {
        let records: [&[u8]; 4] = [b"NFS /a h w /m", b"NFS /b h w /m 2", b"NFS /c h w /m 1", b""];
        let mut sorted = records;
        sorted.sort_by_key(|record| preference(record));
        assert_eq!(sorted, [records[2], records[1], records[0], records[3]]);
    }
}
