//! Facts about autofs mounts, read-only: nothing here triggers, mounts or changes anything.

pub mod escaped;
pub mod facts;
