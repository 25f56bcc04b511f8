//! Orders by hand in meta: how they get there, and how the leader reads and answers them.
//!
//! What follows from an order is in [`sharded_etcd_core::orders`].

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use sharded_etcd_core::{
    keyspace::{KeyRange, Rid},
    moves::{Stored as Seen, abort_txn, ops},
    orders::{ORDERS_MAX, ORDERS_PREFIX, Order, OrderRecord, OrderState, StepKey, order_key},
    records::{MoveRecord, Record, move_key},
};
use sharded_etcd_line::Line;
use tokio::time::Instant;

use crate::{ManagerError, error::Result, mover::observe::get};

/// How long an order that is over can be asked for.
const OVER_KEPT: Duration = Duration::from_secs(600);
/// Orders of meta that are looked at.
const READ_MAX: i64 = 10 * ORDERS_MAX as i64;

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    #[error("{ORDERS_MAX} orders wait already: wait until some are done, or abort them")]
    TooMany,
    #[error(transparent)]
    Manager(#[from] ManagerError),
}

/// Writes an order down; its id.
///
/// # Errors
/// If too many wait, or meta fails; its outcome may be unknown then, and the order be there.
pub(crate) async fn give(line: &Line, order: Order) -> std::result::Result<String, OrderError> {
    let waiting = read(line).await?.iter().filter(|stored| !stored.record.is_over()).count();
    if waiting >= ORDERS_MAX {
        return Err(OrderError::TooMany);
    }
    let id = format!("{:016x}", sharded_etcd_line::random::rng().random::<u64>());
    let key = order_key(&id);
    let put = ops::put(key.clone(), OrderRecord::new(order).encode());
    let answer = line.meta().txn(ops::txn(vec![ops::created_at(key, 0)], vec![put])).await;
    let answer = answer.map_err(ManagerError::Meta)?;
    if !answer.succeeded {
        return Err(ManagerError::Slow { what: "finding a free id for an order", ms: 0 }.into());
    }
    Ok(id)
}

/// An order as it is; `None` if it was never given, or is over for long.
pub(crate) async fn look(line: &Line, id: &str) -> Result<Option<OrderRecord>> {
    let answer = line.meta().range(get(order_key(id))).await.map_err(ManagerError::Meta)?;
    Ok(answer.kvs.first().map(|kv| OrderRecord::decode(&kv.value)).transpose()?)
}

/// An order, as it is in meta.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    key: Bytes,
    modified: i64,
    pub(crate) record: OrderRecord,
}

/// Orders in the order in which they were given.
pub(crate) async fn read(line: &Line) -> Result<Vec<Stored>> {
    let mut request = ops::range_request(&KeyRange::prefix(ORDERS_PREFIX));
    request.limit = READ_MAX;
    let answer = line.meta().range(request).await.map_err(ManagerError::Meta)?;
    let mut kvs = answer.kvs;
    kvs.sort_unstable_by_key(|kv| kv.create_revision);
    kvs.into_iter()
        .map(|kv| {
            Ok(Stored { record: OrderRecord::decode(&kv.value)?, key: kv.key, modified: kv.mod_revision })
        })
        .collect()
}

/// The leader's answers to orders, in one term.
pub(crate) struct Orders {
    line: Arc<Line>,
    /// Since when orders are over, as far as this leader has seen.
    over: Mutex<HashMap<Bytes, Instant>>,
}

impl Orders {
    pub(crate) fn new(line: Arc<Line>) -> Self {
        Self { line, over: Mutex::default() }
    }

    /// Orders to be looked at; those that are over for long are deleted.
    pub(crate) async fn open(&self) -> Result<Vec<Stored>> {
        let (over, open): (Vec<Stored>, Vec<Stored>) =
            read(&self.line).await?.into_iter().partition(|stored| stored.record.is_over());
        let old: Vec<&Stored> = {
            let mut since = self.over.lock();
            since.retain(|key, _| over.iter().any(|stored| stored.key == *key));
            for stored in &over {
                since.entry(stored.key.clone()).or_insert_with(Instant::now);
            }
            // The oldest go first when there are too many.
            let spare = over.len().saturating_sub(ORDERS_MAX);
            let is_old = |(i, s): &(usize, &Stored)| *i < spare || since[&s.key].elapsed() > OVER_KEPT;
            over.iter().enumerate().filter(is_old).map(|(_, stored)| stored).collect()
        };
        for stored in old {
            let guard = vec![ops::modified_at(stored.key.clone(), stored.modified)];
            let delete = ops::txn(guard, vec![ops::delete(stored.key.clone())]);
            self.line.meta().txn(delete).await.map_err(ManagerError::Meta)?;
        }
        Ok(open)
    }

    /// Says how far an order is, unless that is said already or somebody else said something meanwhile.
    pub(crate) async fn answer(&self, stored: &Stored, state: OrderState, message: String) -> Result<()> {
        self.answer_with(stored, state, message, stored.record.steps.clone()).await
    }

    /// The same, with what an approval is for.
    pub(crate) async fn answer_with(
        &self,
        stored: &Stored,
        state: OrderState,
        message: String,
        steps: Vec<StepKey>,
    ) -> Result<()> {
        let record = OrderRecord { order: stored.record.order.clone(), state, message, steps };
        if record == stored.record {
            return Ok(());
        }
        if record.is_over() {
            tracing::info!(order = %record.order, ?state, message = %record.message, "order is over");
        }
        let guard = vec![ops::modified_at(stored.key.clone(), stored.modified)];
        let put = ops::put(stored.key.clone(), record.encode());
        self.line.meta().txn(ops::txn(guard, vec![put])).await.map_err(ManagerError::Meta)?;
        Ok(())
    }

    /// Decides in meta that a move does not happen; the range, `None` if it is decided already.
    pub(crate) async fn abort_move(&self, rid: &Rid) -> Result<Option<KeyRange>> {
        let answer = self.line.meta().range(get(move_key(rid))).await.map_err(ManagerError::Meta)?;
        let Some(kv) = answer.kvs.first() else { return Ok(None) };
        let record = Seen { value: MoveRecord::decode(&kv.value)?, modified: kv.mod_revision };
        let Some(txn) = abort_txn(&record) else { return Ok(None) };
        let answer = self.line.meta().txn(txn).await.map_err(ManagerError::Meta)?;
        Ok(answer.succeeded.then_some(record.value.range))
    }
}

/// The steps that may begin in mode Manual.
pub(crate) fn approved(orders: &[Stored]) -> Vec<StepKey> {
    let running = orders.iter().filter(|stored| stored.record.state == OrderState::Running);
    running.flat_map(|stored| stored.record.steps.iter().cloned()).collect()
}
