//! Variables of map entries: built in, of the requester, and defined with `-D`.

use super::Credentials;
use super::text::is_blank;
use std::borrow::Cow;
use std::sync::OnceLock;

/// What the machine contributes. Probed once; plain data, so that tests make their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// uname: `Linux`.
    pub sysname: String,
    /// uname: `client.example.org`.
    pub nodename: String,
    /// uname: `6.12.0`.
    pub release: String,
    /// uname: build number and date.
    pub version: String,
    /// uname: `x86_64`.
    pub machine: String,
    /// Overrides the domain part of the node name (`local_domain` of the amd section).
    pub local_domain: Option<String>,
    /// Values that `autofs.conf` gives to amd's names: `arch`, `os`, `vendor`, `cluster`, `autodir` ...
    pub configured: Vec<(String, String)>,
}

impl Environment {
    /// Of this machine.
    pub fn probe() -> Self {
        let uname = rustix::system::uname();
        let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
        Self {
            sysname: text(uname.sysname()),
            nodename: text(uname.nodename()),
            release: text(uname.release()),
            version: text(uname.version()),
            machine: text(uname.machine()),
            ..Self::default()
        }
    }

    /// The host name without its domain.
    pub fn short_host(&self) -> &str {
        self.nodename.split_once('.').map_or(&self.nodename, |(host, _)| host)
    }

    /// The domain of the host; empty when it has none.
    pub fn domain(&self) -> &str {
        let own = || self.nodename.split_once('.').map_or("", |(_, domain)| domain);
        self.local_domain.as_deref().unwrap_or_else(own)
    }

    fn full_host(&self) -> String {
        match self.domain() {
            "" => self.nodename.clone(),
            domain => format!("{}.{domain}", self.short_host()),
        }
    }

    fn configured<'a>(&'a self, name: &str, default: &'a str) -> Cow<'a, str> {
        let value = self.configured.iter().find(|(known, _)| known == name);
        value.map_or(default, |(_, value)| value).into()
    }
}

/// Name, group and home directory of a requester.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Login name; empty when the password database does not know the id. So are the others.
    pub name: String,
    /// Name of the group.
    pub group: String,
    /// Home directory.
    pub home: Vec<u8>,
}

impl User {
    /// Ask the name service.
    pub fn lookup(of: Credentials) -> Self {
        use nix::unistd::{Gid, Group, Uid};
        use std::os::unix::ffi::OsStringExt;
        let user = nix::unistd::User::from_uid(Uid::from_raw(of.uid)).ok().flatten();
        let group = Group::from_gid(Gid::from_raw(of.gid)).ok().flatten();
        let (name, home) = user.map(|u| (u.name, u.dir.into_os_string().into_vec())).unwrap_or_default();
        Self { name, group: group.map(|g| g.name).unwrap_or_default(), home }
    }
}

/// Who asks. Its names are looked up when an entry uses them, and only then.
#[derive(Clone, Debug)]
pub struct Requester {
    /// Its ids.
    pub credentials: Credentials,
    user: OnceLock<User>,
}

impl Requester {
    /// By its ids.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, user: OnceLock::new() }
    }

    /// With names that are known already.
    pub fn known(credentials: Credentials, user: User) -> Self {
        Self { credentials, user: OnceLock::from(user) }
    }

    /// Its names.
    pub fn user(&self) -> &User {
        self.user.get_or_init(|| User::lookup(self.credentials))
    }
}

/// A `-D` option: name and value.
pub type Definition = (String, Vec<u8>);

/// The text of a `-D` option after the `-D`.
pub fn definition(text: &[u8]) -> Option<Definition> {
    let equals = text.iter().position(|b| *b == b'=')?;
    let name = std::str::from_utf8(&text[..equals]).ok()?;
    (!name.is_empty()).then(|| (name.to_owned(), text[equals + 1..].to_vec()))
}

/// A `-D` option as in a master map; [`definition`] reads what follows the `-D`, without the quotes.
pub fn define((name, value): &Definition) -> Vec<u8> {
    let quote: &[u8] = if value.iter().any(|b| *b == b',' || is_blank(*b)) { b"\"" } else { b"" };
    [b"-D", name.as_bytes(), b"=", quote, value, quote].concat()
}

/// Every variable an entry can use.
#[derive(Clone, Copy, Debug)]
pub struct Variables<'a> {
    /// The machine.
    pub environment: &'a Environment,
    /// `-D` options; later ones win over earlier ones, all win over the built-in variables.
    pub definitions: &'a [Definition],
    /// Who asks.
    pub requester: &'a Requester,
}

