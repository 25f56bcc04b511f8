//! A value of which everybody wants the newest, and to be told of changes: tokio's `watch`, but those who wait are woken in
//! the order in which they came, which tokio leaves to chance. A deterministic simulation depends on it.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use tokio::sync::Notify;

struct Shared<T> {
    /// The value, and how often it was changed.
    value: RwLock<(u64, T)>,
    closed: AtomicBool,
    changed: Notify,
}

/// Whoever changed the value is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing changes this any more")]
pub struct Closed;

/// Changes the value; there is one for each.
pub struct Sender<T>(Arc<Shared<T>>);

/// Sees the value, and waits for its changes. Cloning it keeps what was seen.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Sender<T> {
    /// A value.
    pub fn new(value: T) -> Self {
        let value = RwLock::new((0, value));
        Self(Arc::new(Shared { value, closed: AtomicBool::new(false), changed: Notify::new() }))
    }

    /// The value. Not to be held for long, and never over an `await`.
    pub fn borrow(&self) -> MappedRwLockReadGuard<'_, T> {
        RwLockReadGuard::map(self.0.value.read(), |value| &value.1)
    }

    /// Changes the value; those who wait are told if `change` says that it did.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) {
        let changed = {
            let mut value = self.0.value.write();
            let changed = change(&mut value.1);
            value.0 += u64::from(changed);
            changed
        };
        if changed {
            self.0.changed.notify_waiters();
        }
    }

    /// Changes the value, and tells those who wait.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// A receiver that has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.0.value.read().0;
        Receiver { shared: Arc::clone(&self.0), seen }
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }
}

impl<T> Receiver<T> {
    /// The value. Not to be held for long, and never over an `await`.
    pub fn borrow(&self) -> MappedRwLockReadGuard<'_, T> {
        RwLockReadGuard::map(self.shared.value.read(), |value| &value.1)
    }

    /// The value, which counts as seen from now on.
    pub fn borrow_and_update(&mut self) -> MappedRwLockReadGuard<'_, T> {
        let value = self.shared.value.read();
        self.seen = value.0;
        RwLockReadGuard::map(value, |value| &value.1)
    }

    /// Until there is a value that was not seen, which then counts as seen. Cancel safe.
    ///
    /// # Errors
    /// If there will be none.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let mut told = pin!(self.shared.changed.notified());
            // First in the queue, then a look: a change in between is not missed.
            told.as_mut().enable();
            let closed = self.shared.closed.load(Ordering::Acquire);
            let version = self.shared.value.read().0;
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if closed {
                return Err(Closed);
            }
            told.await;
        }
    }

    /// The value, once it is as `wanted` says; at once if it is already.
    ///
    /// # Errors
    /// If it is not, and will not change any more.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<T, Closed>
    where
        T: Clone,
    {
        loop {
            {
                let value = self.borrow_and_update();
                if wanted(&value) {
                    return Ok(value.clone());
                }
            }
            self.changed().await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn changes_are_told_in_order_of_arrival_and_never_missed() {
        let sender = Sender::new(1);
        let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let mut waiting = tokio::task::JoinSet::new();
        for i in 0..40 {
            let (mut receiver, order) = (sender.subscribe(), Arc::clone(&order));
            waiting.spawn(async move {
                receiver.wait_for(|&value| value == 3).await.unwrap();
                order.lock().push(i);
            });
        }
        tokio::task::yield_now().await;
        let mut late = sender.subscribe();
        sender.send_if_modified(|_| false);
        assert!(late.changed().now_or_never().is_none());
        sender.send_if_modified(|value| {
            *value = 3;
            true
        });
        assert_eq!(late.clone().changed().now_or_never(), Some(Ok(())));
        assert_eq!(*late.borrow_and_update(), 3);
        while waiting.join_next().await.is_some() {}
        assert_eq!(*order.lock(), (0..40).collect::<Vec<_>>());
        assert!(late.changed().now_or_never().is_none());
        drop(sender);
        assert_eq!(late.changed().await, Err(Closed));
        assert_eq!(late.wait_for(|&value| value == 4).await, Err(Closed));
    }
}
