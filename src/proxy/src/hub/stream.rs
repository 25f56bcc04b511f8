//! A client stream's end of the hub.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{mpsc, oneshot};

use super::{
    actor::Message,
    event::{Delivery, StreamId, WatcherId},
    merge::WatchSpec,
    room::Room,
};

/// The hub is gone, as the proxy stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the watch hub has stopped")]
pub(crate) struct HubStopped;

/// One client stream: any number of watchers, whose deliveries come in one order.
pub(crate) struct HubStream {
    pub(super) stream: StreamId,
    pub(super) ids: Arc<AtomicU64>,
    pub(super) hub: mpsc::Sender<Message>,
    pub(super) room: Arc<Room>,
    pub(super) deliveries: mpsc::Receiver<Delivery>,
}

impl HubStream {
    /// Begins a watcher; the revision is that of the line at which it begins. Its deliveries may come at once.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub(crate) async fn watch(&self, spec: WatchSpec) -> Result<(WatcherId, i64), HubStopped> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (reply, revision) = oneshot::channel();
        self.tell(Message::Watch { stream: self.stream, id, spec: Arc::new(spec), reply }).await?;
        Ok((id, revision.await.map_err(|_| HubStopped)?))
    }

    /// Ends a watcher; deliveries for it that are under way still come.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub(crate) async fn cancel(&self, id: WatcherId) -> Result<(), HubStopped> {
        let (reply, done) = oneshot::channel();
        self.tell(Message::Cancel { id, reply }).await?;
        done.await.map_err(|_| HubStopped)
    }

    /// Asks to be told once all watchers of the stream have been sent everything up to a revision of at least this.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub(crate) async fn progress(&self, at_least: i64) -> Result<(), HubStopped> {
        self.tell(Message::Progress { stream: self.stream, at_least }).await
    }

    /// Asks to be told how far a watcher is, if nothing is under way to it.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub(crate) async fn notify(&self, id: WatcherId) -> Result<(), HubStopped> {
        self.tell(Message::Notify { id }).await
    }

    /// The next delivery.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub(crate) async fn next(&mut self) -> Result<Delivery, HubStopped> {
        self.deliveries.recv().await.ok_or(HubStopped)
    }

    /// Gives back the room that a delivery took, once it is on its way to the client.
    ///
    /// # Errors
    /// If the hub has stopped.
    pub(crate) async fn sent(&self, bytes: usize) -> Result<(), HubStopped> {
        if self.room.give_back(bytes) {
            self.tell(Message::Room { stream: self.stream }).await?;
        }
        Ok(())
    }

    /// Ends the stream and all of its watchers.
    pub(crate) async fn close(self) {
        // If the hub has stopped there is nothing left to end.
        let _ = self.tell(Message::Close { stream: self.stream }).await;
    }

    async fn tell(&self, message: Message) -> Result<(), HubStopped> {
        self.hub.send(message).await.map_err(|_| HubStopped)
    }
}
