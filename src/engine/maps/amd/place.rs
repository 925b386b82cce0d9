//! What a location mounts, and where.
//!
//! amd mounts most things at a place of their own (option `fs`, below `/a` if it is not given), shared by all keys that
//! name it, and makes the key a link or bind mount of that place.

use super::super::options::{join, merge as append, split_bytes};
use super::super::sun;
use super::super::text::{Position, Warning, show};
use super::super::vars::define;
use super::super::{MountSpec, Replica, Resolved, What};
use super::expand::Values;
use super::{Context, Error, ErrorKind, merge};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Options that spoke to amd itself.
const OF_AMD: &[&[u8]] = &[b"browsable", b"fullybrowsable", b"nounmount", b"unmount"];
const OF_AMD_WITH_VALUE: &[&[u8]] = &[b"utimeout=", b"ping="];

/// Did an option speak to amd itself?
pub(super) fn is_for_amd(option: &[u8]) -> bool {
    OF_AMD.contains(&option) || OF_AMD_WITH_VALUE.iter().any(|name| option.starts_with(name))
}

/// What a location that was chosen stands for.
pub(super) fn resolve(
    at: Position,
    values: &Values<'_>,
    context: &Context<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Resolved, Error> {
    let location = Maker { at, values, context };
    let fstype = show(&values.option("type", at)?).into_owned();
    if fstype == "host" {
        return location.host(warnings);
    }
    let mounts = vec![MountSpec { offset: PathBuf::new(), what: location.what(fstype)? }];
    Ok(Resolved { mounts, strict: false, otherwise: None })
}

/// Can it stand for something? No server is asked.
pub(super) fn check(at: Position, values: &Values<'_>, context: &Context<'_>) -> Result<(), Error> {
    match show(&values.option("type", at)?).into_owned() {
        host if host == "host" => Ok(()),
        fstype => Maker { at, values, context }.what(fstype).map(drop),
    }
}

/// Where a file system goes when the map does not say: `${autodir}/${rhost}${rfs}`.
fn default_place(context: &Context<'_>, last: &'static str) -> (Vec<u8>, &'static str) {
    (context.variables.get(b"autodir").unwrap_or_default().into_owned(), last)
}

struct Maker<'a> {
    at: Position,
    values: &'a Values<'a>,
    context: &'a Context<'a>,
}

