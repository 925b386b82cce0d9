//! `autofs.conf`.

use super::text::{Position, Warning, show};
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the `autofs` section, and the `amd` sections as they are written. The defaults are those of the program;
/// the file that distributions install sets some of them otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conf {
    /// Name of the master map.
    pub master_map_name: String,
    /// Idle time of mounts; zero: never taken away.
    pub timeout: Duration,
    /// How long to wait for the master map at start, in seconds.
    pub master_wait: u32,
    /// How long a failed lookup is answered from memory.
    pub negative_timeout: Duration,
    /// How long a key that was found is not looked for again.
    pub positive_timeout: Duration,
    /// Give mount helpers `-v` and log who asks.
    pub mount_verbose: bool,
    /// How long a mount helper may take; `None`: for ever.
    pub mount_wait: Option<Duration>,
    /// How long an unmount helper may take.
    pub umount_wait: Option<Duration>,
    /// How long a program map may take. Not known to automount, which waits for ever.
    pub program_wait: Duration,
    /// Make directories for all keys, where the master map does not say otherwise.
    pub browse_mode: bool,
    /// The NFS version that mount.nfs tries first.
    pub mount_nfs_default_protocol: u32,
    /// Add options of entries to those of the master map instead of replacing them.
    pub append_options: bool,
    /// How much to log.
    pub logging: Logging,
    /// Names of variables for program maps without the prefix `AUTOFS_`.
    pub force_standard_program_map_env: bool,
    /// Mount by host name, not by the address that answered.
    pub use_hostname_for_mounts: bool,
    /// Do not log keys that are not found.
    pub disable_not_found_message: bool,
    /// Hide autofs mounts from listings with the mount option `ignore`.
    pub use_ignore_mount_option: bool,
    /// How long to wait for sssd at start; `None`: as the library says.
    pub sss_master_map_wait: Option<Duration>,
    /// Log a number with each request.
    pub use_mount_request_log_id: bool,
    /// LDAP.
    pub ldap: Ldap,
    /// The section `amd`, then those named by mount points: names and values in order.
    pub amd: Vec<(String, Vec<(String, String)>)>,
}

/// How much to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Logging {
    /// Errors and warnings.
    #[default]
    None,
    /// Progress as well.
    Verbose,
    /// Everything.
    Debug,
}

/// Where and how LDAP maps are found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ldap {
    /// How long an answer may take; `None`: for ever.
    pub timeout: Option<Duration>,
    /// How long a connection may take; `None`: 8 s.
    pub network_timeout: Option<Duration>,
    /// Servers in order.
    pub uris: Vec<String>,
    /// Where maps are searched, in order.
    pub search_bases: Vec<String>,
    /// Names of classes and attributes; `None`: those in use are found out.
    pub schema: Option<Schema>,
    /// File with what logging in takes; `None`: `/etc/autofs_ldap_auth.conf`.
    pub auth_conf_file: Option<PathBuf>,
}

/// How LDAP maps are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schema {
    /// Class of maps.
    pub map_class: String,
    /// Class of entries.
    pub entry_class: String,
    /// Attribute with a map's name.
    pub map_attribute: String,
    /// Attribute with an entry's key.
    pub entry_attribute: String,
    /// Attribute with an entry's text.
    pub value_attribute: String,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            master_map_name: "auto.master".into(),
            timeout: Duration::from_secs(600),
            master_wait: 10,
            negative_timeout: Duration::from_secs(60),
            positive_timeout: Duration::from_secs(120),
            mount_verbose: false,
            mount_wait: None,
            umount_wait: Some(Duration::from_secs(12)),
            program_wait: Duration::from_secs(60),
            browse_mode: true,
            mount_nfs_default_protocol: 3,
            append_options: true,
            logging: Logging::None,
            force_standard_program_map_env: false,
            use_hostname_for_mounts: false,
            disable_not_found_message: false,
            use_ignore_mount_option: false,
            sss_master_map_wait: None,
            use_mount_request_log_id: false,
            ldap: Ldap::default(),
            amd: Vec::new(),
        }
    }
}

/// Settings that have no meaning here: automount's hash table, and descriptors that are not kept open.
const WITHOUT_MEANING: &[&str] = &["map_hash_table_size", "open_file_limit"];

