//! Why a pickle is refused.

use std::fmt;

use super::{MAX_DEPTH, MAX_SHARED_PER_BYTE, MAX_VALUES};

/// Why a pickle was refused, and at which byte.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pickle refused at byte {offset}: {problem}")]
pub struct PickleError {
    /// Where the offending opcode starts.
    pub offset: usize,
    pub problem: Problem,
}

/// What was wrong; the texts are meant for the operator's log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("it ends in the middle of {0}")]
    Truncated(&'static str),
    #[error("{name} says {length} bytes follow, but only {left} do")]
    LengthBeyondEnd {
        name: &'static str,
        length: u64,
        left: usize,
    },
    #[error("it does not start as protocol 2 to 5")]
    Protocol,
    #[error("opcode {0} can run code or build objects and is never accepted here")]
    Forbidden(OpcodeName),
    #[error("opcode {0} is not used by any client")]
    Unexpected(OpcodeName),
    #[error("it imports {0}, which is not on the short list of names a delta may use")]
    ForbiddenName(String),
    #[error("{0} is applied to the wrong kind of object")]
    Misapplied(&'static str),
    #[error("a string is not UTF-8")]
    NotUtf8,
    #[error("{0} finds too little on the stack")]
    StackUnderflow(&'static str),
    #[error("a memo entry is fetched that was never stored, or one is stored out of order")]
    Memo,
    #[error("a container holds itself, or changes after it was put into another one")]
    Cycle,
    #[error("a dict key or set member is unhashable")]
    Unhashable,
    #[error("containers are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("it holds more than {MAX_VALUES} values")]
    TooManyValues,
    #[error("its memo references blow it up beyond {MAX_SHARED_PER_BYTE} values per byte")]
    TooMuchSharing,
    #[error("{0} bytes follow its end")]
    TrailingBytes(usize),
    #[error("objects are left over at its end")]
    Leftovers,
    #[error("a delta is a dict, this is a {0}")]
    NotADelta(&'static str),
    #[error("no version of deepdiff can load both OrderedDictPlus and Opcode")]
    MixedDelta,
}

/// An opcode by its name in Python's `pickletools`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpcodeName(pub u8);

impl fmt::Display for OpcodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            b'c' => "GLOBAL",
            0x93 => "STACK_GLOBAL",
            b'R' => "REDUCE",
            b'b' => "BUILD",
            b'i' => "INST",
            b'o' => "OBJ",
            0x81 => "NEWOBJ",
            0x92 => "NEWOBJ_EX",
            0x82..=0x84 => "EXT",
            b'P' => "PERSID",
            b'Q' => "BINPERSID",
            0x97 => "NEXT_BUFFER",
            0x98 => "READONLY_BUFFER",
            other => return write!(f, "{other:#04x}"),
        };
        f.write_str(name)
    }
}
