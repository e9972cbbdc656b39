// clickhouse.mjs URL USER PASSWORD: @clickhouse/client against a server; prints what it saw as one JSON line.

import { createClient } from "@clickhouse/client";

const [url, username, password] = process.argv.slice(2);
const client = createClient({ url, username, password, compression: { request: true, response: true } });
const rows = async (query, options = {}) => (await client.query({ query, format: "JSONEachRow", ...options })).json();
const seen = {};

seen.ping = (await client.ping()).success;
await client.command({ query: "CREATE TABLE node_test (n UInt64, text String) ENGINE = MergeTree ORDER BY n" });
const values = Array.from({ length: 5000 }, (_, n) => ({ n, text: `Zoë 🏆 ${n}` }));
const inserted = await client.insert({ table: "node_test", values, format: "JSONEachRow" });
seen.written = inserted.summary?.written_rows;
seen.params = await rows("SELECT n, text FROM node_test WHERE n = {n:UInt64}", { query_params: { n: 7 } });

let streamed = 0;
const result = await client.query({ query: "SELECT number FROM numbers(300000)", format: "JSONEachRow" });
for await (const some of result.stream()) streamed += some.length;
seen.streamed = streamed;

try {
  await rows("SELECT * FROM no_such_table");
} catch (error) {
  seen.error = { code: error.code, type: error.type };
}
try {
  const broken = await client.query({
    query: "SELECT throwIf(number = 250000, 'stop') FROM numbers(1000000) SETTINGS max_block_size = 1000",
    format: "JSONEachRow",
  });
  for await (const _ of broken.stream());
  seen.broken = "ended as if it were whole";
} catch (error) {
  seen.broken = "failed";
}
const session_id = `node-${process.pid}`;
await client.command({ query: "CREATE TEMPORARY TABLE kept (n UInt8)", session_id });
seen.session = await rows("SELECT count() AS rows FROM kept", { session_id });
await client.command({ query: "DROP TABLE node_test" });
await client.close();
console.log(JSON.stringify(seen));
