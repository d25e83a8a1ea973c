//! Where a list goes on: opaque to clients, and good across restarts, since it names a line of the log and no
//! place in memory.

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::model::ids::DeliveryName;
use crate::server::status::{Failure, Reason};

/// Of what is in a token. One of another version cannot be gone on from.
const FORMAT: u8 = 1;
/// Tells a token of ours from anything else.
const OURS: u8 = 0xd1;

/// Stands for what a list asks for, but for its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListId([u8; 8]);

impl ListId {
    /// Of a list with these parts.
    pub(super) fn of(parts: &[&str]) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in parts {
            hash.update(&part.len().to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut id = [0; 8];
        id.iter_mut().zip(hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(id)
    }
}

/// Says that the list goes on with what is older than `oldest`.
pub(super) fn write(list: ListId, oldest: DeliveryName) -> String {
    let bytes: Vec<u8> = [&[OURS, FORMAT][..], oldest.as_bytes(), &list.0].concat();
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Where this list goes on.
pub(super) fn read(list: ListId, token: &str) -> Result<DeliveryName, Failure> {
    let malformed =
        || Failure::new(Reason::BadRequest, "continue is not a token of this API: list from the start");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| malformed())?;
    let after = bytes.strip_prefix(&[OURS]).ok_or_else(malformed)?;
    let (format, rest) = after.split_first().ok_or_else(malformed)?;
    if *format != FORMAT {
        let message = "the continue token is of another version of Hookwright: list from the start";
        return Err(Failure::new(Reason::Expired, message));
    }
    let (name, id) = rest.split_first_chunk::<16>().ok_or_else(malformed)?;
    match <[u8; 8]>::try_from(id).map(ListId) {
        Ok(id) if id == list => Ok(DeliveryName::from_bytes(*name)),
        Ok(_) => {
            let message = "the continue token is of another list: namespace and selectors must stay the same";
            Err(Failure::new(Reason::BadRequest, message))
        }
        Err(_) => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_on_in_its_own_list_only() {
        let name = DeliveryName::from_bytes([7; 16]);
        let list = ListId::of(&["team-a", "status.state=Failed", ""]);
        let token = write(list, name);
        assert_eq!(token, write(list, name), "also of another process");
        assert_eq!(read(list, &token), Ok(name));
        for other in [["team-b", "status.state=Failed", ""], ["team-a", "", "status.state=Failed"]] {
            assert_eq!(read(ListId::of(&other), &token).unwrap_err().reason, Reason::BadRequest);
        }
    }

    #[test]
    fn what_is_no_token_is_a_400_and_one_of_another_version_a_410() {
        let list = ListId::of(&[]);
        let of_version_2 = URL_SAFE_NO_PAD.encode([OURS, 2, 3]);
        for (token, reason) in [
            ("", Reason::BadRequest),
            ("!", Reason::BadRequest),
            ("0Q", Reason::BadRequest),
            ("0QEA", Reason::BadRequest),
            (&*(write(list, DeliveryName::from_bytes([7; 16])) + "AAAA"), Reason::BadRequest),
            (&*of_version_2, Reason::Expired),
        ] {
            assert_eq!(read(list, token).unwrap_err().reason, reason, "{token}");
        }
    }
}
