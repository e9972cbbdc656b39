#!lua flags=allow-oom
-- Give a request up: the aggregate is not computed anew until somebody asks again.
--
-- KEYS[1] fence:{s}:archive   KEYS[2] mend:{s}:<log>   KEYS[3] mend_tries:{s}:<log>   KEYS[4] mend_parked:{s}:<log>
-- ARGV[1] fencing token   ARGV[2] request   ARGV[3] reason
-- Returns 1. Errors: FENCED when another owner took over.
--
-- Atomic: between two commands the request would be nowhere, and whoever waits for it would think it done.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
redis.call('SREM', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])
return 1
