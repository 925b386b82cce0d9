//! Images in memory that `pack` would never make.

use crate::image::checkpoint::Checkpoint;
use crate::image::error::ImageError;
use crate::image::framing::{MOUNT_MAGIC, SERVICES_MAGIC, Writer};
use crate::image::pack::{self, File, unpack};
use crate::image::{convert, files, wire};
use prost::Message;

/// The files of an image, the inventory last.
#[derive(Clone)]
pub struct Forged(pub Vec<File>);

impl Forged {
    /// The files of a checkpoint, checked by nobody.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        Self(pack::encode(checkpoint))
    }

    pub fn read(&self) -> Result<Checkpoint, ImageError> {
        unpack(|name, _| {
            let file = self.0.iter().rfind(|file| file.name == name);
            let bytes = file.map(|file| file.bytes.clone());
            let bytes = bytes.ok_or_else(|| ImageError::Missing { file: name.to_owned() })?;
            Ok(bytes)
        })
    }

    pub fn file(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.0.iter_mut().find(|file| file.name == name).unwrap().bytes
    }

    /// A new inventory with the true lengths and checksums, as one would write who forges an image.
    pub fn reseal(mut self) -> Self {
        let origin = super::samples::checkpoint().origin;
        self.0.pop();
        self.0.push(pack::inventory(&origin, &self.0));
        self
    }

    /// Instead of a file: these messages.
    pub fn with_mounts(mut self, name: &str, messages: &[impl Message]) -> Self {
        *self.file(name) = framed(MOUNT_MAGIC, messages);
        self.reseal()
    }

    pub fn with_services(mut self, messages: &[impl Message]) -> Self {
        *self.file(files::SERVICES) = framed(SERVICES_MAGIC, messages);
        self.reseal()
    }
}

fn framed(magic: u32, messages: &[impl Message]) -> Vec<u8> {
    let mut file = Writer::new(magic);
    messages.iter().for_each(|message| file.push(message));
    file.finish()
}

/// The message of the sample's first mount.
pub fn first_mount() -> wire::AutofsEntry {
    convert::encode_mount(0, &super::samples::checkpoint().mounts[0])
}

/// Its file.
pub const FIRST: &str = "autofs-57.img";
