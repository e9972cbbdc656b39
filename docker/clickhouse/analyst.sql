-- A read-only user for analysts on a ClickHouse server (the embedded one has it built in). Run it once as an
-- administrator, after `arenacast migrate`, with a password of your own:
--
--   clickhouse-client --param_password=… --queries-file docker/clickhouse/analyst.sql
--
-- readonly = 2 and not 1, because drivers send settings; the constraints keep them within bounds.
CREATE SETTINGS PROFILE IF NOT EXISTS arenacast_analyst SETTINGS
    readonly = 2,
    max_execution_time = 30 MIN 1 MAX 30,
    max_memory_usage = 1000000000 MIN 1 MAX 1000000000,
    max_result_rows = 1000000 MIN 1 MAX 1000000,
    max_threads = 2 MIN 1 MAX 2,
    max_concurrent_queries_for_user = 4 READONLY;

CREATE ROLE IF NOT EXISTS arenacast_analyst SETTINGS PROFILE 'arenacast_analyst';

-- The views have their definer's rights: nothing behind them is granted.
GRANT SELECT ON an.* TO arenacast_analyst;

CREATE USER IF NOT EXISTS analyst IDENTIFIED WITH sha256_password BY {password:String} DEFAULT ROLE arenacast_analyst;

GRANT arenacast_analyst TO analyst;
