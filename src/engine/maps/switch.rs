//! The name service switch: which services know a map that is named without a type, and when the next one is asked.
//!
//! The line `automount:` of `nsswitch.conf`, as in `automount: files [NOTFOUND=return] sss ldap`.

use super::master::MapKind;
use super::source::Status;
use super::text::{Position, Warning};
use std::path::Path;

/// Where the switch is configured.
pub const PATH: &str = "/etc/nsswitch.conf";

/// The services, in the order of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch(pub Vec<Step>);

/// A service, and after which results the next one is not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The service, as the type of the maps that it has.
    pub service: MapKind,
    /// Results that end the search.
    pub last: Vec<Status>,
}

impl Step {
    /// As it is without `[...]`: a success ends the search.
    pub fn usual(service: MapKind) -> Self {
        Self { service, last: vec![Status::Success] }
    }

    fn set(&mut self, status: Status, last: bool) {
        self.last.retain(|known| *known != status);
        if last {
            self.last.push(status);
        }
    }
}

impl Default for Switch {
    /// Files only: what counts without a line.
    fn default() -> Self {
        Self(vec![Step::usual(MapKind::File)])
    }
}

impl Switch {
    /// Of this machine; what is wrong is logged.
    pub fn of_machine() -> Self {
        let mut warnings = Vec::new();
        let switch = Self::parse(&std::fs::read(PATH).unwrap_or_default(), &mut warnings);
        for warning in warnings {
            tracing::warn!("{}:{}: {}", Path::new(PATH).display(), warning.at, warning.message);
        }
        switch
    }

    /// Is a map without a type simply a file?
    pub fn is_files(&self) -> bool {
        matches!(self.0.as_slice(), [Step { service: MapKind::File, .. }])
    }

    /// The first line `automount:` of a text. A service that is not known is left out with a warning.
    pub fn parse(text: &[u8], warnings: &mut Vec<Warning>) -> Self {
        let text = String::from_utf8_lossy(text);
        let line = text.lines().zip(1..).find_map(|(line, number)| {
            let line = line.split('#').next()?;
            Some((line.trim_start().strip_prefix("automount")?.trim_start().strip_prefix(':')?, number))
        });
        let Some((line, number)) = line else {
            return Self::default();
        };
        let warn = |message: String| Warning::new(Position { line: number, column: 1 }, message);
        let mut steps: Vec<Step> = Vec::new();
        // Brackets may touch the words beside them, and blanks may stand inside.
        for part in line.split_inclusive(['[', ']']) {
            if let Some(inside) = part.strip_suffix(']') {
                for word in inside.split_whitespace() {
                    match (criterion(word), steps.last_mut()) {
                        (Some(changes), Some(step)) => {
                            changes.iter().for_each(|(status, last)| step.set(*status, *last));
                        }
                        _ => warnings.push(warn(format!("[{word}] is no STATUS=ACTION after a service"))),
                    }
                }
                continue;
            }
            for word in part.trim_end_matches('[').split_whitespace() {
                match service(word) {
                    Some(service) => steps.push(Step::usual(service)),
                    None => warnings.push(warn(format!("service {word} has no maps: it is left out"))),
                }
            }
        }
        Self(steps)
    }
}

fn service(word: &str) -> Option<MapKind> {
    Some(match word {
        "files" => MapKind::File,
        "nis" | "yp" => MapKind::Yp,
        "nisplus" => MapKind::Nisplus,
        "ldap" => MapKind::Ldap,
        "hesiod" => MapKind::Hesiod,
        "sss" => MapKind::Sss,
        _ => return None,
    })
}

/// `NOTFOUND=return`, or `!SUCCESS=return` for all but that one: results, each with whether it is the last.
fn criterion(word: &str) -> Option<Vec<(Status, bool)>> {
    let (status, action) = word.split_once('=')?;
    let last = match action.to_ascii_lowercase().as_str() {
        "return" => true,
        "continue" => false,
        _ => return None,
    };
    let (status, others) = match status.strip_prefix('!') {
        Some(status) => (status, true),
        None => (status, false),
    };
    let named = match status.to_ascii_lowercase().as_str() {
        "success" => Status::Success,
        "notfound" => Status::NotFound,
        "unavail" => Status::Unavailable,
        "tryagain" => Status::TryAgain,
        _ => return None,
    };
    let all = [Status::Success, Status::NotFound, Status::Unavailable, Status::TryAgain];
    let meant = all.into_iter().filter(|status| (*status == named) != others);
    Some(meant.map(|status| (status, last)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::*;

    fn parse(text: &str) -> (Vec<(MapKind, Vec<Status>)>, usize) {
        let mut warnings = Vec::new();
        let switch = Switch::parse(text.as_bytes(), &mut warnings);
        (switch.0.into_iter().map(|step| (step.service, step.last)).collect(), warnings.len())
    }

    #[test]
    fn without_a_line_files_count() {
        let files = (vec![(MapKind::File, vec![Success])], 0);
        assert_eq!(parse(""), files);
        assert_eq!(parse("passwd: files sss\n# automount: nis\n"), files);
        assert!(Switch::default().is_files());
    }

    #[test]
    fn services_in_order() {
        let expected = vec![
            (MapKind::Sss, vec![Success]),
            (MapKind::File, vec![Success]),
            (MapKind::Ldap, vec![Success]),
        ];
        assert_eq!(parse("automount:  sss files ldap # nis\n"), (expected.clone(), 0));
        assert_eq!(parse("passwd: db\n automount : sss db files ldap\nautomount: nis"), (expected, 1));
    }

    #[test]
    fn results_end_the_search_or_do_not() {
        let both = vec![(MapKind::File, vec![Success, NotFound]), (MapKind::Yp, vec![Success])];
        assert_eq!(parse("automount: files [NOTFOUND=return] nis"), (both.clone(), 0));
        assert_eq!(parse("automount: files[notfound=Return]nis"), (both, 0));
        let all_but = vec![(MapKind::Sss, vec![Success, NotFound, TryAgain])];
        assert_eq!(parse("automount: sss [ !UNAVAIL=return ]"), (all_but, 0));
        let none = vec![(MapKind::Ldap, vec![TryAgain])];
        assert_eq!(parse("automount: ldap [SUCCESS=continue TRYAGAIN=return]"), (none, 0));
    }

    #[test]
    fn nonsense_becomes_a_warning() {
        let files = vec![(MapKind::File, vec![Success])];
        assert_eq!(parse("automount: [NOTFOUND=return] files [WHAT=return] [SUCCESS=merge]"), (files, 3));
    }
}
