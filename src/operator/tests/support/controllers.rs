//! Kubernetes' own controllers and the kubelets, as far as the operator depends on them. Stepped, so that a run is the
//! same each time.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use serde_json::{Value, json};

use super::{
    defaults,
    kinds::{self, Kind},
    store::{DeleteOptions, Object, Store, Write, now},
};

/// What keeps a pod from being Ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// No node has room.
    Unschedulable,
    /// The image is not to be had.
    ImagePullBackOff,
    /// The program ends again and again.
    CrashLoop,
    /// It runs and is not ready.
    NotReady,
}

/// What is on nodes and disks.
#[derive(Debug, Clone, Default)]
pub struct Machines {
    /// What the guard wrote to a volume, by the claim's uid: the token.
    pub disks: BTreeMap<String, String>,
    /// Pods whose names start so do not come up.
    pub stuck: Vec<(String, Stuck)>,
    /// Starts that the guard refused, as `pod: why`; each once.
    pub refused: BTreeSet<String>,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn uid(object: &Value) -> &str {
    text(&object["metadata"]["uid"])
}

fn dying(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

fn hash(value: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    format!("{:010x}", hasher.finish() & 0xff_ffff_ffff)
}

/// Whether a pod's condition `Ready` holds.
pub fn is_ready(pod: &Value) -> bool {
    !dying(pod) && has_condition(pod, "Ready")
}

fn has_condition(pod: &Value, wanted: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == wanted && c["status"] == "True")
}

fn controller(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"].as_array()?.iter().find(|o| o["controller"] == true)
}

fn is_controlled_by(object: &Value, owner: &str) -> bool {
    controller(object).is_some_and(|o| o["uid"] == owner)
}

fn owner(kind: &Kind, object: &Value) -> Value {
    json!({
        "apiVersion": kind.api_version(), "kind": kind.kind, "name": name(object), "uid": uid(object),
        "controller": true, "blockOwnerDeletion": true,
    })
}

fn owners(object: &Value) -> Vec<Value> {
    object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default()
}

/// A change that must fit, as nothing else writes meanwhile.
fn put(store: &mut Store, kind: &'static Kind, object: Value, write: &Write) {
    let (namespace, name) = (text(&object["metadata"]["namespace"]).to_owned(), name(&object).to_owned());
    store
        .replace(kind, &namespace, &name, object, write)
        .unwrap_or_else(|e| panic!("{}: {}", kind.kind, e.message));
}

/// A controller's word on an object; most often it is what it was.
fn set_status(store: &mut Store, kind: &'static Kind, object: &Value, status: Value, controller: &str) {
    if object["status"] != status {
        let mut object = object.clone();
        object["status"] = status;
        put(store, kind, object, &Write::status(controller));
    }
}

fn erase(store: &mut Store, kind: &'static Kind, object: &Value, grace: Option<i64>) {
    let options = DeleteOptions { grace, ..DeleteOptions::default() };
    let _ = store.delete(kind, text(&object["metadata"]["namespace"]), name(object), &options);
}

/// One step of everything in one namespace.
pub fn step(store: &mut Store, machines: &mut Machines, namespace: &str) {
    collect_garbage(store, namespace);
    for set in store.list(&kinds::STATEFUL_SETS, Some(namespace)) {
        stateful_set(store, namespace, &set);
    }
    for deployment in store.list(&kinds::DEPLOYMENTS, Some(namespace)) {
        self::deployment(store, namespace, &deployment);
    }
    claims(store, namespace);
    kubelets(store, machines, namespace);
}

fn collect_garbage(store: &mut Store, namespace: &str) {
    let objects = store.in_namespace(namespace);
    let alive: BTreeMap<&str, &Object> = objects.iter().map(|(_, o)| (uid(o), o)).collect();
    let finalizers = |o: &Value| o["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    for (key, object) in &objects {
        let owners = owners(object);
        if owners.is_empty() {
            continue;
        }
        let keeps = |o: &Value| {
            alive
                .get(text(&o["uid"]))
                .is_some_and(|o| !(dying(o) && finalizers(o).contains(&json!("orphan"))))
        };
        let kept: Vec<Value> = owners.iter().filter(|o| keeps(o)).cloned().collect();
        let all_gone = owners.iter().all(|o| !alive.contains_key(text(&o["uid"])));
        if all_gone {
            if !dying(object) {
                let _ = store.delete(key.kind(), namespace, &key.name, &DeleteOptions::default());
            }
        } else if kept.len() != owners.len() {
            let mut object = (**object).clone();
            object["metadata"]["ownerReferences"] = json!(kept);
            if kept.is_empty() {
                object["metadata"].as_object_mut().expect("metadata").remove("ownerReferences");
            }
            put(store, key.kind(), object, &Write::by("garbage-collector"));
        } else {
            let foreground = |o: &Value| {
                alive
                    .get(text(&o["uid"]))
                    .is_some_and(|o| dying(o) && finalizers(o).contains(&json!("foregroundDeletion")))
            };
            if owners.iter().all(foreground) && !dying(object) {
                let _ = store.delete(key.kind(), namespace, &key.name, &DeleteOptions::default());
            }
        }
    }
    for (key, object) in &objects {
        let held = finalizers(object);
        if !dying(object) || held.is_empty() {
            continue;
        }
        let dependents = store.in_namespace(namespace).iter().any(|(_, o)| {
            owners(o).iter().any(|owner| owner["uid"] == uid(object) && owner["blockOwnerDeletion"] == true)
        });
        let rest: Vec<Value> =
            held.into_iter().filter(|f| f != "orphan" && (f != "foregroundDeletion" || dependents)).collect();
        if rest.len() == finalizers(object).len() {
            continue;
        }
        if let Some(live) = store.get(key.kind(), namespace, &key.name) {
            let mut live = (*live).clone();
            live["metadata"]["finalizers"] = json!(rest);
            put(store, key.kind(), live, &Write::by("garbage-collector"));
        }
    }
}

fn stateful_set(store: &mut Store, namespace: &str, set: &Value) {
    if dying(set) {
        return;
    }
    let by = Write::by("statefulset-controller");
    let (set_name, spec) = (name(set), &set["spec"]);
    let replicas = spec["replicas"].as_u64().unwrap_or(1);
    let revision = format!("{set_name}-{}", hash(&spec["template"]));
    let parallel = spec["podManagementPolicy"] == "Parallel";
    let selector = spec["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
    let mut ready_before = true;
    for ordinal in 0..replicas {
        let pod_name = format!("{set_name}-{ordinal}");
        for template in spec["volumeClaimTemplates"].as_array().into_iter().flatten() {
            claim_of(store, namespace, set, template, &pod_name);
        }
        match store.get(&kinds::PODS, namespace, &pod_name) {
            Some(pod) if controller(&pod).is_none() && !dying(&pod) => {
                let matches = selector.iter().all(|(k, v)| pod["metadata"]["labels"].get(k) == Some(v));
                if matches {
                    let mut pod = (*pod).clone();
                    let mut list = owners(&pod);
                    list.push(owner(&kinds::STATEFUL_SETS, set));
                    pod["metadata"]["ownerReferences"] = json!(list);
                    put(store, &kinds::PODS, pod, &by);
                }
            }
            Some(pod) => ready_before &= is_ready(&pod),
            None if parallel || ready_before => {
                let pod = member(set, &pod_name, ordinal, &revision);
                store.create(&kinds::PODS, namespace, pod, &by).expect("a pod of a set that was accepted");
                ready_before = false;
            }
            None => {}
        }
    }
    let own: Vec<Object> = store
        .list(&kinds::PODS, Some(namespace))
        .into_iter()
        .filter(|pod| is_controlled_by(pod, uid(set)))
        .collect();
    let ordinal =
        |pod: &Value| name(pod).rsplit('-').next().and_then(|o| o.parse::<u64>().ok()).unwrap_or(u64::MAX);
    for pod in own.iter().filter(|pod| ordinal(pod) >= replicas && !dying(pod)) {
        erase(store, &kinds::PODS, pod, None);
    }
    let is_new = |pod: &Value| pod["metadata"]["labels"]["controller-revision-hash"] == *revision;
    if spec["updateStrategy"]["type"] == "RollingUpdate"
        && own.iter().all(|p| is_ready(p))
        && let Some(pod) = own.iter().rev().find(|pod| !is_new(pod))
    {
        erase(store, &kinds::PODS, pod, None);
    }
    let count = |f: &dyn Fn(&Value) -> bool| own.iter().filter(|pod| f(pod)).count();
    let current = match text(&set["status"]["currentRevision"]) {
        "" => revision.clone(),
        other => other.to_owned(),
    };
    let of_current = |pod: &Value| pod["metadata"]["labels"]["controller-revision-hash"] == *current;
    let status = json!({
        "observedGeneration": set["metadata"]["generation"],
        "replicas": own.len(),
        "readyReplicas": count(&is_ready),
        "availableReplicas": count(&is_ready),
        "currentReplicas": count(&of_current),
        "updatedReplicas": count(&is_new),
        "currentRevision": current,
        "updateRevision": revision,
        "collisionCount": 0,
    });
    set_status(store, &kinds::STATEFUL_SETS, set, status, "statefulset-controller");
}

fn claim_of(store: &mut Store, namespace: &str, set: &Value, template: &Value, pod: &str) {
    let by = Write::by("statefulset-controller");
    let claim_name = format!("{}-{pod}", name(template));
    let policy = &set["spec"]["persistentVolumeClaimRetentionPolicy"];
    let wanted = policy["whenDeleted"] == "Delete";
    match store.get(&kinds::CLAIMS, namespace, &claim_name) {
        None => {
            let mut labels = set["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
            labels.extend(template["metadata"]["labels"].as_object().cloned().unwrap_or_default());
            let mut claim = json!({
                "metadata": {
                    "name": claim_name, "labels": labels, "finalizers": ["kubernetes.io/pvc-protection"],
                    "annotations": template["metadata"]["annotations"],
                },
                "spec": template["spec"],
            });
            if wanted {
                claim["metadata"]["ownerReferences"] = json!([claim_owner(set)]);
            }
            if claim["spec"]["storageClassName"].is_null() {
                claim["spec"]["storageClassName"] = json!("standard");
            }
            store.create(&kinds::CLAIMS, namespace, claim, &by).expect("a claim of a set that was accepted");
        }
        Some(claim) if !dying(&claim) => {
            let mut list = owners(&claim);
            let has = list.iter().any(|o| o["uid"] == uid(set));
            if has != wanted {
                list.retain(|o| o["uid"] != uid(set));
                list.extend(wanted.then(|| claim_owner(set)));
                let mut claim = (*claim).clone();
                claim["metadata"]["ownerReferences"] = json!(list);
                put(store, &kinds::CLAIMS, claim, &by);
            }
        }
        Some(_) => {}
    }
}

fn claim_owner(set: &Value) -> Value {
    let mut owner = owner(&kinds::STATEFUL_SETS, set);
    owner.as_object_mut().expect("an object").remove("blockOwnerDeletion");
    owner
}

fn member(set: &Value, pod: &str, ordinal: u64, revision: &str) -> Value {
    let mut template = set["spec"]["template"].clone();
    let labels = &mut template["metadata"]["labels"];
    labels["controller-revision-hash"] = json!(revision);
    labels["statefulset.kubernetes.io/pod-name"] = json!(pod);
    labels["apps.kubernetes.io/pod-index"] = json!(ordinal.to_string());
    template["metadata"]["name"] = json!(pod);
    template["metadata"]["ownerReferences"] = json!([owner(&kinds::STATEFUL_SETS, set)]);
    template["spec"]["hostname"] = json!(pod);
    template["spec"]["subdomain"] = set["spec"]["serviceName"].clone();
    let claims = set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
    let mut volumes = template["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    volumes.extend(claims.map(|claim| {
        json!({"name": name(claim), "persistentVolumeClaim": {"claimName": format!("{}-{pod}", name(claim))}})
    }));
    template["spec"]["volumes"] = json!(volumes);
    template
}

fn deployment(store: &mut Store, namespace: &str, deployment: &Value) {
    if dying(deployment) {
        return;
    }
    let by = Write::by("deployment-controller");
    let (deployment_name, spec) = (name(deployment), &deployment["spec"]);
    let replicas = spec["replicas"].as_u64().unwrap_or(1);
    let revision = hash(&spec["template"]);
    let set_name = format!("{deployment_name}-{revision}");
    let mut template = spec["template"].clone();
    template["metadata"]["labels"]["pod-template-hash"] = json!(revision);
    if store.get(&kinds::REPLICA_SETS, namespace, &set_name).is_none() {
        let set = json!({
            "metadata": {
                "name": set_name, "labels": template["metadata"]["labels"],
                "ownerReferences": [owner(&kinds::DEPLOYMENTS, deployment)],
            },
            "spec": {"replicas": replicas, "selector": spec["selector"], "template": template},
        });
        store
            .create(&kinds::REPLICA_SETS, namespace, set, &by)
            .expect("a set of a deployment that was accepted");
    }
    let sets: Vec<Object> = store
        .list(&kinds::REPLICA_SETS, Some(namespace))
        .into_iter()
        .filter(|set| is_controlled_by(set, uid(deployment)) && !dying(set))
        .collect();
    let new_set = sets.iter().find(|set| name(set) == set_name).cloned();
    let Some(new_set) = new_set else { return };
    for ordinal in 0..replicas {
        let pod_name = format!("{set_name}-{ordinal}");
        if store.get(&kinds::PODS, namespace, &pod_name).is_none() {
            let mut pod = template.clone();
            pod["metadata"]["name"] = json!(pod_name);
            pod["metadata"]["ownerReferences"] = json!([owner(&kinds::REPLICA_SETS, &new_set)]);
            store.create(&kinds::PODS, namespace, pod, &by).expect("a pod of a deployment that was accepted");
        }
    }
    let pods = store.list(&kinds::PODS, Some(namespace));
    let of =
        |set: &Value| -> Vec<&Object> { pods.iter().filter(|pod| is_controlled_by(pod, uid(set))).collect() };
    let ready = |pods: &[&Object]| pods.iter().filter(|pod| is_ready(pod)).count() as u64;
    let new = of(&new_set);
    let ordinal =
        |pod: &Value| name(pod).rsplit('-').next().and_then(|o| o.parse::<u64>().ok()).unwrap_or(u64::MAX);
    for pod in new.iter().filter(|pod| ordinal(pod) >= replicas && !dying(pod)) {
        erase(store, &kinds::PODS, pod, None);
    }
    let mut total = new.len();
    let mut all_ready = ready(&new);
    for set in sets.iter().filter(|set| name(set) != set_name) {
        let old = of(set);
        total += old.len();
        all_ready += ready(&old);
        if ready(&new) >= replicas {
            old.iter().filter(|pod| !dying(pod)).for_each(|pod| erase(store, &kinds::PODS, pod, None));
            if old.is_empty() {
                erase(store, &kinds::REPLICA_SETS, set, None);
            }
        }
    }
    let available = all_ready >= replicas;
    let condition = |kind: &str, holds: bool, reason: &str| {
        let old =
            deployment["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
        let status = if holds { "True" } else { "False" };
        let since = old.filter(|c| c["status"] == status).map(|c| c["lastTransitionTime"].clone());
        json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime":
            since.unwrap_or_else(|| json!(now()))})
    };
    let status = json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": total,
        "updatedReplicas": new.len(),
        "readyReplicas": all_ready,
        "availableReplicas": all_ready,
        "unavailableReplicas": (total as u64).saturating_sub(all_ready),
        "conditions": [
            condition("Available", available, "MinimumReplicasAvailable"),
            condition("Progressing", true, "NewReplicaSetAvailable"),
        ],
    });
    set_status(store, &kinds::DEPLOYMENTS, deployment, status, "deployment-controller");
}

