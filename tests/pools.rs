//! Pools under pressure: of nodes that take fewer connections than clients want, of passwords that change, and of
//! users who mean no good. Clients notice as little as can be.

mod support;

use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::Client;
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, Options};

/// A primary with the role `other` beside the usual ones, which is changed so: whose password is its name, too.
fn with_other(cluster: &LocalCluster, role: &str) {
    let sql = format!("CREATE ROLE other LOGIN PASSWORD 'other' {role}");
    cluster.primary().sql("app", &sql).expect("a role");
}

/// With the user `other`, and these lines for pools.
fn configured(config: &str, pool: &str) -> String {
    format!("{config}\n[[auth.user]]\nname = \"other\"\npassword = \"other\"\n[pool]\n{pool}")
}

fn failed_connects(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_server_connects_total", "result=\"failed\"")
}

#[test]
fn a_role_that_may_have_few_connections_shares_them() {
    let cluster = support::cluster_with(0, &[]);
    with_other(&cluster, "CONNECTION LIMIT 3");
    let gateway = Gateway::start_with(&cluster, |config| {
        configured(&config, "size = 20\ncheckout_timeout = \"10m\"\n")
    });
    const CLIENTS: u32 = 10;
    const QUERIES: u32 = 200;
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let client = Client::open(&gateway, "other", "");
                for _ in 0..QUERIES {
                    client.rows("SELECT pg_sleep(0.002)");
                }
            });
        }
    });
    let failed = failed_connects(&gateway);
    assert!(failed > 0.0, "the limit has not been felt");
    assert!(
        failed < f64::from(CLIENTS * QUERIES / 10),
        "{failed} failed"
    );
}

#[test]
fn nobody_waits_for_a_replica_that_gives_few_servers() {
    let cluster = support::cluster_with(1, &[]);
    with_other(&cluster, "CONNECTION LIMIT 3");
    cluster.wait_caught_up().expect("the role everywhere");
    let gateway = Gateway::start_with(&cluster, |config| {
        configured(&config, "size = 20\ncheckout_timeout = \"10m\"\n")
    });
    let client = Client::open(&gateway, "other", "");
    let reads_on = |route| gateway.metric("tidegate_queries_total", &format!("route=\"{route}\""));
    wait_for("a read on the replica", || {
        client.rows("SELECT 1");
        reads_on("replica") > 0.0
    });
    // Others have all but one of the replica's places, and a client has that one.
    let replica = cluster.node(1);
    let others = [(); 2].map(|()| Client::try_direct(&replica, "other").expect("room"));
    let holder = Client::open(&gateway, "other", "");
    holder.rows("BEGIN READ ONLY");
    holder.rows("SELECT 1");
    let before = reads_on("primary");
    for _ in 0..3 {
        client.rows("SELECT 1");
    }
    wait_for("reads on the primary", || {
        reads_on("primary") >= before + 3.0
    });
    assert!(
        failed_connects(&gateway) > 0.0,
        "the limit has not been felt"
    );
    drop(others);
    let before = reads_on("replica");
    wait_for("another server of the replica", || {
        client.rows("SELECT 1");
        reads_on("replica") > before + 3.0
    });
    holder.rows("COMMIT");
}

#[test]
fn nobody_waits_for_a_replica_that_answers_no_new_connection() {
    const READS: u32 = 50;
    let cluster = support::cluster_with(1, &[]);
    let gateway = Gateway::start_with(&cluster, |config| {
        configured(&config, "connect_timeout = \"200ms\"\n")
    });
    let reads_on = |route| gateway.metric("tidegate_queries_total", &format!("route=\"{route}\""));
    let holder = Client::open(&gateway, "app", "");
    wait_for("a transaction on the replica", || {
        holder.rows("BEGIN READ ONLY");
        holder.rows("SELECT 1");
        let is_there = reads_on("replica") > 0.0;
        if !is_there {
            holder.rows("COMMIT");
        }
        is_there
    });
    // Of the replica the process that accepts stands still: what is open is served as ever.
    let replica = cluster.node(1);
    let postmaster = Pid::from_raw(replica.pid().expect("it runs").cast_signed());
    kill(postmaster, Signal::SIGSTOP).expect("stopped");
    let client = Client::open(&gateway, "app", "");
    let (before, failed) = (reads_on("primary"), failed_connects(&gateway));
    for _ in 0..READS {
        client.rows("SELECT 1");
    }
    wait_for("reads on the primary", || {
        reads_on("primary") >= before + f64::from(READS)
    });
    let failed = failed_connects(&gateway) - failed;
    // At most who logs in, and the first to read.
    assert!(failed > 0.0, "nobody has tried");
    assert!(failed <= 2.0, "{failed} have waited");
    holder.rows("SELECT 1");
    holder.rows("COMMIT");
    kill(postmaster, Signal::SIGCONT).expect("goes on");
    let before = reads_on("replica");
    wait_for("reads on the replica", || {
        client.rows("SELECT 1");
        reads_on("replica") > before + 3.0
    });
}

