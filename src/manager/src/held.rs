//! What waits for a person rather than for time.

use serde::{Deserialize, Serialize};
use sharded_etcd_core::{
    orders::{StepKey, plan_id},
    placement::Plan,
    topology::RebalanceMode,
};

/// Steps that nobody begins before a person has acted: they approve a plan, or set another `rebalance.mode`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many steps.
    pub steps: u64,
    /// In mode Manual, the plan that waits for an approval; `None`: the mode is Paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Nothing else is under way: without that person everything stays as it is.
    pub alone: bool,
}

impl Held {
    /// - `approved`: the steps that were approved. If the plan has any of them, it does not wait.
    /// - `busy`: whether anything is under way, or ends by itself.
    pub(crate) fn of(mode: RebalanceMode, plan: &Plan, approved: &[StepKey], busy: bool) -> Option<Self> {
        if plan.steps.is_empty() || plan.steps.iter().any(|step| approved.contains(&StepKey::of(step))) {
            return None;
        }
        let waiting = match mode {
            RebalanceMode::Automatic => return None,
            RebalanceMode::Manual => Some(plan_id(&plan.steps)),
            RebalanceMode::Paused => None,
        };
        Some(Self { steps: plan.steps.len() as u64, plan: waiting, alone: !busy })
    }

    /// One word for a condition.
    pub(crate) fn reason(&self) -> &'static str {
        if self.plan.is_some() { "AwaitingApproval" } else { "Paused" }
    }

    /// What waits, and what to do about it.
    pub(crate) fn message(&self) -> String {
        let steps = format!("{} step{}", self.steps, if self.steps == 1 { "" } else { "s" });
        match &self.plan {
            Some(id) => format!(
                "plan {id} of {steps} waits for an approval: sharded-etcd approve {id}, or rebalance.approvedPlan: {id}"
            ),
            None => format!("{steps} planned, but rebalance.mode is Paused"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use sharded_etcd_core::{
        keyspace::{KeyRange, Rid},
        placement::{Action, Figures, Step},
    };

    use super::*;

    fn plan(ends: &[&'static str]) -> Plan {
        let step = |end: &&'static str| Step {
            action: Action::Move {
                rid: Rid::new("r"),
                range: KeyRange::new("a", *end),
                to: "shard-1".to_owned(),
            },
            from: "shard-0".to_owned(),
            keys: 1,
            bytes: 1,
            work: 0,
            reason: String::new(),
            ready: false,
        };
        Plan {
            parent_generation: 1,
            steps: ends.iter().map(step).collect(),
            waits: Vec::new(),
            balanced: false,
            keys: Figures::default(),
            bytes: Figures::default(),
            load: Figures::default(),
            truncated: false,
        }
    }

    #[test]
    fn a_plan_waits_until_a_step_of_it_is_approved() {
        let two = plan(&["b", "c"]);
        let held = Held::of(RebalanceMode::Manual, &two, &[], false).unwrap();
        let id = plan_id(&two.steps);
        assert_eq!((held.steps, held.plan.as_deref(), held.alone), (2, Some(id.as_str()), true));
        assert_eq!(
            held.message(),
            format!(
                "plan {id} of 2 steps waits for an approval: sharded-etcd approve {id}, or rebalance.approvedPlan: {id}"
            )
        );
        assert!(!Held::of(RebalanceMode::Manual, &two, &[], true).unwrap().alone);
        let approved = [StepKey::of(&two.steps[1])];
        assert_eq!(Held::of(RebalanceMode::Manual, &two, &approved, false), None);
        let other = [StepKey::of(&plan(&["d"]).steps[0])];
        assert!(Held::of(RebalanceMode::Manual, &two, &other, false).is_some());
        assert_eq!(Held::of(RebalanceMode::Manual, &plan(&[]), &[], false), None);
    }

    #[test]
    fn paused_steps_wait_for_another_mode() {
        let held = Held::of(RebalanceMode::Paused, &plan(&["b"]), &[], false).unwrap();
        assert_eq!((held.reason(), held.plan.as_deref()), ("Paused", None));
        assert_eq!(held.message(), "1 step planned, but rebalance.mode is Paused");
        assert_eq!(Held::of(RebalanceMode::Automatic, &plan(&["b"]), &[], false), None);
    }

    #[test]
    fn it_is_told_from_process_to_process() {
        for mode in [RebalanceMode::Manual, RebalanceMode::Paused] {
            let held = Held::of(mode, &plan(&["b"]), &[], false).unwrap();
            let json = serde_json::to_string(&held).unwrap();
            assert_eq!(serde_json::from_str::<Held>(&json).unwrap(), held);
        }
    }
}
