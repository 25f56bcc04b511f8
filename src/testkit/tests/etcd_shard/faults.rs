//! Killed, frozen and restarted members: what is known about a write then, and how calls go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{
    Certainty, Shard, ShardError,
    etcd::{EtcdOptions, EtcdShard, SUSPENSION},
};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions, free_port, wait_until};
use tokio::{
    io::{AsyncReadExt, copy_bidirectional},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use tonic::Code;

use super::{etcd, get, impatient, put};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_member_that_is_not_there_gets_nothing() {
    let endpoint = format!("127.0.0.1:{}", free_port().unwrap());
    let shard = EtcdShard::connect_lazy(vec![endpoint.clone()], EtcdOptions::default()).unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        let error = shard.put(put("a", "1")).await.unwrap_err();
        assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::NotSent));
        assert!(error.message.contains(&endpoint), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(2), "a refused connection is an answer at once");
}

#[tokio::test]
async fn a_killed_member_is_found_again_after_its_restart() {
    let mut etcd = etcd().await;
    let shard = etcd.shard();
    shard.put(put("a", "1")).await.unwrap();
    etcd.kill();
    let error = wait_until("the broken connection is noticed", SOON, || async {
        let error = shard.put(put("a", "2")).await.unwrap_err();
        (error.certainty == Certainty::NotSent).then_some(error)
    })
    .await
    .unwrap();
    assert_eq!(error.code, Code::Unavailable);
    etcd.restart().await.unwrap();
    let answer =
        wait_until("etcd answers again", SOON, || async { shard.range(get("a")).await.ok() }).await.unwrap();
    assert_eq!(answer.kvs[0].value, "1");
}

#[tokio::test]
async fn a_frozen_member_leaves_writes_open_and_answers_after_it_goes_on() {
    let mut etcd = etcd().await;
    let shard = etcd.shard_with(impatient());
    shard.put(put("a", "1")).await.unwrap();
    etcd.pause().await.unwrap();
    let start = Instant::now();
    let error = shard.put(put("a", "2")).await.unwrap_err();
    assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Ambiguous), "{error}");
    assert!(error.message.contains(&etcd.endpoint()), "{error}");
    assert!(start.elapsed() >= impatient().request_timeout);
    etcd.resume();
    // Another key: the open write may be applied at any time from now on, also after this one.
    shard.put(put("b", "3")).await.unwrap();
    assert_eq!(shard.range(get("b")).await.unwrap().kvs[0].value, "3");
}

#[tokio::test]
async fn a_kill_under_load_leaves_no_acknowledged_write_unwritten_and_no_unsent_one_written() {
    let mut etcd = etcd().await;
    let shard = etcd.shard();
    shard.put(put("first", "")).await.unwrap();
    let writers: Vec<_> = (0..20)
        .map(|writer| {
            let shard = shard.clone();
            tokio::spawn(async move {
                let mut outcomes: Vec<(String, Result<(), ShardError>)> = Vec::new();
                loop {
                    let key = format!("{writer}/{}", outcomes.len());
                    let outcome = shard.put(put(&key, "x")).await.map(drop);
                    let last = outcome.as_ref().is_err_and(|error| error.certainty == Certainty::NotSent);
                    outcomes.push((key, outcome));
                    if last {
                        return outcomes;
                    }
                }
            })
        })
        .collect();
    wait_until("writes are under way", SOON, || async {
        let count = pb::RangeRequest { count_only: true, ..super::all() };
        (shard.range(count).await.unwrap().count > 200).then_some(())
    })
    .await
    .unwrap();
    etcd.kill();
    let mut outcomes = Vec::new();
    for writer in writers {
        outcomes.extend(writer.await.unwrap());
    }
    etcd.restart().await.unwrap();
    let keys = wait_until("etcd answers again", SOON, || async { shard.range(super::all()).await.ok() })
        .await
        .unwrap();
    let written: std::collections::BTreeSet<_> = keys.kvs.iter().map(|kv| kv.key.clone()).collect();
    for (key, outcome) in &outcomes {
        match outcome {
            Ok(()) => assert!(written.contains(key.as_bytes()), "{key} was acknowledged and is lost"),
            Err(error) if error.certainty == Certainty::NotSent => {
                assert!(!written.contains(key.as_bytes()), "{key} was written although: {error}");
            }
            Err(error) => {
                assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Ambiguous))
            }
        }
    }
    assert!(outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count() > 200);
}

#[tokio::test]
async fn a_server_that_takes_the_request_and_hangs_up_leaves_it_open() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    // Reads what a client sends at first, then closes the connection.
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        while !received.windows(5).any(|bytes| bytes == b"a-key") {
            assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0, "the client hung up first");
        }
    });
    let shard = EtcdShard::connect_lazy(vec![endpoint], EtcdOptions::default()).unwrap();
    let error = shard.put(put("a-key", "1")).await.unwrap_err();
    assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Ambiguous), "{error}");
    server.await.unwrap();
}

