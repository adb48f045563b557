//! Owns: what a new connection is asked first: in which life of the node's server it is, and what a session there is
//! unless it says otherwise. Never: decides what another life means for the node.

use std::hash::BuildHasher;

use super::connect::{ConnectError, Connection, Rows};
use crate::session::consistency::Incarnation;
use crate::sql::Isolation;

/// In which life of the node's server a connection is. Numbers, as a date's text would depend on the
/// settings that roles have of their own.
const LIFE: &str = "SELECT (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) \
    * 1000000)::pg_catalog.int8, system_identifier FROM pg_catalog.pg_control_system()";

/// What a session may not have said: it is of its role, its database and the server.
const DEFAULTS: &str = "SELECT pg_catalog.current_setting('default_transaction_isolation')";

/// Asks in which life of the node's server the connection is.
pub async fn incarnation(connection: &mut Connection) -> Result<Incarnation, ConnectError> {
    let rows = connection.query(LIFE).await?;
    Ok(numbered(&rows))
}

/// Asks all that a pool's new connection has to be asked, in one go.
pub async fn meet(connection: &mut Connection) -> Result<Incarnation, ConnectError> {
    let mut rows = connection.query(&format!("{LIFE}; {DEFAULTS}")).await?;
    let isolation = rows.pop().and_then(|row| row.into_iter().next().flatten());
    let isolation = isolation.and_then(|name| Isolation::named(&name));
    connection.params.set_isolation(isolation);
    Ok(numbered(&rows))
}

/// The same life has the same number whoever asks, by fixed seeds.
fn numbered(rows: &Rows) -> Incarnation {
    let hash = foldhash::quality::FixedState::with_seed(0).hash_one(rows);
    Incarnation(hash.max(1))
}
