// node-postgres: prints what it sees of the server that PGHOST and PGPORT name.
//
// Owns: the steps. Never: decides whether they are right; the transcript of a direct connection does.
'use strict'

const { createHash } = require('node:crypto')
const { once } = require('node:events')
const { setTimeout: sleep } = require('node:timers/promises')
const { Client, Pool, Query, DatabaseError } = require('pg')
const Cursor = require('pg-cursor')

const LONG = 300
const MEGABYTES_5 = 5 * 1024 * 1024
const FIELDS = [
  'name', 'severity', 'code', 'message', 'detail', 'hint', 'position', 'internalPosition', 'internalQuery',
  'where', 'schema', 'table', 'column', 'dataType', 'constraint', 'file', 'line', 'routine',
]

// One line per step, as transcript.py writes them, at once.
function record(step, value) {
  process.stdout.write(`${step}\t${JSON.stringify(canonical(value))}\n`)
}

function canonical(value) {
  if (value === undefined) return null
  if (value === null || typeof value === 'boolean') return value
  if (typeof value === 'number') return Number.isFinite(value) ? value : String(value)
  if (typeof value === 'string') return value.length <= LONG ? value : digest('characters', value.length, value)
  if (Buffer.isBuffer(value)) {
    return value.length <= LONG ? `\\x${value.toString('hex')}` : digest('bytes', value.length, value)
  }
  if (value instanceof Date) return value.toISOString()
  if (Array.isArray(value)) {
    const items = value.map(canonical)
    return items.length <= LONG ? items : digest('items', items.length, JSON.stringify(items))
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, canonical(item)]))
}

function digest(unit, length, data) {
  return { [unit]: length, sha256: createHash('sha256').update(data).digest('hex') }
}

// Where it is the proxy that refuses a plan that no longer fits, there is no line in PostgreSQL's source.
function fields(error) {
  const told = (name) => error[name] !== undefined && !(name === 'line' && error.routine === 'RevalidateCachedQuery')
  return Object.fromEntries(FIELDS.filter(told).map((name) => [name, error[name]]))
}

// What a promise brings, or the server's error, in full.
async function outcome(promise) {
  try {
    return await promise
  } catch (error) {
    if (error instanceof DatabaseError) return fields(error)
    throw error
  }
}

// Tag, columns and rows; a list of those when the text held several statements.
function answer(result) {
  if (Array.isArray(result)) return result.map(answer)
  const columns = result.fields.map((field) => [field.name, field.dataTypeID < 16384 ? field.dataTypeID : 'own', field.format])
  return [result.command, result.rowCount, columns, result.rows]
}

const attempt = (client, ...query) => outcome(client.query(...query).then(answer))

async function value(client, text, values) {
  const { rows } = await client.query({ text, values, rowMode: 'array' })
  return rows[0][0]
}

async function list(count, make) {
  const items = []
  for (let n = 0; n < count; n++) items.push(await make(n))
  return items
}

async function connected(options, use) {
  const client = new Client({ connectionTimeoutMillis: 30000, ...options })
  // Without a listener the end of a connection would end the process.
  client.on('error', (error) => record('connection lost', error.message))
  await client.connect()
  try {
    return await use(client)
  } finally {
    await client.end()
  }
}

