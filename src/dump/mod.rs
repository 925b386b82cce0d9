//! Writing down what there is: from a running system to an image directory.

pub mod maps;
pub mod owner;
pub mod plan;
pub mod requests;
pub mod tree;