type Builtin = for<'a> fn(&'a Environment, &'a Requester) -> Cow<'a, [u8]>;

fn bytes(text: &str) -> Cow<'_, [u8]> {
    Cow::Borrowed(text.as_bytes())
}

fn owned(text: impl ToString) -> Cow<'static, [u8]> {
    Cow::Owned(text.to_string().into_bytes())
}

fn amd<'a>(environment: &'a Environment, name: &str, default: &'a str) -> Cow<'a, [u8]> {
    match environment.configured(name, default) {
        Cow::Borrowed(text) => bytes(text),
        Cow::Owned(text) => owned(text),
    }
}

/// The variables of autofs(5); those of the requester come first.
const SUN: &[(&str, Builtin)] = &[
    ("USER", |_, r| bytes(&r.user().name)),
    ("UID", |_, r| owned(r.credentials.uid)),
    ("GROUP", |_, r| bytes(&r.user().group)),
    ("GID", |_, r| owned(r.credentials.gid)),
    ("HOME", |_, r| Cow::Borrowed(&r.user().home)),
    ("SHOST", |e, _| bytes(e.short_host())),
    ("ARCH", |e, _| bytes(&e.machine)),
    ("CPU", |e, _| bytes(cpu(&e.machine))),
    ("HOST", |e, _| bytes(&e.nodename)),
    ("OSNAME", |e, _| bytes(&e.sysname)),
    ("OSREL", |e, _| bytes(&e.release)),
    ("OSVERS", |e, _| bytes(&e.version)),
];

/// How many of [`SUN`] say who asks; program maps see those with the prefix `AUTOFS_`.
const OF_REQUESTER: usize = 6;

/// The variables of amd, which sun maps can use as well.
const AMD: &[(&str, Builtin)] = &[
    ("arch", |e, _| amd(e, "arch", &e.machine)),
    ("karch", |e, _| amd(e, "karch", &e.machine)),
    ("os", |e, _| amd(e, "os", &e.sysname)),
    ("osver", |e, _| amd(e, "osver", &e.release)),
    ("full_os", |e, _| amd(e, "full_os", "")),
    ("vendor", |e, _| amd(e, "vendor", "unknown")),
    ("cluster", |e, _| amd(e, "cluster", e.domain())),
    ("autodir", |e, _| amd(e, "autodir", "/a")),
    ("byte", |_, _| bytes(if cfg!(target_endian = "little") { "little" } else { "big" })),
    ("host", |e, _| bytes(e.short_host())),
    ("hostd", |e, _| owned(e.full_host())),
    ("xhost", |e, _| bytes(e.short_host())),
    ("domain", |e, _| bytes(e.domain())),
    ("uid", |_, r| owned(r.credentials.uid)),
    ("gid", |_, r| owned(r.credentials.gid)),
    ("dollar", |_, _| bytes("$")),
    ("true", |_, _| bytes("1")),
    ("false", |_, _| bytes("0")),
];

/// All 32-bit PCs are one processor type.
fn cpu(machine: &str) -> &str {
    match machine.as_bytes() {
        [b'i', b'3'..=b'6', b'8', b'6'] => "i386",
        _ => machine,
    }
}

impl<'a> Variables<'a> {
    /// The value of a variable; upper and lower case differ.
    pub fn get(&self, name: &[u8]) -> Option<Cow<'a, [u8]>> {
        let defined = self.definitions.iter().rev().find(|(known, _)| known.as_bytes() == name);
        if let Some((_, value)) = defined {
            return Some(Cow::Borrowed(value));
        }
        let builtin = SUN.iter().chain(AMD).find(|(known, _)| known.as_bytes() == name);
        builtin.map(|(_, value)| value(self.environment, self.requester))
    }

    /// The environment of a program map. What says who asks gets the prefix `AUTOFS_`, because interpreters
    /// would load code from the requester's `HOME`; `standard_names` leaves the prefix away.
    pub fn program_environment(&self, standard_names: bool) -> Vec<(String, Vec<u8>)> {
        let builtin = SUN.iter().enumerate().map(|(i, (name, value))| {
            let prefix = if i < OF_REQUESTER && !standard_names { "AUTOFS_" } else { "" };
            (format!("{prefix}{name}"), value(self.environment, self.requester).into_owned())
        });
        builtin.chain(self.definitions.iter().cloned()).collect()
    }
}
