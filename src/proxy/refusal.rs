//! Owns: what a client is told when the proxy cannot do what it asks. Never: hides a server's own
//! words.

use std::time::Duration;

use bytes::BytesMut;

use crate::auth::AuthError;
use crate::cluster::Cluster;
use crate::cluster::connect::ConnectError;
use crate::cluster::node::Loss;
use crate::cluster::pool::CheckoutError;
use crate::session::answers::ServerFault;
use crate::session::own::Complaint;
use crate::session::pipeline::ClientFault;
use crate::telemetry;
use crate::wire::encode::{self, Severity};
use crate::wire::message;

/// Why a client is not served.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Client(#[from] ClientFault),
    /// A server's own ErrorResponse, to be passed on.
    #[error("{}", message::ErrorLine(.0))]
    Server(Vec<u8>),
    /// A server's ErrorResponse to what the client has set on another one.
    #[error("a server refused what this session has set: {}", message::ErrorLine(.0))]
    Settings(Vec<u8>),
    #[error("{0}")]
    Checkout(CheckoutError),
    #[error(
        "no primary is available in cluster \"{cluster}\" (waited {waited_ms} ms){}",
        because(.dispute.as_deref())
    )]
    NoPrimary {
        cluster: String,
        waited_ms: u128,
        /// See [`Topology::dispute`](crate::cluster::topology::Topology::dispute).
        dispute: Option<String>,
    },
    #[error("no replica of cluster \"{cluster}\" may serve this read: {reason}")]
    NoReplica {
        cluster: String,
        reason: &'static str,
    },
    #[error("node \"{node}\" may not serve this read now: {reason}")]
    NamedNode { node: String, reason: &'static str },
    #[error("the position of the primary of cluster \"{cluster}\" is not known")]
    NoToken { cluster: String },
    #[error("{}", .0.message)]
    Complaint(Complaint),
    #[error(
        "connection to node {node} was lost while it ran this; whether it took effect is unknown"
    )]
    Unknown { node: String },
    #[error("node {node} is no longer the primary; what was open on it is lost")]
    PrimaryChanged { node: String },
    #[error("connection to node {node} was lost: {error}")]
    Lost { node: String, error: String },
    #[error("cannot look up role \"{user}\" in the database")]
    Lookup { user: String, is_passing: bool },
    /// By the words of PostgreSQL, which would have looked at the password again too.
    #[error("password authentication failed for user \"{0}\"")]
    StaleKeys(String),
    #[error("{message}")]
    Protocol {
        sqlstate: &'static str,
        message: String,
        hint: Option<&'static str>,
    },
}

fn because(dispute: Option<&str>) -> String {
    dispute.map_or(String::new(), |dispute| format!(": {dispute}"))
}

impl Refusal {
    pub fn protocol(sqlstate: &'static str, message: impl Into<String>) -> Refusal {
        Refusal::Protocol {
            sqlstate,
            message: message.into(),
            hint: None,
        }
    }

    pub fn hinted(
        sqlstate: &'static str,
        message: impl Into<String>,
        hint: &'static str,
    ) -> Refusal {
        Refusal::Protocol {
            sqlstate,
            message: message.into(),
            hint: Some(hint),
        }
    }

    /// The session is to end: the proxy stops, or an admin wants it to.
    pub fn going_down() -> Refusal {
        Refusal::protocol(
            "57P01",
            "terminating connection due to administrator command",
        )
    }

    /// The client has asked for its statement to be given up.
    pub fn cancelled() -> Refusal {
        Refusal::protocol("57014", "canceling statement due to user request")
    }

    /// A server of this node was lost: by what it said itself, if it said why.
    pub fn lost(node: String, broken: Broken) -> Refusal {
        match broken {
            Broken::Server(ServerFault::Ended(words)) => Refusal::Server(words),
            Broken::Server(ServerFault::Settings(words)) => {
                match message::error_field(&words, b'C') {
                    Some(b"57014") => Refusal::Server(words),
                    _ => Refusal::Settings(words),
                }
            }
            other => Refusal::Lost {
                node,
                error: other.to_string(),
            },
        }
    }

    /// The cluster has had no primary for so long.
    pub fn no_primary(cluster: &Cluster, waited: Duration) -> Refusal {
        let topology = cluster.topology();
        let dispute = || topology.dispute();
        Refusal::NoPrimary {
            cluster: cluster.name.clone(),
            waited_ms: waited.as_millis(),
            dispute: topology.primary.is_none().then(dispute).flatten(),
        }
    }

    /// There are as many clients as there may be, or as many connections that are not logged in.
    pub fn too_many_clients() -> Refusal {
        Refusal::protocol("53300", "sorry, too many clients already")
    }

    /// No cluster serves this database.
    pub fn unserved(database: &str) -> Refusal {
        let message = format!("database \"{database}\" is not configured in any cluster");
        let hint = "List it in the databases of a [[cluster]], or \"*\" for every one.";
        Refusal::hinted("3D000", message, hint)
    }

