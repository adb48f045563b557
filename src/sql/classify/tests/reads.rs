//! What is a read.

use super::*;

#[test]
fn plain_queries_are_reads() {
    check(
        Need::Read,
        Why::ProvenRead,
        &[
            "select 1",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
            "select * from t",
            "select t.*, u.a as b from t, u",
            "select a b from t as x (a)",
            "select distinct a from t",
            "select distinct on (a, lower(b)) a from t order by a, lower(b) desc nulls last",
            "select all a from t limit 10 offset 5",
            "select a from t limit all",
            "select a from t offset 2 rows fetch next 3 rows only",
            "select a from t order by a fetch first row with ties",
            "select a from t order by a using <",
            "select count(*), sum(a) filter (where a > 0) from t group by a having count(*) > 1",
            "select a, b from t group by rollup (a, b)",
            "select a, b from t group by cube (a, b), grouping sets ((a), (b), ())",
            "select grouping(a) from t group by rollup (a)",
            "select * from only t",
            "select * from t where a = any (array[1, 2]) and b <> all (select b from t)",
            "select * from t where a = any ('{1,2}'::int[])",
            "select * from t where a in (1, 2, -3) or b not in ('x', 'y')",
            "select * from t where (a, b) in (select a, b from t)",
            "select * from t where (a, b) = (1, '2')",
            "select * from t where a between 1 and 2 and b not between '3' and '4'",
            "select * from t where b like 'x%' escape '!' and b not ilike 'y%' or b similar to 'z'",
            "select * from t where a is null or b is not null or b notnull",
            "select * from t where (a = 1) is true and (a = 1) is not unknown",
            "select * from t where a is distinct from 1 and b is not distinct from 'x'",
            "select * from t where exists (select 1 from t u where u.a = t.a)",
            "select * from t where b ~ 'x' and b !~* 'y' and b ~~ 'z' and b || 'x' = 'yx'",
            "select a % 2, a ^ 2, |/ a, @ a, a & 1, a | 1, a # 1, ~a, a << 1, a >> 1 from t",
            "select a operator(pg_catalog.+) 1 from t",
            "select b collate \"C\" from t order by b collate \"C\"",
            "select 'it''s', E'a\\'b', $$x$$, $a$ $$ $a$, b'101', x'1F', N'n', U&'d\\0061t'",
            "select 'a'\n  'b'",
            "select 1.5e3, .5, 1e10, -1, +1, - -1",
            "select current_date, current_time, current_timestamp(3), localtime, localtimestamp",
            "select current_user, session_user, user, current_role, current_catalog, current_schema",
            "select \"current_user\"(), now(), current_schema(), current_database()",
            "select true, false, null",
            "select $1::int + $2",
            "values (1, 'a'), (2, 'b')",
            "values (1) order by 1 limit 1",
            "table t",
            "table only s.t",
            "(select 1)",
            "((select 1) union (select 2)) order by 1",
            "select 1 union all select 2 intersect select 3 except all select 4",
            "select * from (values (1, 'a'), (2, 'b')) as v (a, b)",
            "select * from (select 1) as x",
            "select (select max(a) from t)",
            "select array(select a from t), array[1, 2], array[[1, 2], [3, 4]]",
            "select row(1, 'a'), (1, 'a')",
            "select case when a > 1 then 'x' else 'y' end, case a when 1 then 2 end from t",
            "select coalesce(a, 1), nullif(a, 1), greatest(a, 1), least(a, 1) from t",
            "/* c */ select /* /* nested */ */ 1 -- end",
        ],
    );
}

#[test]
fn joins_are_reads() {
    check(
        Need::Read,
        Why::ProvenRead,
        &[
            "select * from t join u on t.a = u.a",
            "select * from t inner join u using (a)",
            "select * from t left outer join u on true right join v on true",
            "select * from t full join u using (a, b)",
            "select * from t cross join u",
            "select * from t natural left join u",
            "select * from (t join u using (a)) join v using (a)",
            "select * from t, lateral (select * from u where u.a = t.a) x",
            "select * from t left join lateral (select 1) x on true",
            "select * from t, lateral generate_series(1, t.a) g",
            "select * from t tablesample system (10)",
            "select * from t tablesample bernoulli (10) repeatable (1)",
        ],
    );
}

