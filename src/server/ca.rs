//! The certificate authority of the HTTPS door: pure making, reading and judging of certificates.
//!
//! A CA lives a year. Four months before its end a successor is made and published beside it; a month later,
//! when everybody who reads the bundle has seen the successor, that one signs, and the old one stays in the
//! bundle until it expires. So neither a client that has only the old bundle nor one that has only the new one
//! meets a certificate that it cannot verify, as long as it reads the bundle once a month.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::tls::Error;
use crate::model::time::UnixMillis;

const DAY: Duration = Duration::from_hours(24);
/// How long a CA is valid.
pub(super) const CA_LIFE: Duration = DAY.saturating_mul(365);
/// How long before its end a CA gets a successor.
const SUCCESSOR: Duration = DAY.saturating_mul(120);
/// How long a successor is published before it signs.
const ANNOUNCED: Duration = DAY.saturating_mul(30);
/// How long a serving or client certificate is valid.
pub(super) const LEAF_LIFE: Duration = DAY.saturating_mul(7);
/// Certificates are valid from a little earlier, for clients whose clock is behind.
const SKEW: Duration = Duration::from_mins(5);

/// A certificate that may sign, with its key.
pub(super) struct Authority {
    /// The certificate, as it is stored and published.
    pub(super) certificate: String,
    /// Its PKCS#8 key. Never leaves the Secret and this process.
    pub(super) key: String,
    validity: Validity,
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: UnixMillis,
    pub(super) to: UnixMillis,
}

/// A certificate with its key, for use in TLS.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) certified: CertifiedKey,
    pub(super) validity: Validity,
    /// Of the CA that signed it: who verifies the one looks at the other.
    pub(super) ca: Validity,
}

/// Why a certificate is no good now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    /// It was made by a clock that was ahead, or by one that is.
    #[error(
        "is not valid before {0}, and by the clock of this machine it is {1}: one of the two clocks was wrong"
    )]
    NotYet(UnixMillis, UnixMillis),
    #[error("has expired")]
    Expired,
}

impl Validity {
    /// Whether it is valid at this time: it has two ends.
    pub(super) fn check(self, now: UnixMillis) -> Result<(), Invalid> {
        let from = self.from - SKEW;
        if now < from {
            Err(Invalid::NotYet(from, now))
        } else if now >= self.to {
            Err(Invalid::Expired)
        } else {
            Ok(())
        }
    }

    /// When two thirds of the time are over.
    pub(super) fn two_thirds(self) -> UnixMillis {
        self.from + self.to.since(self.from) * 2 / 3
    }
}

impl Authority {
    /// Makes a new one.
    pub(super) fn make(now: UnixMillis) -> Result<Self, Error> {
        let validity = Validity { from: now, to: now + CA_LIFE };
        let mut params = params(validity, &format!("hookwright-ca@{}", now.as_secs()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key: key.serialize_pem(), validity })
    }

    /// Reads one back.
    pub(super) fn read(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        let (validity, public_key) = parse(certificate).ok_or(Error::NoCertificate)?;
        let (Ok(certificate), Ok(key)) =
            (String::from_utf8(certificate.to_vec()), String::from_utf8(key.to_vec()))
        else {
            return Err(Error::NoCertificate);
        };
        if KeyPair::from_pem(&key)?.public_key_raw() != public_key {
            return Err(Error::ForeignKey);
        }
        Ok(Self { certificate, key, validity })
    }

    /// Issues a serving certificate, valid for a week but not beyond the CA itself.
    pub(super) fn issue(&self, names: &[String], now: UnixMillis) -> Result<Leaf, Error> {
        let validity = self.leaf_validity(now);
        let mut params = params(validity, names.first().map_or("hookwright", String::as_str));
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth, validity)
    }

    /// Issues a client certificate with this common name, valid for as long as a serving one.
    pub(super) fn issue_client(&self, name: &str, now: UnixMillis) -> Result<Leaf, Error> {
        let validity = self.leaf_validity(now);
        self.sign(params(validity, name), ExtendedKeyUsagePurpose::ClientAuth, validity)
    }

    fn leaf_validity(&self, now: UnixMillis) -> Validity {
        Validity { from: now, to: (now + LEAF_LIFE).min(self.validity.to) }
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) -> Result<Leaf, Error> {
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &issuer)?;
        let private = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)?;
        let certified = CertifiedKey::new(vec![certificate.der().clone()], signing);
        Ok(Leaf { certified, validity, ca: self.validity })
    }

    /// Whether it is good for signing at this time.
    pub(super) fn check(&self, now: UnixMillis) -> Result<(), Invalid> {
        self.validity.check(now)
    }
}

fn params(validity: Validity, name: &str) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |at: UnixMillis| epoch + at.since(UnixMillis::from_millis(0));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = at(validity.from - SKEW);
    params.not_after = at(validity.to);
    params
}

