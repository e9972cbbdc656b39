#!lua flags=allow-oom
-- Write down what is about to be inserted, before it is.
--
-- KEYS[1] archive:{s}:<log>   KEYS[2] fence:{s}:archive   KEYS[3] epochs:{s}
-- ARGV[1] fencing token   ARGV[2] newest epoch the owner knows   ARGV[3] position the plan starts from   ARGV[4] plan
-- Returns 1. Errors: FENCED when another owner took over; STALE when Redis is not what the owner took over: another
-- incarnation, another position, or a plan in flight. The owner then has to take the log over again.
--
-- Atomic: a plan stored by a former owner, or over another plan, would let an insert happen that nobody repeats.
-- Allowed above the memory limit: only what is archived can be trimmed.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return redis.error_reply('FENCED token ' .. ARGV[1] .. ' is not the newest')
end
if redis.call('HGET', KEYS[3], 'now') ~= ARGV[2] then
  return redis.error_reply('STALE a new epoch began')
end
if (redis.call('HGET', KEYS[1], 'committed') or '0-0') ~= ARGV[3] then
  return redis.error_reply('STALE the position is not ' .. ARGV[3])
end
if redis.call('HEXISTS', KEYS[1], 'inflight') == 1 then
  return redis.error_reply('STALE a plan is in flight')
end
redis.call('HSET', KEYS[1], 'inflight', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'batches', 1)
return 1
