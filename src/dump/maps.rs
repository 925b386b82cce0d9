//! Map state: which entry of which map serves a mount, and what its keys were mounted from.

mod automount;
mod specifier;
mod units;

use crate::attach::space_of;
use crate::discover::{self, facts::AutofsMount, facts::Master, facts::MountType, proc::TaskDir};
use crate::image::{
    self,
    checkpoint::{ActiveKey, Service},
};
use automount::CommandLine;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// systemd writes this into the source field of its mounts, with its process's number.
const SYSTEMD_SOURCE: &[u8] = b"systemd-";

/// What serves mounts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MapState {
    /// Every service that serves one of the mounts.
    pub services: Vec<Service>,
    /// For each mount, in their order: which one.
    pub served_by: Vec<Option<usize>>,
    /// What could not be found out.
    pub warnings: Vec<String>,
}

/// Where a mount's map is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Provider {
    /// The daemon with this number; when it is gone, the files of the mounts' own namespace.
    Daemon(Option<i32>),
    /// systemd, or its files when it is gone.
    Systemd(Option<i32>),
}

impl Provider {
    fn of(mount: &AutofsMount) -> Option<Self> {
        match &mount.master {
            Master::Automount { process } | Master::AutofsCr { process } => {
                Some(Self::Daemon(Some(process.pid)))
            }
            Master::Systemd { process, .. } => Some(Self::Systemd(Some(process.pid))),
            Master::Unknown { .. } => None,
            Master::Dead | Master::NotVisible => Some(match is_of_systemd(mount) {
                true => Self::Systemd(None),
                false => Self::Daemon(None),
            }),
        }
    }

    fn pid(self) -> Option<i32> {
        match self {
            Self::Daemon(pid) | Self::Systemd(pid) => pid,
        }
    }
}

fn is_of_systemd(mount: &AutofsMount) -> bool {
    let number = mount.source.as_os_str().as_bytes().strip_prefix(SYSTEMD_SOURCE);
    number.is_some_and(|number| number.iter().all(u8::is_ascii_digit))
}

/// Find out what serves these mounts, which `target` sees.
pub fn find(mounts: &[AutofsMount], target: &discover::Target) -> MapState {
    let mut groups: BTreeMap<Provider, Vec<AutofsMount>> = BTreeMap::new();
    for mount in mounts {
        if let Some(provider) = Provider::of(mount) {
            groups.entry(provider).or_default().push(mount.clone());
        }
    }
    let mut state = MapState { served_by: vec![None; mounts.len()], ..MapState::default() };
    for (provider, group) in groups {
        let (services, warnings) = read(provider, &group, target);
        state.warnings.extend(warnings);
        let of_group = |mount: &AutofsMount| Provider::of(mount) == Some(provider);
        state.add(services, mounts, of_group);
    }
    state
}

/// What a provider has for its mounts, read in its own namespace.
fn read(
    provider: Provider,
    mounts: &[AutofsMount],
    target: &discover::Target,
) -> (Vec<Service>, Vec<String>) {
    let where_it_lives = provider.pid().map_or(target.clone(), discover::Target::Process);
    let program = provider.pid().map(Program::of).unwrap_or_default();
    let read = || match provider {
        Provider::Daemon(_) => program.services(mounts),
        Provider::Systemd(_) => {
            let unit = |mount: &AutofsMount| units::service(&unit_of(mount), &mount.path);
            (mounts.iter().filter_map(unit).collect(), Vec::new())
        }
    };
    match space_of(&where_it_lives).and_then(|space| space.run(read)) {
        Ok(found) => found,
        Err(errno) => {
            (Vec::new(), vec![format!("the maps of {} mounts cannot be read: {errno}", mounts.len())])
        }
    }
}

fn unit_of(mount: &AutofsMount) -> String {
    match &mount.master {
        Master::Systemd { unit, .. } => unit.clone(),
        _ => discover::unit::name(&mount.path, "automount"),
    }
}

/// What a daemon serves, as its command line says.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    /// A master map: automount, or `autofs-cr automount` with the same options.
    Master(CommandLine),
    /// `autofs-cr restore -D DIR --serve`: the services of that image.
    Image(PathBuf),
}

impl Default for Program {
    fn default() -> Self {
        Self::Master(CommandLine::default())
    }
}

impl Program {
    fn of(pid: i32) -> Self {
        let Ok(process) = TaskDir::process(pid) else { return Self::default() };
        let text = process.read("cmdline").unwrap_or_default();
        let words: Vec<_> =
            text.strip_suffix(b"\0").unwrap_or(&text).split(|&byte| byte == 0).skip(1).collect();
        match Self::parse(&words) {
            Self::Image(dir) => Self::Image(process.read_link("cwd").unwrap_or_default().join(dir)),
            master => master,
        }
    }