/// Settings of amd sections.
const AMD: &[&str] = &[
    "arch",
    "auto_dir",
    "autofs_use_lofs",
    "browsable_dirs",
    "cluster",
    "dismount_interval",
    "domain_strip",
    "full_os",
    "hesiod_base",
    "karch",
    "ldap_base",
    "ldap_hostports",
    "linux_ufs_mount_type",
    "local_domain",
    "log_options",
    "map_defaults",
    "map_name",
    "map_options",
    "map_type",
    "nis_domain",
    "normalize_hostnames",
    "normalize_slashes",
    "os",
    "osver",
    "search_path",
    "selectors_in_defaults",
    "selectors_on_default",
    "vendor",
];

/// Settings of amd itself that no automounter of Linux has.
const AMD_WITHOUT_MEANING: &[&str] = &["exec_map_timeout", "fully_qualified_hosts", "tag", "unmount_on_exit"];

impl Conf {
    /// Read a file over the settings there are. What is wrong in it becomes a warning and changes nothing.
    pub fn apply(&mut self, bytes: &[u8], warnings: &mut Vec<Warning>) {
        let mut section = "autofs".to_owned();
        let mut schema = Vec::new();
        for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
            let blanks = line.iter().take_while(|b| b.is_ascii_whitespace()).count();
            let at = Position { line: number as u32 + 1, column: blanks as u32 + 1 };
            let text = show(line.trim_ascii()).into_owned();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if let Some(name) = text.strip_prefix('[') {
                match name.split_once(']') {
                    Some((name, _)) => section = name.trim().to_owned(),
                    None => warnings.push(Warning::error(at, "a section name ends with ]")),
                }
                continue;
            }
            let Some((name, value)) = text.split_once('=') else {
                warnings.push(Warning::error(at, "a setting is NAME = VALUE"));
                continue;
            };
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if section != "autofs" {
                let lower = name.to_lowercase();
                if AMD_WITHOUT_MEANING.contains(&lower.as_str()) {
                    warnings.push(Warning::new(at, format!("{name} means nothing here, nor to automount")));
                } else if !AMD.contains(&lower.as_str()) {
                    warnings.push(Warning::error(at, format!("unknown setting {name} of an amd section")));
                }
                self.amd_section(&section).push((lower, value.to_owned()));
                continue;
            }
            match self.set(&name.to_lowercase(), value, &mut schema) {
                Ok(()) => {}
                Err(Wrong::Name) => warnings.push(Warning::error(at, format!("unknown setting {name}"))),
                Err(Wrong::Value(needed)) => {
                    warnings.push(Warning::error(at, format!("{name} needs {needed}, not {value}")));
                }
            }
        }
        match schema.len() {
            0 => {}
            5 => self.ldap.schema = Some(Schema::of(&schema)),
            _ => warnings.push(Warning::error(
                Position::START,
                "an LDAP schema takes all of map_object_class, entry_object_class, map_attribute, entry_attribute and \
                 value_attribute: those here do not count",
            )),
        }
    }

    /// Read shell variables, as `/etc/default/autofs` has them, over the settings there are. Variables that are no settings
    /// are for others.
    pub fn apply_environment(&mut self, bytes: &[u8]) {
        for line in bytes.split(|b| *b == b'\n') {
            let line = show(line.trim_ascii()).into_owned();
            let line = line.strip_prefix("export ").unwrap_or(&line);
            if let Some((name, value)) = line.split_once('=') {
                let value = value.trim_matches(['"', '\'']);
                if !value.is_empty() {
                    let _ = self.set(&name.to_lowercase(), value, &mut Vec::new());
                }
            }
        }
    }

    fn amd_section(&mut self, name: &str) -> &mut Vec<(String, String)> {
        let place = self.amd.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.amd.push((name.to_owned(), Vec::new()));
            self.amd.len() - 1
        });
        &mut self.amd[place].1
    }

    /// Is there a section for an amd mount point?
    pub fn has_amd_section(&self, mount_point: &str) -> bool {
        self.amd.iter().any(|(known, _)| known == mount_point)
    }

    /// A value of an amd mount point, else of the section `amd`; the last of several counts.
    pub fn amd_value(&self, mount_point: &str, name: &str) -> Option<&str> {
        [mount_point, "amd"].iter().find_map(|section| {
            let values = &self.amd.iter().find(|(known, _)| known == section)?.1;
            values.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
        })
    }

    fn set(&mut self, name: &str, value: &str, schema: &mut Vec<(String, String)>) -> Result<(), Wrong> {
        let name = name.strip_prefix("default_").unwrap_or(name);
        match name {
            "master_map_name" => self.master_map_name = value.into(),
            "timeout" => self.timeout = seconds(value)?,
            "master_wait" => self.master_wait = number(value)?,
            "negative_timeout" => self.negative_timeout = seconds(value)?,
            "positive_timeout" => self.positive_timeout = seconds(value)?,
            "mount_verbose" => self.mount_verbose = flag(value)?,
            "mount_wait" => self.mount_wait = limit(value)?,
            "umount_wait" => self.umount_wait = limit(value)?,
            "program_wait" => self.program_wait = seconds(value)?,
            "browse_mode" => self.browse_mode = flag(value)?,
            "mount_nfs_default_protocol" => self.mount_nfs_default_protocol = number(value)?,
            "append_options" => self.append_options = flag(value)?,
            "logging" => self.logging = logging(value)?,
            "force_standard_program_map_env" => self.force_standard_program_map_env = flag(value)?,
            "use_hostname_for_mounts" => self.use_hostname_for_mounts = flag(value)?,
            "disable_not_found_message" => self.disable_not_found_message = flag(value)?,
            "use_ignore_mount_option" => self.use_ignore_mount_option = flag(value)?,
            "sss_master_map_wait" => self.sss_master_map_wait = limit(value)?,
            "use_mount_request_log_id" => self.use_mount_request_log_id = flag(value)?,
            "ldap_timeout" => self.ldap.timeout = limit(value)?,
            "ldap_network_timeout" => self.ldap.network_timeout = limit(value)?,
            "ldap_uri" => self.ldap.uris.extend(value.split_ascii_whitespace().map(str::to_owned)),
            "search_base" => self.ldap.search_bases.push(value.into()),
            "auth_conf_file" => self.ldap.auth_conf_file = Some(value.into()),
            "map_object_class" | "entry_object_class" | "map_attribute" | "entry_attribute"
            | "value_attribute" => {
                schema.retain(|(known, _)| known != name);
                schema.push((name.into(), value.into()));
            }
            _ if WITHOUT_MEANING.contains(&name) => {}
            _ => return Err(Wrong::Name),
        }
        Ok(())
    }
}