impl Maker<'_> {
    fn what(&self, fstype: String) -> Result<What, Error> {
        match fstype.as_str() {
            "" => Err(ErrorKind::NoType.at(self.at)),
            "auto" => self.auto(),
            "link" => self.link(self.target("fs", &fstype)?, self.at),
            "linkx" => {
                let target = self.target("fs", &fstype)?;
                if self.context.machine.exists(&target) {
                    self.link(target, self.at)
                } else {
                    Err(ErrorKind::NoTarget(target.display().to_string()).at(self.at))
                }
            }
            "lofs" => {
                let source = self.target("rfs", &fstype)?;
                if self.values.has("fs") {
                    // The sublink is one of the place.
                    let source = OsString::from_vec(self.values.option("rfs", self.at)?);
                    self.external(self.bind(source)?, &default_place(self.context, "rfs"))
                } else {
                    self.bind(source.into_os_string())
                }
            }
            "nfsl"
                if self.is_local()?
                    && self.context.machine.exists(&self.place(&default_place(self.context, "rfs"))?) =>
            {
                self.link(self.place(&default_place(self.context, "rfs"))?, self.at)
            }
            "nfs" | "nfs4" | "nfsl" => {
                let fstype = if fstype == "nfsl" { "nfs" } else { &fstype };
                self.external(self.nfs(fstype)?, &default_place(self.context, "rfs"))
            }
            "ext2" | "ext3" | "ext4" | "xfs" | "cdfs" | "ufs" => {
                let kernel = match fstype.as_str() {
                    "cdfs" => "iso9660",
                    "ufs" => &self.context.settings.ufs,
                    other => other,
                };
                let dev = self.values.option("dev", self.at)?;
                if dev.is_empty() {
                    return Err(ErrorKind::Missing { fstype, option: "dev" }.at(self.at));
                }
                let mount = self.mount(kernel, Replica::plain(OsString::from_vec(dev)))?;
                self.external(mount, &default_place(self.context, "path"))
            }
            "program" => self.program(),
            _ => Err(ErrorKind::Type(fstype).at(self.at)),
        }
    }

    /// Everything that a server exports, below the key.
    fn host(&self, warnings: &mut Vec<Warning>) -> Result<Resolved, Error> {
        let host = self.rhost()?;
        let options: Vec<Vec<u8>> = split_bytes(self.options()?.as_bytes()).map(<[u8]>::to_vec).collect();
        let Some(entry) = self.context.machine.exports(&host, &options) else {
            return Err(ErrorKind::NoExports(host).at(self.at));
        };
        let defaults = sun::Defaults { options, append: true, ..self.context.defaults.clone() };
        let context = sun::Context {
            key: host.as_bytes(),
            variables: self.context.variables,
            defaults: &defaults,
            machine: self.context.machine,
        };
        let resolved = sun::resolve(&entry, &context, warnings);
        resolved.map_err(|error| ErrorKind::Exports { host: host.clone(), error: error.kind }.at(self.at))
    }

    fn rhost(&self) -> Result<String, Error> {
        Ok(show(&self.values.option("rhost", self.at)?).into_owned())
    }

    fn is_local(&self) -> Result<bool, Error> {
        let rhost = self.rhost()?;
        let own = |name: &[u8]| self.context.variables.get(name).is_some_and(|own| *own == *rhost.as_bytes());
        Ok(own(b"host") || own(b"hostd") || self.context.machine.is_local(&rhost))
    }

    /// The path of an option that the type needs, with the sublink.
    fn target(&self, option: &'static str, fstype: &str) -> Result<PathBuf, Error> {
        if !self.values.has(option) {
            return Err(ErrorKind::Missing { fstype: fstype.into(), option }.at(self.at));
        }
        let path = PathBuf::from(OsString::from_vec(self.values.option(option, self.at)?));
        self.with_sublink(path)
    }

    fn with_sublink(&self, path: PathBuf) -> Result<PathBuf, Error> {
        let sublink = self.values.option("sublink", self.at)?;
        // An absolute one takes the place of the path.
        Ok(if sublink.is_empty() { path } else { path.join(OsStr::from_bytes(&sublink)) })
    }

    /// The place of a file system.
    fn place(&self, (autodir, last): &(Vec<u8>, &'static str)) -> Result<PathBuf, Error> {
        let path = if self.values.has("fs") {
            self.values.option("fs", self.at)?
        } else {
            let last = match *last {
                "path" => self.context.path.to_vec(),
                option => self.values.option(option, self.at)?,
            };
            [autodir, &b"/"[..], self.rhost()?.as_bytes(), &last].concat()
        };
        let path = PathBuf::from(OsString::from_vec(path));
        let clean = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if path.is_absolute() && clean {
            Ok(path)
        } else {
            Err(ErrorKind::Place(path.display().to_string()).at(self.at))
        }
    }

    /// `opts` with `addopts`; for servers that are not near `remopts` instead of `opts`.
    fn options(&self) -> Result<OsString, Error> {
        let far = self.values.has("remopts") && !self.context.machine.is_near(&self.rhost()?);
        let base = self.values.option(if far { "remopts" } else { "opts" }, self.at)?;
        let base = if base == b"-" { Vec::new() } else { base };
        let own = merge(&base, &self.values.option("addopts", self.at)?);
        let defaults = self.context.defaults;
        let all = append(&defaults.options, &own, defaults.append);
        Ok(join(all.into_iter().filter(|option| !is_for_amd(option))))
    }

    fn mount(&self, fstype: &str, source: Replica) -> Result<What, Error> {
        let options = self.options()?;
        Ok(What::Mount { fstype: fstype.into(), options, sources: vec![source], use_weight_only: false })
    }

    fn nfs(&self, fstype: &str) -> Result<What, Error> {
        let host = self.rhost()?;
        let rfs = self.values.option("rfs", self.at)?;
        let source = OsString::from_vec([host.as_bytes(), b":", &rfs].concat());
        let bind = self.context.defaults.bind && self.context.machine.is_local(&host);
        let local = bind.then(|| PathBuf::from(OsString::from_vec(rfs)));
        self.mount(fstype, Replica { host: Some(host), weight: 0, source, local })
    }

    fn bind(&self, source: OsString) -> Result<What, Error> {
        let source = Replica::plain(source);
        Ok(What::Mount {
            fstype: "bind".into(),
            options: OsString::new(),
            sources: vec![source],
            use_weight_only: false,
        })
    }

    fn link(&self, target: PathBuf, at: Position) -> Result<What, Error> {
        if !target.is_absolute() {
            return Err(ErrorKind::Place(target.display().to_string()).at(at));
        }
        let defaults = self.context.defaults;
        if (self.context.settings.bind && !defaults.symlink) || defaults.direct {
            self.bind(target.into_os_string())
        } else {
            Ok(What::Symlink(target))
        }
    }

    /// Type `program`: commands of the map mount and unmount.
    fn program(&self) -> Result<What, Error> {
        let words = |option| -> Result<Vec<OsString>, Error> {
            let text = self.values.option(option, self.at)?;
            let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            Ok(words.map(|word| OsStr::from_bytes(word).to_owned()).collect())
        };
        let mount = words("mount")?;
        if mount.is_empty() {
            return Err(ErrorKind::Missing { fstype: "program".into(), option: "mount" }.at(self.at));
        }
        let unmount = match words("unmount")? {
            none if none.is_empty() => words("umount")?,
            given => given,
        };
        self.external(What::Command { mount, unmount }, &default_place(self.context, "path"))
    }

    /// A mount at its own place, and the key as a link to it.
    fn external(&self, mount: What, default: &(Vec<u8>, &'static str)) -> Result<What, Error> {
        let place = self.place(default)?;
        let target = self.with_sublink(place.clone())?;
        // `fs:=${path}`: the key itself is the place.
        if place == Path::new(OsStr::from_bytes(self.context.path)) && target == place {
            return Ok(mount);
        }
        let then = Box::new(self.link(target, self.at)?);
        Ok(What::External { place, mount: Box::new(mount), then })
    }

    /// Type `auto`: a map below the key, in amd format again.
    fn auto(&self) -> Result<What, Error> {
        let (values, at, context) = (self.values, self.at, self.context);
        if !values.has("fs") {
            return Err(ErrorKind::Missing { fstype: "auto".into(), option: "fs" }.at(at));
        }
        let maptype = values.option("maptype", at)?;
        let own = || context.map.kind.word().unwrap_or("file").to_owned();
        let maptype = match (show(&maptype), &context.settings.map_type) {
            (given, _) if !given.is_empty() => given.into_owned(),
            (_, Some(configured)) => configured.clone(),
            _ => own(),
        };
        let map = [maptype.as_bytes(), b",amd:", &values.option("fs", at)?].concat();
        let defaults = context.defaults;
        let mut options = defaults.options.clone();
        options.extend(defaults.definitions.iter().map(define));
        if values.has("pref") {
            let pref = values.option("pref", at)?;
            if pref != b"null" {
                options.push([b"--prefix=".as_slice(), &pref].concat());
            }
        }
        let opts = values.option("opts", at)?;
        if split_bytes(&opts).any(|option| matches!(option, b"browsable" | b"fullybrowsable")) {
            options.push(b"browse".to_vec());
        }
        Ok(What::Submount { map: OsString::from_vec(map), options: join(options) })
    }
}
