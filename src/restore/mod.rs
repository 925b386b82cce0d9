//! Restore: what an image holds becomes mounts with a master again.
//!
//! Two steps, after a plan: *create* makes what is missing, as catatonic mounts; *attach* gives every
//! mount a master. `docs/architecture.md` tells why.

pub mod claim;
pub mod create;
pub mod helper;
pub mod plan;
pub mod rollback;
