//! Entries that automount 5.1.9 reads otherwise: see `docs/map-decisions.md`.

use super::super::options::join;
use super::super::text::{Text, Warning, Word};
use super::{Context, is_offset, options};
use std::os::unix::ffi::OsStrExt;

/// Options that automount takes for its own when they only begin like one of them.
const PREFIXES: [&[u8]; 4] = [b"bg", b"nofg", b"nonstrict", b"browse"];

/// Warn about what automount makes of an entry, variables put in and cut into words.
pub(super) fn entry(text: &Text<'_>, words: &[Word], context: &Context<'_>, warnings: &mut Vec<Warning>) {
    for word in words.iter().filter(|word| word.starts(b'-')) {
        for option in options(word) {
            if let Some(message) = option_message(&option, context) {
                warnings.push(Warning::differs(word.at, message));
            }
        }
    }
    inherited(words, context, warnings);
    quoting(text, words, warnings);
}

fn option_message(option: &[u8], context: &Context<'_>) -> Option<String> {
    let shown = String::from_utf8_lossy(option);
    if PREFIXES.iter().any(|prefix| option.starts_with(prefix) && option != *prefix) {
        return Some(format!("automount drops the option {shown}: it begins like one of its own"));
    }
    if option.contains(&b'"') {
        return Some(format!("automount removes the quotes of {shown}, and mount(8) splits it at the comma"));
    }
    let path = option.windows(2).position(|pair| pair == b":/");
    if context.defaults.slashify && path.is_some_and(|colon| option[colon + 1..].contains(&b':')) {
        return Some(format!(
            "automount makes a colon of {shown} a slash (--no-slashify-colons both read alike)"
        ));
    }
    None
}

/// Options of the master map that automount finds in the text of the entry's.
fn inherited(words: &[Word], context: &Context<'_>, warnings: &mut Vec<Warning>) {
    let Some(first) = words.first().filter(|word| word.starts(b'-') && context.defaults.append) else {
        return;
    };
    let own: Vec<_> = words.iter().take_while(|word| word.starts(b'-')).flat_map(options).collect();
    let above = &context.defaults.options;
    let (text, wanted) = (join(&own), join(above));
    let contains = text.as_bytes().windows(wanted.len().max(1)).any(|part| part == wanted.as_bytes());
    if !wanted.is_empty() && contains && !own.windows(above.len()).any(|run| run == above.as_slice()) {
        let message = format!("automount does not add {} of the master map here", wanted.display());
        warnings.push(Warning::differs(first.at, message));
    }
}

/// Blanks that automount does not take for part of a word.
fn quoting(text: &Text<'_>, words: &[Word], warnings: &mut Vec<Warning>) {
    let bytes = text.bytes();
    if bytes.ends_with(b"\\ ") {
        let at = text.position(bytes.len() - 2);
        warnings.push(Warning::differs(at, "automount drops a blank at the end, though it is escaped"));
    }
    if !words.iter().any(is_offset) {
        return;
    }
    for pair in words.windows(2) {
        let bare = pair[0].starts(b':') && pair[0].chars.get(1).is_some_and(|c| c.byte != b'/');
        if bare && is_offset(&pair[1]) {
            let message =
                "automount does not see an offset behind a location without a slash: it is part of it";
            warnings.push(Warning::differs(pair[1].at, message));
        }
    }
    let found = |wanted: &[u8]| bytes.windows(wanted.len()).position(|part| part == wanted);
    if let Some(offset) = found(b"\\ ") {
        let message = "automount splits the offsets at this blank; put the whole word in quotes";
        warnings.push(Warning::differs(text.position(offset), message));
    }
    if let Some(offset) = found(b":\"/") {
        let message = "automount does not see this location; put the whole word in quotes";
        warnings.push(Warning::differs(text.position(offset), message));
    }
}