    /// The words after the program's name.
    fn parse(words: &[&[u8]]) -> Self {
        match words {
            [b"automount", options @ ..] => Self::Master(CommandLine::parse(options.iter().copied())),
            [b"restore", options @ ..] => {
                let mut options = options.iter().copied();
                let dir = options.by_ref().find_map(|word| match word {
                    b"-D" | b"--dir" => Some(None),
                    _ => word.strip_prefix(b"--dir=").or_else(|| word.strip_prefix(b"-D")).map(Some),
                });
                let dir = dir.and_then(|attached| attached.or_else(|| options.next()));
                dir.map_or_else(Self::default, |dir| Self::Image(OsStr::from_bytes(dir).into()))
            }
            options => Self::Master(CommandLine::parse(options.iter().copied())),
        }
    }

    fn services(&self, mounts: &[AutofsMount]) -> (Vec<Service>, Vec<String>) {
        match self {
            Self::Master(line) => automount::services(line, mounts),
            Self::Image(dir) => match image::read(dir) {
                Ok(checkpoint) => (checkpoint.services, Vec::new()),
                Err(error) => (Vec::new(), vec![format!("what the engine serves is not known: {error}")]),
            },
        }
    }
}

impl MapState {
    /// Give each mount its service; those that serve none are left out.
    fn add(
        &mut self,
        services: Vec<Service>,
        mounts: &[AutofsMount],
        of_group: impl Fn(&AutofsMount) -> bool,
    ) {
        let parents = autofs_parents(mounts);
        let mut chosen: Vec<Option<usize>> = vec![None; mounts.len()];
        for (index, mount) in mounts.iter().enumerate().filter(|(_, mount)| of_group(mount)) {
            let inherited = parents.get(&mount.mount_id).and_then(|&parent| chosen[parent]);
            chosen[index] = serving(mount, &services).or(inherited);
        }
        let used: BTreeSet<usize> = chosen.iter().flatten().copied().collect();
        let position: HashMap<usize, usize> =
            used.iter().enumerate().map(|(place, &index)| (index, self.services.len() + place)).collect();
        for (index, service) in chosen.iter().enumerate() {
            self.served_by[index] =
                self.served_by[index].or(service.and_then(|service| position.get(&service).copied()));
        }
        let kept = services.into_iter().enumerate().filter(|(index, _)| used.contains(index));
        self.services.extend(kept.map(|(_, service)| service));
    }
}

/// The autofs mount that each one is nearest below, by mount id. Parents come first.
fn autofs_parents(mounts: &[AutofsMount]) -> HashMap<u64, usize> {
    let below = |(index, mount): (usize, &AutofsMount)| -> Vec<_> {
        mount.autofs_children.iter().map(|&child| (child, index)).collect()
    };
    mounts.iter().enumerate().flat_map(below).collect()
}

/// The service of a mount itself; offsets belong to whoever serves the mount above.
fn serving(mount: &AutofsMount, services: &[Service]) -> Option<usize> {
    let path = mount.path.as_os_str().as_bytes();
    let exact = services.iter().position(|service| service.mount_point() == mount.path);
    let is_direct_map = |service: &Service| service.mount_point() == Path::new("/-");
    let has_key = |service: &Service| entry_of(service, path).is_some();
    let same_map = |service: &Service| map_name(service) == Some(mount.source.as_os_str().as_bytes());
    match mount.options.mount_type {
        MountType::Indirect => exact,
        MountType::Offset => None,
        MountType::Direct => {
            let direct = |test: &dyn Fn(&Service) -> bool| {
                services.iter().position(|service| is_direct_map(service) && test(service))
            };
            exact.or_else(|| direct(&has_key)).or_else(|| direct(&same_map))
        }
    }
}

/// The map's name without its type, as automount writes it into the source field.
fn map_name(service: &Service) -> Option<&[u8]> {
    let Service::MasterEntry { map, .. } = service else { return None };
    let colon = map.iter().position(|&byte| byte == b':');
    Some(colon.map_or(map, |colon| &map[colon + 1..]))
}

/// The entry of a key, or of the wildcard.
fn entry_of<'a>(service: &'a Service, key: &[u8]) -> Option<&'a Vec<u8>> {
    let Service::MasterEntry { entries, .. } = service else { return None };
    let find = |wanted: &[u8]| entries.iter().find(|(key, _)| key == wanted);
    find(key).or_else(|| find(b"*")).map(|(_, entry)| entry)
}

/// The keys of a mount that are mounted: on `mounted`, or symlinks that the master made (`links`, below the mount).
pub fn active(
    mount: &AutofsMount,
    mounted: &[&Path],
    links: &[&Path],
    service: Option<&Service>,
) -> Vec<ActiveKey> {
    let keys: BTreeSet<Vec<u8>> = match mount.options.mount_type {
        MountType::Offset => BTreeSet::new(),
        MountType::Direct if mounted.is_empty() => BTreeSet::new(),
        MountType::Direct => BTreeSet::from([mount.path.as_os_str().as_bytes().to_vec()]),
        MountType::Indirect => {
            let below = mounted.iter().filter_map(|path| path.strip_prefix(&mount.path).ok());
            below.chain(links.iter().copied()).filter_map(first_component).collect()
        }
    };
    let entry = |key: &[u8]| service.and_then(|service| entry_of(service, key)).cloned();
    keys.into_iter().map(|key| ActiveKey { entry: entry(&key), key }).collect()
}

