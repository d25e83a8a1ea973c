//! hookwright
