//! Checks of the proxies.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{
    fields::{Check, ENTRIES_MAX},
    text::is_qualified_name,
};
use crate::{ProxySpec, defaults::PROXY_REPLICAS};

impl Check<'_> {
    pub(super) fn proxy(&mut self, proxy: &ProxySpec) {
        self.replicas("spec.proxy.replicas", proxy.replicas, 100);
        self.resources("spec.proxy.resources", proxy.resources.as_ref());
        let annotations = proxy.service.as_ref().and_then(|s| s.annotations.as_ref());
        let field = "spec.proxy.service.annotations";
        self.at_most(field, annotations.map_or(0, BTreeMap::len), ENTRIES_MAX);
        for (name, value) in annotations.into_iter().flatten() {
            let field = format!("{field}.{name}");
            if !is_qualified_name(name) {
                self.wrong(field, "no name of an annotation; write one such as example.com/key");
            } else if name.starts_with("shardedetcd.io/") {
                let message = "annotations with shardedetcd.io/ in front are the operator's own; remove it";
                self.wrong(field, message);
            } else if value.chars().count() > 4096 {
                self.wrong(field, "too long; use at most 4096 characters");
            }
        }
        let Some(disruption) = &proxy.disruption else { return };
        let field = "spec.proxy.disruption";
        let (max, min) = (&disruption.max_unavailable, &disruption.min_available);
        if max.is_some() == min.is_some() {
            self.wrong(field, "write exactly one of maxUnavailable and minAvailable");
        }
        let within = |n: &IntOrString, from: i32, to: (i32, i32)| match n {
            IntOrString::Int(n) => (from..=to.0).contains(n),
            IntOrString::String(text) => {
                let plain = |n: &&str| !n.starts_with('0') || *n == "0";
                let digits = |n: &&str| n.bytes().all(|b| b.is_ascii_digit());
                let percent = text.strip_suffix('%').filter(plain).filter(digits);
                percent.and_then(|n| n.parse().ok()).is_some_and(|n: i32| (from..=to.1).contains(&n))
            }
        };
        if max.as_ref().is_some_and(|n| !within(n, 1, (100, 100))) {
            let message = "write a number from 1 to 100, or a share from 1% to 100%, as with less no node could be drained";
            self.wrong(format!("{field}.maxUnavailable"), message);
        }
        if min.as_ref().is_some_and(|n| !within(n, 0, (99, 99))) {
            let message = "write a number from 0 to 99, or a share from 0% to 99%, as with more no node could be drained";
            self.wrong(format!("{field}.minAvailable"), message);
        } else if let Some(IntOrString::Int(n)) = min
            && i64::from(*n) >= proxy.replicas.unwrap_or(PROXY_REPLICAS.into())
        {
            let message = "no node with a proxy could be drained; write less than spec.proxy.replicas";
            self.wrong(format!("{field}.minAvailable"), message);
        }
    }
}
