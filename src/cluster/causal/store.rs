//! Owns: what the sessions of each causal key must see, as several proxies know it: in Redis or Valkey.
//! Never: keeps a write waiting, or fails one; or takes it for certain that nothing is known of a key
//! when the store may have lost it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::KeyId;
use crate::cluster::Cluster;
use crate::config::Redis;
use crate::session::consistency::{Lsn, Mark, Tick};
use crate::session::token::Token;
use crate::telemetry;

/// What is asked for: for how many seconds the store has lost nothing, what all keys must see, and
/// what this one must.
const FLOOR: &str = "
local since = redis.call('GET', KEYS[1])
local now = redis.call('TIME')[1]
if not since then
  since = now
  redis.call('SET', KEYS[1], since)
end
return {tonumber(now) - tonumber(since), redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3])}";

/// Has the time since which nothing was lost begin anew if the server is in another run than that was said of: from a
/// snapshot it comes back without what was written afterwards, and in its master's place without what it had not been
/// sent. The time itself comes back with both.
const MEET: &str = "
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if not run or redis.call('GET', KEYS[2]) ~= run then
  redis.call('SET', KEYS[1], redis.call('TIME')[1])
  redis.call('SET', KEYS[2], run or '')
end";

/// Raises a floor, and never lowers it: floors have one length, and compare as texts.
const RAISE: &str = "
local known = redis.call('GET', KEYS[1])
if not known or known < ARGV[1] then
  known = ARGV[1]
end
redis.call('SET', KEYS[1], known, 'PX', ARGV[2])";

/// How many floors may wait to be written. With more, the floor of all keys is raised instead.
const PENDING_MAX: usize = 1 << 14;

/// How many floors are written at a time.
const WRITTEN_AT_ONCE: usize = 256;

/// How long writing them may take, and connecting.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait before the store is connected to again.
const RETRY: Duration = Duration::from_millis(250);

/// How often the connection is tried while nothing else is asked.
const HEARTBEAT: Duration = Duration::from_secs(1);

pub struct Store {
    settings: Redis,
    /// A store that has lost nothing for so long has every floor that matters: what is older is on all
    /// replicas that take reads.
    settled: Duration,
    client: redis::Client,
    connection: ArcSwapOption<MultiplexedConnection>,
    untold: Arc<Untold>,
    /// The connection is of no use, or the store is closed.
    broken: Notify,
    closed: AtomicBool,
}

/// What others are still to be told: by a store, or by the one that takes its place.
#[derive(Default)]
struct Untold {
    pending: Mutex<Pending>,
    /// Something is to be written; something has been.
    queued: Notify,
    written: Notify,
}

#[derive(Default)]
struct Pending {
    floors: HashMap<KeyId, (String, Tick)>,
    all: Option<Tick>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.floors.is_empty() && self.all.is_none()
    }
}

/// The store can't be asked, or may have lost what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away;

