//! How a large part lies in the chunk store: cut into chunks, which one more chunk, the index, lists.
//!
//! Owns the index's format and the rules of cutting. The log names the index only, so a part of any
//! size costs it one hash. Never touches a store.
//!
//! An index, all numbers little-endian: `CBIX`, version `u8` (1), layout `u8`, length of the part
//! `u64`; then for layout 0 the chunk length `u32` and the blake3 hashes, every chunk but the last of
//! that length; for layout 1 per chunk its length `u32` and its hash.

use bytes::{BufMut, Bytes, BytesMut};
use callboard_policy::terms::Hash;

/// Parts up to this size are one chunk.
pub(crate) const ONE_CHUNK_MAX: usize = 1 << 20;
/// Length of the chunks of a buffer, until they are too many. The Python side cuts alike.
const CHUNK_MIN: usize = 256 << 10;
/// Most chunks of one part; beyond, their length doubles. Their index is 64 KiB then.
const CHUNKS_MAX: usize = 2048;
/// Longest average of content-defined chunks: what the cutter allows.
const AVERAGE_MAX: usize = 4 << 20;
/// Longest chunk that an index may list; a store takes no longer ones.
const LISTED_CHUNK_MAX: u32 = 64 << 20;

const MAGIC: &[u8; 4] = b"CBIX";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 14;
const HASH_BYTES: usize = 32;

/// An index cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// It was written by a later version.
    #[error(
        "an index of chunks has version {0}, this node reads version {VERSION}: update the node"
    )]
    Version(u8),
    /// It is something else.
    #[error("a chunk that should be an index of chunks is not one: {0}")]
    Malformed(&'static str),
}

/// The chunks of one part in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkList {
    /// Length of all chunks but the last, if they were cut by length.
    fixed: Option<u32>,
    chunks: Vec<(Hash, u32)>,
}

impl ChunkList {
    /// Cuts a buffer into chunks of equal length.
    pub(crate) fn cut_evenly(bytes: &Bytes) -> (Self, Vec<Bytes>) {
        let mut length = CHUNK_MIN;
        while bytes.len() > length * CHUNKS_MAX {
            length *= 2;
        }
        let pieces: Vec<Bytes> = (0..bytes.len())
            .step_by(length)
            .map(|start| bytes.slice(start..bytes.len().min(start + length)))
            .collect();
        let fixed = u32::try_from(length).ok();
        (Self { fixed, chunks: pieces.iter().map(named).collect() }, pieces)
    }

    /// Cuts a stream where its content says so: an insertion moves the cuts around it only.
    pub(crate) fn cut_by_content(bytes: &Bytes) -> (Self, Vec<Bytes>) {
        let mut average = CHUNK_MIN;
        while bytes.len() > average * CHUNKS_MAX && average < AVERAGE_MAX {
            average *= 2;
        }
        let cuts = fastcdc::v2020::FastCDC::new(bytes, average / 4, average, average * 4);
        let pieces: Vec<Bytes> =
            cuts.map(|cut| bytes.slice(cut.offset..cut.offset + cut.length)).collect();
        (Self { fixed: None, chunks: pieces.iter().map(named).collect() }, pieces)
    }

    /// The same list with one chunk replaced. None unless the new one has the old one's length.
    pub(crate) fn replace(&mut self, index: usize, piece: &Bytes) -> Option<bool> {
        let (hash, length) = named(piece);
        let (old, _) = self.chunks.get_mut(index).filter(|(_, old)| *old == length)?;
        let differs = *old != hash;
        *old = hash;
        Some(differs)
    }

