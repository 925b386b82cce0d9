//! The hosts map: what a host exports is the entry of its name.

use super::{Pair, RawEntry, Source, SourceError};
use crate::engine::maps::text::{Text, is_blank};
use crate::engine::maps::vars::Variables;
use crate::engine::rpc::{self, Program, Reader, RpcError, Transport};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where hosts are that have a directory when the map is browsed.
const HOSTS: &str = "/etc/hosts";
/// How long a host may take to say what it exports.
const LIMIT: Duration = Duration::from_secs(20);
/// How long one of its addresses may take.
const ADDRESS_LIMIT: Duration = Duration::from_secs(6);
/// The daemon that answers MOUNT calls.
const MOUNTD: u32 = 100_005;
/// Its procedure that lists the exports.
const EXPORT: u32 = 5;

/// The hosts map.
#[derive(Clone, Debug)]
pub struct HostsSource {
    /// Options that all mounts get.
    pub options: &'static str,
    /// How long an answer may take.
    pub limit: Duration,
}

impl HostsSource {
    /// Of a map with these options of its own. Set-uid programs and devices of servers count only when they are asked for.
    pub fn new(options: &[Vec<u8>]) -> Self {
        let asked = |word: &[u8]| options.iter().any(|option| option == word);
        let options = match (asked(b"suid"), asked(b"dev")) {
            (false, false) => "-nosuid,nodev",
            (false, true) => "-nosuid",
            (true, false) => "-nodev",
            (true, true) => "",
        };
        Self { options, limit: LIMIT }
    }

    /// What a host exports; `None`: nothing, or there is no such host.
    pub fn host(&self, host: &str) -> Result<Option<RawEntry>, SourceError> {
        if !is_host(host) {
            return Ok(None);
        }
        let failed = |error| SourceError::Exports { host: host.into(), error };
        let exports = exports(host, Instant::now() + self.limit).map_err(failed)?;
        Ok(exports.filter(|exports| !exports.is_empty()).map(|exports| self.entry(host, &exports)))
    }

    fn entry(&self, host: &str, exports: &BTreeSet<Vec<u8>>) -> RawEntry {
        // An address with colons would end at the first of them.
        let server = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let mut text = self.options.as_bytes().to_vec();
        for path in exports {
            let path = escaped(path);
            for part in [b" ", path.as_slice(), b" ", server.as_bytes(), b":", &path] {
                text.extend_from_slice(part);
            }
        }
        let text = Text::from(text.trim_ascii_start()).into_owned();
        RawEntry { text, origin: PathBuf::from("-hosts") }
    }
}

/// With a backslash before each byte that has a meaning in an entry.
fn escaped(path: &[u8]) -> Vec<u8> {
    let special = |byte: u8| is_blank(byte) || b"\\\"&$#:,()".contains(&byte);
    path.iter().flat_map(|byte| special(*byte).then_some(b'\\').into_iter().chain([*byte])).collect()
}

impl Source for HostsSource {
    fn lookup(&self, key: &[u8], _: &Variables<'_>) -> Result<Option<RawEntry>, SourceError> {
        std::str::from_utf8(key).map_or(Ok(None), |host| self.host(host))
    }

