//! Facts about autofs mounts, read-only: nothing here triggers, mounts or changes anything.
//!
//! [`survey()`] gathers them; [`facts`] are what it finds.

pub mod escaped;
pub mod facts;
pub mod master;
pub mod mountinfo;
mod options;
pub mod pipes;
mod place;
pub mod proc;
pub mod survey;
pub mod unit;
pub mod users;
pub mod waiters;

pub use survey::{DiscoverError, Target, survey};
