//! The automounter.

pub mod maps;