    fn visit(&self, each: &mut dyn FnMut(&[u8], &Text<'_>, &Path)) -> Result<bool, SourceError> {
        let text = std::fs::read_to_string(HOSTS).map_err(SourceError::read(Path::new(HOSTS)))?;
        for name in names(&text) {
            each(name.as_bytes(), &Text::from(b"".as_slice()), Path::new(HOSTS));
        }
        Ok(true)
    }

    /// The names are keys; what stands for them says only the host itself.
    fn entries(&self) -> Result<Option<Vec<Pair>>, SourceError> {
        Ok(None)
    }

    /// Exports change without a word.
    fn fresh(&self) -> bool {
        false
    }

    fn refresh(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Can it be one? Names that no resolver takes are not asked for.
fn is_host(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:%".contains(c);
    !name.is_empty() && !name.starts_with(['.', '-']) && name.chars().all(fits)
}

/// The first name of each line of a hosts file, once each.
fn names(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter_map(|line| line.split('#').next());
    lines.filter_map(|line| line.split_ascii_whitespace().nth(1)).filter(|name| is_host(name)).collect()
}

/// The directories that a host exports; `None`: there is no such host. Its addresses are tried one after the other.
fn exports(host: &str, deadline: Instant) -> Result<Option<BTreeSet<Vec<u8>>>, RpcError> {
    let Ok(addresses) = (host, 0).to_socket_addrs() else {
        return Ok(None);
    };
    let mut tried = BTreeSet::new();
    let mut last = None;
    for address in addresses.map(|address| address.ip()) {
        if tried.insert(address) && Instant::now() < deadline {
            match exports_at(address, deadline.min(Instant::now() + ADDRESS_LIMIT)) {
                Ok(exports) => return Ok(Some(exports)),
                Err(error) => last = Some(error),
            }
        }
    }
    last.map_or(Ok(None), Err)
}

fn exports_at(address: IpAddr, deadline: Instant) -> Result<BTreeSet<Vec<u8>>, RpcError> {
    let mut last = RpcError::NotRegistered;
    // Version 3 is that of NFS 3; old servers have the others only, which list exports in the same way.
    for (transport, version) in [(Transport::Tcp, 3), (Transport::Udp, 3), (Transport::Tcp, 1)] {
        let program = Program { number: MOUNTD, version };
        let called = rpc::port(address, transport, program, deadline).and_then(|port| {
            rpc::call(SocketAddr::new(address, port), transport, program, EXPORT, &[], deadline)
        });
        match called {
            Ok(result) => return read_exports(&result),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The directories of an answer to EXPORT; to whom they are exported says the server at the mount.
fn read_exports(result: &[u8]) -> Result<BTreeSet<Vec<u8>>, RpcError> {
    let mut reader = Reader::new(result);
    let mut paths = BTreeSet::new();
    while reader.more()? {
        let path = reader.opaque()?;
        while reader.more()? {
            reader.opaque()?;
        }
        let dots = path.split(|b| *b == b'/').any(|part| part == b"." || part == b"..");
        if path.first() == Some(&b'/') && !dots && !path.iter().any(u8::is_ascii_control) {
            paths.insert(path.to_vec());
        } else {
            tracing::debug!("an export that is no path: {}", path.escape_ascii());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::rpc::{put_opaque, put_u32};

    fn answer(exports: &[(&[u8], &[&[u8]])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, groups) in exports {
            put_u32(&mut bytes, 1);
            put_opaque(&mut bytes, path);
            for group in *groups {
                put_u32(&mut bytes, 1);
                put_opaque(&mut bytes, group);
            }
            put_u32(&mut bytes, 0);
        }
        put_u32(&mut bytes, 0);
        bytes
    }

    fn entry(options: &[&str], host: &str, paths: &[&str]) -> String {
        let options: Vec<Vec<u8>> = options.iter().map(|option| option.as_bytes().to_vec()).collect();
        let paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        let entry = HostsSource::new(&options).entry(host, &paths);
        String::from_utf8(entry.text.bytes().to_vec()).unwrap()
    }

    #[test]
    fn exports_become_offsets() {
        assert_eq!(entry(&[], "srv", &["/b", "/a"]), "-nosuid,nodev /a srv:/a /b srv:/b");
        assert_eq!(entry(&["ro", "suid"], "srv", &["/"]), "-nodev / srv:/");
        assert_eq!(entry(&["suid", "dev"], "fd00::1", &["/a b&c"]), "/a\\ b\\&c [fd00::1]:/a\\ b\\&c");
    }

    #[test]
    fn answers_are_read() {
        let all = answer(&[
            (b"/srv/b", &[b"*"]),
            (b"/srv/a", &[]),
            (b"/srv/b", &[b"x", b"@y"]),
            (b"rel", &[]),
            (b"/../x", &[]),
        ]);
        let paths = read_exports(&all).unwrap();
        assert_eq!(paths.into_iter().collect::<Vec<_>>(), [b"/srv/a", b"/srv/b"]);
        assert!(read_exports(&all[..all.len() - 1]).is_err());
    }

    #[test]
    fn hosts_that_are_browsed() {
        let text = "127.0.0.1 localhost loop\n# 10.0.0.9 not\n10.0.0.1\tsrv.example.org srv # a server\n::1 localhost\n10.0.0.2\n";
        assert_eq!(names(text).into_iter().collect::<Vec<_>>(), ["localhost", "srv.example.org"]);
        assert!(!is_host("a/b") && !is_host("-o") && !is_host("") && is_host("fd00::1"));
    }
}
