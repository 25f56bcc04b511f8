//! What the real API server fills in, writes differently, and refuses.

use std::sync::LazyLock;

use k8s_openapi::api;
use serde_json::{Map, Value, json};
use sharded_etcd_crd::ShardedEtcd;

use super::{
    kinds::{self, Kind},
    store::Refusal,
};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let crd: Value = serde_saphyr::from_str(&sharded_etcd_crd::crd_yaml()).expect("YAML");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
});

/// The schema of the custom resource.
pub fn schema() -> &'static Value {
    &SCHEMA
}

fn set(map: &mut Value, name: &str, default: Value) {
    if let Some(map) = map.as_object_mut() {
        let value = map.entry(name).or_insert(Value::Null);
        if value.is_null() {
            *value = default;
        }
    }
}

fn each(value: &mut Value, list: &str, mut f: impl FnMut(&mut Value)) {
    if let Some(items) = value.get_mut(list).and_then(Value::as_array_mut) {
        items.iter_mut().for_each(&mut f);
    }
}

/// Fills in what was left out.
pub fn complete(kind: &Kind, object: &mut Value, uid_number: u64) {
    let spec = |object: &mut Value| object.get_mut("spec").map(Value::take).unwrap_or_else(|| json!({}));
    if *kind == kinds::SHARDED_ETCDS {
        schema_defaults(&SCHEMA, object);
    } else if *kind == kinds::STATEFUL_SETS {
        let mut s = spec(object);
        for (name, default) in [
            ("podManagementPolicy", json!("OrderedReady")),
            ("replicas", json!(1)),
            ("revisionHistoryLimit", json!(10)),
            ("persistentVolumeClaimRetentionPolicy", json!({})),
            ("updateStrategy", json!({})),
        ] {
            set(&mut s, name, default);
        }
        set(&mut s["persistentVolumeClaimRetentionPolicy"], "whenDeleted", json!("Retain"));
        set(&mut s["persistentVolumeClaimRetentionPolicy"], "whenScaled", json!("Retain"));
        set(&mut s["updateStrategy"], "type", json!("RollingUpdate"));
        if s["updateStrategy"]["type"] == "RollingUpdate" {
            set(&mut s["updateStrategy"], "rollingUpdate", json!({"partition": 0}));
        }
        template(&mut s["template"]);
        each(&mut s, "volumeClaimTemplates", |claim| {
            set(claim, "apiVersion", json!("v1"));
            set(claim, "kind", json!("PersistentVolumeClaim"));
            set(claim, "status", json!({"phase": "Pending"}));
            if let Some(claim) = claim.get_mut("spec") {
                set(claim, "volumeMode", json!("Filesystem"));
                resources(&mut claim["resources"]);
            }
        });
        object["spec"] = s;
    } else if *kind == kinds::DEPLOYMENTS {
        let mut s = spec(object);
        for (name, default) in [
            ("replicas", json!(1)),
            ("revisionHistoryLimit", json!(10)),
            ("progressDeadlineSeconds", json!(600)),
            ("strategy", json!({})),
        ] {
            set(&mut s, name, default);
        }
        set(&mut s["strategy"], "type", json!("RollingUpdate"));
        if s["strategy"]["type"] == "RollingUpdate" {
            set(&mut s["strategy"], "rollingUpdate", json!({}));
            set(&mut s["strategy"]["rollingUpdate"], "maxSurge", json!("25%"));
            set(&mut s["strategy"]["rollingUpdate"], "maxUnavailable", json!("25%"));
        }
        template(&mut s["template"]);
        object["spec"] = s;
    } else if *kind == kinds::PODS {
        pod_spec(&mut object["spec"]);
    } else if *kind == kinds::SERVICES {
        let mut s = spec(object);
        set(&mut s, "type", json!("ClusterIP"));
        set(&mut s, "sessionAffinity", json!("None"));
        set(&mut s, "internalTrafficPolicy", json!("Cluster"));
        set(&mut s, "ipFamilies", json!(["IPv4"]));
        set(&mut s, "ipFamilyPolicy", json!("SingleStack"));
        set(&mut s, "clusterIP", json!(format!("10.96.{}.{}", uid_number / 250 % 250, uid_number % 250 + 1)));
        let ip = s["clusterIP"].clone();
        set(&mut s, "clusterIPs", json!([ip]));
        let outside = s["type"] != "ClusterIP";
        if outside {
            set(&mut s, "externalTrafficPolicy", json!("Cluster"));
        } else if let Some(s) = s.as_object_mut() {
            s.remove("externalTrafficPolicy");
            s.remove("allocateLoadBalancerNodePorts");
        }
        if s["type"] == "LoadBalancer" {
            set(&mut s, "allocateLoadBalancerNodePorts", json!(true));
        } else if let Some(s) = s.as_object_mut() {
            s.remove("allocateLoadBalancerNodePorts");
        }
        let mut node_port = 30000 + uid_number % 2000;
        each(&mut s, "ports", |port| {
            set(port, "protocol", json!("TCP"));
            let number = port["port"].clone();
            set(port, "targetPort", number);
            if outside {
                set(port, "nodePort", json!(node_port));
                node_port += 1;
            } else if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        });
        object["spec"] = s;
        set(object, "status", json!({"loadBalancer": {}}));
    } else if *kind == kinds::CLAIMS {
        let mut s = spec(object);
        set(&mut s, "volumeMode", json!("Filesystem"));
        resources(&mut s["resources"]);
        object["spec"] = s;
        set(object, "status", json!({"phase": "Pending"}));
    } else if *kind == kinds::NETWORK_POLICIES {
        let mut s = spec(object);
        let mut types = vec!["Ingress"];
        if s.get("egress").is_some() {
            types.push("Egress");
        }
        set(&mut s, "policyTypes", json!(types));
        for (list, _) in [("ingress", "from"), ("egress", "to")] {
            each(&mut s, list, |rule| each(rule, "ports", |port| set(port, "protocol", json!("TCP"))));
        }
        object["spec"] = s;
    }
}

