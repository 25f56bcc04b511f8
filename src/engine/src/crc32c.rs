//! CRC-32C (Castagnoli), which etcd's hashes are made of: eight bytes a step, by table.

/// The polynomial 0x1EDC6F41, bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// `TABLES[n][b]` is what byte `b` does to the sum when `n` bytes follow it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut following = 1;
    while following < 8 {
        let mut byte = 0;
        while byte < 256 {
            let sum: u32 = tables[following - 1][byte];
            tables[following][byte] = (sum >> 8) ^ tables[0][(sum & 0xff) as usize];
            byte += 1;
        }
        following += 1;
    }
    tables
}

/// A sum under way.
#[derive(Debug, Clone, Copy)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc32c {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut sum = self.0;
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let word = u64::from_le_bytes(*word) ^ u64::from(sum);
            sum = (0..8).fold(0, |sum, n| sum ^ TABLES[7 - n][(word >> (8 * n)) as usize & 0xff]);
        }
        for byte in rest {
            sum = (sum >> 8) ^ TABLES[0][(sum as u8 ^ byte) as usize];
        }
        self.0 = sum;
    }

    /// The sum of all bytes added.
    pub fn sum(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(parts: &[&[u8]]) -> u32 {
        let mut crc = Crc32c::default();
        parts.iter().for_each(|part| crc.update(part));
        crc.sum()
    }

    #[test]
    fn known_sums() {
        // RFC 3720, B.4.
        assert_eq!(sum(&[b"123456789"]), 0xE306_9283);
        assert_eq!(sum(&[&[0; 32]]), 0x8A91_36AA);
        assert_eq!(sum(&[&[0xff; 32]]), 0x62A8_AB43);
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn parts_add_up() {
        let bytes: Vec<u8> = (0..=255).collect();
        for cut in 0..40 {
            assert_eq!(sum(&[&bytes[..cut], &bytes[cut..]]), sum(&[&bytes]));
        }
    }
}
