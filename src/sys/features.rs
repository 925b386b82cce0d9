//! What this kernel can do, probed once.
