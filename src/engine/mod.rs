//! The automounter.

pub mod maps;
pub mod mount;
