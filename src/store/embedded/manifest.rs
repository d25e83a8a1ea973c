//! What the engine's manifests, tables and files of bodies look like, as far as their checksums go (format 3 of
//! lsm-tree).

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Bytes at the end of an archive, which a manifest is: `SFA!`, two numbers, a checksum, place and length of contents.
const TRAILER: usize = 38;
/// Bytes before the data of a block: `LSM` 3, type, checksum, two lengths, checksum of these.
const BLOCK_HEAD: usize = 33;
/// Bytes before key and value of a body: `BLOB`, checksum, number, three lengths.
const BODY_HEAD: usize = 38;

/// Which manifest a file `current` names, and its checksum. None: it is not one.
pub(super) fn current(bytes: &[u8]) -> Option<(u64, u128)> {
    let mut input = Input(bytes);
    let (number, sum, kind) = (input.u64()?, input.u128()?, input.u8()?);
    (kind == 0 && input.0.is_empty()).then_some((number, sum))
}

/// What a keyspace consists of: numbers and checksums.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub tables: Vec<(u64, u128)>,
    pub blobs: Vec<(u64, u128)>,
}

impl Manifest {
    /// None: it is not one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let contents = Contents::decode(bytes)?;
        let (mut tables, mut blobs) = (Vec::new(), Vec::new());
        let mut input = Input(contents.section(b"tables")?);
        for _ in 0..input.u8()? {
            for _ in 0..input.u8()? {
                for _ in 0..input.u32()? {
                    tables.push(input.file()?);
                    input.u64()?;
                }
            }
        }
        let mut input = Input(contents.section(b"blob_files")?);
        for _ in 0..input.u32()? {
            blobs.push(input.file()?);
        }
        Some(Self { tables, blobs })
    }
}

/// The sections of an archive.
struct Contents<'a> {
    bytes: &'a [u8],
    sections: Vec<(&'a [u8], usize, usize)>,
}

impl<'a> Contents<'a> {
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (_, trailer) = bytes.split_at_checked(bytes.len().checked_sub(TRAILER)?)?;
        let mut trailer = Input(trailer);
        if trailer.take(4)? != b"SFA!" || trailer.u8()? != 1 || trailer.u8()? != 0 {
            return None;
        }
        let (sum, at, length) = (trailer.u128()?, trailer.u64()?, trailer.u64()?);
        let (at, length) = (usize::try_from(at).ok()?, usize::try_from(length).ok()?);
        let list = bytes.get(at..)?.get(..length).filter(|list| xxh3_128(list) == sum)?;
        let mut list = Input(list);
        if list.take(4)? != b"TOC!" {
            return None;
        }
        let mut sections = Vec::new();
        for _ in 0..list.u32()? {
            let (at, length, name) = (list.u64()?, list.u64()?, list.u16()?);
            let name = list.take(usize::from(name))?;
            sections.push((name, usize::try_from(at).ok()?, usize::try_from(length).ok()?));
        }
        Some(Self { bytes, sections })
    }

    fn section(&self, name: &[u8]) -> Option<&'a [u8]> {
        let (_, at, length) = self.sections.iter().find(|(other, ..)| *other == name)?;
        self.bytes.get(*at..)?.get(..*length)
    }
}

/// Takes little-endian numbers from the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// Number, kind and value of a checksum.
    fn file(&mut self) -> Option<(u64, u128)> {
        let (number, kind, sum) = (self.u64()?, self.u8()?, self.u128()?);
        (kind == 0).then_some((number, sum))
    }
}

/// The first block or body of a table or of a file of bodies that is not what was written. None: it is in what stands
/// behind them.
pub(super) fn first_wrong(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let here = bytes.get(at..)?;
        match body(here).or_else(|| block(here)) {
            Some(Part::Whole(length)) => at += length,
            Some(Part::Wrong) => return Some(at),
            None if at == 0 => return Some(0),
            None => return None,
        }
    }
}

/// The keys in a file of bodies, up to the first that is not what was written.
pub(super) fn keys_of_bodies(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut at, mut keys) = (0, Vec::new());
    while let Some(here) = bytes.get(at..)
        && let Some(Part::Whole(length)) = body(here)
        && let Some(key) = here.get(28..30).and_then(|length| length.try_into().ok())
        && let Some(key) = here.get(BODY_HEAD..BODY_HEAD + usize::from(u16::from_le_bytes(key)))
    {
        keys.push(key);
        at += length;
    }
    keys
}

enum Part {
    Whole(usize),
    Wrong,
}

fn body(bytes: &[u8]) -> Option<Part> {
    let mut input = Input(bytes);
    input.take(4).filter(|magic| *magic == b"BLOB")?;
    let (sum, _number, key, _real, value) =
        (input.u128()?, input.u64()?, input.u16()?, input.u32()?, input.u32()?);
    let length = usize::from(key) + usize::try_from(value).ok()?;
    // Key and value together: they are hashed so.
    let is_whole = input.take(length).is_some_and(|data| xxh3_128(data) == sum);
    Some(if is_whole { Part::Whole(BODY_HEAD + length) } else { Part::Wrong })
}

fn block(bytes: &[u8]) -> Option<Part> {
    let mut input = Input(bytes);
    input.take(4).filter(|magic| *magic == b"LSM\x03")?;
    let (_kind, sum, length, _whole, head_sum) =
        (input.u8()?, input.u128()?, input.u32()?, input.u32()?, input.u32()?);
    let mut hash = Xxh3::new();
    hash.update(bytes.get(..BLOCK_HEAD - 4)?);
    let head_is_whole = hash.digest128().to_le_bytes().first_chunk() == Some(&head_sum.to_le_bytes());
    let length = usize::try_from(length).ok()?;
    let is_whole = head_is_whole && input.take(length).is_some_and(|data| xxh3_128(data) == sum);
    Some(if is_whole { Part::Whole(BLOCK_HEAD + length) } else { Part::Wrong })
}
