//! `autofs-cr automount`, and what this program does when it is called `automount`.

mod background;
mod dumpmaps;
mod running;

use super::ExitCode;
use super::explain::master_map;
use super::output::{self, Output};
use anyhow::{Context, Result, bail, ensure};
use autofs_cr::engine::config::{self, Given};
use autofs_cr::engine::control::client::ask;
use autofs_cr::engine::control::server::{Listener, MetricsAt};
use autofs_cr::engine::control::{Reply, Request};
use autofs_cr::engine::maps::conf::{Conf, Logging};
use autofs_cr::engine::maps::vars::{Definition, definition};
use autofs_cr::engine::served::Master;
use autofs_cr::engine::upgrade::{self, Before, Carried};
use autofs_cr::engine::{self, Start, maps, takeover};
use autofs_cr::sys::packet::{PacketPipe, packet_pipe};
use autofs_cr::sys::process::own_group;
use clap::Args;
use sd_notify::NotifyState;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const HELP: &str = "\
Examples:
  autofs-cr automount                  serve /etc/auto.master until TERM
  autofs-cr automount /etc/auto.test   another master map
  autofs-cr automount --replace        while automount(8) runs: take its mounts,
                                       then end it
  autofs-cr automount --dumpmaps       print all maps

Signals:
  TERM, INT  end: idle mounts go, busy ones stay for the next engine
  HUP        read the maps again
  USR1       unmount what is idle

Mounts that exist at its mount points, left by automount(8) or by another engine, are attached where they are, \
with whatever is mounted in them. Where one that lives serves them it begins only with --replace.

The options are those of automount(8). Called by the name automount (a link is enough) it goes to the background \
when all mounts are there, unless --foreground or --systemd-service is given, and only one can run; as \
`autofs-cr automount` it stays in the foreground. Where the service manager asks for it (Type=notify), it is told \
when all mounts are there.";

/// Serve the maps of a master map
#[derive(Args, Debug, Default)]
#[command(after_help = HELP, disable_version_flag = true)]
pub struct Automount {
    /// The master map: a path, TYPE:NAME, or a name in /etc [default: as configured, else auto.master]
    #[arg(value_name = "MASTER_MAP", num_args = 0..=2)]
    names: Vec<String>,

    /// Take the mounts from the automounter that serves them now, and end it; no lookup fails meanwhile
    #[arg(long)]
    replace: bool,

    /// Where `autofs-cr ctl` finds it, instead of /run/autofs-cr/PID.sock
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Tell Prometheus at this address, of this machine only: unix:PATH, 127.0.0.1:PORT or [::1]:PORT
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<MetricsAt>,

    /// What the program before left behind this descriptor.
    #[arg(long, hide = true)]
    carried: Option<i32>,

    /// Stay in the foreground and log to stderr
    #[arg(short, long)]
    foreground: bool,

    /// As --foreground: the service manager does the rest
    #[arg(short = 'S', long)]
    systemd_service: bool,

    /// Write the process id to this file
    #[arg(short, long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// Unmount what was not used for so many seconds; 0: never
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// Answer a lookup that failed from memory for so many seconds
    #[arg(short, long, value_name = "SECONDS")]
    negative_timeout: Option<u64>,

    /// Do not look again for a key that was found for so many seconds
    #[arg(short = 'P', long, value_name = "SECONDS")]
    positive_timeout: Option<u64>,

    /// Wait so many seconds for the master map
    #[arg(short = 'M', long, value_name = "SECONDS")]
    master_wait: Option<u32>,

    /// Log everything; a number (of OpenLDAP's log levels) is accepted
    #[arg(short, long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    debug: Option<u32>,

    /// Define a variable for all maps
    #[arg(short = 'D', long, value_name = "NAME=VALUE", value_parser = defined)]
    define: Vec<Definition>,

    /// Choose among replicated servers at random
    #[arg(short, long)]
    random_multimount_selection: bool,

    /// Mount options for all maps
    #[arg(short = 'O', long, value_name = "OPTIONS")]
    global_options: Option<OsString>,