#[tokio::test]
async fn calls_pass_over_a_dead_member() {
    let mut members = EtcdProcess::start_cluster(3, EtcdProcessOptions::default()).await.unwrap();
    let shard = over(&members, EtcdOptions::default());
    for number in 0..12 {
        shard.put(put(&number.to_string(), "x")).await.unwrap();
    }
    let follower = follower(&members).await;
    members[follower].kill();
    // Connections to it are broken or refused; neither may fail a call twice.
    let mut open = 0;
    for number in 0..60 {
        match shard.put(put(&number.to_string(), "y")).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.certainty, Certainty::Ambiguous, "{error}");
                open += 1;
            }
        }
    }
    assert!(open <= 2, "{open} calls failed; each of the two connections may break under one");
    members[follower].restart().await.unwrap();
    for number in 0..12 {
        shard.put(put(&number.to_string(), "z")).await.unwrap();
    }
}

#[tokio::test]
async fn calls_pass_over_a_frozen_member_once_it_is_known() {
    let mut members = EtcdProcess::start_cluster(3, EtcdProcessOptions::default()).await.unwrap();
    let shard = over(&members, impatient());
    for number in 0..12 {
        shard.put(put(&number.to_string(), "x")).await.unwrap();
    }
    let follower = follower(&members).await;
    members[follower].pause().await.unwrap();
    let start = Instant::now();
    let (mut answered, mut failed) = (0, 0);
    while answered < 20 || start.elapsed() < SUSPENSION {
        match shard.range(get("1")).await {
            Ok(_) => answered += 1,
            Err(error) => {
                assert_eq!(error.certainty, Certainty::Ambiguous, "{error}");
                failed += 1;
            }
        }
        assert!(start.elapsed() < SOON, "{answered} calls were answered and {failed} failed");
    }
    // Each failure buys a time without one. Without suspension every third call would fail.
    let bound = 1 + start.elapsed().as_millis() / SUSPENSION.as_millis();
    assert!(
        (1..=bound).contains(&failed),
        "{failed} calls failed in {:?}, {answered} were answered",
        start.elapsed()
    );
    members[follower].resume();
}

#[tokio::test]
async fn no_call_waits_for_a_member_that_does_not_even_connect() {
    // A queue of one that nobody accepts from: further attempts to connect get no answer at all.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let hanging = socket.listen(1).unwrap();
    let address = hanging.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queue.push(stream.unwrap());
    }
    let etcd = etcd().await;
    let options = EtcdOptions { connect_timeout: Duration::from_secs(6), ..EtcdOptions::default() };
    let endpoints = vec![etcd.endpoint(), address.to_string()];
    let shard = EtcdShard::connect_lazy(endpoints, options.clone()).unwrap();
    for number in 0..100 {
        let start = Instant::now();
        shard.put(put("a", number.to_string())).await.unwrap();
        assert!(start.elapsed() < options.connect_timeout, "put {number} took {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn pings_keep_a_quiet_watch_alive_and_do_not_annoy_etcd() {
    let pings = Duration::from_millis(300);
    let arguments = vec!["--grpc-keepalive-min-time=50ms".to_owned()];
    let etcd = EtcdProcess::start(EtcdProcessOptions { arguments, ..Default::default() }).await.unwrap();
    let (endpoint, connections) = forward(etcd.endpoint()).await;
    let options = EtcdOptions { keepalive_interval: pings, connections: 1, ..EtcdOptions::default() };
    let shard = EtcdShard::connect_lazy(vec![endpoint], options).unwrap();
    shard.put(put("a", "1")).await.unwrap();
    let create = pb::WatchCreateRequest { key: "a".into(), ..Default::default() };
    let mut stream = shard.watch(create).await.unwrap();
    assert!(stream.next().await.unwrap().unwrap().created);
    assert_eq!(connections.load(Ordering::Relaxed), 2, "one for calls, one for watches");
    // etcd's third strike closes a connection; both have had the time for ten pings here.
    assert!(timeout(10 * pings, stream.next()).await.is_err(), "a quiet watch got an item");
    shard.put(put("a", "2")).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().events.len(), 1);
    assert_eq!(connections.load(Ordering::Relaxed), 2, "a connection was closed and opened again");
}

/// Passes connections on to `to` and counts them.
async fn forward(to: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    let to = to.strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            let mut server = TcpStream::connect(&to).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    (endpoint, connections)
}

fn over(members: &[EtcdProcess], options: EtcdOptions) -> EtcdShard {
    EtcdShard::connect_lazy(members.iter().map(EtcdProcess::endpoint).collect(), options).unwrap()
}

/// A member that is not the leader.
async fn follower(members: &[EtcdProcess]) -> usize {
    for (index, member) in members.iter().enumerate() {
        let status = member.shard().status().await.unwrap();
        if status.leader != status.header.unwrap().member_id {
            return index;
        }
    }
    panic!("every member says that it leads");
}
