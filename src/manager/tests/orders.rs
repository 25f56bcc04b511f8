//! Orders by hand: a leading shard manager does what was written down, whoever wrote it and whoever led before.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sharded_etcd_admin_api::v1::{OrderRequest, OrderStateRequest, StatusRequest, admin_server::Admin};
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    orders::{Order, OrderRecord, OrderState},
    topology::{Draft, RebalanceMode, Topology, validate},
};
use sharded_etcd_manager::{
    AdminService, Failpoints, Manager, ManagerOptions, ManagerStatus, Proceed, Sizes, When,
};
use tokio::sync::watch;
use tonic::{Code, Request};
use world::{Client, World};

fn topology(mode: RebalanceMode) -> Arc<Topology> {
    let mut draft = Draft::new("demo", 2);
    draft.mode = mode;
    Arc::new(validate(draft).unwrap())
}

struct Hand {
    world: Arc<World>,
    admin: AdminService,
    wanted: watch::Sender<Arc<Topology>>,
}

impl Hand {
    /// `keys` on shard 0, below "m"; shard 1 has the rest.
    async fn new(mode: RebalanceMode, keys: usize) -> Self {
        let world = World::new(2).await;
        let client = Client::new(&world);
        for i in 0..keys {
            client.put(&format!("a{i:05}"), &"v".repeat(50), 0).await;
        }
        let (line, shards) = (Arc::clone(&world.line), Arc::clone(&world.shards));
        let sizes = Sizes::new(Arc::clone(&line), Arc::clone(&shards));
        let admin = AdminService::new(line, shards, sizes, Arc::new(|_| Err("not here".into())), None);
        Self { world, admin, wanted: watch::Sender::new(topology(mode)) }
    }

    fn manager(&self, failpoints: Failpoints) -> Arc<Manager> {
        let (line, shards) = (Arc::clone(&self.world.line), Arc::clone(&self.world.shards));
        Manager::start(ManagerOptions {
            interval: Duration::from_millis(20),
            failpoints,
            ..ManagerOptions::new(line, shards, self.wanted.subscribe(), "one")
        })
    }

    async fn give(&self, order: &Order) -> String {
        let request = OrderRequest { order_json: serde_json::to_string(order).unwrap() };
        self.admin.order(Request::new(request)).await.unwrap().into_inner().id
    }

    async fn look(&self, id: &str) -> OrderRecord {
        let answer = self.admin.order_state(Request::new(OrderStateRequest { id: id.into() })).await.unwrap();
        serde_json::from_str(&answer.into_inner().order_json).unwrap()
    }