const sections = {
  async connecting(step) {
    const told = {}
    const client = new Client()
    client.connection.on('parameterStatus', (m) => (told[m.parameterName] = m.parameterValue))
    await client.connect()
    const names = ['server_version', 'server_encoding', 'client_encoding', 'application_name', 'is_superuser', 'TimeZone']
    for (const name of names) step(`parameter ${name}`, told[name])
    await client.end()
    const options = { application_name: 'check', options: '-c work_mem=5MB -c search_path=tide', statement_timeout: 54321 }
    await connected(options, async (client) => {
      for (const name of ['application_name', 'work_mem', 'search_path', 'statement_timeout']) {
        step(`options: ${name}`, await value(client, `SHOW ${name}`))
      }
    })
    const refused = {
      'wrong password': { password: 'wrong' },
      'unknown user': { user: 'nobody' },
      'unknown database': { database: 'nowhere' },
      'unknown setting': { options: '-c no_such_setting=1' },
    }
    for (const [name, options] of Object.entries(refused)) {
      const error = await outcome(connected(options, async () => 'connected'))
      step(name, [error.severity, error.code, error.message])
    }
  },

  async types(step) {
    const types = [
      ['int4', 2147483647], ['int8', '-9223372036854775808'], ['float8', 0.1], ['bool', true], ['text', ''],
      ['text', "snow ☃, quote ', back\\slash, new\nline"], ['bytea', Buffer.from([0, 1, 92, 255])],
      ['json', { a: [1, null, 'x'] }], ['jsonb', { b: { c: 1.5 }, a: 'ü' }], ['int4[]', [1, null, 3]],
      ['text[]', ['a"b', 'c,d', '{e}', null, '']], ['numeric', '12345678901234567890.0123456789'],
      ['timestamptz', new Date(Date.UTC(2024, 1, 29, 12, 30, 15, 123))], ['date', '2000-01-01'], ['uuid', '80000000-0000-0000-0000-000000000005'],
      ['interval', '40 days 5 seconds'], ['int4range', '[1,10)'], ['int4', null],
    ]
    await connected({}, async (client) => {
      for (const [type, given] of types) {
        for (const binary of [false, true]) {
          const name = `${type}${binary ? ' binary' : ''}`
          step(name, await attempt(client, { text: `SELECT $1::${type} AS v`, values: [given], binary: binary && type === 'int4' }))
        }
      }
      await client.query('CREATE TABLE types (n serial PRIMARY KEY, t text, b bytea, j jsonb, a int[], d timestamptz)')
      const insert = 'INSERT INTO types (t, b, j, a, d) VALUES ($1, $2, $3, $4, $5) RETURNING n'
      for (const row of [['text', Buffer.from([0, 255]), { x: 1 }, [1, 2], new Date(0)], [null, null, null, null, null]]) {
        step('stored', await attempt(client, insert, row))
      }
      step('read', await attempt(client, 'SELECT * FROM types ORDER BY n'))
      step('several', await attempt(client, 'SELECT 1 AS a; SELECT 2 AS b; INSERT INTO types DEFAULT VALUES'))
      step('nothing', await attempt(client, ''))
      const text = 'tide '.repeat(MEGABYTES_5 / 5)
      const data = Buffer.alloc(MEGABYTES_5, 'tide')
      step('large', await attempt(client, 'SELECT $1::text AS t, $2::bytea AS b', [text, data]))
      await client.query('CREATE TABLE large (t text, b bytea)')
      step('large: stored', await attempt(client, 'INSERT INTO large VALUES ($1, $2)', [text, data]))
      step('large: read', await attempt(client, 'SELECT * FROM large'))
      step('large: rows', await attempt(client, 'SELECT i, md5(i::text) FROM generate_series(1, 50000) AS i'))
    })
  },

  async prepare(step) {
    await connected({}, async (client) => {
      await client.query('CREATE TABLE prepare (n int PRIMARY KEY, v text)')
      const insert = (n) => ({ name: 'insert', text: 'INSERT INTO prepare VALUES ($1, $2) RETURNING n', values: [n, `v${n}`] })
      const read = (n) => ({ name: 'read', text: 'SELECT v FROM prepare WHERE n = $1', values: [n] })
      step('insert', await list(30, async (n) => (await client.query(insert(n))).rows))
      step('read', await list(100, async (n) => (await client.query(read(n % 30))).rows))
      step('described', await attempt(client, read(3)))
      step('interleaved', await list(20, async (n) => [(await client.query(insert(100 + n))).rows, (await client.query(read(100 + n))).rows]))
      step('error', await attempt(client, insert(5)))
      step('bad value', await attempt(client, { ...read(0), values: ['x'] }))
      step('wrong number', await attempt(client, { ...read(0), values: [1, 2] }))
      step('usable', await attempt(client, read(7)))
      step('many', await list(150, (n) => value(client, `SELECT ${n} + $1::int`, [n])))
      step('many names', await list(60, async (n) => (await client.query({ name: `q${n % 20}`, text: `SELECT ${n % 20} + $1::int AS s`, values: [n] })).rows))
      step('syntax', await attempt(client, { name: 'broken', text: 'SELECT FROM WHERE' }))
      await client.query('DEALLOCATE read')
      step('deallocated', await attempt(client, read(1)))
      await client.query('DEALLOCATE ALL')
      step('all deallocated', await attempt(client, insert(1000)))
      const changing = { name: 'changing', text: 'SELECT * FROM changing' }
      await client.query('CREATE TABLE changing (a int)')
      step('before', await attempt(client, changing))
      await client.query('ALTER TABLE changing ADD b text')
      step('after', await attempt(client, changing))
    })
    const pool = new Pool({ max: 4, connectionTimeoutMillis: 30000 })
    const work = Array.from({ length: 80 }, (_, n) => pool.query({ name: 'twice', text: 'SELECT $1::int * 2 AS t', values: [n] }))
    step('pool', (await Promise.all(work)).map((result) => result.rows[0].t))
    await pool.end()
  },

  async pipeline(step) {
    await connected({ pipeline: true }, async (client) => {
      await client.query('CREATE TABLE pipeline (n int PRIMARY KEY)')
      const all = async (...queries) => Promise.all(queries.map((query) => attempt(client, ...query)))
      const mixed = Array.from({ length: 40 }, (_, n) => (n % 2 ? ['SELECT count(*) FROM pipeline'] : ['INSERT INTO pipeline VALUES ($1)', [n]]))
      step('own writes', await all(...mixed))
      step('reads', await all(...Array.from({ length: 40 }, (_, n) => ['SELECT $1::int + count(*) AS s FROM pipeline', [n]])))
      step('named', await all(...Array.from({ length: 20 }, (_, n) => [{ name: 'named', text: 'SELECT $1::int AS n', values: [n] }])))
      step('errors', await all(['SELECT 1 AS a'], ['SELECT 1/$1::int', [0]], ['SELECT nothing'], ['SELECT 2 AS b', []]))
      step('transaction', await all(['BEGIN'], ['INSERT INTO pipeline VALUES (100)'], ['SELECT 1/0'], ['SELECT 1'], ['ROLLBACK'], ['SELECT count(*) FROM pipeline']))
    })
  },

  async transactions(step) {
    await connected({}, async (client) => {
      const count = () => value(client, 'SELECT count(*) FROM transactions')
      const insert = (n) => attempt(client, 'INSERT INTO transactions VALUES ($1)', [n])
      await client.query('CREATE TABLE transactions (n int PRIMARY KEY)')
      for (const [end, n] of [['COMMIT', 1], ['ROLLBACK', 2]]) {
        await client.query('BEGIN')
        await insert(n)
        step(`${end}: inside`, await count())
        step(end, [await attempt(client, end), await count()])
      }
      await client.query('BEGIN')
      await insert(3)
      await client.query('SAVEPOINT s')
      step('error', await insert(1))
      step('failed', await attempt(client, 'SELECT 1'))
      step('rolled back to', [await attempt(client, 'ROLLBACK TO s'), await count()])
      step('committed', [await attempt(client, 'COMMIT'), await count()])
      await client.query('BEGIN')
      await attempt(client, 'SELECT nothing')
      step('a failed COMMIT', await attempt(client, 'COMMIT'))
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY')
      step('read only', [await count(), await value(client, 'SHOW transaction_isolation'), await insert(9)])
      await client.query('ROLLBACK')
      step('in one text', await attempt(client, 'BEGIN; INSERT INTO transactions VALUES (10); COMMIT; SELECT count(*) FROM transactions'))
    })
  },

  async copy(step) {
    await connected({}, async (client) => {
      await client.query('CREATE TABLE copy (n int, v text)')
      const lines = Array.from({ length: 2000 }, (_, n) => `${n}\trow ${n}\n`)
      step('in', await outcome(copyIn(client, 'COPY copy FROM STDIN', lines)))
      step('count', await value(client, 'SELECT count(*) FROM copy'))
      step('out', await outcome(copyOut(client, 'COPY (SELECT * FROM copy ORDER BY n) TO STDOUT')))
      step('in, large', await outcome(copyIn(client, 'COPY copy (v) FROM STDIN', Array(10).fill('x'.repeat(MEGABYTES_5 / 10) + '\n'))))
      step('out, large', await outcome(copyOut(client, 'COPY copy TO STDOUT')))
      step('bad data', await outcome(copyIn(client, 'COPY copy FROM STDIN', ['1\ta\n', 'x\tb\n'])))
      step('failed', await outcome(copyIn(client, 'COPY copy FROM STDIN', ['1\ta\n'], 'given up')))
      step('without a stream', await attempt(client, 'COPY copy FROM STDIN'))
      step('out, error', await outcome(copyOut(client, 'COPY (SELECT 1 / (3 - n) FROM copy WHERE n < 9 ORDER BY n) TO STDOUT')))
      step('afterwards', await attempt(client, 'SELECT count(*), count(v) FROM copy'))
    })
  },

  async cursors(step) {
    await connected({}, async (client) => {
      await client.query('CREATE TABLE cursors AS SELECT generate_series(1, 1000) AS n')
      for (const inside of [false, true]) {
        if (inside) await client.query('BEGIN')
        const cursor = client.query(new Cursor('SELECT n FROM cursors WHERE n > $1 ORDER BY n', [5], { rowMode: 'array' }))
        const pages = []
        for (let page = await cursor.read(70); page.length; page = await cursor.read(70)) pages.push(page)
        step(`pages ${inside}`, pages)
        const early = client.query(new Cursor('SELECT n FROM cursors ORDER BY n'))
        step(`early ${inside}`, await early.read(3))
        await early.close()
        const failing = client.query(new Cursor('SELECT 1 / (5 - n) FROM cursors ORDER BY n'))
        step(`failing ${inside}`, [await outcome(failing.read(2)), await outcome(failing.read(10))])
        await failing.close().catch(() => {})
        step(`after ${inside}`, await attempt(client, 'SELECT 1 AS one'))
        if (inside) step('rolled back', await attempt(client, 'ROLLBACK'))
      }
      step('rows limited', await attempt(client, { text: 'SELECT n FROM cursors ORDER BY n', rows: 100 }))
    })
  },

  async cancel(step) {
    await connected({}, async (client) => {
      await client.query('CREATE TABLE cancel (n int)')
      for (const text of ['SELECT pg_sleep(600)', 'INSERT INTO cancel SELECT 1 FROM pg_sleep(600)']) {
        step(text, await cancelled(client, text))
        step('usable', await attempt(client, 'SELECT count(*) FROM cancel'))
      }
      await client.query('BEGIN')
      step('in a transaction', await cancelled(client, 'SELECT pg_sleep(600)'))
      step('failed', await attempt(client, 'SELECT 1'))
      await client.query('ROLLBACK')
      step('afterwards', await attempt(client, 'SELECT count(*) FROM cancel'))
    })
  },

  async notices(step) {
    await connected({}, async (client) => {
      const heard = []
      client.on('notice', (notice) => heard.push(fields(notice)))
      await client.query("DO $$ BEGIN RAISE NOTICE 'one' USING DETAIL = 'd', HINT = 'h'; RAISE WARNING 'two'; END $$")
      await client.query('DROP TABLE IF EXISTS never_was')
      step('heard', heard)
      const notified = []
      client.on('notification', ({ channel, payload }) => notified.push([channel, payload]))
      await client.query('LISTEN tide')
      await client.query("NOTIFY tide, 'own'")
      await connected({}, (other) => other.query("SELECT pg_notify('tide', 'other')"))
      while (notified.length < 2) await once(client, 'notification')
      step('notified', notified)
      step('read while listening', await list(5, (n) => value(client, 'SELECT $1::int', [n])))
    })
  },

  async settings(step) {
    await connected({}, async (client) => {
      await client.query("CREATE SCHEMA tide; CREATE TABLE tide.place AS SELECT 'tide' AS name")
      await client.query("CREATE TABLE public.place AS SELECT 'public' AS name")
      const read = () => value(client, 'SELECT name FROM place')
      await client.query('SET search_path TO tide, public')
      step('search_path', await list(30, read))
      await client.query("SET TimeZone = 'Asia/Tokyo'; SET application_name = 'renamed'")
      step('TimeZone', await list(10, () => value(client, "SELECT '2024-01-01 00:00+00'::timestamptz::text")))
      step('application_name', await value(client, "SELECT current_setting('application_name')"))
      await client.query('BEGIN')
      await client.query('SET LOCAL search_path TO public')
      step('SET LOCAL', await read())
      await client.query('COMMIT')
      step('after SET LOCAL', await read())
      await client.query('BEGIN; SET search_path TO public; ROLLBACK')
      step('rolled back', await read())
      await client.query('RESET search_path')
      step('reset', await read())
      await client.query('DISCARD ALL')
      step('discarded', await list(3, () => value(client, 'SHOW TimeZone')))
    })
  },

  async own_writes(step) {
    await connected({}, async (client) => {
      await client.query('CREATE TABLE own_writes (n int)')
      const write = async (n) => {
        await client.query('INSERT INTO own_writes VALUES ($1)', [n])
        return value(client, 'SELECT count(*) FROM own_writes')
      }
      step('in order', await list(100, write))
      step('many reads', await list(100, (n) => value(client, 'SELECT count(*) + $1 FROM own_writes', [n])))
      await client.query('CREATE TEMP TABLE scratch AS SELECT 1 AS n')
      step('temporary', await list(10, () => value(client, 'SELECT n FROM scratch')))
    })
  },

  async errors(step) {
    await connected({}, async (client) => {
      await client.query('CREATE TABLE errors (n int PRIMARY KEY, v varchar(3) NOT NULL)')
      await client.query("INSERT INTO errors VALUES (1, 'a')")
      const queries = [
        'SELECT 1/0', "INSERT INTO errors VALUES (1, 'b')", 'INSERT INTO errors VALUES (2, NULL)',
        "INSERT INTO errors VALUES (3, 'abcd')", 'SELEC 1', 'SELECT ☃☃, FROM errors WHERE (',
        'SELECT * FROM no_such_table', 'SELECT no_such_function(1)', "SELECT 'x'::int", 'SELECT * FROM pg_authid',
      ]
      for (const text of queries) {
        step(text, await attempt(client, text))
        step(`${text} prepared`, await attempt(client, text, []))
      }
      step('usable', await attempt(client, 'SELECT count(*) FROM errors'))
    })
  },
}

