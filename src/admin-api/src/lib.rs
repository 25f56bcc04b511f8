//! The project's own gRPC service: what the command line asks a running topology.
#![allow(missing_docs, clippy::all)]

/// Version 1 of the admin service.
pub mod v1 {
    tonic::include_proto!("shardedetcd.admin.v1");
}
