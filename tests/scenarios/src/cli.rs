//! `autofs-cr` as a user calls it.

use crate::check::HANG_LIMIT;
use crate::process;
use anyhow::{Context, Result};
use serde_json::Value;
use std::process::Output;

/// Run `autofs-cr ARGS`; its output whatever its exit code.
pub fn run(args: &[&str]) -> Result<Output> {
    process::run(HANG_LIMIT, "autofs-cr", args)
}

/// Run `autofs-cr ARGS`, which must succeed; its stdout.
pub fn ok(args: &[&str]) -> Result<String> {
    process::run_ok(HANG_LIMIT, "autofs-cr", args)
}

/// Run `autofs-cr ARGS --json`, which must succeed.
pub fn json(args: &[&str]) -> Result<Value> {
    let text = ok(&[args, &["--json"]].concat())?;
    serde_json::from_str(&text)
        .with_context(|| format!("autofs-cr {} printed no JSON: {text}", args.join(" ")))
}

/// `autofs-cr list --json` as an array of mounts.
pub fn list() -> Result<Vec<Value>> {
    let survey = json(&["list"])?;
    Ok(survey["mounts"].as_array().context("list --json has no mounts")?.clone())
}

/// The autofs mount at `path` in a listing.
pub fn mount_at<'a>(mounts: &'a [Value], path: &str) -> Option<&'a Value> {
    mounts.iter().find(|mount| mount["path"] == path)
}