fn schema_defaults(schema: &Value, value: &mut Value) {
    if let (Some(properties), Some(map)) = (schema["properties"].as_object(), value.as_object_mut()) {
        for (name, schema) in properties {
            if let Some(default) = schema.get("default")
                && map.get(name).is_none_or(Value::is_null)
                && !schema["nullable"].as_bool().unwrap_or(false)
            {
                map.insert(name.clone(), default.clone());
            }
            if let Some(value) = map.get_mut(name) {
                schema_defaults(schema, value);
            }
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array_mut()) {
        values.iter_mut().for_each(|value| schema_defaults(items, value));
    }
}

fn template(template: &mut Value) {
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("creationTimestamp");
    }
    pod_spec(&mut template["spec"]);
}

fn pod_spec(spec: &mut Value) {
    if spec.is_null() {
        *spec = json!({});
    }
    for (name, default) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("securityContext", json!({})),
    ] {
        set(spec, name, default);
    }
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        set(spec, "serviceAccount", account);
    }
    for containers in ["containers", "initContainers"] {
        each(spec, containers, |container| {
            set(container, "terminationMessagePath", json!("/dev/termination-log"));
            set(container, "terminationMessagePolicy", json!("File"));
            let image = container["image"].as_str().unwrap_or_default();
            let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
            let pull = if matches!(tag, None | Some("latest")) { "Always" } else { "IfNotPresent" };
            set(container, "imagePullPolicy", json!(pull));
            if container.get("resources").is_none() {
                container["resources"] = json!({});
            }
            resources(&mut container["resources"]);
            each(container, "ports", |port| set(port, "protocol", json!("TCP")));
            each(container, "env", |env| {
                if let Some(reference) = env.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")) {
                    set(reference, "apiVersion", json!("v1"));
                }
            });
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let Some(probe) = container.get_mut(probe) else { continue };
                for (name, default) in [
                    ("timeoutSeconds", 1),
                    ("periodSeconds", 10),
                    ("successThreshold", 1),
                    ("failureThreshold", 3),
                ] {
                    set(probe, name, json!(default));
                }
                if let Some(get) = probe.get_mut("httpGet") {
                    set(get, "scheme", json!("HTTP"));
                    set(get, "path", json!("/"));
                }
            }
        });
    }
    each(spec, "volumes", |volume| {
        for source in ["configMap", "secret", "projected", "downwardAPI"] {
            if let Some(source) = volume.get_mut(source) {
                set(source, "defaultMode", json!(420));
            }
        }
    });
}

