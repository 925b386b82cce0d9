//! What maps name: exported directories, and programs.

use anyhow::Result;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A program map that answers `/srv/data/KEY` as soon as there is no file `/tmp/slow`.
const SLOW: &str = "#!/bin/sh\nwhile [ -e /tmp/slow ]; do sleep 0.1; done\necho :/srv/data/$1\n";

/// A directory of `/srv/data` with a file of its name.
pub fn export(name: &str) -> Result<()> {
    let dir = format!("/srv/data/{name}");
    fs::create_dir_all(&dir)?;
    Ok(fs::write(format!("{dir}/{name}"), format!("{name}\n"))?)
}

/// Likewise, several.
pub fn export_all(names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| export(name))
}

/// A program.
pub fn script(path: &str, text: &str) -> Result<()> {
    // Not over a program that somebody has open, or a link.
    let _ = fs::remove_file(path);
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// `/etc/auto.slow`, which waits for the end of `/tmp/slow`.
pub fn slow_map() -> Result<()> {
    script("/etc/auto.slow", SLOW)
}
