//! `serve DIR ADDRESS [THREADS]`: the engine alone, to be measured; without THREADS on one runtime of many threads.
#![allow(clippy::unwrap_used, missing_docs)]

use sharded_etcd_engine::{
    Engine, EngineConfig,
    serve::{routes, serve},
};
use sharded_etcd_serve::serve_on_threads;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let engine = Engine::open(EngineConfig::new(&arguments[0], "serve")).await.unwrap();
    let listener = tokio::net::TcpListener::bind(&arguments[1]).await.unwrap();
    let shutdown = CancellationToken::new();
    match arguments.get(2) {
        Some(threads) => {
            let routes = routes(engine, vec![], shutdown.clone());
            serve_on_threads(
                vec![listener],
                tonic::transport::Server::builder(),
                routes,
                threads.parse().unwrap(),
                shutdown,
            )
            .await
            .unwrap();
        }
        None => serve(engine, listener, shutdown).await.unwrap(),
    }
}
