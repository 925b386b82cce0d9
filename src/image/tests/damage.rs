//! Damage of every kind to a small image: an error that names the file, never a panic.

use super::forge::Forged;
use super::samples;
use crate::image::error::ImageError;
use crate::image::{VERSION, files, wire};
use prost::Message;

fn sample() -> Forged {
    Forged::new(&samples::checkpoint())
}

/// The error of reading `image` mentions `name`.
#[track_caller]
fn blames(image: &Forged, name: &str) -> ImageError {
    let error = image.read().expect_err("damage was not noticed");
    assert!(error.to_string().contains(name), "{error} does not name {name}");
    error
}

#[test]
fn a_cut_at_every_byte_is_noticed() {
    for (i, file) in sample().0.iter().enumerate() {
        for length in 0..file.bytes.len() {
            let mut image = sample();
            image.0[i].bytes.truncate(length);
            blames(&image, &file.name);
        }
    }
}

#[test]
fn a_flip_of_every_bit_is_noticed() {
    for (i, file) in sample().0.iter().enumerate() {
        for bit in 0..file.bytes.len() * 8 {
            let mut image = sample();
            image.0[i].bytes[bit / 8] ^= 1 << (bit % 8);
            blames(&image, &file.name);
        }
    }
}

/// With a fresh checksum the flip reaches the parsers and checks behind it.
#[test]
fn a_flip_of_every_bit_that_was_resealed_is_survived() {
    let mut read = 0;
    for (i, file) in sample().0.iter().enumerate() {
        for bit in 0..file.bytes.len() * 8 {
            let mut image = sample();
            image.0[i].bytes[bit / 8] ^= 1 << (bit % 8);
            read += usize::from(image.reseal().read().is_ok());
        }
    }
    assert!(read > 100, "only {read} readable: are these images not resealed?");
}

#[test]
fn a_cut_that_was_resealed_is_noticed_inside_a_frame() {
    let whole = sample();
    for i in 0..whole.0.len() - 1 {
        for length in 9..whole.0[i].bytes.len() {
            let mut image = whole.clone();
            image.0[i].bytes.truncate(length);
            // Between two frames a shorter file is a valid one, with fewer services or mounts.
            if let Ok(checkpoint) = image.reseal().read() {
                assert_ne!(checkpoint, samples::checkpoint());
            }
        }
    }
}

#[test]
fn bytes_after_the_end_are_noticed() {
    for (i, file) in sample().0.iter().enumerate() {
        let mut image = sample();
        image.0[i].bytes.push(0);
        blames(&image, &file.name);
    }
}

#[test]
fn a_file_that_is_missing_is_named() {
    for (i, file) in sample().0.iter().enumerate() {
        let mut image = sample();
        image.0.remove(i);
        blames(&image, &file.name);
    }
}

#[test]
fn exchanged_files_are_noticed() {
    let mut image = sample();
    let bytes = image.0[1].bytes.clone();
    image.0[2].bytes = bytes;
    let name = image.0[2].name.clone();
    blames(&image.clone(), &name);
    let error = blames(&image.reseal(), &name);
    assert!(matches!(error, ImageError::Field { ref field, .. } if field == "dev_minor"), "{error}");
}

#[test]
fn a_newer_major_version_is_refused_with_a_sentence() {
    // What else is in its inventory need not be known: here `origin` has become a number.
    let mut first = wire::Version { major: Some(VERSION.major + 1), minor: Some(3) }.encode_to_vec();
    first.extend_from_slice(&[3 << 3, 42]);
    let mut bytes = Vec::new();
    for word in [crate::image::FRAME_MAGIC, crate::image::INVENTORY_MAGIC, first.len() as u32] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&first);
    let seal = wire::Seal { crc32: Some(crc32fast::hash(&bytes)) }.encode_to_vec();
    bytes.extend_from_slice(&(seal.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&seal);
    let mut image = sample();
    *image.file(files::INVENTORY) = bytes;
    assert_eq!(
        blames(&image, files::INVENTORY).to_string(),
        "autofs-cr-inventory.img: image version 2.3, this program reads version 1.x; \
         use the autofs-cr that wrote it"
    );
}

#[test]
fn fields_of_a_newer_minor_version_are_ignored() {
    let mut image = sample();
    for file in &mut image.0 {
        append_unknown_field(&mut file.bytes);
    }
    assert_eq!(image.reseal().read().unwrap(), samples::checkpoint());
}

/// Field 1000 = 7 at the end of a file's first message.
fn append_unknown_field(bytes: &mut Vec<u8>) {
    let field = [0xc0, 0x3e, 7];
    let size = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
    bytes[8..12].copy_from_slice(&(size + 3).to_le_bytes());
    let end = 12 + size as usize;
    bytes.splice(end..end, field);
}