    /// Hashes in their order.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = Hash> {
        self.chunks.iter().map(|(hash, _)| *hash)
    }

    /// Length of the chunk at `index`.
    pub(crate) fn length_at(&self, index: usize) -> Option<usize> {
        self.chunks.get(index).map(|(_, length)| *length as usize)
    }

    /// The chunk length if all have it, but perhaps the last.
    pub(crate) fn fixed(&self) -> Option<u32> {
        self.fixed
    }

    /// Length of the part.
    pub(crate) fn length(&self) -> u64 {
        self.chunks.iter().map(|(_, length)| u64::from(*length)).sum()
    }

    /// The index.
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + 4 + 36 * self.chunks.len());
        bytes.put_slice(MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u8(u8::from(self.fixed.is_none()));
        bytes.put_u64_le(self.length());
        if let Some(fixed) = self.fixed {
            bytes.put_u32_le(fixed);
        }
        for (hash, length) in &self.chunks {
            if self.fixed.is_none() {
                bytes.put_u32_le(*length);
            }
            bytes.put_slice(hash);
        }
        bytes.freeze()
    }

    /// Reads an index.
    ///
    /// # Errors
    /// [`IndexError`].
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let bad = IndexError::Malformed;
        let rest = bytes.strip_prefix(MAGIC.as_slice()).ok_or(bad("its first bytes differ"))?;
        let (&version, rest) = rest.split_first().ok_or(bad("it is cut off"))?;
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        let (&layout, rest) = rest.split_first().ok_or(bad("it is cut off"))?;
        let (length, rest) = rest.split_first_chunk::<8>().ok_or(bad("it is cut off"))?;
        let length = u64::from_le_bytes(*length);
        let list = match layout {
            0 => Self::decode_even(length, rest)?,
            1 => Self::decode_varied(rest)?,
            _ => return Err(bad("its layout is unknown")),
        };
        if list.chunks.iter().any(|(_, length)| *length == 0 || *length > LISTED_CHUNK_MAX) {
            return Err(bad("a chunk of no length or more than a store takes"));
        }
        if list.length() == length { Ok(list) } else { Err(bad("its lengths do not add up")) }
    }

    fn decode_even(mut left: u64, rest: &[u8]) -> Result<Self, IndexError> {
        let bad = IndexError::Malformed("it is cut off");
        let (fixed, rest) = rest.split_first_chunk::<4>().ok_or(bad.clone())?;
        let fixed = u32::from_le_bytes(*fixed);
        let (hashes, odd) = rest.as_chunks::<HASH_BYTES>();
        if !odd.is_empty() {
            return Err(bad);
        }
        let chunks = hashes.iter().map(|hash| {
            let length = u32::try_from(left).unwrap_or(u32::MAX).min(fixed);
            left -= u64::from(length);
            (*hash, length)
        });
        Ok(Self { chunks: chunks.collect(), fixed: Some(fixed) })
    }

    fn decode_varied(rest: &[u8]) -> Result<Self, IndexError> {
        let (entries, odd) = rest.as_chunks::<{ HASH_BYTES + 4 }>();
        if !odd.is_empty() {
            return Err(IndexError::Malformed("it is cut off"));
        }
        let chunk = |entry: &[u8; HASH_BYTES + 4]| {
            let (length, hash) = entry.split_first_chunk::<4>()?;
            Some((*hash.first_chunk::<HASH_BYTES>()?, u32::from_le_bytes(*length)))
        };
        Ok(Self { fixed: None, chunks: entries.iter().filter_map(chunk).collect() })
    }
}

fn named(piece: &Bytes) -> (Hash, u32) {
    (*blake3::hash(piece).as_bytes(), u32::try_from(piece.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without a pattern, from a seed.
    fn noise(seed: u64, length: usize) -> Bytes {
        let mut reader =
            blake3::Hasher::new_derive_key("test").update(&seed.to_le_bytes()).finalize_xof();
        let mut bytes = vec![0; length];
        reader.fill(&mut bytes);
        bytes.into()
    }

    #[test]
    fn an_index_reads_as_it_was_written_in_both_layouts() {
        let bytes = noise(1, 3 * CHUNK_MIN + 17);
        for (list, pieces) in [ChunkList::cut_evenly(&bytes), ChunkList::cut_by_content(&bytes)] {
            assert_eq!(pieces.concat(), bytes);
            assert_eq!(ChunkList::decode(&list.encode()), Ok(list.clone()));
            assert_eq!(list.length(), bytes.len() as u64);
        }
    }

    #[test]
    fn an_index_keeps_its_first_version() {
        let even = ChunkList { fixed: Some(2), chunks: vec![([0xaa; 32], 2), ([0xbb; 32], 1)] };
        let head = "43424958".to_owned() + "01" + "00" + "0300000000000000" + "02000000";
        assert_eq!(hex::encode(even.encode()), head + &"aa".repeat(32) + &"bb".repeat(32));
        let varied = ChunkList { fixed: None, chunks: vec![([0xaa; 32], 1), ([0xbb; 32], 2)] };
        let head = "43424958".to_owned() + "01" + "01" + "0300000000000000";
        let chunks = "01000000".to_owned() + &"aa".repeat(32) + "02000000" + &"bb".repeat(32);
        assert_eq!(hex::encode(varied.encode()), head + &chunks);
    }

    #[test]
    fn a_damaged_index_is_refused_with_a_sentence() {
        let (list, _) = ChunkList::cut_evenly(&noise(2, 2 * CHUNK_MIN));
        let good = list.encode();
        for cut in 0..good.len() {
            assert!(ChunkList::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut later = good.to_vec();
        later[4] = 2;
        assert_eq!(ChunkList::decode(&later), Err(IndexError::Version(2)));
        let mut longer = good.to_vec();
        longer[6] ^= 1;
        assert!(ChunkList::decode(&longer).is_err());
    }

    #[test]
    fn the_index_of_a_huge_part_stays_small() {
        let length = |part: usize| {
            let mut length = CHUNK_MIN;
            while part > length * CHUNKS_MAX {
                length *= 2;
            }
            part.div_ceil(length) * HASH_BYTES
        };
        assert!([500 << 20, 20 << 30, 64 << 30].into_iter().all(|part| length(part) <= 64 << 10));
    }

    #[test]
    fn an_insertion_leaves_most_content_defined_chunks_as_they_are() {
        let before = noise(3, 8 << 20);
        let after = Bytes::from([&before[..1 << 20], b"inserted", &before[1 << 20..]].concat());
        let (old, _) = ChunkList::cut_by_content(&before);
        let (new, _) = ChunkList::cut_by_content(&after);
        let fresh = new.hashes().filter(|hash| !old.hashes().any(|it| it == *hash)).count();
        assert!(fresh <= 4, "{fresh} of {} chunks are new", new.chunks.len());
    }
}
