//! Paths and other bytes as text, for JSON and for terminals.
//!
//! The form is that of mountinfo: a byte that is not printable UTF-8, and the backslash, is `\ooo` (three octal
//! digits). Unlike there, a space stays a space. Every byte string survives the round trip.
//!
//! `#[serde(with = "crate::discover::escaped")]` writes a field so; see [`Escaped`] for the types.

use crate::sys::control::Token;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Bytes as text.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if is_plain(char) {
                text.push(char);
            } else {
                push_octal(&mut text, char.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        push_octal(&mut text, chunk.invalid());
    }
    text
}

/// The bytes again. A backslash without three octal digits after it stands for itself.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, after) = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), after)
            }
            _ => (first, tail),
        };
        bytes.push(byte);
        rest = after;
    }
    bytes
}

/// May this text be printed as it is? What [`escape`] makes always may.
pub fn is_printable(text: &str) -> bool {
    text.chars().all(|char| char == '\\' || is_plain(char))
}

/// Text that was put together for people: what [`is_printable`] would refuse in the form of [`escape`]; backslashes stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    if is_printable(text) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        match is_plain(char) || char == '\\' {
            true => shown.push(char),
            false => push_octal(&mut shown, char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(shown)
}

/// Shown as it is: what Rust's own debug form does not escape, and quotes.
fn is_plain(char: char) -> bool {
    match char {
        '\\' => false,
        '"' | '\'' => true,
        _ => char.escape_debug().len() == 1,
    }
}

fn push_octal(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // writing to a String cannot fail
        let _ = write!(text, "\\{byte:03o}");
    }
}

/// Types whose bytes are written as escaped text.
pub trait Escaped: Sized {
    /// The same shape with text in it.
    type Text: Serialize + DeserializeOwned;
    /// To text.
    fn to_text(&self) -> Self::Text;
    /// From text.
    fn from_text(text: Self::Text) -> Self;
}

impl Escaped for Vec<u8> {
    type Text = String;
    fn to_text(&self) -> String {
        escape(self)
    }
    fn from_text(text: String) -> Self {
        unescape(text.as_bytes())
    }
}

impl Escaped for OsString {
    type Text = String;
    fn to_text(&self) -> String {
        escape(self.as_bytes())
    }
    fn from_text(text: String) -> Self {
        OsString::from_vec(unescape(text.as_bytes()))
    }
}

impl Escaped for PathBuf {
    type Text = String;
    fn to_text(&self) -> String {
        escape(self.as_os_str().as_bytes())
    }
    fn from_text(text: String) -> Self {
        OsString::from_text(text).into()
    }
}

impl Escaped for Token {
    type Text = Token;
    fn to_text(&self) -> Token {
        *self
    }
    fn from_text(text: Token) -> Self {
        text
    }
}

impl<T: Escaped> Escaped for Option<T> {
    type Text = Option<T::Text>;
    fn to_text(&self) -> Self::Text {
        self.as_ref().map(T::to_text)
    }
    fn from_text(text: Self::Text) -> Self {
        text.map(T::from_text)
    }
}

impl<T: Escaped> Escaped for Vec<T> {
    type Text = Vec<T::Text>;
    fn to_text(&self) -> Self::Text {
        self.iter().map(T::to_text).collect()
    }
    fn from_text(text: Self::Text) -> Self {
        text.into_iter().map(T::from_text).collect()
    }
}

impl<A: Escaped, B: Escaped> Escaped for (A, B) {
    type Text = (A::Text, B::Text);
    fn to_text(&self) -> Self::Text {
        (self.0.to_text(), self.1.to_text())
    }
    fn from_text((a, b): Self::Text) -> Self {
        (A::from_text(a), B::from_text(b))
    }
}

/// For `#[serde(with)]`.
pub fn serialize<T: Escaped, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.to_text().serialize(serializer)
}

/// For `#[serde(with)]`.
pub fn deserialize<'de, T: Escaped, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::Text::deserialize(deserializer).map(T::from_text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn readable_stays_readable() {
        assert_eq!(escape("/mnt/my photos/ä".as_bytes()), "/mnt/my photos/ä");
        assert_eq!(escape(b"/a\\b\n\xff\x1b[31m"), r"/a\134b\012\377\033[31m");
        // direction marks would let one path look like another
        assert_eq!(escape("\u{202e}".as_bytes()), r"\342\200\256");
    }

    #[test]
    fn the_kernels_escapes_are_understood() {
        assert_eq!(unescape(br"/mnt/a\040b\011\012\134c\043"), b"/mnt/a b\t\n\\c#");
        assert_eq!(unescape(br"\04 \8\777\"), br"\04 \8\777\");
    }

    proptest! {
        #[test]
        fn every_byte_string_survives(bytes: Vec<u8>) {
            let text = escape(&bytes);
            prop_assert_eq!(unescape(text.as_bytes()), bytes.as_slice());
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert!(is_printable(&text));
            prop_assert_eq!(printable(&text), text.as_str());
            prop_assert!(is_printable(&printable(&String::from_utf8_lossy(&bytes))));
        }
    }
}
