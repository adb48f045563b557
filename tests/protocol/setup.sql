-- What all scripts find in the database "app". They read these tables and cannot drop them;
-- what a script changes is its own, made by its @setup or by itself.
CREATE ROLE other LOGIN PASSWORD 'other';
CREATE ROLE defaults LOGIN PASSWORD 'defaults';
CREATE ROLE nothing;
GRANT other TO app;
ALTER ROLE defaults SET work_mem = '5MB';
ALTER ROLE defaults SET TimeZone = 'Asia/Tokyo';
ALTER ROLE defaults SET application_name = 'by role';
CREATE DATABASE defaults OWNER app;
ALTER DATABASE defaults SET DateStyle = 'German, DMY';
ALTER DATABASE defaults SET work_mem = '6MB';
ALTER ROLE defaults IN DATABASE defaults SET work_mem = '7MB';
GRANT CREATE ON SCHEMA public TO app;
CREATE TABLE items (id int PRIMARY KEY, v text);
INSERT INTO items VALUES (1, 'one'), (2, 'two'), (3, 'three');
GRANT ALL ON items TO app;
GRANT SELECT ON items TO other;
GRANT SELECT ON items TO defaults;
CREATE TABLE of_app (a int);
INSERT INTO of_app VALUES (1);
ALTER TABLE of_app OWNER TO app;
CREATE SCHEMA elsewhere AUTHORIZATION app;
CREATE TABLE elsewhere.items (id int PRIMARY KEY, v text);
INSERT INTO elsewhere.items VALUES (1, 'eins');
GRANT ALL ON elsewhere.items TO app;
CREATE TABLE typed (b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, t text, c char(4),
    y bytea, d date, ts timestamp, tz timestamptz, iv interval, j json, jb jsonb, u uuid, a int4[], p point,
    r int4range, m money, ip inet, bits varbit);
INSERT INTO typed VALUES (true, 1, 2, 3, 1.5, 2.5, 123.4500, 'text', 'ab', '\x00ff', '2020-02-29',
    '2020-02-29 12:34:56.789', '2020-02-29 12:34:56.789+00', '1 year 2 mons 3 days 04:05:06',
    '{"a": [1, 2]}', '{"a": [1, 2]}', '00112233-4455-6677-8899-aabbccddeeff', '{1,NULL,3}', '(1,2)',
    '[1,5)', '12.34', '10.1.2.3/8', B'10101');
INSERT INTO typed DEFAULT VALUES;
GRANT ALL ON typed TO app;
CREATE SEQUENCE counter;
ALTER SEQUENCE counter OWNER TO app;
-- Where contrib is not installed, clients see the same errors on both sides.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') THEN
        CREATE EXTENSION pg_trgm;
        CREATE EXTENSION dblink;
    END IF;
END $$;
