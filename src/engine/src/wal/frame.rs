//! One record in a segment: 24 bytes of header, the payload, zeros up to a multiple of eight.
//!
//! Header: mark (4), payload length (4), sequence number (8), CRC-32 (4), zero (4), all little-endian. The mark comes
//! from the segment's random salt, which also goes into the checksum with length, sequence number and payload: so what
//! an earlier use of the file left behind is no frame, and a client cannot store values that look like frames.

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 24;
/// Frames start at multiples of this.
pub const ALIGN_BYTES: usize = 8;

/// Sequence number of the mark at the end of a segment that has a successor: so a missing last file is missed.
pub const GOES_ON: u64 = u64::MAX;

/// What frames of a segment start with; never zero, which is what a preallocated file holds.
fn mark(salt: u64) -> u32 {
    (salt ^ (salt >> 32)) as u32 | 1
}

fn checksum(salt: u64, len: u32, sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&len.to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Empties the buffer and leaves room for the header; the payload is appended by the caller.
pub fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(HEADER_BYTES, 0);
}

/// Whether anything was appended since [`begin`].
pub fn has_payload(buffer: &[u8]) -> bool {
    buffer.len() > HEADER_BYTES
}

/// Fills the header in and pads the end. Returns the checksum; None if the payload is longer than the format can say.
pub fn finish(buffer: &mut Vec<u8>, salt: u64, sequence: u64) -> Option<u32> {
    let len = u32::try_from(buffer.len() - HEADER_BYTES).ok()?;
    let crc = checksum(salt, len, sequence, &buffer[HEADER_BYTES..]);
    buffer[0..4].copy_from_slice(&mark(salt).to_le_bytes());
    buffer[4..8].copy_from_slice(&len.to_le_bytes());
    buffer[8..16].copy_from_slice(&sequence.to_le_bytes());
    buffer[16..20].copy_from_slice(&crc.to_le_bytes());
    buffer.resize(buffer.len().next_multiple_of(ALIGN_BYTES), 0);
    Some(crc)
}

/// A frame that was read and whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its sequence number.
    pub sequence: u64,
    /// Its checksum.
    pub checksum: u32,
    /// Where the payload starts in the file.
    pub payload_start: usize,
    /// Length of the payload.
    pub payload_len: usize,
    /// Where the next frame starts.
    pub end: usize,
}

/// Reads the frame at `offset`, or None if there is no intact one.
pub fn read(file: &[u8], offset: usize, salt: u64) -> Option<Frame> {
    let header = file.get(offset..offset.checked_add(HEADER_BYTES)?)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(0) != mark(salt) {
        return None;
    }
    let len = word(4);
    let sequence = u64::from(word(8)) | u64::from(word(12)) << 32;
    let payload_start = offset + HEADER_BYTES;
    let payload_len = len as usize;
    let payload = file.get(payload_start..payload_start.checked_add(payload_len)?)?;
    if checksum(salt, len, sequence, payload) != word(16) {
        return None;
    }
    let end = (payload_start + payload_len).next_multiple_of(ALIGN_BYTES);
    Some(Frame { sequence, checksum: word(16), payload_start, payload_len, end })
}

/// Whether an intact frame starts anywhere at or after `offset`.
pub fn any_after(file: &[u8], offset: usize, salt: u64) -> bool {
    (offset.next_multiple_of(ALIGN_BYTES)..file.len())
        .step_by(ALIGN_BYTES)
        .any(|at| read(file, at, salt).is_some())
}