fn claims(store: &mut Store, namespace: &str) {
    let pods = store.list(&kinds::PODS, Some(namespace));
    for claim in store.list(&kinds::CLAIMS, Some(namespace)) {
        if dying(&claim) {
            let used = pods.iter().any(|pod| claims_of(pod).any(|c| c == name(&claim)));
            if !used {
                let mut claim = (*claim).clone();
                claim["metadata"]["finalizers"] = json!([]);
                put(store, &kinds::CLAIMS, claim, &Write::by("pvc-protection"));
            }
            continue;
        }
        let class = store.get(&kinds::STORAGE_CLASSES, "", text(&claim["spec"]["storageClassName"]));
        let Some(class) = class else { continue };
        let wanted = &claim["spec"]["resources"]["requests"]["storage"];
        let has = &claim["status"]["capacity"]["storage"];
        if has == wanted {
            continue;
        }
        let grows = !has.is_null();
        if grows && class["allowVolumeExpansion"] != true {
            continue;
        }
        let mut new = (*claim).clone();
        if !grows {
            new["spec"]["volumeName"] = json!(format!("pvc-{}", uid(&claim)));
            put(store, &kinds::CLAIMS, new, &Write::by("provisioner"));
            new = (*store.get(&kinds::CLAIMS, namespace, name(&claim)).expect("just written")).clone();
        }
        new["status"] = json!({
            "phase": "Bound", "accessModes": claim["spec"]["accessModes"], "capacity": {"storage": wanted},
        });
        put(store, &kinds::CLAIMS, new, &Write::status("provisioner"));
    }
}

fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
}

fn kubelets(store: &mut Store, machines: &mut Machines, namespace: &str) {
    for pod in store.list(&kinds::PODS, Some(namespace)) {
        if dying(&pod) {
            erase(store, &kinds::PODS, &pod, Some(0));
            continue;
        }
        let stuck = machines.stuck.iter().find(|(prefix, _)| name(&pod).starts_with(prefix)).map(|(_, s)| *s);
        let status = pod_status(store, machines, &pod, stuck);
        if text(&pod["spec"]["nodeName"]).is_empty()
            && has_condition(&json!({"status": status}), "PodScheduled")
        {
            let mut pod = (*pod).clone();
            pod["spec"]["nodeName"] = json!("node-1");
            put(store, &kinds::PODS, pod, &Write::by("scheduler"));
            continue;
        }
        set_status(store, &kinds::PODS, &pod, status, "kubelet");
    }
}

/// The pod's next status.
fn pod_status(store: &Store, machines: &mut Machines, pod: &Value, stuck: Option<Stuck>) -> Value {
    let namespace = text(&pod["metadata"]["namespace"]);
    let old = &pod["status"];
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let known = old["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
        let since = known.filter(|c| c["status"] == status).map(|c| c["lastTransitionTime"].clone());
        let mut condition = json!({"type": kind, "status": status,
            "lastTransitionTime": since.unwrap_or_else(|| json!(now()))});
        if !reason.is_empty() {
            condition["reason"] = json!(reason);
            condition["message"] = json!(message);
        }
        condition
    };
    let unbound = claims_of(pod).any(|claim| {
        store
            .get(&kinds::CLAIMS, namespace, claim)
            .is_none_or(|c| c["status"]["phase"] != "Bound" || dying(&c))
    });
    if old["phase"] != "Running" && (unbound || stuck == Some(Stuck::Unschedulable)) {
        let message = if unbound {
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
        } else {
            "0/1 nodes are available: 1 Insufficient memory."
        };
        return json!({"phase": "Pending", "conditions": [condition("PodScheduled", false, "Unschedulable", message)]});
    }
    let containers = |which: &str, state: &dyn Fn(&Value) -> (bool, Value)| -> Value {
        let list = pod["spec"][which].as_array().into_iter().flatten().map(|container| {
            let (ready, state) = state(container);
            json!({
                "name": container["name"], "image": container["image"], "imageID": container["image"],
                "ready": ready, "started": ready, "restartCount": 0, "state": state,
            })
        });
        Value::Array(list.collect())
    };
    let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
    let pending = |init: Value, main: Value| {
        json!({
            "phase": "Pending",
            "conditions": [
                condition("PodScheduled", true, "", ""),
                condition("Initialized", false, "ContainersNotInitialized", "containers with incomplete status"),
                condition("ContainersReady", false, "ContainersNotReady", "containers with unready status"),
                condition("Ready", false, "ContainersNotReady", "containers with unready status"),
            ],
            "initContainerStatuses": init, "containerStatuses": main,
        })
    };
    let initializing = |reason: &str, message: &str| {
        let init = containers("initContainers", &|_| (false, waiting(reason, message)));
        pending(init, containers("containers", &|_| (false, waiting("PodInitializing", ""))))
    };
    if text(&pod["spec"]["nodeName"]).is_empty() {
        return json!({"phase": "Pending", "conditions": [condition("PodScheduled", true, "", "")]});
    }
    if stuck == Some(Stuck::ImagePullBackOff) {
        let why = "Back-off pulling image";
        return match pod["spec"]["initContainers"].as_array() {
            Some(list) if !list.is_empty() => initializing("ImagePullBackOff", why),
            _ => pending(json!([]), containers("containers", &|_| (false, waiting("ImagePullBackOff", why)))),
        };
    }
    if old["phase"] != "Running"
        && let Err((reason, why)) = guard(store, machines, pod)
    {
        machines.refused.insert(format!("{}: {why}", name(pod)));
        return initializing(reason, &why);
    }
    let up = match stuck {
        Some(Stuck::CrashLoop | Stuck::NotReady) => false,
        _ => old["phase"] == "Running" && has_quorum(store, pod),
    };
    let init = containers("initContainers", &|_| {
        let ended = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        (true, ended)
    });
    let running = containers("containers", &|_| match stuck {
        Some(Stuck::CrashLoop) => {
            (false, waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container"))
        }
        _ => (up, json!({"running": {"startedAt": pod["metadata"]["creationTimestamp"]}})),
    });
    json!({
        "phase": "Running", "podIP": "10.88.1.1", "podIPs": [{"ip": "10.88.1.1"}], "hostIP": "10.99.0.1",
        "startTime": pod["metadata"]["creationTimestamp"],
        "conditions": [
            condition("PodScheduled", true, "", ""),
            condition("Initialized", true, "", ""),
            condition("ContainersReady", up, if up { "" } else { "ContainersNotReady" }, ""),
            condition("Ready", up, if up { "" } else { "ContainersNotReady" }, ""),
        ],
        "initContainerStatuses": init, "containerStatuses": running,
    })
}

/// A member of etcd is ready only when more than half of its cluster runs.
fn has_quorum(store: &Store, pod: &Value) -> bool {
    let Some(owner) = controller(pod).filter(|o| o["kind"] == "StatefulSet") else { return true };
    let namespace = text(&pod["metadata"]["namespace"]);
    let Some(set) = store.get(&kinds::STATEFUL_SETS, namespace, text(&owner["name"])) else { return true };
    let replicas = set["spec"]["replicas"].as_u64().unwrap_or(1);
    let running = |ordinal: &u64| {
        let pod = store.get(&kinds::PODS, namespace, &format!("{}-{ordinal}", name(&set)));
        pod.is_some_and(|pod| pod["status"]["phase"] == "Running" && !dying(&pod))
    };
    (0..replicas).filter(running).count() as u64 > replicas / 2
}

/// What the guard of a member's volume does, see the command `member-guard`.
fn guard(store: &Store, machines: &mut Machines, pod: &Value) -> Result<(), (&'static str, String)> {
    let init = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    let words = |container: &Value| -> Vec<String> {
        let both = [&container["command"], &container["args"]];
        both.iter().filter_map(|l| l.as_array()).flatten().map(|w| text(w).to_owned()).collect()
    };
    let Some((container, words)) =
        init.map(|c| (c, words(c))).find(|(_, words)| words.iter().any(|w| w == "member-guard"))
    else {
        return Ok(());
    };
    let namespace = text(&pod["metadata"]["namespace"]);
    let mut environment = BTreeMap::new();
    for variable in container["env"].as_array().into_iter().flatten() {
        let reference = &variable["valueFrom"]["configMapKeyRef"];
        let value = if reference.is_object() {
            let map = store.get(&kinds::CONFIG_MAPS, namespace, text(&reference["name"]));
            let value = map.and_then(|m| m["data"][text(&reference["key"])].as_str().map(str::to_owned));
            value.ok_or_else(|| {
                ("CreateContainerConfigError", format!("couldn't find key {}", reference["key"]))
            })?
        } else {
            text(&variable["value"]).to_owned()
        };
        environment.insert(text(&variable["name"]).to_owned(), value);
    }
    let argument = |flag: &str| -> String {
        let at = words.iter().position(|w| *w == format!("--{flag}"));
        let raw = at
            .and_then(|at| words.get(at + 1))
            .cloned()
            .or_else(|| words.iter().find_map(|w| w.strip_prefix(&format!("--{flag}=")).map(str::to_owned)));
        let by_name = environment.get(&format!("SHARDED_ETCD_{}", flag.to_uppercase()));
        let mut value =
            raw.or_else(|| by_name.cloned()).unwrap_or_else(|| panic!("the guard has no --{flag}"));
        for (name, text) in &environment {
            value = value.replace(&format!("$({name})"), text);
        }
        value
    };
    let (token, state) = (argument("token"), argument("state"));
    let claim = claims_of(pod).next().expect("a member has a volume");
    let claim = store.get(&kinds::CLAIMS, namespace, claim).expect("it is bound");
    match (machines.disks.get(uid(&claim)), state.as_str()) {
        (Some(found), _) if *found == token => Ok(()),
        (Some(found), _) => Err(("CrashLoopBackOff", format!("the volume is of {found}, not of {token}"))),
        (None, "new") => {
            machines.disks.insert(uid(&claim).to_owned(), token);
            Ok(())
        }
        (None, "existing") => {
            Err(("CrashLoopBackOff", "the volume of an existing member is empty".to_owned()))
        }
        (None, other) => panic!("the guard knows no --state {other}"),
    }
}

/// The size that a claim has.
pub fn capacity(claim: &Value) -> u128 {
    defaults::bytes(&claim["status"]["capacity"]["storage"])
}
