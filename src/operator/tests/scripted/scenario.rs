//! What users do to a resource, as a list of steps; and the runner that disturbs the operator meanwhile.

use serde_json::{Value, json};

use crate::support::{
    kinds,
    managers::{Phase, Shard},
    normal::differences,
    server::{Fault, Watching, When},
    world::{Running, Snapshot, World},
};

/// Something that a user does as soon as something is so.
pub struct Step {
    pub when: fn(&World) -> bool,
    pub act: fn(&World),
}

/// A story with an end that is the same however the operator is disturbed.
pub struct Scenario {
    pub name: &'static str,
    /// The resource `demo` that is there, Ready, when the story begins; `None`: nothing.
    pub base: Option<fn() -> Value>,
    pub steps: &'static [Step],
    /// Whether `demo` is Ready at the end.
    pub ends_ready: bool,
}

/// A small one: what matters here is how many objects there are, and in which order they change.
pub fn small(shards: u32) -> Value {
    json!({
        "shards": shards, "etcd": {"members": 1, "storage": {"size": "1Gi"}}, "meta": {"members": 1},
        "proxy": {"replicas": 1}, "shardManager": {"replicas": 1},
    })
}

/// Any time.
pub fn at_once(_: &World) -> bool {
    true
}

/// How the operator is disturbed.
#[derive(Debug, Clone, Copy)]
pub struct Disturbance {
    pub watching: Watching,
    /// At the call with this number.
    pub fault: Option<(usize, When, Fault)>,
}

pub const NONE: Disturbance = Disturbance { watching: Watching::Fresh, fault: None };

/// How a run ended.
pub struct End {
    pub world: World,
    pub state: Value,
    /// Calls of the first operator that count.
    pub calls: usize,
    pub log: Vec<String>,
}

/// A cluster in which the story can begin.
pub async fn base(scenario: &Scenario) -> Snapshot {
    let mut world = World::default();
    if let Some(spec) = scenario.base {
        world.apply("demo", spec());
        let operator = world.start(Watching::Fresh);
        world.until("demo is ready before the story", |w| w.is_ready("demo")).await;
        world.settle(&operator).await;
        operator.end().await;
        world.assert_sound("before the story");
    }
    world.snapshot()
}

/// Runs the story.
pub async fn run(scenario: &Scenario, base: &Snapshot, disturbance: Disturbance) -> End {
    let mut world = World::from(base.clone());
    let mut operator = world.start(disturbance.watching);
    let first = operator.link.clone();
    if let Some((n, when, fault)) = disturbance.fault {
        operator.link.fault_at(n, when, fault);
    }
    for step in scenario.steps {
        for second in 0.. {
            assert!(
                second < 1200,
                "{}: {disturbance:?}: a step never comes; {}",
                scenario.name,
                world.story()
            );
            if *operator.link.stopped().borrow() {
                operator = replace(&world, operator, disturbance).await;
            }
            if (step.when)(&world) {
                break;
            }
            world.tick().await;
        }
        (step.act)(&world);
    }
    while !world.settle(&operator).await {
        operator = replace(&world, operator, disturbance).await;
    }
    let context = format!("{}: {disturbance:?}", scenario.name);
    world.assert_sound(&context);
    if scenario.ends_ready {
        assert!(world.is_ready("demo"), "{context}: demo is not ready: {}", world.story());
    }
    operator.kill().await;
    let state = world.normalised();
    let log = first.calls().iter().filter(|c| c.counts()).map(ToString::to_string).collect();
    End { state, calls: first.counted(), log, world }
}

async fn replace(world: &World, old: Running, disturbance: Disturbance) -> Running {
    old.kill().await;
    world.start(disturbance.watching)
}

/// The end is that of the undisturbed run.
pub fn assert_same(scenario: &Scenario, disturbance: Disturbance, calm: &End, end: &End) {
    if calm.state == end.state {
        return;
    }
    let what = disturbance.fault.and_then(|(n, ..)| calm.log.get(n).cloned()).unwrap_or_default();
    panic!(
        "{}: {disturbance:?} ({what}) ended otherwise: {:#?}\n{}",
        scenario.name,
        differences(&calm.state, &end.state),
        end.world.story()
    );
}

fn edit(world: &World, spec: &Value) {
    world.edit("demo", spec);
}

