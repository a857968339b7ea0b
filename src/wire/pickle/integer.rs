//! Integers beyond 64 bits, as pickle spells them.

/// An integer outside the range of `i64`: little-endian two's complement, as short as possible.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BigInt(Box<[u8]>);

impl BigInt {
    /// The little-endian two's complement bytes, as in LONG1.
    pub fn as_le_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_negative(&self) -> bool {
        self.0.last().is_some_and(|byte| byte & 0x80 != 0)
    }

    /// The little-endian bytes of the absolute value.
    pub(crate) fn magnitude(&self) -> Vec<u8> {
        let mut bytes = self.0.to_vec();
        if self.is_negative() {
            negate(&mut bytes);
        }
        bytes
    }

    /// Reads the payload of LONG1 or LONG4: `Ok` if it fits an `i64`.
    pub(super) fn parse(bytes: &[u8]) -> Result<i64, BigInt> {
        let sign = match bytes.last() {
            None => return Ok(0),
            Some(byte) if byte & 0x80 != 0 => 0xFF,
            Some(_) => 0x00,
        };
        let mut digits = bytes;
        while let Some((last, rest)) = digits.split_last()
            && *last == sign
            && rest
                .last()
                .is_some_and(|before| (before & 0x80 != 0) == (sign == 0xFF))
        {
            digits = rest;
        }
        if digits.len() > 8 {
            return Err(BigInt(digits.into()));
        }
        let mut wide = [sign; 8];
        wide[..digits.len()].copy_from_slice(digits);
        Ok(i64::from_le_bytes(wide))
    }

    /// An integer from the little-endian bytes of its magnitude: `Ok` if it fits an `i64`.
    pub(crate) fn of_magnitude(mut bytes: Vec<u8>, negative: bool) -> Result<i64, BigInt> {
        bytes.push(0);
        if negative {
            negate(&mut bytes);
        }
        BigInt::parse(&bytes)
    }

    /// The exact value of an integral float.
    pub(super) fn of_float(float: f64) -> Result<i64, BigInt> {
        let bits = float.abs().to_bits();
        let exponent = (bits >> 52) as usize;
        if exponent < 1023 {
            return Ok(0);
        }
        let mantissa = (bits & ((1 << 52) - 1)) | (1 << 52);
        let shift = exponent - 1023;
        // 1024 bits and a sign bit are the most a finite float needs.
        let mut bytes = [0u8; 130];
        for bit in 0..53 {
            // Bits below the point are zero in an integral float.
            if mantissa >> bit & 1 == 1
                && let Some(place) = (shift + bit).checked_sub(52)
                && let Some(byte) = bytes.get_mut(place / 8)
            {
                *byte |= 1 << (place % 8);
            }
        }
        if float < 0.0 {
            negate(&mut bytes);
        }
        BigInt::parse(&bytes)
    }
}

fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes {
        (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
    }
}
