-- What calls what in this database, and which of it may not run on a standby. `$name$` stands for
-- what is filled in. One row per fact: what kind it is, a schema, a name, and a remark.
--
-- Dependencies on built-in objects are not recorded in pg_depend, so these are looked for in the
-- trees that queries are kept as.
WITH RECURSIVE functions AS MATERIALIZED (
    SELECT p.oid, n.nspname, p.proname, n.nspname = 'pg_catalog' AS builtin,
        ($safe$) AS safe,
        CASE
        WHEN $unsafe$ THEN true
        WHEN n.nspname = 'pg_catalog' THEN (p.provolatile = 'v' OR p.proname ~ $prefixes$ OR
            p.proname = ANY ($known_unsafe$::text[])) AND p.proname <> ALL ($known_safe$::text[])
        -- What an aggregate is, its functions are.
        WHEN p.prokind = 'a' THEN false
        ELSE p.provolatile = 'v' OR $suspects$
            -- One of an extension's that runs text, say.
            OR l.lanname = 'c' AND p.proname = ANY ($known_unsafe$::text[])
            -- Declared to be stable, but with words that tell of what only this server knows, or of
            -- what a standby does for itself alone.
            OR l.lanname NOT IN ('c', 'internal') AND (p.prosrc ~* $telling$
                OR p.prosrc ~* $of_sequences$ AND EXISTS (SELECT FROM pg_class s
                    WHERE s.relkind = 'S' AND p.prosrc ~*
                        ('(?<!\w)' || regexp_replace(s.relname::text, '(\W)', '\\\1', 'g') || '(?!\w)')))
        END AS doubtful,
        -- What the names in its text stand for is settled only when it runs.
        n.nspname <> 'pg_catalog' AND p.prosqlbody IS NULL AND l.lanname NOT IN ('c', 'internal') AS late
    FROM pg_proc p
    JOIN pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_language l ON l.oid = p.prolang
    WHERE p.prokind <> 'p' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_temp_'
), told AS MATERIALIZED (
    SELECT ':(funcid|opfuncid|aggfnoid|winfnoid) (' ||
        coalesce(string_agg(oid::text, '|' ORDER BY oid), 'none') || ')[^0-9]' AS expression
    FROM functions WHERE builtin AND doubtful AND NOT safe
), policies AS MATERIALIZED (
    SELECT p.oid, p.polrelid, p.polqual::text AS tree
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
    WHERE c.relrowsecurity AND p.polcmd IN ('*', 'r')
), views AS MATERIALIZED (
    SELECT r.oid, r.ev_class, r.ev_action::text AS tree
    FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
    WHERE c.relkind = 'v' AND c.oid >= 16384
), trees (class, oid, tree) AS (
    SELECT 'pg_class'::regclass::oid, ev_class, tree FROM views
    UNION ALL SELECT 'pg_class'::regclass, polrelid, tree FROM policies
    UNION ALL SELECT 'pg_proc'::regclass, oid, prosqlbody::text FROM pg_proc
        WHERE oid >= 16384 AND prosqlbody IS NOT NULL
    UNION ALL SELECT 'pg_proc'::regclass, oid, proargdefaults::text FROM pg_proc
        WHERE oid >= 16384 AND proargdefaults IS NOT NULL
    UNION ALL SELECT 'pg_type'::regclass, contypid, conbin::text FROM pg_constraint
        WHERE contypid >= 16384 AND conbin IS NOT NULL
), seeds (class, oid) AS (
    SELECT 'pg_proc'::regclass::oid, oid FROM functions WHERE doubtful AND NOT safe
    UNION ALL SELECT t.class, t.oid FROM trees t, told
        WHERE t.tree ~ told.expression OR t.tree LIKE '%:hasForUpdate true%'
    -- Not on a standby, of another database, ahead on a standby, or of the server's own.
    UNION ALL SELECT 'pg_class'::regclass, c.oid
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'f', 'S', 'm', 'v') AND n.nspname !~ '^pg_(temp|toast)' AND
            (c.relpersistence = 'u' OR c.relkind IN ('f', 'S')
                OR c.relname ~ '^pg_' AND c.relname <> ALL ($replicated$::text[]))
), aggregates (oid, part) AS (
    SELECT a.aggfnoid::oid, part FROM pg_aggregate a, unnest(ARRAY[
        a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn,
        a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]) AS part
    WHERE a.aggfnoid::oid >= 16384 AND part <> 0
), edges (class, oid, refclass, refoid) AS MATERIALIZED (
    SELECT 'pg_class'::regclass::oid, v.ev_class, d.refclassid, d.refobjid
        FROM pg_depend d JOIN views v ON v.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass
    UNION SELECT 'pg_class'::regclass, p.polrelid, d.refclassid, d.refobjid
        FROM pg_depend d JOIN policies p ON p.oid = d.objid
        WHERE d.classid = 'pg_policy'::regclass
    UNION SELECT d.classid, d.objid, d.refclassid, d.refobjid
        FROM pg_depend d
        WHERE d.classid = 'pg_proc'::regclass AND d.objid >= 16384 AND d.refclassid IN
            ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_operator'::regclass)
    UNION SELECT 'pg_type'::regclass, c.contypid, d.refclassid, d.refobjid
        FROM pg_depend d JOIN pg_constraint c ON c.oid = d.objid
        WHERE d.classid = 'pg_constraint'::regclass AND c.contypid >= 16384
    UNION SELECT 'pg_type'::regclass, oid, 'pg_type'::regclass, typbasetype FROM pg_type
        WHERE typtype = 'd'
    UNION SELECT 'pg_operator'::regclass, oid, 'pg_proc'::regclass, oprcode FROM pg_operator
        WHERE oid >= 16384
    UNION SELECT 'pg_cast'::regclass, oid, 'pg_proc'::regclass, castfunc FROM pg_cast
        WHERE oid >= 16384
    UNION SELECT 'pg_proc'::regclass, oid, 'pg_proc'::regclass, part FROM aggregates
    UNION SELECT 'pg_class'::regclass, inhparent, 'pg_class'::regclass, inhrelid FROM pg_inherits
), unsafe (class, oid) AS (
    SELECT class, oid FROM seeds
    UNION
    SELECT e.class, e.oid
    FROM unsafe u JOIN edges e ON e.refclass = u.class AND e.refoid = u.oid
    WHERE NOT (e.class = 'pg_proc'::regclass AND e.oid IN (SELECT oid FROM functions WHERE safe))
), late (class, oid) AS (
    SELECT 'pg_proc'::regclass::oid, oid FROM functions WHERE late
    UNION
    SELECT e.class, e.oid FROM late l JOIN edges e ON e.refclass = l.class AND e.refoid = l.oid
), of_functions AS MATERIALIZED (
    SELECT oid FROM unsafe WHERE class = 'pg_proc'::regclass
), of_relations AS MATERIALIZED (
    SELECT oid FROM unsafe WHERE class = 'pg_class'::regclass
), containers (oid, part) AS MATERIALIZED (
    SELECT oid, typelem FROM pg_type WHERE typelem >= 16384
    UNION ALL SELECT oid, typbasetype FROM pg_type WHERE typbasetype >= 16384
    UNION ALL SELECT rngtypid, rngsubtype FROM pg_range WHERE rngsubtype >= 16384
    UNION ALL SELECT c.reltype, a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE a.atttypid >= 16384 AND a.attnum > 0 AND c.reltype <> 0
), checked (oid) AS (
    -- Types whose values are checked as they are made, and those that are made to hold such values.
    SELECT oid FROM unsafe WHERE class = 'pg_type'::regclass
    UNION SELECT x.oid FROM checked t JOIN containers x ON x.part = t.oid
), of_types AS (
    SELECT oid FROM checked
    UNION SELECT c.casttarget FROM unsafe u JOIN pg_cast c ON c.oid = u.oid
        WHERE u.class = 'pg_cast'::regclass
    UNION SELECT d.oid FROM unsafe u JOIN pg_cast c ON c.oid = u.oid
        JOIN pg_type d ON d.typbasetype = c.casttarget
        WHERE u.class = 'pg_cast'::regclass
), of_operators AS MATERIALIZED (
    SELECT o.oid, o.oprname, o.oprleft, o.oprright, f.proname
    FROM unsafe u JOIN pg_operator o ON o.oid = u.oid JOIN pg_proc f ON f.oid = o.oprcode
    WHERE u.class = 'pg_operator'::regclass
), implied AS MATERIALIZED (
    SELECT oid, oprleft, oprright FROM pg_operator
    WHERE oprname IN ('=', '<>', '<', '>', '<=', '>=', '~~', '!~~', '~~*', '!~~*', '~', '!~')
), targets AS MATERIALIZED (
    SELECT c.casttarget AS oid FROM unsafe u JOIN pg_cast c ON c.oid = u.oid
    WHERE u.class = 'pg_cast'::regclass AND c.castcontext = 'i' AND c.casttarget >= 16384
), unseen (proname, by, one, other) AS MATERIALIZED (
    -- What words stand for, or nothing at all, with the types of its operands.
    SELECT proname::text, 'operator ' || oprname, oprleft, oprright FROM of_operators
    WHERE oid IN (SELECT oid FROM implied) OR oid IN (SELECT amopopr FROM pg_amop a JOIN pg_am m ON m.oid = a.amopmethod
            WHERE m.amname IN ('btree', 'hash'))
    UNION ALL SELECT p.proname::text, 'support of an operator class', a.amproclefttype,
            a.amprocrighttype
        FROM of_functions u JOIN pg_proc p ON p.oid = u.oid JOIN pg_amproc a ON a.amproc = p.oid
        JOIN pg_opfamily f ON f.oid = a.amprocfamily JOIN pg_am m ON m.oid = f.opfmethod
        WHERE p.oid >= 16384 AND m.amname IN ('btree', 'hash')
    -- One that is not implicit names its target, unless that has more than one name. One from a type
    -- that is built in is for functions and operators that take its target.
    UNION ALL SELECT p.proname::text,
            'cast from ' || c.castsource::regtype || ' to ' || c.casttarget::regtype,
            c.castsource, CASE WHEN c.castsource >= 16384 THEN c.castsource
                WHEN EXISTS (SELECT FROM implied o WHERE c.casttarget IN (o.oprleft, o.oprright))
                THEN 0 ELSE c.casttarget END
        FROM unsafe u JOIN pg_cast c ON c.oid = u.oid JOIN pg_proc p ON p.oid = c.castfunc
        WHERE u.class = 'pg_cast'::regclass AND (c.castcontext = 'i' OR c.casttarget < 16384)
), tainted (oid) AS (
    -- Types of the database's own whose values are compared or converted so. Whoever has one has it
    -- from a relation or a function, or names the type.
    SELECT greatest(one, other) FROM unseen WHERE greatest(one, other) >= 16384
    UNION SELECT x.oid FROM tainted t JOIN containers x ON x.part = t.oid
)
SELECT 'function', f.nspname::text, f.proname::text,
    CASE WHEN bool_or(u.oid IS NOT NULL) THEN 'unsafe' ELSE 'safe' END
    FROM functions f LEFT JOIN of_functions u ON u.oid = f.oid
    WHERE NOT f.builtin OR u.oid IS NOT NULL
    GROUP BY f.nspname, f.proname
