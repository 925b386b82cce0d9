//! What is wrong in a map, without asking for a key.

use super::{Content, Map, MapError};
use crate::engine::maps::local::Nowhere;
use crate::engine::maps::source::RawEntry;
use crate::engine::maps::text::Warning;
use crate::engine::maps::vars::{Requester, Variables};
use crate::engine::maps::{Credentials, amd, sun};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

impl Map {
    /// Everything that is wrong in its lines, and every entry that could not be mounted, by file and place. Wildcards are
    /// read for the key `*`. No program runs, and no name is looked up.
    pub fn check(&self) -> Result<Vec<(PathBuf, Warning)>, MapError> {
        let Some(source) = self.source() else {
            return Ok(Vec::new());
        };
        let mut found = source.warnings();
        let who = Requester::new(Credentials { uid: 0, gid: 0 });
        let (environment, definitions) = (&self.site.environment, self.definitions.as_slice());
        let variables = Variables { environment, definitions, requester: &who };
        for (key, raw) in source.entries()?.unwrap_or_default() {
            let mut warnings = Vec::new();
            self.check_entry(&key, &raw, variables, &mut warnings);
            found.extend(warnings.into_iter().map(|warning| (raw.origin.clone(), warning)));
        }
        found.sort_by(|(file, a), (other, b)| (file, a.at, a.severity).cmp(&(other, b.at, b.severity)));
        found.dedup();
        Ok(found)
    }

    fn check_entry(&self, key: &[u8], raw: &RawEntry, variables: Variables<'_>, warnings: &mut Vec<Warning>) {
        let defaults = &self.defaults;
        match &self.content {
            Content::Sun(_) | Content::Hesiod(_) if raw.text.bytes() == b"-null" => {}
            Content::Sun(_) | Content::Hesiod(_) => {
                let context = sun::Context { key, variables, defaults, machine: &Nowhere };
                if let Err(error) = self.resolve(&raw.text, &context, warnings) {
                    let (at, why) = error.place();
                    warnings.push(Warning::error(at, format!("the entry does not count: {why}")));
                }
            }
            Content::Amd(_, settings) => {
                let point = self.entry.mount_point.as_deref().unwrap_or(Path::new("/"));
                let path = point.join(OsStr::from_bytes(key));
                let path = path.as_os_str().as_bytes();
                let map = &self.entry.map;
                let context =
                    amd::Context { key, path, map, variables, defaults, settings, machine: &Nowhere };
                amd::check(&raw.text, key == b"/defaults", &context, warnings);
            }
            Content::Fixed(..) => {}
        }
    }
}
