//! Compiles the etcd v3 API with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let services = std::env::var_os("CARGO_FEATURE_SERVICES").is_some();
    let files = protox::compile(["rpc.proto", "lock.proto", "election.proto", "health.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(services)
        .build_server(services)
        .compile_fds(files)?;
    Ok(())
}