    async fn until(&self, id: &str, what: &str, holds: impl Fn(&OrderRecord) -> bool) -> OrderRecord {
        for _ in 0..1000 {
            let record = self.look(id).await;
            if holds(&record) {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}: {:?}", self.look(id).await);
    }

    async fn over(&self, order: Order) -> (OrderState, String) {
        let id = self.give(&order).await;
        let record = self.until(&id, "it is not over", OrderRecord::is_over).await;
        (record.state, record.message)
    }

    fn owners(&self) -> Vec<(String, u32)> {
        let cut = self.world.line.cut();
        let text = |key: &Bytes| String::from_utf8(key.to_vec()).unwrap();
        cut.map.entries().iter().map(|e| (text(&e.range.start), e.shard.0)).collect()
    }

    /// Waits until the resource's status says these words about the balance; it is up to half a second old.
    async fn says(&self, words: &str) {
        self.says_of("Balanced", words).await;
    }

    /// The same about any condition, as its status, its reason and its message.
    async fn says_of(&self, type_: &str, words: &str) {
        let mut said = String::new();
        for _ in 0..200 {
            let answer = self.admin.status(Request::new(StatusRequest {})).await.unwrap().into_inner();
            let status: serde_json::Value = serde_json::from_str(&answer.status_json).unwrap();
            let conditions = status["conditions"].as_array().unwrap();
            if let Some(of) = conditions.iter().find(|c| c["type"] == type_) {
                let text = |field: &str| of[field].as_str().unwrap().to_owned();
                said = format!("{} {}: {}", text("status"), text("reason"), text("message"));
            }
            if said.contains(words) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{type_} lacks {words:?}: {said}");
    }
}

/// Executors never get past the close of the source; and whether one has come that far.
fn stuck_before_the_close() -> (Failpoints, Arc<AtomicBool>) {
    let reached = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&reached);
    let failpoints = Failpoints::new(move |point| {
        if point.step != "close" || point.when != When::Before {
            return Proceed::Go;
        }
        seen.store(true, Ordering::SeqCst);
        Proceed::Die
    });
    (failpoints, reached)
}

async fn comes(reached: &AtomicBool) {
    for _ in 0..1000 {
        if reached.load(Ordering::SeqCst) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no move came to the close of its source");
}

fn to(start: &'static str, end: &'static str, to: &str) -> Order {
    Order::Move { range: KeyRange::new(start, end), to: to.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_moved_split_and_merged_by_hand() {
    // Manual, so that the planner does not move anything itself.
    let hand = Hand::new(RebalanceMode::Manual, 50).await;
    let early = hand.give(&Order::Split { at: "a00010".into() }).await;
    assert_eq!(hand.look(&early).await.state, OrderState::Waiting, "nobody leads yet");
    let manager = hand.manager(Failpoints::default());
    hand.until(&early, "the split", |r| r.state == OrderState::Done).await;
    assert_eq!(hand.owners(), [("".into(), 0), ("a00010".into(), 0), ("m".into(), 1)]);

    let (state, message) = hand.over(to("a00020", "a00030", "shard-1")).await;
    assert_eq!((state, message.as_str()), (OrderState::Done, "1 range is on shard-1"));
    let owners = hand.owners();
    assert!(owners.contains(&("a00020".into(), 1)) && owners.contains(&("a00030".into(), 0)), "{owners:?}");
    assert_eq!(hand.over(Order::Merge { at: "a00010".into() }).await.0, OrderState::Done);
    assert!(!hand.owners().iter().any(|o| o.0 == "a00010"));

    for (order, words) in [
        (to("x", "y", "shard-9"), "no shard shard-9"),
        (Order::Merge { at: "a00020".into() }, "move one of them first"),
        (Order::Abort { range: KeyRange::whole() }, "nothing of"),
        (Order::Approve { plan: "00000000".into() }, "nothing is planned"),
    ] {
        let (state, message) = hand.over(order).await;
        assert!(state == OrderState::Failed && message.contains(words), "{message:?} lacks {words:?}");
    }
    let unreadable = OrderRequest { order_json: "{\"drop\": {}}".into() };
    assert_eq!(hand.admin.order(Request::new(unreadable)).await.unwrap_err().code(), Code::InvalidArgument);
    let unknown = OrderStateRequest { id: "x".into() };
    assert_eq!(hand.admin.order_state(Request::new(unknown)).await.unwrap_err().code(), Code::NotFound);
    manager.close().await;
}

/// Several orders of one round do not begin more moves than may be under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_moves_are_begun_than_may_be_under_way() {
    let hand = Hand::new(RebalanceMode::Manual, 50).await;
    let mut draft = Draft::new("demo", 2);
    (draft.mode, draft.moves_max) = (RebalanceMode::Manual, 1);
    hand.wanted.send_replace(Arc::new(validate(draft).unwrap()));
    let starts = ["a00010", "a00020", "a00030", "a00040"];
    let mut ids = Vec::new();
    for (start, end) in starts.into_iter().zip(["a00020", "a00030", "a00040", "m"]) {
        ids.push(hand.give(&to(start, end, "shard-1")).await);
    }
    let (now, most) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let (counted, highest) = (Arc::clone(&now), Arc::clone(&most));
    let failpoints = Failpoints::new(move |point| {
        match (point.when, point.step) {
            (When::After, "open") => {
                let moves = counted.fetch_add(1, Ordering::SeqCst) + 1;
                highest.fetch_max(moves, Ordering::SeqCst);
            }
            (When::Before, "flip") => {
                // Maybe not for the first time, if a guard did not match.
                counted.store(0, Ordering::SeqCst);
            }
            _ => {}
        }
        Proceed::Go
    });
    let manager = hand.manager(failpoints);
    for id in ids {
        hand.until(&id, "the move", |r| r.state == OrderState::Done).await;
    }
    assert_eq!((now.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (0, 1));
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_gone_on_with_by_the_next_leader() {
    let hand = Hand::new(RebalanceMode::Manual, 200).await;
    let (failpoints, reached) = stuck_before_the_close();
    let first = hand.manager(failpoints);
    let id = hand.give(&to("", "m", "shard-1")).await;
    comes(&reached).await;
    first.close().await;
    assert_eq!(hand.look(&id).await.state, OrderState::Running);
    let second = hand.manager(Failpoints::default());
    hand.until(&id, "the move", |r| r.state == OrderState::Done).await;
    assert!(hand.owners().iter().all(|o| o.1 == 1), "{:?}", hand.owners());
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_aborted_does_not_come_again() {
    let hand = Hand::new(RebalanceMode::Automatic, 500).await;
    let (failpoints, reached) = stuck_before_the_close();
    let manager = hand.manager(failpoints);
    // The planner's own, as all keys are on one shard.
    comes(&reached).await;
    let before = hand.owners();
    let (state, message) = hand.over(Order::Abort { range: KeyRange::whole() }).await;
    assert_eq!(state, OrderState::Done, "{message}");
    assert_eq!(hand.owners(), before);
    hand.says("aborted by hand").await;
    manager.close().await;
    assert_eq!(hand.owners(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_aborted_does_not_come_again_under_the_next_leader() {
    let hand = Hand::new(RebalanceMode::Automatic, 500).await;
    let (failpoints, reached) = stuck_before_the_close();
    let first = hand.manager(failpoints);
    comes(&reached).await;
    let before = hand.owners();
    let (state, message) = hand.over(Order::Abort { range: KeyRange::whole() }).await;
    assert_eq!(state, OrderState::Done, "{message}");
    first.close().await;
    // It makes a plan, and says why it does not begin.
    let second = hand.manager(Failpoints::default());
    let mut status = second.status();
    let waits = status.wait_for(|s| {
        s.leading && s.complete && s.waits.iter().any(|wait| wait.reason.contains("aborted by hand"))
    });
    tokio::time::timeout(Duration::from_secs(20), waits).await.unwrap().unwrap();
    assert!(second.status().borrow().moves.is_empty());
    second.close().await;
    assert_eq!(hand.owners(), before);
}

/// The id of the plan that waits for its approval.
async fn plan_that_waits(manager: &Manager) -> String {
    let waits = |s: &ManagerStatus| {
        s.waits
            .iter()
            .find_map(|w| w.reason.split_once("sharded-etcd approve ").map(|(_, id)| id[..8].to_owned()))
    };
    let mut status = manager.status();
    let shown = status.wait_for(|s| s.complete && waits(s).is_some());
    let shown = tokio::time::timeout(Duration::from_secs(20), shown).await.unwrap().unwrap().clone();
    waits(&shown).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_approved_in_the_spec() {
    let hand = Hand::new(RebalanceMode::Manual, 500).await;
    let manager = hand.manager(Failpoints::default());
    let id = plan_that_waits(&manager).await;
    let approve = |id: &str| {
        let mut draft = Draft::new("demo", 2);
        (draft.mode, draft.approved_plan) = (RebalanceMode::Manual, Some(id.to_owned()));
        hand.wanted.send_replace(Arc::new(validate(draft).unwrap()));
    };
    // Another plan's approval is none: this one goes on waiting.
    approve("00000000");
    hand.says(&format!("rebalance.approvedPlan: {id}")).await;
    assert_eq!(plan_that_waits(&manager).await, id);
    approve(&id);
    let mut status = manager.status();
    let balanced =
        tokio::time::timeout(Duration::from_secs(20), status.wait_for(|s| s.balanced)).await.is_ok();
    assert!(balanced, "{:?}", manager.status().borrow().waits);
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_waits_for_its_approval() {
    let hand = Hand::new(RebalanceMode::Manual, 500).await;
    let manager = hand.manager(Failpoints::default());
    let mut status = manager.status();
    let id = plan_that_waits(&manager).await;
    hand.says(&format!("sharded-etcd approve {id}")).await;
    // It waits for a person: that is no progress, and said in a condition of its own.
    hand.says_of("AwaitingApproval", &format!("True PlanWaits: plan {id} of ")).await;
    hand.says_of("Reconciling", &format!("False AwaitingApproval: plan {id} of ")).await;
    hand.says_of("Ready", "True Serving").await;
    let (state, message) = hand.over(Order::Approve { plan: "00000000".into() }).await;
    assert!(state == OrderState::Failed && message.contains(&format!("look at plan {id}")), "{message}");
    let (state, _) = hand.over(Order::Approve { plan: id }).await;
    assert_eq!(state, OrderState::Done);
    let in_a = |start: &str| start.is_empty() || start.starts_with('a');
    assert!(hand.owners().iter().any(|(start, shard)| *shard == 1 && in_a(start)), "{:?}", hand.owners());
    // What is waited for is held locked as long as it is looked at.
    let balanced =
        tokio::time::timeout(Duration::from_secs(20), status.wait_for(|s| s.balanced)).await.is_ok();
    assert!(balanced, "{:?}", manager.status().borrow().waits);
    let (shard_0, _) = manager.sizes().of_shard(&hand.world.line.cut().map, ShardIx(0));
    assert!(shard_0 < 400, "{shard_0} of 500 keys are still on shard-0");
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_makes_no_progress() {
    let hand = Hand::new(RebalanceMode::Paused, 500).await;
    let manager = hand.manager(Failpoints::default());
    hand.says_of("Reconciling", "False Paused: ").await;
    hand.says_of("AwaitingApproval", "False NothingWaits").await;
    hand.says_of("Balanced", "False Unbalanced").await;
    // The same is done as soon as nothing forbids it.
    hand.wanted.send_replace(topology(RebalanceMode::Automatic));
    hand.says_of("Balanced", "True Balanced").await;
    hand.says_of("Reconciling", "False Settled").await;
    manager.close().await;
}
