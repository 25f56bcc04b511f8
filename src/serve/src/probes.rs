//! What an etcd client port says over HTTP: `/health`, `/livez` and `/readyz` with their single checks, `/version`,
//! `/metrics` (server/etcdserver/api/etcdhttp).

use std::{collections::HashSet, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::any,
};
use futures::future::BoxFuture;
use sharded_etcd_etcd_api::messages::AlarmType;
use tonic::Status;

use crate::gateway;

/// A server that is asked how it is.
pub trait Probed: Send + Sync + 'static {
    /// The alarms that are raised.
    ///
    /// # Errors
    /// Why they cannot be told.
    fn alarms(&self) -> BoxFuture<'_, Result<Vec<AlarmType>, String>>;
    /// Whether it serves what it has by itself; if not, it is to be started anew.
    ///
    /// # Errors
    /// Why not.
    fn lives(&self) -> BoxFuture<'_, Result<(), String>>;
    /// Whether clients shall come.
    ///
    /// # Errors
    /// Why not.
    fn serves(&self) -> BoxFuture<'_, Result<(), String>>;
    /// The etcd release that it answers as, without a suffix.
    fn release(&self) -> &'static str;
}

/// A server's gRPC services with the paths beside them, the JSON gateway included. `metrics` gives the text of `/metrics`, in the OpenMetrics format.
pub fn with_probes<P: Probed>(
    grpc: Router,
    probed: Arc<P>,
    metrics: impl Fn(&P) -> String + Clone + Send + Sync + 'static,
) -> Router {
    let of = Arc::clone(&probed);
    let scraped = async move |headers: HeaderMap| exposition(&headers, metrics(&of));
    let http = paths(probed).route("/metrics", any(scraped));
    // Not what the gRPC services have there: it answers 200 to a browser.
    let gateway = gateway::router(grpc.clone());
    grpc.merge(http).merge(gateway).fallback(nothing_there)
}

fn paths(probed: Arc<impl Probed>) -> Router {
    let mut router = Router::new().route("/health", any(health)).route("/version", any(version));
    for (path, checks) in [("/livez", LIVEZ), ("/readyz", READYZ)] {
        let all = async move |State(probed): State<Arc<_>>, method: Method, uri: Uri| {
            checked(&probed, &method, &uri, &left(checks, &parameters(&uri, "exclude"))).await
        };
        router = router.route(path, any(all));
        for check in checks {
            let one = async move |State(probed): State<Arc<_>>, method: Method, uri: Uri| {
                checked(&probed, &method, &uri, std::slice::from_ref(check)).await
            };
            router = router.route(&format!("{path}/{}", check.name()), any(one));
        }
    }
    router.with_state(probed)
}

/// A check of `/livez` or `/readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVEZ: &[Check] = &[Check::SerializableRead];
const READYZ: &[Check] =
    &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, probed: &impl Probed) -> Result<(), String> {
        match self {
            Self::DataCorruption if probed.alarms().await?.contains(&AlarmType::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Self::SerializableRead => probed.lives().await,
            Self::LinearizableRead => probed.serves().await,
            Self::DataCorruption | Self::NonLearner => Ok(()),
        }
    }
}

/// The checks that are not excluded; a name that is none is not minded.
fn left(checks: &[Check], excluded: &HashSet<&str>) -> Vec<Check> {
    checks.iter().copied().filter(|check| !excluded.contains(check.name())).collect()
}

/// What a parameter is set to, as often as it is there.
fn parameters<'a>(uri: &'a Uri, name: &str) -> HashSet<&'a str> {
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value).collect()
}

fn is_set(uri: &Uri, name: &str) -> bool {
    let keys = uri.query().unwrap_or_default().split('&').map(|pair| pair.split('=').next());
    keys.into_iter().any(|key| key == Some(name))
}

/// Runs the checks. What failed is always said, what passed only if `verbose` is set.
async fn checked(probed: &Arc<impl Probed>, method: &Method, uri: &Uri, checks: &[Check]) -> Response {
    if method != Method::GET {
        return not_allowed();
    }
    let (mut lines, mut failed) = (String::new(), false);
    for check in checks {
        match check.run(probed.as_ref()).await {
            Ok(()) => lines += &format!("[+]{} ok\n", check.name()),
            Err(why) => {
                lines += &format!("[-]{} failed: {why}\n", check.name());
                failed = true;
            }
        }
    }
    if failed {
        return text(StatusCode::SERVICE_UNAVAILABLE, lines + "\n");
    }
    let said = if is_set(uri, "verbose") { lines } else { String::new() };
    text(StatusCode::OK, said + "ok\n")
}