impl Store {
    /// A store that takes the place of another, if there was one: what others have not been told by that, they
    /// are told by this.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn open(
        settings: &Redis,
        settled: Duration,
        before: Option<&Store>,
    ) -> Result<Arc<Store>, RedisError> {
        let store = Store {
            client: redis::Client::open(settings.url.expose())?,
            settings: settings.clone(),
            settled,
            connection: ArcSwapOption::empty(),
            untold: before
                .map(|before| before.untold.clone())
                .unwrap_or_default(),
            broken: Notify::new(),
            closed: AtomicBool::new(false),
        };
        Ok(Arc::new(store))
    }

    pub fn is_as(&self, settings: &Redis, settled: Duration) -> bool {
        self.settings == *settings && self.settled == settled
    }

    /// Nobody asks it any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.broken.notify_one();
    }

    /// Whether it can be asked.
    pub fn is_up(&self) -> bool {
        self.connection.load().is_some()
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Has others told, before long, that a session of this key was acknowledged something by
    /// `moment`.
    pub fn raise(&self, id: KeyId, database: &str, key: &str, moment: Tick) {
        let mut pending = self.pending();
        let full = pending.floors.len() >= PENDING_MAX;
        match pending.floors.get_mut(&id) {
            Some((_, known)) => *known = moment.max(*known),
            None if full => pending.all = pending.all.max(Some(moment)),
            None => {
                let name = format!("{database}:{key}");
                pending.floors.insert(id, (name, moment));
            }
        }
        drop(pending);
        self.untold.queued.notify_one();
    }

    /// The like, of a session whose key is not known.
    pub fn raise_all(&self, moment: Tick) {
        let mut pending = self.pending();
        pending.all = pending.all.max(Some(moment));
        drop(pending);
        self.untold.queued.notify_one();
    }

    /// Others have been told of these.
    fn told(&self, floors: impl IntoIterator<Item = (Option<KeyId>, Tick)>) {
        let mut pending = self.pending();
        for (id, moment) in floors {
            match id {
                Some(id) => {
                    let same = |(_, now): &(String, Tick)| *now == moment;
                    if pending.floors.get(&id).is_some_and(same) {
                        pending.floors.remove(&id);
                    }
                }
                None if pending.all == Some(moment) => pending.all = None,
                None => {}
            }
        }
        drop(pending);
        self.untold.written.notify_waiters();
    }

    /// Waits until others have been told of everything, but no longer than `until`. `false` if they have not.
    pub async fn has_told_all(&self, until: Instant) -> bool {
        let told = async {
            loop {
                // Made before the look, so that nothing that is written after it is missed.
                let written = self.untold.written.notified();
                if self.pending().is_empty() {
                    return;
                }
                written.await;
            }
        };
        timeout_at(until, told).await.is_ok()
    }

    /// What the key's sessions must see by what other proxies have said.
    ///
    /// # Errors
    /// It can't be known now.
    pub async fn floor(
        &self,
        system: u64,
        database: &str,
        key: &str,
    ) -> Result<[Option<Token>; 2], Away> {
        let connection = self.connection.load_full().ok_or(Away)?;
        let mut connection = (*connection).clone();
        let mut ask = redis::cmd("EVAL");
        ask.arg(FLOOR).arg(3).arg(self.name("since"));
        ask.arg(self.key(system, "*"));
        ask.arg(self.key(system, &format!("{database}:{key}")));
        let asked = ask.query_async::<(u64, Option<String>, Option<String>)>(&mut connection);
        let answer = timeout(self.settings.timeout, asked).await;
        let Ok(Ok((age_s, all, one))) = answer else {
            self.broken.notify_one();
            return Err(Away);
        };
        if Duration::from_secs(age_s) <= self.settled {
            return Err(Away);
        }
        let floors = [all, one].map(|text| text.map(|text| read(system, &text).ok_or(Away)));
        let [all, one] = floors.map(Option::transpose);
        Ok([all?, one?])
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.settings.prefix)
    }

    fn key(&self, system: u64, name: &str) -> String {
        format!("{}{system}:{name}", self.settings.prefix)
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        let pending = self.untold.pending.lock();
        pending.unwrap_or_else(PoisonError::into_inner)
    }
}

/// A floor as the store has it.
fn written(token: Token) -> String {
    format!("{:08x}/{:016x}", token.timeline, token.lsn.0)
}

fn read(system: u64, text: &str) -> Option<Token> {
    let (timeline, lsn) = text.split_once('/')?;
    Some(Token {
        system,
        timeline: u32::from_str_radix(timeline, 16).ok()?,
        lsn: Lsn(u64::from_str_radix(lsn, 16).ok()?),
    })
}

