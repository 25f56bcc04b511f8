//! Rules of members, volumes and amounts.

use super::{OBJECT_NAME, QUANTITY, Rule, regex, rule};

pub(super) fn members() -> Vec<Rule> {
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

pub(super) fn quantities() -> Vec<Rule> {
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

pub(super) fn storage() -> Vec<Rule> {
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
