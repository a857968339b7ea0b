//! The journal: numbered files of checksummed records, only ever appended to.
//!
//! ```text
//! NNNNNNNN.log   header: "MUJRNL01" · u64 previous segment · u64 previous offset · u32 crc of these
//!                frames: u32 length · u32 crc of the payload · payload (an encoded `record::Entry`)
//! ```
//! All numbers are little endian. The header says where the journal was when the segment began, so that a missing
//! or exchanged segment is noticed. Reading is in `replay`.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::disk::{Disk, DiskFile};
use super::record::Entry;

/// The format's name and version.
pub(super) const MAGIC: &[u8; 8] = b"MUJRNL01";

/// Bytes of a segment's header and of a frame's.
pub(super) const HEADER: u64 = 28;
pub(super) const FRAME: u64 = 8;

/// Bodies of fewer bytes are copied together, so that many small records are one write.
const COPIED: usize = 4096;

/// A place in the journal. Later ones are greater.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    pub segment: u64,
    /// Bytes from the start of the segment's file.
    pub offset: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

pub(super) fn segment_path(directory: &Path, segment: u64) -> PathBuf {
    directory.join(segment_name(segment))
}

fn segment_name(segment: u64) -> String {
    format!("{segment:08}.log")
}

/// The numbers of the segments that are there, in order.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
        let number = number.and_then(|number| number.parse().ok());
        // Others are not ours, though they may look like it.
        found.extend(number.filter(|number| name == *segment_name(*number)));
    }
    found.sort_unstable();
    Ok(found)
}

/// Where records are appended.
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    file: Arc<dyn DiskFile>,
    /// The end of the last whole record.
    position: Position,
}

impl Writer {
    /// Begins a segment that continues the journal from `previous`, with this number or the next that is free.
    pub fn start(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        mut segment: u64,
        previous: Position,
    ) -> io::Result<Writer> {
        // What an earlier failure left.
        while segment_path(&directory, segment).exists() {
            segment = segment.saturating_add(1);
        }
        let path = segment_path(&directory, segment);
        let file = disk.create(&path)?;
        let mut header = Vec::new();
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&previous.segment.to_le_bytes());
        header.extend_from_slice(&previous.offset.to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        if let Err(error) = file.append(&mut [IoSlice::new(&header)]) {
            // Only its name is left, and that may be used again.
            drop(file);
            let _ = disk.remove(&path);
            return Err(error);
        }
        Ok(Writer {
            disk,
            directory,
            file,
            position: Position {
                segment,
                offset: HEADER,
            },
        })
    }

    /// Ends this segment and begins the next.
    pub fn rotate(&mut self) -> io::Result<()> {
        let next = self.position.segment.saturating_add(1);
        *self = Writer::start(
            self.disk.clone(),
            self.directory.clone(),
            next,
            self.position,
        )?;
        Ok(())
    }

    pub fn position(&self) -> Position {
        self.position
    }

    /// Bytes in this segment.
    pub fn len(&self) -> u64 {
        self.position.offset
    }

    pub fn file(&self) -> Arc<dyn DiskFile> {
        self.file.clone()
    }

    /// Hands records to the kernel, all of them or, after an error, none.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut batch = Batch::default();
        entries.iter().for_each(|entry| batch.push(entry));
        let length = batch.length;
        if let Err(error) = self.file.append(&mut batch.parts()) {
            // A torn record would be cut at the next start just as well.
            let _ = self.file.truncate(self.position.offset);
            return Err(error);
        }
        self.position.offset += length;
        Ok(())
    }
}

/// Frames on their way to the file: small ones in one buffer, large bodies as they are.
#[derive(Default)]
struct Batch {
    parts: Vec<Bytes>,
    small: Vec<u8>,
    length: u64,
}

impl Batch {
    fn push(&mut self, entry: &Entry) {
        let encoded = entry.encode();
        let length = encoded.head.len() + encoded.body.len();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&encoded.head);
        crc.update(&encoded.body);
        // A record is little longer than a message, which is limited to 512 MiB.
        let announced = u32::try_from(length).unwrap_or(u32::MAX);
        self.small.extend_from_slice(&announced.to_le_bytes());
        self.small.extend_from_slice(&crc.finalize().to_le_bytes());
        self.small.extend_from_slice(&encoded.head);
        if encoded.body.len() < COPIED {
            self.small.extend_from_slice(&encoded.body);
        } else {
            self.parts.push(std::mem::take(&mut self.small).into());
            self.parts.push(encoded.body);
        }
        self.length += FRAME + length as u64;
    }

    fn parts(&mut self) -> Vec<IoSlice<'_>> {
        self.parts.push(std::mem::take(&mut self.small).into());
        self.parts
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| IoSlice::new(part))
            .collect()
    }
}
