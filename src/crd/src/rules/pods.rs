//! Rules of the members' pods and of the proxies.

use super::{LABEL, OBJECT_NAME, QUALIFIED_NAME, Rule, list, regex, rule};
use crate::validate::{LABEL_PREFIXES_OWNED, LABELS_OWNED, OWNED_FLAGS};

pub(super) fn pods() -> Vec<Rule> {
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

pub(super) fn proxy() -> Vec<Rule> {
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