    /// Print the maps and end; with TYPE and NAME in place of the master map: that map
    #[arg(short = 'm', long)]
    dumpmaps: bool,

    /// Do not check whether a daemon runs already, or serves the mount points
    #[arg(short = 'C', long)]
    dont_check_daemon: bool,

    /// Detach what is left of an earlier daemon at the mount points, then serve
    #[arg(short = 'F', long)]
    force: bool,

    /// Detach what is left of an earlier daemon at the mount points, and end
    #[arg(short = 'U', long)]
    force_exit: bool,

    /// Set how much a running engine logs about the mounts at these paths, and end; see `autofs-cr ctl log`
    #[arg(short = 'l', long, value_names = ["PRIORITY", "PATH"], num_args = 2..)]
    set_log_priority: Vec<String>,

    /// Print the version
    #[arg(short = 'V', long)]
    version: bool,

    /// Called by the name `automount`.
    #[arg(skip)]
    pub by_name: bool,
}

impl Automount {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        if self.version {
            output.print(concat!("Linux automount, autofs-cr ", env!("CARGO_PKG_VERSION"), "\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        if let [priority, paths @ ..] = self.set_log_priority.as_slice() {
            set_log_priority(self.socket.as_deref(), priority, paths)?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.dumpmaps {
            return match self.names.as_slice() {
                [kind, name] => dumpmaps::one(kind, name, &self.given(None)?, output),
                names => dumpmaps::all(&self.given(names.first())?, output),
            };
        }
        ensure!(self.names.len() < 2, "there is one master map; --dumpmaps takes TYPE NAME");
        let given = self.given(self.names.first())?;
        if self.force || self.force_exit {
            running::detach(&config::of_master_map(&given)?)?;
        }
        if self.force_exit {
            return Ok(ExitCode::SUCCESS);
        }
        let background = self.by_name && !self.foreground && !self.systemd_service;
        if background && self.carried.is_none() {
            return background::run(|ready| self.serve(&given, ready));
        }
        // A program of our own group would be taken for us: it would never trigger a mount.
        if own_group() != rustix::process::getpid().as_raw_nonzero().get() {
            rustix::process::setpgid(None, None).context("no process group of our own")?;
        }
        self.serve(&given, &mut || {})?;
        Ok(ExitCode::SUCCESS)
    }

    fn serve(&self, given: &Given, ready: &mut dyn FnMut()) -> Result<()> {
        let _flag = (self.by_name && !self.dont_check_daemon && !self.replace)
            .then(|| running::Flag::raise(running::FLAG))
            .transpose()?;
        engine::reactor::block_signals();
        let wanted = config::of_master_map(given)?;
        ensure!(
            !wanted.is_empty(),
            "the master map has no map that can be served; `autofs-cr maps check` tells why"
        );
        let begins = self.carried.is_none();
        if begins && !self.replace && !self.dont_check_daemon {
            running::nobody_serves(&wanted)?;
        }
        let _pid_file = self.pid_file.as_deref().map(running::PidFile::write).transpose()?;
        let Carried { pipe, listeners, state: before } = match self.carried {
            Some(number) => upgrade::take(number)?,
            None => self.open()?,
        };
        // Let go again if the engine does not come as far as to serve.
        let mut old = if begins && self.replace { Some(takeover::stop(&wanted)?) } else { None };
        let master: Arc<dyn Master> = Arc::new(config::MasterMap(given.clone()));
        let start = Start { wanted, pipe, master: Some(master), listeners, before };
        engine::serve(start, &mut |_| {
            let ended = old.take().map_or(0, takeover::OldMasters::end);
            if ended > 0 {
                output::note("the automounter that served before was ended; its mounts are served from here");
            }
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                output::warn(format_args!("the service manager could not be told: {error}"));
            }
            ready();
        })?;
        Ok(())
    }

