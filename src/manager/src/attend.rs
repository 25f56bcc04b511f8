//! The leader's rounds over the orders that were given by hand.

use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    orders::{self, Next, Order, OrderState, Scene, ShardAt, StepKey, plan_id},
    placement::{Action, Plan, Step, Wait},
    records::MoveRecord,
    topology::{RebalanceMode, Topology, shard_index},
};
use sharded_etcd_shard::with_causes;
use tokio::time::Instant;

use crate::{
    control::Control,
    error::Result,
    history::read_moves,
    orders::{OrderError, Stored, give},
};

impl Control {
    /// Does for each order what is next; true if something was begun. What is still open is added to `waits`.
    pub(crate) async fn attend(
        &self,
        open: &[Stored],
        topology: &Topology,
        plan: &Plan,
        moves: &[MoveRecord],
        waits: &mut Vec<Wait>,
    ) -> bool {
        if open.is_empty() {
            return false;
        }
        let shards = self.shards_for_orders(topology);
        let cut = self.line.cut();
        let bytes = self.sizes.bytes_of_ranges();
        let mut moves = moves.to_vec();
        let mut acted = false;
        for (i, stored) in open.iter().enumerate() {
            let what = || stored.record.order.to_string();
            let scene = Scene { map: &cut.map, shards: &shards, bytes: &bytes, moves: &moves, topology };
            let done = match &stored.record.order {
                Order::Approve { plan: asked } => self.approve(stored, asked, &scene, plan).await,
                _ => self.attend_one(stored, &open[..i], &scene, waits).await,
            };
            match done {
                Ok(false) => {}
                // What the next order may do depends on which moves there are.
                Ok(true) => {
                    acted = true;
                    match read_moves(&self.line).await {
                        Ok(now) => moves = now,
                        Err(error) => {
                            waits.push(Wait { what: what(), reason: with_causes(&error) });
                            break;
                        }
                    }
                }
                // The next one may be about shards that are well.
                Err(error) => waits.push(Wait { what: what(), reason: with_causes(&error) }),
            }
        }
        acted
    }

    async fn attend_one(
        &self,
        stored: &Stored,
        before: &[Stored],
        scene: &Scene<'_>,
        waits: &mut Vec<Wait>,
    ) -> Result<bool> {
        let order = &stored.record.order;
        match orders::next(&stored.record, scene) {
            Next::Do(step) => {
                self.orders.answer(stored, OrderState::Running, format!("begins to {}", step.what())).await?;
                if let Action::Move { range, .. } = &step.action {
                    self.resting.clear(range);
                }
                self.carry_out(&step).await
            }
            Next::Abort(rids) => {
                self.orders.answer(stored, OrderState::Running, "aborting".to_owned()).await?;
                // Written down before it is decided: a leader that takes over in between finds the order still open, and one
                // that takes over later knows that the move is not to be made again.
                for moving in scene.moves.iter().filter(|m| rids.contains(&m.rid)) {
                    self.resting.aborted_by_hand(&moving.range, Instant::now());
                }
                self.tell().await?;
                for rid in rids {
                    if let Some(range) = self.orders.abort_move(&rid).await? {
                        tracing::info!(%rid, %range, "move is aborted by hand");
                    }
                }
                if let Order::Abort { range } = order {
                    self.take_back(before, range).await?;
                }
                Ok(true)
            }
            Next::Wait(reason) => {
                let message = self.with_progress(order, reason);
                waits.push(Wait { what: order.to_string(), reason: message.clone() });
                self.orders.answer(stored, OrderState::Running, message).await.map(|()| false)
            }
            Next::Done(what) => self.orders.answer(stored, OrderState::Done, what).await.map(|()| false),
            Next::Refused(why) => self.orders.answer(stored, OrderState::Failed, why).await.map(|()| false),
        }
    }

    /// Ends the orders to move what is not to move any more, of those given before.
    async fn take_back(&self, before: &[Stored], aborted: &KeyRange) -> Result<()> {
        for stored in before {
            if let Order::Move { range, .. } = &stored.record.order
                && range.overlaps(aborted)
            {
                self.orders.answer(stored, OrderState::Failed, "aborted by hand".to_owned()).await?;
            }
        }
        Ok(())
    }

