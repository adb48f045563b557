//! What is no read.

use super::*;

#[test]
fn changes_of_data_are_writes() {
    check(
        Need::Write,
        Why::DataChange,
        &[
            "insert into t values (1)",
            "INSERT INTO t SELECT * FROM u",
            "update t set a = 1",
            "delete from t",
            "merge into t using u on t.a = u.a when matched then delete",
            "truncate t",
            "refresh materialized view v",
            "copy t from stdin",
            "copy t (a) from '/tmp/x' csv",
            "copy binary t from stdin",
            "with x as (insert into t values (1) returning a) select * from x",
            "with x as (update t set a = 1 returning a) select * from x",
            "with x as (delete from t returning a) select * from x",
            "with x as materialized (delete from only t returning a) select * from x",
            "with x as (select 1) insert into t select * from x",
            "with x as (select 1) update t set a = 1",
            "with x as (select 1) delete from t",
            "with x as (select 1) merge into t using x on true when matched then delete",
            "with x as (merge into t using u on true when matched then delete) select 1",
            "select * from (with x as (delete from t returning a) select * from x) y",
            "with x as (with y as (insert into t values (1) returning a) select * from y)
             select * from x",
            "explain analyze delete from t",
            "explain (analyze) delete from t",
            "explain (analyze 0) delete from t",
            "explain (analyze off, verbose) insert into t values (1)",
            "explain (\"analyze\") update t set a = 1",
            "explain analyze with x as (delete from t returning a) select * from x",
            "copy (insert into t values (1) returning a) to stdout",
            "copy (with x as (delete from t returning a) select * from x) to stdout",
            "copy (with x as (select 1) insert into t select 1 returning a) to stdout",
            "select 1; with x as (delete from t returning a) select * from x",
        ],
    );
}

#[test]
fn definitions_are_writes() {
    check(
        Need::Write,
        Why::Ddl,
        &[
            "create table t (a int)",
            "create temp table t (a int)",
            "create table t as select 1",
            "create or replace function f() returns int begin atomic select 1; select 2; end",
            "create materialized view v as select 1",
            "create index concurrently i on t (a)",
            "alter table t add b int",
            "alter system set a = 1",
            "drop table t",
            "grant select on t to a",
            "grant a to b",
            "revoke all on t from a",
            "comment on table t is 'x'",
            "security label on table t is 'x'",
            "reassign owned by a to b",
            "import foreign schema s from server x into y",
            "explain analyze create table t as select 1",
        ],
    );
}

#[test]
fn locks_of_rows_are_writes() {
    check(
        Need::Write,
        Why::LockingClause,
        &[
            "select * from t for update",
            "SELECT * FROM t FOR/**/UPDATE",
            "select * from t for share",
            "select * from t for no key update",
            "select * from t for key share",
            "select * from t for update of t nowait",
            "select * from t for update skip locked limit 1",
            "select * from t where a = 1 limit 1for update",
            "select * from (select * from t for update) x",
            "with x as (select * from t for share) select * from x",
            "select (select a from t for update)",
            "select * from t where a in (select a from t for key share)",
            "(select * from t for update)",
            "copy (select * from t for update) to stdout",
            "explain analyze select * from t for update",
        ],
    );
}

#[test]
fn select_into_is_a_write() {
    check(
        Need::Write,
        Why::SelectInto,
        &[
            "select * into u from t",
            "select 1 into temp u",
            "select 1 into unlogged table u",
            "select 1into u",
            "with x as (select 1) select * into u from x",
            "(select 1 into u)",
            "explain analyze select 1 into u",
        ],
    );
}

