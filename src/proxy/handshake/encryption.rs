//! Owns: what a client and the proxy agree on about encryption before the start-up message, and what
//! a login may rely on after it. Never: reads a byte that came unencrypted as if it had come
//! encrypted.

use bytes::BytesMut;

use super::Guest;
use crate::auth::{Channel, Rejection, Shown};
use crate::config::OfferMode;
use crate::net::stream::Stream;
use crate::net::tls::Offer;
use crate::net::tls::certificate::Certificate;
use crate::proxy::Proxy;
use crate::proxy::refusal::Refusal;
use crate::telemetry;

/// How a TLS handshake begins; no start-up packet is so long that it could begin so.
const TLS_HANDSHAKE: u8 = 0x16;

/// What is left to do after an encryption request.
pub(super) enum Agreed {
    /// To go on, as answered.
    GoOn,
    /// Nothing: the connection is over.
    Over,
}

impl Guest {
    /// Whether the client has begun with a TLS handshake, without asking first.
    pub(super) fn begins_tls(&self) -> bool {
        self.inbox.first() == Some(&TLS_HANDSHAKE)
    }

    /// A client that begins with a TLS handshake must name the protocol that it wants to speak: a
    /// browser that was led here must not be taken for a client (PostgreSQL 17 does the same).
    pub(super) async fn go_direct(&mut self, proxy: &Proxy) -> Agreed {
        let Some(offer) = self.offer_now(proxy) else {
            tracing::info!(peer = %self.stream.peer(), "TLS handshake refused: TLS is not offered here");
            return Agreed::Over;
        };
        let raw = self.inbox.split();
        if let Agreed::Over = self.encrypt(offer, raw).await {
            return Agreed::Over;
        }
        if self
            .stream
            .tls()
            .is_some_and(|tls| tls.has_agreed_on_protocol())
        {
            return Agreed::GoOn;
        }
        telemetry::metrics().tls_failures.increment(1);
        tracing::info!(
            peer = %self.stream.peer(),
            "received direct TLS connection request without ALPN protocol negotiation extension"
        );
        Agreed::Over
    }

    /// Answers an SSLRequest.
    ///
    /// # Errors
    /// When the client has sent more than the request: that came unencrypted, and might be somebody
    /// else's (CVE-2021-23214).
    pub(super) async fn answer_ssl_request(&mut self, proxy: &Proxy) -> Result<Agreed, Refusal> {
        self.refuse_early_data("SSL")?;
        let Some(offer) = self.offer_now(proxy) else {
            return Ok(self.answer(b"N").await);
        };
        match self.answer(b"S").await {
            Agreed::GoOn => Ok(self.encrypt(offer, BytesMut::new()).await),
            over => Ok(over),
        }
    }

    /// Answers a GSSENCRequest: it is not offered.
    ///
    /// # Errors
    /// As for an SSLRequest.
    pub(super) async fn answer_gss_request(&mut self) -> Result<Agreed, Refusal> {
        self.refuse_early_data("GSSAPI encryption")?;
        Ok(self.answer(b"N").await)
    }

    /// What the login may know of the connection.
    ///
    /// # Errors
    /// When the connection is not as the mode demands.
    pub(super) fn channel(
        &self,
        proxy: &Proxy,
        user: &str,
        database: &str,
    ) -> Result<Channel, Refusal> {
        let Some(offer) = &self.offer else {
            let demanded = self.offer_now(proxy).map(|offer| offer.mode);
            if demanded.is_none_or(|mode| mode < OfferMode::Require) {
                return Ok(Channel::default());
            }
            telemetry::count_refused_login("28000");
            let peer = self.stream.peer();
            tracing::info!(user, %peer, "login refused: not encrypted");
            let message = format!(
                "connection of user \"{user}\" to database \"{database}\" is not encrypted, and \
                 TLS is required here; connect with sslmode=require or above"
            );
            return Err(Refusal::protocol("28000", message));
        };
        let shown = self.stream.tls().and_then(|tls| tls.peer_certificate());
        let common_name = |der| Certificate::parse(der).ok()?.common_name();
        let channel = Channel {
            end_point: offer.end_point.clone(),
            certificate: shown.map(|der| Shown {
                common_name: common_name(der),
            }),
        };
        let checked = match offer.mode {
            OfferMode::VerifyFull => channel.require_certificate_of(user),
            OfferMode::VerifyCa => channel.require_certificate().map(drop),
            OfferMode::Require | OfferMode::Prefer => Ok(()),
        };
        checked.map_err(|rejection| self.rejected(user, &rejection))?;
        Ok(channel)
    }

    /// The client is not let in; the log learns more of it than the client does.
    pub(super) fn rejected(&self, user: &str, rejection: &Rejection) -> Refusal {
        let sqlstate = rejection.sqlstate();
        telemetry::count_refused_login(sqlstate);
        tracing::info!(user, peer = %self.stream.peer(), ?rejection, "login refused");
        Refusal::protocol(sqlstate, rejection.to_string())
    }

    /// What is offered on this connection as it is now: TLS over TCP, once.
    fn offer_now(&self, proxy: &Proxy) -> Option<std::sync::Arc<Offer>> {
        match self.stream {
            Stream::Tcp(_) => proxy.tls.load().offer.clone(),
            _ => None,
        }
    }

    async fn encrypt(&mut self, offer: std::sync::Arc<Offer>, raw: BytesMut) -> Agreed {
        let peer = self.stream.peer();
        let Stream::Tcp(socket) = std::mem::replace(&mut self.stream, Stream::Closed) else {
            return Agreed::Over;
        };
        let handshake = async {
            let mut tls = offer.accept(socket, raw)?;
            tls.shake_hands().await?;
            Ok::<_, std::io::Error>(tls)
        };
        self.shaking_hands = Some(peer);
        let shaken = handshake.await;
        self.shaking_hands = None;
        match shaken {
            Ok(tls) => {
                telemetry::metrics().tls_handshakes.increment(1);
                tracing::debug!(%peer, parameters = tls.parameters(), "TLS established");
                self.stream = Stream::Tls(Box::new(tls));
                self.offer = Some(offer);
                Agreed::GoOn
            }
            Err(error) => {
                telemetry::metrics().tls_failures.increment(1);
                tracing::info!(%peer, %error, "TLS handshake with a client failed");
                Agreed::Over
            }
        }
    }

    fn refuse_early_data(&self, request: &str) -> Result<(), Refusal> {
        if self.inbox.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            peer = %self.stream.peer(),
            "received unencrypted data after {request} request: either a faulty client, or somebody in the middle"
        );
        let message = format!("received unencrypted data after {request} request");
        Err(Refusal::protocol("08P01", message))
    }

    async fn answer(&mut self, answer: &[u8]) -> Agreed {
        match self.stream.write_all(answer).await {
            Ok(()) => Agreed::GoOn,
            Err(_) => Agreed::Over,
        }
    }
}
