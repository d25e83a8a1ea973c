//! Acts on the cluster.
