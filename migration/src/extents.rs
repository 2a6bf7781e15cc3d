//! What is copied, being copied and dirty.
