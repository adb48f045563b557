//! Sessions of one causal key see each other's writes: through one proxy, and through several that share
//! their keys in Redis.

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::Client;
use support::redis::Redis;
use support::{Gateway, wait_for};
use tidegate::demo::{LocalCluster, Options};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO t VALUES (1, 0);
    CREATE VIEW here AS SELECT current_setting('port')::int AS port;
    GRANT SELECT, UPDATE ON t, here TO app;";

fn start() -> LocalCluster {
    let cluster = LocalCluster::start(Options::default()).expect("cluster");
    cluster.primary().sql("app", SCHEMA).expect("schema");
    cluster.wait_caught_up().expect("caught up");
    cluster
}

fn with_key(gateway: &Gateway, key: &str) -> Client {
    let client = Client::open(gateway, "app", "");
    client.rows(&format!("SET tidegate.causal_key = '{key}'"));
    client
}

/// The value that a read shows, and whether a replica has shown it.
fn read(client: &Client, cluster: &LocalCluster) -> (i32, bool) {
    let rows = client.rows("SELECT v, port FROM t, here WHERE id = 1");
    let on_replica = rows[0][1] != cluster.primary().port().to_string();
    (rows[0][0].parse().expect("a number"), on_replica)
}

fn write(client: &Client, v: i32) {
    client.rows(&format!("UPDATE t SET v = {v} WHERE id = 1"));
}

fn pause(cluster: &LocalCluster) {
    for replica in cluster.replicas() {
        replica.pause_replay().expect("paused");
    }
}

fn resume(cluster: &LocalCluster) {
    for replica in cluster.replicas() {
        replica.resume_replay().expect("resumed");
    }
}

fn reason(gateway: &Gateway, name: &str) -> f64 {
    let labels = format!("reason=\"{name}\"");
    gateway.metric("tidegate_queries_total", &labels)
}

#[test]
fn sessions_of_one_key_see_each_others_writes() {
    let cluster = start();
    let gateway = Gateway::start(&cluster);
    let [a, b, other] = ["user:1", "user:1", "user:2"].map(|key| with_key(&gateway, key));
    let local = Client::open(&gateway, "app", "");
    for client in [&a, &b, &other, &local] {
        wait_for("reads on a replica", || read(client, &cluster).1);
    }
    pause(&cluster);
    write(&a, 1);
    assert_eq!(read(&b, &cluster), (1, false));
    assert_eq!(read(&other, &cluster), (0, true), "of another key");
    // What is written in a transaction under its own key is the key's when it is committed.
    local.rows("BEGIN");
    local.rows("SET LOCAL tidegate.causal_key = 'user:2'");
    write(&local, 2);
    local.rows("COMMIT");
    assert_eq!(read(&other, &cluster), (2, false));
    assert_eq!(local.one("SHOW tidegate.causal_key"), "");
    // The key is the session's for as long as it has set it.
    b.rows("RESET tidegate.causal_key");
    assert_eq!(
        read(&b, &cluster),
        (2, false),
        "what it has seen itself counts on"
    );
    b.rows("SET tidegate.consistency = 'eventual'");
    assert_eq!(read(&b, &cluster), (0, true));
    assert!(reason(&gateway, "causal_key") > 0.0);
    resume(&cluster);
    for client in [&a, &other] {
        wait_for("reads on a replica again", || {
            let (v, on_replica) = read(client, &cluster);
            assert_eq!(v, 2);
            on_replica
        });
    }
}

/// A case: what the session does that writes this value with this key in force.
type Writes = fn(&Client, &str, i32);