#[test]
fn queries_with_with_are_reads() {
    check(
        Need::Read,
        Why::ProvenRead,
        &[
            "with x as (select 1) select * from x",
            "with x (a) as (select 1), y as (select * from x) select * from y",
            "with x as materialized (select 1) select * from x",
            "with x as not materialized (values (1)) select * from x",
            "with recursive x (n) as (select 1 union all select n + 1 from x where n < 5)
             select * from x",
            "select * from (with x as (select 1) select * from x) y",
            "with x as (with y as (select 1) select * from y) select * from x",
        ],
    );
}

#[test]
fn built_in_functions_are_reads() {
    check(
        Need::Read,
        Why::ProvenRead,
        &[
            "select lower(b), upper(b), length(b), btrim(b), md5(b) from t",
            "select pg_catalog.lower('A'), \"lower\"('A'), LOWER('A')",
            "select abs(-1), round(1.5, 1), ceil(1.2), floor(1.2), mod(5, 2), power(2, 3)",
            "select extract(year from now()), date_part('year', now()), date_trunc('day', now())",
            "select age(now()), to_char(now(), 'YYYY'), make_date(2020, 1, 1)",
            "select date '2020-01-01', timestamp '2020-01-01 00:00', interval '1 day'",
            "select interval '1' day, interval '1-2' year to month",
            "select timestamptz '2020-01-01 00:00+00', time '10:00', uuid
             '00000000-0000-0000-0000-000000000000'",
            "select now() at time zone 'UTC' - interval '1 hour'",
            "select substring('abc' from 2 for 1), substring('abc', 2), substr('abc', 2)",
            "select position('b' in 'abc'), overlay('abc' placing 'x' from 2), strpos('a', 'b')",
            "select trim(both 'x' from 'xax'), trim('  a '), ltrim(' a')",
            "select cast(1 as text), 1::text, '1'::int4, '{1}'::int[], 'a'::varchar(10)",
            "select 1::numeric(10, 2), 'a'::character varying, '1'::double precision",
            "select now()::timestamp without time zone, 'x'::bytea, '1'::bit varying(3)",
            "select '(1,2)'::point, '{}'::jsonb, 'pg_class'::regclass, '10.0.0.1'::inet, 'a'::name",
            "select string_agg(b, ',' order by a desc), array_agg(distinct a) from t",
            "select percentile_cont(0.5) within group (order by a) from t",
            "select row_number() over (), rank() over (partition by a order by b) from t",
            "select sum(a) over w, lag(a, 1) over w from t window w as (order by a)",
            "select sum(a) over (order by a rows between 1 preceding and current row) from t",
            "select sum(a) over (order by a range between unbounded preceding and 1 following)
             from t",
            "select * from generate_series(1, 10)",
            "select * from generate_series(1, 10) with ordinality as g (a, b)",
            "select unnest(array[1, 2]), generate_series(1, 3)",
            "select * from unnest(array[1, 2], array['a', 'b']) as u (a, b)",
            "select j -> 'a', j ->> 'b', j #> '{a}', j @> '{}', j ? 'a', j ?| array['a'] from j",
            "select jsonb_build_object('a', 1), to_jsonb(t), row_to_json(t) from t",
            "select * from jsonb_each('{}'), jsonb_array_elements('[]') as e",
            "select * from json_to_recordset('[]') as x (a int, b text)",
            "select jsonb_path_query('{}', '$.a'), jsonb_set('{}', '{a}', '1')",
            "select regexp_replace(b, 'x', 'y', 'g'), regexp_matches(b, 'x'), b ~ 'x' from t",
            "select format('%s', 1), concat('a', 'b'), concat_ws(',', 'a'), repeat('a', 3)",
            "select to_tsvector('english', 'a b') @@ to_tsquery('a'), ts_rank(to_tsvector('a'),
             plainto_tsquery('a'))",
            "select int4range(1, 5) && int4range(3, 7), lower(int4range(1, 5)), isempty('empty'::int4range)",
            "select array_length(array[1], 1), cardinality(array[1]), array_to_string(array[1], ',')",
            "select (array[1, 2])[1], (array[1, 2, 3])[1:2], a[1] from (select array[1] as a) x",
            "select encode(sha256('a'::bytea), 'hex'), decode('aa', 'hex'), convert_to('a', 'UTF8')",
            "select random(), clock_timestamp(), statement_timestamp(), gen_random_uuid()",
            "select pg_sleep(0)",
            "select make_interval(days => 1), make_interval(days := 1)",
            "select version()",
            "select hashtext('a'), hashint4(1)",
            "select count(distinct a), bool_and(true) from t",
            "select exists (select 1 from t)",
            "select xpath('/a', '<a/>'), xmlcomment('x')",
        ],
    );
}

