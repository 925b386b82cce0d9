use super::*;
use crate::engine::maps::Credentials;
use crate::engine::maps::local::Nowhere;
use crate::engine::maps::vars::{Environment, Requester};
use proptest::prelude::*;

fn with<T>(key: &[u8], defaults: &Defaults, read: impl FnOnce(&Context<'_>) -> T) -> T {
    let environment = Environment { nodename: "client.example.org".into(), ..Environment::default() };
    let requester = Requester::known(Credentials { uid: 0, gid: 0 }, Default::default());
    let variables = Variables { environment: &environment, definitions: &[], requester: &requester };
    read(&Context { key, variables, defaults, machine: &Nowhere })
}

fn parse(key: &[u8], entry: &[u8]) -> Result<Resolved, Error> {
    with(key, &Defaults::default(), |context| resolve(&Text::from(entry), context, &mut Vec::new()))
}

#[test]
fn an_error_knows_its_place() {
    let error = parse(b"k", b"-ro srv:/a -rw").unwrap_err();
    assert_eq!(error.at, Position { line: 1, column: 12 });
}

/// An entry that says the same, in one fixed way of writing.
fn print(resolved: &Resolved) -> Vec<u8> {
    let mut text = Vec::new();
    for mount in &resolved.mounts {
        let What::Mount { fstype, options, sources, .. } = &mount.what else { unreachable!() };
        let mut list = format!("fstype={fstype}").into_bytes();
        if !options.is_empty() {
            list.extend([b",", options.as_encoded_bytes()].concat());
        }
        text.extend_from_slice(b" \"/");
        text.extend_from_slice(mount.offset.as_os_str().as_encoded_bytes());
        text.extend_from_slice(b"\" -");
        text.extend_from_slice(&list);
        for source in sources {
            let path = source.source.to_string_lossy().replace(' ', "\\ ");
            let place = match &source.host {
                Some(host) => format!(" {host}({}):{}", source.weight, path.split_once(':').unwrap().1),
                None => format!(" :{path}"),
            };
            text.extend_from_slice(place.as_bytes());
        }
    }
    text
}

proptest! {
    #[test]
    fn no_input_panics(key: Vec<u8>, entry: Vec<u8>) {
        let _ = parse(&key, &entry);
    }

    #[test]
    fn no_likely_input_panics(entry in r#"([-/&$:{}()\\", a-d#\[\]=]|srv:/a| -fstype=autofs ){0,40}"#) {
        let _ = parse(b"k", entry.as_bytes());
    }

    #[test]
    fn what_is_printed_reads_the_same(
        entry in r#"(-(ro|fstype=foo|soft,bg),?[a-c=]{0,3} )?((/[a-c]{0,2}|/[a-c]/d) (-rw )?(s1,s2\(3\):/[a-c ]{0,3}x|:/dev/[a-c]) ){1,4}"#
    ) {
        if let Ok(first) = parse(b"k", entry.as_bytes()) {
            prop_assert_eq!(&parse(b"k", &print(&first)).unwrap(), &first);
        }
    }
}