#[test]
fn functions_that_write_lock_or_differ_are_writes() {
    check(
        Need::Write,
        Why::UnsafeFunction,
        &[
            "select nextval('s')",
            "select NEXTVAL ('s')",
            "select \"nextval\"('s')",
            "select pg_catalog.nextval('s')",
            "select a.nextval('s')",
            "select setval('s', 1), 1",
            "select currval('s')",
            "select lastval()",
            "select set_config('a', f(), false)",
            "select set_config('a', 'b', false), f()",
            "select set_config('a', 'b', false) from t",
            "select set_config('a', 'b' || $1, false)",
            "select x.set_config('a', 'b', false)",
            "select pg_catalog.set_config('a', 'b', true) from t",
            "select * from set_config('a', 'b', false)",
            "select * from t where a = (select set_config('a', 'b', false)::int)",
            "select * from t order by set_config('a', 'b', false)",
            "select case when set_config('a', 'b', false) = 'b' then 1 end",
            "select current_setting('a')",
            "select pg_advisory_lock(1)",
            "select pg_catalog.pg_advisory_lock(1)",
            "select pg_try_advisory_lock_shared(1, 2)",
            "select pg_advisory_xact_lock(1)",
            "select pg_try_advisory_xact_lock(1)",
            "select pg_advisory_unlock(1)",
            "select pg_advisory_unlock_all()",
            "select 1 from t where pg_try_advisory_lock(a)",
            "select * from generate_series(1, 2) g, pg_advisory_lock(g)",
            "select * from t join lateral pg_try_advisory_lock(t.a) l on true",
            "select count(*) filter (where pg_try_advisory_lock(a)) from t",
            "select sum(a) over (order by pg_try_advisory_lock(a)) from t",
            "select sum(a) over w from t window w as (order by pg_try_advisory_lock(a))",
            "select string_agg(b, ',' order by pg_try_advisory_lock(a)) from t",
            "select array[pg_try_advisory_lock(1)]",
            "select (array[1])[pg_advisory_lock(1)]",
            "select 1 from t group by pg_try_advisory_lock(a)",
            "select 1 from t group by rollup (pg_try_advisory_lock(a))",
            "select 1 from t having pg_try_advisory_lock(1)",
            "select 1 from t limit pg_try_advisory_lock(1)::int",
            "select distinct on (pg_try_advisory_lock(1)) 1",
            "values (pg_try_advisory_lock(1))",
            "select 1 from t tablesample system (lastval())",
            "select 1 where a between lastval() and 2",
            "select 1 where a like lastval()::text",
            "select 1 where a in (1, lastval())",
            "select lower(b => lastval()::text)",
            "select make_date(year => lastval()::int, month => 1, day => 1)",
            "select extract(year from pg_postmaster_start_time())",
            "select substring('a' from lastval()::int)",
            "select trim(both lastval()::text from 'a')",
            "select interval '1' + lastval() * interval '1'",
            "select * from t join u on lastval() = 1",
            "select (select (select lastval()))",
            "select 1 union select lastval()",
            "select 1 offset lastval()",
            "select 1 where row(lastval()) = row(1)",
            "select cast(lastval() as int), lastval()::int",
            "select 1 where not (not lastval() = 1)",
            "select pg_notify('a', 'b')",
            "select pg_backend_pid()",
            "select pg_cancel_backend(1), pg_terminate_backend(1)",
            "select pg_is_in_recovery()",
            "select pg_last_wal_replay_lsn()",
            "select pg_current_wal_lsn()",
            "select pg_current_wal_insert_lsn()",
            "select pg_switch_wal()",
            "select pg_export_snapshot()",
            "select txid_current(), txid_current_if_assigned()",
            "select pg_current_xact_id()",
            "select inet_server_addr(), inet_client_addr()",
            "select pg_postmaster_start_time()",
            "select lo_create(0), lo_import('x'), lowrite(1, 'x')",
            "select lo_get(1)",
            "select pg_relation_size('t'), pg_total_relation_size('t')",
            "select pg_stat_get_numscans(1)",
            "select pg_read_file('x'), pg_ls_dir('.')",
            "select pg_logical_emit_message(false, 'a', 'b')",
            "select pg_create_logical_replication_slot('a', 'b')",
            "select pg_reload_conf()",
            "select query_to_xml('delete from t', true, false, '')",
            "select table_to_xml('t', true, false, '')",
            "select ts_stat('select 1')",
            "select ts_rewrite('a'::tsquery, 'select 1')",
            "select dblink('delete from t')",
            "select setseed(0.5)",
            "select pg_temp.f()",
            "explain analyze select nextval('s')",
            "copy (select nextval('s')) to stdout",
            "with x as (select nextval('s')) select * from x",
        ],
    );
}

#[test]
fn unknown_functions_are_writes() {
    check(
        Need::Write,
        Why::UnknownFunction,
        &[
            "select my_report()",
            "select app.lower('A')",
            "select \"Lower\"('A')",
            "select * from my_report(1) as r",
            "select my_agg(distinct a order by b) from t",
            "select f(1), lower('A')",
            "explain select my_report()",
            "explain analyze select my_report()",
            "copy (select my_report()) to stdout",
        ],
    );
}

