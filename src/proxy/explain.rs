//! Owns: what EXPLAIN ROUTE answers: where a statement of the session's would go now, and what stands
//! against every node that it would not go to; and on which server that is said. Never: has it run, waits
//! for a replica, or changes what the session has seen.

use std::sync::Arc;

use bytes::BytesMut;

use super::Client;
use super::acquire::{Placed, Side};
use super::reads::{Otherwise, otherwise};
use super::refusal::Refusal;
use super::wishes::{Base, Special};
use crate::cluster::node::{Node, Role};
use crate::cluster::pool::Patience;
use crate::cluster::topology::Topology;
use crate::config::{Level, show_duration};
use crate::session::batch::End;
use crate::session::consistency::Replica;
use crate::session::own::Complaint;
use crate::session::repair::Repairable;
use crate::session::route::{Candidate, ReadRoute, Reason, Serving, Tried, judge};
use crate::session::transaction::{self, Verdict};
use crate::sql::Need;
use crate::sql::explain::Line;
use crate::wire::encode;
use crate::wire::message::Status;

impl Client {
    /// Answers what the planned batch asks to be explained, by what holds now.
    #[cold]
    pub(super) async fn explain(&mut self) {
        let mut asked = std::mem::take(&mut self.batch);
        for question in asked.questions() {
            let lines = self.route_of(&question.sql).await;
            question.answer(&lines);
        }
        self.batch = asked;
    }

    /// Where `sql` would go if the client said it now as a Query, and why. The planned batch is lost.
    pub(super) async fn route_of(&mut self, sql: &[u8]) -> Vec<Line> {
        // Of the last read, or of the transaction that is on a replica: they are left as they are.
        let looked_at = (self.reads_plainly, self.read_level);
        let mut said = BytesMut::new();
        encode::query(&mut said, sql);
        let (batch, mut lines) = self.session.look_at(sql, said.len());
        // What finds the way of the planned batch finds that of this one.
        self.batch = batch;
        let topology = self.topology.load().clone();
        if !self.base.is_of(&topology.config) {
            self.base = Base::of(&topology.config, &self.cluster.name, &self.key);
        }
        let mut special = self.asked_for();
        let way = self.way(&said, &topology, &mut special).await;
        (self.reads_plainly, self.read_level) = looked_at;
        let outlook = Outlook {
            client: self,
            topology: &topology,
            special: &special,
            way,
        };
        outlook.tell(&mut lines);
        lines
    }

    /// The way of the planned batch, which is `said` so.
    async fn way(&mut self, said: &[u8], topology: &Topology, special: &mut Special) -> Way {
        self.check_named_node();
        if let Some(complaint) = self.batch.refused() {
            return Way::Nowhere(complaint.clone());
        }
        if self.is_of_no_server(said) {
            return Way::Later;
        }
        if self.held.is_none() && self.session.only_forgets(&self.batch) {
            return Way::Forgets;
        }
        if self.session.roams_on_replica() {
            return match self.verdict().await {
                Verdict::Stays => Way::Stays,
                Verdict::Moves => Way::Primary(Reason::Transaction),
                Verdict::Refused => Way::Nowhere(transaction::refusal()),
            };
        }
        if let Some(reason) = self.needs_primary(End::Ready) {
            return Way::Primary(reason);
        }
        self.settle_key(special).await;
        self.session.heed_schema(&self.cluster.clock);
        let random = self.coming_random();
        Way::Read(self.special_route(topology, special, Tried::default(), random))
    }

    /// A server for a batch that only asks: the one that its transaction is on, or would be on by its next
    /// read. Outside of one it is the primary's, and while there is none, any replica's: what the answer
    /// is said by is the same on each.
    pub(super) async fn acquire_to_explain(&mut self) -> Result<Placed, Refusal> {
        if self.session.roams_on_replica()
            && let Some(placed) = self.stay()
        {
            return Ok(placed);
        }
        let topology = self.topology.load().clone();
        let nodes = match topology.primary {
            _ if self.session.is_to_be_opened() => self.where_it_opens(&topology).await,
            Some(_) => Vec::new(),
            None if self.held.is_some() => Vec::new(),
            None => {
                // No read of the session's.
                (self.reads_plainly, self.read_level) = (false, Level::Eventual);
                self.any_replicas(&topology)
            }
        };
        for node in nodes {
            let Some((life, _)) = node.position() else {
                continue;
            };
            let (id, repairable) = (node.id(), Repairable::No);
            if let Some(placed) = self.lend_replica(id, life, Reason::SessionState, repairable) {
                return Ok(placed);
            }
            if let Ok(server) = self
                .on_replica(&node, life, &topology.config, true, Patience::ALL)
                .await
            {
                return Ok(Placed {
                    server,
                    side: Side::Replica,
                    reason: Reason::SessionState,
                    waited_us: 0,
                    repairable,
                });
            }
        }
        self.on_primary(Reason::SessionState).await
    }

