//! The terminal while `top` has it.

use super::output;
use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// What ends a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// Nothing, or any other key: time for a new picture.
    None,
    /// q, ^C, or a signal that asks to end.
    Quit,
}

/// The terminal's other screen; the usual one comes back when it is dropped.
pub struct Screen {
    signals: SignalFd,
    /// How stdin was, if it is a terminal.
    before: Option<Termios>,
}

impl Screen {
    /// Take it; `None` where stdout is no terminal.
    pub fn open() -> Result<Option<Self>> {
        if !io::stdout().is_terminal() {
            return Ok(None);
        }
        let mask: SigSet =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH].into_iter().collect();
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut keys = before.clone();
            keys.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(io::stdin(), OptionalActions::Now, &keys)?;
        }
        let screen = Self { signals, before };
        // The other screen, without a cursor; what is too long for a line ends with it.
        screen.write("\x1b[?1049h\x1b[?25l\x1b[?7l")?;
        Ok(Some(screen))
    }

    /// How many it has now.
    pub fn rows(&self) -> usize {
        tcgetwinsize(io::stdout()).map_or(24, |size| usize::from(size.ws_row)).max(1)
    }

    /// Show as much as it has lines for.
    pub fn show(&mut self, text: &str) -> Result<()> {
        let mut picture = String::from("\x1b[H");
        for (index, line) in output::harmless(text).lines().take(self.rows()).enumerate() {
            picture += if index == 0 { "" } else { "\r\n" };
            picture += line;
            picture += "\x1b[K";
        }
        Ok(self.write(&(picture + "\x1b[J"))?)
    }

    /// Until a key, a signal, or the next picture is due.
    pub fn wait(&mut self, delay: Duration) -> Result<Key> {
        let end = Instant::now() + delay;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
            let stdin = io::stdin();
            let mut polled = vec![PollFd::new(&self.signals, PollFlags::IN)];
            if self.before.is_some() {
                polled.push(PollFd::new(&stdin, PollFlags::IN));
            }
            match poll(&mut polled, Some(&left)) {
                Ok(0) => return Ok(Key::None),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let typed = polled.get(1).is_some_and(|stdin| !stdin.revents().is_empty());
            if let Some(signal) = self.signals.read_signal()? {
                let resized = i32::try_from(signal.ssi_signo) == Ok(Signal::SIGWINCH as i32);
                return Ok(if resized { Key::None } else { Key::Quit });
            }
            if typed {
                let mut key = [0];
                let read = rustix::io::read(&stdin, &mut key)?;
                // No more input: the terminal is gone.
                return Ok(if read == 0 || matches!(key[0], b'q' | b'Q') { Key::Quit } else { Key::None });
            }
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Err(error) = self.write("\x1b[?7h\x1b[?25h\x1b[?1049l") {
            output::warn(format_args!("the terminal could not be set back: {error}"));
        }
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