#[test]
fn relations_of_the_server_are_writes() {
    check(
        Need::Write,
        Why::ServerLocalRelation,
        &[
            "select * from pg_stat_activity",
            "select * from pg_catalog.pg_stat_replication",
            "select * from PG_LOCKS",
            "select * from only pg_stat_activity",
            "select * from t join ONLY pg_locks on true",
            "select 1 from t, only accounts_id_seq",
            "select 1 from t, pg_statio_user_tables",
            "select * from pg_replication_slots",
            "select * from pg_prepared_xacts",
            "select * from pg_cursors",
            "select * from pg_prepared_statements",
            "select * from pg_settings",
            "select * from public.pg_stat_statements",
            "select * from pg_temp.t",
            "select * from (select * from pg_stat_wal) x",
            "select exists (select 1 from pg_stat_activity)",
            "select f() from pg_stat_activity",
            "table pg_locks",
            "copy pg_stat_activity to stdout",
            "select * from pg_sequences",
            "select * from accounts_id_seq",
            "select * from public.accounts_id_seq s",
            "select last_value from numbering",
            "select s.LAST_VALUE, log_cnt from numbering s",
            "select 1 from numbering where not is_called",
        ],
    );
}

#[test]
fn other_commands_are_writes() {
    check(
        Need::Write,
        Why::Utility,
        &[
            "listen a",
            "unlisten *",
            "notify a, 'b'",
            "lock table t",
            "prepare p as select 1",
            "prepare p (int) as delete from t",
            "execute p (1)",
            "declare c cursor for select 1",
            "fetch 10 c",
            "fetch all from c",
            "move 1 in c",
            "close c",
            "call p()",
            "do $$ begin end $$",
            "vacuum t",
            "analyze t",
            "checkpoint",
            "reindex table t",
            "cluster t",
            "load 'x'",
            "commit prepared 'a'",
            "rollback prepared 'a'",
            "copy t to '/tmp/x'",
            "copy t to program 'cat'",
            "copy (select 1) to '/tmp/x'",
            "explain delete from t",
            "explain insert into t values (1)",
            "explain select 1 into u",
            "explain (costs off) update t set a = 1",
            "explain (range_table) select 1",
            "explain (costs off, debug on) select 1",
            "explain (u&\"costs\") select 1",
            "explain (costs.foo) select 1",
            "explain execute p",
            "explain analyze execute p",
            "explain declare c cursor for select 1",
            "explain select nextval('s')",
        ],
    );
}

#[test]
fn what_is_not_understood_is_a_write() {
    check(
        Need::Write,
        Why::NotParsed,
        &[
            "selekt 1",
            "select 'open",
            "select \"open",
            "select /* open",
            "select $x$ open",
            "select 1 \\ 2",
            "select {1}",
            "42",
            "'a'",
            "\"select\" 1",
            "select U&\"x\"",
            "select a\u{3000}b from t",
            "explain explain select 1",
            "copy",
            "copy (select 1",
        ],
    );
}

#[test]
fn session_commands_are_of_the_session() {
    check(
        Need::Session,
        Why::SessionState,
        &[
            "set a = 1",
            "set local a = 1",
            "set session a to 'x'",
            "set time zone 'UTC'",
            "set role a",
            "set session authorization a",
            "select set_config('a', 'b', false)",
            "select pg_catalog.set_config($1, $2::text, $3) as a, set_config('b', $4, true) as \"B\";",
            "set session characteristics as transaction read only",
            "set transaction isolation level serializable",
            "set constraints all deferred",
            "reset a",
            "reset all",
            "show a",
            "show all",
            "show transaction isolation level",
            "discard all",
            "discard temp",
            "deallocate p",
            "deallocate all",
        ],
    );
}

#[test]
fn transaction_commands_are_of_the_transaction() {
    check(
        Need::Transaction,
        Why::TransactionControl,
        &[
            "begin",
            "begin transaction isolation level repeatable read read only deferrable",
            "start transaction read write",
            "commit",
            "commit work and no chain",
            "end",
            "rollback",
            "abort",
            "rollback to savepoint a",
            "savepoint a",
            "release savepoint a",
            "prepare transaction 'a'",
        ],
    );
}
