//! The etcd v3 API: messages for everybody, tonic clients and servers behind the feature `services`.
//!
//! All `bytes` fields are [`bytes::Bytes`], so values pass from a socket to a shard without a copy.
#![allow(missing_docs, clippy::all)]

/// `mvccpb`: keys, values and events.
pub mod mvccpb {
    include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
}

/// `authpb`: users, roles and permissions.
pub mod authpb {
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
}

/// `etcdserverpb`: requests, responses and (with `services`) the gRPC services.
pub mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

/// `v3lockpb`: etcd's lock service.
pub mod v3lockpb {
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
}

/// `v3electionpb`: etcd's election service.
pub mod v3electionpb {
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
}

/// `grpc.health.v1`: the health service that gRPC clients and probes ask.
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// The messages most code wants, in one place.
pub mod messages {
    pub use crate::etcdserverpb::{
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
        response_op::Response,
        watch_create_request::FilterType,
        watch_request::RequestUnion,
        *,
    };
    pub use crate::mvccpb::{Event, KeyValue, event::EventType};
}
