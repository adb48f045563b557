//! Owns: the process's life: accepting clients, signals, reload, shutdown. Never: reads what a client
//! sends.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::auth::Users;
use crate::cluster::Clusters;
use crate::config::{self, Config, ConfigError};
use crate::net::stream::Stream;
use crate::net::tls::{FileError, Material};
use crate::net::unix::{self, SocketError, SocketFile};
use crate::proxy::refusal::Refusal;
use crate::proxy::sessions::Sessions;
use crate::proxy::{self, Order, Proxy, Registered, handshake};
use crate::session::Shared;
use crate::sql::cache::Classifier;
use crate::sql::functions::Rules;
use crate::wire::encode::Severity;
use crate::workers::Workers;
use crate::{http, telemetry};

/// Classes remembered, in distinct texts.
const CLASSES_MAX: usize = 20_000;

/// Connections the kernel keeps waiting while we are busy.
const BACKLOG: u32 = 1024;

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("cannot listen on {address} (\"{}\"): {error}", service.key())]
    Listen {
        address: SocketAddr,
        service: Service,
        error: io::Error,
    },
    #[error("cannot listen on the Unix socket {}: {error}", path.display())]
    Socket { path: PathBuf, error: SocketError },
    #[error("{0}")]
    Tls(#[from] FileError),
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// Runs the proxy until it is told to stop. `path` is read again on SIGHUP.
///
/// # Errors
/// When it cannot start; once it runs, it runs.
pub fn run(config: Config, path: &Path) -> Result<(), RunError> {
    let tls = Material::load(&config)?;
    let shared = tls.offer.as_ref().map(|offer| offer.secret);
    let users = Users::with_secret(&config.auth, shared.unwrap_or_else(rand::random));
    let control = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let config = Arc::new(config);
    let workers = Workers::start(config.listen.workers, config.listen.workers_min)?;
    control.block_on(async {
        let shares = config.listen.reuse_port;
        let http = match config.http.address {
            Some(address) => Some(bind(address, Service::Http, shares)?),
            None => None,
        };
        // The last thing that can fail: who comes from now on would be cut off.
        let (entrances, socket_files) = listen(&config.listen)?;
        for warning in config.warnings().iter().chain(&tls.warnings) {
            tracing::warn!("{warning}");
        }
        raise_descriptor_limit(config.listen.max_clients);
        let (orders, ordered) = mpsc::channel(1);
        let proxy = Arc::new(Proxy {
            shared: ArcSwap::from_pointee(Shared::new(classifier(&config.routing))),
            users: ArcSwap::from_pointee(users),
            clusters: Clusters::start(&config, &tls, workers.first()),
            tls: ArcSwap::from_pointee(tls),
            sessions: Sessions::default(),
            welcomes: handshake::Welcomes::default(),
            closed: false.into(),
            draining: false.into(),
            orders,
            config: ArcSwap::from(config),
        });
        let http = http.map(|http| tokio::spawn(http::serve(http, proxy.clone())));
        tokio::spawn(tend(proxy.clone()));
        tokio::spawn(workers.clone().balance());
        let doors: Vec<_> = entrances
            .into_iter()
            .map(|entrance| Door::open(entrance, &proxy, &workers))
            .collect();
        let mut signals = Signals::install(ordered)?;
        let signal = signals.until_stop(&proxy, path).await;
        tracing::info!(signal, "shutting down: no new clients are taken");
        match http {
            // Who asks for health and metrics is to hear of whoever takes our place.
            Some(http) if shares => {
                http.abort();
                let _ = http.await;
            }
            _ => proxy.closed.store(true, Ordering::SeqCst),
        }
        for door in doors {
            door.close(&proxy, &workers).await;
        }
        // Whoever takes our place may have the name.
        drop(socket_files);
        let_leave(&proxy, &mut signals, path).await;
        if shut_down(&proxy, &mut signals).await == Pace::AtOnce {
            return Ok(());
        }
        tokio::select! {
            () = proxy.clusters.tell_others() => {}
            _ = signals.stop.recv() => {}
        }
        Ok(())
    })
}

fn classifier(routing: &config::Routing) -> Classifier {
    Classifier::new(Rules::of(routing), CLASSES_MAX)
}

/// Where clients come in.
enum Entrance {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A client's socket, on its way to a worker's runtime.
enum Arrived {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Entrance {
    async fn accept(&self) -> io::Result<Arrived> {
        match self {
            Entrance::Tcp(listener) => {
                let (socket, _) = listener.accept().await?;
                socket.into_std().map(Arrived::Tcp)
            }
            Entrance::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                socket.into_std().map(Arrived::Unix)
            }
        }
    }

    /// Listens no more. Who has connected by then, and would be cut off with it, is handed out.
    fn close(self, hand_out: impl FnMut(Arrived)) -> io::Result<()> {
        match self {
            Entrance::Tcp(listener) => {
                let listener = listener.into_std()?;
                accept_all(|| Ok(Arrived::Tcp(listener.accept()?.0)), hand_out)
            }
            Entrance::Unix(listener) => {
                let listener = listener.into_std()?;
                accept_all(|| Ok(Arrived::Unix(listener.accept()?.0)), hand_out)
            }
        }
    }
}

/// Until there is nobody left.
fn accept_all(
    accept: impl Fn() -> io::Result<Arrived>,
    mut hand_out: impl FnMut(Arrived),
) -> io::Result<()> {
    loop {
        match accept() {
            Ok(socket) => {
                socket.set_nonblocking()?;
                hand_out(socket);
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(()),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}

/// An entrance, and the task that lets clients in there.
struct Door {
    entrance: Arc<Entrance>,
    task: JoinHandle<()>,
}

impl Door {
    fn open(entrance: Entrance, proxy: &Arc<Proxy>, workers: &Arc<Workers>) -> Door {
        let entrance = Arc::new(entrance);
        let task = tokio::spawn(accept(entrance.clone(), proxy.clone(), workers.clone()));
        Door { entrance, task }
    }

    async fn close(self, proxy: &Arc<Proxy>, workers: &Arc<Workers>) {
        self.task.abort();
        // The entrance is nobody else's only once the task has gone.
        let _ = self.task.await;
        let closed = Arc::into_inner(self.entrance)
            .map(|entrance| entrance.close(|socket| hand_over(socket, proxy, workers)));
        if let Some(Err(error)) = closed {
            tracing::warn!(%error, "clients that had just connected are cut off");
        }
    }
}

impl Arrived {
    /// As a runtime needs it: one that no runtime has accepted is not so.
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Arrived::Tcp(socket) => socket.set_nonblocking(true),
            Arrived::Unix(socket) => socket.set_nonblocking(true),
        }
    }

    /// Makes it the current thread's.
    fn settle(self) -> io::Result<Stream> {
        match self {
            Arrived::Tcp(socket) => Stream::tcp(TcpStream::from_std(socket)?),
            Arrived::Unix(socket) => Ok(Stream::Unix(UnixStream::from_std(socket)?)),
        }
    }

    /// Tells it why it is not served, as far as its socket takes that at once: nobody waits for it.
    fn turn_away(self, refusal: &Refusal) {
        let mut words = BytesMut::new();
        refusal.encode(Severity::Fatal, &mut words);
        let _ = match self {
            Arrived::Tcp(mut socket) => socket.write(&words),
            Arrived::Unix(mut socket) => socket.write(&words),
        };
    }
}

/// Listens on every address, and on a Unix socket for each of their ports. The files of these are
/// removed when the second value is dropped.
fn listen(config: &config::Listen) -> Result<(Vec<Entrance>, Vec<SocketFile>), RunError> {
    let (mut entrances, mut ports) = (Vec::new(), Vec::new());
    for &address in &config.address {
        let listener = bind(address, Service::Clients, config.reuse_port)?;
        let address = listener.local_addr()?;
        tracing::info!(%address, "listening");
        ports.push(address.port());
        entrances.push(Entrance::Tcp(listener));
    }
    ports.sort_unstable();
    ports.dedup();
    let mut files = Vec::new();
    for (directory, port) in
        (config.unix_socket_dir.iter()).flat_map(|d| ports.iter().map(move |p| (d, *p)))
    {
        let (listener, file) = unix::listen(directory, port).map_err(|error| RunError::Socket {
            path: unix::path(directory, port),
            error,
        })?;
        tracing::info!(path = %file.path().display(), "listening");
        entrances.push(Entrance::Unix(listener));
        files.push(file);
    }
    Ok((entrances, files))
}

/// Lets the process have as many sockets as the system's administrator lets it, where the usual soft
/// limit of 1,024 would be the end of clients long before `max_clients`. As many connections again may be
/// on their way to being logged in.
fn raise_descriptor_limit(max_clients: usize) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(hard)
    });
    match raised {
        Ok(limit) if limit < 2 * max_clients as u64 => tracing::warn!(
            limit,
            max_clients,
            "the limit of open files is below twice listen.max_clients (as many may be logging in), and \
             servers need some too: raise it (ulimit -Hn, LimitNOFILE=), or lower max_clients"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// What is served at an address.
#[derive(Clone, Copy, Debug)]
pub enum Service {
    /// PostgreSQL's protocol. An address that stands for all of IPv6 takes no more, as with PostgreSQL: one of IPv4
    /// may be listed beside it.
    Clients,
    /// Metrics and health. It has but one address, which may stand for all of IPv6 and IPv4.
    Http,
}

impl Service {
    /// Where its address is configured.
    fn key(self) -> &'static str {
        match self {
            Service::Clients => "listen.address",
            Service::Http => "http.address",
        }
    }
}

/// Listens there. Where it `shares` the address, other processes of this user may listen there too, if they do so as well.
fn bind(address: SocketAddr, service: Service, shares: bool) -> Result<TcpListener, RunError> {
    let bind = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        if address.is_ipv6() {
            let only_v6 = matches!(service, Service::Clients);
            socket2::SockRef::from(&socket).set_only_v6(only_v6)?;
        }
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(shares)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|error| RunError::Listen {
        address,
        service,
        error,
    })
}

async fn accept(entrance: Arc<Entrance>, proxy: Arc<Proxy>, workers: Arc<Workers>) {
    /// How often that is told, at most.
    const TOLD: Duration = Duration::from_secs(10);
    let mut told: Option<Instant> = None;
    loop {
        match entrance.accept().await {
            Ok(socket) => hand_over(socket, &proxy, &workers),
            Err(error) => {
                if told.is_none_or(|told| told.elapsed() >= TOLD) {
                    tracing::warn!(%error, "cannot accept clients: they have to wait");
                    told = Some(Instant::now());
                }
                // Out of descriptors, most likely: some may be free soon.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn hand_over(socket: Arrived, proxy: &Arc<Proxy>, workers: &Arc<Workers>) {
    let Some(guest) = Registered::new(proxy) else {
        return socket.turn_away(&Refusal::too_many_clients());
    };
    let seat = workers.seat();
    seat.runtime().clone().spawn(async move {
        match socket.settle() {
            Ok(stream) => proxy::serve(guest, stream, seat).await,
            Err(error) => tracing::debug!(%error, "client lost before it was served"),
        }
    });
}

/// How often it is looked whether the network still has the servers that sessions wait for, in seconds.
const CONNECTIONS_SECS: u64 = 10;

/// What is done every second.
async fn tend(proxy: Arc<Proxy>) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for second in 0u64.. {
        every.tick().await;
        proxy.clusters.tend();
        proxy
            .sessions
            .look_at_servers(second % CONNECTIONS_SECS == 0);
        // Where a database can't be asked for its catalog, what sessions have learnt is believed for
        // as long.
        let interval = proxy.config.load().routing.catalog_interval.as_secs();
        if second % interval.max(1) == 0 {
            proxy.shared.load().effects.forget_all();
        }
        telemetry::upkeep();
    }
}

struct Signals {
    stop: mpsc::Receiver<&'static str>,
    reload: tokio::signal::unix::Signal,
    /// What the console wants.
    orders: mpsc::Receiver<Order>,
}

impl Signals {
    fn install(orders: mpsc::Receiver<Order>) -> io::Result<Signals> {
        let (sender, stop) = mpsc::channel(2);
        for (kind, name) in [
            (SignalKind::terminate(), "SIGTERM"),
            (SignalKind::interrupt(), "SIGINT"),
        ] {
            let mut signals = signal(kind)?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() && sender.send(name).await.is_ok() {}
            });
        }
        Ok(Signals {
            stop,
            reload: signal(SignalKind::hangup())?,
            orders,
        })
    }

    /// Does what the others want until one comes that ends the process, which is named.
    async fn until_stop(&mut self, proxy: &Proxy, path: &Path) -> &'static str {
        loop {
            tokio::select! {
                name = self.stop.recv() => return name.unwrap_or("?"),
                _ = self.reload.recv() => {
                    let _ = reload(proxy, path.to_owned());
                }
                Some(order) = self.orders.recv() => match order {
                    Order::Reload(answer) => {
                        let reloaded = reload(proxy, path.to_owned());
                        // Whoever has given the order may have gone.
                        let _ = answer.send(reloaded.map_err(|error| error.to_string()));
                    }
                },
            }
        }
    }
}

