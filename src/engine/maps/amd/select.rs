//! Which locations are for this machine, user and key.

use super::super::text::show;
use super::expand::Values;
use super::parse::{Selector, Test};
use super::{Context, Error, ErrorKind};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Selectors that compare a value.
pub(super) const VALUES: &[&str] = &[
    "arch", "karch", "os", "osver", "full_os", "vendor", "byte", "cluster", "autodir", "domain", "host",
    "hostd", "uid", "gid", "key", "map", "path", "dollar",
];

/// Selectors that take an argument.
pub(super) const CALLS: &[&str] =
    &["true", "false", "exists", "in_network", "network", "netnumber", "wire", "xhost", "netgrp", "netgrpd"];

/// Do all selectors of a location hold?
pub(super) fn all(selectors: &[Selector], values: &Values<'_>, context: &Context<'_>) -> Result<bool, Error> {
    for selector in selectors {
        if !holds(selector, values, context)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn holds(selector: &Selector, values: &Values<'_>, context: &Context<'_>) -> Result<bool, Error> {
    let name = selector.name.as_str();
    match &selector.test {
        Test::Value { equal, value } if VALUES.contains(&name) => {
            let wanted = values.expand(value, selector.at)?;
            let found = values.builtin(name.as_bytes()).unwrap_or_default();
            // uname(2) says `Linux`, maps that were written for amd say `linux`.
            let same = if name == "os" { found.eq_ignore_ascii_case(&wanted) } else { *found == *wanted };
            Ok(same == *equal)
        }
        Test::Call { expected, arguments } => {
            let arguments = values.expand(arguments, selector.at)?;
            let answer = call(name, &arguments, values, context);
            let answer = answer.ok_or_else(|| ErrorKind::Selector(name.into()).at(selector.at))?;
            Ok(answer == *expected)
        }
        Test::Value { .. } => Err(ErrorKind::Selector(name.into()).at(selector.at)),
    }
}

/// A selector with arguments; `None`: there is none of this name.
fn call(name: &str, arguments: &[u8], values: &Values<'_>, context: &Context<'_>) -> Option<bool> {
    let text = show(arguments);
    let host = |name: &[u8]| show(&values.builtin(name).unwrap_or_default()).into_owned();
    let in_netgroup = |own: &[u8]| {
        let (group, member) = match text.split_once(',') {
            Some((group, member)) => (group.trim(), member.trim().to_owned()),
            None => (text.trim(), host(own)),
        };
        context.machine.is_in_netgroup(group, &member)
    };
    Some(match name {
        "true" => true,
        "false" => false,
        "exists" => context.machine.exists(Path::new(OsStr::from_bytes(arguments))),
        "in_network" | "network" | "netnumber" | "wire" => context.machine.is_on_network(&text),
        "xhost" => text == host(b"host") || context.machine.is_local(&text),
        "netgrp" => in_netgroup(b"host"),
        "netgrpd" => in_netgroup(b"hostd"),
        _ => return None,
    })
}
