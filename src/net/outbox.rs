//! Messages to frames, gathered for vectored writes. No sockets.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::zmtp::{FLAG_LONG, FLAG_MORE};
use crate::wire::Chunk;

/// Slices given to the kernel in one call.
pub const MAX_SLICES: usize = 64;
/// Bytes that are framed ahead of the kernel; more would only delay what the session still may replace.
pub const FULL: usize = 1024 * 1024;
/// A part up to this many bytes is copied beside its frame header: cheaper than one more slice and reference.
const COPY: usize = 2 * 1024;
/// Copied bytes are closed to a piece at this size, so that what is written of them can be reported.
const PIECE: usize = 64 * 1024;

/// What is on its way to one connection, framed.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Framed as the tcp dialect does, not by ZMTP.
    tcp: bool,
    pieces: VecDeque<Piece>,
    /// Headers and small parts that are not a piece yet.
    open: BytesMut,
    open_weight: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// Weight of the messages that end in this piece.
    weight: usize,
}

impl Outbox {
    /// One that frames as the tcp dialect does.
    pub fn tcp() -> Self {
        Outbox {
            tcp: true,
            ..Outbox::default()
        }
    }

    /// Appends a message, which has at least one chunk.
    pub fn push(&mut self, chunks: &[Chunk], weight: usize) {
        let last = chunks.len().saturating_sub(1);
        if self.tcp {
            self.put_number(chunks.len());
        }
        for (index, chunk) in chunks.iter().enumerate() {
            if self.tcp {
                self.put_number(chunk.len());
            } else {
                self.put_frame_header(index < last, chunk.len());
            }
            for part in chunk.parts() {
                if part.len() <= COPY {
                    self.open.put_slice(part);
                } else {
                    self.seal();
                    self.add(part.clone(), 0);
                }
            }
        }
        match self.pieces.back_mut() {
            Some(piece) if self.open.is_empty() => piece.weight += weight,
            _ => self.open_weight += weight,
        }
        if self.open.len() >= PIECE {
            self.seal();
        }
    }

    fn put_frame_header(&mut self, more: bool, len: usize) {
        let more = if more { FLAG_MORE } else { 0 };
        match u8::try_from(len) {
            Ok(len) => self.open.put_slice(&[more, len]),
            Err(_) => {
                self.open.put_u8(more | FLAG_LONG);
                self.open.put_u64(len as u64);
            }
        }
    }

    /// A count or a length of the tcp dialect. What does not fit in is far above every limit on the way in.
    fn put_number(&mut self, number: usize) {
        self.open.put_u32(u32::try_from(number).unwrap_or(u32::MAX));
    }

    /// Appends a ZMTP command, written by `write`.
    pub fn command(&mut self, write: impl FnOnce(&mut BytesMut)) {
        write(&mut self.open);
    }

    /// Closes the open bytes to a piece; needed before [`Outbox::slices`].
    pub fn seal(&mut self) {
        if !self.open.is_empty() {
            let bytes = self.open.split().freeze();
            let weight = std::mem::take(&mut self.open_weight);
            self.add(bytes, weight);
        }
    }

    fn add(&mut self, bytes: Bytes, weight: usize) {
        self.bytes += bytes.len();
        self.pieces.push_back(Piece { bytes, weight });
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.open.is_empty()
    }

    /// Whether to write before anything more is pushed.
    pub fn is_full(&self) -> bool {
        self.bytes >= FULL || self.pieces.len() >= MAX_SLICES
    }

    /// Fills in what the next vectored write is to write and says how many slices that are.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(&piece.bytes);
            filled += 1;
        }
        filled
    }

    /// Forgets `written` bytes and returns the weight of the messages that are thereby complete.
    pub fn advance(&mut self, mut written: usize) -> usize {
        let mut weight = 0;
        while let Some(piece) = self.pieces.front_mut() {
            let step = written.min(piece.bytes.len());
            written -= step;
            self.bytes -= step;
            if step < piece.bytes.len() {
                piece.bytes.advance(step);
                break;
            }
            weight += piece.weight;
            self.pieces.pop_front();
        }
        weight
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;

    /// Writes everything, at most `step` bytes at once: the bytes, and the weight after each write.
    pub fn drain(outbox: &mut Outbox, step: usize) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut weights = Vec::new();
        outbox.seal();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let filled = outbox.slices(&mut slices);
            let all: Vec<u8> = slices[..filled]
                .iter()
                .flat_map(|slice| slice.to_vec())
                .collect();
            let written = all.len().min(step);
            bytes.extend_from_slice(&all[..written]);
            weights.push(outbox.advance(written));
        }
        assert_eq!(outbox.bytes, 0);
        (bytes, weights)
    }

    #[test]
    fn frames_are_as_zmtp_wants_them() {
        let mut outbox = Outbox::default();
        let parts = [
            Bytes::from_static(b"a"),
            Bytes::new(),
            Bytes::from_static(b"b"),
        ];
        outbox.push(
            &[
                Chunk::Parts(Arc::new(parts)),
                Chunk::from(vec![]),
                Chunk::from(vec![b'x'; 256]),
            ],
            1,
        );
        let (bytes, _) = drain(&mut outbox, usize::MAX);
        let expected = [
            &b"\x01\x02ab\x01\x00\x02\0\0\0\0\0\0\x01\x00"[..],
            &[b'x'; 256],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn small_messages_are_one_slice_and_large_parts_are_shared() {
        let mut outbox = Outbox::default();
        for _ in 0..50 {
            outbox.push(&[Chunk::from(vec![1; 10]), Chunk::from(vec![2; 200])], 1);
        }
        outbox.seal();
        assert_eq!(outbox.pieces.len(), 1);
        let large = Bytes::from(vec![3; 100_000]);
        outbox.push(&[Chunk::from(large.clone())], 1);
        outbox.seal();
        let last = outbox.pieces.back().unwrap();
        assert_eq!(last.bytes.as_ptr(), large.as_ptr());
    }

    #[test]
    fn weight_is_told_when_its_message_is_complete() {
        let mut outbox = Outbox::default();
        outbox.push(&[Chunk::from(vec![1; 10])], 1);
        outbox.push(
            &[Chunk::from(vec![2; 5000]), Chunk::from(vec![3; 5000])],
            20,
        );
        outbox.push(&[Chunk::from(vec![4; 10])], 300);
        outbox.command(|out| out.put_slice(b"xx"));
        let (bytes, weights) = drain(&mut outbox, 1000);
        assert_eq!(bytes.len(), 12 + 2 * 5009 + 12 + 2);
        assert_eq!(weights.iter().sum::<usize>(), 321);
        let (last, before) = weights.split_last().unwrap();
        // The first message's piece holds the second one's header, so it is told with the first write.
        assert_eq!((before[0], *last), (1, 320));
        assert!(before[1..].iter().all(|weight| *weight == 0));
    }

    #[test]
    fn it_is_full_at_some_point() {
        let mut outbox = Outbox::default();
        let mut pushed = 0;
        while !outbox.is_full() {
            outbox.push(&[Chunk::from(vec![1; 100])], 1);
            pushed += 1;
        }
        assert!(pushed >= FULL / 110);
        assert!(outbox.bytes < FULL + 2 * PIECE);
    }
}
