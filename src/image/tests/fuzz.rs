//! Files of an image changed at random, with fresh checksums, so that the parsers and checks behind see them.

use super::forge::Forged;
use super::samples;
use crate::image::pack::pack;

#[path = "../../../tests/fuzz/mutate.rs"]
mod mutate;

#[test]
fn changed_files_are_survived() {
    let sample = Forged::new(&samples::checkpoint());
    // An input is the number of a file, and what is in it.
    let seeds =
        sample.0.iter().enumerate().map(|(i, file)| [&[i as u8], file.bytes.as_slice()].concat()).collect();
    mutate::fuzz("image", seeds, &[], |input| {
        let Some((which, bytes)) = input.split_first() else { return };
        let which = usize::from(*which) % sample.0.len();
        let mut image = sample.clone();
        image.0[which].bytes = bytes.to_vec();
        // The last one is the inventory itself.
        let image = if which + 1 < sample.0.len() { image.reseal() } else { image };
        if let Ok(checkpoint) = image.read() {
            // What can be read can be written, and is the same then.
            let again = Forged(pack(&checkpoint).unwrap()).read().unwrap();
            assert_eq!(again, checkpoint);
        }
    });
}
