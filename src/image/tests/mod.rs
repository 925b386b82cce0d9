//! Whole images: written and read, cut, flipped, forged.

mod criu;
mod damage;
mod directory;
mod forge;
mod fuzz;
mod hostile;
mod round_trip;
pub(crate) mod samples;
