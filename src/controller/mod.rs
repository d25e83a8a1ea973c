//! Acts on the cluster.
mod conditions;
#[cfg(test)]
mod fixtures;
mod status;
