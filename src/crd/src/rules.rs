//! The rules (CEL) by which the API server itself refuses a bad spec, each with what to write instead.
//!
//! [`crate::validate`] says the same in Rust, for `up` and for the operator. Rules that compare with `oldSelf` hold for
//! changes only. `tests/kube_crd` tries each against a real API server, cost limits included.

mod keyspace;
mod members;
mod pods;

use serde_json::{Map, Value, json};

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
    rules.extend(keyspace::keyspace());
    rules.extend(members::members());
    rules.extend(members::quantities());
    rules.extend(members::storage());
    rules.extend(pods::pods());
    rules.extend(pods::proxy());
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
        rule(
            "spec",
            "!has(self.rebalance.weights) || self.rebalance.weights.all(w, w.shard < self.shards)",
            "a weight names a shard that is not there; write a shard below spec.shards, counted from 0, or raise spec.shards",
        )
        .field(".rebalance.weights"),
        rule(
            "spec.rebalance.approvedPlan",
            format!("self.matches({})", regex("^[0-9a-f]{8}$")),
            "no plan; write the eight digits that the condition AwaitingApproval names, such as 1a2b3c4d",
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
