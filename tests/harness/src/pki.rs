//! Certificates of a control plane and of receivers: authorities and what they sign.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

const YEAR: Duration = Duration::from_hours(365 * 24);

/// A certificate with its private key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS #8.
    pub key: String,
}

/// A certificate authority made for one test, or one that somebody else made.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    key: String,
}

impl Authority {
    /// A new authority called `name`.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::made_at(name, SystemTime::now())
    }

    /// One that is made now, by a clock that shows this time.
    pub fn made_at(name: &str, now: SystemTime) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // For a year, as one that is made today: who makes it in earnest judges by that.
        (params.not_before, params.not_after) = (now.into(), (now + YEAR).into());
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        let pem = key.serialize_pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: pem })
    }

    /// The authority of this certificate and key, both PEM.
    pub fn from_pem(certificate: &str, key: &str) -> anyhow::Result<Self> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, certificate: certificate.to_owned(), key: key.to_owned() })
    }

    /// The authority's own certificate, PEM: what clients trust.
    pub fn pem(&self) -> String {
        self.certificate.clone()
    }

    /// Its certificate and key.
    pub fn pair(&self) -> Pair {
        Pair { certificate: self.certificate.clone(), key: self.key.clone() }
    }

    /// A server certificate for these DNS names and for loopback addresses.
    pub fn server(&self, names: &[&str]) -> anyhow::Result<Pair> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let common_name = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names)?;
        for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16])] {
            params.subject_alt_names.push(SanType::IpAddress(loopback));
        }
        self.sign(params, &common_name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client certificate for a user (`CN`) in these groups (`O`).
    pub fn client(&self, user: &str, group: Option<&str>) -> anyhow::Result<Pair> {
        let mut params = CertificateParams::new(Vec::new())?;
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        self.sign(params, user, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<Pair> {
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// A key that signs ServiceAccount tokens: the private and the public half, PEM.
pub fn token_key() -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}
