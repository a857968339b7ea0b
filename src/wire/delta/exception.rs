//! Python exceptions, as far as deepdiff tells them apart.

use super::DeltaError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Key,
    Index,
    Attribute,
    Type,
    /// ValueError and its kin: caught only where everything is caught.
    Value,
    Runtime,
    /// Not Python's: this code does not know what Python would do.
    Unsupported,
    /// Nor is this: the work that was allowed did not suffice.
    TooLong,
}

#[derive(Clone, Debug)]
pub(super) struct Exception {
    pub kind: Kind,
    text: String,
}

impl Exception {
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Exception {
            kind,
            text: text.into(),
        }
    }

    pub fn key() -> Self {
        Exception::new(Kind::Key, "no such key")
    }

    pub fn index() -> Self {
        Exception::new(Kind::Index, "index out of range")
    }

    pub fn wrong_type(text: impl Into<String>) -> Self {
        Exception::new(Kind::Type, text)
    }

    pub fn too_long() -> Self {
        Exception::new(Kind::TooLong, "a delta that takes this long")
    }

    pub fn unsupported(text: impl Into<String>) -> Self {
        Exception::new(Kind::Unsupported, text)
    }
}

impl From<Exception> for DeltaError {
    fn from(exception: Exception) -> Self {
        match exception.kind {
            Kind::Unsupported | Kind::TooLong => DeltaError::Unsupported(exception.text),
            kind => DeltaError::Raises(format!("{kind:?}Error: {}", exception.text)),
        }
    }
}

pub(super) type Result<T> = std::result::Result<T, Exception>;

/// `except` clauses.
pub(super) trait Catch<T> {
    /// `None` if one of these was raised.
    fn except(self, kinds: &[Kind]) -> Result<Option<T>>;

    /// `except Exception`.
    fn except_all(self) -> Result<Option<T>>;
}

impl<T> Catch<T> for Result<T> {
    fn except(self, kinds: &[Kind]) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(exception) if kinds.contains(&exception.kind) => Ok(None),
            Err(exception) => Err(exception),
        }
    }

    fn except_all(self) -> Result<Option<T>> {
        self.except(&[
            Kind::Key,
            Kind::Index,
            Kind::Attribute,
            Kind::Type,
            Kind::Value,
            Kind::Runtime,
        ])
    }
}