/// Reads the configuration again and applies what has changed; a bad one changes nothing.
fn reload(proxy: &Proxy, path: PathBuf) -> Result<(), RunError> {
    let applied = Config::load(&path)
        .map_err(RunError::from)
        .and_then(|new| apply(proxy, new));
    match &applied {
        Ok(()) => telemetry::metrics().reloads_applied.increment(1),
        Err(error) => {
            telemetry::metrics().reloads_refused.increment(1);
            tracing::error!("configuration not reloaded, nothing has changed: {error}");
        }
    }
    applied
}

fn apply(proxy: &Proxy, mut new: Config) -> Result<(), RunError> {
    let old = proxy.config.load_full();
    let diff = config::diff(&old, &new);
    // Read anew even if nothing has changed in the configuration: certificates are renewed so.
    let tls = Material::load(&new)?;
    let renewed = tls.hash != proxy.tls.load().hash;
    if diff.is_empty() && !renewed {
        tracing::info!("configuration reloaded: nothing has changed");
        return Ok(());
    }
    let users = proxy.users.load().reload(&new.auth);
    let warnings = new.warnings();
    config::keep_until_restart(&mut new, &old);
    let new = Arc::new(new);
    proxy.users.store(Arc::new(users));
    if Rules::of(&new.routing) != Rules::of(&old.routing) {
        // Sessions that are open keep the rules and classes that they have.
        let shared = proxy.shared.load();
        let shared = shared.with_classifier(classifier(&new.routing));
        proxy.shared.store(Arc::new(shared));
    }
    proxy.clusters.apply(&new, &tls);
    for warning in warnings.iter().chain(&tls.warnings) {
        tracing::warn!("{warning}");
    }
    proxy.tls.store(Arc::new(tls));
    proxy.config.store(new);
    let files = if renewed { "changed" } else { "unchanged" };
    tracing::info!(changes = %diff, certificates = files, "configuration reloaded");
    for section in diff.needs_restart {
        tracing::warn!(section, "this change applies after a restart");
    }
    Ok(())
}