fn shards(world: &World) -> Vec<Shard> {
    world.managers.0.lock().topologies.values().flat_map(|t| t.shards.values().cloned()).collect()
}

fn stateful_set_is_gone(world: &World, name: &str) -> bool {
    world.get(&kinds::STATEFUL_SETS, name).is_none()
}

pub static CREATE: Scenario = Scenario {
    name: "create",
    base: None,
    steps: &[Step { when: at_once, act: |w| w.apply("demo", small(3)) }],
    ends_ready: true,
};

pub static SCALE_OUT: Scenario = Scenario {
    name: "3 to 5 shards",
    base: Some(|| small(3)),
    steps: &[Step { when: at_once, act: |w| edit(w, &json!({"shards": 5})) }],
    ends_ready: true,
};

pub static SCALE_IN: Scenario = Scenario {
    name: "5 to 2 shards",
    base: Some(|| small(5)),
    steps: &[Step { when: at_once, act: |w| edit(w, &json!({"shards": 2})) }],
    ends_ready: true,
};

pub static PINS: Scenario = Scenario {
    name: "pins",
    base: Some(|| small(2)),
    steps: &[Step {
        when: at_once,
        act: |w| edit(w, &json!({"keyspace": {"pins": [{"prefix": "/registry/events/", "shard": 1}]}})),
    }],
    ends_ready: true,
};

pub static RESTART: Scenario = Scenario {
    name: "rolling restart",
    base: Some(|| {
        json!({
            "shards": 1, "etcd": {"members": 3, "storage": {"size": "1Gi"}}, "meta": {"members": 1},
            "proxy": {"replicas": 1}, "shardManager": {"replicas": 1},
        })
    }),
    steps: &[Step {
        when: at_once,
        act: |w| edit(w, &json!({"etcd": {"resources": {"requests": {"cpu": "200m"}}}})),
    }],
    ends_ready: true,
};

pub static RECREATE: Scenario = Scenario {
    name: "deleted and made again",
    base: Some(|| small(2)),
    steps: &[
        Step { when: at_once, act: |w| w.delete(&kinds::SHARDED_ETCDS, "demo") },
        Step { when: |w| w.get(&kinds::SHARDED_ETCDS, "demo").is_none(), act: |w| w.apply("demo", small(2)) },
    ],
    ends_ready: true,
};

/// The shards that go stay as they are from when the first of them gives something away: else it would be a matter of
/// time whether they are gone before the operator hears that they are to stay.
pub static CANCEL: Scenario = Scenario {
    name: "scale-in taken back",
    base: Some(|| small(4)),
    steps: &[
        Step { when: at_once, act: |w| edit(w, &json!({"shards": 2})) },
        Step {
            when: |w| shards(w).iter().any(|s| s.phase == Phase::Draining && s.ranges < 3),
            act: |w| {
                w.managers.0.lock().frozen = true;
                edit(w, &json!({"shards": 4}));
            },
        },
        Step {
            when: |w| shards(w).iter().all(|s| s.phase == Phase::Serving),
            act: |w| w.managers.0.lock().frozen = false,
        },
    ],
    ends_ready: true,
};

pub static RETAINED: Scenario = Scenario {
    name: "a retained volume",
    base: Some(|| {
        let mut spec = small(3);
        spec["etcd"]["storage"]["retain"] = json!("Retain");
        spec
    }),
    steps: &[
        Step { when: at_once, act: |w| edit(w, &json!({"shards": 2})) },
        Step {
            when: |w| stateful_set_is_gone(w, "demo-shard-2") && w.is_ready("demo"),
            act: |w| edit(w, &json!({"shards": 3})),
        },
    ],
    ends_ready: false,
};

pub static GROWTH: Scenario = Scenario {
    name: "larger volumes",
    base: Some(|| small(2)),
    steps: &[Step { when: at_once, act: |w| edit(w, &json!({"etcd": {"storage": {"size": "2Gi"}}})) }],
    ends_ready: true,
};

pub static AGAIN: Scenario = Scenario {
    name: "a shard leaves and comes again",
    base: Some(|| small(3)),
    steps: &[
        Step { when: at_once, act: |w| edit(w, &json!({"shards": 2})) },
        Step {
            when: |w| stateful_set_is_gone(w, "demo-shard-2") && w.is_ready("demo"),
            act: |w| edit(w, &json!({"shards": 3})),
        },
    ],
    ends_ready: true,
};
