//! A bounded, data-only reader and writer of Python pickles (`docs/protocol.md` section 4).
//!
//! [`decode()`] runs no code and knows no class: every opcode that could import, call or build anything
//! is refused by name. Reading is one linear pass without recursion. Nothing is reserved from a length
//! prefix, and what the reader accepts is bounded by the `MAX_*` limits below, so that whatever walks a
//! [`Value`] afterwards (comparing, dropping, encoding) is bounded too.

mod decode;
mod encode;
mod equality;
mod error;
mod integer;
mod machine;
mod names;
mod shared;
mod table;
mod value;

pub(crate) use decode::{Dialect, decode_with};
pub use decode::{decode, decode_small};
pub use encode::encode;
pub use error::{OpcodeName, PickleError, Problem};
pub use integer::BigInt;
pub(crate) use shared::{is_readable, shared_containers};
pub use table::{Dict, Set, Table, Unhashable};
pub use value::{Opcode, Type, Value};

/// Levels of nested containers. Real data has about 12; a walk this deep fits a 2 MiB stack even
/// in a debug build.
pub const MAX_DEPTH: usize = 256;

/// Values in one pickle, counting a container once for every place it is referenced from.
/// The largest real node has some ten thousand (its arrays are single bytes objects).
pub const MAX_VALUES: usize = 8 << 20;

/// Values that memo references may add to what the bytes of the input spell out: this many per byte
/// of input, and [`MAX_SHARED_FLOOR`] in any case. This is what stops a "billion laughs" pickle.
const MAX_SHARED_PER_BYTE: usize = 64;

/// A text, bytes or a large integer counts as one value more for this many bytes: it can be referenced, compared and hashed as often.
pub(crate) const BYTES_PER_VALUE: usize = 64;

/// See [`MAX_SHARED_PER_BYTE`].
const MAX_SHARED_FLOOR: usize = 64 << 10;

/// Strings and bytes of at least this length are slices of the input, and keep all of it alive;
/// shorter ones are copied, so that a name kept from a large message does not hold the message.
pub const SLICE_MIN: usize = 1024;
