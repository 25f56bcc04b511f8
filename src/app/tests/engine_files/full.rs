//! A disk that takes no more: no write is acknowledged that is not there later, reads go on, and with room again all does.

use sharded_etcd_shard::{Certainty, Shard};
use tonic::Code;

use crate::server::{Server, everything, put, revision};

/// The first segment of 1 MiB fits, the next one of 2 MiB does not.
const UNITS: u64 = 2048;

#[tokio::test]
async fn where_files_cannot_grow_writes_fail_and_reads_go_on() {
    let mut server = Server::new();
    server.spawn_with_files_of(UNITS);
    server.ready().await;
    let client = server.client();
    let value = "v".repeat(20_000);
    let mut written = 0;
    let error = loop {
        assert!(written < 1000, "nothing was refused");
        match client.put(put(&format!("k{written}"), &value)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(written > 10, "only {written} were written: {error}");
    assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Refused), "{error}");
    assert!(error.message.contains("preallocate"), "says what failed: {error}");

    // Refused again, and seen nowhere.
    assert!(client.put(put("one-more", &value)).await.is_err());
    let stored = client.range(everything()).await.unwrap();
    assert_eq!((stored.count, revision(&stored.header)), (written, written + 1));

    // A start on the full disk serves reads too.
    server.kill();
    server.spawn_with_files_of(UNITS);
    server.ready().await;
    let client = server.client();
    assert_eq!(client.range(everything()).await.unwrap().count, written);
    assert!(client.put(put("one-more", &value)).await.is_err());
    server.stop().await;
    let (code, text) = server.check();
    assert_eq!(code, Some(0), "{text}");

    server.spawn();
    server.ready().await;
    let client = server.client();
    let next = client.put(put("one-more", &value)).await.unwrap();
    assert_eq!(revision(&next.header), written + 2);
    let stored = client.range(everything()).await.unwrap();
    assert_eq!(stored.count, written + 1);
    assert!(stored.kvs.iter().all(|kv| kv.value == value));
}
