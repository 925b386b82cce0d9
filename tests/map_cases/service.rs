//! Maps of what a checkpoint kept.

use crate::common::{Fake, root, show, site};
use autofs_cr::engine::maps::Map;
use autofs_cr::image::checkpoint::Service;
use std::sync::Arc;

fn lookup(map: &Map, key: &str) -> Option<String> {
    let found = map.lookup_as(key.as_bytes(), &root(), &Fake, &mut Vec::new()).unwrap();
    found.map(|resolved| show(&resolved))
}

#[test]
fn entries_take_the_place_of_a_map_that_is_gone() {
    let entries = [("a", "-rw s:/a"), ("*", "s:/any/&"), ("a", "s:/second")];
    let service = Service::MasterEntry {
        mount_point: "/m".into(),
        map: b"/no/such/map".to_vec(),
        options: b"--timeout=5,hard,-DX=y".to_vec(),
        entries: entries
            .iter()
            .map(|(key, entry)| (key.as_bytes().to_vec(), entry.as_bytes().to_vec()))
            .collect(),
    };
    let map = Map::of_service(&service, Arc::new(site())).unwrap();
    assert_eq!(lookup(&map, "a").unwrap(), "-t nfs -o hard,rw s:/a");
    assert_eq!(lookup(&map, "b").unwrap(), "-t nfs -o hard s:/any/b");
    assert_eq!(map.keys().unwrap().unwrap(), [b"a"]);
    assert_eq!(map.entry.options.timeout.unwrap().as_secs(), 5);
}

#[test]
fn the_map_itself_comes_first() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "/d s:/now\n").unwrap();
    let service = Service::MasterEntry {
        mount_point: "/-".into(),
        map: file.path().to_str().unwrap().into(),
        options: Vec::new(),
        entries: vec![(b"/d".to_vec(), b"s:/then".to_vec())],
    };
    let map = Map::of_service(&service, Arc::new(site())).unwrap();
    assert_eq!(lookup(&map, "/d").unwrap(), "-t nfs s:/now");
}

#[test]
fn a_map_that_is_gone_without_entries_is_an_error() {
    let service = Service::MasterEntry {
        mount_point: "/m".into(),
        map: b"/no/such/map".to_vec(),
        options: Vec::new(),
        entries: Vec::new(),
    };
    let error = Map::of_service(&service, Arc::new(site())).unwrap_err().to_string();
    assert!(error.starts_with("map /no/such/map: No such file"), "{error}");
}

#[test]
fn a_unit_is_a_direct_map_with_one_key() {
    let service = Service::Unit {
        unit: "mnt-data.automount".into(),
        mount_point: "/mnt/data".into(),
        what: b"/dev/sdb1".to_vec(),
        fstype: "ext4".into(),
        options: b"ro,nofail,x-systemd.automount".to_vec(),
        timeout: 30,
    };
    let map = Map::of_service(&service, Arc::new(site())).unwrap();
    assert_eq!(map.entry.mount_point, None);
    assert_eq!(map.entry.options.timeout.unwrap().as_secs(), 30);
    assert_eq!(map.keys().unwrap().unwrap(), [b"/mnt/data"]);
    assert_eq!(lookup(&map, "/mnt/data").unwrap(), "-t ext4 -o ro /dev/sdb1");
    assert_eq!(lookup(&map, "/mnt"), None);
}