    /// A server that cannot be connected to, or refuses it.
    pub fn connecting(node: String, error: ConnectError) -> Refusal {
        match error {
            ConnectError::Refused(words) => Refusal::Server(words),
            ConnectError::Auth(AuthError::StaleKeys(user)) => Refusal::StaleKeys(user),
            error => Refusal::Checkout(CheckoutError::Connect { node, error }),
        }
    }

    /// Whether a server has refused what a session has set for a reason that does not pass: bad values, missing names and
    /// rights, and not a lack of anything.
    pub fn is_for_good(&self) -> bool {
        let class = self.sqlstate().get(..2).unwrap_or_default();
        matches!(self, Refusal::Settings(_)) && ["0A", "22", "28", "42"].contains(&class)
    }

    pub fn sqlstate(&self) -> &str {
        match self {
            Refusal::Client(fault) => fault.sqlstate(),
            Refusal::Server(error) | Refusal::Settings(error) => message::error_field(error, b'C')
                .and_then(|code| std::str::from_utf8(code).ok())
                .unwrap_or("XX000"),
            Refusal::Checkout(CheckoutError::Timeout { .. }) => "53300",
            Refusal::Checkout(_) => "08001",
            Refusal::NoPrimary { .. }
            | Refusal::NoReplica { .. }
            | Refusal::NamedNode { .. }
            | Refusal::NoToken { .. } => "57P03",
            Refusal::Complaint(complaint) => complaint.sqlstate,
            Refusal::PrimaryChanged { .. } => "57P01",
            Refusal::Unknown { .. } => "08007",
            Refusal::Lost { .. } => "08006",
            Refusal::Lookup {
                is_passing: true, ..
            } => "08006",
            Refusal::Lookup { .. } => "28000",
            Refusal::StaleKeys(_) => "28P01",
            Refusal::Protocol { sqlstate, .. } => sqlstate,
        }
    }

    fn hint(&self) -> Option<&str> {
        match self {
            Refusal::Checkout(CheckoutError::Timeout { .. }) => {
                Some("Raise pool.size, or look for transactions that stay open.")
            }
            Refusal::NoPrimary {
                dispute: Some(_), ..
            } => Some(
                "Take out of Tidegate's configuration whatever is not of this cluster, or is no more.",
            ),
            Refusal::NoPrimary { .. } => {
                Some("Retry when a primary is up; failover.hold sets how long to wait.")
            }
            Refusal::NoReplica { .. } => Some(
                "Try again, ask for a weaker tidegate.consistency, or let such reads go to the \
                 primary by consistency.on_no_replica and routing.read_primary.",
            ),
            Refusal::NamedNode { .. } => Some(
                "Try again, name no node, or read what the node has by a weaker level, such as \
                 eventual.",
            ),
            Refusal::NoToken { .. } => Some("Try again when a primary is up."),
            Refusal::Complaint(complaint) => Some(&complaint.advice),
            Refusal::Lookup {
                is_passing: true, ..
            } => Some("Connect again when a node of the cluster is up."),
            Refusal::Lookup { .. } => Some(
                "Tidegate's log says why; auth.query_user, auth.query_password and auth.query must fit the database.",
            ),
            Refusal::StaleKeys(_) => {
                Some("The password has been changed since this client logged in: connect again.")
            }
            Refusal::Settings(_) => Some(
                "Connect again: what was set before can't be set any more, or not by this user.",
            ),
            Refusal::Unknown { .. } => Some("Look whether it did before doing it again."),
            Refusal::Protocol { hint, .. } => *hint,
            _ => None,
        }
    }

    /// Appends the ErrorResponse.
    pub fn encode(&self, severity: Severity, out: &mut BytesMut) {
        telemetry::count_error(self.sqlstate().as_bytes());
        match self {
            // Its own words; only whether the connection ends over it is ours to say.
            Refusal::Server(error) => encode::error_again(out, severity, error),
            _ => encode::error(
                out,
                severity,
                self.sqlstate(),
                &self.to_string(),
                self.hint(),
            ),
        }
    }
}

impl From<CheckoutError> for Refusal {
    fn from(error: CheckoutError) -> Refusal {
        match error {
            CheckoutError::Connect { node, error } => Refusal::connecting(node, error),
            error => Refusal::Checkout(error),
        }
    }
}

/// Why an exchange with a server has ended early.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The client has gone, or can't be written to.
    #[error("client has gone")]
    Client,
    /// An admin wants its session to end now.
    #[error("{}", Refusal::going_down())]
    Killed,
    /// The client has sent what can't be understood.
    #[error("{0}")]
    Fault(#[from] ClientFault),
    /// The server has gone, or has sent what can't be understood.
    #[error("{0}")]
    Server(#[from] ServerFault),
    #[error("{0}")]
    ServerIo(std::io::Error),
    /// The server owes an answer, and nobody is to wait for it.
    #[error("{0}")]
    NodeLost(Loss),
}

impl Broken {
    /// Whether a server that was lost so may have done what it was told all the same.
    pub fn may_have_succeeded(&self) -> bool {
        match self {
            // A warning, of one that may have been waiting for standbys with its commit on disk.
            Broken::Server(ServerFault::Ended(words)) => !message::is_fatal(words),
            Broken::Server(ServerFault::Settings(_)) => false,
            _ => true,
        }
    }
}
