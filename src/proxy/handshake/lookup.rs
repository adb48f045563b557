//! Owns: logging in a user who is not configured, by what the database says of the role. Never: tells
//! the client more than PostgreSQL would.

use std::sync::Arc;

use super::Refusal;
use crate::auth::lookup::Role;
use crate::auth::{Channel, ClientAuth, Step, Users};
use crate::cluster::Cluster;
use crate::cluster::roles::Told;
use crate::config::Lookup;
use crate::proxy::Proxy;
use crate::telemetry;

/// A user who has been looked up.
pub struct LookedUp {
    lookup: Lookup,
    /// None serves the database: nobody can log in to it.
    cluster: Option<Arc<Cluster>>,
    told: Told,
}

impl LookedUp {
    /// Looks `user` up in `cluster`, unless it is configured or looking up is not.
    pub async fn find(
        proxy: &Proxy,
        users: &Users,
        user: &str,
        cluster: Option<&Arc<Cluster>>,
    ) -> Result<Option<LookedUp>, Refusal> {
        let config = proxy.config.load_full();
        let lookup = match &config.auth.lookup {
            Some(lookup) if !users.contains(user) => lookup.clone(),
            _ => return Ok(None),
        };
        let told = match cluster {
            Some(cluster) => cluster.look_up(user, &lookup).await.map_err(|error| {
                tracing::warn!(user, cluster = %cluster.name, %error, "role not looked up");
                let (user, is_passing) = (user.to_owned(), error.is_passing());
                let refusal = Refusal::Lookup { user, is_passing };
                telemetry::count_refused_login(refusal.sqlstate());
                refusal
            })?,
            None => {
                tracing::info!(user, "not looked up: no cluster serves the database");
                let (found, fresh) = (None, true);
                Told { found, fresh }
            }
        };
        Ok(Some(LookedUp {
            lookup,
            cluster: cluster.cloned(),
            told,
        }))
    }

    pub fn begin(&self, users: &Users, user: &str, channel: &Channel) -> (ClientAuth, Step) {
        let (nonce, salt) = (rand::random(), rand::random());
        ClientAuth::of_role(users, user, channel, self.role(), nonce, salt)
    }

    /// The password was wrong. If it was checked against what was remembered, the role is looked up
    /// once more: it may have been changed meanwhile.
    pub async fn recheck(&mut self, auth: &mut ClientAuth, user: &str) -> Option<Step> {
        let cluster = self.cluster.as_ref().filter(|_| !self.told.fresh)?;
        self.told = cluster.look_up_again(user, &self.lookup).await?;
        auth.recheck(self.role())
    }

    fn role(&self) -> Option<&Role> {
        self.told.found.as_deref()
    }
}