fn resources(resources: &mut Value) {
    let Some(map) = resources.as_object_mut() else { return };
    for list in ["limits", "requests"] {
        if let Some(list) = map.get_mut(list).and_then(Value::as_object_mut) {
            list.values_mut().for_each(|value| *value = json!(canonical(value)));
        }
    }
    // A limit without a request is one.
    if let Some(limits) = map.get("limits").and_then(Value::as_object).cloned() {
        let requests = map.entry("requests").or_insert_with(|| json!({}));
        for (name, limit) in limits {
            set(requests, &name, limit);
        }
    }
}

/// A quantity as the API server writes it.
pub fn canonical(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let binary = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let decimal = ["m", "", "k", "M", "G", "T", "P"];
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let Ok(digits) = format!("{whole}{fraction}").parse::<u128>() else { return text };
    let scale = 10u128.pow(u32::try_from(fraction.len()).expect("short"));
    if !suffix.is_empty()
        && let Some(power) = binary.iter().position(|s| *s == suffix)
    {
        let mut amount = digits * 1024u128.pow(u32::try_from(power).expect("small")) / scale;
        let mut power = 0;
        while amount > 0 && amount % 1024 == 0 && power + 1 < binary.len() {
            amount /= 1024;
            power += 1;
        }
        return format!("{amount}{}", binary[power]);
    }
    let Some(power) = decimal.iter().position(|s| *s == suffix) else { return text };
    let mut milli = digits * 1000u128.pow(u32::try_from(power).expect("small")) / scale;
    let mut power = 0;
    while milli > 0 && milli % 1000 == 0 && power + 1 < decimal.len() {
        milli /= 1000;
        power += 1;
    }
    if milli == 0 { "0".to_owned() } else { format!("{milli}{}", decimal[power]) }
}

/// Bytes of a quantity.
pub fn bytes(value: &Value) -> u128 {
    let text = canonical(value);
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u128 = text[..at].parse().unwrap_or(0);
    let unit = match &text[at..] {
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => 1,
    };
    number * unit
}

fn invalid(kind: &Kind, name: &str, what: String) -> Refusal {
    Refusal::new(422, "Invalid", format!("{}.{} \"{name}\" is invalid: {what}", kind.kind, kind.group))
}

