//! Holding visitors while a mount changes hands.