/// The CAs of an installation, as its Secret holds them.
pub(super) struct Authorities {
    /// Signs serving certificates.
    pub(super) signing: Authority,
    /// Is announced, and will sign.
    pub(super) next: Option<Authority>,
    /// Certificates that signed before and are not yet expired.
    pub(super) former: Vec<String>,
}

impl Authorities {
    /// The first of an installation.
    pub(super) fn make(now: UnixMillis) -> Result<Self, Error> {
        Ok(Self { signing: Authority::make(now)?, next: None, former: Vec::new() })
    }

    /// What clients trust: every certificate that signed, signs or will sign, oldest first, so that it does not
    /// change when the next one begins to sign.
    pub(super) fn bundle(&self) -> String {
        let current =
            std::iter::once(&self.signing).chain(&self.next).map(|authority| &authority.certificate);
        let lines = self.former.iter().chain(current).flat_map(|certificate| [certificate.trim_end(), "\n"]);
        lines.collect()
    }

    /// Does what is due now; tells whether anything was.
    pub(super) fn advance(&mut self, now: UnixMillis) -> Result<bool, Error> {
        let before = self.former.len();
        self.former.retain(|pem| parse(pem.as_bytes()).is_some_and(|(validity, _)| now < validity.to));
        let mut changed = self.former.len() != before;
        // One that was made while a clock was ahead has signed nothing, and could not for as long.
        changed |= self.next.take_if(|next| next.check(now).is_err()).is_some();
        let is_valid = self.signing.check(now).is_ok();
        if self.next.is_none() && (now + SUCCESSOR >= self.signing.validity.to || !is_valid) {
            self.next = Some(Authority::make(now)?);
            changed = true;
        }
        let due = |next: &Authority| now >= next.validity.from + ANNOUNCED;
        // Without time for a whole serving certificate there is no waiting.
        let pressed = now + LEAF_LIFE >= self.signing.validity.to || !is_valid;
        if let Some(next) = self.next.take_if(|next| due(next) || pressed) {
            let signed = std::mem::replace(&mut self.signing, next);
            // One that is not valid yet stays, too: by the clock of another machine it may be.
            if signed.check(now) != Err(Invalid::Expired) {
                self.former.push(signed.certificate);
            }
            changed = true;
        }
        Ok(changed)
    }
}

