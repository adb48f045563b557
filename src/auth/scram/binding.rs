//! Owns: how a SCRAM exchange is bound to the TLS connection that it runs over (RFC 5802, section 6;
//! RFC 5929, section 4): then nobody in the middle can pass it on. Never: looks at a certificate;
//! what both ends bind to comes in from outside.

use base64::Engine;

use super::{BASE64, ScramError};

/// The mechanism with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The one type of binding that PostgreSQL knows: the server certificate's hash.
const TYPE: &str = "tls-server-end-point";

/// The longest name of another type that an error repeats.
const TYPE_SHOWN_MAX: usize = 64;

/// How a client binds its exchange.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ClientBinding {
    /// It can't: there is no TLS, or no hash.
    #[default]
    Unable,
    /// It could, and the server does not offer it. A server that does will notice that its offer was
    /// taken away on the way.
    NotOffered,
    /// To this hash.
    EndPoint(Vec<u8>),
}

impl ClientBinding {
    /// What client-first begins with.
    pub fn gs2_header(&self) -> String {
        match self {
            ClientBinding::Unable => "n,,".to_owned(),
            ClientBinding::NotOffered => "y,,".to_owned(),
            ClientBinding::EndPoint(_) => format!("p={TYPE},,"),
        }
    }

    /// The value of client-final's `c`.
    pub fn attribute(&self) -> String {
        let data = match self {
            ClientBinding::EndPoint(data) => &data[..],
            _ => &[],
        };
        attribute(&self.gs2_header(), data)
    }
}

/// What a server can bind to, and whether the client has chosen the mechanism that does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerBinding {
    /// What was offered.
    pub end_point: Option<Vec<u8>>,
    pub chosen: bool,
}

impl ServerBinding {
    /// Checks the flag that `client_first` begins with against what was offered and chosen; splits
    /// off the gs2 header.
    pub fn split_header<'a>(
        &self,
        client_first: &'a str,
    ) -> Result<(&'a str, &'a str), ScramError> {
        let (flag, rest) = client_first.split_once(',').ok_or(NO_FLAG)?;
        match flag {
            "n" | "y" if self.chosen => {
                let what = "SCRAM-SHA-256-PLUS was selected, and there is no channel binding data";
                return Err(ScramError::Malformed(what));
            }
            "n" => {}
            "y" if self.end_point.is_some() => return Err(ScramError::ChannelBindingDowngraded),
            "y" => {}
            _ => self.check_type(flag.strip_prefix("p=").ok_or(NO_FLAG)?)?,
        }
        if rest.starts_with('a') {
            return Err(ScramError::AuthorizationIdentity);
        }
        if !rest.starts_with(',') {
            let what = "client-first has no authorization identity field";
            return Err(ScramError::Malformed(what));
        }
        Ok(client_first.split_at(flag.len() + 2))
    }

    fn check_type(&self, kind: &str) -> Result<(), ScramError> {
        if self.end_point.is_none() {
            return Err(ScramError::ChannelBindingRequested);
        }
        if !self.chosen {
            let what = "SCRAM-SHA-256 was selected, and there is channel binding data";
            return Err(ScramError::Malformed(what));
        }
        if kind != TYPE {
            let shown = kind.escape_debug().take(TYPE_SHOWN_MAX).collect();
            return Err(ScramError::ChannelBindingType(shown));
        }
        Ok(())
    }

    /// Checks client-final's `c` against the header that the exchange began with.
    pub fn check(&self, gs2_header: &str, value: &str) -> Result<(), ScramError> {
        let data = self.end_point.as_deref().filter(|_| self.chosen);
        if value == attribute(gs2_header, data.unwrap_or(&[])) {
            return Ok(());
        }
        Err(match data {
            Some(_) => ScramError::ChannelBindingFailed,
            None => ScramError::ChannelBindingMismatch,
        })
    }
}

const NO_FLAG: ScramError = ScramError::Malformed("client-first has no channel binding flag");

fn attribute(gs2_header: &str, data: &[u8]) -> String {
    BASE64.encode([gs2_header.as_bytes(), data].concat())
}

#[cfg(test)]
mod tests {
    use super::super::{ClientExchange, Credential, ServerExchange, Verifier};
    use super::*;
    use crate::config::Secret;
    use proptest::prelude::*;

    const HASH: &[u8] = b"the hash of a certificate";