-- These fill the rows of a table with values of its columns' types, or try what a type's name is told of.
UNION ALL SELECT 'function', 'pg_catalog', name, 'unsafe'
    FROM unnest(ARRAY['json_populate_record', 'json_populate_recordset',
        'jsonb_populate_record', 'jsonb_populate_record_valid', 'jsonb_populate_recordset',
        'pg_input_is_valid', 'pg_input_error_info']) AS name
    WHERE EXISTS (SELECT FROM unsafe WHERE class = 'pg_type'::regclass)
-- `a.f` is `f(a)` where a has no column f, whatever a is.
UNION ALL SELECT DISTINCT 'field', NULL, p.proname::text, NULL
    FROM of_functions u JOIN pg_proc p ON p.oid = u.oid
    WHERE p.pronargs > 0 AND p.pronargs - p.pronargdefaults <= 1
-- Relations with columns of such types among them: a literal beside one, in an array, a row or a call of a polymorphic
-- function, is made one without a word.
UNION ALL SELECT DISTINCT 'type', NULL, t.typname::text, NULL
    FROM of_types u JOIN pg_type t ON t.oid = u.oid
    WHERE t.oid >= 16384
UNION ALL SELECT 'relation', n.nspname::text, c.relname::text, NULL
    FROM of_relations u JOIN pg_class c ON c.oid = u.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid >= 16384
