//! Calls with one message each way.
//!
//! tonic's client makes a stream of every request and every answer, behind two more boxes; for a write of a few hundred bytes
//! that is a good part of what it costs to pass it on. gRPC's framing of such a call is five bytes and a status
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>), so it is done here; connections, HTTP/2 and statuses
//! are the libraries'.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderValue, Request, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use prost::Message;
use tonic::{Code, Status, body::Body};

use super::pool::Pool;

/// Before each message: whether it is compressed, and its length in four bytes.
const PREFIX_BYTES: usize = 5;

/// The methods of etcd that take one message and give one.
pub(super) mod method {
    pub(in crate::etcd) const RANGE: &str = "/etcdserverpb.KV/Range";
    pub(in crate::etcd) const PUT: &str = "/etcdserverpb.KV/Put";
    pub(in crate::etcd) const TXN: &str = "/etcdserverpb.KV/Txn";
    pub(in crate::etcd) const COMPACT: &str = "/etcdserverpb.KV/Compact";
    pub(in crate::etcd) const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
    pub(in crate::etcd) const REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
    pub(in crate::etcd) const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
    pub(in crate::etcd) const LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
    pub(in crate::etcd) const STATUS: &str = "/etcdserverpb.Maintenance/Status";
    pub(in crate::etcd) const DEFRAGMENT: &str = "/etcdserverpb.Maintenance/Defragment";
    pub(in crate::etcd) const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
}

/// Sends a request to one member and waits for its answer, of at most `bytes_max` bytes.
///
/// # Errors
/// The status that the member answers with; one with a source for what fails below gRPC.
pub(super) async fn call<A: Message + Default>(
    pool: &Pool,
    origin: &Uri,
    method: &'static str,
    request: &impl Message,
    bytes_max: usize,
) -> Result<A, Status> {
    let mut parts = origin.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(method));
    let uri = Uri::from_parts(parts).map_err(|error| Status::from_error(Box::new(error)))?;
    let mut sent = Request::post(uri)
        .body(Body::new(Full::new(framed(request))))
        .map_err(|e| Status::from_error(Box::new(e)))?;
    let headers = sent.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let response = pool.send(sent).await.map_err(|failure| Status::from_error(Box::new(failure)))?;
    if let Some(status) = Status::from_header_map(response.headers()) {
        // Without a message: there is none to read.
        return Err(fault_of(status));
    }
    if response.status() != http::StatusCode::OK {
        return Err(Status::unavailable(format!("not an answer of etcd: HTTP status {}", response.status())));
    }
    let message = read(response.into_body(), bytes_max).await?;
    A::decode(message).map_err(|error| Status::internal(format!("etcd's answer cannot be decoded: {error}")))
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    // Callers bound requests far below 4 GiB; a server refuses what is cut off here.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// A call that was told to be well, but gave no message, is not.
fn fault_of(status: Status) -> Status {
    if status.code() == Code::Ok { Status::unavailable("etcd's answer has no message") } else { status }
}

/// Reads the one message, and the status behind it.
async fn read(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Status> {
    let mut bytes = Gathered::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::from_error(Box::new(error)))?;
        match frame.into_data() {
            Ok(data) => bytes.add(data, bytes_max)?,
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else { continue };
                return match Status::from_header_map(&trailers) {
                    Some(status) if status.code() == Code::Ok => bytes.message(),
                    Some(status) => Err(status),
                    None => Err(Status::unavailable("etcd's answer has no gRPC status")),
                };
            }
        }
    }
    Err(Status::unavailable("etcd's answer ended without a gRPC status"))
}

/// What has come of a message. Nearly always it comes in one piece, which is not copied.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    rest: BytesMut,
}

impl Gathered {
    fn add(&mut self, data: Bytes, bytes_max: usize) -> Result<(), Status> {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = data;
        } else {
            if self.rest.is_empty() {
                self.rest.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.rest.extend_from_slice(&data);
        }
        let length = self.first.len() + self.rest.len();
        if length > bytes_max.saturating_add(PREFIX_BYTES) {
            return Err(Status::out_of_range(format!("etcd's answer is larger than {bytes_max} bytes")));
        }
        Ok(())
    }

    fn message(self) -> Result<Bytes, Status> {
        let mut bytes = if self.rest.is_empty() { self.first } else { self.rest.freeze() };
        if bytes.len() < PREFIX_BYTES {
            return Err(Status::unavailable("etcd's answer has no message"));
        }
        let compressed = bytes.get_u8() != 0;
        let length = bytes.get_u32() as usize;
        if compressed || length != bytes.len() {
            return Err(Status::internal(
                "etcd's answer is not framed as one message that is not compressed",
            ));
        }
        Ok(bytes)
    }
}
