//! Going to the background: the caller waits until the daemon is ready, and sees what went wrong before.

use super::super::ExitCode;
use super::super::output;
use anyhow::{Context, Result};
use autofs_cr::engine::background::leave_stdio;
use autofs_cr::sys::fork::fork;
use rustix::pipe::{PipeFlags, pipe_with};

/// Serve in a child that is a session of its own. Returns when that is ready, or has failed.
pub fn run(serve: impl FnOnce(&mut dyn FnMut()) -> Result<()>) -> Result<ExitCode> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("no pipe")?;
    let child = fork(move || {
        let mut write = Some(write);
        let mut ready = || {
            leave_stdio();
            if let Some(write) = write.take() {
                // That nobody waits any more is no failure.
                let _ = rustix::io::write(write, b"1");
            }
        };
        let result = rustix::process::setsid()
            .and_then(|_| rustix::process::chdir("/"))
            .context("cannot leave the caller's session")
            .and_then(|()| serve(&mut ready));
        match result {
            Ok(()) => 0,
            Err(error) => {
                output::error(&error);
                1
            }
        }
    })
    .context("no child process")?;
    let mut byte = [0];
    if rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut byte)).context("no word of the daemon")? == 1
    {
        child.leave();
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why on our stderr.
    child.wait().context("the daemon is lost")?;
    Ok(ExitCode::FAILURE)
}
