//! What `up` is asked to run: the file's resource, or one made of `--shards`.

use std::{fmt::Write, path::Path};

use sharded_etcd_core::topology::{FieldError, Topology};
use sharded_etcd_crd::{ShardedEtcd, cluster_only_fields, parse_file, routing::Engine};

use super::data_dir::State;

/// Shards of a topology that nobody gave a number for.
const SHARDS_DEFAULT: u32 = 3;
/// Name of a topology that no file names.
const NAME_DEFAULT: &str = "local";

/// A resource that asks for a valid topology.
#[derive(Debug, Clone)]
pub struct Desired {
    /// As it is in the file.
    pub resource: ShardedEtcd,
    /// What it asks for.
    pub topology: Topology,
    /// It came from a file, so its name is the user's.
    pub is_from_file: bool,
}

/// Why a resource is not run: all of it, ready to be printed below the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Refused {
    fn fields(errors: &[FieldError]) -> Self {
        Self(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }
}

impl Desired {
    /// The resource in a file's text.
    ///
    /// # Errors
    /// Every problem there is, one a line, each with what to write instead.
    pub fn of_file(text: &str) -> Result<Self, Refused> {
        let resource = parse_file(text).map_err(|error| Refused(error.to_string()))?;
        let topology = resource.topology().map_err(|errors| Refused::fields(&errors))?;
        Ok(Self { resource, topology, is_from_file: true })
    }

    /// A resource with so many shards and the defaults of everything else. Without a number: as many as the data
    /// folder had last.
    ///
    /// # Errors
    /// If the number makes no sense.
    pub fn of_shards(shards: Option<i64>, state: Option<&State>) -> Result<Self, Refused> {
        let before = state.map_or(SHARDS_DEFAULT, |state| state.shards_wanted);
        let name = state.and_then(|state| state.name.as_deref()).unwrap_or(NAME_DEFAULT);
        let mut resource = ShardedEtcd::with_shards(name, before);
        resource.spec.shards = shards.unwrap_or(i64::from(before));
        if let Some(state) = state {
            resource.spec.keyspace.delimiter.clone_from(&state.delimiter);
        }
        let topology = resource.topology().map_err(|errors| {
            let of_flag = |error: &FieldError| match error.field.as_str() {
                "spec.shards" => FieldError::new("--shards", error.message.clone()),
                _ => error.clone(),
            };
            Refused::fields(&errors.iter().map(of_flag).collect::<Vec<_>>())
        })?;
        Ok(Self { resource, topology, is_from_file: false })
    }

    /// The name that the user gave.
    pub fn name(&self) -> Option<&str> {
        self.is_from_file.then_some(self.topology.name.as_str())
    }

    /// Checks that the data of `state` can become this.
    ///
    /// # Errors
    /// If it would change what cannot change once data are there.
    pub fn check_against(&self, state: &State) -> Result<(), Refused> {
        let mut errors = Vec::new();
        if let (Some(wanted), Some(name)) = (self.name(), state.name.as_deref())
            && wanted != name
        {
            let message = format!(
                "the data folder belongs to {name}, not {wanted}; write {name}, or give another folder with --data-dir"
            );
            errors.push(FieldError::new("metadata.name", message));
        }
        let delimiter = &self.resource.spec.keyspace.delimiter;
        if *delimiter != state.delimiter {
            let message = format!(
                "it cannot change from {:?} to {delimiter:?}, as boundaries were drawn by it; write {:?}, or start \
                 over with another --data-dir",
                state.delimiter, state.delimiter
            );
            errors.push(FieldError::new("spec.keyspace.delimiter", message));
        }
        if errors.is_empty() { Ok(()) } else { Err(Refused::fields(&errors)) }
    }

    /// The fields that have no effect on this machine.
    pub fn without_effect(&self, engine: Engine) -> Vec<String> {
        let mut fields = cluster_only_fields(&self.resource.spec);
        if engine == Engine::Embedded && self.resource.spec.version.is_some() {
            fields.insert(0, "spec.version".to_owned());
        }
        fields
    }
}

/// A problem with a file, below its name, for people to read.
pub fn in_file(path: &Path, refused: &Refused) -> String {
    let mut text = format!("{}:", path.display());
    for line in refused.0.lines() {
        let _ = write!(text, "\n  {line}");
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::up::data_dir::Member;

    const FILE: &str =
        "apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: demo}\nspec:\n";

    fn state(name: Option<&str>) -> State {
        State {
            uid: "u".into(),
            cluster_id: 1,
            engine: Engine::Embedded,
            name: name.map(str::to_owned),
            shards_wanted: 5,
            delimiter: ":".into(),
            bootstrapped: true,
            meta: Member::default(),
            shards: BTreeMap::new(),
            next_incarnations: BTreeMap::new(),
            leftovers: BTreeSet::new(),
        }
    }

    #[test]
    fn without_a_file_it_goes_on_as_before() {
        assert_eq!(Desired::of_shards(None, None).unwrap().topology.shards, 3);
        let state = state(Some("demo"));
        let again = Desired::of_shards(None, Some(&state)).unwrap();
        assert_eq!((again.topology.shards, again.topology.name.as_str()), (5, "demo"));
        again.check_against(&state).unwrap();
        assert_eq!(Desired::of_shards(Some(2), Some(&state)).unwrap().topology.shards, 2);
    }

    #[test]
    fn nonsense_numbers_name_the_flag() {
        for shards in [0, -1, 1025, i64::MAX] {
            let refused = Desired::of_shards(Some(shards), None).unwrap_err();
            assert!(refused.0.starts_with("--shards: ") && refused.0.contains("1024"), "{refused}");
        }
    }

    #[test]
    fn all_problems_of_a_file_are_told() {
        let refused = Desired::of_file(&format!("{FILE}  shards: 0\n  sharts: 2\n")).unwrap_err();
        assert!(refused.0.contains("sharts"), "{refused}");
        let text = in_file(Path::new("demo.yaml"), &Refused("a\nb".into()));
        assert_eq!(text, "demo.yaml:\n  a\n  b");
    }

    #[test]
    fn what_cannot_change_is_refused() {
        let mut desired = Desired::of_file(&format!("{FILE}  shards: 2\n")).unwrap();
        let refused = desired.check_against(&state(Some("other"))).unwrap_err();
        assert!(
            refused.0.contains("metadata.name") && refused.0.contains("spec.keyspace.delimiter"),
            "{refused}"
        );
        desired.resource.spec.keyspace.delimiter = ":".into();
        desired.check_against(&state(Some("demo"))).unwrap();
        desired.check_against(&state(None)).unwrap();
    }

    #[test]
    fn fields_without_effect_are_listed() {
        let desired =
            Desired::of_file(&format!("{FILE}  shards: 2\n  version: 3.7.3\n  meta: {{members: 3}}\n"))
                .unwrap();
        assert_eq!(desired.without_effect(Engine::Embedded), ["spec.version", "spec.meta"]);
        assert_eq!(desired.without_effect(Engine::Etcd), ["spec.meta"]);
    }
}
