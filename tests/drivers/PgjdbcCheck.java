// pgjdbc: prints what it sees of the server that PGHOST and PGPORT name.
//
// Owns: the steps. Never: decides whether they are right; the transcript of a direct connection does.

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStream;
import java.io.PrintStream;
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.Array;
import java.sql.BatchUpdateException;
import java.sql.CallableStatement;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.atomic.AtomicBoolean;
import javax.transaction.xa.XAException;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyIn;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;
import org.postgresql.xa.PGXADataSource;

public class PgjdbcCheck {
    static final int LONG = 300;
    static final int MEGABYTES_5 = 5 * 1024 * 1024;
    static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

    interface Section {
        void run(String name) throws Exception;
    }

    interface Use<T> {
        T with(Connection conn) throws Exception;
    }

    // The transcript: one line per step, as transcript.py writes them, at once.

    static void record(String step, Object value) {
        var text = new StringBuilder();
        json(value, text);
        OUT.println(step + "\t" + text);
    }

    static void json(Object value, StringBuilder out) {
        if (value == null || value instanceof Boolean || value instanceof Integer || value instanceof Long) {
            out.append(value);
        } else if (value instanceof byte[]) {
            var data = (byte[]) value;
            quote(data.length <= LONG ? "\\x" + hex(data) : data.length + " bytes, sha256 " + digest(data), out);
        } else if (value instanceof int[]) {
            json(Arrays.toString((int[]) value), out);
        } else if (value instanceof Object[]) {
            json(Arrays.asList((Object[]) value), out);
        } else if (value instanceof List) {
            var items = new StringBuilder();
            for (var item : (List<?>) value) {
                items.append(items.length() == 0 ? "" : ", ");
                json(item, items);
            }
            var text = items.toString();
            var size = ((List<?>) value).size();
            if (size > LONG) {
                quote(size + " items, sha256 " + digest(text.getBytes(StandardCharsets.UTF_8)), out);
            } else {
                out.append('[').append(text).append(']');
            }
        } else if (value instanceof Map) {
            out.append('{');
            var comma = "";
            for (var entry : ((Map<?, ?>) value).entrySet()) {
                out.append(comma);
                quote(entry.getKey().toString(), out);
                out.append(": ");
                json(entry.getValue(), out);
                comma = ", ";
            }
            out.append('}');
        } else {
            var text = value instanceof String ? (String) value : value.getClass().getSimpleName() + " " + value;
            quote(text.length() <= LONG ? text : text.length() + " characters, sha256 " + digest(text.getBytes(StandardCharsets.UTF_8)), out);
        }
    }

