//! Containers under CRIU: what the plugin's hooks do, without the C.
//!
//! CRIU dumps and restores processes, files and the mount table. Ours are the autofs superblocks:
//!
//! | step of CRIU's | what happens here |
//! |---|---|
//! | CRIU prepares itself | [`Attendant::start`]: a process apart comes |
//! | nobody is stopped yet | [`Lull::begin`]: no request is open, and every task sleeps |
//! | all tasks are stopped | [`Lull::end`]; [`Dump::begin`]: the facts of every mount namespace of the tree. The process apart reads what is in the mounts |
//! | a mount is dumped | [`Dump::complete`] waits for that, once; [`Dump::image`]: its messages in `autofs-cr-mounts.img` |
//! | a restore begins | [`copies`]: what the container saw of the host's automounter is mounted on this host |
//! | | [`Restore::open`]: images are read, a [`maker`] process claims the device numbers |
//! | the root task mounts | [`Restore::mount`]: the superblock, made catatonic, with all that was in it |
//! | all tasks are stopped, whole | [`Restore::attach`]: SETPIPEFD in the context of each mount's master |
//!
//! The same image module as `autofs-cr dump` makes the files; pids in them are those of the container.

mod apart;
mod attendant;
mod cgroups;
pub mod command;
mod dump;
mod foreign;
mod inside;
mod limits;
mod lull;
mod maker;
mod owner;
mod parked;
mod relay;
mod renumber;
mod restore;
mod tree;

pub use attendant::Attendant;
pub use dump::{Dump, DumpError};
pub use foreign::back::{Copies, ForeignError, copies};
pub use lull::{Lull, LullError};
pub use renumber::VARIABLE as RENUMBER;
pub use restore::{Restore, RestoreError};
