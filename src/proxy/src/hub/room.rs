//! How much a client stream may still be sent before its client has taken what is under way.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

/// Deliveries under way to one stream, at most. etcd has 128 too (`chanBufLen`).
pub(crate) const DELIVERIES_MAX: usize = 128;

/// Bytes of events under way to one stream, at most; one delivery may exceed it.
pub(crate) const BYTES_MAX: usize = 8 << 20;

/// Shared by the hub, which takes room, and the stream, which gives it back.
#[derive(Debug, Default)]
pub(crate) struct Room {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
    /// The hub waits to be told that there is room again.
    wanted: AtomicBool,
}

impl Room {
    /// Takes room for one delivery of this size. False if there is none; then [`Room::give_back`] tells when to try
    /// again.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        if !self.is_free() {
            self.wanted.store(true, SeqCst);
            // It may have become free between the look and the mark, and then nobody would tell.
            if !self.is_free() {
                return false;
            }
        }
        self.deliveries.fetch_add(1, SeqCst);
        self.bytes.fetch_add(bytes, SeqCst);
        true
    }

    /// Gives room back. True if the hub wants to know.
    pub(crate) fn give_back(&self, bytes: usize) -> bool {
        let deliveries = self.deliveries.fetch_sub(1, SeqCst) - 1;
        let left = self.bytes.fetch_sub(bytes, SeqCst) - bytes;
        // Not at the first free place: waking the hub costs more than one delivery.
        deliveries <= DELIVERIES_MAX / 2
            && left <= BYTES_MAX / 2
            && self.wanted.load(Relaxed)
            && self.wanted.swap(false, SeqCst)
    }

    fn is_free(&self) -> bool {
        self.deliveries.load(SeqCst) < DELIVERIES_MAX && self.bytes.load(SeqCst) < BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_in_number_and_bytes_and_tells_when_half_is_free() {
        let room = Room::default();
        for _ in 0..DELIVERIES_MAX {
            assert!(room.take(1));
        }
        assert!(!room.take(1));
        let told = (0..DELIVERIES_MAX).filter(|_| room.give_back(1)).count();
        assert_eq!(told, 1, "once, as nobody asked again");
        assert!(room.take(2 * BYTES_MAX), "a single delivery may be larger than the bound");
        assert!(!room.take(1));
        assert!(room.give_back(2 * BYTES_MAX));
        assert!(room.take(1));
    }
}
