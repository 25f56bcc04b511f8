//! One reconcile: the five steps, for one resource.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, runtime::controller::Action};
use parking_lot::Mutex;
use serde_json::json;
use sharded_etcd_crd::{
    API_VERSION, KIND, ShardedEtcd,
    status::{ConditionStatus, ShardedEtcdStatus},
};
use tokio::time::Instant;

use crate::{
    answers::Answers,
    apply::{Outcome, Pass, look_again_at_foreign},
    build::build,
    calls::Calls,
    dereference::{Dereferenced, dereference},
    error::{ReconcileError, chain},
    events::publish,
    memory::Memory,
    metrics::Metrics,
    model::{Applied, ApplyFailure, Observed},
    queue::Key,
    restart::restart,
    settings::{Pace, Settings},
    status::{EventDraft, events, status},
    stores::{Stores, key_of},
    validate::{Problem, Validated, validate},
};

/// Objects that are in the way are looked at again after this time: no watch may show that they have gone.
const FOREIGN: Duration = Duration::from_secs(15);

/// What a reconcile needs. Nothing in it waits for the network but calls to the API server.
pub(crate) struct Context {
    pub(crate) calls: Calls,
    pub(crate) stores: Arc<Stores>,
    pub(crate) answers: Arc<Answers>,
    pub(crate) settings: Settings,
    pub(crate) pace: Pace,
    pub(crate) metrics: Arc<Metrics>,
    /// Name of this replica, in Events.
    pub(crate) reporter: String,
    pub(crate) memories: Mutex<HashMap<Key, Memory>>,
}

impl Context {
    /// The resource is not there.
    pub(crate) fn gone(&self, key: &Key) {
        self.answers.forget(key);
        self.memories.lock().remove(key);
    }

    /// Reconciles one resource. Of one resource, there is one at a time.
    pub(crate) async fn reconcile(&self, resource: Arc<ShardedEtcd>) -> Result<Action, ReconcileError> {
        let began = Instant::now();
        let key = key_of(&resource);
        if resource.metadata.deletion_timestamp.is_some() {
            // The garbage collector takes the objects away, as they are owned.
            self.gone(&key);
            return Ok(Action::await_change());
        }
        let uid = resource.uid().unwrap_or_default();
        let memory = self.memories.lock().remove(&key).filter(|memory| memory.uid == uid);
        let mut memory = memory.unwrap_or_else(|| Memory { uid, ..Memory::default() });
        let result = self.steps(&key, resource, &mut memory).await;
        let result = match result {
            Ok(Some(action)) => {
                self.metrics.reconciled("ok", began.elapsed().as_secs_f64());
                Ok(action)
            }
            // The answer that it waits for brings it back.
            Ok(None) => Ok(Action::requeue(self.pace.resync)),
            Err(error) => {
                memory.failures = memory.failures.saturating_add(1);
                self.metrics.reconciled("error", began.elapsed().as_secs_f64());
                Err(error)
            }
        };
        self.memories.lock().insert(key, memory);
        result
    }

    /// What to do after a reconcile failed. The one place where that is logged.
    pub(crate) fn failed(&self, resource: &ShardedEtcd, error: &ReconcileError) -> Action {
        let (namespace, name) = key_of(resource);
        let error = chain(error);
        let memories = self.memories.lock();
        let key = (namespace, name);
        let (min, max) = (self.pace.retry_min, self.pace.retry_max);
        let after = memories.get(&key).map_or(min, |memory| memory.backoff(min, max));
        tracing::warn!(
            namespace = key.0,
            name = key.1,
            error,
            ?after,
            "a reconcile failed; it is tried again"
        );
        Action::requeue(after)
    }

    /// The five steps. `None` while the shard manager is being asked for the first time.
    async fn steps(
        &self,
        key: &Key,
        resource: Arc<ShardedEtcd>,
        memory: &mut Memory,
    ) -> Result<Option<Action>, ReconcileError> {
        look_again_at_foreign(&self.calls, &resource, memory).await.map_err(ReconcileError::Apply)?;
        let (stores, answers, pace) = (&self.stores, &self.answers, &self.pace);
        let known = dereference(stores, answers, pace, key, resource, memory.foreign.clone());
        let Some(Dereferenced { observed, asked }) = known else { return Ok(None) };
        let validated = validate(&observed, &self.settings);
        let outcome = match &validated {
            Ok(validated) => {
                let mut desired = build(validated, &observed);
                desired.deletions.extend(restart(validated, &observed));
                let pass = Pass::new(&self.calls, &self.pace, &observed, asked, memory);
                pass.run(&desired).await.map_err(ReconcileError::Apply)?
            }
            Err(_) => Outcome::default(),
        };
        self.log_failures(key, &outcome.applied, memory);
        let next =
            self.report(&observed, validated.as_ref().map_err(Vec::as_slice), &outcome, memory).await?;
        if outcome.ask {
            self.answers.hurry(key);
        }
        self.answers.pace(key, outcome.wrote || outcome.again || !is_steady(&next, &observed));
        Ok(Some(self.next(&outcome, memory)))
    }

