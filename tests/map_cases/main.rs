//! Lines of maps and what they mean. The numbers are those of `docs/map-decisions.md`, which tells what automount 5.1.9
//! does with each line and where autofs-cr differs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod amd;
mod any_input;
mod changes;
mod check;
mod common;
mod conf;
mod docs;
mod explain;
mod hesiod;
mod hostile;
mod locations;
mod master;
mod multi;
mod options;
mod program;
mod reading;
mod service;
mod substitution;