/// `?exclude=NOSPACE` leaves an alarm out; `?serializable=true` asks for what this server has by itself.
async fn health(State(probed): State<Arc<impl Probed>>, method: Method, uri: Uri) -> Response {
    if method != Method::GET {
        return not_allowed();
    }
    let why = trouble(probed.as_ref(), &uri).await;
    let answer =
        |health: &str, reason: &str| serde_json::json!({"health": health, "reason": reason}).to_string();
    match why {
        None => ([(header::CONTENT_TYPE, TEXT)], answer("true", "")).into_response(),
        Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, answer("false", &why) + "\n"),
    }
}

async fn trouble(probed: &impl Probed, uri: &Uri) -> Option<String> {
    let excluded = parameters(uri, "exclude");
    let alarms = match probed.alarms().await {
        Ok(alarms) => alarms,
        Err(why) => return Some(why),
    };
    if let Some(alarm) = alarms.iter().find(|alarm| !excluded.contains(alarm.as_str_name())) {
        return Some(format!("ALARM {}", alarm.as_str_name()));
    }
    let by_itself = parameters(uri, "serializable").contains("true");
    let read = if by_itself { probed.lives().await } else { probed.serves().await };
    read.err().map(|why| format!("RANGE ERROR:{why}"))
}

async fn version(State(probed): State<Arc<impl Probed>>, method: Method) -> Response {
    if method != Method::GET {
        return not_allowed();
    }
    let release = probed.release();
    // Those of a cluster and its files have no patch level.
    let minor = release.rsplit_once('.').map_or(release, |(minor, _)| minor);
    let cluster = format!("{minor}.0");
    let body = serde_json::json!({"etcdserver": release, "etcdcluster": cluster, "storage": cluster});
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

const TEXT: &str = "text/plain; charset=utf-8";

fn text(code: StatusCode, body: String) -> Response {
    let plain =
        [(header::CONTENT_TYPE, TEXT), (HeaderName::from_static("x-content-type-options"), "nosniff")];
    (code, plain, body).into_response()
}

/// No service and no path of that name.
async fn nothing_there(uri: Uri, headers: HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if kind.starts_with(b"application/grpc") {
        let service = uri.path().trim_start_matches('/').rsplit_once('/').map_or("", |(service, _)| service);
        return Status::unimplemented(format!("unknown service {service}")).into_http();
    }
    text(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())
}

/// Metrics in the format that is asked for: OpenMetrics, or the older text, which is what Prometheus' libraries answer to
/// who does not ask.
fn exposition(headers: &HeaderMap, openmetrics: String) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (kind, body) = if accepted.contains("application/openmetrics-text") {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics)
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", plain(&openmetrics))
    };
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

