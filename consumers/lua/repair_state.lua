#!lua flags=allow-oom
-- Put a poll's state, computed anew, and its voters in the place of the stored ones.
--
-- KEYS[1] fence:{s}:state   KEYS[2] shard:{s}   KEYS[3] state:{s}:<topic>   KEYS[4] voters:{s}:<topic>   KEYS[5] topics:{s}
-- KEYS[6] voters:{s}:<topic>:new
-- ARGV[1] fencing token   ARGV[2] last_id it was computed for   ARGV[3] topic   ARGV[4] ms of its last change
-- ARGV[5] pos   ARGV[6] data   ARGV[7] priv   ARGV[8] retention of a final state, s; "0" for one that is not final
-- ARGV[9] how many voters were gathered
-- Returns 1. Errors: FENCED when another owner took over or the shard moved on; STALE when voters are missing.
--
-- Atomic with the checks: between them and the write a batch could be applied, and would be lost. Atomic as a whole:
-- after a crash between state and voters people could vote twice.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
if (redis.call('HGET', KEYS[2], 'last_id') or '0-0') ~= ARGV[2] then
  return redis.error_reply('FENCED position moved from ' .. ARGV[2])
end
if redis.call('HLEN', KEYS[6]) ~= tonumber(ARGV[9]) then
  return redis.error_reply('STALE not all voters of ' .. ARGV[3] .. ' are there')
end
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], 'pos', ARGV[5], 'data', ARGV[6], 'priv', ARGV[7])
redis.call('ZADD', KEYS[5], ARGV[4], ARGV[3])
if ARGV[8] ~= '0' then
  redis.call('EXPIRE', KEYS[3], ARGV[8])
end
if ARGV[9] == '0' then
  redis.call('DEL', KEYS[4])
else
  redis.call('RENAME', KEYS[6], KEYS[4])
  redis.call('PERSIST', KEYS[4])
end
return 1
