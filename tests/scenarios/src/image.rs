//! The image of a checkpoint that has one of everything, read by those who did not write it.

use crate::check::{Checks, HANG_LIMIT};
use crate::cli;
use crate::process::run_ok;
use anyhow::{Context, Result};
use autofs_cr::image::{Checkpoint, Existing, write};
use serde_json::{Value, json};
use std::path::Path;

const DIR: &str = "/tmp/image";
const SAMPLE: &str = include_str!("../../data/checkpoint.json");

/// Stock `crit` and our own `show`.
pub fn run(checks: &mut Checks) -> Result<()> {
    let checkpoint: Checkpoint = serde_json::from_str(SAMPLE)?;
    write(Path::new(DIR), &checkpoint, Existing::Replace)?;

    // Direct is 0, indirect 1, offset 2; what does not fit into a field is as near as it can be.
    let indirect = json!({
        "fd": 6, "pgrp": 812, "timeout": 300, "minproto": 5, "maxproto": 5, "mode": 1, "read_fd": 5
    });
    checks.equal("crit reads an indirect mount", crit("autofs-57.img")?, indirect);
    let catatonic = json!({
        "fd": -1, "pgrp": 812, "timeout": 300, "minproto": 5, "maxproto": 5, "mode": 0, "uid": -2
    });
    checks.equal("crit reads a catatonic direct mount", crit("autofs-58.img")?, catatonic);
    let offset = crit("autofs-74565.img")?;
    checks.equal("crit reads an offset mount with a minor above 255", &offset["mode"], &json!(2));
    checks.equal("and its timeout of 35 000 years", &offset["timeout"], &json!(i32::MAX));

    let mut shown = cli::json(&["show", DIR])?;
    let shown = shown.as_object_mut().context("show --json prints no object")?;
    checks.equal("show tells the format of its JSON", shown.remove("format"), Some(json!(1)));
    checks.that("show tells what might be run", shown.remove("commands").is_some());
    checks.equal("show --json prints the checkpoint", &json!(shown), &serde_json::from_str(SAMPLE)?);
    let text = cli::ok(&["show", DIR])?;
    checks.that("show prints for people", text.contains("\n/data/src/deep  offset"));
    Ok(())
}

/// The only entry of an image, as stock `crit decode` prints it.
fn crit(name: &str) -> Result<Value> {
    let text = run_ok(HANG_LIMIT, "crit", &["decode", "-i", &format!("{DIR}/{name}")])?;
    let mut image: Value = serde_json::from_str(&text)?;
    anyhow::ensure!(image["magic"] == "AUTOFS", "crit takes {name} for {}", image["magic"]);
    anyhow::ensure!(image["entries"].as_array().map(Vec::len) == Some(1), "{name}: {text}");
    Ok(image["entries"][0].take())
}
