//! A systemd mount unit, or a line of `/etc/fstab`: one file system, nothing to expand.

use super::options::{join, split_bytes};
use super::{MountSpec, Replica, Resolved, What};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Options that speak to systemd or mount(8), not to a file system.
const FOR_OTHERS: &[&[u8]] = &[
    b"defaults",
    b"auto",
    b"noauto",
    b"nofail",
    b"_netdev",
    b"user",
    b"nouser",
    b"users",
    b"owner",
    b"group",
];

/// What a unit mounts: its What=, Type= (empty: by content) and Options=.
pub fn resolve(what: &[u8], fstype: &str, options: &[u8]) -> Resolved {
    let all: Vec<&[u8]> = split_bytes(options).collect();
    // mount(8) makes a bind mount when an option says so, whatever the type is.
    let bind = all.iter().any(|option| matches!(*option, b"bind" | b"rbind"));
    let for_others = |option: &[u8]| {
        FOR_OTHERS.contains(&option)
            || option == b"bind"
            || [&b"x-"[..], b"X-", b"comment="].iter().any(|p| option.starts_with(p))
    };
    let fstype = match fstype {
        _ if bind => "bind",
        "" => "auto",
        fstype => fstype,
    };
    let source = OsString::from_vec(what.to_vec());
    let what = What::Mount {
        fstype: fstype.to_owned(),
        options: join(all.into_iter().filter(|option| !for_others(option))),
        sources: vec![replica(fstype, source)],
        use_weight_only: false,
    };
    Resolved { mounts: vec![MountSpec { offset: PathBuf::new(), what }], ..Resolved::default() }
}

fn replica(fstype: &str, source: OsString) -> Replica {
    let host = match (fstype, source.to_str().and_then(|text| text.split_once(":/"))) {
        ("nfs" | "nfs4", Some((host, _))) => Some(host.to_owned()),
        _ => None,
    };
    Replica { host, ..Replica::plain(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(what: &str, fstype: &str, options: &str) -> String {
        let resolved = resolve(what.as_bytes(), fstype, options.as_bytes());
        let What::Mount { fstype, options, sources, .. } = &resolved.mounts[0].what else { unreachable!() };
        let host = sources[0].host.as_deref().unwrap_or("-");
        format!("{fstype} {} {} {host}", options.to_str().unwrap(), sources[0].source.to_str().unwrap())
    }

    #[test]
    fn options_for_others_are_left_out() {
        let options = "defaults,x-systemd.automount,x-systemd.idle-timeout=5,nofail,_netdev,ro";
        assert_eq!(show("/dev/sdb1", "ext4", options), "ext4 ro /dev/sdb1 -");
        assert_eq!(show("srv:/x", "nfs4", "soft"), "nfs4 soft srv:/x srv");
    }

    #[test]
    fn bind_is_an_option_there() {
        assert_eq!(show("/srv", "none", "bind,ro"), "bind ro /srv -");
        assert_eq!(show("/srv", "", "rbind"), "bind rbind /srv -");
        assert_eq!(show("UUID=1", "", ""), "auto  UUID=1 -");
    }
}