/// What is acknowledged counts for the key that was in force when it was done, however and whenever that was set.
#[test]
fn a_write_counts_for_the_key_that_it_was_done_under() {
    let cluster = start();
    let enter = "CREATE FUNCTION enter(key text) RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN PERFORM set_config('tidegate.causal_key', key, true); END $$";
    cluster.primary().sql("app", enter).expect("created");
    cluster.wait_caught_up().expect("caught up");
    let gateway = Gateway::start(&cluster);
    let set = |client: &Client, key: &str| {
        client.rows(&format!("SET tidegate.causal_key = '{key}'"));
    };
    // By which the key is told to have been in force, and no other.
    let told: [(&str, Writes); 8] = [
        ("bound", |client, key, v| {
            client.rows("BEGIN");
            let sql = "SELECT set_config('tidegate.causal_key', $1, false)";
            client.prepared_with(sql, &[&key]);
            write(client, v);
            client.rows("COMMIT");
        }),
        ("bound with its name", |client, key, v| {
            client.rows("BEGIN");
            let sql = "SELECT set_config($1, $2, true)";
            client.prepared_with(sql, &[&"tidegate.causal_key", &key]);
            write(client, v);
            client.rows("COMMIT");
        }),
        ("in one text", |client, key, v| {
            client.rows(&format!(
                "BEGIN; SELECT set_config('tidegate.causal_key', '{key}', true);
                 UPDATE t SET v = {v}; COMMIT; SELECT"
            ));
        }),
        ("rolled back to", |client, key, v| {
            client.rows(&format!("SET tidegate.causal_key = '{key}'"));
            client.rows("BEGIN; SAVEPOINT s");
            client.rows("SET LOCAL tidegate.causal_key = 'elsewhere'");
            client.rows("ROLLBACK TO s");
            write(client, v);
            client.rows("COMMIT");
        }),
        ("chained", |client, key, v| {
            client.rows(&format!("SET tidegate.causal_key = '{key}'"));
            client.rows("BEGIN");
            client.rows("SET LOCAL tidegate.causal_key = 'elsewhere'");
            client.rows("COMMIT AND CHAIN");
            write(client, v);
            client.rows("COMMIT");
        }),
        ("reset in the same text", |client, key, v| {
            client.rows(&format!("SET tidegate.causal_key = '{key}'"));
            client.rows(&format!("UPDATE t SET v = {v}; RESET tidegate.causal_key"));
        }),
        ("after a transaction of another", |client, key, v| {
            client.rows(&format!("SET tidegate.causal_key = '{key}'"));
            client.rows(&format!(
                "BEGIN; SET LOCAL tidegate.causal_key = 'elsewhere'; COMMIT; UPDATE t SET v = {v}"
            ));
        }),
        ("that of its start", |client, key, v| {
            client.rows(&format!("SET tidegate.causal_key = '{key}'; BEGIN"));
            client.rows("SET LOCAL tidegate.causal_key = 'elsewhere'");
            client.rows(&format!("UPDATE t SET v = {v}; COMMIT; RESET ALL"));
        }),
    ];
    let untold: [(&str, Writes); 3] = [
        ("computed", |client, key, v| {
            client.rows("BEGIN");
            client.rows(&format!(
                "SELECT set_config('tidegate.causal_key', '{key}' || '', false)"
            ));
            write(client, v);
            client.rows("COMMIT");
        }),
        ("by a function", |client, key, v| {
            client.rows("BEGIN");
            client.rows(&format!("SELECT enter('{key}')"));
            write(client, v);
            client.rows("COMMIT");
        }),
        ("by a block", |client, key, v| {
            client.rows(&format!(
                "DO $$ BEGIN EXECUTE 'SET LOCAL tidegate.' || 'causal_key = ''{key}''';
                 UPDATE t SET v = {v}; END $$"
            ));
        }),
    ];
    let other = with_key(&gateway, "other");
    // What functions do is known once somebody has written.
    write(&with_key(&gateway, "first"), 0);
    let reader = |(how, writes): &(&'static str, Writes)| (*how, *writes, with_key(&gateway, how));
    let told: Vec<_> = told.iter().map(reader).collect();
    let untold: Vec<_> = untold.iter().map(reader).collect();
    let readers = told.iter().chain(&untold).map(|(_, _, reader)| reader);
    for client in readers.chain([&other]) {
        wait_for("reads on a replica", || read(client, &cluster).1);
    }
    pause(&cluster);
    for (v, (how, writes, reader)) in (1..).zip(told.iter().chain(&untold)) {
        if v == 9 {
            assert_eq!(read(&other, &cluster), (0, true), "of another key");
        }
        let writer = Client::open(&gateway, "app", "");
        writes(&writer, how, v);
        assert_eq!(read(reader, &cluster), (v, false), "{how}");
        // What was set for the session is its own from then on.
        let key = writer.one("SHOW tidegate.causal_key");
        let lasts = ["bound", "rolled back to", "chained", "computed"].contains(how);
        let lasts = lasts || *how == "after a transaction of another";
        assert_eq!(key, if lasts { how } else { "" }, "{how}");
    }
    set(&other, "computed");
    resume(&cluster);
}

/// A token that is set for a transaction asks for what it stands for all the same, as does one that a function sets.
#[test]
fn a_token_counts_however_it_is_set() {
    let cluster = start();
    let gateway = Gateway::start(&cluster);
    let writer = Client::open(&gateway, "app", "");
    let set: [fn(&Client, &str); 3] = [
        |client, token| {
            client.rows(&format!(
                "SELECT set_config('tidegate.token', '{token}', true)"
            ));
        },
        |client, token| {
            let sql = "SELECT set_config('tidegate.token', $1, true)";
            client.prepared_with(sql, &[&token]);
        },
        |client, token| {
            client.rows(&format!(
                "DO $$ BEGIN EXECUTE 'SET tidegate.' || 'token = ''{token}'''; END $$"
            ));
        },
    ];
    let readers = set.map(|set| (set, Client::open(&gateway, "app", "")));
    write(&writer, 0);
    for (_, client) in &readers {
        wait_for("reads on a replica", || read(client, &cluster).1);
    }
    pause(&cluster);
    write(&writer, 1);
    let token = writer.one("SHOW tidegate.token");
    for (set, client) in &readers {
        client.rows("SET tidegate.consistency = 'eventual'");
        set(client, &token);
        client.rows("RESET tidegate.consistency");
        assert_eq!(read(client, &cluster), (1, false));
    }
    resume(&cluster);
}

/// One of those that share their keys there. With limits so wide that replicas that stand still take reads, and the store's
/// answers are waited for, for as long as a slow machine may need.
fn proxy(cluster: &LocalCluster, redis: &Redis) -> Gateway {
    proxy_with(cluster, redis, "")
}

fn proxy_with(cluster: &LocalCluster, redis: &Redis, more: &str) -> Gateway {
    let config = |config: String| {
        let url = redis.url();
        let (lag, store) = (
            "[lag]\nmax = \"10m\"",
            "[consistency.redis]\ntimeout = \"10s\"",
        );
        format!("{config}\n{lag}\n{store}\nurl = \"{url}\"\n{more}\n")
    };
    Gateway::start_with(cluster, config)
}

fn two_proxies(cluster: &LocalCluster, redis: &Redis) -> [Gateway; 2] {
    [(); 2].map(|()| proxy(cluster, redis))
}

#[test]
fn keys_are_shared_among_proxies() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let cluster = start();
    let [here, there] = two_proxies(&cluster, &redis);
    let writer = with_key(&here, "user:1");
    let [reader, other] = ["user:1", "user:2"].map(|key| with_key(&there, key));
    // Until the store has been there for longer than a replica may lag, it may have lost something.
    let unknown = || reason(&there, "key_unknown");
    wait_for("the store not to be believed", || {
        assert!(!read(&reader, &cluster).1);
        unknown() > 0.0
    });
    redis.grow_old("tidegate:");
    for client in [&writer, &reader, &other] {
        wait_for("the store to be believed", || read(client, &cluster).1);
    }

    pause(&cluster);
    write(&writer, 1);
    assert_eq!(read(&writer, &cluster), (1, false));
    wait_for("the other proxy to be told", || {
        here.metric("tidegate_causal_floors_written_total", "") > 0.0
    });
    assert_eq!(read(&reader, &cluster), (1, false));
    // A query is counted a moment after its answer has been sent.
    wait_for("its reason to be counted", || {
        reason(&there, "causal_key") > 0.0
    });
    assert_eq!(read(&other, &cluster).0, 0, "of another key");

    // Away: writes go on, and reads of sessions with a key go where everything is.
    let before = unknown();
    redis.stop();
    write(&writer, 2);
    assert_eq!(read(&reader, &cluster), (2, false));
    assert_eq!(read(&other, &cluster), (2, false));
    wait_for("their reason to be counted", || unknown() > before);
    for gateway in [&here, &there] {
        wait_for("both to notice", || {
            gateway.metric("tidegate_causal_store_up", "") == 0.0
        });
    }
    let keyless = Client::open(&there, "app", "options='-c tidegate.consistency=eventual'");
    assert!(read(&keyless, &cluster).1, "others are not concerned");
    resume(&cluster);

    // Back, and empty: what it does not have it may have lost.
    let written = here.metric("tidegate_causal_floors_written_total", "");
    redis.start_again();
    wait_for("what was written meanwhile to be told", || {
        here.metric("tidegate_causal_floors_written_total", "") > written
    });
    let (last, before) = (with_key(&there, "user:3"), unknown());
    wait_for("the store not to be believed again", || {
        assert!(!read(&last, &cluster).1);
        unknown() > before
    });
    redis.grow_old("tidegate:");
    for client in [&writer, &reader, &other, &last] {
        wait_for("the store to be believed again", || {
            let (v, on_replica) = read(client, &cluster);
            assert_eq!(v, 2);
            on_replica
        });
    }
}