/// The older text: a counter has the name of its samples, and neither units nor the end are marked.
fn plain(openmetrics: &str) -> String {
    let counters: HashSet<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(openmetrics.len() + counters.len() * 16);
    for line in openmetrics.lines() {
        let described =
            ["# HELP ", "# TYPE "].iter().find_map(|kind| Some((*kind, line.strip_prefix(*kind)?)));
        match described.map(|(kind, rest)| (kind, rest.split_once(' ').unwrap_or((rest, "")))) {
            Some((kind, (name, rest))) => {
                let total = if counters.contains(name) { "_total" } else { "" };
                text += &format!("{kind}{name}{total} {rest}\n");
            }
            None if line == "# EOF" || line.starts_with("# UNIT ") => {}
            None => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}

fn not_allowed() -> Response {
    let answer = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".to_owned());
    ([(header::ALLOW, "GET")], answer).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::{body::Body, http::Request};
    use futures::FutureExt;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    #[derive(Default)]
    struct Server {
        alarms: Vec<AlarmType>,
        broken: Option<&'static str>,
        leaving: Option<&'static str>,
    }

    fn unless(why: Option<&str>) -> Result<(), String> {
        why.map_or(Ok(()), |why| Err(why.to_owned()))
    }

    impl Probed for Server {
        fn alarms(&self) -> BoxFuture<'_, Result<Vec<AlarmType>, String>> {
            async { Ok(self.alarms.clone()) }.boxed()
        }

        fn lives(&self) -> BoxFuture<'_, Result<(), String>> {
            async { unless(self.broken) }.boxed()
        }

        fn serves(&self) -> BoxFuture<'_, Result<(), String>> {
            async { unless(self.leaving) }.boxed()
        }

        fn release(&self) -> &'static str {
            "3.7.3"
        }
    }

    const METRICS: &str = "# HELP puts Keys put.\n# TYPE puts counter\nputs_total 3\n\
                           # HELP size_bytes Size.\n# TYPE size_bytes gauge\n# UNIT size_bytes bytes\nsize_bytes 7\n# EOF\n";

    async fn answer(server: Server, request: Request<Body>) -> Response {
        let router = with_probes(Router::new(), Arc::new(server), |_| METRICS.to_owned());
        router.oneshot(request).await.unwrap()
    }

    async fn ask(server: Server, method: Method, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        read(answer(server, request).await).await
    }

    async fn read(answer: Response) -> (u16, String) {
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(server: Server, path: &str) -> (u16, String) {
        ask(server, Method::GET, path).await
    }

    fn said(code: u16, body: &str) -> (u16, String) {
        (code, body.to_owned())
    }

    #[tokio::test]
    async fn a_server_without_trouble_is_well() {
        let well = Server::default;
        assert_eq!(get(well(), "/health").await, said(200, r#"{"health":"true","reason":""}"#));
        for path in ["/livez", "/readyz", "/livez/serializable_read", "/readyz/non_learner"] {
            assert_eq!(get(well(), path).await, said(200, "ok\n"), "{path}");
        }
        let verbose = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
        assert_eq!(get(well(), "/readyz?verbose").await, said(200, verbose));
        assert_eq!(get(well(), "/livez?verbose").await, said(200, "[+]serializable_read ok\nok\n"));
        assert_eq!(get(well(), "/readyz/linearizable_write").await.0, 404);
        let versions = r#"{"etcdcluster":"3.7.0","etcdserver":"3.7.3","storage":"3.7.0"}"#;
        assert_eq!(get(well(), "/version").await, said(200, versions));
        for path in ["/health", "/livez", "/readyz/non_learner", "/version"] {
            assert_eq!(ask(well(), Method::POST, path).await, said(405, "Method Not Allowed\n"), "{path}");
        }
    }

    #[tokio::test]
    async fn alarms_count_unless_excluded() {
        let full = || Server { alarms: vec![AlarmType::Nospace], ..Server::default() };
        assert_eq!(
            get(full(), "/health").await,
            said(503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n")
        );
        assert_eq!(get(full(), "/health?serializable=true&exclude=NOSPACE").await.0, 200);
        assert_eq!(get(full(), "/readyz").await.0, 200, "it serves reads, and deletes make room");
        let corrupt = || Server { alarms: vec![AlarmType::Nospace, AlarmType::Corrupt], ..Server::default() };
        assert_eq!(get(corrupt(), "/health?exclude=NOSPACE").await.0, 503);
        let (code, body) = get(corrupt(), "/readyz").await;
        assert!(
            code == 503 && body.starts_with("[-]data_corruption failed: alarm activated: CORRUPT\n"),
            "{body}"
        );
        assert_eq!(get(corrupt(), "/readyz?exclude=data_corruption&exclude=other").await.0, 200);
        assert_eq!(get(corrupt(), "/readyz/data_corruption").await.0, 503);
        assert_eq!(get(corrupt(), "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_found_and_an_unknown_service_unimplemented() {
        for method in [Method::GET, Method::POST] {
            let answer = ask(Server::default(), method, "/v2/keys").await;
            assert_eq!(answer, said(404, "404 page not found\n"));
        }
        // Of the JSON gateway.
        let none = ask(Server::default(), Method::POST, "/v3/kv/none").await;
        assert_eq!(none, said(404, "{\"code\":5,\"message\":\"Not Found\"}"));
        let read = ask(Server::default(), Method::GET, "/v3/kv/range").await;
        assert_eq!(read, said(501, "{\"code\":12,\"message\":\"Method Not Allowed\"}"));
        let request = Request::builder()
            .method(Method::POST)
            .uri("/a.Service/Call")
            .header("content-type", "application/grpc+proto")
            .body(Body::empty())
            .unwrap();
        let answer = answer(Server::default(), request).await;
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::Unimplemented, "unknown service a.Service")
        );
    }

    #[tokio::test]
    async fn metrics_are_in_the_format_that_is_asked_for() {
        let older = "# HELP puts_total Keys put.\n# TYPE puts_total counter\nputs_total 3\n\
                     # HELP size_bytes Size.\n# TYPE size_bytes gauge\nsize_bytes 7\n";
        assert_eq!(get(Server::default(), "/metrics").await, said(200, older));
        let request = Request::builder()
            .uri("/metrics")
            .header("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
            .body(Body::empty())
            .unwrap();
        let answer = answer(Server::default(), request).await;
        assert!(
            answer.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text")
        );
        assert_eq!(read(answer).await, said(200, METRICS));
    }

    #[tokio::test]
    async fn a_server_that_leaves_lives_and_a_broken_one_does_not() {
        let leaving = || Server { leaving: Some("shutting down"), ..Server::default() };
        let (code, body) = get(leaving(), "/readyz").await;
        assert!(code == 503 && body.contains("[-]linearizable_read failed: shutting down\n"), "{body}");
        assert_eq!(get(leaving(), "/health").await.0, 503);
        assert_eq!(get(leaving(), "/health?serializable=true").await.0, 200);
        assert_eq!(get(leaving(), "/livez").await.0, 200);
        let broken = || Server { broken: Some("the line is broken"), ..Server::default() };
        assert_eq!(
            get(broken(), "/livez").await,
            said(503, "[-]serializable_read failed: the line is broken\n\n")
        );
        assert_eq!(get(broken(), "/livez?exclude=serializable_read").await, said(200, "ok\n"));
    }
}
