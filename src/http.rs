//! Owns: the HTTP endpoint: metrics for Prometheus, health for orchestrators. Never: changes
//! anything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::cluster::node::Role;
use crate::proxy::Proxy;
use crate::telemetry::{self, Scrape};

/// The longest a request's head may take to arrive.
const HEAD: Duration = Duration::from_secs(5);

/// The longest a request may take, until its answer is sent.
const REQUEST: Duration = Duration::from_secs(20);

/// Connections that are served at a time; others wait until one of them ends.
const CONNECTIONS_MAX: usize = 64;

/// Serves until the listener fails for good.
pub async fn serve(listener: TcpListener, proxy: Arc<Proxy>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Never closed, so there always is a place again.
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((socket, peer)) = listener.accept().await else {
            // Out of descriptors, most likely: some may be free soon.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let proxy = proxy.clone();
        tokio::spawn(async move {
            if timeout(REQUEST, converse(socket, peer, proxy))
                .await
                .is_err()
            {
                tracing::debug!(%peer, "http connection took too long");
            }
            drop(place);
        });
    }
}

async fn converse(socket: tokio::net::TcpStream, peer: SocketAddr, proxy: Arc<Proxy>) {
    let service = service_fn(|request| {
        let response = answer(&request, &proxy);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // One request for each: a peer that keeps its connection would keep a place.
        .keep_alive(false)
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "http connection ended");
    }
}

fn answer(request: &Request<Incoming>, proxy: &Proxy) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is understood\n".to_owned(),
        );
    }
    match request.uri().path() {
        "/metrics" => {
            let mut metrics = telemetry::render();
            let mut scrape = Scrape::default();
            proxy.clusters.show(&mut scrape);
            scrape.render(&mut metrics);
            let mut response = text(StatusCode::OK, metrics);
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => readiness(proxy),
        _ => text(
            StatusCode::NOT_FOUND,
            "try /metrics, /healthz or /readyz\n".to_owned(),
        ),
    }
}

/// Ready means that the proxy takes clients and has, for each cluster, some node to run something on. A primary need not
/// be there: reads go on without one and writes wait for the next, at every proxy alike, so that a balancer which
/// went by that would be left with none of them.
fn readiness(proxy: &Proxy) -> Response<Full<Bytes>> {
    if proxy.closed.load(Ordering::Relaxed) {
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "shutting down\n".to_owned(),
        );
    }
    let mut answer = "ready\n".to_owned();
    let clusters = proxy.clusters.all();
    for cluster in clusters.iter() {
        let topology = cluster.topology();
        if topology.primary.is_some() {
            continue;
        }
        let (name, mut nodes) = (&cluster.name, topology.nodes.iter());
        if !nodes.any(|node| node.is_open() && node.role() == Role::Replica) {
            let reason = format!("no node of cluster \"{name}\" can be used\n");
            return text(StatusCode::SERVICE_UNAVAILABLE, reason);
        }
        answer += &format!("cluster \"{name}\" has no primary: its writes wait for one\n");
    }
    text(StatusCode::OK, answer)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
