#!lua flags=allow-oom
-- The epoch goes on although the server took a new replication id: it is the same process, so nothing was rolled back.
--
-- KEYS[1] epochs:{s}
-- ARGV[1] run id of the server before   ARGV[2] "<run id>:<replication id>" before
-- Returns 1 when the record was changed.
--
-- Atomic: between a separate comparison and change the server could be another one.
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local now = run_id .. ':' .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
if run_id ~= ARGV[1] or now == ARGV[2] or redis.call('HGET', KEYS[1], 'run') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'run', now)
return 1
