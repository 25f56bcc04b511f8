//! The rules (CEL) by which the API server itself refuses a bad spec, each with what to write instead.
//!
//! [`crate::validate`] says the same in Rust, for `up` and for the operator. Rules that compare with `oldSelf` hold for
//! changes only. `kube_crd` of the testkit tries each against a real API server, cost limits included.

use serde_json::{Map, Value, json};

use crate::validate::{LABEL_PREFIXES_OWNED, LABELS_OWNED, OWNED_FLAGS};

/// Name of a Service (RFC 1035).
const NAME: &str = "^[a-z]([-a-z0-9]*[a-z0-9])?$";
/// Name of most objects (RFC 1123, with dots).
const OBJECT_NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Key of a label or annotation: a name, with a domain and a slash in front or not.
const QUALIFIED_NAME: &str =
    "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
/// Value of a label.
const LABEL: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$";
/// Repository of an image, perhaps with tag and digest, which a rule of their own refuses.
const IMAGE: &str = "^[A-Za-z0-9][-A-Za-z0-9._:/@]*$";
/// A number of bytes.
const QUANTITY: &str = r"^[0-9]+([.][0-9]{1,9})?(k|M|G|T|Ki|Mi|Gi|Ti)?$";

/// What a refusal says.
enum Say {
    /// Always this.
    Text(String),
    /// The result of this CEL expression.
    Of(String),
}

/// One rule.
struct Rule {
    /// Path in the schema; `*` stands for the values of a map, `[]` for the entries of a list.
    at: &'static str,
    /// The field below it that the refusal names, as in `.shard`.
    field: Option<&'static str>,
    /// Holds for a good value.
    cel: String,
    /// What else is said.
    say: Say,
}

fn rule(at: &'static str, cel: impl Into<String>, say: impl Into<String>) -> Rule {
    Rule { at, field: None, cel: cel.into(), say: Say::Text(say.into()) }
}

