//! Values as RFC 4506 encodes them.

/// The bytes end too early, or a length says more than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is damaged or too long")]
pub struct Malformed;

/// Append a number.
pub fn put_u32(to: &mut Vec<u8>, value: u32) {
    to.extend_from_slice(&value.to_be_bytes());
}

/// Append bytes with their length, filled up to four.
pub fn put_opaque(to: &mut Vec<u8>, bytes: &[u8]) {
    // Arguments of calls are short; one of 4 GiB would be refused for its size.
    put_u32(to, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    to.extend_from_slice(bytes);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// Reads values one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Of encoded bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// A number.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        let (word, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*word))
    }

    /// Bytes with their length.
    pub fn opaque(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        let filled = length.checked_next_multiple_of(4).ok_or(Malformed)?;
        let bytes = self.0.get(..filled).ok_or(Malformed)?;
        self.0 = &self.0[filled..];
        Ok(&bytes[..length])
    }

    /// An optional value: is it there? The elements of a list are chained this way.
    pub fn more(&mut self) -> Result<bool, Malformed> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// What has not been read.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive() {
        let mut bytes = Vec::new();
        put_u32(&mut bytes, 7);
        put_opaque(&mut bytes, b"/export");
        put_opaque(&mut bytes, b"");
        assert_eq!(bytes.len(), 4 + 4 + 8 + 4);
        let mut reader = Reader::new(&bytes);
        assert_eq!(
            (reader.u32(), reader.opaque(), reader.opaque()),
            (Ok(7), Ok(&b"/export"[..]), Ok(&b""[..]))
        );
        assert_eq!(reader.rest(), b"");
    }

    #[test]
    fn what_is_cut_short_is_malformed() {
        assert_eq!(Reader::new(&[0, 0, 1]).u32(), Err(Malformed));
        assert_eq!(Reader::new(&[0, 0, 0, 5, 1, 2, 3, 4, 5]).opaque(), Err(Malformed));
        assert_eq!(Reader::new(&[255, 255, 255, 255, 0]).opaque(), Err(Malformed));
        assert_eq!(Reader::new(&[0, 0, 0, 2]).more(), Err(Malformed));
    }
}
