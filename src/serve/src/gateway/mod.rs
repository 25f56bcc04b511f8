//! etcd's JSON gateway: every call of the API as a POST with JSON below `/v3/`, for clients without gRPC (Patroni, `curl`).
//!
//! Follows grpc-gateway v2 as etcd configures it (server/embed/serve.go): names as in the proto files, 64-bit integers as
//! strings, bytes in base64, nothing that has its default; unknown fields are passed over. An answer of many parts is one
//! JSON object a line, `{"result": …}`, and `{"error": …}` if it ends with one. Of a call that takes many requests all have to
//! be in the body; its answers go on after that, as etcd's do.

mod codec;
mod paths;

use std::sync::LazyLock;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, header, uri::PathAndQuery},
    response::{IntoResponse, Response},
    routing::any,
};
use codec::Dynamic;
use futures::{Stream, StreamExt, stream};
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde_json::{Deserializer, Serializer, Value, json};
use tonic::{Code, Request, Status, client::Grpc};

/// The longest body that is read. Requests are limited by the services; in JSON they take up to about twice as much.
const BODY_BYTES_MAX: usize = 16 << 20;

static DESCRIPTORS: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(sharded_etcd_etcd_api::DESCRIPTORS).ok());

/// What the API's messages look like.
pub(crate) fn descriptors() -> DescriptorPool {
    // They are made with the program; without them no path would be found.
    DESCRIPTORS.clone().unwrap_or_default()
}

/// The gateway to these gRPC services.
pub(crate) fn router(grpc: Router) -> Router {
    Router::new().route("/v3/{*path}", any(handle)).with_state(grpc)
}

async fn handle(
    State(grpc): State<Router>,
    Path(path): Path<String>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Some((service, name)) = paths::call(&path) else {
        return failed(&Status::not_found("Not Found"));
    };
    if method != Method::POST {
        return failed(&Status::unimplemented("Method Not Allowed"));
    }
    let Some(call) =
        descriptors().get_service_by_name(service).and_then(|s| s.methods().find(|m| m.name() == name))
    else {
        return failed(&Status::not_found("Not Found"));
    };
    let body = match axum::body::to_bytes(body, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) => return failed(&Status::invalid_argument(format!("the body cannot be read: {error}"))),
    };
    let requests = match parse(&call.input(), &body, call.is_client_streaming()) {
        Ok(requests) => requests,
        Err(error) => return failed(&Status::invalid_argument(error.to_string())),
    };
    let answered = forward(grpc, service, &call, requests, headers).await;
    answered.unwrap_or_else(|status| failed(&status))
}

/// The messages of a body: one, or any number for a call that takes many. An empty body is an empty message.
fn parse(of: &MessageDescriptor, body: &[u8], many: bool) -> Result<Vec<DynamicMessage>, serde_json::Error> {
    let mut input = Deserializer::from_slice(body);
    let mut messages = Vec::new();
    while input.end().is_err() {
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        messages.push(DynamicMessage::deserialize_with_options(of.clone(), &mut input, &options)?);
        if !many {
            return Ok(messages);
        }
    }
    if messages.is_empty() && !many {
        messages.push(DynamicMessage::new(of.clone()));
    }
    Ok(messages)
}

async fn forward(
    grpc: Router,
    service: &str,
    call: &MethodDescriptor,
    requests: Vec<DynamicMessage>,
    headers: HeaderMap,
) -> Result<Response, Status> {
    let path = PathAndQuery::try_from(format!("/{service}/{}", call.name()))
        .map_err(|error| Status::internal(format!("no call of that name: {error}")))?;
    let mut client =
        Grpc::new(grpc).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
    let Ok(()) = client.ready().await;
    let mut request = Request::new(stream::iter(requests));
    if let Some(token) =
        headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok()?.parse().ok())
    {
        // Where gRPC clients put it. (etcd: `authorization` is mapped to `token`.)
        request.metadata_mut().insert("token", token);
    }
    let codec = Dynamic(call.output());
    if !call.is_server_streaming() {
        let answer = client.client_streaming(request, path, codec).await?.into_inner();
        return Ok(json_response(StatusCode::OK, Body::from(text_of(&answer)?)));
    }
    // A call that takes many requests ends with the last for some services, and goes on for a watch: that is theirs to say.
    let answers = client.streaming(request, path, codec).await?.into_inner();
    Ok(json_response(StatusCode::OK, Body::from_stream(lines(answers))))
}

/// An object a line, and the error that ended them.
fn lines(
    answers: impl Stream<Item = Result<DynamicMessage, Status>> + Send,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
    answers.map(|answer| {
        let line = answer.and_then(|message| Ok(format!("{{\"result\":{}}}\n", text_of(&message)?)));
        Ok(line.unwrap_or_else(|status| format!("{{\"error\":{}}}\n", error_of(&status))).into())
    })
}

fn text_of(message: &DynamicMessage) -> Result<String, Status> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = Vec::new();
    let written = message.serialize_with_options(&mut Serializer::new(&mut text), &options);
    written
        .map_err(|error| error.to_string())
        .and_then(|()| String::from_utf8(text).map_err(|error| error.to_string()))
        .map_err(|error| Status::internal(format!("the answer has no form in JSON: {error}")))
}

fn error_of(status: &Status) -> Value {
    json!({ "code": i32::from(status.code()), "message": status.message() })
}

fn failed(status: &Status) -> Response {
    json_response(http_status(status.code()), Body::from(error_of(status).to_string()))
}

fn json_response(status: StatusCode, body: Body) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// (grpc-gateway: `runtime.HTTPStatusFromCode`.)
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
