-- Which names of this database change the session of whoever uses them, and which ask for what it has
-- drawn from sequences ('reading '). One row per name: what kind it is, the name, and what tells of the
-- settings that it changes. It may be asked under any settings, so every name says its schema, and
-- escapes are those of E strings.
--
-- A function is suspicious by its text, or by naming what is. Of anything that is kept as a tree the
-- server has noted what it uses, but for what is built in, which is looked for in the trees. What a
-- function in C does that comes from no extension, nobody knows, nor what one in another language sets:
-- it is told as `set_config(x)`, the worst that there is.
WITH RECURSIVE built_in AS MATERIALIZED (
    SELECT p.oid, p.prosrc, p.proname = 'set_config' AS sets_any,
        p.proname IN ('currval', 'lastval') AS reads
    FROM pg_catalog.pg_proc p
    WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
        AND p.proname ~ '^(set_config|setseed|pg_(try_)?advisory_(un)?lock|(curr|last)val$)'
), told AS MATERIALIZED (
    SELECT ':(funcid|opfuncid|aggfnoid|winfnoid) (' ||
            pg_catalog.string_agg(oid::pg_catalog.text, '|') FILTER (WHERE NOT reads) || ')[^0-9]'
            AS any_of_them,
        ':(funcid|opfuncid|aggfnoid|winfnoid) (' ||
            pg_catalog.string_agg(oid::pg_catalog.text, '|') FILTER (WHERE reads) || ')[^0-9]'
            AS reading,
        ':(funcid|opfuncid|aggfnoid|winfnoid) (' ||
            pg_catalog.string_agg(oid::pg_catalog.text, '|') FILTER (WHERE sets_any) || ')[^0-9]'
            AS set_config,
        -- What a name may begin or end at, and as many spaces.
        E' !"#$%&''()*+,-./:;<=>?@[\\]^`{|}~\t\n\r\f\x0b' AS marks,
        pg_catalog.repeat(' ', 40) AS spaces
    FROM built_in
), bodies AS MATERIALIZED (
    SELECT p.oid, p.proname, CASE
        WHEN p.prokind = 'a' OR p.prosqlbody IS NOT NULL THEN ''
        WHEN l.lanname = 'internal' THEN coalesce((SELECT
            CASE WHEN b.reads THEN 'lastval()' ELSE 'set_config(x)' END
            FROM built_in b WHERE b.prosrc = p.prosrc LIMIT 1), '')
        WHEN l.lanname = 'c' THEN 'set_config(x)'
        WHEN l.lanname IN ('sql', 'plpgsql') THEN source
        -- Where its strings begin, and what is put together of them, nobody knows.
        -- What is no SET of the session: the columns of an UPDATE, a variable, a word at the end of a comment's line.
        WHEN source ~ E'set_config|\\yset\\s+(session\\s+)?(?!\\s|local\\y|[\\w$]+[\\s=]|"[\\w$]+"\\s*=|[(=]|#[^{]|--|//)'
            THEN 'set_config(x);' || source
        WHEN source ~ E'\\y(set|reset)\\s|\\yspi|\\.cursor\\y' THEN 'reset ;' || source
        ELSE source END AS body
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang,
        LATERAL pg_catalog.lower(p.prosrc) AS source
    WHERE p.pronamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace,
            'information_schema'::pg_catalog.regnamespace)
        AND NOT (l.lanname = 'c' AND EXISTS (SELECT FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid
                AND d.deptype = 'e'))
), trees (class, oid, tree) AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, ev_class,
            ev_action::pg_catalog.text || ev_qual::pg_catalog.text
        FROM pg_catalog.pg_rewrite WHERE ev_class >= 16384
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, polrelid,
            pg_catalog.concat(polqual::pg_catalog.text, polwithcheck::pg_catalog.text)
        FROM pg_catalog.pg_policy
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, adrelid, adbin::pg_catalog.text
        FROM pg_catalog.pg_attrdef
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, tgrelid, tgqual::pg_catalog.text
        FROM pg_catalog.pg_trigger WHERE tgqual IS NOT NULL
    UNION ALL SELECT CASE contypid WHEN 0 THEN 'pg_catalog.pg_class'::pg_catalog.regclass
            ELSE 'pg_catalog.pg_type'::pg_catalog.regclass END,
            CASE contypid WHEN 0 THEN conrelid ELSE contypid END, conbin::pg_catalog.text
        FROM pg_catalog.pg_constraint WHERE conbin IS NOT NULL AND oid >= 16384
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, oid, typdefaultbin::pg_catalog.text
        FROM pg_catalog.pg_type WHERE typdefaultbin IS NOT NULL
    UNION ALL SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, oid,
            pg_catalog.concat(prosqlbody::pg_catalog.text, proargdefaults::pg_catalog.text)
        FROM pg_catalog.pg_proc
        WHERE oid >= 16384 AND (prosqlbody IS NOT NULL OR proargdefaults IS NOT NULL)
), seeds (class, oid, by_text, sets_any, reads) AS (
    SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid, oid, true,
            body ~ E'set_config"?\\s*\\((?!\\s*''+[^'']*''+\\s*(::\\s*\\w+\\s*)?,)'
            OR body ~ E'u&"|(;|(?<!\\|\\|\\s*(\\$\\w*)?)[''$])\\s*set\\s+(session\\s+)?(?!\\s|local\\y|[\\w$]+[\\s'']|["\\w$.]+\\s*(=|to\\y))',
            false
        FROM bodies WHERE body ~
            E'(^|[;''$]|\\*/|\\y(begin|then|else|loop)\\y)(\\s|--[^\\n]*\\n)*(set|reset)\\s' OR body ~
            E'set_config|advisory_(un)?lock|_shared|\\y(gd|sd)\\y' OR body ~
            E'\\yupdate\\y[^;]*\\ypg_settings\\y' OR body ~
            -- More than the one constant that is seen here.
            E'\\yexecute\\y(?!\\s*''([^'']|'''')*''\\s*(;|\\y(into|using|loop)\\y))' OR body ~
            E'\\y(temp|temporary|pg_temp|listen|unlisten|load|prepare|deallocate|discard|set_limit)\\y'
    UNION ALL SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, oid, true, false, true
        FROM bodies WHERE body ~ E'\\y(curr|last)val\\y'
    UNION ALL SELECT t.class, t.oid, false, t.tree ~ told.set_config, false
        FROM trees t, told WHERE t.tree ~ told.any_of_them
    UNION ALL SELECT t.class, t.oid, false, false, true
        FROM trees t, told WHERE t.tree ~ told.reading
    UNION ALL SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, o.oid, false, b.sets_any, b.reads
        FROM pg_catalog.pg_operator o JOIN built_in b ON b.oid = o.oprcode
    UNION ALL SELECT 'pg_catalog.pg_cast'::pg_catalog.regclass, c.oid, false, b.sets_any, b.reads
        FROM pg_catalog.pg_cast c JOIN built_in b ON b.oid = c.castfunc
    UNION ALL SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, a.aggfnoid, false, b.sets_any, b.reads
        FROM pg_catalog.pg_aggregate a JOIN built_in b ON b.oid IN (a.aggtransfn, a.aggfinalfn,
            a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn)
), names (class, oid, name) AS (
    SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid, oid, proname FROM pg_catalog.pg_proc
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, oid, relname FROM pg_catalog.pg_class
        WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, oid, typname FROM pg_catalog.pg_type
        WHERE typrelid = 0 AND typelem = 0
), words AS (
    SELECT oid, pg_catalog.string_to_table(pg_catalog.translate(body, marks, spaces), ' ') AS word
    FROM bodies, told WHERE body <> ''
), edges (class, oid, refclass, refoid) AS MATERIALIZED (
    SELECT classid, objid, refclassid, refobjid FROM pg_catalog.pg_depend
        WHERE refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass,
            'pg_catalog.pg_operator'::pg_catalog.regclass,
            'pg_catalog.pg_type'::pg_catalog.regclass) AND classid IN ('pg_catalog.pg_proc'::pg_catalog.regclass,
            'pg_catalog.pg_operator'::pg_catalog.regclass,
            'pg_catalog.pg_type'::pg_catalog.regclass,
            'pg_catalog.pg_class'::pg_catalog.regclass,
            'pg_catalog.pg_rewrite'::pg_catalog.regclass,
            'pg_catalog.pg_policy'::pg_catalog.regclass,
            'pg_catalog.pg_constraint'::pg_catalog.regclass,
            'pg_catalog.pg_attrdef'::pg_catalog.regclass,
            'pg_catalog.pg_trigger'::pg_catalog.regclass,
            'pg_catalog.pg_event_trigger'::pg_catalog.regclass,
            'pg_catalog.pg_amproc'::pg_catalog.regclass)
            -- Parts of a table depend on it, but do not use it.
            OR refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND classid IN ('pg_catalog.pg_proc'::pg_catalog.regclass,
            'pg_catalog.pg_type'::pg_catalog.regclass,
            'pg_catalog.pg_rewrite'::pg_catalog.regclass,
            'pg_catalog.pg_policy'::pg_catalog.regclass)
            -- A cast does not use its types.
            OR refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND classid = 'pg_catalog.pg_cast'::pg_catalog.regclass
    -- What a part does, the whole does.
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, ev_class, 'pg_catalog.pg_rewrite'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_rewrite
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, polrelid, 'pg_catalog.pg_policy'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_policy
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, adrelid, 'pg_catalog.pg_attrdef'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_attrdef
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, tgrelid, 'pg_catalog.pg_trigger'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_trigger
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, conrelid, 'pg_catalog.pg_constraint'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_constraint
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, contypid, 'pg_catalog.pg_constraint'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_constraint
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, indrelid, 'pg_catalog.pg_class'::pg_catalog.regclass, indexrelid
        FROM pg_catalog.pg_index
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, inhparent, 'pg_catalog.pg_class'::pg_catalog.regclass, inhrelid
        FROM pg_catalog.pg_inherits
    UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, confrelid, 'pg_catalog.pg_class'::pg_catalog.regclass, conrelid
        FROM pg_catalog.pg_constraint WHERE contype = 'f'
            AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
    -- Values are compared and converted without a word.
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, type, 'pg_catalog.pg_operator'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_operator, LATERAL (VALUES (oprleft), (oprright)) AS v (type)
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, type, 'pg_catalog.pg_amproc'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_amproc, LATERAL (VALUES (amproclefttype), (amprocrighttype)) AS v (type)
    UNION ALL SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, type, 'pg_catalog.pg_cast'::pg_catalog.regclass, oid
        FROM pg_catalog.pg_cast, LATERAL (VALUES (castsource), (casttarget)) AS v (type)
    -- A text may use whatever it names. Of a name that is more than a word the first one has to do.
    UNION ALL SELECT DISTINCT 'pg_catalog.pg_proc'::pg_catalog.regclass, w.oid, n.class, n.oid
        FROM told CROSS JOIN names n JOIN words w ON w.word = pg_catalog.split_part(pg_catalog.ltrim(
            pg_catalog.translate(pg_catalog.lower(n.name::pg_catalog.text), marks, spaces)), ' ', 1)
        WHERE n.oid >= 16384
), suspicious (class, oid, by_text, sets_any, reads) AS (
    SELECT class, oid, by_text, sets_any, reads FROM seeds
    UNION
    SELECT e.class, e.oid, false, s.sets_any, s.reads
    FROM suspicious s JOIN edges e ON e.refclass = s.class AND e.refoid = s.oid
    WHERE e.oid >= 16384
), found AS MATERIALIZED (
    SELECT class, oid, CASE WHEN reads THEN 'reading ' ELSE '' END AS reading,
        CASE WHEN pg_catalog.bool_or(sets_any AND NOT by_text) THEN 'set_config(x);' END AS sets
    FROM suspicious GROUP BY class, oid, reads
)
SELECT reading || 'effect', b.proname::pg_catalog.text,
        CASE reading WHEN '' THEN pg_catalog.concat(f.sets, pg_catalog.left(b.body, 100000)) END
    FROM found f JOIN bodies b ON b.oid = f.oid
    WHERE f.class = 'pg_catalog.pg_proc'::pg_catalog.regclass
UNION ALL SELECT reading || 'effect', c.relname::pg_catalog.text, f.sets
    FROM found f JOIN pg_catalog.pg_class c ON c.oid = f.oid
    WHERE f.class = 'pg_catalog.pg_class'::pg_catalog.regclass
UNION ALL SELECT reading || 'effect', t.typname::pg_catalog.text, f.sets
    FROM found f JOIN pg_catalog.pg_type t ON t.oid = f.oid
    WHERE f.class = 'pg_catalog.pg_type'::pg_catalog.regclass
UNION ALL SELECT reading || 'operator', o.oprname::pg_catalog.text, f.sets
    FROM found f JOIN pg_catalog.pg_operator o ON o.oid = f.oid
    WHERE f.class = 'pg_catalog.pg_operator'::pg_catalog.regclass
-- Words stand for these operators too. A cast to what is built in has many names, or none.
UNION ALL SELECT reading || 'everywhere', o.oprname::pg_catalog.text, f.sets
    FROM found f JOIN pg_catalog.pg_operator o ON o.oid = f.oid
    WHERE f.class = 'pg_catalog.pg_operator'::pg_catalog.regclass AND o.oprleft < 16384
        AND o.oprright < 16384 AND o.oprname IN ('=', '<>', '<', '>', '<=', '>=', '~~', '!~~', '~~*', '!~~*', '~', '!~')
UNION ALL SELECT reading || 'everywhere', c.casttarget::pg_catalog.regtype::pg_catalog.text, f.sets
    FROM found f JOIN pg_catalog.pg_cast c ON c.oid = f.oid
    WHERE f.class = 'pg_catalog.pg_cast'::pg_catalog.regclass
        AND (c.castcontext <> 'e' OR c.casttarget < 16384)
UNION ALL SELECT reading || 'definition', e.evtname::pg_catalog.text, f.sets
    FROM found f JOIN pg_catalog.pg_event_trigger e ON e.oid = f.oid
    WHERE f.class = 'pg_catalog.pg_event_trigger'::pg_catalog.regclass
