//! Answers: told the kernel, counted, and written to the log.

use super::kernel::Kernel;
use super::ledger;
use super::metrics::{Metrics, result_name};
use super::task::{Answer, Asker};
use crate::log;
use crate::sys::Errno;
use std::sync::Arc;

/// Where answers go. Shared by the reactor and the workers.
#[derive(Clone)]
pub struct Answers {
    /// The kernel.
    pub kernel: Arc<dyn Kernel>,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

impl Answers {
    /// Through this kernel.
    pub fn new(kernel: Arc<dyn Kernel>) -> Self {
        Self { kernel, metrics: Arc::default() }
    }

    /// Give one, by the mount's path.
    pub fn give(&self, answer: &Answer) {
        let _ = self.give_by(answer, || self.kernel.answer(&answer.place, answer.token, answer.result));
    }

    /// Give one by this call; returns what that says.
    pub fn give_by(&self, answer: &Answer, call: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let _about = log::about(&answer.place.path);
        let told = answer.asker.filter(|_| tracing::enabled!(target: TARGET, tracing::Level::INFO));
        // Later the requester may have ended.
        let told = told.map(|asker| (asker, ledger::comm(asker.pid)));
        let called = call();
        if let Err(errno) = called {
            // The kernel does not know it any more when its visitors were killed; nothing else can be wrong that
            // could be mended here.
            let path = answer.place.path.display();
            tracing::debug!(%path, token = answer.token.0, %errno, "an answer was not wanted any more");
        }
        let Some(asker) = answer.asker else { return called };
        let took = self.metrics.request(answer.result, asker.since);
        if let Some((asker, comm)) = told {
            tell(answer, asker, &comm, took);
        }
        called
    }

    /// An answer to a request of a mount that nobody remembers.
    pub fn orphan(&self, dev: crate::sys::DevNum, token: crate::sys::control::Token, errno: Errno) {
        let given = self.kernel.find(dev).and_then(|place| self.kernel.answer(&place, token, Err(errno)));
        if let Err(error) = given {
            tracing::warn!(%dev, %error, "a request of a mount that cannot be found");
        }
    }
}

/// Target of the events that tell of requests, one each: `RUST_LOG=autofs_cr::request=info`.
const TARGET: &str = "autofs_cr::request";

/// The names are fields of the journal: `journalctl COMM=updatedb`.
fn tell(answer: &Answer, asker: Asker, comm: &str, took: std::time::Duration) {
    let path = answer.place.target(&answer.key);
    tracing::info!(
        target: TARGET,
        mount = %answer.place.path.display(),
        key = %String::from_utf8_lossy(&answer.key),
        map = %answer.served.name.to_string_lossy(),
        requester_pid = asker.pid,
        requester_uid = asker.who.uid,
        requester_gid = asker.who.gid,
        requester_comm = comm,
        duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        result = result_name(answer.result),
        errno = answer.result.err().map(|errno| errno.raw_os_error()),
        "{} {}", path.display(), if answer.result.is_ok() { "mounted" } else { "not mounted" },
    );
}