/// How the proxy is to end.
#[derive(PartialEq, Eq)]
enum Pace {
    /// Other proxies are told first what they are to be told.
    Orderly,
    AtOnce,
}

/// Serves the clients that are there until they leave, for as long as `listen.shutdown_grace` or until another signal.
async fn let_leave(proxy: &Proxy, signals: &mut Signals, path: &Path) {
    let started = Instant::now();
    // A reload may change it.
    let is_over = || started.elapsed() >= proxy.config.load().listen.shutdown_grace;
    while !proxy.sessions.is_empty() && !is_over() {
        tokio::select! {
            _ = signals.until_stop(proxy, path) => break,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    tracing::info!(clients = proxy.sessions.len(), after = ?started.elapsed(), "clients are asked to leave");
}

/// Lets open transactions finish, within the limit, or until a second signal. Who is left is told that the server
/// goes down, and what runs for them is cancelled: nobody would hear what has become of it.
async fn shut_down(proxy: &Proxy, signals: &mut Signals) -> Pace {
    const LAST_WORDS: Duration = Duration::from_millis(500);
    let pace = let_finish(proxy, signals).await;
    tokio::select! {
        () = proxy.sessions.kill_all(LAST_WORDS) => pace,
        _ = signals.stop.recv() => Pace::AtOnce,
    }
}

async fn let_finish(proxy: &Proxy, signals: &mut Signals) -> Pace {
    let limit = proxy.config.load().listen.shutdown_timeout;
    let started = Instant::now();
    proxy.draining.store(true, Ordering::SeqCst);
    loop {
        proxy.sessions.stop_all();
        if proxy.sessions.is_empty() {
            tracing::info!("all clients have gone");
            return Pace::Orderly;
        }
        if started.elapsed() >= limit {
            tracing::warn!(
                clients = proxy.sessions.len(),
                "shutdown timeout: clients are cut off"
            );
            return Pace::Orderly;
        }
        tokio::select! {
            _ = signals.stop.recv() => {
                tracing::warn!(clients = proxy.sessions.len(), "stopping at once: clients are cut off");
                return Pace::AtOnce;
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As when the last ones come just before it listens no more.
    #[test]
    fn who_has_connected_is_let_in_when_an_entrance_closes() {
        let runtime = runtime::Builder::new_current_thread().enable_io().build();
        runtime.unwrap().block_on(async {
            let address = "127.0.0.1:0".parse().unwrap();
            let listener = bind(address, Service::Clients, false).unwrap();
            let address = listener.local_addr().unwrap();
            let mut client = std::net::TcpStream::connect(address).unwrap();
            let mut let_in = Vec::new();
            Entrance::Tcp(listener)
                .close(|socket| let_in.push(socket))
                .unwrap();
            assert!(std::net::TcpStream::connect(address).is_err());
            let [socket] = <[Arrived; 1]>::try_from(let_in).ok().expect("one client");
            socket.settle().unwrap().write_all(b"x").await.unwrap();
            io::Read::read_exact(&mut client, &mut [0]).unwrap();
        });
    }

    #[test]
    fn all_addresses_of_both_families_can_be_listened_on() {
        let runtime = runtime::Builder::new_current_thread().enable_io().build();
        runtime.unwrap().block_on(async {
            let v6 = bind("[::]:0".parse().unwrap(), Service::Clients, false);
            let Ok(v6) = v6 else {
                return println!("there is no IPv6 here");
            };
            let port = v6.local_addr().unwrap().port();
            let v4 = SocketAddr::from(([0, 0, 0, 0], port));
            bind(v4, Service::Clients, false).expect("the port is free for IPv4");
            let both = bind("[::]:0".parse().unwrap(), Service::Http, false).unwrap();
            let port = both.local_addr().unwrap().port();
            assert!(TcpStream::connect(("127.0.0.1", port)).await.is_ok());
        });
    }
}