    /// Gives the order that `rebalance.approvedPlan` stands for, if the plan is that one and nobody has given it yet.
    pub(crate) async fn approve_by_spec(
        &self,
        open: &[Stored],
        topology: &Topology,
        plan: &Plan,
    ) -> Result<bool> {
        let Some(asked) = &topology.rebalance.approved_plan else { return Ok(false) };
        let order = Order::Approve { plan: asked.clone() };
        let is_next = topology.rebalance.mode == RebalanceMode::Manual
            && self.sizes.complete()
            && !plan.steps.is_empty()
            && plan_id(&plan.steps) == *asked
            && !open.iter().any(|stored| stored.record.order == order);
        if !is_next {
            return Ok(false);
        }
        match give(&self.line, order).await {
            Ok(_) => Ok(true),
            Err(OrderError::Manager(error)) => Err(error),
            // Some of them will be done, and then this one is given.
            Err(OrderError::TooMany) => Ok(false),
        }
    }

    async fn approve(&self, stored: &Stored, asked: &str, scene: &Scene<'_>, plan: &Plan) -> Result<bool> {
        let failed = |why: String| self.orders.answer(stored, OrderState::Failed, why);
        let mode = scene.topology.rebalance.mode;
        if mode != RebalanceMode::Manual {
            let why =
                format!("spec.rebalance.mode is {mode:?}: only in mode Manual plans wait for an approval");
            return failed(why).await.map(|()| false);
        }
        if !self.sizes.complete() {
            return Ok(false); // Not every range is read yet, so there is no plan to compare with.
        }
        if stored.record.state == OrderState::Waiting {
            let id = plan_id(&plan.steps);
            if plan.steps.is_empty() {
                return failed("nothing is planned".to_owned()).await.map(|()| false);
            }
            if id != asked {
                let why = format!("the plan is another one by now: look at plan {id}, then approve that");
                return failed(why).await.map(|()| false);
            }
            let steps: Vec<StepKey> = plan.steps.iter().map(StepKey::of).collect();
            let message = format!("{} steps are approved", steps.len());
            self.orders.answer_with(stored, OrderState::Running, message, steps).await?;
            return Ok(true);
        }
        let left = plan.steps.iter().filter(|step| stored.record.steps.contains(&StepKey::of(step))).count();
        let (state, message) = match (left, scene.moves.len()) {
            (0, 0) => (OrderState::Done, "what was approved is done, or not planned any more".to_owned()),
            (0, n) => (OrderState::Running, format!("{n} moves are under way")),
            (left, _) => {
                (OrderState::Running, format!("{left} of {} steps are left", stored.record.steps.len()))
            }
        };
        self.orders.answer(stored, state, message).await.map(|()| false)
    }

    /// What the order waits for, with how far the moves of its keys are.
    fn with_progress(&self, order: &Order, reason: String) -> String {
        let Order::Move { range, .. } = order else { return reason };
        let moves = self.progress.moves();
        match moves.iter().find(|m| m.range.overlaps(range)) {
            Some(m) if m.message.is_empty() => format!("{reason}: {} {} %", m.phase, m.percent()),
            Some(m) => format!("{reason}: {} {} %, {}", m.phase, m.percent(), m.message),
            None => reason,
        }
    }

    fn shards_for_orders(&self, topology: &Topology) -> Vec<ShardAt> {
        let cut = self.line.cut();
        let unreachable = self.sizes.unreachable();
        let quarantined = self.shards.quarantined();
        let used = self.sizes.used();
        let shard = |(i, name): (usize, &std::sync::Arc<str>)| {
            let ix = ShardIx(u32::try_from(i).unwrap_or(u32::MAX));
            let wanted = shard_index(name).is_some_and(|index| index < topology.shards);
            let bad = quarantined.iter().find(|q| q.0 == ix).map(|q| &q.1);
            let trouble =
                bad.or_else(|| unreachable.get(&ix)).map(|why| format!("{name} cannot be used: {why}"));
            let used_bytes = used.get(&ix).copied().unwrap_or(0);
            ShardAt { name: name.to_string(), takes: wanted && !cut.left[i], trouble, used_bytes }
        };
        cut.names.iter().enumerate().map(shard).collect()
    }
}

/// True if an order that is open says what becomes of these keys, so that the planner leaves them alone.
pub(crate) fn is_ordered(open: &[Stored], step: &Step) -> bool {
    let range = step.action.range();
    open.iter().any(|stored| match &stored.record.order {
        Order::Move { range: ordered, .. } | Order::Abort { range: ordered } => ordered.overlaps(range),
        Order::Split { at } | Order::Merge { at } => range.contains(at) || range.end == *at,
        Order::Approve { .. } => false,
    })
}
