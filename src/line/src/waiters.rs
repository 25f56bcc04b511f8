//! Who waits for which part of the line. A cut wakes only those that it answers: of a hundred writers that wait, each cut
//! concerns a few, and waking the others would cost more than everything else that a write costs here.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_serve::{Asker, Round, ask};
use tokio::sync::oneshot;

use crate::Cut;

type Waiter = Asker<Arc<Cut>>;
/// By what is waited for, then by order of arrival.
type Queue = BTreeMap<(i64, u64), Waiter>;

/// What a wait is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// A cut that covers a local revision of a shard.
    Covered(ShardIx, i64),
    /// The fold of all entries up to a log position.
    Position(i64),
}

impl Until {
    pub(crate) fn is_met(self, cut: &Cut) -> bool {
        match self {
            Self::Covered(shard, local) => cut.covers(shard, local),
            Self::Position(position) => cut.position >= position,
        }
    }
}

#[derive(Default)]
struct Queues {
    arrivals: u64,
    positions: Queue,
    /// By join number.
    shards: Vec<Queue>,
}

impl Queues {
    fn queue(&mut self, until: Until) -> (&mut Queue, i64) {
        match until {
            Until::Position(position) => (&mut self.positions, position),
            Until::Covered(shard, local) => {
                if self.shards.len() <= shard.index() {
                    self.shards.resize_with(shard.index() + 1, Queue::default);
                }
                (&mut self.shards[shard.index()], local)
            }
        }
    }
}

/// All that wait now.
#[derive(Default)]
pub(crate) struct Waiters {
    queues: Mutex<Queues>,
}

/// One place in a queue; left when dropped.
pub(crate) struct Waiting<'a> {
    waiters: &'a Waiters,
    until: Until,
    arrival: u64,
    pub(crate) answer: oneshot::Receiver<Arc<Cut>>,
}

impl Waiters {
    /// Takes a place. Look at the newest cut after this, not before: one that is published in between is not missed then.
    pub(crate) fn enter(&self, until: Until) -> Waiting<'_> {
        let (waiter, answer) = ask();
        let mut queues = self.queues.lock();
        queues.arrivals += 1;
        let arrival = queues.arrivals;
        let (queue, at) = queues.queue(until);
        queue.insert((at, arrival), waiter);
        Waiting { waiters: self, until, arrival, answer }
    }

    /// Answers all that a cut answers.
    pub(crate) fn publish(&self, cut: &Arc<Cut>) {
        let mut met = Vec::new();
        {
            let mut queues = self.queues.lock();
            take(&mut queues.positions, cut.position, &mut met);
            for (queue, &v) in queues.shards.iter_mut().zip(cut.vector.iter()) {
                take(queue, v, &mut met);
            }
        }
        let mut round = Round::new();
        for waiter in met {
            round.answer(waiter, Arc::clone(cut));
        }
    }

    /// Ends all waits without an answer.
    pub(crate) fn give_up(&self) {
        *self.queues.lock() = Queues::default();
    }
}

fn take(queue: &mut Queue, upto: i64, met: &mut Vec<Waiter>) {
    while let Some(first) = queue.first_entry()
        && first.key().0 <= upto
    {
        met.push(first.remove());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut queues = self.waiters.queues.lock();
        let (queue, at) = queues.queue(self.until);
        queue.remove(&(at, self.arrival));
    }
}