    /// Step 5: status and Events. Gives the status that the resource should have.
    async fn report(
        &self,
        observed: &Observed,
        validated: Result<&Validated, &[Problem]>,
        outcome: &Outcome,
        memory: &mut Memory,
    ) -> Result<ShardedEtcdStatus, ReconcileError> {
        let resource = &observed.resource;
        let previous = resource.status.clone().unwrap_or_default();
        let counts_due = memory.counted.is_none_or(|at| at.elapsed() >= self.pace.counts);
        let next = status(observed, validated, &outcome.applied, counts_due, Timestamp::now());
        let deleted = outcome.deleted.iter().map(|deletion| EventDraft {
            warning: false,
            reason: format!("{}Deleted", deletion.types.kind),
            note: format!("{} {}: {}", deletion.types.kind, deletion.name, deletion.reason),
        });
        let mut drafts = deleted.collect::<Vec<_>>();
        let shown = resource.metadata.resource_version.as_deref();
        let behind = memory.status.is_behind(shown, self.pace.stale_max);
        if !behind
            && resource.status.as_ref() != Some(&next)
            && self.write_status(resource, &next, memory).await?
        {
            if counts_due {
                memory.counted = Some(Instant::now());
            }
            drafts.extend(events(&previous, &next));
        }
        publish(&self.calls, resource, &self.reporter, memory, &drafts).await;
        Ok(next)
    }

    /// False if the resource is another one by now: the watch will show it.
    async fn write_status(
        &self,
        resource: &ShardedEtcd,
        next: &ShardedEtcdStatus,
        memory: &mut Memory,
    ) -> Result<bool, ReconcileError> {
        let (namespace, name) = key_of(resource);
        let metadata = &resource.metadata;
        let object = json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "uid": metadata.uid, "resourceVersion": metadata.resource_version},
            "status": next,
        });
        match self.calls.status(&namespace, &name, &object).await {
            Ok(written) => {
                let version = written.metadata.resource_version.unwrap_or_default();
                memory.status.written = Some((version, Instant::now()));
                memory.status.conflicts = 0;
                Ok(true)
            }
            Err(error) if error.is_conflict() => {
                memory.status.conflicts = memory.status.conflicts.saturating_add(1);
                Ok(false)
            }
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(ReconcileError::Status(error)),
        }
    }

    /// When to look again, if nothing happens before.
    fn next(&self, outcome: &Outcome, memory: &mut Memory) -> Action {
        let failures = &outcome.applied.failures;
        let temporary = failures.iter().any(|failure| failure.temporary);
        memory.failures = if temporary { memory.failures.saturating_add(1) } else { 0 };
        let mut after = self.pace.resync;
        if !failures.is_empty() {
            after = after.min(self.pace.retry_max);
        }
        if !memory.foreign.is_empty() {
            after = after.min(FOREIGN);
        }
        if temporary {
            after = after.min(memory.backoff(self.pace.retry_min, self.pace.retry_max));
        }
        if outcome.again || memory.status.conflicts > 0 {
            memory.looks = memory.looks.saturating_add(1);
            after = after.min(memory.look_after(self.pace.again, self.pace.retry_max));
        } else {
            memory.looks = 0;
        }
        Action::requeue(after.max(Duration::from_millis(1)))
    }

    /// Logs what was refused, once.
    fn log_failures(&self, (namespace, name): &Key, applied: &Applied, memory: &mut Memory) {
        for failure in applied.failures.iter().filter(|failure| !memory.logged.contains(failure)) {
            let ApplyFailure { object, reason, message, .. } = failure;
            tracing::warn!(namespace, name, object, reason, message, "an object is not as it should be");
        }
        memory.logged.clone_from(&applied.failures);
    }
}

/// Whether nothing is under way.
fn is_steady(status: &ShardedEtcdStatus, observed: &Observed) -> bool {
    let holds = |type_: &str| {
        let mut conditions = status.conditions.iter();
        conditions.any(|condition| condition.type_ == type_ && condition.status == ConditionStatus::True)
    };
    status.observed_generation == observed.resource.metadata.generation
        && holds("Ready")
        && !holds("Reconciling")
        && status.moves.is_empty()
}
