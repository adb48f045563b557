-- What tests/catalog.rs and tests/oracle.rs have in the database: objects whose names alone do not tell
-- what using them does. Most functions say nothing of it either, as most do.
CREATE FUNCTION node() RETURNS text LANGUAGE sql
    AS 'SELECT setting FROM pg_settings WHERE name = ''port''';
CREATE TABLE items (id int PRIMARY KEY, name text);
ALTER TABLE items OWNER TO app;
INSERT INTO items SELECT n, 'x' FROM generate_series(1, 10) AS n;
CREATE SEQUENCE numbers;
CREATE TABLE log (at timestamptz);

CREATE FUNCTION writes(int) RETURNS int LANGUAGE plpgsql
    AS $$ BEGIN INSERT INTO public.log VALUES (now()); RETURN $1; END $$;
CREATE FUNCTION counts(int) RETURNS bigint LANGUAGE plpgsql STABLE
    AS $$ BEGIN RETURN (SELECT count(*) FROM items WHERE id > $1); END $$;
CREATE FUNCTION doubles(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE FUNCTION enters(text) RETURNS text LANGUAGE plpgsql STABLE
    AS $$ BEGIN RETURN set_config('app.tenant', $1, false); END $$;
CREATE FUNCTION locks(int) RETURNS boolean LANGUAGE plpgsql STABLE
    AS $$ BEGIN RETURN pg_try_advisory_xact_lock($1); END $$;
CREATE FUNCTION drawn() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT last_value FROM numbers';
CREATE TABLE sensors (last_value int, is_called boolean);
CREATE FUNCTION last_measured() RETURNS int LANGUAGE sql STABLE
    AS 'SELECT last_value FROM sensors WHERE is_called';
CREATE FUNCTION last_item() RETURNS text LANGUAGE sql STABLE
    AS 'SELECT last_value (name) OVER () FROM items LIMIT 1';
CREATE FUNCTION own_setting() RETURNS text LANGUAGE sql STABLE
    AS 'SELECT setting FROM pg_settings WHERE name = ''work_mem''';
CREATE FUNCTION atomic_reads(int) RETURNS bigint LANGUAGE sql STABLE
    BEGIN ATOMIC SELECT counts($1); END;
CREATE FUNCTION atomic_writes(int) RETURNS int LANGUAGE sql STABLE
    BEGIN ATOMIC SELECT writes($1); END;
CREATE FUNCTION atomic_draws() RETURNS bigint LANGUAGE sql STABLE
    BEGIN ATOMIC SELECT nextval('numbers'); END;
CREATE FUNCTION defaults(int DEFAULT nextval('numbers')) RETURNS int LANGUAGE sql STABLE
    AS 'SELECT $1';
CREATE SCHEMA other;
CREATE FUNCTION doubles_elsewhere(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1 * 2';
CREATE FUNCTION other.doubles_elsewhere(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2';
CREATE FUNCTION overloaded(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1';
CREATE FUNCTION overloaded(text) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
CREATE FUNCTION other.upper(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE AGGREGATE sums (int) (sfunc = int4pl, stype = int);
CREATE FUNCTION writes2(int, int) RETURNS int LANGUAGE sql AS 'SELECT writes($2)';
CREATE AGGREGATE writing_sums (int) (sfunc = writes2, stype = int);
CREATE FUNCTION first(int) RETURNS int LANGUAGE sql AS 'SELECT writes($1)';
CREATE PROCEDURE procedure_writes() LANGUAGE sql AS 'INSERT INTO public.log VALUES (now())';
CREATE PROCEDURE procedure_idles() LANGUAGE sql AS '';
CREATE FUNCTION item_key(items) RETURNS text LANGUAGE sql STABLE AS 'SELECT $1.name';
CREATE FUNCTION item_number(items) RETURNS bigint LANGUAGE sql AS 'SELECT nextval(''numbers'')';

CREATE VIEW plain AS SELECT * FROM items;
CREATE VIEW of_counts AS SELECT counts(id) FROM items;
CREATE VIEW of_writes AS SELECT writes(id) AS w FROM items;
CREATE VIEW of_view AS SELECT * FROM of_writes;
CREATE VIEW of_numbers AS SELECT nextval('numbers');
CREATE VIEW of_random AS SELECT random();
CREATE VIEW of_locks AS SELECT pg_try_advisory_lock(id) FROM items;
CREATE VIEW of_enters AS SELECT enters(name) FROM items;
CREATE VIEW of_activity AS SELECT pid FROM pg_stat_activity;
CREATE VIEW of_locked AS SELECT * FROM items FOR UPDATE;
CREATE VIEW of_sequence AS SELECT last_value AS a FROM numbers;
CREATE MATERIALIZED VIEW stored AS SELECT writes(id) FROM items;
CREATE UNLOGGED TABLE scratch (a int);
CREATE VIEW of_scratch AS SELECT * FROM scratch;
CREATE TABLE parts (a int) PARTITION BY RANGE (a);
CREATE UNLOGGED TABLE part PARTITION OF parts FOR VALUES FROM (1) TO (10);

CREATE TABLE parts_of_one (a int) PARTITION BY RANGE (a);
CREATE TABLE one PARTITION OF parts_of_one FOR VALUES FROM (1) TO (10);

CREATE TABLE guarded (a int);
INSERT INTO guarded VALUES (1);
CREATE POLICY seen ON guarded FOR SELECT USING (writes(a) > 0);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE VIEW guarded_read AS SELECT * FROM guarded;
ALTER VIEW guarded_read OWNER TO app;
GRANT SELECT ON guarded TO app;
CREATE TABLE tenants (a text);
CREATE POLICY own ON tenants USING (a = current_setting('app.tenant', true));
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;

CREATE FUNCTION likes(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT writes($1) > $2';
CREATE OPERATOR <%> (leftarg = int, rightarg = int, function = likes);
CREATE OPERATOR <%%> (leftarg = int, rightarg = int, function = int4lt);
CREATE FUNCTION is_email(text) RETURNS boolean LANGUAGE plpgsql
    AS $$ BEGIN RETURN $1 LIKE '%@%'; END $$;
CREATE DOMAIN email AS text CHECK (is_email(VALUE));
CREATE DOMAIN short AS text CHECK (length(VALUE) < 10);
CREATE TABLE people (address email);
CREATE TYPE held AS (address email);
CREATE TABLE lists (addresses email[], one held);
CREATE TYPE holder AS (inner_one held);
CREATE FUNCTION is_work(email) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT $1 LIKE ''%work%''';
CREATE TYPE point3 AS (x int, y int, z int);
CREATE FUNCTION to_point3(text) RETURNS point3 LANGUAGE sql AS 'SELECT ROW(1, 2, 3)::point3';
CREATE CAST (text AS point3) WITH FUNCTION to_point3(text);
CREATE TYPE odd AS (a int);
CREATE FUNCTION odd_equal(odd, odd) RETURNS boolean LANGUAGE sql AS 'SELECT writes(1) > 0';
CREATE OPERATOR = (leftarg = odd, rightarg = odd, function = odd_equal);
CREATE TABLE odds (a odd);
CREATE FUNCTION odd_of(int) RETURNS odd LANGUAGE sql STABLE AS 'SELECT ROW($1)::odd';
GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app;
GRANT USAGE ON SCHEMA other TO app;
INSERT INTO people VALUES ('a@b');
