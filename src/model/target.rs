//! A URL that was judged.

/// Where a delivery goes: an `https` URL with a host that can be sent to. Made by parsing only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    url: url::Url,
}

impl Target {
    /// The URL as it is requested.
    pub fn url(&self) -> &url::Url {
        &self.url
    }
}
