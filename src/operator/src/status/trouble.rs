//! What keeps pods from being ready, in words. The words stay the same while the trouble does, so that a pod that tries
//! again and again is no news each time.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::{names, restart::is_ready};

/// Longest text taken from elsewhere, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 512;
/// The kubelet cannot get an image.
const NO_IMAGE: &[&str] = &["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"];
/// The kubelet cannot make a container.
const NO_CONTAINER: &[&str] = &["CreateContainerConfigError", "CreateContainerError", "RunContainerError"];

/// A pod waits for its volume.
pub(super) const VOLUMES_PENDING: &str = "VolumesPending";

/// What keeps a pod from being ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// One word, in CamelCase.
    pub(super) reason: &'static str,
    /// For people; it names the pod.
    pub(super) message: String,
}

/// The trouble of a pod that is not ready, if it shows any; without, it is only starting or ending.
pub(super) fn trouble(pod: &Pod) -> Option<Trouble> {
    if is_ready(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let found = |reason, message: String| Some(Trouble { reason, message });
    let mut conditions = status.conditions.iter().flatten();
    if let Some(c) =
        conditions.find(|c| c.type_ == "PodScheduled" && c.reason.as_deref() == Some("Unschedulable"))
    {
        let why = clip(c.message.as_deref().unwrap_or("no reason is given"));
        // So at nearly every start: a provisioner makes the volume a moment later.
        if why.contains("unbound immediate PersistentVolumeClaims") {
            return found(VOLUMES_PENDING, format!("the volume of pod {name} is not there yet: {why}"));
        }
        return found("Unschedulable", format!("pod {name} fits no node: {why}"));
    }
    let init = status.init_container_statuses.iter().flatten();
    let containers = status.container_statuses.iter().flatten();
    for container in init.chain(containers) {
        if let Some(trouble) = of_container(name, container) {
            return Some(trouble);
        }
    }
    if status.phase.as_deref() == Some("Failed") {
        let why = status.message.as_deref().or(status.reason.as_deref()).unwrap_or("no reason is given");
        return found("PodFailed", format!("pod {name} failed: {}", clip(why)));
    }
    None
}

fn of_container(pod: &str, status: &ContainerStatus) -> Option<Trouble> {
    let name = &status.name;
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let why_waiting = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    if NO_IMAGE.contains(&why_waiting) {
        let message = format!(
            "pod {pod} has no image {} for {name}: check its name, and that nodes reach the registry",
            status.image
        );
        return Some(Trouble { reason: "ImagePullFailed", message });
    }
    if NO_CONTAINER.contains(&why_waiting) {
        let why = clip(waiting.and_then(|w| w.message.as_deref()).unwrap_or(why_waiting));
        return Some(Trouble {
            reason: "ContainerNotCreated",
            message: format!("pod {pod} cannot run {name}: {why}"),
        });
    }
    let now = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    let before = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let Some(ended) = now.or(before).filter(|ended| ended.exit_code != 0) else {
        // The runtime has forgotten the container that ended.
        let why = clip(waiting.and_then(|w| w.message.as_deref()).unwrap_or("no reason is given"));
        let message = format!("{name} in pod {pod} ends again and again: {why}");
        return (why_waiting == "CrashLoopBackOff").then_some(Trouble { reason: "CrashLooping", message });
    };
    // An init container that succeeded in the end has done its part.
    if status.ready {
        return None;
    }
    let said = ended.message.as_deref().map(str::trim).filter(|said| !said.is_empty());
    let why = said.map_or_else(
        || format!("{} (exit code {})", ended.reason.as_deref().unwrap_or("Error"), ended.exit_code),
        |said| clip(last_words(said)).to_owned(),
    );
    let reason = match (name.as_str(), ended.reason.as_deref()) {
        (names::CONTAINER_GUARD, _) => "VolumeRefused",
        (_, Some("OOMKilled")) => "OutOfMemory",
        _ => "CrashLooping",
    };
    let why = if reason == "OutOfMemory" { "it needs more memory than its limit".to_owned() } else { why };
    Some(Trouble { reason, message: format!("{name} in pod {pod} ends again and again: {why}") })
}

/// A program's last words, which say more than its first; of one that was called wrongly, what comes before the words
/// on how to call it.
fn last_words(said: &str) -> &str {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let complaint = lines().take_while(|line| !line.to_ascii_lowercase().starts_with("usage")).last();
    let is_usage = lines().any(|line| line.to_ascii_lowercase().starts_with("usage"));
    complaint.filter(|_| is_usage).or_else(|| lines().next_back()).unwrap_or(said)
}

/// At most [`TEXT_BYTES_MAX`] of a text.
pub(super) fn clip(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_say_what_is_wrong() {
        for (said, expected) in [
            ("starting\npanic: disk on fire\n", "panic: disk on fire"),
            // etcd (server/etcdmain/config.go) prints how to call it behind what is wrong.
            (
                "flag provided but not defined: -no\nUsage:\n\n  etcd [flags]\n    Start it.\n",
                "flag provided but not defined: -no",
            ),
            ("Usage:\n  etcd [flags]\n", "etcd [flags]"),
            ("one", "one"),
        ] {
            assert_eq!(last_words(said), expected);
        }
    }
}
