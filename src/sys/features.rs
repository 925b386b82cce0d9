//! What this kernel can do, probed once.

use super::{
    control::{Control, ControlError},
    statmount,
};
use std::{path::Path, sync::OnceLock};

/// What was found. Nothing is mounted or changed to find it.
#[derive(Debug)]
pub struct Features {
    /// Version of the control interface, or why there is none.
    pub control: Result<(u32, u32), ControlError>,
    /// Mount options show a mount's pipe (`pipe_ino`): without it nobody can tell who the master is.
    pub shows_pipes: bool,
    /// listmount and statmount.
    pub statmount: bool,
}

/// Probe, or recall.
pub fn get() -> &'static Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    FEATURES.get_or_init(|| Features {
        control: Control::open().and_then(|control| control.version()),
        // Made by the same option, CONFIG_CHECKPOINT_RESTORE.
        shows_pipes: Path::new("/proc/sys/kernel/ns_last_pid").exists(),
        statmount: matches!(statmount::list(), Ok(Some(_))),
    })
}

impl Features {
    /// What is missing for dump and restore, one sentence each: the consequence and the remedy.
    pub fn missing(&self) -> Vec<String> {
        let control = self.control.as_ref().err().map(ControlError::to_string);
        let pipes = (!self.shows_pipes).then(|| {
            "this kernel does not show the pipe of a mount (pipe_ino), so masters cannot be found: it needs \
             CONFIG_CHECKPOINT_RESTORE"
                .to_owned()
        });
        control.into_iter().chain(pipes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Errno;

    #[test]
    fn what_is_missing_is_said_with_its_remedy() {
        let features = Features {
            control: Err(ControlError::Unavailable(Errno::NOENT)),
            shows_pipes: false,
            statmount: false,
        };
        let [control, pipes] = &features.missing()[..] else { panic!("two sentences") };
        assert!(control.contains("modprobe autofs4") && pipes.contains("CONFIG_CHECKPOINT_RESTORE"));
        // the fallback for statmount is complete
        let features = Features { control: Ok((1, 1)), shows_pipes: true, statmount: false };
        assert!(features.missing().is_empty());
    }
}
