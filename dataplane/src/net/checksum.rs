//! The Internet checksum: RFC 1071. Sums are kept in the machine's byte order and turned once at
//! the end, which the RFC shows to be the same (its section 2, B).

/// A sum that is not folded yet. 64 bits have room for 16 GiB of words.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes. All that is added before the last must be even in length.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<4>();
        let whole: u64 = words.iter().map(|word| value(*word)).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Sum(self.0 + whole + value(last))
    }

    /// Adds one number, as it stands in a header.
    #[must_use]
    pub fn number(self, number: u16) -> Sum {
        let [high, low] = number.to_be_bytes();
        Sum(self.0 + value([high, low, 0, 0]))
    }

    /// Takes a number out that was added: in ones' complement, adds its complement.
    #[must_use]
    pub fn without(self, number: u16) -> Sum {
        self.number(!number)
    }

    /// The sum in 16 bits, carries added, not inverted: what a partial checksum holds.
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while let carry @ 1.. = sum >> 16 {
            sum = (sum & 0xffff) + carry;
        }
        let [.., high, low] = sum.to_be_bytes();
        u16::from_be(u16::from_be_bytes([high, low]))
    }

    /// The checksum: the folded sum, inverted.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

fn value(word: [u8; 4]) -> u64 {
    u64::from(u32::from_ne_bytes(word))
}

#[cfg(test)]
mod tests;