#[test]
fn who_waits_in_vain_for_room_is_told_by_the_server_why() {
    let cluster = support::cluster_with(0, &[]);
    with_other(&cluster, "CONNECTION LIMIT 2");
    let gateway = Gateway::start_with(&cluster, |config| {
        configured(&config, "size = 20\ncheckout_timeout = \"300ms\"\n")
    });
    let begun = |client: &Client| client.row_or_error("BEGIN; SELECT 'here'");
    let clients = [(); 3].map(|()| Client::open(&gateway, "other", ""));
    // The catalog is asked for as the same role, and may have the place at first.
    for client in &clients[..2] {
        wait_for("a place", || begun(client).is_ok());
    }
    let error = begun(&clients[2]).expect_err("the limit");
    assert_eq!(error.code().code(), "53300");
    assert_eq!(error.message(), "too many connections for role \"other\"");
    clients[0].rows("COMMIT");
    assert_eq!(clients[2].one("SELECT 'here'"), "here");
}

#[test]
fn servers_that_others_do_not_use_make_room() {
    let cluster = LocalCluster::start(Options {
        replicas: 0,
        max_connections: 14,
        ..Options::default()
    })
    .expect("a cluster");
    with_other(&cluster, "");
    let gateway = Gateway::start_with(&cluster, |config| {
        configured(&config, "checkout_timeout = \"10m\"\n")
    });
    // There are 11 places, of which the monitor has one.
    for user in ["app", "other", "app"] {
        let clients = [(); 8].map(|()| Client::open(&gateway, user, ""));
        for client in &clients {
            client.rows("BEGIN");
            client.rows("SELECT pg_backend_pid()");
        }
        for client in &clients {
            client.rows("COMMIT");
        }
    }
    assert!(failed_connects(&gateway) > 0.0, "there was room for all");
}

#[test]
fn a_password_that_is_changed_reaches_sessions_that_are_open() {
    let cluster = support::cluster_with(1, &[]);
    with_other(&cluster, "");
    cluster.wait_caught_up().expect("the role everywhere");
    let gateway = Gateway::start_with(&cluster, |config| configured(&config, ""));
    let config = fs::read_to_string(&gateway.config_path).expect("config");
    let replica = cluster.node(1).address();
    let (first, last) = config
        .split_once(&format!("[[cluster.node]]\naddress = \"{replica}\"\n"))
        .expect("a node");
    gateway.reload(&format!("{first}{last}"));

    let client = Client::open(&gateway, "other", "");
    let pid = client.one("SELECT pg_backend_pid()");
    let primary = cluster.primary();
    let sql = |text: &str| primary.sql("app", text).expect(text).trim().to_owned();
    sql("ALTER ROLE other PASSWORD 'new'");
    cluster.wait_caught_up().expect("the password everywhere");
    // A node that is added then is logged in to with it, too.
    let changed = |config: &str| config.replace("password = \"other\"", "password = \"new\"");
    gateway.reload(&changed(&config));
    sql(&format!("SELECT pg_terminate_backend({pid}, 60000)"));
    assert_ne!(client.one("SELECT pg_backend_pid()"), pid);
    wait_for("a read on the new node", || {
        client.rows("SELECT 1");
        gateway.metric("tidegate_queries_total", "route=\"replica\"") > 0.0
    });
    // The database is asked for its catalog as the role that has logged in last.
    let asked = |result| gateway.metric("tidegate_catalog_refreshes_total", result);
    let before = asked("result=\"ok\"");
    sql("GRANT CREATE ON SCHEMA public TO other");
    client.rows("CREATE TABLE made ()");
    wait_for("the catalog", || asked("result=\"ok\"") > before);
    assert_eq!(failed_connects(&gateway) + asked("result=\"failed\""), 0.0);
}

#[test]
fn servers_are_renewed_for_whom_it_matters_to() {
    let cluster = support::cluster_with(0, &[]);
    with_other(&cluster, "");
    let gateway = Gateway::start_with(&cluster, |config| configured(&config, ""));
    let [app, other] = ["app", "other"].map(|user| Client::open(&gateway, user, ""));
    let pid = |client: &Client| client.one("SELECT pg_backend_pid()");
    let of_app = pid(&app);
    let setting = |client: &Client| client.one("SHOW work_mem");
    for (number, role) in ["other", "CURRENT_USER", "session_user"].iter().enumerate() {
        let before = pid(&other);
        let value = format!("{}MB", number + 10);
        other.rows(&format!("ALTER ROLE {role} SET work_mem = '{value}'"));
        assert_ne!(pid(&other), before, "{role}");
        assert_eq!(setting(&other), value, "{role}");
        assert_eq!(pid(&app), of_app, "{role}");
    }
    // A role that was set is another one than who has logged in.
    let admin = Client::open(&gateway, "postgres", "");
    let of_other = pid(&other);
    admin.rows("SET ROLE app");
    admin.rows("ALTER ROLE CURRENT_ROLE SET work_mem = '20MB'");
    assert_ne!(pid(&app), of_app);
    assert_eq!(setting(&app), "20MB");
    assert_eq!(pid(&other), of_other);
    admin.rows("RESET ROLE");
    let of_app = pid(&app);
    admin.rows("ALTER ROLE ALL SET work_mem = '21MB'");
    assert_ne!(pid(&other), of_other);
    assert_ne!(pid(&app), of_app);
    let of_app = pid(&app);
    admin.rows("ALTER DATABASE app SET work_mem = '22MB'");
    assert_ne!(pid(&app), of_app);
}

