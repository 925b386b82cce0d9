//! Checkpoint, restore and serve Linux autofs mounts.
//!
//! The layers, bottom first; each knows only those above it in this list:
//! [`sys`] (the kernel, and the only unsafe code), [`discover`] (facts, read-only), [`image`] (the
//! image directory), [`quiesce`] (holding visitors), [`attach`] (giving mounts a master), [`dump`], [`engine`] (the automounter),
//! [`restore`], [`container`] (under CRIU), `cli`. `docs/architecture.md` tells the whole story.

pub mod attach;
pub mod container;
pub mod discover;
pub mod dump;
pub mod engine;
pub mod faults;
pub mod image;
pub mod log;
pub mod quiesce;
pub mod restore;
#[allow(unsafe_code)]
pub mod sys;