/// Keeps the store connected and tells it what sessions here have been acknowledged, until it is
/// closed.
pub async fn keep(cluster: Arc<Cluster>, store: Arc<Store>) {
    let mut was_up = None;
    while !store.is_closed() {
        let error = match connect(&store).await {
            Ok(mut connection) => {
                if was_up != Some(true) {
                    tracing::info!(cluster = %cluster.name, "store of causal keys is connected");
                }
                was_up = Some(true);
                store.connection.store(Some(Arc::new(connection.clone())));
                let ended = serve(&cluster, &store, &mut connection).await;
                store.connection.store(None);
                match ended {
                    Ok(()) => continue,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if was_up != Some(false) {
            tracing::warn!(cluster = %cluster.name, %error, "store of causal keys is away: reads of sessions with a key go to the primary");
        }
        was_up = Some(false);
        sleep(RETRY).await;
    }
    // What it was asked to write, and has not written, is for the one in its place.
    store.untold.queued.notify_one();
}

async fn connect(store: &Store) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    let client = &store.client;
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    let mut connection = connecting.await?;
    let mut meet = redis::cmd("EVAL");
    meet.arg(MEET).arg(2);
    meet.arg(store.name("since")).arg(store.name("run"));
    meet.query_async::<()>(&mut connection).await?;
    Ok(connection)
}

/// Until the connection is of no use, or the store is closed.
async fn serve(
    cluster: &Cluster,
    store: &Store,
    connection: &mut MultiplexedConnection,
) -> Result<(), RedisError> {
    // What has been left by an earlier connection, or by the store before.
    write(cluster, store, connection).await?;
    loop {
        tokio::select! {
            () = store.untold.queued.notified() => write(cluster, store, connection).await?,
            () = store.broken.notified() => {
                if store.is_closed() {
                    return Ok(());
                }
                ping(connection).await?;
            }
            () = sleep(HEARTBEAT) => {
                ping(connection).await?;
                write(cluster, store, connection).await?;
            }
        }
    }
}

async fn ping(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    redis::cmd("PING").query_async(connection).await
}

/// Writes all that is pending. What comes of a failure is written later.
async fn write(
    cluster: &Cluster,
    store: &Store,
    connection: &mut MultiplexedConnection,
) -> Result<(), RedisError> {
    loop {
        let system = cluster.system();
        let (mut floors, last) = {
            let pending = store.pending();
            let floors = pending.floors.iter();
            let mut floors: Vec<_> = floors
                .take(WRITTEN_AT_ONCE)
                .map(|(id, (name, moment))| (Some(*id), name.clone(), *moment))
                .collect();
            floors.extend(pending.all.map(|moment| (None, "*".to_owned(), moment)));
            let last = floors.iter().map(|(.., moment)| *moment).max();
            (floors, last)
        };
        let Some(last) = last else {
            return Ok(());
        };
        if !sampled_after(cluster, last).await {
            // There is no primary. What is pending stays so.
            return Ok(());
        }
        let mut raise = redis::pipe();
        floors.retain(|(_, name, moment)| {
            let timeline = cluster.clock.timeline();
            let Some(sample) = Mark::new(*moment).resolved(&cluster.clock).sample else {
                return false;
            };
            if timeline == 0 || (system, timeline) != (cluster.system(), cluster.clock.timeline()) {
                // Another history has begun meanwhile.
                return false;
            }
            let token = Token {
                system,
                timeline,
                lsn: sample.lsn,
            };
            raise
                .cmd("EVAL")
                .arg(RAISE)
                .arg(1)
                .arg(store.key(system, name));
            raise
                .arg(written(token))
                .arg(store.settings.keep.as_millis() as u64)
                .ignore();
            true
        });
        raise.query_async::<()>(connection).await?;
        telemetry::metrics()
            .causal_floors_written
            .increment(floors.len() as u64);
        if store.is_closed() {
            // The one in its place may have another server to tell.
            return Ok(());
        }
        store.told(floors.into_iter().map(|(id, _, moment)| (id, moment)));
    }
}

/// Waits for the primary's position after that moment. `false` if it does not come.
async fn sampled_after(cluster: &Cluster, moment: Tick) -> bool {
    let sampled = async {
        loop {
            let moved = cluster.moved.notified();
            if cluster.clock.after(moment).is_some() {
                return;
            }
            // Until other proxies are told, their sessions may miss it.
            cluster.want_sample(moment);
            cluster.hurry();
            let _ = timeout(Duration::from_millis(50), moved).await;
        }
    };
    timeout(PATIENCE, sampled).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn open(timeout: Duration, before: Option<&Store>) -> Arc<Store> {
        let settings = Redis {
            url: Secret::new("redis://127.0.0.1:1"),
            timeout,
            prefix: "tidegate:".to_owned(),
            keep: Duration::from_secs(3600),
        };
        Store::open(&settings, Duration::from_secs(10), before).expect("a store")
    }

    #[test]
    fn what_others_are_told_by_the_store_before_is_not_waited_for() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let old = open(Duration::from_millis(20), None);
            let new = open(Duration::from_millis(30), Some(&old));
            new.raise(KeyId(7), "app", "user:1", Tick(3));
            let passed = Instant::now();
            assert!(!new.has_told_all(passed).await);
            let tell = async { old.told([(Some(KeyId(7)), Tick(3))]) };
            let (told, ()) = tokio::join!(new.has_told_all(passed + PATIENCE), tell);
            assert!(told);
            assert!(new.has_told_all(passed).await, "they have been told");
        });
    }

    #[test]
    fn what_others_have_not_been_told_is_left_to_the_next_store() {
        let old = open(Duration::from_millis(20), None);
        old.raise(KeyId(7), "app", "user:1", Tick(3));
        let new = open(Duration::from_millis(30), Some(&old));
        // Who still has the old one.
        old.raise(KeyId(8), "app", "user:2", Tick(4));
        let pending = new.pending();
        let moment = |id| pending.floors.get(&KeyId(id)).map(|(_, moment)| *moment);
        assert_eq!((moment(7), moment(8)), (Some(Tick(3)), Some(Tick(4))));
    }

    #[test]
    fn floors_compare_as_texts() {
        let floor = |timeline, lsn| {
            let (system, lsn) = (7, Lsn(lsn));
            Token {
                system,
                timeline,
                lsn,
            }
        };
        let all = [
            floor(1, 9),
            floor(1, 0xa),
            floor(1, 0xff_ffff_ffff),
            floor(2, 1),
            floor(0x10, 0),
        ];
        let texts = all.map(written);
        assert!(texts.is_sorted());
        for (token, text) in all.iter().zip(&texts) {
            assert_eq!(read(7, text), Some(*token));
        }
        assert_eq!(read(7, "1/x"), None);
    }
}
