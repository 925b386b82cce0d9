//! What the two hosts of a scenario tell each other: one connection, messages with their lengths. Both do the same steps;
//! where one fails it says so, and both go on with the next step.

use crate::process::run_ok;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ADDRESS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
const PORT: u16 = 7000;
/// The other host has limits of its own, which are shorter. One that ends closes the connection.
const LIMIT: Duration = Duration::from_secs(1200);
const TAR: &str = "/tmp/link.tar";

/// The connection.
pub struct Link {
    stream: TcpStream,
    /// The other host is done with this step.
    ended: bool,
}

impl Link {
    /// Host 2 listens, host 1 connects.
    pub fn new(host: usize) -> Result<Self> {
        let own = ADDRESS.get(host.wrapping_sub(1)).context("there are two hosts")?;
        run_ok(LIMIT, "ip", &["link", "set", "eth0", "up"])?;
        run_ok(LIMIT, "ip", &["address", "replace", &format!("{own}/24"), "dev", "eth0"])?;
        let stream = if host == 1 { connect()? } else { TcpListener::bind((*own, PORT))?.accept()?.0 };
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, ended: false })
    }

    /// Tell something.
    pub fn say(&mut self, text: &str) -> Result<()> {
        self.send("say", text)
    }

    /// What the other host tells; an error when that has given up.
    pub fn hear(&mut self) -> Result<String> {
        let mut text = String::new();
        let length = self.expect("say")?;
        Read::by_ref(&mut self.stream).take(length).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Send files and directories; their size.
    pub fn send_files(&mut self, paths: &[PathBuf]) -> Result<u64> {
        let paths = paths.iter().filter(|path| path.exists()).map(|path| path.to_string_lossy().into_owned());
        let paths: Vec<String> = paths.map(|path| path.trim_start_matches('/').to_owned()).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        run_ok(LIMIT, "tar", &[&["-C", "/", "-cf", TAR], &paths[..]].concat())?;
        let mut tar = fs::File::open(TAR)?;
        let length = tar.metadata()?.len();
        writeln!(self.stream, "files {length}")?;
        io::copy(&mut tar, &mut self.stream)?;
        Ok(length)
    }

    /// Receive them, at the same paths.
    pub fn receive_files(&mut self) -> Result<()> {
        let length = self.expect("files")?;
        io::copy(&mut Read::by_ref(&mut self.stream).take(length), &mut fs::File::create(TAR)?)?;
        run_ok(LIMIT, "tar", &["-C", "/", "-xf", TAR])?;
        Ok(fs::remove_file(Path::new(TAR))?)
    }

    /// End a step: both wait here for each other, and neither misses that the other failed.
    pub fn end(&mut self, failed: Option<&anyhow::Error>) -> Result<()> {
        let told = failed.map(|error| format!("{error:#}")).unwrap_or_default();
        self.send("end", &told)?;
        while !self.ended {
            let (kind, length) = self.head()?;
            io::copy(&mut Read::by_ref(&mut self.stream).take(length), &mut io::sink())?;
            self.ended = kind == "end";
        }
        self.ended = false;
        Ok(())
    }

    /// How far the clock of host 2 is ahead of that of host 1, in milliseconds; for host 2.
    pub fn clock_ahead(&mut self) -> Result<i64> {
        let begin = Instant::now();
        self.say("what time is it?")?;
        let there: i64 = self.hear()?.parse()?;
        let here = now()?;
        Ok(here - there - i64::try_from(begin.elapsed().as_millis() / 2)?)
    }

    /// For host 1.
    pub fn tell_clock(&mut self) -> Result<()> {
        self.hear()?;
        self.say(&now()?.to_string())
    }

    fn send(&mut self, kind: &str, text: &str) -> Result<()> {
        Ok(self.stream.write_all(format!("{kind} {}\n{text}", text.len()).as_bytes())?)
    }

    fn expect(&mut self, wanted: &str) -> Result<u64> {
        let (kind, length) = self.head()?;
        if kind == "end" {
            self.ended = true;
            let mut told = String::new();
            Read::by_ref(&mut self.stream).take(length).read_to_string(&mut told)?;
            bail!("the other host: {told}");
        }
        ensure!(kind == wanted, "the other host sent {kind:?} in place of {wanted:?}");
        Ok(length)
    }

    fn head(&mut self) -> Result<(String, u64)> {
        let mut head = Vec::new();
        let mut byte = [0];
        loop {
            self.stream.read_exact(&mut byte).context("the other host is silent")?;
            if byte == *b"\n" {
                break;
            }
            head.extend(byte);
        }
        let head = String::from_utf8(head)?;
        let (kind, length) = head.split_once(' ').context("no length")?;
        Ok((kind.to_owned(), length.parse()?))
    }
}

/// Host 2 listens when it has booted.
fn connect() -> Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect_timeout(&(ADDRESS[1], PORT).into(), Duration::from_secs(2)) {
            Ok(stream) => return Ok(stream),
            Err(error) if begin.elapsed() > LIMIT => bail!("host 2 does not listen: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