    static void quote(String text, StringBuilder out) {
        out.append('"');
        for (var c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < 32 || c > 126) {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }

    static String hex(byte[] data) {
        var text = new StringBuilder();
        for (var b : data) {
            text.append(String.format("%02x", b));
        }
        return text.toString();
    }

    static String digest(byte[] data) {
        try {
            return hex(MessageDigest.getInstance("SHA-256").digest(data));
        } catch (java.security.NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    static List<Object> list(Object... items) {
        return new ArrayList<>(Arrays.asList(items));
    }

    // Connections, and what calls return.

    static Connection connect(String... options) throws SQLException {
        var properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("loginTimeout", "30");
        properties.setProperty("ApplicationName", "check");
        var database = System.getenv("PGDATABASE");
        for (var i = 0; i < options.length; i += 2) {
            if (options[i].equals("database")) {
                database = options[i + 1];
            } else {
                properties.setProperty(options[i], options[i + 1]);
            }
        }
        var url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + database;
        return DriverManager.getConnection(url, properties);
    }

    static <T> T connected(Use<T> use, String... options) throws Exception {
        try (var conn = connect(options)) {
            return use.with(conn);
        }
    }

    /** What a call returns, or the server's error, in full. */
    static Object outcome(Callable<Object> call) throws Exception {
        try {
            return call.call();
        } catch (SQLException error) {
            return said(error);
        }
    }

    static Object said(SQLException error) {
        var said = new LinkedHashMap<String, Object>();
        said.put("class", error.getClass().getSimpleName());
        said.put("state", error.getSQLState());
        var server = error instanceof PSQLException ? ((PSQLException) error).getServerErrorMessage() : null;
        if (server == null) {
            said.put("message", error.getMessage());
        } else {
            said.putAll(fields(server));
        }
        if (error instanceof BatchUpdateException) {
            said.put("counts", ((BatchUpdateException) error).getUpdateCounts());
        }
        if (error.getNextException() != null) {
            said.put("next", said(error.getNextException()));
        }
        return said;
    }

    static Map<String, Object> fields(ServerErrorMessage server) {
        var all = new Object[] {
            "severity", server.getSeverity(), "state", server.getSQLState(), "message", server.getMessage(),
            "detail", server.getDetail(), "hint", server.getHint(), "position", server.getPosition(),
            "where", server.getWhere(), "schema", server.getSchema(), "table", server.getTable(),
            "column", server.getColumn(), "type", server.getDatatype(), "constraint", server.getConstraint(),
            "file", server.getFile(), "line", server.getLine(), "routine", server.getRoutine(),
        };
        var said = new LinkedHashMap<String, Object>();
        for (var i = 0; i < all.length; i += 2) {
            if (all[i + 1] != null) {
                said.put((String) all[i], all[i + 1]);
            }
        }
        return said;
    }

    static Object plain(Object value) throws SQLException {
        return value instanceof Array ? plain(((Array) value).getArray()) : value;
    }

    static List<Object> rows(ResultSet result) throws SQLException {
        var rows = new ArrayList<Object>();
        var columns = result.getMetaData().getColumnCount();
        while (result.next()) {
            var row = new ArrayList<Object>();
            for (var i = 1; i <= columns; i++) {
                row.add(plain(result.getObject(i)));
            }
            rows.add(row);
        }
        return rows;
    }

    /** Every result of a text: rows with their columns, or a count. */
    static Object answer(Statement statement, boolean isRows) throws SQLException {
        var answers = new ArrayList<Object>();
        while (true) {
            if (isRows) {
                try (var result = statement.getResultSet()) {
                    answers.add(list(columns(result.getMetaData()), rows(result)));
                }
            } else if (statement.getUpdateCount() == -1) {
                return answers;
            } else {
                answers.add(statement.getUpdateCount());
            }
            isRows = statement.getMoreResults();
        }
    }

    static Object columns(ResultSetMetaData columns) throws SQLException {
        var named = new ArrayList<Object>();
        for (var i = 1; i <= columns.getColumnCount(); i++) {
            named.add(list(columns.getColumnLabel(i), columns.getColumnTypeName(i)));
        }
        return named;
    }

    static Object run(Connection conn, String sql, Object... values) throws Exception {
        if (values.length == 0) {
            try (var statement = conn.createStatement()) {
                return answer(statement, statement.execute(sql));
            }
        }
        try (var statement = conn.prepareStatement(sql)) {
            for (var i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            return answer(statement, statement.execute());
        }
    }

    static Object attempt(Connection conn, String sql, Object... values) throws Exception {
        return outcome(() -> run(conn, sql, values));
    }

    static Object one(Connection conn, String sql, Object... values) throws Exception {
        try (var statement = conn.prepareStatement(sql)) {
            for (var i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            try (var result = statement.executeQuery()) {
                result.next();
                return plain(result.getObject(1));
            }
        }
    }

    // The sections.

    static void connecting(String section) throws Exception {
        connected(conn -> {
            var meta = conn.getMetaData();
            record(section + "/product", list(meta.getDatabaseProductVersion(), meta.getDatabaseMajorVersion(), meta.getUserName()));
            record(section + "/state", list(conn.getAutoCommit(), conn.isReadOnly(), conn.getTransactionIsolation(), conn.getSchema(), conn.getCatalog()));
            var reported = conn.unwrap(PGConnection.class).getParameterStatuses();
            for (var name : new String[] {"server_encoding", "client_encoding", "DateStyle", "is_superuser", "integer_datetimes", "application_name"}) {
                record(section + "/" + name, reported.get(name));
            }
            record(section + "/valid", conn.isValid(30));
            return null;
        });
        connected(conn -> {
            record(section + "/options", list(one(conn, "SHOW search_path"), one(conn, "SHOW work_mem"), one(conn, "SHOW application_name"), conn.getSchema()));
            return null;
        }, "options", "-c work_mem=5MB", "currentSchema", "tide,public", "ApplicationName", "named");
        for (var mode : new String[] {"primary", "any"}) {
            var seen = outcome(() -> connected(conn -> one(conn, "SELECT 1"), "targetServerType", mode));
            record(section + "/for " + mode, seen);
        }
        record(section + "/wrong password", refused("password", "wrong"));
        record(section + "/unknown database", refused("database", "nowhere"));
        record(section + "/bad setting", refused("options", "-c work_mem=lots"));
    }

    /** Why a connection is refused; where in its source the server says so is its own affair. */
    static Object refused(String... options) {
        try (var conn = connect(options)) {
            return "connected";
        } catch (SQLException error) {
            return list(error.getSQLState(), error.getMessage());
        }
    }

    static void types(String section) throws Exception {
        var values = new Object[][] {
            {"int2", (short) -32768}, {"int4", 2147483647}, {"int8", Long.MIN_VALUE}, {"float8", 0.1}, {"float8", Double.POSITIVE_INFINITY},
            {"bool", true}, {"text", "snow \u2603, quote ', back\\slash, new\nline, ? and $1"}, {"text", ""},
            {"bytea", new byte[] {0, 1, 92, -1}}, {"numeric", new BigDecimal("12345678901234567890.0123456789")},
            {"timestamptz", OffsetDateTime.of(2024, 2, 29, 12, 30, 15, 123456000, ZoneOffset.UTC)}, {"date", LocalDate.of(2000, 1, 1)},
            {"uuid", new UUID(1, 2)}, {"int4[]", new Integer[] {1, null, 3}}, {"text[]", new String[] {"a\"b", "c,d", null, ""}},
        };
        for (var threshold : new String[] {"0", "1", "-1"}) {
            connected(conn -> {
                for (var value : values) {
                    try (var statement = conn.prepareStatement("SELECT ?::" + value[0] + " AS v, ?::text IS NULL")) {
                        var seen = new ArrayList<Object>();
                        // Text at first, binary once the statement is prepared on the server.
                        for (var i = 0; i < 3; i++) {
                            if (value[1] instanceof Object[]) {
                                var kind = ((String) value[0]).replace("[]", "");
                                statement.setArray(1, conn.createArrayOf(kind, (Object[]) value[1]));
                            } else {
                                statement.setObject(1, value[1]);
                            }
                            statement.setNull(2, Types.VARCHAR);
                            seen.add(rows(statement.executeQuery()));
                        }
                        record(section + "/threshold " + threshold + ": " + value[0], seen);
                    }
                }
                var text = "tide ".repeat(MEGABYTES_5 / 5);
                var data = new byte[MEGABYTES_5];
                Arrays.fill(data, (byte) 7);
                record(section + "/threshold " + threshold + ": large", attempt(conn, "SELECT ?::text, ?::bytea", text, data));
                return null;
            }, "prepareThreshold", threshold, "binaryTransfer", threshold.equals("0") ? "false" : "true");
        }
        connected(conn -> {
            record(section + "/rows", attempt(conn, "SELECT i, md5(i::text) FROM generate_series(1, 50000) AS i"));
            record(section + "/several", attempt(conn, "SELECT 1; SELECT 2; CREATE TEMP TABLE t (n int); INSERT INTO t VALUES (1), (2)"));
            record(section + "/nothing", attempt(conn, ""));
            run(conn, "CREATE FUNCTION sum_of(a int, INOUT b int, OUT c int) LANGUAGE sql IMMUTABLE AS 'SELECT a + b, a * b'");
            try (CallableStatement call = conn.prepareCall("{call sum_of(?, ?, ?)}")) {
                call.setInt(1, 6);
                call.setInt(2, 7);
                call.registerOutParameter(2, Types.INTEGER);
                call.registerOutParameter(3, Types.INTEGER);
                call.execute();
                record(section + "/call", list(call.getInt(2), call.getInt(3)));
            }
            run(conn, "CREATE TABLE called (n int)");
            run(conn, "CREATE PROCEDURE call_it(n int) LANGUAGE plpgsql AS 'BEGIN INSERT INTO called VALUES (n); COMMIT; END'");
            record(section + "/procedure", list(attempt(conn, "CALL call_it(5)"), one(conn, "SELECT n FROM called")));
            return null;
        });
    }

    static void prepare(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE TABLE prepare (n int PRIMARY KEY, v text)");
            return null;
        });
        var offset = 0;
        for (var mode : new String[] {"extended", "extendedForPrepared", "extendedCacheEverything", "simple"}) {
            for (var threshold : new String[] {"1", "5"}) {
                var name = section + "/" + mode + ", " + threshold + ": ";
                var base = offset;
                offset += 100;
                connected(conn -> {
                    var seen = new ArrayList<Object>();
                    try (var put = conn.prepareStatement("INSERT INTO prepare VALUES (?, ?)");
                        var get = conn.prepareStatement("SELECT v FROM prepare WHERE n = ?")) {
                        for (var n = base; n < base + 12; n++) {
                            put.setInt(1, n);
                            put.setString(2, "v" + n);
                            seen.add(put.executeUpdate());
                            get.setInt(1, n);
                            seen.add(rows(get.executeQuery()));
                        }
                        record(name + "by turns", seen);
                        var reads = new ArrayList<Object>();
                        for (var n = 0; n < 40; n++) {
                            get.setInt(1, base + n % 12);
                            reads.add(rows(get.executeQuery()));
                        }
                        record(name + "reads", reads);
                    }
                    var errors = new ArrayList<Object>();
                    try (var divide = conn.prepareStatement("SELECT 1 / ?")) {
                        for (var n = 0; n < 12; n++) {
                            divide.setInt(1, n % 2);
                            errors.add(outcome(() -> rows(divide.executeQuery())));
                        }
                    }
                    record(name + "errors", errors);
                    return null;
                }, "preferQueryMode", mode, "prepareThreshold", threshold);
            }
        }
        for (var autosave : new String[] {"never", "conservative", "always"}) {
            record(section + "/result changes, autosave " + autosave, connected(conn -> changing(conn), "prepareThreshold", "1", "autosave", autosave));
        }
        connected(conn -> {
            run(conn, "PREPARE plus(int) AS SELECT $1 + 1");
            record(section + "/PREPARE", list(attempt(conn, "EXECUTE plus(1)"), attempt(conn, "DEALLOCATE plus"), attempt(conn, "EXECUTE plus(1)")));
            try (var read = conn.prepareStatement("SELECT ? + 1")) {
                for (var n = 0; n < 3; n++) {
                    read.setInt(1, n);
                    rows(read.executeQuery());
                }
                var seen = new ArrayList<Object>();
                for (var sql : new String[] {"DEALLOCATE ALL", "DISCARD ALL"}) {
                    run(conn, sql);
                    for (var n = 0; n < 3; n++) {
                        read.setInt(1, n);
                        seen.add(outcome(() -> rows(read.executeQuery())));
                    }
                }
                record(section + "/taken away", seen);
            }
            return null;
        }, "prepareThreshold", "1");
        connected(conn -> {
            var seen = new ArrayList<Object>();
            for (var n = 0; n < 60; n++) {
                seen.add(one(conn, "SELECT ?::int + " + n % 7, n));
            }
            record(section + "/few kept", seen);
            return null;
        }, "prepareThreshold", "1", "preparedStatementCacheQueries", "3");
    }

    static Object changing(Connection conn) throws Exception {
        run(conn, "DROP TABLE IF EXISTS changing");
        run(conn, "CREATE TABLE changing (a int)");
        run(conn, "INSERT INTO changing VALUES (1)");
        var seen = new ArrayList<Object>();
        try (var read = conn.prepareStatement("SELECT * FROM changing")) {
            for (var n = 0; n < 20; n++) {
                rows(read.executeQuery());
            }
            run(conn, "ALTER TABLE changing ADD b text DEFAULT 'b'");
            for (var n = 0; n < 3; n++) {
                seen.add(outcome(() -> answer(read, read.execute())));
            }
            conn.setAutoCommit(false);
            seen.add(outcome(() -> answer(read, read.execute())));
            run(conn, "ALTER TABLE changing ADD c int");
            for (var n = 0; n < 2; n++) {
                seen.add(outcome(() -> answer(read, read.execute())));
            }
            conn.rollback();
            seen.add(outcome(() -> answer(read, read.execute())));
            conn.rollback();
            conn.setAutoCommit(true);
        }
        return seen;
    }

    static void batches(String section) throws Exception {
        for (var rewrite : new String[] {"false", "true"}) {
            var name = section + "/" + (rewrite.equals("true") ? "rewritten: " : "");
            connected(conn -> {
                run(conn, "DROP TABLE IF EXISTS batches");
                run(conn, "CREATE TABLE batches (n int PRIMARY KEY, v text, id int GENERATED ALWAYS AS IDENTITY)");
                try (var put = conn.prepareStatement("INSERT INTO batches (n, v) VALUES (?, ?)")) {
                    for (var n = 0; n < 1000; n++) {
                        put.setInt(1, n);
                        put.setString(2, "v" + n);
                        put.addBatch();
                    }
                    record(name + "counts", put.executeBatch());
                    record(name + "rows", one(conn, "SELECT count(*) FROM batches"));
                    for (var n : new int[] {2000, 2001, 1, 2002}) {
                        put.setInt(1, n);
                        put.setString(2, "x");
                        put.addBatch();
                    }
                    record(name + "fails", outcome(() -> put.executeBatch()));
                    record(name + "left", one(conn, "SELECT count(*) FROM batches"));
                }
                try (var put = conn.prepareStatement("INSERT INTO batches (n, v) VALUES (?, ?)", Statement.RETURN_GENERATED_KEYS)) {
                    for (var n = 3000; n < 3100; n++) {
                        put.setInt(1, n);
                        put.setString(2, "k");
                        put.addBatch();
                    }
                    put.executeBatch();
                    var keys = rows(put.getGeneratedKeys());
                    record(name + "keys", list(keys.size(), ((List<?>) keys.get(0)).get(0)));
                }
                try (var mixed = conn.createStatement()) {
                    mixed.addBatch("UPDATE batches SET v = 'u' WHERE n < 10");
                    mixed.addBatch("DELETE FROM batches WHERE n >= 500");
                    mixed.addBatch("CREATE TABLE IF NOT EXISTS batched (n int)");
                    record(name + "mixed", mixed.executeBatch());
                    mixed.addBatch("INSERT INTO batches (n) VALUES (5000)");
                    mixed.addBatch("SELECT 1");
                    record(name + "with a SELECT", outcome(() -> mixed.executeBatch()));
                }
                conn.setAutoCommit(false);
                try (var put = conn.prepareStatement("INSERT INTO batches (n) VALUES (?)")) {
                    for (var n = 6000; n < 6300; n++) {
                        put.setInt(1, n);
                        put.addBatch();
                    }
                    put.executeBatch();
                    record(name + "inside", one(conn, "SELECT count(*) FROM batches"));
                    conn.rollback();
                    record(name + "rolled back", one(conn, "SELECT count(*) FROM batches"));
                    conn.rollback();
                }
                return null;
            }, "reWriteBatchedInserts", rewrite);
        }
    }

    static void transactions(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE TABLE transactions (n int PRIMARY KEY)");
            var count = "SELECT count(*) FROM transactions";
            var put = "INSERT INTO transactions VALUES (?)";
            conn.setAutoCommit(false);
            run(conn, put, 1);
            record(section + "/inside", one(conn, count));
            conn.rollback();
            record(section + "/rolled back", one(conn, count));
            run(conn, put, 2);
            conn.commit();
            Savepoint point = conn.setSavepoint("point");
            run(conn, put, 3);
            record(section + "/error", list(attempt(conn, put, 2), attempt(conn, count)));
            conn.rollback(point);
            record(section + "/savepoint", one(conn, count));
            Savepoint unnamed = conn.setSavepoint();
            run(conn, put, 4);
            conn.releaseSavepoint(unnamed);
            conn.commit();
            record(section + "/committed", attempt(conn, "SELECT n FROM transactions ORDER BY n"));
            conn.rollback();
            record(section + "/failed commit", list(attempt(conn, "SELECT nothing"), outcome(() -> {
                conn.commit();
                return "committed";
            })));
            var levels = new int[] {Connection.TRANSACTION_READ_UNCOMMITTED, Connection.TRANSACTION_REPEATABLE_READ, Connection.TRANSACTION_SERIALIZABLE, Connection.TRANSACTION_READ_COMMITTED};
            for (var level : levels) {
                conn.setTransactionIsolation(level);
                record(section + "/level " + level, list(one(conn, "SHOW transaction_isolation"), one(conn, count), conn.getTransactionIsolation()));
                conn.rollback();
                conn.setAutoCommit(true);
                record(section + "/level " + level + " alone", list(one(conn, "SHOW transaction_isolation"), one(conn, count), one(conn, count)));
                conn.setAutoCommit(false);
            }
            return null;
        });
        for (var mode : new String[] {"ignore", "transaction", "always"}) {
            connected(conn -> {
                var put = "INSERT INTO transactions VALUES (?)";
                conn.setReadOnly(true);
                var seen = new ArrayList<Object>();
                for (var n = 0; n < 30; n++) {
                    seen.add(one(conn, "SELECT count(*) + ? FROM transactions", n));
                }
                record(section + "/read only, " + mode + ": reads", seen);
                record(section + "/read only, " + mode + ": shown", list(one(conn, "SHOW transaction_read_only"), conn.isReadOnly()));
                record(section + "/read only, " + mode + ": write", attempt(conn, put, 2));
                conn.setAutoCommit(false);
                record(section + "/read only, " + mode + ": in a transaction", list(one(conn, "SHOW transaction_read_only"), one(conn, "SELECT count(*) FROM transactions"), attempt(conn, put, 2)));
                conn.rollback();
                conn.setReadOnly(false);
                record(section + "/read only, " + mode + ": no more", list(one(conn, "SHOW transaction_read_only"), attempt(conn, put, 50 + mode.length())));
                conn.commit();
                return null;
            }, "readOnlyMode", mode);
        }
        for (var autosave : new String[] {"conservative", "always"}) {
            for (var clean : new String[] {"false", "true"}) {
                connected(conn -> {
                    conn.setAutoCommit(false);
                    var seen = list(attempt(conn, "INSERT INTO transactions VALUES (?)", 100));
                    for (var n = 0; n < 3; n++) {
                        seen.add(attempt(conn, "INSERT INTO transactions VALUES (?)", 2));
                        seen.add(attempt(conn, "SELECT count(*) FROM transactions"));
                    }
                    conn.rollback();
                    record(section + "/autosave " + autosave + ", clean " + clean, seen);
                    return null;
                }, "autosave", autosave, "cleanupSavepoints", clean);
            }
        }
    }

    static void cursors(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE TABLE cursors AS SELECT n, 'v' || n AS v FROM generate_series(1, 1000) AS n");
            run(conn, "ALTER TABLE cursors ADD PRIMARY KEY (n)");
            for (var auto : new boolean[] {false, true}) {
                conn.setAutoCommit(auto);
                var name = section + (auto ? "/autocommit: " : "/");
                try (var read = conn.prepareStatement("SELECT n FROM cursors WHERE n > ? ORDER BY n")) {
                    read.setFetchSize(70);
                    for (var n = 0; n < 6; n++) {
                        read.setInt(1, n);
                        record(name + "fetched", rows(read.executeQuery()));
                    }
                    try (var first = conn.prepareStatement("SELECT n FROM cursors ORDER BY n DESC")) {
                        first.setFetchSize(10);
                        var seen = new ArrayList<Object>();
                        var result = first.executeQuery();
                        read.setInt(1, 900);
                        var other = read.executeQuery();
                        while (other.next() && result.next()) {
                            seen.add(list(result.getInt(1), other.getInt(1)));
                            if (seen.size() % 30 == 0) {
                                seen.add(one(conn, "SELECT count(*) FROM cursors"));
                            }
                        }
                        record(name + "by turns", seen);
                    }
                    read.setMaxRows(5);
                    record(name + "at most", rows(read.executeQuery()));
                }
                try (var left = conn.createStatement()) {
                    left.setFetchSize(10);
                    var result = left.executeQuery("SELECT n FROM cursors ORDER BY n");
                    result.next();
                    record(name + "left early", result.getInt(1));
                }
                record(name + "usable", one(conn, "SELECT count(*) FROM cursors"));
                if (!auto) {
                    conn.commit();
                }
            }
            try (var scroll = conn.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE)) {
                var result = scroll.executeQuery("SELECT n, v FROM cursors WHERE n < 10 ORDER BY n");
                result.absolute(5);
                result.updateString("v", "changed");
                result.updateRow();
                result.moveToInsertRow();
                result.updateInt("n", 5000);
                result.updateString("v", "new");
                result.insertRow();
                result.first();
                result.deleteRow();
                record(section + "/updated", attempt(conn, "SELECT * FROM cursors WHERE n < 6 OR n > 4000 ORDER BY n"));
            }
            conn.setAutoCommit(false);
            run(conn, "CREATE FUNCTION give() RETURNS refcursor LANGUAGE plpgsql AS $$ DECLARE c refcursor := 'given'; BEGIN OPEN c FOR SELECT n FROM cursors ORDER BY n LIMIT 5; RETURN c; END $$");
            try (var given = conn.createStatement(); var result = given.executeQuery("SELECT give()")) {
                result.next();
                record(section + "/refcursor", rows((ResultSet) result.getObject(1)));
            }
            conn.rollback();
            try (var held = conn.createStatement(ResultSet.TYPE_FORWARD_ONLY, ResultSet.CONCUR_READ_ONLY, ResultSet.HOLD_CURSORS_OVER_COMMIT)) {
                held.setFetchSize(10);
                var result = held.executeQuery("SELECT n FROM cursors ORDER BY n");
                result.next();
                conn.commit();
                record(section + "/held", rows(result).size());
            }
            conn.rollback();
            return null;
        });
    }

    static void copy(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE TABLE copy (n int, v text)");
            var manager = conn.unwrap(PGConnection.class).getCopyAPI();
            var text = new StringBuilder();
            for (var n = 0; n < 5000; n++) {
                text.append(n).append("\tv").append(n).append('\n');
            }
            record(section + "/in", list(manager.copyIn("COPY copy FROM STDIN", new StringReader(text.toString())), one(conn, "SELECT count(*) FROM copy")));
            var out = new StringWriter();
            record(section + "/out", list(manager.copyOut("COPY (SELECT * FROM copy ORDER BY n) TO STDOUT", out), out.toString()));
            var data = new ByteArrayOutputStream();
            manager.copyOut("COPY copy TO STDOUT (FORMAT binary)", data);
            record(section + "/out, binary", data.toByteArray());
            record(section + "/in, binary", manager.copyIn("COPY copy FROM STDIN (FORMAT binary)", new ByteArrayInputStream(data.toByteArray())));
            InputStream large = new ByteArrayInputStream((("x".repeat(MEGABYTES_5 / 10) + "\n").repeat(10)).getBytes(StandardCharsets.UTF_8));
            record(section + "/large", manager.copyIn("COPY copy (v) FROM STDIN", large, 65536));
            record(section + "/bad data", outcome(() -> manager.copyIn("COPY copy FROM STDIN", new StringReader("1\ta\nx\tb\n"))));
            record(section + "/no table", outcome(() -> manager.copyOut("COPY no_such_table TO STDOUT", new StringWriter())));
            CopyIn given = manager.copyIn("COPY copy FROM STDIN");
            var row = "77\tgiven up\n".getBytes(StandardCharsets.UTF_8);
            given.writeToCopy(row, 0, row.length);
            given.cancelCopy();
            record(section + "/given up", one(conn, "SELECT count(*) FROM copy WHERE n = 77"));
            record(section + "/usable", one(conn, "SELECT count(*) FROM copy"));
            return null;
        });
    }

    static void largeObjects(String section) throws Exception {
        connected(conn -> {
            var data = new byte[300_000];
            for (var i = 0; i < data.length; i++) {
                data[i] = (byte) (i % 251);
            }
            conn.setAutoCommit(false);
            var manager = conn.unwrap(PGConnection.class).getLargeObjectAPI();
            var oid = manager.createLO(LargeObjectManager.READWRITE);
            try (LargeObject object = manager.open(oid, LargeObjectManager.WRITE)) {
                object.write(data);
                record(section + "/written", object.tell());
            }
            conn.commit();
            for (var n = 0; n < 3; n++) {
                try (LargeObject object = manager.open(oid, LargeObjectManager.READ)) {
                    object.seek(1000);
                    record(section + "/read", list(object.read(100), object.size()));
                }
                conn.commit();
            }
            try (LargeObject object = manager.open(oid, LargeObjectManager.READWRITE)) {
                object.truncate(10);
                record(section + "/truncated", object.size());
            }
            conn.rollback();
            try (LargeObject object = manager.open(oid, LargeObjectManager.READ)) {
                record(section + "/rolled back", object.size());
            }
            manager.delete(oid);
            conn.commit();
            record(section + "/gone", ((String) one(conn, "SELECT count(*)::text FROM pg_largeobject_metadata WHERE oid = ?", oid)));
            conn.rollback();
            return null;
        });
    }

    static void cancel(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE TABLE cancel (n int)");
            for (var sql : new String[] {"SELECT pg_sleep(600)", "INSERT INTO cancel SELECT 1 FROM pg_sleep(600)"}) {
                record(section + "/by hand: " + sql, cancelled(conn, sql));
                record(section + "/usable", one(conn, "SELECT count(*) FROM cancel"));
            }
            try (var slow = conn.createStatement()) {
                slow.setQueryTimeout(1);
                record(section + "/timeout", outcome(() -> slow.execute("SELECT pg_sleep(600)")));
            }
            conn.setAutoCommit(false);
            record(section + "/in a transaction", list(cancelled(conn, "SELECT pg_sleep(600)"), attempt(conn, "SELECT 1")));
            conn.rollback();
            record(section + "/afterwards", attempt(conn, "SELECT 1"));
            return null;
        });
    }

    /** Runs a query that nothing but a cancel request ends. It is sent until it has reached it. */
    static Object cancelled(Connection conn, String sql) throws Exception {
        try (var slow = conn.createStatement()) {
            var done = new AtomicBoolean();
            var sender = new Thread(() -> {
                try {
                    while (!done.get()) {
                        Thread.sleep(100);
                        slow.cancel();
                    }
                } catch (Exception error) {
                    record(Thread.currentThread().getName() + "/FAILED", error.toString());
                }
            }, "cancel");
            sender.start();
            try {
                return outcome(() -> slow.execute(sql));
            } finally {
                done.set(true);
                sender.join();
            }
        }
    }

    static void notifications(String section) throws Exception {
        connected(conn -> {
            var listening = conn.unwrap(PGConnection.class);
            run(conn, "LISTEN tide");
            run(conn, "NOTIFY tide, 'own'");
            connected(other -> run(other, "SELECT pg_notify('tide', 'other')"));
            var seen = new ArrayList<Object>();
            while (seen.size() < 2) {
                PGNotification[] heard = listening.getNotifications(30_000);
                if (heard == null || heard.length == 0) {
                    throw new IllegalStateException("no notification");
                }
                for (var one : heard) {
                    seen.add(list(one.getName(), one.getParameter()));
                }
            }
            record(section + "/notified", seen);
            record(section + "/reads while listening", list(one(conn, "SELECT 1"), one(conn, "SELECT count(*) FROM pg_class WHERE oid = 0")));
            run(conn, "UNLISTEN *");
            record(section + "/no channels", attempt(conn, "SELECT pg_listening_channels()"));
            try (var noisy = conn.createStatement()) {
                noisy.execute("DO $$ BEGIN RAISE NOTICE 'one' USING DETAIL = 'd'; RAISE WARNING 'two'; END $$");
                var warnings = new ArrayList<Object>();
                for (SQLWarning warning = noisy.getWarnings(); warning != null; warning = warning.getNextWarning()) {
                    warnings.add(list(warning.getSQLState(), warning.getMessage()));
                }
                record(section + "/warnings", warnings);
            }
            return null;
        });
    }

    static void metadata(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE TABLE parent (a int, b text NOT NULL DEFAULT 'x', PRIMARY KEY (a, b))");
            run(conn, "CREATE TABLE child (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, pa int, pb text, day date, big numeric(10, 2), FOREIGN KEY (pa, pb) REFERENCES parent ON DELETE CASCADE)");
            run(conn, "CREATE INDEX by_day ON child (day)");
            run(conn, "COMMENT ON TABLE child IS 'a child'");
            run(conn, "CREATE VIEW grown AS SELECT id, day FROM child");
            DatabaseMetaData meta = conn.getMetaData();
            for (var n = 0; n < 3; n++) {
                record(section + "/tables", rows(meta.getTables(null, "public", "%", new String[] {"TABLE", "VIEW"})));
                record(section + "/columns", rows(meta.getColumns(null, "public", "child", "%")));
                record(section + "/primary keys", rows(meta.getPrimaryKeys(null, "public", "parent")));
                record(section + "/imported keys", rows(meta.getImportedKeys(null, "public", "child")));
                record(section + "/exported keys", rows(meta.getExportedKeys(null, "public", "parent")));
                record(section + "/indexes", rows(meta.getIndexInfo(null, "public", "child", false, false)));
            }
            record(section + "/schemas", rows(meta.getSchemas()));
            record(section + "/catalogs", rows(meta.getCatalogs()).size() > 0);
            record(section + "/types", rows(meta.getTypeInfo()).size());
            record(section + "/functions", rows(meta.getFunctions(null, "public", "%")).size());
            record(section + "/procedures", rows(meta.getProcedures(null, "public", "%")).size());
            record(section + "/best row", rows(meta.getBestRowIdentifier(null, "public", "child", DatabaseMetaData.bestRowSession, false)));
            record(section + "/rights", rows(meta.getTablePrivileges(null, "public", "child")));
            record(section + "/client info", rows(meta.getClientInfoProperties()));
            record(section + "/keywords", list(meta.getMaxColumnNameLength(), meta.getSQLKeywords()));
            try (var statement = conn.prepareStatement("SELECT c.id, c.big AS b, 1 + ? AS e FROM child AS c WHERE day = ?")) {
                var parameters = statement.getParameterMetaData();
                record(section + "/parameters", list(parameters.getParameterTypeName(1), parameters.getParameterTypeName(2)));
                var columns = statement.getMetaData();
                var seen = new ArrayList<Object>();
                for (var i = 1; i <= columns.getColumnCount(); i++) {
                    seen.add(list(columns.getColumnName(i), columns.getTableName(i), columns.isNullable(i), columns.isAutoIncrement(i), columns.getPrecision(i), columns.getScale(i)));
                }
                record(section + "/result", seen);
            }
            return null;
        });
    }

    /** A transaction's name as a transaction monitor gives it. */
    static class Name implements Xid {
        final int number;

        Name(int number) {
            this.number = number;
        }

        public int getFormatId() {
            return 7;
        }

        public byte[] getGlobalTransactionId() {
            return ("tide " + number).getBytes(StandardCharsets.UTF_8);
        }

        public byte[] getBranchQualifier() {
            return "branch".getBytes(StandardCharsets.UTF_8);
        }
    }

    static void distributed(String section) throws Exception {
        var source = new PGXADataSource();
        source.setServerNames(new String[] {System.getenv("PGHOST")});
        source.setPortNumbers(new int[] {Integer.parseInt(System.getenv("PGPORT"))});
        source.setDatabaseName(System.getenv("PGDATABASE"));
        source.setUser(System.getenv("PGUSER"));
        source.setPassword(System.getenv("PGPASSWORD"));
        connected(conn -> run(conn, "CREATE TABLE distributed (n int)"));
        var xa = source.getXAConnection();
        try (var conn = xa.getConnection()) {
            var resource = xa.getXAResource();
            for (var n = 0; n < 4; n++) {
                var name = new Name(n);
                resource.start(name, XAResource.TMNOFLAGS);
                run(conn, "INSERT INTO distributed VALUES (?)", n);
                resource.end(name, XAResource.TMSUCCESS);
                if (n == 3) {
                    resource.commit(name, true);
                    continue;
                }
                record(section + "/prepared", resource.prepare(name));
                if (n == 0) {
                    resource.commit(name, false);
                } else if (n == 1) {
                    resource.rollback(name);
                }
            }
            var left = new ArrayList<Object>();
            for (var name : resource.recover(XAResource.TMSTARTRSCAN | XAResource.TMENDRSCAN)) {
                left.add(list(name.getFormatId(), name.getGlobalTransactionId(), name.getBranchQualifier()));
            }
            record(section + "/recovered", left);
            resource.commit(new Name(2), false);
            try {
                resource.commit(new Name(9), false);
            } catch (XAException error) {
                record(section + "/unknown", list(error.errorCode, said((SQLException) error.getCause())));
            }
            record(section + "/rows", attempt(conn, "SELECT n FROM distributed ORDER BY n"));
        } finally {
            xa.close();
        }
    }

    static void settings(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE SCHEMA tide");
            run(conn, "CREATE TABLE tide.place AS SELECT 'tide' AS name");
            run(conn, "CREATE TABLE public.place AS SELECT 'public' AS name");
            conn.setSchema("tide");
            var seen = new ArrayList<Object>();
            for (var n = 0; n < 30; n++) {
                seen.add(one(conn, "SELECT name FROM place"));
            }
            record(section + "/schema", list(seen, conn.getSchema()));
            conn.setClientInfo("ApplicationName", "renamed");
            record(section + "/client info", list(one(conn, "SHOW application_name"), conn.getClientInfo("ApplicationName")));
            run(conn, "SET DateStyle = 'ISO, DMY'");
            record(section + "/DateStyle", list(one(conn, "SELECT '01/02/2024'::date::text"), conn.unwrap(PGConnection.class).getParameterStatus("DateStyle")));
            record(section + "/refused", attempt(conn, "SET client_encoding = 'LATIN1'"));
            return null;
        });
        connected(conn -> {
            run(conn, "SET statement_timeout = '50ms'");
            record(section + "/timeout", list(attempt(conn, "SELECT pg_sleep(600)"), attempt(conn, "SELECT 1")));
            conn.setAutoCommit(false);
            run(conn, "SET LOCAL work_mem = '5MB'");
            run(conn, "SET search_path = tide");
            record(section + "/local", list(one(conn, "SHOW work_mem"), one(conn, "SELECT name FROM place")));
            conn.rollback();
            conn.setAutoCommit(true);
            record(section + "/rolled back", list(one(conn, "SHOW work_mem"), one(conn, "SELECT name FROM place")));
            return null;
        });
    }

    static void ownWrites(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE TABLE own_writes (n int)");
            var seen = new ArrayList<Object>();
            try (var put = conn.prepareStatement("INSERT INTO own_writes VALUES (?)");
                var count = conn.prepareStatement("SELECT count(*), max(n) FROM own_writes")) {
                for (var n = 0; n < 60; n++) {
                    put.setInt(1, n);
                    put.executeUpdate();
                    seen.add(rows(count.executeQuery()));
                }
                record(section + "/in turns", seen);
                var reads = new ArrayList<Object>();
                for (var n = 0; n < 200; n++) {
                    reads.add(rows(count.executeQuery()));
                }
                record(section + "/many reads", reads);
                seen.clear();
                for (var n = 0; n < 20; n++) {
                    conn.setAutoCommit(false);
                    put.setInt(1, 100 + n);
                    put.executeUpdate();
                    conn.commit();
                    conn.setAutoCommit(true);
                    seen.add(rows(count.executeQuery()));
                }
                record(section + "/by transactions", seen);
            }
            return null;
        });
    }

    static void errors(String section) throws Exception {
        connected(conn -> {
            run(conn, "CREATE TABLE errors (n int PRIMARY KEY, v varchar(3) NOT NULL, CHECK (n < 100))");
            run(conn, "INSERT INTO errors VALUES (1, 'a')");
            var queries = new String[] {
                "SELECT 1/0", "INSERT INTO errors VALUES (1, 'b')", "INSERT INTO errors VALUES (2, NULL)", "INSERT INTO errors VALUES (200, 'c')",
                "INSERT INTO errors VALUES (3, 'abcd')", "SELEC 1", "SELECT \u2603\u2603, FROM errors WHERE (", "SELECT * FROM no_such_table",
                "SELECT no_such_function(1)", "SELECT 'x'::int", "SELECT * FROM pg_authid", "SELECT 1; SELECT 1/0; SELECT 2",
                "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'TG001', DETAIL = 'd', HINT = 'h'; END $$",
            };
            for (var query : queries) {
                record(section + "/" + query, list(attempt(conn, query), attempt(conn, query)));
            }
            record(section + "/wrong value", attempt(conn, "SELECT n FROM errors WHERE n = ?::int", "x"));
            record(section + "/usable", list(attempt(conn, "SELECT count(*) FROM errors"), conn.isValid(30)));
            return null;
        });
    }

    static final Map<String, Section> SECTIONS = new LinkedHashMap<>();

    static {
        SECTIONS.put("connecting", PgjdbcCheck::connecting);
        SECTIONS.put("types", PgjdbcCheck::types);
        SECTIONS.put("prepare", PgjdbcCheck::prepare);
        SECTIONS.put("batches", PgjdbcCheck::batches);
        SECTIONS.put("transactions", PgjdbcCheck::transactions);
        SECTIONS.put("cursors", PgjdbcCheck::cursors);
        SECTIONS.put("copy", PgjdbcCheck::copy);
        SECTIONS.put("large_objects", PgjdbcCheck::largeObjects);
        SECTIONS.put("cancel", PgjdbcCheck::cancel);
        SECTIONS.put("notifications", PgjdbcCheck::notifications);
        SECTIONS.put("metadata", PgjdbcCheck::metadata);
        SECTIONS.put("distributed", PgjdbcCheck::distributed);
        SECTIONS.put("settings", PgjdbcCheck::settings);
        SECTIONS.put("own_writes", PgjdbcCheck::ownWrites);
        SECTIONS.put("errors", PgjdbcCheck::errors);
    }

    public static void main(String[] arguments) throws Exception {
        connected(conn -> list(
            run(conn, "DROP SCHEMA IF EXISTS public, tide CASCADE"),
            run(conn, "CREATE SCHEMA public")));
        for (var section : SECTIONS.entrySet()) {
            try {
                section.getValue().run(section.getKey());
            } catch (Exception error) {
                var at = "";
                for (var frame : error.getStackTrace()) {
                    if (at.isEmpty() && "PgjdbcCheck.java".equals(frame.getFileName())) {
                        at = "line " + frame.getLineNumber();
                    }
                }
                record(section.getKey() + "/FAILED", list(at, error.getClass().getSimpleName(), String.valueOf(error.getMessage())));
            }
        }
        record("END", SECTIONS.size());
    }
}