/// The time and the public key in the first certificate of a PEM text.
fn parse(pem: &[u8]) -> Option<(Validity, Vec<u8>)> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let at = |seconds: i64| UnixMillis::from_millis(seconds.saturating_mul(1000));
    let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    // The time that was put before, for slow clocks, is taken off again.
    let validity = Validity { from: at(from) + SKEW, to: at(to) };
    Some((validity, parsed.public_key().subject_public_key.data.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    const START: UnixMillis = UnixMillis::from_millis(1_800_000_000_000);

    fn names() -> Vec<String> {
        ["hookwright.ns.svc", "localhost"].map(str::to_owned).into()
    }

    fn verifies(bundle: &str, leaf: &Leaf, name: &str, at: UnixMillis) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let at = UnixTime::since_unix_epoch(at.since(UnixMillis::from_millis(0)));
        let end_entity = leaf.certified.end_entity_cert().unwrap();
        verifier.verify_server_cert(end_entity, &[], &name, &[], at).is_ok()
    }

    fn days(n: u32) -> Duration {
        DAY * n
    }

    #[test]
    fn a_leaf_is_valid_for_its_names_for_a_week_and_a_little_before() {
        let ca = Authorities::make(START).unwrap();
        let leaf = ca.signing.issue(&names(), START).unwrap();
        let bundle = ca.bundle();
        for (name, at, expected) in [
            ("localhost", START, true),
            ("hookwright.ns.svc", START, true),
            ("other.ns.svc", START, false),
            ("localhost", START - SKEW, true),
            ("localhost", START - SKEW - Duration::from_secs(1), false),
            ("localhost", START + LEAF_LIFE - Duration::from_secs(1), true),
            ("localhost", START + LEAF_LIFE + Duration::from_secs(1), false),
        ] {
            assert_eq!(verifies(&bundle, &leaf, name, at), expected, "{name} at {at}");
        }
        assert_eq!(leaf.validity.two_thirds(), START + LEAF_LIFE * 2 / 3);
        assert!(
            !verifies(&Authorities::make(START).unwrap().bundle(), &leaf, "localhost", START),
            "another CA"
        );
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let ca = Authority::make(START).unwrap();
        let leaf = ca.issue(&names(), START + CA_LIFE - days(1)).unwrap();
        assert_eq!(leaf.validity.to, START + CA_LIFE);
    }

    #[test]
    fn a_ca_is_read_back_as_it_was_made() {
        let made = Authority::make(START).unwrap();
        let read = Authority::read(made.certificate.as_bytes(), made.key.as_bytes()).unwrap();
        assert_eq!(read.validity, made.validity);
        let leaf = read.issue(&names(), START).unwrap();
        assert!(verifies(&made.certificate, &leaf, "localhost", START));
    }

    #[test]
    fn what_is_no_ca_or_has_the_key_of_another_is_told_apart() {
        let (one, other) = (Authority::make(START).unwrap(), Authority::make(START).unwrap());
        let read =
            |certificate: &str, key: &str| match Authority::read(certificate.as_bytes(), key.as_bytes()) {
                Ok(_) => "good".to_owned(),
                Err(error) => error.to_string(),
            };
        assert_eq!(read(&one.certificate, &one.key), "good");
        assert!(read(&one.certificate, &other.key).contains("not of its certificate"));
        assert!(read("garbage", &one.key).contains("no certificate"));
        assert!(read(&one.certificate, "garbage").contains("cannot make or read"));
    }

    /// The life of an installation, day by day: what changes, how many are in the bundle, who signs.
    #[test]
    fn a_successor_is_announced_for_a_month_before_it_signs_and_the_old_one_stays_until_it_expires() {
        let mut ca = Authorities::make(START).unwrap();
        let first = ca.signing.certificate.clone();
        let mut story = Vec::new();
        for day in 0..=400 {
            if ca.advance(START + days(day)).unwrap() {
                let bundle = ca.bundle().matches("BEGIN CERTIFICATE").count();
                story.push((day, bundle, ca.signing.certificate == first));
            }
        }
        assert_eq!(story, [(245, 2, true), (275, 2, false), (365, 1, false)]);
    }

    #[test]
    fn during_a_renewal_clients_with_the_last_or_the_next_bundle_verify_the_leaf() {
        let mut ca = Authorities::make(START).unwrap();
        let mut last_month = ca.bundle();
        for month in 0..30 {
            let now = START + days(30 * month);
            ca.advance(now).unwrap();
            let leaf = ca.signing.issue(&names(), now).unwrap();
            assert!(verifies(&ca.bundle(), &leaf, "localhost", now), "fresh bundle, month {month}");
            assert!(verifies(&last_month, &leaf, "localhost", now), "bundle of last month, month {month}");
            last_month = ca.bundle();
        }
    }

    #[test]
    fn a_ca_of_a_clock_that_was_ahead_is_made_anew_once_and_both_are_trusted() {
        for (ahead, replaced) in [
            (SKEW, false),
            (SKEW + Duration::from_secs(1), true),
            (days(2), true),
            (days(300), true),
            (days(4000), true),
        ] {
            let mut ca = Authorities::make(START + ahead).unwrap();
            let first = ca.signing.certificate.clone();
            assert_eq!(ca.signing.check(START).is_err(), replaced, "{ahead:?}");
            assert_eq!(ca.advance(START).unwrap(), replaced, "{ahead:?}");
            assert_eq!((ca.signing.certificate == first, ca.bundle().contains(&first)), (!replaced, true));
            let leaf = ca.signing.issue(&names(), START).unwrap();
            assert!(verifies(&ca.bundle(), &leaf, "localhost", START), "{ahead:?}");
            assert_eq!((leaf.validity.check(START), leaf.ca.check(START)), (Ok(()), Ok(())));
            assert!(!ca.advance(START).unwrap(), "{ahead:?}: nothing is left to do");
            // Who is still ahead, or comes to be, has nothing to do with it, as long as it lives.
            let is_short = ahead >= days(300);
            assert!(is_short || !ca.advance(START + ahead).unwrap(), "{ahead:?}: no two clocks in turn");
        }
    }

    #[test]
    fn a_successor_of_a_clock_that_was_ahead_or_away_never_signs() {
        for (made, now) in [(250, 100), (250, 248), (250, 4000)] {
            let mut ca = Authorities::make(START).unwrap();
            assert!(ca.advance(START + days(made)).unwrap());
            let next = ca.next.as_ref().unwrap().certificate.clone();
            let now = START + days(now);
            assert!(ca.advance(now).unwrap());
            assert!(!ca.bundle().contains(&next) && ca.signing.check(now).is_ok(), "{now}");
            assert!(ca.next.as_ref().is_none_or(|next| next.check(now).is_ok()), "{now}");
        }
    }

    #[test]
    fn after_a_long_absence_the_next_ca_signs_at_once() {
        for away in [362, 365, 4000] {
            let mut ca = Authorities::make(START).unwrap();
            let now = START + days(away);
            assert!(ca.advance(now).unwrap());
            let leaf = ca.signing.issue(&names(), now).unwrap();
            assert_eq!(leaf.validity.to, now + LEAF_LIFE);
            assert!(verifies(&ca.bundle(), &leaf, "localhost", now));
            assert_eq!(ca.former.len(), usize::from(away < 365));
            assert!(!ca.advance(now).unwrap(), "nothing is left to do");
        }
    }
}
