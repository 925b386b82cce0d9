//! `--dumpmaps`: all maps, as automount(8) prints them.
//!
//! Keys stand in the order of their file; automount's order is that of its hash table.

use super::super::ExitCode;
use super::super::output::{self, Output};
use anyhow::{Context, Result};
use autofs_cr::engine::config::Given;
use autofs_cr::engine::maps::master::{self, Entry, MapKind, MapName};
use autofs_cr::engine::maps::vars::define;
use autofs_cr::engine::maps::{Map, Site, options};
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Every map of the master map.
pub fn all(given: &Given, output: &mut Output) -> Result<ExitCode> {
    let site = Arc::new(given.site()?);
    let master = given.master(&site)?;
    let mut text = "\nautofs dump map information\n===========================\n\n".to_owned();
    text += &global_options(&site);
    let mut points: Vec<Option<&Path>> = Vec::new();
    for entry in &master.entries {
        let point = entry.mount_point.as_deref();
        if points.contains(&point) {
            // Direct maps, which are all printed together.
            continue;
        }
        points.push(point);
        let shown = point.unwrap_or(Path::new("/-"));
        let _ = write!(text, "\nMount point: {}\n\nsource(s):\n", shown.display());
        for same in master.entries.iter().filter(|other| other.mount_point.as_deref() == point) {
            text += &match source(same, &site) {
                Ok(shown) => format!("\n{shown}"),
                Err(error) => {
                    output::warn(format_args!("{error:#}"));
                    "  failed to read map\n".to_owned()
                }
            };
        }
        text += "\n";
    }
    output.print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// One map, a key and its entry on each line.
pub fn one(kind: &str, name: &str, given: &Given, output: &mut Output) -> Result<ExitCode> {
    let site = Arc::new(given.site()?);
    let map = format!("{kind}:{name}");
    let mut text = String::new();
    // Whether it is a direct map its keys tell.
    for point in [Some(PathBuf::from("/")), None] {
        let entry = master::entry(point, map.as_bytes(), b"").with_context(|| format!("map {map}"))?;
        each(&Map::open(entry, site.clone())?, &mut |key, entry| {
            let _ = writeln!(text, "{key}\t{entry}");
        })?;
    }
    output.print(if text.is_empty() { "no keys found in map\n" } else { &text })?;
    Ok(ExitCode::SUCCESS)
}

fn global_options(site: &Site) -> String {
    if site.options.is_empty() {
        return "global options: none configured\n".into();
    }
    let will = if site.conf.append_options { "will" } else { "will not" };
    let all = options::join(&site.options);
    format!("global options: {}\nglobal options {will} be appended to map entries\n", all.display())
}

fn source(entry: &Entry, site: &Arc<Site>) -> Result<String> {
    let map = Map::open(entry.clone(), site.clone())?;
    let mut text = heading(&map);
    let mut keys = String::new();
    each(&map, &mut |key, entry| {
        let entry = if entry.is_empty() { "(null)" } else { entry };
        let _ = writeln!(keys, "  {key} | {entry}");
    })?;
    text += if keys.is_empty() { "  no keys found in map\n" } else { &keys };
    Ok(text)
}

/// Type, name and options.
fn heading(map: &Map) -> String {
    let entry = &map.entry;
    let name = |name: &MapName| name.name.display().to_string();
    let options = &entry.options;
    let arguments: Vec<String> = options
        .definitions
        .iter()
        .map(define)
        .chain(options.mount.iter().cloned())
        .map(|option| String::from_utf8_lossy(&option).into_owned())
        .collect();
    let kind = &entry.map.kind;
    let mut text = match (kind, kind.word()) {
        (MapKind::Multi(_), _) => "  type: multi\n".to_owned(),
        (_, Some(word)) => format!("  type: {word}\n"),
        (MapKind::Named, _) => "  instance type(s): files \n".to_owned(),
        _ if map.source().is_some_and(|source| source.is_program()) => {
            "  instance type(s): program \n".to_owned()
        }
        _ => "  instance type(s): file \n".to_owned(),
    };
    match kind {
        MapKind::Multi(maps) => {
            for (i, map) in maps.iter().enumerate() {
                let n = i + 1;
                let _ = match map.kind.word() {
                    Some(word) => writeln!(text, "  map[{n}]: {word}\n  arguments[{n}]: {}", name(map)),
                    None => writeln!(text, "  map[{n}]: {}", name(map)),
                };
            }
        }
        MapKind::Hosts => {}
        _ => {
            let _ = writeln!(text, "  map: {}", name(&entry.map));
        }
    }
    if !arguments.is_empty() {
        let _ = writeln!(text, "  arguments: {}", arguments.join(" "));
    }
    text + "\n"
}

/// Keys and entries in order, those included; bytes that are no UTF-8 are replaced.
fn each(map: &Map, print: &mut dyn FnMut(&str, &str)) -> Result<()> {
    if let Some(source) = map.source() {
        source.visit(&mut |key, text, _| {
            print(
                &OsStr::from_bytes(key).to_string_lossy(),
                &OsStr::from_bytes(text.bytes()).to_string_lossy(),
            );
        })?;
    }
    Ok(())
}