impl Schema {
    fn of(values: &[(String, String)]) -> Self {
        let value =
            |name| values.iter().find(|(known, _)| known == name).map(|(_, v)| v.clone()).unwrap_or_default();
        Self {
            map_class: value("map_object_class"),
            entry_class: value("entry_object_class"),
            map_attribute: value("map_attribute"),
            entry_attribute: value("entry_attribute"),
            value_attribute: value("value_attribute"),
        }
    }
}

enum Wrong {
    Name,
    Value(&'static str),
}

fn number(value: &str) -> Result<u32, Wrong> {
    value.parse().map_err(|_| Wrong::Value("a number"))
}

fn seconds(value: &str) -> Result<Duration, Wrong> {
    value.parse().map(Duration::from_secs).map_err(|_| Wrong::Value("a number of seconds"))
}

/// A time limit; -1 is none.
fn limit(value: &str) -> Result<Option<Duration>, Wrong> {
    match value.parse::<i64>() {
        Ok(value) => Ok(u64::try_from(value).ok().map(Duration::from_secs)),
        Err(_) => Err(Wrong::Value("a number of seconds, or -1")),
    }
}

fn flag(value: &str) -> Result<bool, Wrong> {
    match value.to_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Ok(true),
        "no" | "false" | "off" | "0" => Ok(false),
        _ => Err(Wrong::Value("yes or no")),
    }
}

fn logging(value: &str) -> Result<Logging, Wrong> {
    match value.to_lowercase().as_str() {
        "none" => Ok(Logging::None),
        "verbose" => Ok(Logging::Verbose),
        "debug" => Ok(Logging::Debug),
        _ => Err(Wrong::Value("none, verbose or debug")),
    }
}
