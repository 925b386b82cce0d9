//! `/dev/autofs` commands from inside a held task.

use super::super::control::{Caller, Command};
use super::session::{DATA, RemoteCall, to_errno};
use super::{Errno, Held, RemoteFd, TraceeError, memory};
use std::{
    cell::RefCell,
    os::fd::{AsFd, RawFd},
};

/// Issues commands from inside a held task: the kernel sees *its* process group and its descriptors.
#[derive(Debug)]
pub struct Injected<'a> {
    held: RefCell<&'a mut Held>,
    /// `/dev/autofs` in the task's table.
    device: RemoteFd,
}

impl<'a> Injected<'a> {
    /// `device`: ours; it is sent into the task and closed there on drop.
    pub fn new(held: &'a mut Held, device: impl AsFd) -> Result<Self, TraceeError> {
        let device = held.send_fd(device.as_fd())?;
        Ok(Self { held: RefCell::new(held), device })
    }

    /// Use the task otherwise.
    pub fn with_held<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut self.held.borrow_mut())
    }

    /// As many commands as there is room for; returns how many.
    fn run_some(&self, commands: &mut [(Command, Vec<u8>)]) -> Result<Vec<i64>, TraceeError> {
        let mut held = self.held.borrow_mut();
        let data = held.session()?.data();
        let mut buffers = Vec::new();
        let mut calls = Vec::new();
        for (command, buf) in commands.iter() {
            if buffers.len() + buf.len() > DATA as usize {
                break;
            }
            let address = data + buffers.len() as u64;
            let arguments = [self.device.0 as u64, command.request().into(), address, 0, 0, 0];
            calls.push(RemoteCall { number: libc::SYS_ioctl, arguments });
            buffers.extend_from_slice(buf);
            buffers.resize(buffers.len().next_multiple_of(8), 0);
        }
        memory::write(held.tid, data, &buffers)?;
        let results = held.call_all(&calls)?;
        memory::read(held.tid, data, &mut buffers)?;
        for ((_, buf), call) in commands.iter_mut().zip(calls) {
            let (start, length) = ((call.arguments[2] - data) as usize, buf.len());
            buf.copy_from_slice(&buffers[start..start + length]);
        }
        Ok(results)
    }
}

impl Drop for Injected<'_> {
    fn drop(&mut self) {
        let _ = self.held.borrow_mut().close_fd(self.device);
    }
}

impl Caller for Injected<'_> {
    type Fd<'a> = RemoteFd;
    /// Not closed on drop: that needs the held task. Use [`super::super::control::Control::close_mount`].
    type Mount = RemoteFd;

    fn ioctl(&self, command: Command, buf: &mut [u8]) -> Result<i32, Errno> {
        let mut one = [(command, buf.to_vec())];
        let result = self.ioctl_all(&mut one).pop().unwrap_or(Err(Errno::SRCH));
        let [(_, answer)] = one;
        buf.copy_from_slice(&answer);
        result
    }

    /// ESRCH also when the task could not be used (any longer).
    fn ioctl_all(&self, commands: &mut [(Command, Vec<u8>)]) -> Vec<Result<i32, Errno>> {
        let mut results = Vec::with_capacity(commands.len());
        while results.len() < commands.len() {
            match self.run_some(&mut commands[results.len()..]) {
                Ok(some) => {
                    results.extend(some.into_iter().map(|value| to_errno(value).map(|value| value as i32)))
                }
                Err(error) => {
                    let errno = if let TraceeError::Call { errno, .. } = error { errno } else { Errno::SRCH };
                    results.resize(commands.len(), Err(errno));
                }
            }
        }
        results
    }

    fn number(fd: RemoteFd) -> RawFd {
        fd.0
    }

    unsafe fn own(number: RawFd) -> RemoteFd {
        RemoteFd(number)
    }

    fn disown(mount: RemoteFd) -> RawFd {
        mount.0
    }

    fn borrow(mount: &RemoteFd) -> RemoteFd {
        *mount
    }
}
