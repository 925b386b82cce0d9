//! What is different in a virtual machine of `scripts/vm`.

use crate::process::run_ok;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The files that it was given.
const JOB: &str = "/job";
const LIMIT: Duration = Duration::from_secs(200);

/// This limit, or a longer one: there the processor is emulated, and perhaps shared. Limits are only reached by failures.
pub fn patient(limit: Duration) -> Duration {
    if Path::new(JOB).exists() { limit * 4 } else { limit }
}

/// Our Debian package, which is among the files.
pub fn install_package() -> Result<()> {
    let files = fs::read_dir(JOB)?.filter_map(|file| file.ok()?.path().to_str().map(str::to_owned));
    let package = files.into_iter().find(|path| path.ends_with(".deb")).context("no package in /job")?;
    run_ok(LIMIT, "dpkg", &["--install", &package]).map(drop)
}
