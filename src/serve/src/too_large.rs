//! A request that is too large to be decoded, refused as etcd's gRPC library does it.

use tonic::{
    Code,
    codegen::http::{HeaderValue, Response},
};

/// What tonic says (`decode_chunk` in its codec), percent-encoded as in a header.
const TONIC_TEXT: &str = "Error,%20decoded%20message%20length%20too%20large:%20found%20";
const TONIC_LIMIT: &str = "%20bytes,%20the%20limit%20is:%20";
const TONIC_END: &str = "%20bytes";

/// Turns tonic's `OutOfRange` into `ResourceExhausted` with grpc-go's text (`recv` in its rpc_util.go): with etcd,
/// `OutOfRange` says that a revision is compacted or in the future.
pub(crate) fn as_grpc_go<B>(mut response: Response<B>) -> Response<B> {
    let Some(message) = response.headers().get("grpc-message").and_then(grpc_go_text) else {
        return response;
    };
    let headers = response.headers_mut();
    headers.insert("grpc-status", HeaderValue::from(Code::ResourceExhausted as i32));
    headers.insert("grpc-message", message);
    response
}

fn grpc_go_text(message: &HeaderValue) -> Option<HeaderValue> {
    let sizes = message.to_str().ok()?.strip_prefix(TONIC_TEXT)?.strip_suffix(TONIC_END)?;
    let (found, limit) = sizes.split_once(TONIC_LIMIT)?;
    let text = format!("grpc:%20received%20message%20larger%20than%20max%20({found}%20vs.%20{limit})");
    text.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tonic::Status;

    fn refused(code: Code, text: &str) -> (Code, String) {
        let response = as_grpc_go(Status::new(code, text).into_http::<()>());
        let status = Status::from_header_map(response.headers()).unwrap();
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn a_request_that_is_too_large_is_refused_as_by_grpc_go() {
        let tonic =
            "Error, decoded message length too large: found 9437194 bytes, the limit is: 2097152 bytes";
        let grpc_go = "grpc: received message larger than max (9437194 vs. 2097152)";
        assert_eq!(refused(Code::OutOfRange, tonic), (Code::ResourceExhausted, grpc_go.to_owned()));
    }

    #[test]
    fn everything_else_stays() {
        for text in ["etcdserver: mvcc: required revision has been compacted", "50% of a request", ""] {
            assert_eq!(refused(Code::OutOfRange, text), (Code::OutOfRange, text.to_owned()));
        }
        let fine =
            as_grpc_go(Response::builder().header("content-type", "application/grpc").body(()).unwrap());
        assert_eq!(fine.headers().len(), 1);
    }
}
