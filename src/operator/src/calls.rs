//! Calls to the API server that change something: counted, bounded in time, and only while this replica may act.

use std::{future::Future, sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, TypeMeta},
};
use serde_json::Value;
use sharded_etcd_crd::ShardedEtcd;
use tokio::time::timeout;

use crate::{
    leader::{Leadership, NotLeading},
    metrics::Metrics,
    model::ApplyFailure,
    names::MANAGED_BY,
};

/// Field manager of the status.
const STATUS_MANAGER: &str = "sharded-etcd-operator-status";
/// A call takes at most this long.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Why a call did nothing, or may have done nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing was sent.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    /// No answer in time; it may have been carried out.
    #[error("the API server does not answer in {CALL_MAX:?}")]
    Timeout,
    /// Refused, or not sent.
    #[error("the API server refuses the call, or cannot be reached")]
    Kube(#[source] Box<kube::Error>),
}

impl From<kube::Error> for CallError {
    fn from(error: kube::Error) -> Self {
        Self::Kube(Box::new(error))
    }
}

impl CallError {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Kube(error) => match &**error {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    /// The object is another one by now, or has been changed.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// The object is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// As a part of what became of the resource's objects.
    pub(crate) fn failure(&self, object: String) -> ApplyFailure {
        let Some(status) = self.status() else {
            let message = match self {
                Self::Kube(error) => error.to_string(),
                other => other.to_string(),
            };
            return ApplyFailure { object, reason: "Unreachable".to_owned(), message, temporary: true };
        };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let terminating = causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating");
        let temporary = terminating || matches!(status.code, 401 | 404 | 408 | 409 | 429 | 500..);
        let reason = if status.reason.is_empty() { status.code.to_string() } else { status.reason.clone() };
        ApplyFailure { object, reason, message: status.message.clone(), temporary }
    }
}

/// Reads and writes of the API server. Writes are server-side applies of one field manager.
#[derive(Clone)]
pub(crate) struct Calls {
    client: Client,
    leadership: Leadership,
    metrics: Arc<Metrics>,
}

impl Calls {
    pub(crate) fn new(client: Client, leadership: Leadership, metrics: Arc<Metrics>) -> Self {
        Self { client, leadership, metrics }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a write, if this replica may act, and no later than it may.
    pub(crate) async fn write<T>(
        &self,
        kind: &str,
        verb: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        let max = self.leadership.check(CALL_MAX)?;
        self.metrics.wrote(kind, verb);
        Ok(timeout(max, call).await.map_err(|_| CallError::Timeout)??)
    }

    async fn read<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
        let max = self.leadership.check(CALL_MAX)?;
        Ok(timeout(max, call).await.map_err(|_| CallError::Timeout)??)
    }

    /// The object as it is now.
    pub(crate) async fn get(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
    ) -> Result<Option<DynamicObject>, CallError> {
        self.read(api.get_opt(name)).await
    }

    /// The pods with these labels as they are now.
    pub(crate) async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>, CallError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        Ok(self.read(api.list(&ListParams::default().labels(selector))).await?.items)
    }

    /// Server-side apply. `force` takes fields over from other managers.
    pub(crate) async fn apply(
        &self,
        api: &Api<DynamicObject>,
        types: &TypeMeta,
        name: &str,
        object: &Value,
        force: bool,
    ) -> Result<DynamicObject, CallError> {
        let params = PatchParams { force, ..PatchParams::apply(MANAGED_BY) };
        self.write(&types.kind, "apply", api.patch(name, &params, &Patch::Apply(object))).await
    }

    /// JSON merge patch.
    pub(crate) async fn merge(
        &self,
        api: &Api<DynamicObject>,
        kind: &str,
        name: &str,
        patch: &Value,
    ) -> Result<DynamicObject, CallError> {
        let params = PatchParams { field_manager: Some(MANAGED_BY.to_owned()), ..PatchParams::default() };
        self.write(kind, "patch", api.patch(name, &params, &Patch::Merge(patch))).await
    }

    /// Server-side apply of a resource's status.
    pub(crate) async fn status(
        &self,
        namespace: &str,
        name: &str,
        object: &Value,
    ) -> Result<ShardedEtcd, CallError> {
        let api = Api::<ShardedEtcd>::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(STATUS_MANAGER).force();
        self.write("ShardedEtcd", "apply_status", api.patch_status(name, &params, &Patch::Apply(object)))
            .await
    }

    /// The API of objects of a kind that the operator knows. `None` for others.
    pub(crate) fn api(&self, kind: &str, namespace: &str) -> Option<Api<DynamicObject>> {
        let resource = match kind {
            "ConfigMap" => ApiResource::erase::<ConfigMap>(&()),
            "Deployment" => ApiResource::erase::<Deployment>(&()),
            "NetworkPolicy" => ApiResource::erase::<NetworkPolicy>(&()),
            "PersistentVolumeClaim" => ApiResource::erase::<PersistentVolumeClaim>(&()),
            "Pod" => ApiResource::erase::<Pod>(&()),
            "PodDisruptionBudget" => ApiResource::erase::<PodDisruptionBudget>(&()),
            "Service" => ApiResource::erase::<Service>(&()),
            "ServiceAccount" => ApiResource::erase::<ServiceAccount>(&()),
            "ShardedEtcd" => ApiResource::erase::<ShardedEtcd>(&()),
            "StatefulSet" => ApiResource::erase::<StatefulSet>(&()),
            _ => return None,
        };
        Some(Api::namespaced_with(self.client.clone(), namespace, &resource))
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{
        Status,
        response::{StatusCause, StatusDetails},
    };

    use super::*;

    fn failure(code: u16, reason: &str, causes: Vec<StatusCause>) -> ApplyFailure {
        let details = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes,
            retry_after_seconds: 0,
        };
        let status = Status::failure("why", reason).with_code(code).with_details(details);
        CallError::from(kube::Error::Api(status.boxed())).failure("Pod a".into())
    }

    #[test]
    fn what_may_end_by_itself_is_temporary() {
        let temporary = |code, reason| failure(code, reason, Vec::new()).temporary;
        assert!(temporary(409, "Conflict") && temporary(429, "TooManyRequests") && temporary(503, ""));
        assert!(!temporary(422, "Invalid") && !temporary(403, "Forbidden"));
        let cause = StatusCause {
            reason: "NamespaceTerminating".into(),
            message: String::new(),
            field: String::new(),
        };
        assert!(failure(403, "Forbidden", vec![cause]).temporary);
        assert_eq!(failure(503, "", Vec::new()).reason, "503");
        assert!(CallError::Timeout.failure("Pod a".into()).temporary);
    }
}