impl Rule {
    fn field(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    fn say(self, expression: impl Into<String>) -> Self {
        Self { say: Say::Of(expression.into()), ..self }
    }

    fn json(&self) -> Value {
        let mut json = Map::from_iter([("rule".to_owned(), json!(self.cel))]);
        match &self.say {
            Say::Text(text) => json.insert("message".to_owned(), json!(text)),
            Say::Of(expression) => json.insert("messageExpression".to_owned(), json!(expression)),
        };
        if let Some(field) = self.field {
            json.insert("fieldPath".to_owned(), json!(field));
        }
        Value::Object(json)
    }
}

/// All rules as `(path, what stands in x-kubernetes-validations)`.
pub(crate) fn rules() -> Vec<(&'static str, Value)> {
    let mut rules = name();
    rules.extend(version());
    rules.extend(spec());
    rules.extend(keyspace());
    rules.extend(members());
    rules.extend(quantities());
    rules.extend(storage());
    rules.extend(pods());
    rules.extend(proxy());
    rules.extend(compaction());
    rules.iter().map(|rule| (rule.at, rule.json())).collect()
}

/// A regular expression as a CEL literal.
fn regex(pattern: &str) -> String {
    format!("r'{pattern}'")
}

/// Texts as a CEL list.
fn list(texts: &[&str]) -> String {
    json!(texts).to_string()
}

fn name() -> Vec<Rule> {
    vec![
        rule(
            "",
            format!("self.metadata.name.size() > 40 || self.metadata.name.matches({})", regex(NAME)),
            "metadata.name is a name of Services too: use lower-case letters, digits and '-', a letter first and no '-' last",
        ),
        rule(
            "",
            "self.metadata.name.size() <= 40",
            "metadata.name is too long for the names of its pods; use at most 40 characters",
        ),
    ]
}

fn version() -> Vec<Rule> {
    let at = "spec.version";
    let release = regex("^[0-9]{1,5}[.][0-9]{1,5}[.][0-9]{1,5}$");
    let both = format!("!self.matches({release}) || !oldSelf.matches({release})");
    vec![
        rule(at, format!("self.matches({release})"), "no release of etcd; write three numbers, such as 3.7.3"),
        rule(
            at,
            format!("!self.matches({release}) || (self.startsWith('3.') && int(self.split('.')[1]) >= 6)"),
            "shards run on etcd 3.6 or newer; write such a release, as in 3.7.3",
        ),
        rule(at, format!("{both} || self.split('.').slice(0, 2) == oldSelf.split('.').slice(0, 2)"), "")
            .say("'etcd cannot be changed to another minor release yet; write ' + oldSelf + ' or a newer patch of it'"),
        rule(
            at,
            format!(
                "{both} || self.split('.').slice(0, 2) != oldSelf.split('.').slice(0, 2) || \
                 int(self.split('.')[2]) >= int(oldSelf.split('.')[2])"
            ),
            "",
        )
        .say("'an older etcd may not read what a newer one wrote; write ' + oldSelf + ' or newer'"),
    ]
}

fn spec() -> Vec<Rule> {
    vec![
        rule(
            "spec.image",
            format!("self.matches({})", regex(IMAGE)),
            "no image repository; write one such as registry.example/etcd",
        ),
        rule(
            "spec.image",
            "!self.contains('@') && !self.matches(':[^/]*$')",
            "write the repository without tag and digest, as the tag is v and spec.version",
        ),
        rule(
            "spec",
            "self.keyspace.pins.all(p, p.shard < self.shards)",
            "a pin names a shard that is not there; write a shard below spec.shards, counted from 0, or raise spec.shards",
        )
        .field(".keyspace.pins"),
    ]
}

/// Delimiters with what the end of a directory ends with: the delimiter with its last byte raised by one. CEL cannot
/// compute it, so for any other delimiter only the operator checks `presplit`.
const DIRECTORY_ENDS: &[(&str, &str)] =
    &[("/", "0"), (":", ";"), (".", "/"), ("-", "."), ("_", "`"), ("|", "}")];

/// A boundary is legal at the start or end of a directory, inside a splittable prefix, and between keys without a
/// delimiter; see `core::keyspace::Rules`.
fn keyspace() -> Vec<Rule> {
    let at = "spec.keyspace";
    let start = |key: &str| {
        format!(
            "{key}.endsWith(self.delimiter) || !{key}.contains(self.delimiter) || \
             self.splittable.exists(s, {key}.startsWith(s))"
        )
    };
    let delimiters = DIRECTORY_ENDS.iter().map(|(delimiter, _)| *delimiter).collect::<Vec<_>>();
    let ends = DIRECTORY_ENDS
        .iter()
        .map(|(delimiter, end)| format!("(self.delimiter == '{delimiter}' && b.endsWith('{end}'))"));
    let boundary = format!("{} || {}", ends.collect::<Vec<_>>().join(" || "), start("b"));
    let remedy = "would part the keys of a directory, which transactions need on one shard; write it with the delimiter \
                  behind, or add its directory to spec.keyspace.splittable";
    vec![
        rule(
            "spec.keyspace.delimiter",
            "self.matches('^[ -~]*$')",
            "use printable ASCII characters only, such as /",
        ),
        rule("spec.keyspace.delimiter", "self == oldSelf", "")
            .say("'the keys are laid out by it, so it cannot be changed; write \"' + oldSelf + '\", or make a new resource'"),
        rule(
            at,
            "self.delimiter != '' || self.splittable.size() == 0",
            "no effect, as delimiter \"\" already allows a boundary anywhere; remove one of both",
        )
        .field(".splittable"),
        rule(at, "self.splittable.all(s, s.endsWith(self.delimiter))", "").field(".splittable").say(
            "self.splittable.filter(s, !s.endsWith(self.delimiter))[0] + ' is no directory, as it does not end with the \
             delimiter; write ' + self.splittable.filter(s, !s.endsWith(self.delimiter))[0] + self.delimiter",
        ),
        rule(at, "self.splittable.all(s, !self.splittable.exists(o, o != s && s.startsWith(o)))", "")
            .field(".splittable")
            .say(
                "self.splittable.filter(s, self.splittable.exists(o, o != s && s.startsWith(o)))[0] + ' lies inside another \
                 splittable prefix; remove one of both'",
            ),
        rule(
            at,
            format!("!(self.delimiter in {}) || self.presplit.all(b, {boundary})", list(&delimiters)),
            format!("a boundary {remedy}"),
        )
        .field(".presplit"),
        rule(
            at,
            format!("self.delimiter == '' || self.pins.all(p, {})", start("p.prefix")),
            format!("a pin {remedy}"),
        )
        .field(".pins"),
        rule(
            at,
            "self.splittable.map(s, s.size()).sum() + self.presplit.map(b, b.size()).sum() + \
             self.pins.map(p, p.prefix.size()).sum() <= 131072",
            "splittable, presplit and pins have more than 131072 characters together, so proxies could not be told; use \
             fewer or shorter ones",
        ),
    ]
}

fn members() -> Vec<Rule> {
    ["spec.etcd.members", "spec.meta.members"]
        .into_iter()
        .flat_map(|at| {
            [
                rule(
                    at,
                    "self in [1, 3, 5]",
                    "write 1, 3 or 5: an even number survives no more failures than one less",
                ),
                rule(
                    at,
                    "self == oldSelf",
                    "the number of members cannot be changed yet; write the one that was there",
                ),
            ]
        })
        .collect()
}

/// Rules of a number of bytes at `at`, from `min` to `max`.
fn bytes(at: &'static str, min: &str, max: &str) -> [Rule; 2] {
    let pattern = regex(QUANTITY);
    let within = format!(
        "quantity(string(self)).compareTo(quantity('{min}')) >= 0 && quantity(string(self)).compareTo(quantity('{max}')) <= 0"
    );
    [
        rule(
            at,
            format!("string(self).matches({pattern})"),
            "no quantity of bytes; write a number with Ki, Mi, Gi or Ti, such as 8Gi",
        ),
        rule(at, format!("!isQuantity(string(self)) || ({within})"), format!("write {min} to {max}")),
    ]
}

fn quantities() -> Vec<Rule> {
    let mut rules = Vec::new();
    rules.extend(bytes("spec.etcd.storage.size", "1Gi", "64Ti"));
    rules.extend(bytes("spec.meta.storage.size", "1Gi", "64Ti"));
    rules.extend(bytes("spec.etcd.quota", "16Mi", "64Gi"));
    rules.extend(bytes("spec.rebalance.bytesPerSecond", "64Ki", "64Gi"));
    for at in
        ["spec.etcd.resources", "spec.meta.resources", "spec.proxy.resources", "spec.shardManager.resources"]
    {
        let known = |map: &str| {
            format!(
                "(!has(self.{map}) || self.{map}.all(k, k in ['cpu', 'memory', 'ephemeral-storage'] || \
                 k.startsWith('hugepages-') || k.contains('/')))"
            )
        };
        rules.push(rule(
            at,
            format!("{} && {}", known("requests"), known("limits")),
            "no resource of Kubernetes; write cpu, memory, ephemeral-storage, or a name with a domain in front",
        ));
        let good = |map: &str| {
            format!(
                "(!has(self.{map}) || self.{map}.all(k, isQuantity(string(self.{map}[k])) && \
                 !string(self.{map}[k]).startsWith('-')))"
            )
        };
        rules.push(rule(
            at,
            format!("{} && {}", good("requests"), good("limits")),
            "an amount is no quantity; write one such as 500m for cpu or 2Gi for memory",
        ));
        rules.push(rule(
            at,
            "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || \
             !isQuantity(string(self.requests[k])) || !isQuantity(string(self.limits[k])) || \
             quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)",
            "more is requested than the limit allows; raise limits or lower requests",
        ));
    }
    rules
}

fn storage() -> Vec<Rule> {
    let mut rules = Vec::new();
    for at in ["spec.etcd.storage.size", "spec.meta.storage.size"] {
        rules.push(
            rule(
                at,
                "!isQuantity(string(self)) || !isQuantity(string(oldSelf)) || \
                 quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0",
                "",
            )
            .say("'a volume cannot shrink; write ' + string(oldSelf) + ' or more'"),
        );
    }
    for at in ["spec.etcd.storage.className", "spec.meta.storage.className"] {
        rules.push(rule(
            at,
            format!("self.matches({})", regex(OBJECT_NAME)),
            "no name of a storage class; write one that `kubectl get storageclass` shows, or remove the field for the default",
        ));
    }
    for at in ["spec.etcd.storage", "spec.meta.storage"] {
        rules.push(
            rule(
                at,
                "has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)",
                "",
            )
            .field(".className")
            .say(
                "'a volume cannot change its storage class; ' + (has(oldSelf.className) ? 'write ' + oldSelf.className : \
                 'remove the field') + ', or make a new resource'",
            ),
        );
    }
    rules.push(
        rule(
            "spec.etcd",
            "!has(self.quota) || !isQuantity(string(self.quota)) || !isQuantity(string(self.storage.size)) || \
             (quantity(string(self.quota)).asApproximateFloat() * 1.125 + 536870912.0 <= \
             quantity(string(self.storage.size)).asApproximateFloat() && \
             quantity(string(self.quota)).asApproximateFloat() + 603979776.0 <= \
             quantity(string(self.storage.size)).asApproximateFloat())",
            "",
        )
        .field(".quota")
        .say(
            "'a database of ' + string(self.quota) + ' does not fit a volume of ' + string(self.storage.size) + ' beside \
             the log; write less, or raise spec.etcd.storage.size above 9/8 of the quota and 512Mi'",
        ),
    );
    rules
}

fn pods() -> Vec<Rule> {
    let owned = LABEL_PREFIXES_OWNED.iter().map(|prefix| format!("k.startsWith('{prefix}')"));
    let owned = owned.collect::<Vec<_>>().join(" || ");
    vec![
        rule(
            "spec.etcd.priorityClassName",
            format!("self.matches({})", regex(OBJECT_NAME)),
            "no name of a priority class; write one that `kubectl get priorityclass` shows",
        ),
        rule(
            "spec.etcd.labels",
            format!("self.all(k, !({owned} || k in {}))", list(LABELS_OWNED)),
            "",
        )
        .say(format!(
            "self.filter(k, {owned} || k in {})[0] + ' is a label that the operator or Kubernetes sets itself; remove it'",
            list(LABELS_OWNED)
        )),
        rule(
            "spec.etcd.labels",
            format!("self.all(k, k.size() <= 253 && k.matches({}))", regex(QUALIFIED_NAME)),
            "a name is no name of a label; write one such as team or example.com/team",
        ),
        rule(
            "spec.etcd.labels.*",
            format!("self.matches({})", regex(LABEL)),
            "no value of a label; use at most 63 letters, digits, '-', '_' and '.', a letter or digit first and last",
        ),
        rule("spec.etcd.extraArgs", "self.all(k, !k.startsWith('-'))", "")
            .say("self.filter(k, k.startsWith('-'))[0] + ' starts with a dash; write the flag without leading dashes'"),
        rule(
            "spec.etcd.extraArgs",
            "self.all(k, k.startsWith('-') || k.matches('^[a-z][a-z0-9-]*$'))",
            "a name is no flag of etcd; write one such as heartbeat-interval",
        ),
        rule("spec.etcd.extraArgs", format!("self.all(k, !(k in {}))", list(OWNED_FLAGS)), "").say(format!(
            "'the topology sets ' + self.filter(k, k in {})[0] + ' itself, or cannot work with it; remove it'",
            list(OWNED_FLAGS)
        )),
        rule(
            "spec.etcd.extraArgs.*",
            "self.matches(r'^[^\\x00-\\x1f]*$')",
            "a line break or another control character is no part of a flag; remove it",
        ),
        rule(
            "spec.etcd.tolerations.[]",
            "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
            "operator Exists goes with no value; remove value, or write operator: Equal",
        ),
        rule(
            "spec.etcd.tolerations.[]",
            "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
            "a toleration without key is for all taints; write key, or operator: Exists",
        ),
    ]
}

fn proxy() -> Vec<Rule> {
    let percent = |from: &str| regex(&format!("^({from})%$"));
    vec![
        rule(
            "spec.proxy.disruption",
            "has(self.maxUnavailable) != has(self.minAvailable)",
            "write exactly one of maxUnavailable and minAvailable",
        ),
        rule(
            "spec.proxy.disruption.maxUnavailable",
            format!(
                "type(self) == int ? self >= 1 && self <= 100 : string(self).matches({})",
                percent("[1-9][0-9]?|100")
            ),
            "write a number from 1 to 100, or a share from 1% to 100%, as with less no node could be drained",
        ),
        rule(
            "spec.proxy.disruption.minAvailable",
            format!(
                "type(self) == int ? self >= 0 && self <= 99 : string(self).matches({})",
                percent("[0-9]|[1-9][0-9]")
            ),
            "write a number from 0 to 99, or a share from 0% to 99%, as with more no node could be drained",
        ),
        rule(
            "spec.proxy",
            "!has(self.disruption) || !has(self.disruption.minAvailable) || type(self.disruption.minAvailable) != int || \
             int(self.disruption.minAvailable) < self.replicas",
            "no node with a proxy could be drained; write less than spec.proxy.replicas",
        )
        .field(".disruption.minAvailable"),
        rule(
            "spec.proxy.service.annotations",
            format!("self.all(k, k.size() <= 253 && k.matches({}))", regex(QUALIFIED_NAME)),
            "a name is no name of an annotation; write one such as example.com/key",
        ),
        rule(
            "spec.proxy.service.annotations",
            "self.all(k, !k.startsWith('shardedetcd.io/'))",
            "annotations with shardedetcd.io/ in front are the operator's own; remove them",
        ),
    ]
}

fn compaction() -> Vec<Rule> {
    let at = "spec.compaction.retention";
    let format = "self.matches('^([0-9]{1,10}(h|m|s|ms))+$')";
    vec![
        rule(at, format, "no span of time; write a number with h, m, s or ms, such as 5m or 1h30m"),
        rule(
            at,
            format!("!{format} || (duration(self) >= duration('1s') && duration(self) <= duration('720h'))"),
            "write 1s to 720h, or remove spec.compaction to keep history until a client compacts it",
        ),
    ]
}