#[test]
fn a_store_that_comes_back_from_a_snapshot_is_not_believed() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let cluster = start();
    let [here, there] = two_proxies(&cluster, &redis);
    let [writer, reader] = [&here, &there].map(|gateway| with_key(gateway, "user:1"));
    redis.grow_old("tidegate:");
    for client in [&writer, &reader] {
        wait_for("the store to be believed", || read(client, &cluster).1);
    }
    // It will say again that it has been there for long.
    redis.save();
    pause(&cluster);
    write(&writer, 1);
    wait_for("the other proxy to be told", || {
        here.metric("tidegate_causal_floors_written_total", "") > 0.0
    });
    redis.stop();
    // Nothing is read through the other one meanwhile: what the primary shows it would count from then on.
    let is_up = || there.metric("tidegate_causal_store_up", "") == 1.0;
    wait_for("the loss to be noticed", || !is_up());
    redis.start_again();
    wait_for("the store to be there again", is_up);
    assert_eq!(read(&reader, &cluster), (1, false));
    resume(&cluster);
}

#[test]
fn a_proxy_that_ends_tells_the_others_before() {
    let Some(redis) = Redis::start() else {
        return;
    };
    let cluster = start();
    // Its probe is given up well before others have to have been told.
    let mut here = proxy_with(&cluster, &redis, "[health]\ntimeout = \"300ms\"");
    let monitors = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity
                    WHERE application_name = 'tidegate monitor'";
    let monitor = cluster.primary().sql("postgres", monitors).expect("asked");
    let there = proxy(&cluster, &redis);
    let [writer, reader] = [&here, &there].map(|gateway| with_key(gateway, "user:1"));
    redis.grow_old("tidegate:");
    for client in [&writer, &reader] {
        wait_for("the store to be believed", || read(client, &cluster).1);
    }
    pause(&cluster);
    // It will be known late where the write is.
    let monitor = Pid::from_raw(monitor.trim().parse().expect("one probe"));
    kill(monitor, Signal::SIGSTOP).expect("stopped");
    write(&writer, 1);
    here.signal("TERM");
    assert_eq!(here.wait(), Some(0));
    kill(monitor, Signal::SIGCONT).expect("continued");
    assert_eq!(read(&reader, &cluster), (1, false));
    resume(&cluster);
}

#[test]
fn a_proxy_that_is_told_to_stop_at_once_tells_nobody() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let cluster = start();
    let mut gateway = proxy(&cluster, &redis);
    let client = with_key(&gateway, "user:1");
    redis.stop();
    write(&client, 1);
    client.rows("BEGIN");
    write(&client, 2);
    gateway.signal("TERM");
    wait_for("the transaction to be waited for", || {
        gateway.log().contains("shutting down")
    });
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let log = gateway.log();
    assert!(log.contains("stopping at once"), "{log}");
    assert!(!log.contains("have not been told"), "{log}");
}
