//! CRIU's framing: two magics, then messages, each after its length; all numbers little endian.
//!
//! ```text
//! 0       4     8       12
//! +-------+-----+-------+---------+-------+---------+--
//! | FRAME | own | size  | message | size  | message | ...
//! | magic |magic| (u32) |         | (u32) |         |
//! +-------+-----+-------+---------+-------+---------+--
//! ```

use super::LIMITS;
use super::error::ImageError;
use prost::Message;

/// First word of every image, ours and CRIU's.
pub const FRAME_MAGIC: u32 = 0x5456_4319;
/// Second word of `autofs-<s_dev>.img`, CRIU's and ours, and of `autofs-cr-mounts.img`.
pub const MOUNT_MAGIC: u32 = 0x4935_3943;
/// Second word of `autofs-cr-inventory.img`: "AFCI".
pub const INVENTORY_MAGIC: u32 = u32::from_le_bytes(*b"AFCI");
/// Second word of `autofs-cr-services.img`: "AFCS".
pub const SERVICES_MAGIC: u32 = u32::from_le_bytes(*b"AFCS");

/// Fields that a message may have without being charged for: more than any of ours has, lists aside.
const FREE_FIELDS: usize = 64;

/// Makes the bytes of one image file.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// A file with this own magic and no message yet.
    pub fn new(magic: u32) -> Self {
        Self([FRAME_MAGIC.to_le_bytes(), magic.to_le_bytes()].concat())
    }

    /// More messages for a file that was begun.
    pub fn more() -> Self {
        Self(Vec::new())
    }

    /// Append a message.
    pub fn push(&mut self, message: &impl Message) {
        // A message over 4 GiB would wrap here; the file is over its size limit long before.
        let size = message.encoded_len() as u32;
        self.0.extend_from_slice(&size.to_le_bytes());
        // It fails for want of room only, and a vector grows.
        let _ = message.encode(&mut self.0);
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The finished file.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// One message, still encoded.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    file: &'a str,
    /// Of its first byte in the file.
    pub offset: usize,
    bytes: &'a [u8],
}

/// Splits a file into its messages; the iterator ends after the first error.
#[derive(Debug)]
pub struct Frames<'a> {
    file: &'a str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Frames<'a> {
    /// Check the magics of `bytes`, which came from `file`.
    pub fn open(file: &'a str, bytes: &'a [u8], magic: u32) -> Result<Self, ImageError> {
        let mut frames = Self { file, bytes, offset: 0 };
        for expected in [FRAME_MAGIC, magic] {
            let offset = frames.offset;
            let found = frames.word()?;
            if found != expected {
                return Err(ImageError::Magic { file: file.to_owned(), offset, found, expected });
            }
        }
        Ok(frames)
    }

    fn take(&mut self, wanted: usize) -> Result<&'a [u8], ImageError> {
        let rest = &self.bytes[self.offset..];
        let taken = rest.get(..wanted).ok_or_else(|| ImageError::Truncated {
            file: self.file.to_owned(),
            offset: self.offset,
            wanted,
            left: rest.len(),
        })?;
        self.offset += wanted;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, ImageError> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)))
    }

    fn frame(&mut self) -> Result<Frame<'a>, ImageError> {
        let size = self.word()? as usize;
        let offset = self.offset;
        let bytes = self.take(size)?;
        Ok(Frame { file: self.file, offset, bytes })
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset == self.bytes.len() {
            return None;
        }
        let frame = self.frame();
        if frame.is_err() {
            self.offset = self.bytes.len();
        }
        Some(frame)
    }
}

impl Frame<'_> {
    /// What comes before this frame in its file, whose bytes are `file`.
    pub fn before<'b>(&self, file: &'b [u8]) -> &'b [u8] {
        &file[..self.offset - 4]
    }

    /// Decode it. Every field above [`FREE_FIELDS`] costs one of `budget`, so that small input
    /// cannot become large lists; lists inside the fields `nested` are counted as well.
    pub fn decode<M: Message + Default>(&self, nested: &[u64], budget: &mut usize) -> Result<M, ImageError> {
        let enough = budget.saturating_add(FREE_FIELDS);
        match count_fields(self.bytes, nested, enough) {
            Some(count) if count <= enough => *budget -= count.saturating_sub(FREE_FIELDS),
            Some(_) => {
                return Err(ImageError::TooMany {
                    file: self.file.to_owned(),
                    offset: self.offset,
                    limit: LIMITS.entries,
                });
            }
            None => return Err(self.malformed("not in protobuf's wire format")),
        }
        M::decode(self.bytes).map_err(|error| self.malformed(error))
    }

    fn malformed(&self, why: impl ToString) -> ImageError {
        ImageError::Message { file: self.file.to_owned(), offset: self.offset, why: why.to_string() }
    }
}

/// The number of fields of a message and of those inside its fields `nested`; counting ends soon
/// after `enough`. `None`: not protobuf.
fn count_fields(mut message: &[u8], nested: &[u64], enough: usize) -> Option<usize> {
    let mut count = 0;
    while !message.is_empty() && count <= enough {
        count += 1;
        let key = varint(&mut message)?;
        let length = match key & 7 {
            0 => {
                varint(&mut message)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let content = message.get(..length)?;
        message = &message[length..];
        if key & 7 == 2 && nested.contains(&(key >> 3)) {
            count += count_fields(content, &[], enough - count.min(enough))?;
        }
    }
    Some(count)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