    /// The replica that a transaction is opened on which is on no server yet, if it is one.
    async fn where_it_opens(&mut self, topology: &Topology) -> Vec<Arc<Node>> {
        if self.session.verdict(&self.batch) != Verdict::Stays {
            return Vec::new();
        }
        let mut special = self.asked_for();
        self.settle_key(&mut special).await;
        let random = self.next_random();
        let route = self.special_route(topology, &special, Tried::default(), random);
        self.reads_plainly = !self.is_special();
        match route {
            ReadRoute::Replica { index, .. } => vec![topology.nodes[index].clone()],
            ReadRoute::Gate(_) | ReadRoute::Primary(_) => Vec::new(),
        }
    }

    /// All replicas that are up; first the one whose server the session keeps.
    fn any_replicas(&self, topology: &Topology) -> Vec<Arc<Node>> {
        let kept = self.held_replica.as_ref().map(|server| server.node().id());
        let up = |node: &&Arc<Node>| node.serving() != Serving::No;
        let mut nodes: Vec<_> = topology.nodes.iter().filter(up).cloned().collect();
        nodes.sort_by_key(|node| Some(node.id()) != kept);
        nodes
    }
}

/// The way of a batch.
enum Way {
    /// It is refused.
    Nowhere(Complaint),
    /// To no server yet: the transaction is on none, and the batch only begins or ends it.
    Later,
    /// To none: it drops a name that only the session has.
    Forgets,
    /// To the replica that its transaction is on.
    Stays,
    /// To the primary, whatever the replicas have.
    Primary(Reason),
    Read(ReadRoute),
}

/// What can be told of a batch's way.
struct Outlook<'a> {
    client: &'a Client,
    topology: &'a Topology,
    special: &'a Special,
    way: Way,
}

