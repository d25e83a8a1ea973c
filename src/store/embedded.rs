//! The embedded engine, on fjall.
