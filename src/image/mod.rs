//! The image directory: what a dump writes and a restore reads.

pub mod checkpoint;

pub use checkpoint::Checkpoint;
