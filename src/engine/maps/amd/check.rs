//! What is wrong in an entry, and what automount 5.1.9 makes of it, whatever machine it is for.

use super::super::options::split_bytes;
use super::super::text::{Char, Text, Warning, show};
use super::expand::{BUDGET, Values};
use super::parse::{self, Location, Selector, Test};
use super::{Context, Error, ErrorKind, place, select};
use std::cell::Cell;

/// Selectors whose values automount compares with nothing.
const NEVER_HOLD: [&str; 6] = ["uid", "gid", "path", "map", "autodir", "cluster"];

/// Check all locations of an entry, those that are not for this machine, too. Of `/defaults` only what it says is checked,
/// not whether it could be mounted.
pub fn check(entry: &Text<'_>, is_defaults: bool, context: &Context<'_>, warnings: &mut Vec<Warning>) {
    let error = |error: Error| Warning::error(error.at, format!("the entry does not count: {}", error.kind));
    let groups = match parse::groups(entry, context.settings.normalize_slashes) {
        Ok(groups) => groups,
        Err(wrong) => return warnings.push(error(wrong)),
    };
    let left = Cell::new(BUDGET);
    for group in groups {
        let mut common = Vec::new();
        for location in group {
            location.selectors.iter().for_each(|selector| check_selector(selector, context, warnings));
            check_options(&location, warnings);
            if location.is_default {
                common.extend(location.options);
            } else if !is_defaults {
                let values = Values::new([location.options.as_slice(), &common], context, &left);
                match place::check(location.at, &values, context) {
                    // What is missing may stand in /defaults.
                    Err(Error { kind: ErrorKind::NoType | ErrorKind::Missing { .. }, .. }) | Ok(()) => {}
                    Err(wrong) => warnings.push(error(wrong)),
                }
            }
        }
    }
}

fn check_selector(selector: &Selector, context: &Context<'_>, warnings: &mut Vec<Warning>) {
    let Selector { at, name, test } = selector;
    let name = name.as_str();
    let known = match test {
        Test::Value { .. } => select::VALUES.contains(&name),
        Test::Call { .. } => select::CALLS.contains(&name),
    };
    if !known {
        let kind = ErrorKind::Selector(name.to_owned());
        return warnings.push(Warning::error(*at, format!("the entry does not count: {kind}")));
    }
    let configured = || context.variables.environment.configured.iter().any(|(known, _)| known == name);
    let differs = match test {
        Test::Value { .. } if matches!(name, "arch" | "karch" | "os" | "osver") && !configured() => {
            format!("automount gives {name} no value unless autofs.conf does: the entry fails there")
        }
        Test::Value { .. } if NEVER_HOLD.contains(&name) => {
            format!("with automount {name} never has a value")
        }
        Test::Call { arguments, .. } if matches!(name, "true" | "false") && arguments.is_empty() => {
            format!("automount wants an argument: write {name}(1)")
        }
        _ => return,
    };
    warnings.push(Warning::differs(*at, differs));
}

fn check_options(location: &Location, warnings: &mut Vec<Warning>) {
    let mut differs = |text: String| warnings.push(Warning::differs(location.at, text));
    for (name, value) in &location.options {
        let value: Vec<u8> = value.iter().map(|Char { byte, .. }| *byte).collect();
        match (name.as_str(), value.as_slice()) {
            ("type", b"lofs" | b"nfsl") => {
                differs(format!(
                    "automount gives the type {} to mount(8), which does not know it",
                    show(&value)
                ));
            }
            ("opts" | "addopts" | "remopts", list) => {
                let own = split_bytes(list).filter(|option| place::is_for_amd(option));
                own.for_each(|own| differs(format!("automount gives {} to mount(8)", show(own))));
            }
            _ => {}
        }
        if value.windows(3).any(|part| part == b"${.") || value.windows(2).any(|part| part == b".}") {
            differs("automount fails at a part of a host name, as ${.hostd} and ${hostd.}".to_owned());
        }
    }
}
