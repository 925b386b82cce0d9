//! The image directory: what a dump writes and a restore reads.

pub mod checkpoint;
mod wire;

pub use checkpoint::Checkpoint;