fn first_component(path: &Path) -> Option<Vec<u8>> {
    match path.components().next() {
        Some(Component::Normal(name)) => Some(name.as_bytes().to_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::mount;
    use super::*;
    use crate::sys::process::ProcessId;

    fn master(mount_point: &str, map: &str, entries: &[(&str, &str)]) -> Service {
        let bytes = |text: &str| text.as_bytes().to_vec();
        Service::MasterEntry {
            mount_point: mount_point.into(),
            map: bytes(map),
            options: Vec::new(),
            entries: entries.iter().map(|(key, entry)| (bytes(key), bytes(entry))).collect(),
        }
    }

    fn of_type(mount_type: MountType, mut mount: AutofsMount) -> AutofsMount {
        mount.options.mount_type = mount_type;
        mount
    }

    #[test]
    fn every_mount_finds_its_service() {
        let mut home = of_type(MountType::Indirect, mount(2, "/home", 7));
        home.autofs_children = vec![3];
        let offset = of_type(MountType::Offset, mount(3, "/home/key/sub", 7));
        let mut by_source = mount(5, "/elsewhere", 7);
        by_source.source = "/etc/auto.other".into();
        let mounts =
            [home, offset, mount(4, "/data", 7), by_source, of_type(MountType::Indirect, mount(6, "/x", 7))];
        let services = vec![
            master("/unused", "auto.unused", &[]),
            master("/home", "auto.home", &[("*", ":/&")]),
            master("/-", "file:/etc/auto.other", &[]),
            master("/-", "auto.direct", &[("/data", ":/d")]),
        ];
        let mut state = MapState { served_by: vec![None; 5], ..MapState::default() };
        state.add(services.clone(), &mounts, |_| true);
        assert_eq!(state.served_by, [Some(0), Some(0), Some(2), Some(1), None]);
        assert_eq!(state.services, services[1..]);
        // another group's come after them
        state.add(vec![master("/x", "auto.x", &[])], &mounts, |mount| mount.mount_id == 6);
        assert_eq!(state.served_by[4], Some(3));
    }

    #[test]
    fn keys_that_are_mounted() {
        let home = of_type(MountType::Indirect, mount(2, "/home", 7));
        let service = master("/home", "auto.home", &[("a", "A"), ("*", "W")]);
        let mounted = ["/home/a", "/home/b/sub", "/home/b/other"].map(Path::new);
        let found = active(&home, &mounted, &[Path::new("link"), Path::new("b/deep")], Some(&service));
        let shown: Vec<_> = found
            .iter()
            .map(|one| {
                (str::from_utf8(&one.key).unwrap(), str::from_utf8(one.entry.as_ref().unwrap()).unwrap())
            })
            .collect();
        assert_eq!(shown, [("a", "A"), ("b", "W"), ("link", "W")]);

        let direct = mount(3, "/data", 7);
        let found = active(&direct, &[Path::new("/data")], &[], None);
        assert_eq!(found, [ActiveKey { key: b"/data".to_vec(), entry: None }]);
        assert!(active(&direct, &[], &[], None).is_empty());
        assert!(active(&of_type(MountType::Offset, direct), &[Path::new("/data")], &[], None).is_empty());
    }

    #[test]
    fn who_provides_the_maps() {
        let mut one = mount(2, "/a", 7);
        assert_eq!(Provider::of(&one), Some(Provider::Daemon(Some(7))));
        one.master = Master::Dead;
        assert_eq!(Provider::of(&one), Some(Provider::Daemon(None)));
        one.source = "systemd-1".into();
        assert_eq!(Provider::of(&one), Some(Provider::Systemd(None)));
        one.source = "systemd-boot".into();
        assert_eq!(Provider::of(&one), Some(Provider::Daemon(None)));
        one.master = Master::Unknown { process: ProcessId { pid: 7, start_time: 1 }, comm: "x".into() };
        assert_eq!(Provider::of(&one), None);
    }

    #[test]
    fn what_a_daemon_was_started_with() {
        let parse = |line: &str| Program::parse(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        let image = |dir: &str| Program::Image(dir.into());
        for line in ["restore -D ck --serve", "restore --serve --dir=ck", "restore --dir ck", "restore -Dck"]
        {
            assert_eq!(parse(line), image("ck"), "{line}");
        }
        let named =
            |master: &str| Program::Master(CommandLine { master: Some(master.into()), ..Default::default() });
        assert_eq!(parse("automount -f m"), named("m"));
        assert_eq!(parse("-f -t 5 m"), named("m"));
        assert_eq!(parse("restore --serve"), Program::default());
    }
}