    fn client(binding: ClientBinding) -> ClientExchange {
        let password = Credential::Password(Secret::new("secret"));
        ClientExchange::new(password, "client".to_owned()).bound(binding)
    }

    fn server(offered: Option<&[u8]>, plus: bool) -> ServerExchange {
        let verifier = Verifier::from_password("secret", b"salt", 2);
        let server = ServerExchange::new(verifier, true, "server".to_owned());
        let mut server = server.offering(offered.map(<[u8]>::to_vec));
        server.choose(plus);
        server
    }

    fn exchange(mut client: ClientExchange, mut server: ServerExchange) -> Result<(), ScramError> {
        let server_first = server.client_first(&client.client_first())?;
        let client_final = client.server_first(&server_first)?;
        let server_final = server.client_final(&client_final)?;
        client.server_final(&server_final)
    }

    fn bound_to(hash: &[u8]) -> ClientExchange {
        client(ClientBinding::EndPoint(hash.to_vec()))
    }

    #[test]
    fn both_ends_of_one_connection_agree() {
        assert_eq!(exchange(bound_to(HASH), server(Some(HASH), true)), Ok(()));
        // Not binding is allowed, where the client says that it can't.
        let unable = client(ClientBinding::Unable);
        assert_eq!(exchange(unable, server(Some(HASH), false)), Ok(()));
        let not_offered = client(ClientBinding::NotOffered);
        assert_eq!(exchange(not_offered, server(None, false)), Ok(()));
    }

    #[test]
    fn the_ends_of_two_connections_do_not() {
        let elsewhere = exchange(bound_to(b"another"), server(Some(HASH), true));
        assert_eq!(elsewhere, Err(ScramError::ChannelBindingFailed));
    }

    #[test]
    fn an_offer_that_was_taken_away_is_noticed() {
        let downgraded = exchange(client(ClientBinding::NotOffered), server(Some(HASH), false));
        assert_eq!(downgraded, Err(ScramError::ChannelBindingDowngraded));
    }

    #[test]
    fn the_flag_must_fit_the_mechanism() {
        let malformed = |what| Err(ScramError::Malformed(what));
        for binding in [ClientBinding::Unable, ClientBinding::NotOffered] {
            assert_eq!(
                exchange(client(binding), server(Some(HASH), true)),
                malformed("SCRAM-SHA-256-PLUS was selected, and there is no channel binding data")
            );
        }
        assert_eq!(
            exchange(bound_to(HASH), server(Some(HASH), false)),
            malformed("SCRAM-SHA-256 was selected, and there is channel binding data")
        );
        assert_eq!(
            exchange(bound_to(HASH), server(None, false)),
            Err(ScramError::ChannelBindingRequested)
        );
        assert_eq!(
            server(Some(HASH), true).client_first(b"p=tls-unique,,n=,r=c"),
            Err(ScramError::ChannelBindingType("tls-unique".to_owned()))
        );
    }

    proptest! {
        /// A client without the hash in its exchange does not get past a check for it.
        #[test]
        fn no_other_value_binds(
            flag in "n|y|p=tls-server-end-point|p=[a-z]{0,9}|.{0,4}",
            rest in ",n=,r=[!-+]{1,5}|,a=x,n=,r=c|.{0,9}",
            value in "biws|eSws|cD10bHMtc2VydmVyLWVuZC1wb2ludCwsAQID|.{0,9}",
        ) {
            let first = format!("{flag},{rest}");
            let binding = ServerBinding { end_point: Some(HASH.to_vec()), chosen: true };
            if let Ok((header, bare)) = binding.split_header(&first) {
                prop_assert_eq!(header, "p=tls-server-end-point,,");
                prop_assert_eq!(&format!("{header}{bare}"), &first);
                prop_assert_eq!(
                    binding.check(header, &value),
                    Err(ScramError::ChannelBindingFailed)
                );
            }
        }
    }

    #[test]
    fn the_data_is_what_rfc_5802_says() {
        // base64 of "p=tls-server-end-point,," and the bytes 1 2 3, made apart from this code.
        let binding = ClientBinding::EndPoint(vec![1, 2, 3]);
        assert_eq!(binding.attribute(), "cD10bHMtc2VydmVyLWVuZC1wb2ludCwsAQID");
        assert_eq!(ClientBinding::Unable.attribute(), "biws");
        assert_eq!(ClientBinding::NotOffered.attribute(), "eSws");
    }
}