impl Outlook<'_> {
    fn tell(&self, lines: &mut Vec<Line>) {
        let or = |value: Option<String>, otherwise: &str| value.unwrap_or(otherwise.to_owned());
        let policy = &self.special.policy;
        let session = &self.client.session;
        let token = self.client.token_now(self.client.shown_by_now());
        let token = token.map(|token| token.to_string());
        let transaction = match session.status() {
            Status::Idle => "none",
            Status::Failed => "failed",
            Status::InTransaction if session.roams_on_replica() => "open on a replica",
            Status::InTransaction if session.is_to_be_opened() => "open, on no server yet",
            Status::InTransaction => "open",
        };
        let pins: Vec<&str> = session.pinned_by().map(|pin| pin.name()).collect();
        let pins = (!pins.is_empty()).then(|| pins.join(", "));
        let live = [
            ("reason", self.reason().to_owned()),
            ("goes now to", self.destination()),
            ("level", policy.level.name().to_owned()),
            ("max_lag", or(policy.max_lag.map(show_duration), "none")),
            ("token", or(token, "not known yet")),
            ("transaction", transaction.to_owned()),
            ("pinned by", or(pins, "nothing")),
        ];
        lines.extend(live.map(|(name, value)| (name.to_owned(), value)));
        for node in &self.topology.nodes {
            lines.push((format!("node {}", node.name), self.about(node)));
        }
    }

    /// As `tidegate_queries_total` would have it.
    fn reason(&self) -> &'static str {
        let is_of_transaction = self.client.batch.need != Need::Read || self.client.session.roams();
        let reason = match &self.way {
            Way::Nowhere(_) => return "refused",
            Way::Later => Reason::Transaction,
            Way::Forgets => Reason::SessionState,
            Way::Stays => Reason::TransactionRead,
            Way::Primary(reason) | Way::Read(ReadRoute::Primary(reason)) => *reason,
            Way::Read(_) if is_of_transaction => Reason::TransactionRead,
            Way::Read(ReadRoute::Gate(_)) => Reason::Gate,
            Way::Read(ReadRoute::Replica { .. }) if self.special.node.is_some() => {
                Reason::NamedReplica
            }
            Way::Read(ReadRoute::Replica { .. }) => Reason::Fresh,
        };
        reason.name()
    }

    /// The node, or what happens instead.
    fn destination(&self) -> String {
        match &self.way {
            Way::Nowhere(complaint) => {
                format!("nowhere: {} ({})", complaint.message, complaint.sqlstate)
            }
            Way::Later => "no server: the transaction is on none yet".to_owned(),
            Way::Forgets => "no server: only the session knows of the statement".to_owned(),
            Way::Stays => match &self.client.held_replica {
                Some(server) => server.node().name.clone(),
                None => self.primary(),
            },
            Way::Primary(_) => self.primary(),
            Way::Read(ReadRoute::Replica { index, .. }) => self.topology.nodes[*index].name.clone(),
            Way::Read(ReadRoute::Gate(reason)) => {
                let gate_wait = self.topology.config.consistency.gate_wait;
                let rest = self.without_replica(*reason);
                format!("a replica within {}, else {rest}", show_duration(gate_wait))
            }
            Way::Read(ReadRoute::Primary(reason)) => self.without_replica(*reason),
        }
    }

    /// Where a read goes that no replica will do for.
    fn without_replica(&self, reason: Reason) -> String {
        const FAILS: &str = "nowhere: it fails (57P03)";
        let config = &self.topology.config;
        // A transaction is never without a place.
        let roams = self.client.session.roams();
        let primary = || match self.client.is_ahead(Some(self.special)) {
            true => self.next_primary(),
            false => self.primary(),
        };
        let rest = match otherwise(config, reason, Some(self.special)) {
            Otherwise::Primary => return primary(),
            Otherwise::Fail if roams => return primary(),
            Otherwise::Fail => return FAILS.to_owned(),
            Otherwise::Wait { then_primary } if then_primary || roams => primary(),
            Otherwise::Wait { .. } => FAILS.to_owned(),
        };
        let waits = show_duration(config.consistency.wait_timeout);
        format!("a replica within {waits}, else {rest}")
    }

    /// The node of the server that the session keeps, else the primary.
    fn primary(&self) -> String {
        let held = self.client.held.as_ref().map(|server| server.node());
        match held.or(self.topology.primary.as_ref()) {
            Some(node) => node.name.clone(),
            None => self.next_primary(),
        }
    }

    fn next_primary(&self) -> String {
        let hold = show_duration(self.topology.config.failover.hold);
        format!("the next primary, if there is one within {hold}")
    }

    /// What a node is, whether the batch may run there, and where it stands.
    fn about(&self, node: &Arc<Node>) -> String {
        let primary = self.topology.primary.as_ref();
        let is_primary = primary.is_some_and(|primary| primary.id() == node.id());
        let role = match node.role() {
            _ if !node.is_up() => "down",
            Role::Primary if is_primary => "primary",
            Role::Primary => "takes writes, but is not the primary",
            Role::Replica => "replica",
            Role::Unknown => "of unknown role",
        };
        let mut told = vec![role.to_owned()];
        if node.is_drained() {
            told.push("drained".to_owned());
        }
        if !is_primary {
            told.push(match self.objection(node) {
                None => "eligible".to_owned(),
                Some(reason) => format!("not eligible: {reason}"),
            });
        }
        let position = node.position().map(|(_, lsn)| lsn);
        if let Some(lsn) = position.filter(|_| !is_primary) {
            let newest = self.client.cluster.clock.latest();
            let bytes = newest.map_or(0, |sample| sample.lsn.0.saturating_sub(lsn.0));
            let time = node.lag().map(show_duration);
            let time = time.unwrap_or_else(|| "an unknown time".to_owned());
            told.push(format!("{bytes} bytes and {time} behind"));
        }
        told.extend(position.map(|lsn| format!("at {lsn}")));
        told.join(", ")
    }

    /// Whether the session's transaction is on this replica.
    fn is_held(&self, node: &Node) -> bool {
        let held = self.client.held_replica.as_ref();
        held.is_some_and(|server| server.node().id() == node.id())
    }

    /// Why the batch may not run on this replica.
    fn objection(&self, node: &Arc<Node>) -> Option<&'static str> {
        match &self.way {
            Way::Nowhere(_) => return Some("refused"),
            Way::Stays if self.is_held(node) => return None,
            Way::Later | Way::Stays => return Some("transaction"),
            Way::Forgets => return Some(Reason::SessionState.name()),
            Way::Primary(reason) => return Some(reason.name()),
            Way::Read(_) => {}
        }
        let bounds = &self.special.bounds;
        let bounds = match self.special.node.as_deref() {
            None => bounds,
            Some(name) if name != node.name => return Some("another node is named"),
            Some(_) => &bounds.of_node(
                self.topology
                    .nodes
                    .iter()
                    .position(|n| n.id() == node.id())?,
            ),
        };
        let floors = &self.client.session.floors;
        let floors = match self.topology.primary {
            Some(_) => floors,
            None => &floors.without_primary(),
        };
        let (level, clock) = (self.special.policy.level, &self.client.cluster.clock);
        let judged = judge(floors, level, bounds, clock, &self.topology.nodes, &**node);
        judged.err().map(Reason::name)
    }
}
