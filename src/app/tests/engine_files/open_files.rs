//! Each segment of the log and each connection is an open file.

use crate::server::Server;

/// The soft and the hard limit of open files.
fn limits(process: &str) -> (String, String) {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut fields = line.split_whitespace().map(str::to_owned);
    (fields.next().unwrap(), fields.next().unwrap())
}

#[tokio::test]
async fn as_many_files_may_be_open_as_the_system_allows() {
    let (_, hard) = limits("self");
    let mut server = Server::new();
    server.spawn_after("ulimit -Sn 100");
    server.ready().await;
    let id = server.process().id().to_string();
    assert_eq!(limits(&id), (hard.clone(), hard));
}
