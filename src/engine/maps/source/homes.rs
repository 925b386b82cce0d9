//! Links to home directories.

use super::{RawEntry, Source, SourceError};
use crate::engine::maps::text::Text;
use crate::engine::maps::vars::Variables;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A map whose keys are users, and whose entries are links to their home directories (map type `userdir`).
#[derive(Clone, Copy, Debug)]
pub struct HomesSource;

impl Source for HomesSource {
    fn lookup(&self, key: &[u8], _: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        let Ok(name) = std::str::from_utf8(key) else { return Ok(None) };
        // A name service that is down answers as one that does not know the user.
        let user = nix::unistd::User::from_name(name).ok().flatten();
        Ok(user.map(|user| {
            let home = user.dir.as_os_str().as_bytes().iter().flat_map(|byte| [b'\\', *byte]);
            let text = Text::from(b"-symlink :".iter().copied().chain(home).collect::<Vec<u8>>().as_slice())
                .into_owned();
            RawEntry { text, origin: "userdir".into() }
        }))
    }

    fn visit(&self, _: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
        Ok(false)
    }

    fn fresh(&self) -> bool {
        true
    }

    fn refresh(&self) -> Result<(), SourceError> {
        Ok(())
    }
}
