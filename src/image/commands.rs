//! Which programs a checkpoint names as maps. To read an image runs nothing; whoever goes on to serve
//! its maps asks here first what that would run.

use super::checkpoint::{Checkpoint, Service};
use serde::Serialize;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A program that would be run, as root, to look up keys.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Command {
    /// The mount point whose keys it answers.
    #[serde(with = "crate::discover::escaped")]
    pub mount_point: PathBuf,
    /// The program.
    #[serde(with = "crate::discover::escaped")]
    pub program: PathBuf,
    /// When it is run.
    pub when: When,
}

/// When a map is run as a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// Always: `program:/path`, `exec:/path`.
    Always,
    /// A map without a type, `/path`, where that file is executable on the destination.
    IfExecutable,
}

impl Checkpoint {
    /// Every program that serving these maps would run, or might; each once, in image order. A restore
    /// has to be asked for these.
    pub fn commands(&self) -> Vec<Command> {
        let mut commands = Vec::new();
        for service in &self.services {
            if let Service::MasterEntry { mount_point, map, entries, .. } = service {
                commands.extend(of_map(mount_point, map));
                commands.extend(entries.iter().flat_map(|(_, entry)| of_entry(mount_point, entry)));
            }
        }
        for mount in &self.mounts {
            let entries = mount.active.iter().filter_map(|active| active.entry.as_deref());
            commands.extend(entries.flat_map(|entry| of_entry(&mount.facts.path, entry)));
        }
        let mut seen = std::collections::HashSet::new();
        commands.retain(|command| seen.insert(command.clone()));
        commands
    }
}

/// `[TYPE[,FORMAT]:]MAP`, or `multi:` and several of these with `--` in between.
fn of_map(mount_point: &Path, map: &[u8]) -> Vec<Command> {
    words(map).filter_map(|word| of_word(mount_point, word)).collect()
}

/// The submounts of a map entry (`fstype=autofs`), whose sources are maps again.
fn of_entry(mount_point: &Path, entry: &[u8]) -> Vec<Command> {
    let option = b"fstype=autofs".as_slice();
    match entry.windows(option.len()).any(|window| window == option) {
        true => of_map(mount_point, entry),
        false => Vec::new(),
    }
}

fn of_word(mount_point: &Path, word: &[u8]) -> Option<Command> {
    let word = word.strip_prefix(b"multi:").unwrap_or(word);
    let (program, when) = match word.iter().position(|byte| *byte == b':') {
        _ if word.starts_with(b"/") => (word, When::IfExecutable),
        Some(colon) => {
            let map_type = word[..colon].split(|byte| *byte == b',').next()?;
            let is_program = matches!(map_type, b"program" | b"exec");
            (is_program.then_some(&word[colon + 1..])?, When::Always)
        }
        None => return None,
    };
    let program = OsStr::from_bytes(program).into();
    Some(Command { mount_point: mount_point.to_owned(), program, when })
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    // Quotes only join words or hide a space; without them every word still begins as it did.
    text.split(u8::is_ascii_whitespace)
        .map(|word| word.strip_prefix(b"\"").unwrap_or(word))
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(map: &str) -> Vec<(String, When)> {
        let text = |command: Command| (command.program.display().to_string(), command.when);
        of_map(Path::new("/net"), map.as_bytes()).into_iter().map(text).collect()
    }

    #[test]
    fn every_way_to_name_a_program_is_found() {
        let always = |path: &str| (path.to_owned(), When::Always);
        assert_eq!(of("program:/etc/auto.sh"), [always("/etc/auto.sh")]);
        assert_eq!(of("program,sun:/etc/auto.sh"), [always("/etc/auto.sh")]);
        assert_eq!(of("exec:/bin/x"), [always("/bin/x")]);
        assert_eq!(of("multi:file:/etc/a -- program:/etc/b"), [always("/etc/b")]);
        assert_eq!(of("multi:program:/etc/b -- yp:c"), [always("/etc/b")]);
        assert_eq!(of("/etc/auto.data"), [("/etc/auto.data".to_owned(), When::IfExecutable)]);
    }

    #[test]
    fn what_runs_nothing_is_not_listed() {
        for map in
            ["-hosts", "file:/etc/auto.data", "yp:auto.home", "ldap:ou=a,dc=b", "dir:/etc/d", "auto.home"]
        {
            assert_eq!(of(map), [], "{map}");
        }
        assert_eq!(of_entry(Path::new("/a"), b"-ro srv:/export"), []);
    }

    #[test]
    fn a_submount_of_an_entry_counts() {
        let found = of_entry(Path::new("/a"), b"-fstype=autofs program:/etc/sub.sh");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].when, When::Always);
    }
}
