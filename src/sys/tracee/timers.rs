//! A held task's timer descriptors.

use super::{Held, RemoteFd, TraceeError, memory};
use std::time::Duration;

impl Held {
    /// Arm a timerfd of the task anew, to fire once, so long from now.
    pub fn arm_timer(&mut self, fd: RemoteFd, from_now: Duration) -> Result<(), TraceeError> {
        let address = self.session()?.data();
        // struct itimerspec: no interval, then the value.
        let spec = [0, 0, from_now.as_secs(), u64::from(from_now.subsec_nanos())];
        memory::write(self.tid, address, &spec.map(u64::to_ne_bytes).concat())?;
        let arguments = [fd.0 as u64, 0, address, 0, 0, 0];
        self.checked("arming a timer", libc::SYS_timerfd_settime, arguments).map(drop)
    }
}
