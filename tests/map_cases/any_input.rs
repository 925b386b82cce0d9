//! No input makes a parser panic, and what files say does not depend on how it is asked for.

use crate::common::Setup;
use autofs_cr::engine::maps::conf::Conf;
use autofs_cr::engine::maps::master::parse;
use autofs_cr::engine::maps::text::{Lines, Text, Words};
use proptest::prelude::*;

proptest! {
    #[test]
    fn of_text(bytes: Vec<u8>) {
        for line in Lines::new(&bytes) {
            prop_assert!(!line.text.bytes().is_empty());
            let _ = Words::new(&line.text).count();
        }
        let _ = Words::new(&Text::from(bytes.as_slice())).remaining();
    }

    #[test]
    fn of_the_master_map(text in r##"(/[a-c-]{0,2}|[ \\\n,"#=-]|file:|multi|--|-t|ro|-D|\+){0,30}"##, bytes: Vec<u8>) {
        parse(text.as_bytes(), &mut Vec::new());
        parse(&bytes, &mut Vec::new());
    }

    #[test]
    fn of_the_configuration(text in r##"(\[ ?autofs ?\]|amd|timeout|=|[ \n#-]|[0-9]{1,3}|yes){0,30}"##, bytes: Vec<u8>) {
        Conf::default().apply(text.as_bytes(), &mut Vec::new());
        Conf::default().apply(&bytes, &mut Vec::new());
    }

    #[test]
    fn of_amd_maps(entry in r##"([-;:=!()$\{}/|" a]|type:=(link|nfs|auto|ext4)|fs:=|rfs:=|host==|true|\$\{(fs|key|/path)\}){0,30}"##) {
        let setup = Setup { kind: "file,amd:", ..Setup::default() };
        setup.open(&format!("/defaults type:=link;rhost:=server\nk {entry}\n")).lookup("k");
    }

    /// A lookup cuts its line out of the file anew: it must find what listing finds.
    #[test]
    fn lookups_find_what_is_listed(text in r##"([a-c]{1,2} s:/[x-z]|[ \\\n#\r]|"a b" s:/q|-ro| ){0,40}"##) {
        let opened = Setup::default().open(&text);
        let listed = opened.map.source().unwrap().entries().unwrap().unwrap();
        for (key, entry) in listed {
            let key = String::from_utf8(key).unwrap();
            let found = opened.raw(&key);
            prop_assert_eq!(found, Some(entry));
        }
    }
}
