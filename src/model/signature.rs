//! Standard Webhooks signatures, and the keys for them.

/// Signs deliveries of one Webhook: with its ed25519 key (`v1a`) and every HMAC key (`v1`).
pub struct Signer {
    _private: (),
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}
