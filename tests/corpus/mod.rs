//! Reads the recorded traffic in `tests/data` (formats: the README there).

#![allow(dead_code)] // Each test file uses its own part.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// The files of `dir` whose names end in `suffix`, sorted.
pub fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(suffix))
        .collect();
    found.sort();
    found
}

pub fn gunzip(path: &Path) -> Bytes {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_end(&mut bytes)
        .unwrap();
    bytes.into()
}

struct Reader(Bytes);

impl Reader {
    fn take(&mut self, length: usize) -> Bytes {
        self.0.split_to(length)
    }

    fn number(&mut self, length: usize) -> u64 {
        let mut wide = [0; 8];
        wide[..length].copy_from_slice(&self.take(length));
        u64::from_le_bytes(wide)
    }

    fn sized(&mut self) -> Bytes {
        let length = self.number(4);
        self.take(length as usize)
    }
}

pub struct Message {
    pub t_us: u64,
    pub client: u16,
    pub channel: u8,
    pub direction: u8,
    pub frames: Vec<Bytes>,
}

pub fn messages(path: &Path) -> Vec<Message> {
    let mut reader = Reader(gunzip(path));
    assert_eq!(reader.take(8), "MUMSGS01");
    let (mut messages, mut blobs) = (Vec::new(), Vec::new());
    while !reader.0.is_empty() {
        let mut record = Reader(reader.sized());
        let mut message = Message {
            t_us: record.number(8),
            client: record.number(2) as u16,
            channel: record.number(1) as u8,
            direction: record.number(1) as u8,
            frames: Vec::new(),
        };
        for _ in 0..record.number(2) {
            let (tag, n) = (record.number(1), record.number(4) as usize);
            message.frames.push(match tag {
                0 => {
                    let frame = record.take(n);
                    if n >= 512 {
                        blobs.push(frame.clone());
                    }
                    frame
                }
                _ => blobs[n].clone(),
            });
        }
        messages.push(message);
    }
    messages
}

pub struct Case {
    pub metadata: serde_json::Value,
    pub before: Bytes,
    pub delta: Bytes,
    pub after: Bytes,
}

pub fn cases(path: &Path) -> Vec<Case> {
    read_cases(gunzip(path))
}

pub fn read_cases(bytes: Bytes) -> Vec<Case> {
    let mut reader = Reader(bytes);
    assert_eq!(reader.take(8), "MUDELTA1");
    let mut cases = Vec::new();
    while !reader.0.is_empty() {
        let count = reader.number(4);
        let parts: Vec<Bytes> = (0..count).map(|_| reader.sized()).collect();
        cases.push(Case {
            metadata: serde_json::from_slice(&parts[0]).unwrap(),
            before: parts[1].clone(),
            delta: parts[2].clone(),
            after: parts[3].clone(),
        });
    }
    cases
}
