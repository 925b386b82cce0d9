//! Tests against the real kernel. They need root, and fail without it.
//!
//! Every test works in a mount namespace of its own (`common::private_mount_namespace`); this process
//! is the master of the mounts, and visitors are child processes in groups of their own.

#![allow(clippy::unwrap_used)]

mod attach;
mod common;
mod control;
mod discover;
mod dump;
mod engine_kernel;
mod image;
mod mount;
mod mountns;
mod packet;
mod quiesce;
mod restore;
mod statmount;
mod tracee;
mod tree;
