//! Which addresses a delivery may reach: the one place that judges them.

use std::net::IpAddr;

use ipnet::IpNet;

/// Ranges that the platform team added to the built-in table.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

/// An address that may not be reached, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address} is not allowed: {range}")]
pub struct Denied {
    /// The address, in canonical form.
    pub address: IpAddr,
    /// What it belongs to.
    pub range: &'static str,
}

impl Policy {
    /// A policy with ranges added to the table.
    pub fn new(allow: Vec<IpNet>, deny: Vec<IpNet>) -> Self {
        Self { allow, deny }
    }
}
