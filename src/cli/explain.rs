//! `autofs-cr explain`.

use super::ExitCode;
use super::output::Output;
use super::progress::Progress;
use super::table::{Column, Table};
use anyhow::{Context, Result};
use autofs_cr::discover::escaped::escape;
use autofs_cr::engine::config::Given;
use autofs_cr::engine::explain::{Lookup, Step, explain};
use autofs_cr::engine::maps::Credentials;
use autofs_cr::engine::maps::master::MapName;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const HELP: &str = "\
Examples:
  autofs-cr explain /home/anna
  autofs-cr explain --master ./auto.master --as 1000:1000 --json /home/anna

JSON:
  {\"mountpoint\":...,\"fstype\":...,\"options\":...,\"source\":...}
  a line for each mount, in the order of mounting; \"replicas\" in addition, where
  several servers have the file system. Instead of all: {\"error\":...}

Exit codes:
  0  the lookup would mount this (nothing, where only offsets below PATH can be)
  1  the lookup would fail, or the maps cannot be read; the message says why
  2  wrong usage";

/// Tell what a lookup of a path would mount; mounts nothing
///
/// The maps are asked by the engine's own code: program maps run, names are looked up. Servers are not probed.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct Explain {
    /// What a program would look up
    path: PathBuf,

    /// The master map: a file, or a name in /etc [default: as configured, else auto.master]
    #[arg(long, value_name = "FILE")]
    master: Option<String>,

    /// The configuration file [default: /etc/autofs.conf]
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,

    /// Who looks it up [default: you]
    #[arg(long = "as", value_name = "UID:GID", value_parser = credentials)]
    who: Option<Credentials>,

    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        let progress = Progress::begin("asking the maps");
        let lookup = self.lookup();
        drop(progress);
        match lookup {
            Ok(lookup) if self.json => {
                for step in &lookup.steps {
                    output.print(&(serde_json::to_string(&Line::from(step))? + "\n"))?;
                }
            }
            Ok(lookup) => output.print(&table(&lookup).render(output))?,
            Err(error) if self.json => {
                output.print(&format!("{}\n", json!({ "error": format!("{error:#}") })))?;
                return Ok(ExitCode::FAILURE);
            }
            Err(error) => return Err(error),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn lookup(&self) -> Result<Lookup> {
        // A file of the current directory goes before one in /etc.
        let master = match self.master.as_deref() {
            Some(name) if Path::new(name).is_file() => Some(MapName::file(std::path::absolute(name)?)),
            other => other.map(master_map).transpose()?,
        };
        let given = Given { master, conf: self.conf.clone(), ..Given::default() };
        let own = || Credentials {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        Ok(explain(&given, &self.path, self.who.unwrap_or_else(own))?)
    }
}

/// A master map as given on a command line: a path, `TYPE:NAME`, or a name in /etc.
pub fn master_map(name: &str) -> Result<MapName> {
    let path = Path::new(name);
    let is_path = name.contains('/') && !name.contains(':');
    if is_path && !path.is_absolute() {
        let path = std::path::absolute(path).with_context(|| format!("no path {name}"))?;
        return Ok(MapName::file(path));
    }
    Ok(MapName::parse(name.as_bytes())?)
}

fn credentials(text: &str) -> Result<Credentials, String> {
    let ids = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    let (uid, gid) = ids.ok_or("two numbers are needed, UID:GID")?;
    Ok(Credentials { uid, gid })
}

/// A line of JSON. Bytes that are no UTF-8 are replaced.
#[derive(Serialize)]
struct Line<'a> {
    mountpoint: Cow<'a, str>,
    fstype: &'a str,
    options: Cow<'a, str>,
    source: Cow<'a, str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    replicas: Vec<Cow<'a, str>>,
}

impl<'a> From<&'a Step> for Line<'a> {
    fn from(step: &'a Step) -> Self {
        Self {
            mountpoint: step.mount_point.to_string_lossy(),
            fstype: &step.fstype,
            options: step.options.to_string_lossy(),
            source: step.source.to_string_lossy(),
            replicas: step.replicas.iter().map(|source| source.to_string_lossy()).collect(),
        }
    }
}

fn table(lookup: &Lookup) -> Table {
    let columns =
        [Column::new("MOUNT POINT"), Column::new("TYPE"), Column::new("SOURCE"), Column::new("OPTIONS")];
    let mut table = Table::new(&columns);
    let shown = |text: &OsStr| escape(text.as_bytes());
    for step in &lookup.steps {
        table.row(vec![
            shown(step.mount_point.as_os_str()).into(),
            step.fstype.as_str().into(),
            shown(&step.source).into(),
            shown(&step.options).into(),
        ]);
        if !step.replicas.is_empty() {
            let all: Vec<String> = step.replicas.iter().map(|source| shown(source)).collect();
            table.note(format!("the best of {}", all.join(", ")));
        }
    }
    for path in &lookup.later {
        table.note(format!("when it is looked up: {}", shown(path.as_os_str())));
    }
    table
}