/// Refuses what the real server refuses.
pub fn check(kind: &Kind, old: Option<&Value>, new: &Value) -> Result<(), Refusal> {
    let name = new["metadata"]["name"].as_str().unwrap_or_default();
    let refuse = |what: &str| Err(invalid(kind, name, what.to_owned()));
    let label_sized = *kind == kinds::SERVICES || *kind == kinds::STATEFUL_SETS;
    if name.is_empty() || name.len() > if label_sized { 63 } else { 253 } {
        return refuse("metadata.name: must be no more than 63 characters");
    }
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    if !name.chars().all(fits) {
        return refuse(
            "metadata.name: a lowercase RFC 1123 name must consist of lower case characters, '-' or '.'",
        );
    }
    for labels in [&new["metadata"]["labels"], &new["spec"]["template"]["metadata"]["labels"]] {
        for (key, value) in labels.as_object().into_iter().flatten() {
            let Some(value) = value.as_str() else { return refuse("metadata.labels: must be text") };
            let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if value.len() > 63 || !value.chars().all(sound) {
                return refuse(&format!("metadata.labels: {key}: invalid value {value:?}"));
            }
        }
    }
    for owner in new["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
        if ["uid", "name", "kind", "apiVersion"]
            .iter()
            .any(|f| owner[f].as_str().unwrap_or_default().is_empty())
        {
            return refuse("metadata.ownerReferences: name, uid, kind and apiVersion are required");
        }
    }
    let selector = &new["spec"]["selector"]["matchLabels"];
    if (*kind == kinds::STATEFUL_SETS || *kind == kinds::DEPLOYMENTS)
        && selector.as_object().is_none_or(|selector| {
            selector.is_empty()
                || selector
                    .iter()
                    .any(|(k, v)| new["spec"]["template"]["metadata"]["labels"].get(k) != Some(v))
        })
    {
        return refuse("spec.template.metadata.labels: `selector` does not match template `labels`");
    }
    let Some(old) = old else { return Ok(()) };
    let differ = |fields: &[&str], only: bool| {
        let all = |v: &Value| v["spec"].as_object().cloned().unwrap_or_default();
        let (old, new): (Map<_, _>, Map<_, _>) = (all(old), all(new));
        old.keys()
            .chain(new.keys())
            .find(|k| (fields.contains(&k.as_str()) == only) && old.get(*k) != new.get(*k))
            .cloned()
    };
    if *kind == kinds::STATEFUL_SETS {
        let mutable = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ];
        if let Some(field) = differ(&mutable, false) {
            return refuse(&format!(
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', \
                 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden ({field})"
            ));
        }
    }
    if *kind == kinds::DEPLOYMENTS && differ(&["selector"], true).is_some() {
        return refuse("spec.selector: Invalid value: field is immutable");
    }
    if *kind == kinds::SERVICES && differ(&["clusterIP"], true).is_some() {
        return refuse("spec.clusterIP: Invalid value: may not change once set");
    }
    if *kind == kinds::PODS
        && differ(&["containers", "initContainers", "tolerations", "nodeName"], false).is_some()
    {
        return refuse("spec: Forbidden: pod updates may not change fields other than images");
    }
    if *kind == kinds::CLAIMS {
        let size = |v: &Value| bytes(&v["spec"]["resources"]["requests"]["storage"]);
        if differ(&["resources", "volumeName"], false).is_some() {
            return refuse("spec: Forbidden: spec is immutable after creation except resources.requests");
        }
        if size(new) < size(old) {
            return refuse(
                "spec.resources.requests.storage: Forbidden: field can not be less than previous value",
            );
        }
    }
    Ok(())
}

/// Refuses what does not decode as its kind, and fields that the kind does not have.
pub fn check_fields(kind: &Kind, object: &Value) -> Result<(), Refusal> {
    fn decoded<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Result<Value, String> {
        let typed: T = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
        serde_json::to_value(typed).map_err(|e| e.to_string())
    }
    let typed = match kind.kind {
        "StatefulSet" => decoded::<api::apps::v1::StatefulSet>(object),
        "Deployment" => decoded::<api::apps::v1::Deployment>(object),
        "Service" => decoded::<api::core::v1::Service>(object),
        "ConfigMap" => decoded::<api::core::v1::ConfigMap>(object),
        "ServiceAccount" => decoded::<api::core::v1::ServiceAccount>(object),
        "PodDisruptionBudget" => decoded::<api::policy::v1::PodDisruptionBudget>(object),
        "NetworkPolicy" => decoded::<api::networking::v1::NetworkPolicy>(object),
        "Lease" => decoded::<api::coordination::v1::Lease>(object),
        "Event" if kind.group.is_empty() => decoded::<api::core::v1::Event>(object),
        "Event" => decoded::<api::events::v1::Event>(object),
        // Applied alone, a status is half a resource.
        "ShardedEtcd" if object.get("spec").is_some() => decoded::<ShardedEtcd>(object),
        _ => return Ok(()),
    };
    let typed = typed.map_err(|why| Refusal::new(400, "BadRequest", format!("{}: {why}", kind.kind)))?;
    match unknown(object, &typed, String::new()) {
        Some(field) => {
            Err(Refusal::new(400, "BadRequest", format!("{}: unknown field {field:?}", kind.kind)))
        }
        None => Ok(()),
    }
}

/// The first field that is in `sent` and not in `typed`.
fn unknown(sent: &Value, typed: &Value, path: String) -> Option<String> {
    match (sent, typed) {
        (Value::Object(sent), Value::Object(typed)) => sent.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match typed.get(name) {
                Some(typed) => unknown(value, typed, path),
                None if is_empty(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(sent), Value::Array(typed)) => {
            sent.iter().zip(typed).find_map(|(sent, typed)| unknown(sent, typed, format!("{path}[]")))
        }
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
