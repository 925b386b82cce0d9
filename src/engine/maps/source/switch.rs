//! A map that one of several services has.

use super::{RawEntry, Source, SourceError, Status};
use crate::engine::maps::text::{Text, Warning};
use crate::engine::maps::vars::Variables;
use std::path::{Path, PathBuf};

/// The same map in the services of the name service switch, each with the results after which no other is asked.
#[derive(Debug)]
pub struct SwitchSource(pub Vec<(Box<dyn Source>, Vec<Status>)>);

impl SwitchSource {
    /// Ask one after the other. The answer of the first that has one, else the first error, else nothing.
    fn ask<T>(
        &self,
        nothing: T,
        mut ask: impl FnMut(&dyn Source) -> Result<Option<T>, SourceError>,
    ) -> Result<T, SourceError> {
        let mut answer: Result<Option<T>, SourceError> = Ok(None);
        for (source, last) in &self.0 {
            let result = ask(source.as_ref());
            let ends = last.contains(&Status::of(&result));
            answer = match (answer, result) {
                (Ok(None), next) | (Err(_), next @ Ok(Some(_))) => next,
                // That one service does not have the map is no error where another has it.
                (Err(error), Ok(None)) if error.status() == Status::NotFound => Ok(None),
                (first, _) => first,
            };
            if ends {
                break;
            }
        }
        answer.map(|found| found.unwrap_or(nothing))
    }
}

impl Source for SwitchSource {
    fn lookup(&self, key: &[u8], variables: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        self.ask(None, |source| Ok(source.lookup(key, variables)?.map(Some)))
    }

    /// The entries of the first service that has the map: they are not put together from several.
    fn visit(&self, each: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
        self.ask(false, |source| source.visit(each).map(Some))
    }

    fn wildcard(&self) -> Result<Option<RawEntry>, SourceError> {
        self.ask(None, |source| Ok(source.wildcard()?.map(Some)))
    }

    fn fresh(&self) -> bool {
        self.0.iter().all(|(source, _)| source.fresh())
    }

    /// One that cannot be read is asked again when its turn comes.
    fn refresh(&self) -> Result<(), SourceError> {
        for (source, _) in &self.0 {
            if let Err(error) = source.refresh() {
                tracing::debug!("{error}");
            }
        }
        Ok(())
    }

    fn warnings(&self) -> Vec<(PathBuf, Warning)> {
        self.0.iter().flat_map(|(source, _)| source.warnings()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::maps::Credentials;
    use crate::engine::maps::source::ListSource;
    use crate::engine::maps::vars::{Environment, Requester};
    use std::io;

    /// A service that is down.
    #[derive(Debug)]
    struct Down;

    impl Source for Down {
        fn lookup(&self, _: &[u8], _: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
            Err(SourceError::read(Path::new("down"))(io::ErrorKind::TimedOut.into()))
        }
        fn visit(&self, _: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
            Err(SourceError::read(Path::new("down"))(io::ErrorKind::TimedOut.into()))
        }
        fn fresh(&self) -> bool {
            true
        }
        fn refresh(&self) -> Result<(), SourceError> {
            Ok(())
        }
    }

    fn list(key: &str, entry: &str) -> Box<dyn Source> {
        Box::new(ListSource::new(&[(key.into(), entry.into())], "list"))
    }

    fn lookup(switch: &SwitchSource, key: &str) -> String {
        let requester = Requester::new(Credentials { uid: 0, gid: 0 });
        let environment = Environment::default();
        let variables = Variables { environment: &environment, definitions: &[], requester: &requester };
        match switch.lookup(key.as_bytes(), &variables) {
            Ok(None) => "nothing".into(),
            Ok(Some(raw)) => String::from_utf8_lossy(raw.text.bytes()).into_owned(),
            Err(_) => "error".into(),
        }
    }

    #[test]
    fn the_first_that_knows_the_key_answers() {
        let switch = SwitchSource(vec![
            (list("a", "1"), vec![Status::Success]),
            (list("a", "2"), vec![Status::Success]),
            (list("b", "3"), vec![Status::Success]),
        ]);
        assert_eq!([lookup(&switch, "a"), lookup(&switch, "b"), lookup(&switch, "c")], ["1", "3", "nothing"]);
        let keys = switch.entries().unwrap().unwrap();
        assert_eq!(keys.len(), 1, "{keys:?}");
    }

    #[test]
    fn a_service_that_is_down_hides_others_only_when_asked_to() {
        let usual = SwitchSource(vec![
            (Box::new(Down), vec![Status::Success]),
            (list("a", "1"), vec![Status::Success]),
        ]);
        assert_eq!([lookup(&usual, "a"), lookup(&usual, "b")], ["1", "error"]);
        assert_eq!(usual.entries().unwrap().unwrap().len(), 1);
        let strict =
            SwitchSource(vec![(Box::new(Down), vec![Status::Unavailable]), (list("a", "1"), vec![])]);
        assert_eq!(lookup(&strict, "a"), "error");
    }

    #[test]
    fn not_found_may_end_the_search() {
        let last = vec![Status::Success, Status::NotFound];
        let switch = SwitchSource(vec![(list("a", "1"), last), (list("b", "2"), vec![Status::Success])]);
        assert_eq!([lookup(&switch, "a"), lookup(&switch, "b")], ["1", "nothing"]);
    }
}