    /// Pipe and sockets of an engine that begins.
    fn open(&self) -> Result<Carried> {
        let control = match &self.socket {
            Some(path) => Some(Listener::control(Some(path))?),
            None => Listener::usual(),
        };
        let metrics = self.metrics.as_ref().map(Listener::metrics).transpose()?;
        let pipe = packet_pipe().context("no pipe")?;
        keep_over_a_crash(&pipe);
        Ok(Carried {
            pipe,
            listeners: control.into_iter().chain(metrics).collect(),
            state: Before::default(),
        })
    }

    /// It does more than print something.
    pub fn mounts(&self) -> bool {
        !(self.version || self.dumpmaps || !self.set_log_priority.is_empty())
    }

    /// What the options say over the configuration.
    pub fn given(&self, master: Option<&String>) -> Result<Given> {
        let master = master.map(|name| master_map(name)).transpose()?;
        let options = self.global_options.as_deref().map(maps::options::split);
        let options: Vec<Vec<u8>> = options
            .into_iter()
            .flatten()
            .map(|option| std::os::unix::ffi::OsStrExt::as_bytes(option).to_vec())
            .collect();
        Ok(Given {
            master,
            conf: None,
            timeout: self.timeout.map(Duration::from_secs),
            negative_timeout: self.negative_timeout.map(Duration::from_secs),
            positive_timeout: self.positive_timeout.map(Duration::from_secs),
            master_wait: self.master_wait,
            definitions: self.define.clone(),
            options,
            random_replica: self.random_multimount_selection,
        })
    }

    /// How much to log, as `-v` on the command line counts it.
    pub fn verbosity(&self) -> u8 {
        if self.debug.is_some() {
            return 2;
        }
        // What is wrong in it is told when it is read for good.
        let mut conf = Conf::default();
        conf.apply(&std::fs::read(config::CONF).unwrap_or_default(), &mut Vec::new());
        match conf.logging {
            Logging::None => 0,
            Logging::Verbose => 1,
            Logging::Debug => 2,
        }
    }
}

/// Levels of syslog, by name or number, as those of our log.
fn set_log_priority(socket: Option<&Path>, priority: &str, paths: &[String]) -> Result<()> {
    let level = match priority {
        "emergency" | "emerg" | "alert" | "critical" | "crit" | "error" | "err" | "0" | "1" | "2" | "3" => {
            "error"
        }
        "warning" | "warn" | "4" => "warn",
        "notice" | "info" | "5" | "6" => "info",
        "debug" | "7" => "debug",
        other => bail!("{other} is no priority: they are 0 to 7, or emergency to debug"),
    };
    for path in paths.iter().flat_map(|path| path.split(',')) {
        let mount = Some(PathBuf::from(path));
        match ask(socket, &Request::Log { level: Some(level.into()), mount })? {
            Reply::Error(text) => bail!("{text}"),
            _ => continue,
        }
    }
    Ok(())
}

fn defined(text: &str) -> Result<Definition> {
    match definition(text.as_bytes()) {
        Some(defined) => Ok(defined),
        None => bail!("a variable is defined as NAME=VALUE"),
    }
}

/// Arguments of automount(8) as they are understood here: `-d7` is `--debug=7`.
pub fn arguments(all: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    all.map(|argument| match argument.to_str().and_then(|text| text.strip_prefix("-d")) {
        Some(level) if !level.is_empty() && level.bytes().all(|b| b.is_ascii_digit()) => {
            format!("--debug={level}").into()
        }
        _ => argument,
    })
}

/// Give the read end to the service manager, where it keeps descriptors for us: when this process dies, lookups wait in the
/// pipe until the next one attaches the mounts, instead of failing. It drops the descriptor when nobody writes any more.
fn keep_over_a_crash(pipe: &PacketPipe) {
    // Those of our predecessor come with our start; they are the manager's business, and no child's.
    let _ = sd_notify::listen_fds();
    let store = [NotifyState::FdStore, NotifyState::FdName("requests")];
    if let Err(error) = sd_notify::notify_with_fds(&store, &[pipe.read.as_fd()]) {
        output::warn(format_args!("the service manager does not keep the pipe: {error}"));
    }
}