-- Those that compare values of a type that is tainted need not be looked for by their names.
UNION ALL SELECT DISTINCT 'operator', NULL, oprname::text, NULL FROM of_operators
    WHERE greatest(oprleft, oprright) < 16384 OR oid NOT IN (SELECT oid FROM implied)
UNION ALL SELECT DISTINCT 'operator', NULL, o.oprname::text, NULL
    FROM targets JOIN pg_operator o ON targets.oid IN (o.oprleft, o.oprright)
    WHERE o.oid NOT IN (SELECT oid FROM implied)
UNION ALL SELECT DISTINCT 'type', NULL, t.typname::text, NULL
    FROM tainted JOIN pg_type t ON t.oid = tainted.oid
UNION ALL SELECT 'relation', n.nspname::text, c.relname::text, NULL
    FROM tainted JOIN pg_class c ON c.reltype = tainted.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind <> 'c'
UNION ALL SELECT 'function', n.nspname::text, p.proname::text, 'unsafe'
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE p.oid >= 16384 AND (p.prorettype IN (SELECT oid FROM tainted)
        OR p.proallargtypes && (SELECT array_agg(oid) FROM tainted)
        OR p.proargtypes::oid[] && (SELECT array_agg(oid) FROM targets))
-- A literal becomes a value of the type that is taken.
UNION ALL SELECT 'function', n.nspname::text, p.proname::text, 'unsafe'
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE p.oid >= 16384 AND (p.prorettype IN (SELECT oid FROM checked)
        OR p.proargtypes::oid[] && (SELECT array_agg(oid) FROM checked))
UNION ALL SELECT 'late_relation', n.nspname::text, c.relname::text, NULL
    FROM late l JOIN pg_class c ON c.oid = l.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE l.class = 'pg_class'::regclass
UNION ALL SELECT DISTINCT 'late_field', NULL, p.proname::text, NULL
    FROM late l JOIN pg_proc p ON p.oid = l.oid
    WHERE l.class = 'pg_proc'::regclass AND p.pronargs > 0 AND p.pronargs - p.pronargdefaults <= 1
UNION ALL SELECT 'everywhere', NULL, proname, by FROM unseen WHERE greatest(one, other) < 16384
LIMIT $rows_max$