// The driver has no COPY of its own, but lets others answer for a query.
class Copy {
  constructor(text, feed) {
    Object.assign(this, { text, feed, data: [], tag: null, error: null })
    this.done = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }))
  }
  submit(connection) {
    connection.query(this.text)
  }
  handleCopyInResponse(connection) {
    this.feed(connection)
  }
  handleCopyData(message) {
    // Of a buffer that the driver uses again.
    this.data.push(Buffer.from(message.chunk))
  }
  handleCommandComplete(message) {
    this.tag = message.text
  }
  handleError(error) {
    this.reject(error)
  }
  handleReadyForQuery() {
    this.resolve([this.tag, Buffer.concat(this.data)])
  }
}

function copyIn(client, text, chunks, failure) {
  const feed = (connection) => {
    for (const chunk of chunks) connection.sendCopyFromChunk(Buffer.from(chunk))
    if (failure) connection.sendCopyFail(failure)
    else connection.endCopyFrom()
  }
  return client.query(new Copy(text, feed)).done
}

const copyOut = (client, text) => client.query(new Copy(text)).done

// Runs a query that nothing but a cancel request ends. It is sent until it has reached it.
async function cancelled(client, text) {
  const query = client.query(new Query(text))
  let result = null
  query.on('end', () => (result = 'finished'))
  query.on('error', (error) => (result = fields(error)))
  while (result === null) {
    await sleep(200)
    if (result !== null) break
    const other = new Client()
    const ended = once(other.connection, 'end')
    other.cancel(client, query)
    await ended
  }
  return result
}

async function main() {
  await connected({}, (client) => client.query('DROP SCHEMA IF EXISTS public, tide CASCADE; CREATE SCHEMA public'))
  for (const [name, run] of Object.entries(sections)) {
    try {
      await run((step, value) => record(`${name}/${step}`, value))
    } catch (error) {
      record(`${name}/FAILED`, error.stack.split('\n').slice(0, 12).join('\n').slice(0, LONG))
    }
  }
  record('END', Object.keys(sections).length)
}

main()
