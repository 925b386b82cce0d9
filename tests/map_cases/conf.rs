//! `autofs.conf`.

use autofs_cr::engine::maps::conf::{Conf, Logging};
use std::time::Duration;

fn read(text: &str) -> (Conf, Vec<String>) {
    let (mut conf, mut warnings) = (Conf::default(), Vec::new());
    conf.apply(text.as_bytes(), &mut warnings);
    (conf, warnings.iter().map(|warning| format!("{}: {}", warning.at, warning.message)).collect())
}

#[test]
fn defaults_of_the_program() {
    let conf = Conf::default();
    assert_eq!(
        (conf.timeout.as_secs(), conf.negative_timeout.as_secs(), conf.positive_timeout.as_secs()),
        (600, 60, 120)
    );
    assert_eq!(
        (conf.master_map_name.as_str(), conf.master_wait, conf.mount_nfs_default_protocol),
        ("auto.master", 10, 3)
    );
    assert_eq!((conf.mount_wait, conf.umount_wait), (None, Some(Duration::from_secs(12))));
    assert!(conf.browse_mode && conf.append_options);
}

#[test]
fn every_setting() {
    let (conf, warnings) = read(
        "master_map_name = auto.other\n[ autofs ]\n# a comment\ntimeout = 300\n  browse_mode = no\nnegative_timeout=5\n\
         positive_timeout = 6\nmaster_wait = 7\nmount_verbose = yes\nmount_wait = 8\numount_wait = -1\nprogram_wait = 9\n\
         mount_nfs_default_protocol = 4\nappend_options = no\nlogging = debug\nforce_standard_program_map_env = yes\n\
         map_hash_table_size = 2048\nopen_file_limit = 1\nuse_hostname_for_mounts = yes\ndisable_not_found_message = yes\n\
         use_ignore_mount_option = yes\nsss_master_map_wait = 3\nuse_mount_request_log_id = yes\nldap_timeout = -1\n\
         ldap_network_timeout = 4\nldap_uri = ldap://a ldap://b\nldap_uri = ldaps://c\nsearch_base = dc=x\nsearch_base = dc=y\n\
         map_object_class = a\nentry_object_class = b\nmap_attribute = c\nentry_attribute = d\nvalue_attribute = e\n\
         auth_conf_file = /etc/auth\n",
    );
    assert_eq!(warnings, [] as [&str; 0]);
    let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs());
    assert_eq!(conf.master_map_name, "auto.other");
    assert_eq!(
        (conf.timeout.as_secs(), conf.negative_timeout.as_secs(), conf.positive_timeout.as_secs()),
        (300, 5, 6)
    );
    assert_eq!((conf.master_wait, seconds(conf.mount_wait), seconds(conf.umount_wait)), (7, Some(8), None));
    assert_eq!(
        (conf.program_wait.as_secs(), conf.mount_nfs_default_protocol, conf.logging),
        (9, 4, Logging::Debug)
    );
    assert!(
        !conf.browse_mode
            && !conf.append_options
            && conf.mount_verbose
            && conf.force_standard_program_map_env
    );
    assert!(conf.use_hostname_for_mounts && conf.disable_not_found_message && conf.use_ignore_mount_option);
    assert_eq!((seconds(conf.sss_master_map_wait), conf.use_mount_request_log_id), (Some(3), true));
    assert_eq!((seconds(conf.ldap.timeout), seconds(conf.ldap.network_timeout)), (None, Some(4)));
    assert_eq!(conf.ldap.uris, ["ldap://a", "ldap://b", "ldaps://c"]);
    assert_eq!(conf.ldap.search_bases, ["dc=x", "dc=y"]);
    assert_eq!(conf.ldap.schema.unwrap().entry_attribute, "d");
    assert_eq!(conf.ldap.auth_conf_file.unwrap().to_str(), Some("/etc/auth"));
}

#[test]
fn what_is_wrong_changes_nothing() {
    let (conf, warnings) = read(
        "[ autofs ]\ntimeout = soon\nbrowse_mode = maybe\nnothing\nnosuch = 1\n[ amd\nmap_attribute = x\n",
    );
    assert_eq!((conf.timeout.as_secs(), conf.browse_mode), (600, true));
    assert_eq!(warnings.len(), 6, "{warnings:?}");
    assert_eq!(warnings[0], "2:1: timeout needs a number of seconds, not soon");
    assert_eq!(warnings[3], "5:1: unknown setting nosuch");
}

#[test]
fn old_names_in_upper_case() {
    let (conf, warnings) = read("TIMEOUT=\"30\"\nDEFAULT_BROWSE_MODE=\"no\"\n");
    assert_eq!((conf.timeout.as_secs(), conf.browse_mode, warnings.len()), (30, false, 0));
}

#[test]
fn amd_sections_fall_back() {
    let (conf, _) = read("[ amd ]\nmap_type = nis\nvendor = x\nvendor = y\n[ /a ]\nmap_type = file\n");
    assert_eq!(conf.amd_value("/a", "map_type"), Some("file"));
    assert_eq!(conf.amd_value("/b", "map_type"), Some("nis"));
    assert_eq!(conf.amd_value("/a", "vendor"), Some("y"));
    assert!(conf.has_amd_section("/a") && !conf.has_amd_section("/b"));
}

/// `/etc/default/autofs` of old versions: a shell script, with variables for others in it.
#[test]
fn variables_of_old_versions() {
    let mut conf = Conf::default();
    conf.apply_environment(
        b"# TIMEOUT=1\nTIMEOUT=300\nDEFAULT_BROWSE_MODE=\"no\"\nexport LDAP_URI='ldap://a ldap://b'\nOPTIONS=\"-v\"\n\
          USE_MISC_DEVICE=\"yes\"\nMASTER_MAP_NAME=\nMOUNT_WAIT=soon\n",
    );
    assert_eq!((conf.timeout.as_secs(), conf.browse_mode), (300, false));
    assert_eq!(conf.ldap.uris, ["ldap://a", "ldap://b"]);
    assert_eq!((conf.master_map_name.as_str(), conf.mount_wait), ("auto.master", None));
}
