//! One chunk of an outgoing message (a ZeroMQ frame).

use std::sync::Arc;

use bytes::Bytes;

/// Bytes of one chunk, possibly in several parts, so that a node's data is embedded in a larger chunk without being
/// copied and one encoded message is shared by all its receivers.
#[derive(Debug, Clone)]
pub enum Chunk {
    One(Bytes),
    Parts(Arc<[Bytes]>),
}

impl Chunk {
    /// The parts in order; the chunk is their concatenation.
    pub fn parts(&self) -> &[Bytes] {
        match self {
            Chunk::One(bytes) => std::slice::from_ref(bytes),
            Chunk::Parts(parts) => parts,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.parts().iter().map(Bytes::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole chunk in one piece; copies only where it has several parts.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Chunk::One(bytes) => bytes.clone(),
            Chunk::Parts(parts) => parts.concat().into(),
        }
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Chunk::One(bytes)
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(bytes: Vec<u8>) -> Self {
        Chunk::One(bytes.into())
    }
}
