//! `autofs-cr top`: what the autofs mounts do, as it happens.

mod frame;
mod screen;

use super::ExitCode;
use super::TargetArgs;
use super::output::{self, Output};
use anyhow::{Result, ensure};
use autofs_cr::discover::survey;
use autofs_cr::engine::control::client::ask;
use autofs_cr::engine::control::{Reply, Request};
use clap::Args;
use frame::{History, Sample};
use screen::{Key, Screen};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const EXAMPLES: &str = "\
Examples:
  autofs-cr top                   every second, until q
  autofs-cr top --tree 812        the mounts that process 812 sees
  autofs-cr top -n 1 | head       one picture, for scripts

Who waits comes first, longest first, with the mount and its master; then the mounts, those with waiters first. \
All that comes from the kernel, whoever serves the mounts. Where one of our engines serves, its rates and times \
stand above, and the programs with most lookups below.";

/// Watch waiters, mounts and lookups as they come and go
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Top {
    #[command(flatten)]
    target: TargetArgs,

    /// Seconds between two pictures
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0)]
    delay: f64,

    /// End after so many pictures; without a terminal: 1
    #[arg(short = 'n', long, value_name = "NUMBER")]
    count: Option<u64>,

    /// The control socket of the engine, where several run
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Top {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        ensure!(
            (0.1..=3600.0).contains(&self.delay),
            "--delay {}: from 0.1 to 3600 seconds are possible",
            self.delay
        );
        let delay = Duration::from_secs_f64(self.delay);
        let mut history = History::default();
        let Some(mut screen) = Screen::open()? else { return self.print(delay, &mut history, output) };
        for picture in 1u64.. {
            *output = Output::new();
            let text = history.frame(self.sample()?, output, Some(screen.rows()));
            screen.show(&text)?;
            if self.count == Some(picture) || screen.wait(delay)? == Key::Quit {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// One picture below the other.
    fn print(&self, delay: Duration, history: &mut History, output: &mut Output) -> Result<ExitCode> {
        for picture in 0..self.count.unwrap_or(1) {
            if picture > 0 {
                std::thread::sleep(delay);
            }
            let text = history.frame(self.sample()?, output, None);
            output.print(&text)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn sample(&self) -> Result<Sample> {
        let ask = |request| ask(self.socket.as_deref(), &request);
        let metrics = match ask(Request::Metrics) {
            Ok(Reply::Metrics(text)) => Some(text),
            // The one that was named must be there; otherwise there may be none, or several.
            Err(error) if self.socket.is_some() => return Err(error.into()),
            _ => None,
        };
        let programs = match metrics.as_ref().map(|_| ask(Request::Who)) {
            Some(Ok(Reply::Who(who))) => who.programs,
            _ => Vec::new(),
        };
        Ok(Sample {
            at: Instant::now(),
            clock: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            survey: survey(&self.target.target())?,
            metrics,
            programs,
        })
    }
}