#[test]
fn the_catalog_is_read() {
    check(
        Need::Read,
        Why::ProvenRead,
        &[
            "select * from pg_class",
            "select * from pg_catalog.pg_attribute where attrelid = 't'::regclass",
            "select * from information_schema.tables",
            "select n.nspname from pg_catalog.pg_namespace n",
            "select typname from pg_type where oid = any ($1)",
            "select pg_get_viewdef(oid), pg_get_indexdef(oid), format_type(23, -1) from pg_class",
            "select obj_description(oid), col_description(oid, 1), pg_table_is_visible(oid)
             from pg_class",
            "select has_table_privilege('t', 'select'), pg_has_role('pg_monitor', 'usage')",
            "select to_regclass('t'), pg_get_userbyid(10), pg_encoding_to_char(6)",
            "select * from pg_stats",
            "select rolname from pg_roles",
            "select pg_typeof(1), pg_column_size('a'), pg_size_pretty(1::bigint)",
        ],
    );
}

#[test]
fn explain_and_copy_of_a_read_are_reads() {
    check(
        Need::Read,
        Why::ProvenRead,
        &[
            "explain select * from t",
            "explain verbose select * from t",
            "explain analyze select * from t",
            "explain analyze verbose select * from t",
            "explain (analyze, buffers, format json) select * from t",
            "explain (analyze 0) select 1",
            "explain (costs off) values (1)",
            "explain (verbose, settings on, wal, timing off, summary, generic_plan) select 1",
            "explain (memory, serialize text, io, \"format\" json) select 1",
            "explain (select 1)",
            "explain ((select 1))",
            "explain table t",
            "explain with x as (select 1) select * from x",
            "copy t to stdout",
            "copy s.t (a, b) to stdout with (format csv, header)",
            "copy t to stdout csv header",
            "copy (select * from t) to stdout",
            "copy (with x as (select 1) select * from x) to stdout (format binary)",
            "copy (values (1)) to stdout",
        ],
    );
}

#[test]
fn words_of_commands_may_be_names() {
    check(
        Need::Read,
        Why::ProvenRead,
        &[
            "select \"update\", \"for\" from t",
            "select update, delete, insert from w",
            "select max(update), count(delete) from w",
            "select 1 as into_t",
            "select 'for update', 'into t'",
            "select a as \"for update\" from t",
            "select a from t -- for update",
            "select a from t as temp",
        ],
    );
}

#[test]
fn reads_that_the_parser_does_not_know_are_proven_by_their_words() {
    check(
        Need::Read,
        Why::ProvenRead,
        &[
            "select * from t where a between symmetric 2 and 1",
            "select * from rows from (generate_series(1, 2), generate_series(1, 3)) r",
            "select a from t group by distinct a",
            "select (row_to_json(t)).* from t limit 1 offset 2",
            "with recursive x as (select 1) search depth first by a set o select * from x",
            "with recursive x as (select 1) cycle a set b using c select * from x",
            "select",
            "select trim(leading from 'a')",
            "select 1 fetch first (1) rows only",
            "with x as (select 1) table x",
            "select 1 union table t",
            "(table t)",
            "select * from xmltable('/a' passing '<a/>' columns b text)",
            // Every server refuses these.
            "select 1 2",
            "select (1",
            "select 1)",
            "table t, u",
        ],
    );
    check(
        Need::Write,
        Why::UnsafeFunction,
        &["table t union select nextval('s')"],
    );
}
