//! Owns: which of a host's addresses is connected to. Never: has one that does not answer keep others from being tried.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long an address has for itself before the next one is tried as well (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to whichever of these addresses takes it first. They are tried in this order, the next one when one has
/// failed or not answered for a while.
///
/// # Errors
/// When none takes it: what the operating system says of the first that has failed.
pub async fn any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    if let [address] = addresses[..] {
        return TcpStream::connect(address).await;
    }
    let mut untried = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = None;
    loop {
        attempts.extend(untried.next().map(TcpStream::connect));
        let ended = match untried.len() {
            0 => attempts.join_next().await,
            _ => match timeout(HEAD_START, attempts.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            },
        };
        match ended {
            Some(Ok(Ok(socket))) => return Ok(socket),
            Some(Ok(Err(error))) => _ = failed.get_or_insert(error),
            Some(Err(error)) => _ = failed.get_or_insert(error.into()),
            None => return Err(failed.unwrap_or_else(|| io::ErrorKind::NotFound.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    fn at_any_port() -> SocketAddr {
        "127.0.0.1:0".parse().expect("an address")
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_keeps_no_other_from_being_tried() {
        let silent = TcpSocket::new_v4().expect("a socket");
        silent.bind(at_any_port()).expect("bound");
        let silent = silent.listen(1).expect("listening");
        let first = silent.local_addr().expect("an address");
        // More than it takes in, as nobody accepts them; the system leaves the others without an answer.
        let mut waiting = JoinSet::new();
        waiting.extend((0..16).map(|_| TcpStream::connect(first)));
        waiting
            .join_next()
            .await
            .expect("one")
            .expect("no panic")
            .expect("taken in");
        let other = TcpListener::bind(at_any_port()).await.expect("bound");
        let other = other.local_addr().expect("an address");
        let socket = any(vec![first, other]).await.expect("connected");
        assert_eq!(socket.peer_addr().expect("an address"), other);
    }

    #[tokio::test]
    async fn the_first_error_is_told_when_all_have_failed() {
        // Nobody else gets it, and nobody listens.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(at_any_port()).expect("bound");
        let gone = socket.local_addr().expect("an address");
        let error = any(vec![gone, gone]).await.expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = any(Vec::new()).await.expect_err("no address");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