#[test]
fn servers_that_their_node_has_closed_are_not_kept() {
    let cluster = support::cluster_with(0, &[]);
    let gateway = Gateway::start(&cluster);
    let idle = || gateway.metric("tidegate_pool_servers", "state=\"idle\"");
    thread::scope(|scope| {
        let clients = [0; 4].map(|_| Client::open(&gateway, "app", ""));
        for client in clients {
            scope.spawn(move || client.rows("SELECT pg_sleep(0.5)"));
        }
    });
    wait_for("all to be given back", || idle() == 4.0);
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE usename = 'app' AND backend_type = 'client backend'";
    let ended = cluster.primary().sql("postgres", end).expect("ended");
    assert!(ended.trim().parse::<u32>().expect("a number") >= 4);
    // Long before their idle_timeout, and though nobody wants one.
    wait_for("them to be closed", || idle() == 0.0);
}

#[test]
fn a_seed_of_random_numbers_is_its_sessions() {
    let cluster = support::cluster_with(0, &[]);
    let gateway = Gateway::start_with(&cluster, |config| configured(&config, "size = 1\n"));
    let next = |client: &Client| client.one("SELECT random()::text");
    let seeded = Client::open(&gateway, "app", "");
    let numbers = [(); 2].map(|()| {
        seeded.rows("SELECT setseed(0.5)");
        [next(&seeded), next(&seeded)]
    });
    assert_eq!(numbers[0], numbers[1]);
    seeded.rows("SELECT setseed(0.5)");
    assert_eq!(next(&seeded), numbers[0][0]);
    drop(seeded);
    let other = Client::open(&gateway, "app", "");
    assert_ne!(next(&other), numbers[0][1]);
}

#[test]
fn who_may_not_drop_a_database_closes_nothing_on_it() {
    let cluster = support::cluster_with(0, &[]);
    with_other(&cluster, "");
    cluster
        .primary()
        .sql("postgres", "CREATE DATABASE mine OWNER app")
        .expect("a database");
    let gateway = Gateway::start_with(&cluster, |config| configured(&config, ""));
    let [app, other] = ["app", "other"].map(|user| Client::open(&gateway, user, ""));
    let there = Client::open(&gateway, "app", "dbname=mine");
    let pid = || there.one("SELECT pg_backend_pid()");
    let before = pid();
    for _ in 0..3 {
        let error = other.error("DROP DATABASE mine");
        assert_eq!(error.code().code(), "42501");
    }
    // Nor does who keeps PostgreSQL busy before it refuses that.
    let error = other.error("SELECT pg_sleep(2); DROP DATABASE mine");
    assert_eq!(error.code().code(), "25001");
    assert_eq!(pid(), before);
    // Who may drop it is not kept from that by clients that do nothing.
    app.rows("DROP DATABASE mine");
}

#[test]
fn who_logs_in_waits_for_nobody_who_was_there_before() {
    let cluster = support::cluster_with(0, &[]);
    let gateway = Gateway::start_with(&cluster, |config| {
        configured(&config, "size = 1\ncheckout_timeout = \"10m\"\n")
    });
    let holder = Client::open(&gateway, "app", "");
    holder.rows("BEGIN");
    holder.rows("SELECT pg_backend_pid()");
    // What servers report is remembered for 10 s, and is only old after that.
    thread::sleep(Duration::from_secs(11));
    for _ in 0..3 {
        Client::open(&gateway, "app", "");
    }
    holder.rows("COMMIT");
}

#[test]
fn who_is_refused_is_refused_again() {
    let cluster = support::cluster_with(0, &[]);
    let run = |sql: &str| cluster.primary().sql("postgres", sql).expect(sql);
    run("CREATE DATABASE mine");
    let gateway = Gateway::start_with(&cluster, |config| configured(&config, ""));
    drop(Client::open(&gateway, "app", "dbname=mine"));
    run("DROP DATABASE mine WITH (FORCE)");
    // What servers report is remembered for 10 s, and is only old after that.
    thread::sleep(Duration::from_secs(11));
    for _ in 0..3 {
        let error = Client::refused(&gateway, "app", "dbname=mine");
        assert_eq!(error.code().code(), "3D000");
    }
}
