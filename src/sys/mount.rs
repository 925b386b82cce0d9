//! The mount API: new superblocks, attachment, binds, propagation, unmounting.
