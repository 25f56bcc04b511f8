//! Rules of `spec.keyspace`.

use super::{Rule, list, rule};

/// Delimiters with what the end of a directory ends with: the delimiter with its last byte raised by one. CEL cannot
/// compute it, so for any other delimiter only the operator checks `presplit`.
const DIRECTORY_ENDS: &[(&str, &str)] =
    &[("/", "0"), (":", ";"), (".", "/"), ("-", "."), ("_", "`"), ("|", "}")];

/// A boundary is legal at the start or end of a directory, inside a splittable prefix, and between keys without a
/// delimiter; see `core::keyspace::Rules`.
pub(super) fn keyspace() -> Vec<Rule> {
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
